"""`val/<metric>` of generated predictions during training, exact for any number of processes.

Each process generates for a share of the rows. Texts, not scores, are gathered, since corpus BLEU is not
the mean of the BLEU of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from llm2slm.models.hybrid import LLM2SLM
from llm2slm.training.sharding import Sharded, gathered
from llm2slm.types import Example

KeepSamples = Callable[[int, Sequence[Example], Sequence[str]], None]
"""Receives the number of optimizer steps, examples and their predictions."""


@dataclass(frozen=True)
class ValidationScorer:
    """Generates and scores predictions in a validation.

    Attributes:
        generate: (model, examples, share (rank, world size), `between`) -> predictions of the share by example index.
            The shares cover all examples, with the predictions of a single process. `between` must be called before
            each batch, equally often in every process; it may raise an exception to stop.
        score: (examples, their predictions in order) -> value by metric.
        lower_is_better: metric -> its direction; None: higher is better for every metric.
    """

    generate: Callable[[LLM2SLM, Sequence[Example], tuple[int, int], Callable[[], None]], Mapping[int, str]]
    score: Callable[[Sequence[Example], Sequence[str]], dict[str, float]]
    lower_is_better: Callable[[str], bool] | None = None


class GatheredTexts(Metric):
    """Gathers texts by row index from all processes; `compute` is equal in every process.

    Texts are stored as UTF-8 bytes, since torchmetrics gathers tensors only. Every process must call `update` once,
    even without texts.
    """

    full_state_update = False
    rows: list[Tensor]
    sizes: list[Tensor]
    data: list[Tensor]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for name in ("rows", "sizes", "data"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, texts: Mapping[int, str]) -> None:
        """Adds texts by row index."""
        data = [text.encode("utf-8", "surrogatepass") for text in texts.values()]
        self.rows.append(torch.tensor(list(texts), dtype=torch.int64, device=self.device))
        self.sizes.append(torch.tensor([len(one) for one in data], dtype=torch.int64, device=self.device))
        self.data.append(torch.tensor(list(b"".join(data)), dtype=torch.uint8, device=self.device))

    def compute(self) -> dict[int, str]:
        """All texts by row index."""
        rows, sizes = (dim_zero_cat(state).tolist() for state in (self.rows, self.sizes))
        data = BytesIO(bytes(dim_zero_cat(self.data).tolist()))
        return {row: data.read(size).decode("utf-8", "surrogatepass") for row, size in zip(rows, sizes, strict=True)}


class GenerationQuality(Callback):
    """Logs `val/<metric>` of predictions for the first rows of the split at each validation.

    Args:
        between: called before each batch; may raise an exception to end the validation.
        keep: called with the number of optimizer steps, the examples and their predictions, in the first process.
    """

    def __init__(
        self,
        scorer: ValidationScorer,
        examples: Sequence[Example],
        between: Callable[[Trainer], None] = lambda _: None,
        keep: KeepSamples | None = None,
    ) -> None:
        self.scorer, self.examples, self.between, self.keep = scorer, list(examples), between, keep

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generates the share of this process; rank 0 scores all predictions and broadcasts the scores."""
        if trainer.sanity_checking:
            return
        # with sharded weights all processes must run the same passes
        share = (0, 1) if isinstance(trainer.strategy, Sharded) else (trainer.global_rank, trainer.world_size)
        all_texts = GatheredTexts().to(pl_module.device)
        with gathered(pl_module):
            found = self.scorer.generate(pl_module.model, self.examples, share, lambda: self.between(trainer))
        all_texts.update(found)
        texts = all_texts.compute()
        scores = {}
        if trainer.is_global_zero:
            predictions = [texts[row] for row in range(len(self.examples))]
            scores = self.scorer.score(self.examples, predictions)
            if self.keep is not None:
                self.keep(trainer.global_step, self.examples, predictions)
        for metric, value in trainer.strategy.broadcast(scores).items():
            pl_module.log(f"val/{metric}", value, prog_bar=True, rank_zero_only=False, sync_dist=False)
