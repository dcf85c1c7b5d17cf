"""`trainer.micro_batch=auto`: a batch that does not fit into the memory of a device is processed in parts.

The loss is summed over tokens, so the gradients of the parts add up to the gradient of the batch. The parts of a batch
are passed forward and backward one after the other, before DDP reduces gradients: each process may split differently.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm2slm.config import RunConfig
from llm2slm.out_of_memory import OutOfMemory, is_out_of_memory, shape
from llm2slm.types import Batch, Control, UserError

AUTO = "auto"


def check_micro_batch(config: RunConfig) -> None:
    """Refuses, before anything is loaded, a setting that is impossible.

    Raises:
        UserError: names the key.
    """
    value = config.trainer.micro_batch
    if value is None:
        return
    wrong = None
    if value != AUTO:
        wrong = "expected auto or null"
    elif config.model.control is Control.shuffled:
        wrong = "model.control=shuffled exchanges prompts within a whole batch; lower data.batch_tokens instead"
    elif config.trainer.strategy in ("fsdp", "model_parallel"):
        wrong = "with trainer=fsdp all processes must run the same passes; lower data.batch_tokens instead"
    if wrong is not None:
        raise UserError(f"trainer.micro_batch={value}: {wrong}")


class MicroBatches:
    """Forward and backward passes over a batch, in as many parts as the memory requires.

    Attributes:
        limit: tokens of a part, padding included; halved when a part does not fit. None: no batch was split yet.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit

    def run(
        self,
        batch: Batch,
        parameters: list[nn.Parameter],
        passes: Callable[[Batch], tuple[Tensor, ...]],
        undo: Callable[[], Any],
    ) -> tuple[Tensor, ...]:
        """Adds the gradient of a batch to the gradients of the parameters.

        Args:
            parameters: those that are trained.
            passes: forward and backward pass over a part; returns sums over its tokens.
            undo: restores the state before the batch (of random generators), before it is repeated.

        Returns:
            The values of `passes`, summed over the parts.

        Raises:
            OutOfMemory: a part of one row does not fit.
        """
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
        while True:
            size = self._rows(batch)
            try:
                return self._all(batch, size, passes)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise OutOfMemory(_message(batch.rows(0, 1))) from error
            # outside of the handler, whose traceback holds the tensors of the failed passes
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            undo()
            self.limit = _width(batch) * (size + 1) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(
                f"llm2slm: out of memory with {shape(batch.rows(0, size))}: batches of more than {self.limit} tokens "
                "are processed in parts from now on (trainer.micro_batch=auto)",
                file=sys.stderr,
            )

    def _rows(self, batch: Batch) -> int:
        """Rows of a part."""
        rows = len(batch.slm_ids_BQ)
        return rows if self.limit is None else max(1, min(rows, self.limit // _width(batch)))

    @staticmethod
    def _all(batch: Batch, size: int, passes: Callable[[Batch], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        rows = len(batch.slm_ids_BQ)
        sums = [passes(batch if size >= rows else batch.rows(at, at + size)) for at in range(0, rows, size)]
        return tuple(torch.stack(values).sum(0) for values in zip(*sums, strict=True))


def no_gradient(parameters: list[nn.Parameter]) -> Tensor:
    """A loss of 0 whose backward pass reaches every parameter, so that DDP reduces the gradients that they have."""
    return torch.stack([parameter.reshape(-1)[0].float() * 0 for parameter in parameters]).sum()


def _width(batch: Batch) -> int:
    """Tokens of a row, padding included."""
    prompt = max(batch.slm_ids_BQ.shape[1], 0 if batch.llm_ids_BP is None else batch.llm_ids_BP.shape[1])
    return prompt + (0 if batch.labels_BT is None else batch.labels_BT.shape[1])


def _message(row: Batch) -> str:
    return (
        f"out of memory in a training batch of {shape(row)}; shorten the rows (data.max_prompt_tokens, "
        "data.max_response_tokens with data.overlong=truncate), use trainer.precision=bf16-mixed, or train fewer "
        "weights (model.slm.tune=lora)"
    )
