"""Tokenizers: load one that exists, or train one from text. Always the fast kind: alignment needs its offsets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llm2slm.gguf_files.names import find, is_gguf
from llm2slm.gguf_files.tokenizer import gguf_tokenizer
from llm2slm.types import UserError, reason_of

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
"""One printable character for each of the 256 bytes; in order, so that training is reproducible."""


FIRST_ADDED = "llm2slm_first_added"
"""In tokenizer_config.json: the id of the first token that was added to a published tokenizer (`keeping`)."""

FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
    "tekken.json",
)  # fmt: skip
"""Those that hold the vocabularies of transformers' tokenizers, in part or whole."""


def load_tokenizer(name: str, revision: str | None = None, subfolder: str = "") -> PreTrainedTokenizerFast:
    """The tokenizer of a Hub id, a local folder or a GGUF file.

    Raises:
        UserError: nothing there, no file with a vocabulary, or it has no fast implementation.
    """
    if is_gguf(name):
        return gguf_tokenizer(find(name, revision))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, subfolder=subfolder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if (inside := Path(name) / "model").is_dir():
            raise UserError(f"tokenizer {name}: is a run directory; give its model, {inside}") from None
        if Path(name).is_dir() and not any((Path(name) / subfolder / file).is_file() for file in FILES):
            raise UserError(_no_vocabulary(name, subfolder, FILES)) from None
        where = "the folder" if Path(name).is_dir() else "no such folder, and the Hub id"
        check = "check the name or path" if revision is None else f"check the name, and the revision {revision}"
        raise UserError(f"tokenizer {name}: {where} gave no tokenizer ({reason_of(error)}); {check}") from None
    if len(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()) <= 1:  # at most the space
        # transformers builds such a one, without a warning, where it finds no vocabulary
        raise UserError(_no_vocabulary(name, subfolder, sorted(tokenizer.vocab_files_names.values())))
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {name}: only a slow implementation exists; convert it to a tokenizer.json "
            "(alignment needs the character offsets that only fast tokenizers give)"
        )
    loaded: PreTrainedTokenizerFast = tokenizer
    return loaded


def first_added(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the first token that was added to a tokenizer here, from which on its model has no embeddings yet.

    None where none was added.
    """
    found: int | None = tokenizer.init_kwargs.get(FIRST_ADDED)
    return found


def _no_vocabulary(name: str, subfolder: str, files: Iterable[str]) -> str:
    where = "the folder" if Path(name).is_dir() else "the repository"
    where += f" {subfolder} in it" if subfolder else ""
    return (
        f"tokenizer {name}: {where} has no vocabulary (a file as {', '.join(files)}); add the missing file, or name "
        "the folder or Hub id of its tokenizer by model.slm.tokenizer= (model.llm.tokenizer= for the LLM)"
    )


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, kind: str = "bpe", progress: bool = False
) -> PreTrainedTokenizerFast:
    """Trains a lossless tokenizer: `decode(encode(text)) == text` for any Unicode text.

    Text is read as UTF-8 bytes, cut as GPT-2 does (Radford et al. 2019), digits one by one; pad has id 0, eos id 1, and
    eos ends every text, as for T5. The words "<pad>" and "</s>" within a text are ordinary text.

    Args:
        texts: what to learn the pieces from.
        vocab_size: entries in all, the 256 bytes and the special tokens included.
        kind: bpe (Sennrich et al. 2016), the same each time; or unigram (Kudo 2018), whose trainer is not so to the
            last bit.
        progress: show the trainer's own progress bars.

    Raises:
        UserError: unknown kind, or a vocabulary too small for the 256 bytes.
    """
    if kind not in ("bpe", "unigram"):
        raise UserError(f"tokenizer kind {kind!r} is unknown; use bpe or unigram")
    special = [PAD, EOS] if kind == "bpe" else [PAD, EOS, UNK]
    if vocab_size < len(special) + len(ALPHABET):
        smallest = len(special) + len(ALPHABET)
        raise UserError(f"tokenizer of {vocab_size} entries: too small; a {kind} one takes at least {smallest}")
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": special,
        "initial_alphabet": ALPHABET,
        "show_progress": progress,
    }
    trainer: trainers.BpeTrainer | trainers.UnigramTrainer
    if kind == "bpe":
        core, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(**common)
    else:
        core, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token=UNK, **common)
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(texts, trainer=trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, special.index(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        **({"unk_token": UNK} if UNK in special else {}),
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # a text cannot smuggle in an end of sequence
    )
