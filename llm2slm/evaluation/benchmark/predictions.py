"""Predictions of the cost model for every system of a pair: times on a device, speedup, memory, break-even length."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from llm2slm.evaluation.benchmark.costs import Cost, Prepared, Setup, generation_cost, prepared
from llm2slm.evaluation.benchmark.mode_costs import Drafting, cascade_cost, lossless_cost
from llm2slm.evaluation.benchmark.pairs import Pair
from llm2slm.evaluation.benchmark.roofline import Device, Precision, break_even, least_times

LLM, SLM, HYBRID, LOSSLESS, CASCADE = "llm", "slm", "llm2slm", "lossless", "cascade"


@dataclass(frozen=True)
class Assumptions:
    """What the configs do not determine.

    Attributes:
        drafted, accepted: tokens of a draft, and those of them that a verification accepts, means.
        rewritten: share of the responses that the LLM of a cascade generates anew.
        shared: the LLM does not repeat what it computed as the hybrid's encoder.
        slm_tokens: tokens of the SLM per token of the LLM, in the same text.
    """

    drafted: float
    accepted: float
    rewritten: float
    shared: bool = True
    slm_tokens: float = 1


@dataclass(frozen=True)
class Row:
    """One system under one condition. Milliseconds, megabytes (1e6 bytes) and 1e9 FLOPs; lengths in LLM tokens.

    Times are those of a whole batch. GFLOPs are those of one row, megabytes read those of the batch. speedup:
    the LLM's total over this one. break_even_tokens: the shortest response for which the system is faster than the LLM;
    None: none. Both are None without a known LLM. fits: whether weights and cache fit into the memory of the device;
    None: its size is not stated.
    """

    system: str
    batch: int
    prompt_tokens: int
    response_tokens: int
    prefill_ms: float
    ms_per_token: float | None
    total_ms: float
    speedup: float | None
    break_even_tokens: int | None
    prefill_gflop: float
    decode_gflop: float
    prefill_read_mb: float
    decode_read_mb: float
    weights_mb: float
    cache_mb: float
    fits: bool | None


@dataclass(frozen=True)
class Unknown:
    """A model whose cost is unknown, and the systems that are left out for it."""

    side: str
    name: str
    model_type: str
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.side} {self.name} ({self.model_type}), so without {', '.join(self.left_out)}"


@dataclass(frozen=True)
class Predictor:
    """Costs of the systems of a pair, on a device.

    Attributes:
        precision: of all models.
    """

    pair: Pair
    assumptions: Assumptions
    device: Device
    precision: Precision

    def cost(self, system: str, prompt: int, response: int) -> Cost:
        """The cost of one of `systems`."""
        pair, given = self.pair, self.assumptions
        sizes = {"bytes_per_weight": self.precision.weight, "bytes_per_value": self.precision.value}
        ratio = 1.0 if pair.same_response else given.slm_tokens
        if system == LLM:
            assert pair.llm is not None
            return generation_cost(pair.llm.values, prompt, response, **sizes)
        if system == SLM:
            assert pair.slm is not None
            own = prompt if pair.same_prompt and pair.same_response else prompt * given.slm_tokens
            return generation_cost(pair.slm.values, own, response * ratio, **sizes, **pair.virtual)
        hybrid = self._hybrid(prompt)
        if system == HYBRID:
            return hybrid.response(response * ratio, **sizes)
        assert pair.llm is not None
        llm, layers = pair.llm.values, pair.llm_layers
        if system == LOSSLESS:
            drafting = Drafting(given.drafted, given.accepted, slm_tokens=ratio)
            return lossless_cost(
                hybrid, llm, prompt, response, drafting, llm_layers=layers, shared=given.shared, **sizes
            )
        return cascade_cost(
            hybrid, llm, prompt, response, given.rewritten, llm_layers=layers, shared=given.shared, slm_tokens=ratio,
            **sizes,
        )  # fmt: skip

    def _hybrid(self, prompt: int) -> Prepared:
        """The hybrid before its second token."""
        pair = self.pair
        assert pair.llm is not None and pair.slm is not None
        own: float = prompt if pair.same_prompt else prompt * self.assumptions.slm_tokens
        own = own if pair.slm_prompt is None else pair.slm_prompt
        settings: dict[str, Any] = {**pair.settings, **pair.virtual, "pooled": pair.groups(prompt)}
        setup = Setup(llm_config=pair.llm.values, llm_tokens=prompt, conditioning=pair.conditioning, **settings)
        return prepared(pair.slm.values, own, setup)

    def row(self, system: str, batch: int, prompt: int, response: int) -> Row:
        """The prediction for one of `systems`."""
        cost, known = self.cost(system, prompt, response), LLM in systems(self.pair)
        times = least_times(cost, self.device, self.precision.product, batch)
        compared = known and system != LLM
        memory, room = cost.memory(batch) / 1e9, self.device.memory
        return Row(
            system=system,
            batch=batch,
            prompt_tokens=prompt,
            response_tokens=response,
            prefill_ms=times.prefill,
            ms_per_token=times.decode / (response - 1) if response > 1 else None,
            total_ms=times.total,
            speedup=self.total(LLM, batch, prompt)(response) / times.total if known else None,
            break_even_tokens=break_even(self.total(system, batch, prompt), self.total(LLM, batch, prompt))
            if compared
            else None,
            prefill_gflop=cost.prefill_flops / 1e9,
            decode_gflop=cost.decode_flops / 1e9,
            prefill_read_mb=sum(cost.bytes_of(work, batch) for work in cost.prefill) / 1e6,
            decode_read_mb=sum(cost.bytes_of(work, batch) for work in cost.decode) / 1e6,
            weights_mb=cost.weights * cost.bytes_per_weight / 1e6,
            cache_mb=batch * cost.cache * cost.bytes_per_value / 1e6,
            fits=None if room is None else memory <= room,
        )

    def total(self, system: str, batch: int, prompt: int) -> Callable[[int], float]:
        """Response length -> total milliseconds of a batch."""
        product = self.precision.product
        return lambda tokens: least_times(self.cost(system, prompt, tokens), self.device, product, batch).total

    def rows(self, batches: list[int], prompts: list[int], responses: list[int]) -> Iterator[Row]:
        """Every system under every condition."""
        for batch in batches:
            for prompt in prompts:
                for response in responses:
                    yield from (self.row(system, batch, prompt, response) for system in systems(self.pair))


def systems(pair: Pair) -> list[str]:
    """The systems of a pair whose costs are known."""
    found = [LLM] if pair.llm is not None and pair.llm.generates else []
    found += [SLM] if pair.slm is not None and pair.slm.generates else []
    if pair.settings:
        found += [HYBRID, LOSSLESS, CASCADE] if LLM in found else [HYBRID]
    return found


def unknown(pair: Pair, *, guided: bool) -> list[Unknown]:
    """The models of a pair whose costs are unknown.

    Args:
        guided: the pair is meant to be a hybrid.
    """
    found = []
    together = (HYBRID, LOSSLESS, CASCADE) if guided and pair.llm is not None and pair.slm is not None else ()
    if pair.llm is not None and not pair.llm.generates:
        out = (LLM, *(together if not pair.llm.encodes else together[1:]))
        found.append(Unknown("LLM", pair.llm.name, pair.llm.config.model_type, out))
    if pair.slm is not None and not pair.slm.generates:
        found.append(Unknown("SLM", pair.slm.name, pair.slm.config.model_type, (SLM, *together)))
    return found


def csv_text(rows: list[Row]) -> str:
    """The rows as CSV, with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [each.name for each in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return file.getvalue()
