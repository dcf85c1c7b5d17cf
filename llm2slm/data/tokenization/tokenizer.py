"""Loading and training of tokenizers; only fast ones, since alignment needs character offsets."""

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
from llm2slm.gguf_files.tokenizer import REMEDY, gguf_tokenizer
from llm2slm.types import UNREACHED, UserError, reason_of

ONE_TOKEN = (str, AddedToken)
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
"""One printable character for each of the 256 bytes; sorted, so that training is reproducible."""

FIRST_ADDED = "llm2slm_first_added"
"""Key of tokenizer_config.json: id of the first token added to a pretrained tokenizer (`keeping`)."""

CUT = "llm2slm_vocab"
"""Key of tokenizer_config.json: the `Cut` of a cut vocabulary (`cutting`), as plain values."""

FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
    "tekken.json",
)  # fmt: skip
"""Vocabulary files of transformers' tokenizers."""


def load_tokenizer(name: str, revision: str | None = None, subfolder: str = "") -> PreTrainedTokenizerFast:
    """The tokenizer of a Hub id, a local folder or a GGUF file.

    Raises:
        UserError: no tokenizer is found, it has no vocabulary file, or no fast implementation.
    """
    if is_gguf(name):
        return gguf_tokenizer(find(name, revision))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, subfolder=subfolder, trust_remote_code=False)
    except Exception as error:  # transformers reads the files without checking their types
        if (inside := Path(name) / "model").is_dir():
            raise UserError(f"tokenizer {name}: is a run directory; give its model, {inside}") from None
        if Path(name).is_dir() and not any((Path(name) / subfolder / file).is_file() for file in FILES):
            raise UserError(_no_vocabulary(name, subfolder, FILES)) from None
        if UNREACHED in str(error):
            raise UserError(f"tokenizer {name}: {reason_of(error)}") from None
        where = "the folder" if Path(name).is_dir() else "no such folder, and the Hub id"
        check = "check the name or path" if revision is None else f"check the name, and the revision {revision}"
        raise UserError(f"tokenizer {name}: {where} gave no tokenizer ({reason_of(error)}); {check}") from None
    if len(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()) <= 1:  # at most the space
        # transformers silently builds an empty tokenizer if it finds no vocabulary
        raise UserError(_no_vocabulary(name, subfolder, sorted(tokenizer.vocab_files_names.values())))
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {name}: only a slow implementation exists; convert it to a tokenizer.json "
            "(alignment needs the character offsets that only fast tokenizers give)"
        )
    loaded: PreTrainedTokenizerFast = tokenizer
    return loaded


def first_added(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the first token added by this package, from which on the model has no embeddings; None if none was."""
    found: int | None = tokenizer.init_kwargs.get(FIRST_ADDED)
    return found


@dataclass(frozen=True)
class Cut:
    """The kept entries of a vocabulary.

    Attributes:
        of: number of entries of the whole vocabulary.
        ids: new id -> id in the whole vocabulary, ascending. Tokens added by this package follow without an id.
        rows: new id -> embedding row of the model before its last cut; differs from `ids` if that model had a cut
            vocabulary or tokens added by this package.
    """

    of: int
    ids: list[int]
    rows: list[int]

    @property
    def record(self) -> dict[str, Any]:
        """The record in a model's config: number of kept and of all entries, and a hash of the kept ids."""
        digits = hashlib.sha256(json.dumps([self.ids, len(self.rows)]).encode()).hexdigest()[:12]
        return {"kept": len(self.rows), "of": self.of, "sha256": digits}


def cut_of(tokenizer: Any) -> Cut | None:
    """The cut of a tokenizer's vocabulary; None if it was not cut."""
    found = tokenizer.init_kwargs.get(CUT)
    return None if found is None else Cut(found["of"], found["ids"], found.get("rows", found["ids"]))


def original_ids(tokenizer: Any) -> list[int]:
    """Id -> id in the whole vocabulary, the identity without a cut; without the tokens added after a cut."""
    cut = cut_of(tokenizer)
    return list(range(len(tokenizer))) if cut is None else cut.ids


def rebuilt(tokenizer: PreTrainedTokenizerFast, rules: Mapping[str, Any], **more: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with new rules and the settings, special tokens and chat template of a given one.

    Its class is the generic one, since model-specific tokenizer classes replace the rules when they are loaded.

    Args:
        rules: content of a tokenizer.json.
        more: further arguments of the tokenizer's constructor.
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
    """The flattened steps of a normalizer, pre-tokenizer, post-processor or decoder."""
    if rules is None:
        return []
    names = ("normalizers", "pretokenizers", "processors", "decoders")
    inner = next((rules[name] for name in names if name in rules), None)
    return [rules] if inner is None else [step for part in inner for step in steps(part)]


def _no_vocabulary(name: str, subfolder: str, files: Iterable[str]) -> str:
    where = "the folder" if Path(name).is_dir() else "the repository"
    where += f" {subfolder} in it" if subfolder else ""
    return (
        f"tokenizer {name}: {where} has no vocabulary (a file as {', '.join(files)}); add the missing file, or {REMEDY}"
    )


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, kind: str = "bpe", progress: bool = False
) -> PreTrainedTokenizerFast:
    """Trains a lossless tokenizer: `decode(encode(text)) == text` for any Unicode text.

    UTF-8 bytes, pre-tokenized as by GPT-2 (Radford et al. 2019) with single digits; pad has id 0, eos id 1, and eos is
    appended to every text, as by T5. A literal "<pad>" or "</s>" in a text is ordinary text.

    Args:
        texts: training texts.
        vocab_size: number of entries, with the 256 bytes and the special tokens.
        kind: bpe (Sennrich et al. 2016), deterministic; or unigram (Kudo 2018), whose trainer is not bit-reproducible.
        progress: show the trainer's progress bars.

    Raises:
        UserError: the kind is unknown, or the vocabulary too small for the 256 bytes.
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
        split_special_tokens=True,  # a literal </s> in a text is no end of sequence
    )
