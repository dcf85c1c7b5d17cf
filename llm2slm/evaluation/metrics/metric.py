"""What a metric is: one `Metric` entry in the registry of `scores.py`, and the per-row statistics that it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm2slm.evaluation.metrics.tokenization import Tokenization, of
from llm2slm.runs import Score

if TYPE_CHECKING:
    from llm2slm.data.collate import Encoded
    from llm2slm.models.hybrid import LLM2SLM


@dataclass(frozen=True)
class Measured:
    """The per-row statistics of a metric, and the corpus formula over their sums.

    The score of any subset or resample of the rows follows exactly from these, without scoring the texts again.

    Attributes:
        counts: statistics of each row (N x K).
        value: sums of the K statistics -> corpus score.
        signature: how the score was computed. Scores with different signatures must not be compared.
    """

    counts: Sequence[Sequence[float]]
    value: Callable[[list[float]], float]
    signature: str

    def score(self, rows: Sequence[int] | None = None) -> Score:
        """The corpus score over the given row indices; None: over all rows."""
        counts = self.counts if rows is None else [self.counts[row] for row in rows]
        sums = [sum(column) for column in zip(*counts, strict=True)]
        return Score(float(self.value(sums)), self.signature, len(counts))


def mean(values: Sequence[float], signature: str) -> Measured:
    """A metric that is the mean of one value per row, in per cent of 1."""
    return Measured([(value, 1.0) for value in values], lambda sums: 100 * sums[0] / sums[1], signature)


@dataclass(frozen=True)
class Evaluated:
    """A split, a system and its predictions: the input of a metric that needs a model."""

    model: LLM2SLM
    encoded: Callable[[], Sequence[Encoded]]
    """The split tokenized by the system's collator."""
    predictions: Sequence[str]
    references: Sequence[str]
    batch_size: int
    progress: bool


@dataclass(frozen=True)
class Metric:
    """One metric. Exactly one of `texts` and `with_model` computes it.

    Attributes:
        name: as in `task.metrics`. A name that ends in ":" is followed by an argument, as bertscore:MODEL.
        title: as shown in tables and plots.
        texts: (name, predictions, references, tokenization) -> statistics. Validation, `compare` and quality by length
            support these metrics.
        with_model: (name, evaluated system) -> statistics; computed in the final test only.
        tokenization: attributes of `Tokenization` that `texts` uses. Rows of languages that are equal in these are
            scored together.
        lower_is_better: the direction.
        ranked: False where neither direction is better.
        words_only: the metric ignores all symbols but letters and digits.
        row_score: sums of one row's statistics -> score of that row; None: the corpus formula.
        check: raises UserError, before anything is loaded, if the metric of that name cannot be computed.
    """

    name: str
    title: str
    texts: Callable[[str, Sequence[str], Sequence[str], Tokenization], Measured] | None = None
    with_model: Callable[[str, Evaluated], Measured] | None = None
    tokenization: tuple[str, ...] = ()
    lower_is_better: bool = False
    ranked: bool = True
    words_only: bool = False
    row_score: Callable[[list[float]], float] | None = None
    check: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if (self.texts is None) == (self.with_model is None):
            raise ValueError(f"metric {self.name!r}: give either texts or with_model")

    def tokenized(self, code: str) -> tuple[object, ...]:
        """The part of a language's tokenization that the metric uses: equal for languages that it tokenizes alike."""
        return tuple(getattr(of(code), name) for name in self.tokenization)
