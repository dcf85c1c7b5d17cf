"""Latency and throughput of several systems in one process, interleaved, so that their ratios are meaningful.

Terms:

    round       one run of every system under one condition, in a seeded order that rotates from turn to turn, so that
                a drift of the machine's speed affects all systems alike. Warm-up rounds are discarded.
    prefill_ms  wall time up to and including the first response token: both encoders, projector, first decoder step.
                Tokenization is not timed, for any system.
    total_ms    wall time of generating exactly T tokens, the first one included.
    ms_per_token  (total_ms - prefill_ms) / (T - 1): the cost of each token after the first.
    tokens_per_s  batch x T / total: response tokens of all rows.
    speedup     the baseline's total_ms over the system's, paired within each round. Spread: median, minimum and
                maximum of the rounds' ratios, which is not the ratio of the medians.

Every system generates exactly T tokens (no earlier end, greedy, key-value cache), so that short responses do not count
as speed. At lengths="test" each prompt of the test split is timed alone, with the length of its reference; a round's
figures are means over prompts (ms_per_token: decoding time of all prompts over all tokens after the first). At
lengths="grid" batch, prompt and response length are the same for every row.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor

from llm2slm.config import BenchmarkConfig
from llm2slm.evaluation.benchmark.costs import generation_cost
from llm2slm.evaluation.benchmark.engines import Engine, GenerateEngine, generated
from llm2slm.evaluation.benchmark.workload import Condition, plan
from llm2slm.models.conditioning.prepend import pool
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.families import supported
from llm2slm.models.slm import end_tokens
from llm2slm.models.soft_prompts import PROMPT, virtual_tokens
from llm2slm.progress import progress_bar
from llm2slm.runs import SpeedRow, Spread
from llm2slm.types import Example, UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

Memory = Callable[[str, Sequence[str], int], float | None]
"""(system name, prompts of one batch, response tokens) -> peak memory in megabytes; None where it is unknown."""


@dataclass
class Timing:
    """Seconds of one round of one system, summed over the condition's requests."""

    prefill: float = 0.0
    total: float = 0.0


@dataclass
class Clock:
    """The source of time; tests replace it."""

    read: Callable[[], float] = time.perf_counter
    synchronize: Callable[[], None] = field(
        default_factory=lambda: torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    )

    def seconds(self) -> float:
        """The time in seconds, after all work that was started has finished."""
        self.synchronize()
        return self.read()


def time_systems(
    systems: Mapping[str, LLM2SLM],
    examples: Sequence[Example],
    cfg: BenchmarkConfig,
    *,
    baseline: str | None,
    engines: Mapping[str, Engine] | None = None,
    seed: int = 1,
    memory: Memory | None = None,
    clock: Clock | None = None,
    progress: bool = True,
) -> dict[str, list[SpeedRow]]:
    """Times all systems at the lengths of the test split (if cfg.prompts > 0) and on the grid.

    Args:
        systems: name -> system. The LLM tokenizer of the first one counts prompt and response tokens for all.
        examples: the test split; the first `cfg.prompts` are timed at their own lengths, all may fill the grid.
        cfg: conditions, repeats, warm-up and threads.
        baseline: name of the system that speedups are relative to; None: no speedups.
        engines: name -> engine; systems without one use transformers' `generate`.
        seed: of the order of systems.
        memory: measures peak memory on a CPU (`peak_memory.folder_memory`) where cfg.memory is set, after all timing
            and for the longest response of the first condition only (one process per system). On CUDA, peak memory is
            measured here, for every condition.
        clock: for tests.
        progress: shows a bar with the remaining time on stderr, updated between timings only.

    Returns:
        name -> one row per condition: the test split's lengths first, then the grid, batch by batch.

    Raises:
        UserError: no systems, no examples, a length below 2, or a system that generated another number of tokens.
    """
    if not systems:
        raise UserError("benchmark: no systems to time; give run=DIR, or systems.NAME=DIR")
    if cfg.repeats < 1 or cfg.warmup < 0:
        raise UserError(f"benchmark.repeats={cfg.repeats}, benchmark.warmup={cfg.warmup}: give >= 1 and >= 0")
    clock = clock or Clock()
    conditions = plan(next(iter(systems.values())), examples, cfg)
    used: dict[str, Engine] = {name: GenerateEngine() for name in systems} | dict(engines or {})
    order = list(systems)
    random.Random(seed).shuffle(order)
    rows: dict[str, list[SpeedRow]] = {name: [] for name in systems}
    rounds = cfg.warmup + cfg.repeats
    with _quiet(systems, cfg.threads), _bar(progress) as bar:
        job = bar.add_task("timing", total=rounds * sum(len(c.requests) for c in conditions))

        def tick() -> None:
            bar.advance(job)
            bar.refresh()

        for condition in conditions:
            timings, peaks = _run(systems, used, order, condition, rounds, clock=clock, tick=tick)
            counted = {name: series[cfg.warmup :] for name, series in timings.items()}
            for name, model in systems.items():
                row = _row(model, used[name], condition, counted[name], cfg)
                row.peak_memory_mb = peaks.get(name)
                if baseline is not None:
                    pairs = zip(counted[baseline], counted[name], strict=True)
                    row.speedup = spread([other.total / timing.total for other, timing in pairs])
                rows[name].append(row)
    if cfg.memory and memory is not None:
        largest = max(conditions[0].requests, key=lambda r: (r.response_tokens, len(r.prompts[0])))
        missing = [name for name, of_system in rows.items() if of_system[0].peak_memory_mb is None]
        with ThreadPoolExecutor(max_workers=2) as executor:  # each thread waits for a process that is not timed
            found = executor.map(lambda name: memory(name, largest.prompts, largest.response_tokens), missing)
            for name, peak in zip(missing, found, strict=True):
                rows[name][0].peak_memory_mb = peak
    return rows


