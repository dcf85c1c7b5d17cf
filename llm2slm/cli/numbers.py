"""Smallest values of the numbers in a run's configuration, checked before a library complains in its own way."""

from __future__ import annotations

from typing import Any

from llm2slm.config import RunConfig
from llm2slm.types import UserError

AT_LEAST: dict[str, float] = {
    "seed": 0,
    "model.cross_every": 1,
    "data.batch_tokens": 1,
    "data.eval_batch_size": 1,
    "data.max_prompt_tokens": 1,
    "data.max_response_tokens": 1,
    "data.workers": 0,
    "data.buffer": 1,
    "task.max_new_tokens": 1,
    "task.num_beams": 1,
    "optim.lr": 0,
    "optim.projector_lr": 0,
    "optim.weight_decay": 0,
    "optim.warmup_steps": 0,
    "optim.final_lr": 0,
    "optim.label_smoothing": 0,
    "trainer.num_nodes": 1,
    "trainer.max_steps": 1,
    "trainer.val_every": 1,
    "trainer.val_rows": 1,
    "trainer.gradient_clip_val": 0,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.overfit_batches": 0,
    "trainer.limit_val_batches": 1,
    "trainer.threads": 1,
    "callbacks.patience": 0,
    "callbacks.generate_rows": 0,
    "benchmark.prompts": 0,
    "benchmark.repeats": 1,
    "benchmark.warmup": 0,
    "benchmark.threads": 1,
}
"""Numbers that have a smallest value."""


def check_numbers(config: RunConfig) -> None:
    """Refuses a number below its smallest value, before a library says so in its own way.

    Raises:
        UserError: names the key.
    """
    for key, least in AT_LEAST.items():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        if value is not None and not value >= least:  # so that nan is refused too
            raise UserError(f"{key}={value}: must be at least {least:g}")
