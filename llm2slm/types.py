"""Types shared by several parts of the package: errors, enumerations, and frozen records of tensors.

Shape legend, used as name suffixes in the whole code (`reps_BPE`, `logits_BTV`):

    B  batch                                     E  width of the LLM
    P  prompt tokens, the LLM's tokenizer        D  width of the SLM
    Q  prompt tokens, the SLM's tokenizer        V  vocabulary of the SLM
    T  response tokens

torch is imported for annotations only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, device

IGNORE_INDEX = -100
"""Label of a position that carries no loss (torch's own default for cross-entropy)."""


class UserError(Exception):
    """A mistake of the user, on one line: the file, row, key or tensor; the fault; the remedy."""


UNREACHED = "couldn't connect to"  # in transformers' message without a network


def reason_of(error: BaseException) -> str:
    """A library's error message on one line: its first line, the line after one that ends in a colon, and a server's
    message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if UNREACHED in str(error):
        return "no such folder, and the Hub cannot be reached; give a folder, or download it first"
    end = next((n for n, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    answer = getattr(error, "server_message", None)
    return " ".join(lines[: end + 1]) + (f" ({answer})" if answer and answer not in lines[: end + 1] else "")


def check_text(place: str, text: str) -> None:
    """Refuses a text with a lone surrogate (half a character), which no tokenizer accepts.

    Args:
        place: where the text is, for the error message.

    Raises:
        UserError: with the place and the surrogate.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UserError(f"{place}: half a character ({half}); write the whole one") from None


class SystemKind(StrEnum):
    """Which model encodes the prompt and which generates. All three are one model class."""

    llm2slm = "llm2slm"  # the LLM encodes the prompt, the SLM generates
    slm = "slm"  # the SLM alone
    llm = "llm"  # the LLM alone


class Control(StrEnum):
    """Ablation of the LLM's representations, as a control (`models/ablation.py`)."""

    none = "none"  # no ablation
    constant = "constant"  # the same vector everywhere
    shuffled = "shuffled"  # the representations of another prompt
    zero = "zero"  # z is 0


class Tokenizers(StrEnum):
    """How the prompt's two token sequences (LLM's and SLM's) are aligned."""

    shared = "shared"  # one tokenizer, the LLM's, for both: position i is position i
    offsets = "offsets"  # z of an SLM token: the mean over the LLM tokens that overlap its characters
    llm_tokens = "llm_tokens"  # the SLM gets the LLM's prompt tokens, with the LLM's embeddings mapped linearly


class Decoding(StrEnum):
    """How a response is generated (`llm2slm/decoding`)."""

    generate = "generate"  # transformers' `generate`
    eager = "eager"  # our loop; finished rows leave the batch
    captured = "captured"  # our loop over buffers of fixed size; a step is a captured graph
    compiled = "compiled"  # captured, and the graph compiled by torch's inductor
    int8 = "int8"  # captured, with weights of 8 bits in the products
    compiled_int8 = "compiled_int8"  # both
    auto = "auto"  # generate, eager or captured: the fastest on this machine
    lossless = "lossless"  # the hybrid drafts, the LLM verifies: the LLM's response
    compiled_lossless = "compiled_lossless"  # lossless, with compiled steps, and on a CPU drafts by int8 weights
    cascade = "cascade"  # the hybrid's response, or where its confidence is low the LLM's


class Confidence(StrEnum):
    """Measure of a response's confidence, of the log-probabilities of its tokens."""

    mean = "mean"
    min = "min"


class Start(StrEnum):
    """Initialisation of z."""

    zero = "zero"  # the projector's last layer starts at zero
    random = "random"  # random initialisation
    identity = "identity"  # the last layer starts at zero, and the LLM's representations are added to its output


class Init(StrEnum):
    """Initial weights of a model."""

    pretrained = "pretrained"
    random = "random"


class Vocab(StrEnum):
    """Which entries of a pretrained model's vocabulary are kept."""

    corpus = "corpus"  # the entries used by the training split, special tokens and single bytes


class Labels(StrEnum):
    """Source of the training targets."""

    gold = "gold"  # the corpus
    llm = "llm"  # responses of the LLM (`llm2slm label`)
    mix = "mix"  # the LLM's for a share of the rows, the corpus' for the others


class StoreDtype(StrEnum):
    """Storage format of the LLM's representations (sizes and losses: `data/reps/store.py`)."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


class Overlong(StrEnum):
    """Treatment of a text with more tokens than allowed; such texts are counted and reported in any case."""

    error = "error"
    truncate = "truncate"
    drop = "drop"
    split = "split"  # type: ignore[assignment]  # task=lm only: into several rows (hides str.split)


INPUTS = {
    "input_ids": "slm_ids_BQ",
    "attention_mask": "slm_mask_BQ",
    "llm_input_ids": "llm_ids_BP",
    "llm_attention_mask": "llm_mask_BP",
    "alignment": "align_BQP",
    "labels": "labels_BT",
}
"""transformers' names of the tensors of a `Batch`."""


@dataclass(frozen=True)
class Example:
    """One row of a corpus, prepared by a task.

    Attributes:
        index: number of the row within its split, before rows are dropped.
        source: the row's text without the task's prefix; prompt: the model input, with the prefix.
        target: the response to learn. language: code of the target's language, if known (data/languages.py).
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
    labels are always padded on the right with `IGNORE_INDEX`, by length and never by token id, so that no eos is
    masked where pad and eos are the same token.

    Attributes:
        slm_ids_BQ, slm_mask_BQ: the prompt under the SLM's tokenizer (int64).
        llm_ids_BP, llm_mask_BP: the prompt under the LLM's tokenizer; None without an LLM.
        align_BQP: float weights; each real row sums to 1, or to 0 if no LLM token overlaps it: aligned z = align @ z.
            None if the tokenizers are shared, or the conditioning needs no alignment.
        labels_BT: the response with its eos; None at generation.
        indices: `Example.index` of each row.
        teacher: the same rows in the teacher's tokenization, with the same labels; None without a teacher (see
            `Collator.with_teacher`).
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
        """Its tensors under transformers' names (`INPUTS`)."""
        named = {name: getattr(self, field) for name, field in INPUTS.items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def rows(self, start: int, stop: int) -> Batch:
        """The rows from `start` to before `stop`, with the padding of the batch."""
        part = slice(start, stop)
        kept: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {name: value[part] for name, value in kept.items() if value is not None and name != "teacher"}
        return replace(self, **values, teacher=None if self.teacher is None else self.teacher.rows(start, stop))

    def to(self, device: device | str) -> Batch:
        """The same batch on another device."""
        moved = {f.name: value.to(device) for f in fields(self) if hasattr(value := getattr(self, f.name), "to")}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by the DataLoader)."""
        pinned = {
            f.name: value.pin_memory() for f in fields(self) if hasattr(value := getattr(self, f.name), "pin_memory")
        }
        return replace(self, **pinned)


@dataclass(frozen=True)
class Reps:
    """The frozen LLM's representations of prompts: `reps_BPE` (float) and `mask_BP`, 1 at real tokens."""

    reps_BPE: Tensor
    mask_BP: Tensor