def _run(
    systems: Mapping[str, LLM2SLM],
    engines: Mapping[str, Engine],
    order: list[str],
    condition: Condition,
    rounds: int,
    *,
    clock: Clock,
    tick: Callable[[], None],
) -> tuple[dict[str, list[Timing]], dict[str, float]]:
    """All rounds of a condition: name -> one timing per round (warm-up included); on CUDA name -> peak megabytes."""
    batches = {
        name: [model.collator.batch_of_texts(list(r.prompts)).to(model.device) for r in condition.requests]
        for name, model in systems.items()
    }
    timings: dict[str, list[Timing]] = {name: [Timing() for _ in range(rounds)] for name in systems}
    peaks: dict[str, float] = {}
    turn = 0
    for number in range(rounds):
        for i, request in enumerate(condition.requests):
            start = turn % len(order)
            for name in order[start:] + order[:start]:
                model, engine, batch = systems[name], engines[name], batches[name][i]
                with _peak(model, name, peaks):
                    timing = timings[name][number]
                    begun = clock.seconds()
                    first_B1, _ = engine.prefill(model, batch)
                    prefilled = clock.seconds()
                    ids_BT = generated(engine, model, batch, request.response_tokens)
                    end = clock.seconds()
                timing.prefill += prefilled - begun
                timing.total += end - prefilled
                _check_length(name, model, first_B1, 1)
                _check_length(name, model, ids_BT, request.response_tokens)
            turn += 1
            tick()
    return timings, peaks


def _check_length(name: str, model: LLM2SLM, ids_BT: Tensor, tokens: int) -> None:
    """Refuses a response of another length than `tokens`, or with an end token before its last position."""
    ends_N = torch.tensor(sorted(end_tokens(model.generation_config)), device=ids_BT.device)
    if ids_BT.shape[1] != tokens or bool(torch.isin(ids_BT[:, :-1], ends_N).any()):
        raise UserError(
            f"{name}: generated {ids_BT.shape[1]} tokens (or an end token among them) where exactly {tokens} were "
            "required, so its time is not comparable; remove stopping rules from its generation_config.json"
        )


