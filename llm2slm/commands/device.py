"""Where a model runs: one rule for all commands, so that what is timed and judged runs where it was asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llm2slm.types import UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

ACCELERATORS = ("auto", "gpu", "cuda", "mps", "cpu")


def device_type(accelerator: str) -> str:
    """The type of device behind `trainer.accelerator`. auto: a CUDA GPU where there is one, else the processor.

    Raises:
        UserError: an accelerator that this machine lacks, or that is not known.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if accelerator not in ACCELERATORS:
        raise UserError(f"trainer.accelerator={accelerator}: unknown; possible: {', '.join(ACCELERATORS)}")
    if accelerator in ("auto", "cpu"):
        return "cuda" if cuda and accelerator == "auto" else "cpu"
    if accelerator in ("gpu", "cuda") and cuda:
        return "cuda"
    if accelerator in ("gpu", "mps") and mps:
        return "mps"
    raise UserError(
        f"trainer.accelerator={accelerator}: torch finds no such device here; use trainer.accelerator=auto or cpu"
    )


def place(model: LLM2SLM, accelerator: str) -> LLM2SLM:
    """Moves a model, its reader included, to the device of `trainer.accelerator`, and gives it back."""
    model.to(device_type(accelerator))  # cuda: the current one, which is the first of a training's own
    return model
