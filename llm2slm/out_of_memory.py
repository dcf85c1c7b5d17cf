"""Errors of a device without enough memory, on one line that names the batch and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llm2slm.types import UserError

if TYPE_CHECKING:
    from llm2slm.types import Batch

CPU = ("not enough memory: you tried to allocate", "can't allocate memory")
"""Parts of torch's messages on a CPU, which are plain RuntimeErrors."""


class OutOfMemory(UserError):
    """A device has too little memory for a batch, or for a model."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is torch's report of a full device (CUDA, MPS or CPU)."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or any(words in text for words in CPU))


@contextmanager
def explained(what: str, advice: str) -> Iterator[None]:
    """Raises an error of memory within the block as `OutOfMemory`; other errors are unchanged.

    Args:
        what: the work of the block, as "a training batch of 8 rows". advice: what the user can change.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory in {what}; {advice}") from error


def shape(batch: Batch) -> str:
    """The size of a batch in words: rows and tokens per row, padding included."""
    rows, prompt = batch.slm_ids_BQ.shape
    if batch.llm_ids_BP is not None:
        prompt = max(prompt, batch.llm_ids_BP.shape[1])
    words = f"{rows} row{'s' if rows > 1 else ''} of {prompt} prompt tokens"
    return words + ("" if batch.labels_BT is None else f" and {batch.labels_BT.shape[1]} response tokens")