def _row(model: LLM2SLM, engine: Engine, condition: Condition, timings: list[Timing], cfg: BenchmarkConfig) -> SpeedRow:
    """One system under one condition, without speedup and peak memory."""
    requests = len(condition.requests)
    tokens = sum(request.response_tokens for request in condition.requests)
    return SpeedRow(
        batch=condition.batch,
        prompt_tokens=condition.prompt_tokens,
        response_tokens=condition.response_tokens,
        lengths=condition.lengths,
        dtype=str(next(model.slm.parameters()).dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        decoding=engine.name,
        warmup=cfg.warmup,
        repeats=cfg.repeats,
        prefill_ms=spread([1e3 * t.prefill / requests for t in timings]),
        ms_per_token=spread([1e3 * (t.total - t.prefill) / (tokens - requests) for t in timings]),
        total_ms=spread([1e3 * t.total / requests for t in timings]),
        tokens_per_s=spread([condition.batch * tokens / t.total for t in timings]),
        peak_memory_mb=None,
        flops=_flops(model, condition),
    )


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum."""
    return Spread(statistics.median(values), min(values), max(values))


def _flops(model: LLM2SLM, condition: Condition) -> float | None:
    """Analytic FLOPs of one row's response, mean over all rows; None for an unknown model type."""
    slm_config, guidance = model.slm.config.to_dict(), _guidance(model)
    llm = guidance.get("llm_config")
    if not supported(slm_config) or (llm is not None and not supported(llm, generates=False)):
        return None
    tokens, found = virtual_tokens(model.slm), []
    virtual: dict[str, Any] = (
        {} if tokens is None else {"virtual" if tokens.tune == PROMPT else "prefix": tokens.length}
    )
    for request in condition.requests:
        batch = model.collator.batch_of_texts(list(request.prompts))
        mask_BP = batch.slm_mask_BQ if batch.llm_mask_BP is None else batch.llm_mask_BP
        slm_B, llm_B, pooled_B = batch.slm_mask_BQ.sum(1).tolist(), mask_BP.sum(1).tolist(), _pooled(model, mask_BP)
        aligned = batch.align_BQP is not None
        for q, p, n in zip(slm_B, llm_B, pooled_B, strict=True):
            extra = guidance and {**guidance, "llm_tokens": p, "aligned": aligned, "pooled": n}
            found.append(generation_cost(slm_config, q, request.response_tokens, **extra, **virtual).flops)
    return statistics.fmean(found)


def _guidance(model: LLM2SLM) -> dict[str, Any]:
    """Arguments of `costs.generation_cost` that describe a hybrid, independent of the prompt; empty without an LLM."""
    if not isinstance(model.encoder, FrozenEncoder) or model.projector is None:
        return {}
    return {
        "llm_config": model.encoder.body.config.to_dict(),
        "llm_layers": model.encoder.blocks if model.ablation is None or model.ablation.runs_llm else 0,
        "conditioning": model.conditioning,
        **model.mode.cost_settings(model),
    }


def _pooled(model: LLM2SLM, mask_BP: Tensor) -> Sequence[float | None]:
    """Positions of z per row after pooling, from the function that pools; None where nothing is pooled."""
    size = model.config.pool
    if size is None:
        return [None] * len(mask_BP)
    counts: list[float] = pool(mask_BP.unsqueeze(-1).float(), mask_BP, size)[1].sum(1).tolist()
    return counts


@contextmanager
def _peak(model: LLM2SLM, name: str, peaks: dict[str, float]) -> Iterator[None]:
    """On CUDA, updates `peaks` by the megabytes of a call: the system's weights, and what the call allocates."""
    if model.device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    yield
    parts = [part for part in (model, model.encoder) if part is not None]
    weights = {id(t): t.nbytes for part in parts for t in [*part.parameters(), *part.buffers()]}
    used = torch.cuda.max_memory_allocated(model.device) - before + sum(weights.values())
    peaks[name] = max(peaks.get(name, 0.0), used / 1e6)


@contextmanager
def _quiet(systems: Mapping[str, LLM2SLM], threads: int | None) -> Iterator[None]:
    """The timing environment: eval mode, no autograd, no garbage collection, `threads` threads; restored at exit."""
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    training = {name: model.training for name, model in systems.items()}
    for model in systems.values():
        model.eval()
    if threads is not None:
        torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        if collecting:
            gc.enable()
        torch.set_num_threads(threads_before)
        for name, model in systems.items():
            model.train(training[name])


def _bar(shown: bool) -> Progress:
    """A bar without a refresh thread, which would compete with what is timed."""
    return progress_bar(shown, MofNCompleteColumn(), auto_refresh=False)
