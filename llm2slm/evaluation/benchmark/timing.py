"""Latency and throughput of several systems in one process, interleaved, so that their ratios are meaningful.

A system is timed under a decoder (`decoding.decoder.Decoder`). Terms:

    round       one run of every system under one condition, in a seeded order that rotates from turn to turn, so that
                a drift of the machine's speed affects all systems alike. Warm-up rounds are not counted; they are
                repeated until the last two rounds of each system differ by less than `STABLE`, or a maximum.
    prefill_ms  wall time from the call of `generate` to its first delivery of tokens (`on_tokens`): both encoders,
                projector, first decoder step. Tokenization is not timed, for any system.
    total_ms    wall time of the call, which generates exactly T tokens, the first one included.
    ms_per_token  (total_ms - prefill_ms) / (T - 1): the cost of each token after the first, however many tokens a
                delivery holds. Of a cascade, which delivers whole responses: total_ms / T; its prefill_ms is total_ms.
    step_p95_ms  95th percentile of the times between two deliveries. One delivery is one token of every row; of
                lossless and assisted decoding, the tokens of one verification.
    tokens_per_s  batch x T / total: response tokens of all rows.
    speedup     the baseline's total_ms over the system's, paired within each round. Spread: median, minimum and
                maximum of the rounds' ratios, which is not the ratio of the medians.
    speedup_same_decoding  the same relative to the LLM under the same decoder.
    noisy       the total_ms of the rounds span more than a fifth of their median.
    share_of_bandwidth  the bytes that a decoding step must read (cost model) over the measured memory bandwidth, over
                ms_per_token. share_of_product: the FLOPs of the prefill over the measured rate of matrix products, over
                prefill_ms. Both None where the cost is unknown, or tokens are not generated one by one.

Every system generates exactly T tokens (no earlier end, greedy, key-value cache), so that short responses do not count
as speed. At lengths="test" prompts of the test split are timed with the lengths of their references; a round's
figures are means over batches (ms_per_token: decoding time of all prompts over all tokens after the first). At
lengths="grid" batch, prompt and response length are the same for every row.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor

from llm2slm.config import BenchmarkConfig
from llm2slm.evaluation.benchmark.clock import Arrivals, Clock, Timing
from llm2slm.evaluation.benchmark.speed_rows import Ceilings, relate, speed_row
from llm2slm.evaluation.benchmark.workload import Condition, plan
from llm2slm.models.slm import end_tokens
from llm2slm.out_of_memory import is_out_of_memory
from llm2slm.progress import progress_bar
from llm2slm.runs import Failure, SpeedRow
from llm2slm.shown_text import counted
from llm2slm.types import Example, UserError

if TYPE_CHECKING:
    from llm2slm.decoding.decoder import Decoder
    from llm2slm.models.hybrid import LLM2SLM

Memory = Callable[[str, Sequence[str], int], float | None]
"""(system name, prompts of one batch, response tokens) -> peak memory in megabytes; None where it is unknown."""
STABLE = 0.1
"""Largest relative difference of the last two warm-up rounds of a system."""
OUT_OF_MEMORY = "out of memory"


@dataclass
class Timings:
    """What was measured of one name.

    Attributes:
        rows: one for each condition under which it was timed: the test split's lengths first, then the grid.
        failures: one for each of the other conditions.
    """

    rows: list[SpeedRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def time_systems(
    decoders: Mapping[str, Decoder],
    examples: Sequence[Example],
    cfg: BenchmarkConfig,
    *,
    baseline: str | None,
    same: Mapping[str, str] | None = None,
    seed: int = 1,
    memory: Memory | None = None,
    ceilings: Ceilings | None = None,
    clock: Clock | None = None,
    progress: bool = True,
) -> dict[str, Timings]:
    """Times all systems at the lengths of the test split (if cfg.prompts > 0) and on the grid.

    Args:
        decoders: name -> a system's decoder. The LLM tokenizer of the first system counts prompt and response tokens
            for all.
        examples: the test split; the first `cfg.prompts` are timed at their own lengths, all may fill the grid.
        cfg: conditions, repeats, warm-up and threads.
        baseline: name that speedups are relative to; None: no speedups.
        same: name -> name of the LLM under the same decoder.
        seed: of the order of systems.
        memory: measures peak memory on a CPU (`peak_memory.folder_memory`) where cfg.memory is set, after all timing
            and for the longest response of the first condition only (one process per system). On CUDA, peak memory is
            measured here, for every condition.
        ceilings: of this machine; None: no shares.
        clock: for tests.
        progress: shows a bar with the remaining time on stderr, updated between timings only.

    Returns:
        name -> what was measured. A system that runs out of memory under a condition has a failure there, not a row.

    Raises:
        UserError: no systems, no examples, a length below 2, or a system that generated another number of tokens.
    """
    if not decoders:
        raise UserError("benchmark: no systems to time; give run=DIR, or systems.NAME=DIR")
    if cfg.repeats < 1 or cfg.warmup < 0:
        raise UserError(f"benchmark.repeats={cfg.repeats}, benchmark.warmup={cfg.warmup}: give >= 1 and >= 0")
    conditions = plan(next(iter(decoders.values())).model, examples, cfg)
    found = {name: Timings() for name in decoders}
    order = list(decoders)
    random.Random(seed).shuffle(order)
    with _quiet([decoder.model for decoder in decoders.values()], cfg.threads), _bar(progress) as bar:
        least = cfg.repeats + cfg.warmup
        job = bar.add_task("timing", total=least * sum(len(condition.requests) for condition in conditions))
        for condition in conditions:
            run = _Run(decoders, order, condition, clock or Clock())
            warmup = _warm_up(run, cfg, bar, job)
            for _ in range(cfg.repeats):
                run.round(bar, job)
            rows = {
                name: speed_row(decoders[name], condition, run.timings[name][warmup:], warmup, ceilings)
                for name in decoders
                if name not in run.failed
            }
            relate(rows, baseline, same or {})
            for name, row in rows.items():
                row.peak_memory_mb = run.peaks.get(name)
                found[name].rows.append(row)
            for name, note in run.failed.items():
                found[name].failures.append(_failure(decoders[name], condition, note))
    if cfg.memory and memory is not None:
        _measure_memory(found, conditions[0], memory)
    return found


class _Run:
    """The rounds of one condition.

    Attributes:
        timings: name -> one timing per round, warm-up included. peaks: on CUDA name -> megabytes.
        failed: name -> why it is not timed.
    """

    def __init__(
        self, decoders: Mapping[str, Decoder], order: Sequence[str], condition: Condition, clock: Clock
    ) -> None:
        self.decoders, self.order, self.condition, self.clock = decoders, list(order), condition, clock
        self.timings: dict[str, list[Timing]] = {name: [] for name in decoders}
        self.peaks: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.turn = 0
        for name, decoder in decoders.items():
            most = getattr(decoder, "most_rows", None)
            if most is not None and condition.batch > most:
                self.failed[name] = f"at most {counted(most, 'row')} in a batch"
        texts = [list(request.prompts) for request in condition.requests]
        self.batches = {
            name: [decoder.batch(each) for each in texts]
            for name, decoder in decoders.items()
            if name not in self.failed
        }

    def round(self, bar: Progress, job: Any) -> None:
        """One run of every system that has not failed."""
        for series in self.timings.values():
            series.append(Timing())
        for number, request in enumerate(self.condition.requests):
            start = self.turn % len(self.order)
            for name in self.order[start:] + self.order[:start]:
                if name not in self.failed:
                    self._time(name, number, request.response_tokens)
            self.turn += 1
            bar.advance(job)
            bar.refresh()

    def _time(self, name: str, number: int, tokens: int) -> None:
        """Times one request; a lack of memory makes the system fail."""
        decoder, arrivals = self.decoders[name], Arrivals(self.clock)
        lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1}
        try:
            with _peak(decoder, name, self.peaks):
                begun = self.clock.seconds()
                ids_BT = decoder.generate(self.batches[name][number], on_tokens=arrivals, **lengths)
                end = self.clock.seconds()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.failed[name] = OUT_OF_MEMORY
        if name in self.failed:  # after the exception, whose frames hold tensors, is gone
            del self.batches[name]
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return
        _check_length(name, decoder.model, ids_BT, tokens)
        if arrivals.tokens != ids_BT.numel():
            raise UserError(f"{name}: {arrivals.tokens} tokens arrived of {ids_BT.numel()}; its times are not valid")
        self.timings[name][-1].add(begun, arrivals.times, end)

    def stable(self) -> bool:
        """Whether the last two rounds of each system took about the same time."""
        series = [each for name, each in self.timings.items() if name not in self.failed]
        return all(len(each) > 1 and abs(each[-1].total - each[-2].total) < STABLE * each[-2].total for each in series)


def _warm_up(run: _Run, cfg: BenchmarkConfig, bar: Progress, job: Any) -> int:
    """Runs the warm-up rounds of a condition; their number."""
    for _ in range(cfg.warmup):
        run.round(bar, job)
    rounds = cfg.warmup
    while 0 < rounds < cfg.max_warmup and not run.stable():
        bar.update(job, total=(bar.tasks[job].total or 0) + len(run.condition.requests))
        run.round(bar, job)
        rounds += 1
    return rounds


def _failure(decoder: Decoder, condition: Condition, note: str) -> Failure:
    return Failure(
        condition.batch, condition.prompt_tokens, condition.response_tokens, condition.lengths, decoder.name, note
    )


def _measure_memory(found: Mapping[str, Timings], condition: Condition, memory: Memory) -> None:
    """Sets the peak memory of the first rows that have none."""
    largest = max(condition.requests, key=lambda r: (r.response_tokens, len(r.prompts[0])))
    missing = [name for name, own in found.items() if own.rows and own.rows[0].peak_memory_mb is None]
    with ThreadPoolExecutor(max_workers=2) as executor:  # each thread waits for a process that is not timed
        peaks = executor.map(lambda name: memory(name, largest.prompts, largest.response_tokens), missing)
        for name, peak in zip(missing, peaks, strict=True):
            found[name].rows[0].peak_memory_mb = peak


def _check_length(name: str, model: LLM2SLM, ids_BT: Tensor, tokens: int) -> None:
    """Refuses a response of another length than `tokens`, or with an end token before its last position."""
    ends_N = torch.tensor(sorted(end_tokens(model.generation_config)), device=ids_BT.device)
    if ids_BT.shape[1] != tokens or bool(torch.isin(ids_BT[:, :-1], ends_N).any()):
        raise UserError(
            f"{name}: generated {ids_BT.shape[1]} tokens (or an end token among them) where exactly {tokens} were "
            "required, so its time is not comparable; remove stopping rules from its generation_config.json"
        )


@contextmanager
def _peak(decoder: Decoder, name: str, peaks: dict[str, float]) -> Iterator[None]:
    """On CUDA, updates `peaks` by the megabytes of a call: the system's weights, and what the call allocates."""
    model = decoder.model
    if model.device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    yield
    hybrid = getattr(decoder, "hybrid", None)  # of a decoder that has two models
    own = [model] if hybrid is None else [model, hybrid]
    parts = [part for each in own for part in (each, each.encoder) if part is not None]
    weights = {id(t): t.nbytes for part in parts for t in [*part.parameters(), *part.buffers()]}
    used = torch.cuda.max_memory_allocated(model.device) - before + sum(weights.values())
    peaks[name] = max(peaks.get(name, 0.0), used / 1e6)


@contextmanager
def _quiet(models: Sequence[LLM2SLM], threads: int | None) -> Iterator[None]:
    """The timing environment: eval mode, no autograd, no garbage collection, `threads` threads; restored at exit."""
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    training = [model.training for model in models]
    for model in models:
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
        for model, trained in zip(models, training, strict=True):
            model.train(trained)


def _bar(shown: bool) -> Progress:
    """A bar without a refresh thread, which would compete with what is timed."""
    return progress_bar(shown, MofNCompleteColumn(), auto_refresh=False)
