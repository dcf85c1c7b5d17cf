"""The speeds in a `result.json` (`runs.py`): rows of timings, conditions that could not be timed, targets."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Spread:
    """A repeated measurement."""

    median: float
    min: float
    max: float


@dataclass
class SpeedRow:
    """Timings of one system under stated conditions. Milliseconds, megabytes (1e6 bytes), floating-point operations.

    prefill_ms: until the first response token. ms_per_token: the rest over the tokens after the first. total_ms: the
    whole response. `flops`: analytic, for the whole response, per row of the batch. Prompt and response lengths are
    means if `lengths` is "test". The fields with a default are missing in results of earlier versions; those with None
    are not known for every row. Definitions: `evaluation/benchmark/timing.py`.
    """

    batch: int
    prompt_tokens: float
    response_tokens: float
    lengths: str
    """grid: equal for all rows; test: those of the test split."""
    dtype: str
    threads: int
    decoding: str
    warmup: int
    repeats: int
    prefill_ms: Spread
    ms_per_token: Spread
    total_ms: Spread
    tokens_per_s: Spread
    peak_memory_mb: float | None
    flops: float | None
    speedup: Spread | None = None
    """The baseline's total_ms over this system's, paired within each round of the same interleaved run."""
    speedup_same_decoding: Spread | None = None
    """The same with the LLM under this row's decoder (for lossless: under captured) as the baseline."""
    step_p95_ms: Spread | None = None
    """95th percentile of the times between two deliveries of tokens."""
    rounds_ms: list[float] = field(default_factory=list)
    """total_ms of each round, in the order of the rounds, which all rows of a condition share."""
    noisy: bool = False
    """Whether total_ms varies by more than a fifth of its median."""
    break_even_tokens: int | None = None
    """The shortest response for which the system is faster than the baseline, from prefill_ms and ms_per_token of both;
    None: none, or there is no baseline."""
    share_of_bandwidth: float | None = None
    """Of decoding steps: the time of reading weights and caches at the measured bandwidth over the measured time."""
    share_of_product: float | None = None
    """Of the prefill: the time of its FLOPs at the measured rate of matrix products over the measured time."""


@dataclass
class Failure:
    """A condition under which a system could not be timed."""

    batch: int
    prompt_tokens: float
    response_tokens: float
    lengths: str
    decoding: str
    note: str
    """The reason, as "out of memory"."""


@dataclass
class Target:
    """A target of a benchmark, and what was measured."""

    name: str
    wanted: str
    """As "at least 4"."""
    value: float | None
    """None: one of its rows was not measured."""
    met: bool | None
