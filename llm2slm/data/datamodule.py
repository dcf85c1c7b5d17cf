"""The LightningDataModule: the loaders of a tokenized corpus. The order of training batches is resumed exactly.

Training batches hold rows of similar length, as many as fit the token budget (`batches.BatchPlan`), or come from a
stream (`streaming.StreamLoader`). With several processes, each takes every world_size-th batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from llm2slm.config import DataConfig
from llm2slm.data.batches import BatchPlan, TrainLoader, drawn
from llm2slm.data.collate import Collator, Encoded
from llm2slm.data.streaming import StreamLoader
from llm2slm.data.tasks import Task
from llm2slm.data.tokenized_corpus import TokenizedCorpus
from llm2slm.types import IGNORE_INDEX, UserError


class _Rows(Dataset[Encoded]):
    def __init__(self, rows: Sequence[Encoded]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Encoded:
        return self._rows[position]


class DataModule(TokenizedCorpus, LightningDataModule):
    """Train, validation and test loaders of one corpus with one task and one collator.

    Args:
        config, task, collator, seed, teacher: as for `TokenizedCorpus`; the seed also determines the training order.
        val_rows: maximum number of rows in `val_dataloader`. None: all.
    """

    def __init__(
        self,
        config: DataConfig,
        task: Task,
        collator: Collator,
        seed: int,
        teacher: Collator | None = None,
        *,
        val_rows: int | None = None,
    ) -> None:
        LightningDataModule.__init__(self)
        TokenizedCorpus.__init__(self, config, task, collator, seed, teacher)
        self.val_rows = val_rows
        self._loader: TrainLoader | StreamLoader | None = None
        self._state: dict[str, int] = {}

    def setup(self, stage: str) -> None:
        """Reads and tokenizes the splits of a stage (fit, validate, test), once."""
        for split in {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",)):
            self.prepare(split)

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        """Batches by token budget, in seeded order, from the position in the loaded checkpoint on."""
        trainer = self.trainer
        done = None if trainer is None else lambda: int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)
        overfit = 0 if trainer is None else int(trainer.overfit_batches)
        self._loader = self._stream_loader(overfit, done) if self.config.streaming else self._plan_loader(overfit, done)
        if self._state:
            self._loader.load_state_dict(self._state)
            self._state = {}
        return self._loader

    def val_dataloader(self) -> DataLoader[Encoded]:
        """The validation split, or `val_rows` of it, in its order; each process has different rows."""
        return self.eval_loader("validation", self.val_rows)

    def test_dataloader(self) -> DataLoader[Encoded]:
        """The test split in its order; each process has different rows."""
        return self.eval_loader("test")

    def eval_loader(self, split: str, limit: int | None = None) -> DataLoader[Encoded]:
        """This process's share of a split, or of `limit` rows `drawn` from it, in batches of `eval_batch_size` rows.

        All processes get equally many batches: collective operations in a pass need it, and Lightning refuses a loader
        without one. A process without rows for its last batch gets one without labels, which adds nothing to a sum.
        """
        rows = drawn(self.encoded(split), limit)
        rank, world = self._process()
        mine, size = list(range(rank, len(rows), world)), self.config.eval_batch_size
        batches = [mine[i : i + size] for i in range(0, len(mine), size)]
        most = ceil(ceil(len(rows) / world) / size)  # batches of the first process
        if len(batches) < most:
            batches += [[len(rows)]] * (most - len(batches))
            rows = [*rows, replace(rows[0], response=[IGNORE_INDEX])]
        return self._batches(rows, batches)

    def state_dict(self) -> dict[str, int]:
        """Position of the training loader (Lightning keeps the state of a loader only within an epoch)."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Sets the position of the next `train_dataloader`."""
        self._state = dict(state_dict)

    def _stream_loader(self, overfit: int, done: Callable[[], int] | None) -> StreamLoader:
        if overfit:
            raise UserError(f"trainer.overfit_batches={overfit}: not with data.streaming; set data.streaming=false")
        rank, world = self._process()
        self._stream = self._row_stream(world)
        return StreamLoader(
            self._batches, self._stream, self.config.batch_tokens, self.seed, rank=rank, world_size=world, done=done
        )

    def _plan_loader(self, overfit: int, done: Callable[[], int] | None) -> TrainLoader:
        rows = self.encoded("train")
        rank, world = self._process()
        plan = BatchPlan(
            [(row.prompt_tokens, len(row.response)) for row in rows],
            self.config.batch_tokens,
            self.seed,
            rank=rank,
            world_size=world,
            limit=overfit or None,
        )
        return TrainLoader(lambda batches: self._batches(rows, batches), plan, done)

    def _process(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _batches(self, rows: Sequence[Encoded], batches: list[list[int]]) -> DataLoader[Encoded]:
        return DataLoader(
            _Rows(rows),
            batch_sampler=batches,
            collate_fn=self.collator,
            num_workers=self.config.workers,
            # a separate generator: each iterator draws a number, which would change the dropout of a resumed run
            generator=torch.Generator().manual_seed(self.seed),
        )
