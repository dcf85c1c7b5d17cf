"""The rows of a result: medians and spreads of the rounds of a system under a condition, and what follows from them.

The terms are defined in `timing.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from llm2slm.evaluation.benchmark.clock import Timing, percentile
from llm2slm.evaluation.benchmark.roofline import Device, break_even
from llm2slm.evaluation.benchmark.workload import Condition
from llm2slm.evaluation.benchmark.workload_costs import dtype, precision, product_dtype, workload_cost
from llm2slm.runs import SpeedRow, Spread

if TYPE_CHECKING:
    from llm2slm.decoding.decoder import Decoder

Ceilings = Callable[[str], Device]
"""dtype of matrix products -> the measured ceilings of this machine."""
NOISY = 0.2
"""A row is noisy if the totals of its rounds span more than this share of their median."""


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum."""
    return Spread(statistics.median(values), min(values), max(values))


def speed_row(
    decoder: Decoder, condition: Condition, timings: Sequence[Timing], warmup: int, ceilings: Ceilings | None
) -> SpeedRow:
    """One system under one condition, without figures that other systems determine, and without peak memory.

    Args:
        timings: of the rounds that count. warmup: number of untimed rounds.
        ceilings: None: the shares of the ceilings are not stated.
    """
    requests = len(condition.requests)
    tokens = sum(request.response_tokens for request in condition.requests)
    totals = [1e3 * timing.total / requests for timing in timings]
    steps = [timing.steps for timing in timings]
    cost = workload_cost(decoder, condition)
    row = SpeedRow(
        batch=condition.batch,
        prompt_tokens=condition.prompt_tokens,
        response_tokens=condition.response_tokens,
        lengths=condition.lengths,
        dtype=dtype(decoder),
        threads=torch.get_num_threads(),
        decoding=decoder.name,
        warmup=warmup,
        repeats=len(timings),
        prefill_ms=spread([1e3 * timing.prefill / requests for timing in timings]),
        ms_per_token=spread([_per_token(decoder, timing, tokens, requests) for timing in timings]),
        total_ms=spread(totals),
        tokens_per_s=spread([condition.batch * tokens / timing.total for timing in timings]),
        peak_memory_mb=None,
        flops=None if cost is None else cost.flops,
        step_p95_ms=spread([1e3 * percentile(each, 0.95) for each in steps]) if all(steps) else None,
        rounds_ms=totals,
        noisy=max(totals) - min(totals) > NOISY * statistics.median(totals),
    )
    if cost is not None and ceilings is not None:
        row.share_of_bandwidth, row.share_of_product = _shares(
            decoder, row, cost.step_bytes, cost.prefill_flops, ceilings
        )
    return row


def _per_token(decoder: Decoder, timing: Timing, tokens: int, requests: int) -> float:
    """Milliseconds of a token after the first; where whole responses are delivered, of any token."""
    if not decoder.streams:
        return 1e3 * timing.total / tokens
    return 1e3 * (timing.total - timing.prefill) / (tokens - requests)


def _shares(
    decoder: Decoder, row: SpeedRow, step_bytes: float, prefill_flops: float, ceilings: Ceilings
) -> tuple[float | None, float | None]:
    """Shares of the memory bandwidth by decoding steps, and of the rate of matrix products by the prefill."""
    step, prefill = row.ms_per_token.median / 1e3, row.prefill_ms.median / 1e3
    reading = step_bytes / (1e9 * ceilings(precision(decoder).product).bandwidth)
    product = product_dtype(decoder)
    computing = prefill_flops / (1e12 * ceilings(product).tflops[product])
    return reading / step if step > 0 else None, computing / prefill if prefill > 0 else None


def relate(rows: Mapping[str, SpeedRow], baseline: str | None, same: Mapping[str, str]) -> None:
    """Sets the figures of the rows of one condition that relate them to others.

    Args:
        rows: by name. baseline: name of the baseline. same: name -> the LLM under the same decoder.
    """
    for name, row in rows.items():
        compared, alike = rows.get(baseline or ""), rows.get(same.get(name, ""))
        if compared is not None:
            row.speedup = ratio(compared.rounds_ms, row.rounds_ms)
            if name != baseline and row.step_p95_ms is not None:  # else no token arrived after the first delivery
                row.break_even_tokens = break_even(_total(row), _total(compared))
        if alike is not None and alike is not compared:
            row.speedup_same_decoding = ratio(alike.rounds_ms, row.rounds_ms)


def ratio(others: Sequence[float], own: Sequence[float]) -> Spread | None:
    """The times of another row over those of a row, paired by round; None if a time is 0."""
    return spread([other / one for other, one in zip(others, own, strict=True)]) if all(own) else None


def _total(row: SpeedRow) -> Callable[[int], float]:
    """Response length -> milliseconds of a response."""
    return lambda tokens: row.prefill_ms.median + (tokens - 1) * row.ms_per_token.median
