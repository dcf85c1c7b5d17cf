"""The first phase of training, in which only the projector is trained (`optim.freeze_slm_steps`), and its rate.

It protects a pretrained SLM from the gradients of an untrained projector.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from llm2slm.config import ModelConfig, OptimConfig, RunConfig
from llm2slm.models.loading.cross_attention import CROSS_ATTENTION
from llm2slm.models.tuning import NONE
from llm2slm.training.optim import embedding_ids
from llm2slm.types import Init, SystemKind, UserError

SLM = "slm."
RATE_FACTOR, MAX_RATE = 10, 1e-3
"""Default projector rate with a pretrained SLM: this multiple of the SLM's rate, and its maximum."""


def projector_rate(optim: OptimConfig, model: ModelConfig) -> float:
    """Peak learning rate of the projector: `optim.projector_lr` or its default."""
    if optim.projector_lr is not None:
        return optim.projector_lr
    if model.kind is SystemKind.llm2slm and model.slm.start is Init.pretrained:
        return max(optim.lr, min(RATE_FACTOR * optim.lr, MAX_RATE))
    return optim.lr


def check_phases(config: RunConfig) -> None:
    """Refuses, before anything is loaded, an impossible first phase.

    Raises:
        UserError: names the key.
    """
    steps, model = config.optim.freeze_slm_steps, config.model
    if not steps:
        return
    wrong = None
    if model.kind is not SystemKind.llm2slm:
        wrong = f"there is no projector to train alone with model.kind={model.kind}; leave it out"
    elif model.slm.tune == NONE:
        wrong = "model.slm.tune=none freezes the SLM in every step; leave one of them out"
    elif steps >= config.trainer.max_steps:
        wrong = (
            f"trainer.max_steps={config.trainer.max_steps} has no step in which the SLM is trained; lower the one, "
            "raise the other, or use model.slm.tune=none"
        )
    if wrong is not None:
        raise UserError(f"optim.freeze_slm_steps={steps}: {wrong}")


def check_trainable(model: nn.Module, config: RunConfig) -> None:
    """Rejects a model without trainable parameters, in all steps or in the first phase; warns about a learning rate of
    no parameters: of a projector (conditioning `kv`, if the SLM uses the LLM's cache unchanged), or of embeddings.

    Args:
        model: the model to train.

    Raises:
        UserError: names the key.
    """
    optim, tune = config.optim, config.model.slm.tune
    trained = {id(p) for name, p in model.named_parameters() if p.requires_grad and name.startswith(SLM)}
    if optim.embedding_lr is not None and not trained & embedding_ids(model, heads=True):
        why = f"model.slm.tune={tune} trains no embedding matrix of the SLM"
        print(f"llm2slm: warning: optim.embedding_lr={optim.embedding_lr:g} is not used: {why}", file=sys.stderr)
    count = sum(parameter.requires_grad for parameter in model.parameters())
    rest = count - len(frozen_in_first_phase(model))
    why = f"model.conditioning={config.model.conditioning} has no projector: the SLM uses the LLM's cache unchanged"
    if not count:
        raise UserError(f"model.slm.tune={tune}: leaves nothing to train, as {why}; use model.slm.tune=full or lora")
    if config.model.kind is not SystemKind.llm2slm or rest:
        return
    if optim.freeze_slm_steps:
        raise UserError(f"optim.freeze_slm_steps={optim.freeze_slm_steps}: {why}; leave it out")
    if optim.projector_lr is not None:
        print(f"llm2slm: warning: optim.projector_lr={optim.projector_lr:g} is not used: {why}", file=sys.stderr)


def frozen_in_first_phase(model: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters of a hybrid that are frozen in the first phase: those of the SLM, except for cross-attention
    layers that were added to attend to z."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name.startswith(SLM) and not any(new in name for new in CROSS_ATTENTION)
    ]


@contextmanager
def without_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Disables gradients of the parameters within the block, which saves their computation."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
