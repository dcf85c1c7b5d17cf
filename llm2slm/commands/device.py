"""The device of a model: one rule for all commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llm2slm.config.choices import ACCELERATORS, check_choice
from llm2slm.out_of_memory import explained
from llm2slm.types import UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


def device_type(accelerator: str) -> str:
    """The type of device behind `trainer.accelerator`. auto: a CUDA GPU if available, otherwise the CPU.

    Raises:
        UserError: an accelerator that is unknown or not available.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    check_choice("trainer.accelerator", accelerator, ACCELERATORS)
    if accelerator in ("auto", "cpu"):
        return "cuda" if cuda and accelerator == "auto" else "cpu"
    if accelerator in ("gpu", "cuda") and cuda:
        return "cuda"
    if accelerator in ("gpu", "mps") and mps:
        return "mps"
    raise UserError(
        f"trainer.accelerator={accelerator}: torch finds no such device; use trainer.accelerator=auto or cpu"
    )


def move_to_device(model: LLM2SLM, accelerator: str) -> LLM2SLM:
    """Moves a model, its encoder included, to the device of `trainer.accelerator`; returns the model."""
    with explained(
        "placing the model on its device", "use a smaller dtype (model.llm.dtype=bfloat16) or a smaller model"
    ):
        model.to(device_type(accelerator))  # cuda: the current device, the first one of a training
    return model
