"""FLOPs and bytes of a system under a condition of a benchmark, from the cost model, with the batch's own lengths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm2slm.evaluation.benchmark.costs import Cost, generation_cost
from llm2slm.evaluation.benchmark.roofline import PRECISIONS, Precision
from llm2slm.evaluation.benchmark.workload import Condition, Request
from llm2slm.models.conditioning.prepend import pool
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.families import supported
from llm2slm.models.soft_prompts import PROMPT, virtual_tokens

if TYPE_CHECKING:
    from llm2slm.decoding.decoder import Decoder
    from llm2slm.models.hybrid import LLM2SLM


@dataclass(frozen=True)
class WorkloadCost:
    """Means over the requests of a condition.

    Attributes:
        flops: of one row's response. prefill_flops: of a whole batch, before the first token.
        step_bytes: read by one decoding step of a batch.
    """

    flops: float
    prefill_flops: float
    step_bytes: float


def precision(decoder: Decoder) -> Precision:
    """Bytes of the weights that a decoder reads, by its name or the model's dtype."""
    return PRECISIONS[dtype(decoder)]


def dtype(decoder: Decoder) -> str:
    """Of the weights that generate: int8 for a decoder that states it in its name, else that of the model."""
    if "int8" in decoder.name:
        return "int8"
    return str(next(decoder.model.slm.parameters()).dtype).removeprefix("torch.")


def product_dtype(decoder: Decoder) -> str:
    """Of the matrix products of the prefill: that of the encoder, if there is one."""
    encoder = decoder.model.encoder
    if "int8" in decoder.name or encoder is None:
        return precision(decoder).product
    return str(next(encoder.parameters()).dtype).removeprefix("torch.")


def workload_cost(decoder: Decoder, condition: Condition) -> WorkloadCost | None:
    """The cost of a decoder that computes one token per forward pass; None for an unknown model type or another one."""
    model = decoder.model
    if not decoder.token_by_token:
        return None
    slm_config, of_hybrid = model.slm.config.to_dict(), guidance(model)
    llm = of_hybrid.get("llm_config")
    if not supported(slm_config) or (llm is not None and not supported(llm, generates=False)):
        return None
    sizes = precision(decoder)
    of_requests = [_row_costs(model, slm_config, of_hybrid, request, sizes) for request in condition.requests]
    steps = sum(request.response_tokens - 1 for request in condition.requests)
    return WorkloadCost(
        flops=statistics.fmean(cost.flops for costs in of_requests for cost in costs),
        prefill_flops=statistics.fmean(sum(cost.prefill_flops for cost in costs) for costs in of_requests),
        step_bytes=sum(_decode_bytes(costs) for costs in of_requests) / max(steps, 1),
    )


def _decode_bytes(costs: Sequence[Cost]) -> float:
    """Bytes read by the decoding steps of a batch: weights once for all rows, keys and values of each row."""
    weights = sum(work.passes * work.weights for work in costs[0].decode) * costs[0].bytes_per_weight
    return weights + sum(work.cache * cost.bytes_per_value for cost in costs for work in cost.decode)


def _row_costs(
    model: LLM2SLM, slm_config: dict[str, Any], of_hybrid: dict[str, Any], request: Request, sizes: Precision
) -> list[Cost]:
    """The cost of each row of a request."""
    batch = model.collator.batch_of_texts(list(request.prompts))
    mask_BP = batch.slm_mask_BQ if batch.llm_mask_BP is None else batch.llm_mask_BP
    slm_B, llm_B, pooled_B = batch.slm_mask_BQ.sum(1).tolist(), mask_BP.sum(1).tolist(), _pooled(model, mask_BP)
    aligned, found = batch.align_BQP is not None, []
    in_bytes = {"bytes_per_weight": sizes.weight, "bytes_per_value": sizes.value}
    for q, p, n in zip(slm_B, llm_B, pooled_B, strict=True):
        extra = of_hybrid and {**of_hybrid, "llm_tokens": p, "aligned": aligned, "pooled": n}
        found.append(generation_cost(slm_config, q, request.response_tokens, **in_bytes, **extra, **in_front(model)))
    return found


def guidance(model: LLM2SLM) -> dict[str, Any]:
    """Arguments of `costs.generation_cost` that describe a hybrid, independent of the prompt; empty without an LLM."""
    if not isinstance(model.encoder, FrozenEncoder) or model.projector is None:
        return {}
    return {
        "llm_config": model.encoder.body.config.to_dict(),
        "llm_layers": model.encoder.blocks if model.ablation is None or model.ablation.runs_llm else 0,
        "conditioning": model.conditioning,
        **model.mode.cost_settings(model),
    }


def in_front(model: LLM2SLM) -> dict[str, Any]:
    """Arguments of `costs.generation_cost` for virtual tokens of prompt or prefix tuning; empty without any."""
    tokens = virtual_tokens(model.slm)
    return {} if tokens is None else {"virtual" if tokens.tune == PROMPT else "prefix": tokens.length}


def _pooled(model: LLM2SLM, mask_BP: Any) -> Sequence[float | None]:
    """Positions of z per row after pooling, from the function that pools; None where nothing is pooled."""
    size = model.config.pool
    if size is None:
        return [None] * len(mask_BP)
    counts: list[float] = pool(mask_BP.unsqueeze(-1).float(), mask_BP, size)[1].sum(1).tolist()
    return counts
