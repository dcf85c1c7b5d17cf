"""Tokenizers: load one that exists, or train one from text. Always the fast kind: alignment needs its offsets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llm2slm.gguf_files.names import find, is_gguf
from llm2slm.gguf_files.tokenizer import gguf_tokenizer
from llm2slm.types import UserError, reason_of

ONE_TOKEN = (str, AddedToken)
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
"""One printable character for each of the 256 bytes; in order, so that training is reproducible."""


FIRST_ADDED = "llm2slm_first_added"
"""In tokenizer_config.json: the id of the first token that was added to a published tokenizer (`keeping`)."""

CUT = "llm2slm_vocab"
"""In tokenizer_config.json of a tokenizer whose vocabulary was cut (`cutting`): a `Cut` as plain values."""

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


@dataclass(frozen=True)
class Cut:
    """Which entries of a vocabulary are kept.

    Attributes:
        of: entries of the whole vocabulary.
        ids: by new id the id in the whole vocabulary, ascending. Tokens that were added here follow, and have none.
        rows: by new id the row in the embeddings of the model that was cut last; other than `ids` where that model's
            vocabulary was a cut one already, or has tokens that were added here.
    """

    of: int
    ids: list[int]
    rows: list[int]

    @property
    def record(self) -> dict[str, Any]:
        """What the config of a model with this vocabulary holds: entries kept, of how many, and a hash of their ids."""
        digits = hashlib.sha256(json.dumps([self.ids, len(self.rows)]).encode()).hexdigest()[:12]
        return {"kept": len(self.rows), "of": self.of, "sha256": digits}


def cut_of(tokenizer: Any) -> Cut | None:
    """Which entries a tokenizer keeps of the vocabulary that it was cut from; None where it was not cut."""
    found = tokenizer.init_kwargs.get(CUT)
    return None if found is None else Cut(found["of"], found["ids"], found.get("rows", found["ids"]))


def original_ids(tokenizer: Any) -> list[int]:
    """By id of a tokenizer the id in the vocabulary that it was cut from: its own where it was not cut; shorter than
    the vocabulary where tokens were added to a cut one."""
    cut = cut_of(tokenizer)
    return list(range(len(tokenizer))) if cut is None else cut.ids


def rebuilt(tokenizer: PreTrainedTokenizerFast, rules: Mapping[str, Any], **more: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of other rules with the settings, special tokens and chat template of this one.

    It is of no model's own class: those build their own rules when they are loaded.

    Args:
        rules: the content of a tokenizer.json.
        more: other arguments.
    """
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, ONE_TOKEN)}
    settings = {
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "model_input_names": tokenizer.model_input_names,
        "split_special_tokens": tokenizer.split_special_tokens,
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)), **{**named, **settings, **more}
    )
    made.chat_template = tokenizer.chat_template
    made.name_or_path = tokenizer.name_or_path
    made.init_kwargs |= {key: tokenizer.init_kwargs[key] for key in (FIRST_ADDED, CUT) if key in tokenizer.init_kwargs}
    return made


def steps(rules: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer, post-processor or decoder, those within sequences included."""
    if rules is None:
        return []
    names = ("normalizers", "pretokenizers", "processors", "decoders")
    inner = next((rules[name] for name in names if name in rules), None)
    return [rules] if inner is None else [step for part in inner for step in steps(part)]


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
