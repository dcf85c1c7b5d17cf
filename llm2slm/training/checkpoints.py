"""Checkpoints during training, from which a stopped run resumes exactly.

`last.ckpt` is written at every validation, at the end, and at a requested stop (the one before it becomes
`previous.ckpt`); `best.ckpt` when the monitored value improves. (Lightning's callback writes `last` only together with
`best`, and refers to it by an absolute path.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from llm2slm.config import CallbacksConfig, TrainerConfig
from llm2slm.config.choices import DIRECTIONS, check_choice
from llm2slm.runs import Selection
from llm2slm.training.checkpoint_io import BEST, LAST, clear_partial, read, report
from llm2slm.training.divergence import diverged
from llm2slm.training.signals import StopSignals
from llm2slm.training.validations import BeforeValidation, Repeat
from llm2slm.types import UserError


def direction(cfg: CallbacksConfig, lower_is_better: Callable[[str], bool] | None = None) -> str:
    """The direction of the monitored value: min or max.

    Args:
        lower_is_better: of a metric by its name; None: only the loss is logged.

    Raises:
        UserError: callbacks.mode is neither, or would select the largest loss.
    """
    metric = cfg.monitor.rpartition("/")[2]
    lower = metric == "loss" or (lower_is_better is not None and lower_is_better(metric))
    mode = cfg.mode or ("min" if lower else "max")
    check_choice("callbacks.mode", mode, DIRECTIONS)
    if metric == "loss" and mode == "max":
        raise UserError("callbacks.mode=max: would select the largest loss; leave it out, or set callbacks.monitor")
    return mode


def newest_best(folder: Path) -> Path:
    """The best checkpoint of a folder, or the last one before the first validation."""
    return next((path for name in (BEST, LAST) if (path := folder / name).is_file()), folder / BEST)


class Interrupted(Exception):
    """Training was stopped on request, and has been saved."""


@dataclass(frozen=True)
class Limits:
    """The keys that determine the end of training."""

    max_steps: int
    max_time: str | None
    patience: int | None
    min_delta: float
    monitor: str
    mode: str

    @classmethod
    def of(
        cls,
        trainer: TrainerConfig,
        callbacks: CallbacksConfig,
        lower_is_better: Callable[[str], bool] | None = None,
    ) -> Limits:
        """The limits of a configuration; directions as in `direction`."""
        mode = direction(callbacks, lower_is_better)
        stopping = callbacks.patience, callbacks.min_delta, callbacks.monitor, mode
        return cls(trainer.max_steps, trainer.max_time, *stopping)


@dataclass(frozen=True)
class Progress:
    """Progress of the training that a checkpoint belongs to.

    Attributes:
        steps: optimizer steps. seconds: of training, summed over interruptions.
        finished: nothing is left to train or validate under the given limits.
    """

    steps: int
    seconds: float
    finished: bool

    @classmethod
    def of(cls, path: Path, limits: Limits) -> Progress:
        """Reads it from a checkpoint. Training that ended early counts as finished under the same limits only."""
        saved = read(path)
        state, steps = saved["callbacks"][Checkpoints.__qualname__], int(saved["global_step"])
        ended = steps >= limits.max_steps or state.get("ended") == asdict(limits)
        return cls(steps, state.get("seconds", 0.0), bool(state["validated"]) and ended)


def selected(path: Path) -> tuple[Selection | None, dict[str, float]]:
    """How the checkpoint in a file was chosen, and its validation scores by metric (loss, bleu, ...).

    A checkpoint of an earlier version holds only the monitored score, or not even its name (None).
    """
    saved = read(path)
    state = saved["callbacks"][Checkpoints.__qualname__]
    if "monitor" not in state:
        return None, {}
    metric, mode = state["monitor"]
    scores: dict[str, float] = dict(state.get("scores") or {})
    if not scores and path.name == BEST and state["best"] is not None:
        scores = {metric: state["best"]}
    selection = Selection(metric, mode, scores.get(metric), int(saved["global_step"]))
    return selection, {name.removeprefix("val/"): value for name, value in scores.items()}


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` and `best.ckpt` into a folder, and stops a run on a signal (`llm2slm.stops`).

    A signal takes effect at the next optimizer step, or at the next batch of a validation: the validation is aborted,
    and a resumed run repeats it. A second signal stops immediately. The last step of a run is always validated,
    regardless of `trainer.val_every`.

    Args:
        folder: `checkpoints/` of the run directory.
        limits: end of training; monitored value and its direction.
        every: optimizer steps between validations. (Lightning counts batches, and would validate in the middle of an
            accumulation window where an epoch is no multiple of it.)
        rows: hash of the rows on which the monitored value is computed. Values on other rows are not compared.
        unrecorded: hash of the validation rows of a checkpoint that records none.

    Raises:
        UserError: the monitored value is never logged, or not finite (raised before anything is overwritten).
    """

    def __init__(
        self, folder: Path, limits: Limits, every: int, rows: str | None = None, unrecorded: str | None = None
    ) -> None:
        self.folder, self.limits, self.every = folder, limits, every
        self.rows, self.unrecorded = rows, unrecorded
        self.monitor, self.mode = limits.monitor, limits.mode
        self.signals = StopSignals()
        self.best: float | None = None
        self._scores: dict[str, float] = {}
        self._validated = False
        self._due = False  # a validation was aborted
        self._ended = False
        self._repeat: Repeat | None = None
        self._before: BeforeValidation | None = None
        self._saved_to_stop = False
        self._seconds, self._started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training, without interruptions."""
        return self._seconds + time.perf_counter() - self._started

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Installs the signal handlers, as soon as all processes are connected."""
        del trainer, stage
        self.signals.install()
        module: Any = pl_module
        module.stop_requested = lambda: self.signals.requested

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares to repeat an aborted validation."""
        del pl_module
        if self._due:
            self._repeat = Repeat(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Repeats an aborted validation."""
        del pl_module
        if trainer.is_global_zero:
            clear_partial(self.folder)
        if self._repeat is not None:
            self._repeat.run()
            self._repeat = None
        _validate_now(trainer, self._validated)  # Lightning checks this once more on resuming

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the signal handlers."""
        del trainer, pl_module
        self.signals.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores the signal handlers (before Lightning restores those that it had replaced)."""
        del trainer, pl_module, exception
        self.signals.restore()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stops a run after its stop checkpoint: at this point the metrics of the previous step are on disk."""
        del trainer, pl_module, batch, batch_idx
        if self._saved_to_stop:
            raise Interrupted

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends a run at its last step, or at this step if a stop was requested."""
        del outputs, batch, batch_idx
        stepped = not trainer.fit_loop.epoch_loop._should_accumulate()
        due = stepped and trainer.global_step % self.every == 0
        _validate_now(trainer, due)
        if stepped and trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates once more
        if due or trainer.should_stop:
            self._check_losses(pl_module)
        # if a validation is due, it is aborted instead: a checkpoint before it would skip it
        if stepped and not due and not trainer.should_stop:
            self._validated, self._scores = False, {}
            self._save_if_requested(trainer)

    @staticmethod
    def _check_losses(module: Any) -> None:
        """Ends a diverged run before it writes a checkpoint."""
        module.losses.check()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records the state that the validation will change."""
        del pl_module
        if not trainer.sanity_checking:
            self._before, self.signals.validating = BeforeValidation.of(trainer), True
            self.abort_if_requested(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Aborts the validation before this batch if a stop was requested."""
        del pl_module, batch, dataloader_idx
        if self._before is not None and batch_idx < self._before.batches:
            self.abort_if_requested(trainer)

    def abort_if_requested(self, trainer: Trainer) -> None:
        """Aborts a validation, and the run, if a stop was requested. Every process must call it equally often.

        Raises:
            Interrupted: a stop was requested; `last.ckpt` has the state before the validation.
        """
        if self._before is None or not self.signals.any_requested(trainer):
            return
        self._before.restore(trainer)
        self._validated, self._due, self._scores = False, True, {}
        trainer.save_checkpoint(self.folder / LAST)
        raise Interrupted

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves. Lightning calls checkpoint callbacks last, so the file has the state of all others."""
        del pl_module
        if trainer.sanity_checking:
            return
        self._before, self.signals.validating = None, False
        value = self._monitored(trainer)
        self._validated, self._due = True, False
        logged = trainer.callback_metrics.items()
        self._scores = {name: float(score) for name, score in logged if name.startswith("val/")}
        self._ended = trainer.should_stop or (self._repeat is not None and self._repeat.stopping)
        if self.best is None or (value < self.best if self.mode == "min" else value > self.best):
            self.best = value
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)
        self._save_if_requested(trainer, saved=True)

    def state_dict(self) -> dict[str, Any]:
        """The best value with its monitor and rows; the scores of this step's validation; whether the step has been
        validated, or its validation is due; the limits under which training ended; seconds of training."""
        return {
            "best": self.best,
            "monitor": [self.monitor, self.mode],
            "rows": self.rows,
            "scores": self._scores,
            "validated": self._validated,
            "due": self._due,
            "ended": asdict(self.limits) if self._ended else None,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state. The best value is dropped if it is of another monitor, of other rows (reported on one
        line), or if the best checkpoint is missing, as after damage."""
        same = state_dict.get("monitor", [self.monitor, self.mode]) == [self.monitor, self.mode]
        if same and state_dict.get("rows", self.unrecorded) != self.rows:
            same = False
            report(
                f"{self.monitor} was computed on other validation rows before: the best checkpoint is chosen among "
                "validations to come, and the curve joins values of both"
            )
        self.best = state_dict["best"] if same and (self.folder / BEST).is_file() else None
        self._validated, self._due = state_dict["validated"], state_dict.get("due", False)
        self._seconds, self._scores = state_dict.get("seconds", 0.0), dict(state_dict.get("scores") or {})

    def _monitored(self, trainer: Trainer) -> float:
        logged = trainer.callback_metrics
        if self.monitor not in logged:
            known = ", ".join(sorted(name for name in logged if name.startswith("val/")))
            raise UserError(f"callbacks.monitor={self.monitor}: never logged by this run; it logs {known}")
        value = float(logged[self.monitor])
        if not torch.isfinite(torch.tensor(value)):
            raise UserError(diverged(self.monitor, value, trainer.global_step))
        return value

    def _save_if_requested(self, trainer: Trainer, saved: bool = False) -> None:
        """Saves in order to stop, in all processes together."""
        module: Any = trainer.lightning_module
        if trainer.world_size > 1 and not saved and not module.any_stop_requested():
            return
        if self.signals.any_requested(trainer):
            if not saved:
                self._check_losses(module)
                trainer.save_checkpoint(self.folder / LAST)
            self._saved_to_stop = True


def _validate_now(trainer: Trainer, due: bool) -> None:
    """Makes Lightning validate after this batch or not: it does if `val_check_batch` divides the batches so far."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    trainer.val_check_batch = batches if due else batches + 1
