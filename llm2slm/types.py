"""What crosses a boundary between two parts of the package: errors, enumerations, and frozen records of tensors.

Shape legend, used as name suffixes in the whole code (`reps_BPE`, `logits_BTV`):

    B  batch                                     E  width of the LLM
    P  prompt tokens, the LLM's tokenizer        D  width of the SLM
    Q  prompt tokens, the SLM's tokenizer        V  vocabulary of the SLM
    T  response tokens

Imports nothing heavy: torch is needed for the annotations alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, device

IGNORE_INDEX = -100
"""Label of a position that carries no loss (torch's own default for cross-entropy)."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most similar to an unknown one."""
    return get_close_matches(word, list(known), n=1, cutoff=0.0)[0]


class UserError(Exception):
    """A mistake of the user's, told in one line: the file, row, key or tensor; what is wrong; what to do."""


UNREACHED = "couldn't connect to"  # in what transformers says without a network


def reason_of(error: BaseException) -> str:
    """What a library's error of many lines says, in one: its first line, and what follows a line that ends in a colon;
    beside it what a server answered."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if UNREACHED in str(error):
        return "no such folder, and the Hub cannot be reached; give a folder, or download it first"
    end = next((n for n, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    said = getattr(error, "server_message", None)
    return " ".join(lines[: end + 1]) + (f" ({said})" if said and said not in lines[: end + 1] else "")


def check_text(place: str, text: str) -> None:
    """Refuses a text that holds half a character (a lone surrogate), which no tokenizer takes.

    Raises:
        UserError: names the place and the half.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UserError(f"{place}: half a character ({half}); write the whole one") from None


class SystemKind(StrEnum):
    """Who reads and who writes. The three are one model class, told apart by data alone."""

    llm2slm = "llm2slm"  # the LLM reads, the SLM writes
    slm = "slm"  # the SLM reads and writes
    llm = "llm"  # the LLM reads and writes


class Conditioning(StrEnum):
    """How the projected LLM representations z reach the SLM, always at prompt positions only."""

    none = "none"  # no LLM at all: a plain language model
    add = "add"  # SLM prompt embedding + z
    replace = "replace"  # type: ignore[assignment]  # z in place of the SLM prompt embedding (hides str.replace)
    prepend = "prepend"  # z in front of the SLM prompt embeddings
    memory = "memory"  # z is what the SLM's cross-attention attends to, in place of its own reading of the prompt
    cross_attention = "cross_attention"  # the SLM reads its prompt, and gated layers in its blocks attend to z
    kv = "kv"  # the SLM's cache of the prompt holds keys and values of the LLM's blocks (`models/kv.py`)


class Control(StrEnum):
    """What a hybrid is told in place of what the LLM says of its prompt (`models/ablation.py`)."""

    none = "none"  # nothing in place of it: the hybrid itself
    constant = "constant"  # the same for every prompt
    shuffled = "shuffled"  # what the LLM says of another prompt
    zero = "zero"  # z is 0


class Tokenizers(StrEnum):
    """How the prompt's two token sequences (LLM's and SLM's) are brought into line."""

    shared = "shared"  # one tokenizer, the LLM's, for both: position i is position i
    offsets = "offsets"  # each SLM token gets the mean of z over the characters that it covers
    llm_tokens = "llm_tokens"  # the SLM reads the LLM's tokens: its embeddings of them are the LLM's, mapped linearly


class Start(StrEnum):
    """What z is before training."""

    zero = "zero"  # the projector's last layer starts at zero
    random = "random"  # it is drawn as any other
    identity = "identity"  # the last layer starts at zero, and the LLM's representations are added to its output


class Init(StrEnum):
    """Where a model's weights come from."""

    pretrained = "pretrained"
    random = "random"


class Vocab(StrEnum):
    """Which entries of a pretrained model's vocabulary are kept."""

    corpus = "corpus"  # those that the training split, special tokens and single bytes need


class Labels(StrEnum):
    """Whose answers a model is trained on."""

    gold = "gold"  # those of the corpus
    llm = "llm"  # those that the LLM wrote (`llm2slm label`)
    mix = "mix"  # for a share of the rows the LLM's, for the others the corpus'


class StoreDtype(StrEnum):
    """How a store keeps the LLM's representations (`data/reps/store.py` says what each costs and loses)."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


class Overlong(StrEnum):
    """What happens to a text of more tokens than allowed. Whatever it is, it is counted and reported."""

    error = "error"
    truncate = "truncate"
    drop = "drop"
    split = "split"  # type: ignore[assignment]  # of task=lm: into pieces, each a row (hides str.split)


INPUTS = {
    "input_ids": "slm_ids_BQ",
    "attention_mask": "slm_mask_BQ",
    "llm_input_ids": "llm_ids_BP",
    "llm_attention_mask": "llm_mask_BP",
    "alignment": "align_BQP",
    "labels": "labels_BT",
}
"""What transformers' users and its Trainer call the tensors of a `Batch`."""


@dataclass(frozen=True)
class Example:
    """One row of a corpus as a task sees it.

    `prompt` is what the models read (prefix included), `target` what they should write, `source` the row's own
    text without the task's prefix, `index` the row's number within its split (counted before any is dropped),
    `language` the code of the target's language where that is known (data/languages.py).
    """

    index: int
    source: str
    prompt: str
    target: str
    language: str | None = None


@dataclass(frozen=True)
class Batch:
    """Token ids of a batch under both tokenizers. Masks are 1 (or True) at real tokens.

    Padding is on the left where prompt and response are one sequence of the SLM (decoder-only), else on the right;
    labels are always padded on the right with `IGNORE_INDEX`, by length and never by token id, so that a pad token
    equal to eos loses nothing.

    Attributes:
        slm_ids_BQ, slm_mask_BQ: the prompt under the SLM's tokenizer (int64).
        llm_ids_BP, llm_mask_BP: the prompt under the LLM's tokenizer; None where there is no LLM.
        align_BQP: float weights, each real row summing to 1 (or 0 where nothing is covered): aligned z = align @ z.
            None where the tokenizers are shared, or where the conditioning needs no alignment.
        labels_BT: the response with its eos; None at generation.
        indices: each row's `Example.index`.
        teacher: the same rows as a teacher reads them, with the same labels; None where there is none (see
            `Collator.taught_by`).
    """

    slm_ids_BQ: Tensor
    slm_mask_BQ: Tensor
    llm_ids_BP: Tensor | None = None
    llm_mask_BP: Tensor | None = None
    align_BQP: Tensor | None = None
    labels_BT: Tensor | None = None
    indices: tuple[int, ...] = ()
    teacher: Batch | None = None

    def inputs(self) -> dict[str, Tensor]:
        """Its tensors under the names that transformers uses (`INPUTS`)."""
        named = {name: getattr(self, own) for name, own in INPUTS.items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: device | str) -> Batch:
        """The same batch on another device."""
        moved = {f.name: value.to(device) for f in fields(self) if hasattr(value := getattr(self, f.name), "to")}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by the DataLoader for CUDA)."""
        pinned = {
            f.name: value.pin_memory() for f in fields(self) if hasattr(value := getattr(self, f.name), "pin_memory")
        }
        return replace(self, **pinned)


@dataclass(frozen=True)
class Reps:
    """What the frozen LLM says of a prompt: `reps_BPE` (float) and `mask_BP`, 1 at real tokens."""

    reps_BPE: Tensor
    mask_BP: Tensor
