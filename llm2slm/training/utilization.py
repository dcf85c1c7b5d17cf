"""FLOPs per second of a training, and their share of the device's measured rate of matrix products (MFU: Chowdhery et
al. 2022, arXiv 2204.02311, appendix B): padding and recomputed activations do not count as work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llm2slm.out_of_memory import is_out_of_memory
from llm2slm.types import IGNORE_INDEX, Batch


@dataclass(frozen=True)
class Work:
    """What a training step computes, and what the device could compute.

    Attributes:
        row: (tokens of the LLM's prompt, of the SLM's prompt, of the response) -> FLOPs of one row of a step.
        rate: cpu or cuda -> measured FLOPs per second of matrix products in the precision of the training; called once.
            None: the training has products of several dtypes.
    """

    row: Callable[[float, float, float], float]
    rate: Callable[[str], float] | None


class Utilization:
    """Sums over the batches since the last log, kept on the device.

    Args:
        work: of the system that is trained.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.rate: float | None = None  # 0: it could not be measured
        self.restart()

    def restart(self) -> None:
        """Forgets all batches."""
        self.rows = 0
        self.tokens_3: Tensor | None = None

    def add(self, batch: Batch) -> None:
        """Counts a batch."""
        assert batch.labels_BT is not None
        llm = batch.slm_mask_BQ if batch.llm_mask_BP is None else batch.llm_mask_BP
        found = torch.stack([llm.sum(), batch.slm_mask_BQ.sum(), (batch.labels_BT != IGNORE_INDEX).sum()])
        self.tokens_3 = found if self.tokens_3 is None else self.tokens_3 + found
        self.rows += len(batch.labels_BT)

    def logged(self, seconds: float, device: str) -> dict[str, float]:
        """`train/tflops` and `train/utilization` of this process since the last `restart`; {} before the first batch.

        Rows are counted at their mean length, so attention is counted slightly too low. There is no utilisation on
        other devices than cpu and cuda, and where a GPU has no memory left for the measurement.
        """
        if self.tokens_3 is None:
            return {}
        means = (self.tokens_3.double() / self.rows).tolist()
        flops = self.rows * self.work.row(*means) / seconds
        found = {"train/tflops": flops / 1e12}
        if self.rate is None and self.work.rate is not None and device in ("cpu", "cuda"):
            try:
                self.rate = self.work.rate(device)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.rate = 0.0
        return found | {"train/utilization": flops / self.rate} if self.rate else found
