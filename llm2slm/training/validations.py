"""A validation that was stopped before its end: what is undone then, and how a resumed run repeats it.

Lightning can resume within a validation only where it stopped, with sums that are no longer there. So the checkpoint is
written as if the validation had not begun, and the resumed run validates before anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning import Trainer

from llm2slm.training.loggers import MetricsFile


@dataclass(frozen=True)
class BeforeValidation:
    """What a validation changes of the state that a checkpoint holds: that of this process (`TrainingModule`'s
    `process_state`), and Lightning's count of batches.

    Attributes:
        process: state of this process. progress: of Lightning's validation loop.
        batches: validation batches that every process has (their shares of the rows may differ by one).
    """

    process: dict[str, Any]
    progress: dict[str, Any]
    batches: int

    @classmethod
    def of(cls, trainer: Trainer) -> BeforeValidation:
        """The state now. All processes must call it."""
        module: Any = trainer.lightning_module
        own = int(sum(trainer.fit_loop.epoch_loop.val_loop.max_batches))
        batches = torch.tensor(own, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            batches = trainer.strategy.reduce(batches, reduce_op="min")
        return cls(
            module.process_state(),
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.state_dict(),
            int(batches),
        )

    def restore(self, trainer: Trainer) -> None:
        """Brings the state back."""
        module: Any = trainer.lightning_module
        module.restore_process_state(self.process)
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.load_state_dict(self.progress)


class Repeat:
    """A resumed run that has a validation to repeat, even if its last step is done: Lightning would leave such a fit at
    once. So the reasons to leave are put aside until the validation has been run.

    Use: `Repeat(trainer)` when fit starts, then `run` when training starts.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._max_steps, self.stopping = trainer.max_steps, trainer.should_stop
        trainer.fit_loop.epoch_loop.max_steps, trainer.should_stop = -1, False

    def run(self) -> None:
        """Validates as Lightning does after a step, into the row of metrics.csv that this step has already."""
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
