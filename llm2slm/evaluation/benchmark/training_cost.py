"""FLOPs of the training of a system, from the cost model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llm2slm.evaluation.benchmark.costs import Setup, prepared
from llm2slm.evaluation.benchmark.workload_costs import guidance, in_front
from llm2slm.models.conditioning.prepend import groups_of
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.families import supported

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

TRAINED, PASSED = 3, 2
"""FLOPs of a step in those of a forward pass: of a part with trained matrices (forward pass, gradients of inputs,
gradients of weights), and of one that only passes gradients on. The frozen LLM has the forward pass alone."""

ALL = 0.9
"""Share of a trained SLM's matrices; position embeddings may be constant."""

RowFlops = Callable[[float, float, float], float]
"""(tokens of the LLM's prompt, of the SLM's prompt, of the response) -> FLOPs of one row of a step."""


def row_flops(model: LLM2SLM, teacher: LLM2SLM | None = None) -> RowFlops | None:
    """The FLOPs of one row of a training step, without padding and without recomputation.

    Args:
        model: as trained: its parameters that require gradients are those that are trained.
        teacher: scores the response too (optim.distill).

    Returns:
        None for a model type that the cost model does not know, for stored representations, and where a part of the
        SLM's matrices is trained. The first phase of `optim.freeze_slm_steps` is counted as if all were.
    """
    slm_config, of_hybrid = model.slm.config.to_dict(), guidance(model)
    encoder = model.encoder
    if encoder is not None and (not isinstance(encoder, FrozenEncoder) or not of_hybrid):
        return None
    configs = [slm_config, *([] if teacher is None else [teacher.slm.config.to_dict()])]
    if not all(map(supported, configs)):
        return None
    if of_hybrid and not supported(of_hybrid["llm_config"], generates=False):
        return None
    matrices = [parameter for parameter in _layers(model) if parameter.dim() == 2]
    trained = sum(parameter.numel() for parameter in matrices if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in matrices)
    if 0 < trained < ALL * whole:
        return None
    share = TRAINED if trained else PASSED

    def flops(llm_tokens: float, slm_tokens: float, response: float) -> float:
        extra: dict[str, Any] = dict(of_hybrid)
        if extra:
            size = model.config.pool
            extra |= {"llm_tokens": llm_tokens, "pooled": None if size is None else groups_of(round(llm_tokens), size)}
        cost = prepared(slm_config, slm_tokens, Setup(**extra, **in_front(model))).response(response)
        works = [work.rows * work.flops for work in (*cost.prefill, *cost.decode)]
        frozen = works[0] if extra else 0.0
        found = frozen + share * (sum(works) - frozen)
        if teacher is not None:
            found += prepared(configs[1], llm_tokens, Setup()).response(response).flops
        return found

    return flops


def _layers(model: LLM2SLM) -> Any:
    """The parameters of the SLM's layers; adapters, which peft adds, are left out."""
    for name, parameter in model.slm.named_parameters():
        if "lora_" not in name and "prompt_encoder" not in name:
            yield parameter
