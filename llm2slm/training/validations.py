"""Aborted validations: the state that is restored, and the repetition in a resumed run.

Lightning resumes a validation at its next batch, but the sums of earlier batches are lost. So the checkpoint is written
with the state before the validation, and a resumed run validates first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning import Trainer

from llm2slm.training.loggers import MetricsFile


@dataclass(frozen=True)
class BeforeValidation:
    """The part of a checkpoint's state that a validation changes.

    Attributes:
        process: `TrainingModule.process_state` of this process. progress: of Lightning's validation loop.
        batches: the smallest number of validation batches of any process (they may differ by one).
    """

    process: dict[str, Any]
    progress: dict[str, Any]
    batches: int

    @classmethod
    def of(cls, trainer: Trainer) -> BeforeValidation:
        """The current state. Collective: every process must call it."""
        module: Any = trainer.lightning_module
        count = int(sum(trainer.fit_loop.epoch_loop.val_loop.max_batches))
        batches = torch.tensor(count, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            batches = trainer.strategy.reduce(batches, reduce_op="min")
        return cls(
            module.process_state(),
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.state_dict(),
            int(batches),
        )

    def restore(self, trainer: Trainer) -> None:
        """Restores the state."""
        module: Any = trainer.lightning_module
        module.restore_process_state(self.process)
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.load_state_dict(self.progress)


class Repeat:
    """Repeats a validation in a resumed run, even after its last step. Lightning would end such a fit immediately, so
    the conditions that end it are suspended until the validation has run.

    Use: `Repeat(trainer)` when fit starts, then `run` when training starts.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._max_steps, self.stopping = trainer.max_steps, trainer.should_stop
        trainer.fit_loop.epoch_loop.max_steps, trainer.should_stop = -1, False

    def run(self) -> None:
        """Validates as Lightning does after a step, and logs into the existing row of that step in metrics.csv."""
        trainer, epoch = self._trainer, self._trainer.fit_loop.epoch_loop
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.keep(epoch._batches_that_stepped)
        epoch.val_loop.restarting = False  # from its first batch on
        first = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        epoch.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first
        epoch.val_loop._has_run = False  # as in a run that resumes after a validation: else the epoch never ends
        epoch.max_steps = self._max_steps
        trainer.should_stop = trainer.should_stop or self.stopping
