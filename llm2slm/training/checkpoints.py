"""What a training leaves on disk while it runs: it can be stopped at any moment and go on as if it had not been.

`last.ckpt` is written at every validation, at the end, and when the run is told to stop; `best.ckpt` when the monitored
value improves. (Lightning's own callback writes `last` only together with `best`, and knows it by an absolute path.)
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from llm2slm.config import CallbacksConfig
from llm2slm.runs import LOWER_IS_BETTER
from llm2slm.training.checkpoint_io import BEST, LAST, clear_partial
from llm2slm.types import UserError


def better(cfg: CallbacksConfig) -> str:
    """Which way the monitored value gets better: min or max.

    Raises:
        UserError: the configuration says something else.
    """
    mode = cfg.mode or ("min" if cfg.monitor.rpartition("/")[2] in LOWER_IS_BETTER else "max")
    if mode not in ("min", "max"):
        raise UserError(f"callbacks.mode={mode}: expected min or max")
    return mode


class Interrupted(Exception):
    """The run was told to stop, and has been saved."""


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` and `best.ckpt` into a folder, and ends a run that is told to stop.

    SIGINT (Ctrl-C) and SIGTERM are answered at the next optimizer step: between two of them nothing is half done. A
    second signal stops at once. The last step of a run is always validated, whatever `trainer.val_every`.

    Args:
        folder: `checkpoints/` of the run directory.
        cfg: monitored value, and which way is better.
        every: optimizer steps between validations. (Lightning counts batches, and would validate in the middle of an
            accumulation window where an epoch is no multiple of it.)

    Raises:
        UserError: the monitored value is never logged; or it is not finite (before anything is overwritten).
    """

    def __init__(self, folder: Path, cfg: CallbacksConfig, every: int) -> None:
        self.folder, self.monitor, self.mode, self.every = folder, cfg.monitor, better(cfg), every
        self.best: float | None = None
        self.stop_requested = False
        self._validated = False
        self._saved_to_stop = False
        self._handlers: dict[int, Any] = {}

    @property
    def newest_best(self) -> Path:
        """The best checkpoint of this folder, or the last where none was monitored yet."""
        return next((path for name in (BEST, LAST) if (path := self.folder / name).is_file()), self.folder / BEST)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals over (from Lightning, which would stop in the middle of an accumulation window)."""
        del pl_module
        if trainer.is_global_zero:
            clear_partial(self.folder)
        _validate_now(trainer, self._validated)  # Lightning asks once more when it resumes, to know where it was
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the signals back."""
        del trainer, pl_module
        self._restore_signals()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signals back (before Lightning does so with those that it had taken)."""
        del trainer, pl_module, exception
        self._restore_signals()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stops a run that was saved for it: here the metrics of the step before are on disk."""
        del trainer, pl_module, batch, batch_idx
        if self._saved_to_stop:
            raise Interrupted

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends a run at its last step, or at this one if it was told to stop."""
        del pl_module, outputs, batch, batch_idx
        stepped = not trainer.fit_loop.epoch_loop._should_accumulate()
        due = stepped and trainer.global_step % self.every == 0
        _validate_now(trainer, due)
        if stepped and trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates once more
        # where a validation comes, it is saved and stopped after it: a resumed run would leave it out
        if stepped and not due and not trainer.should_stop:
            self._validated = False
            self._save_if_told(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves; callbacks of this kind come last, so what the others have noted is in the file."""
        del pl_module
        if trainer.sanity_checking:
            return
        value = self._monitored(trainer)
        self._validated = True
        if self.best is None or (value < self.best if self.mode == "min" else value > self.best):
            self.best = value
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)
        self._save_if_told(trainer, saved=True)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and whether this step has been validated."""
        return {"best": self.best, "validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets both; without a best checkpoint, as when it was damaged, there is no best value to compare with."""
        self._validated = state_dict["validated"]
        self.best = state_dict["best"] if (self.folder / BEST).is_file() else None

    def _monitored(self, trainer: Trainer) -> float:
        logged = trainer.callback_metrics
        if self.monitor not in logged:
            known = ", ".join(sorted(name for name in logged if name.startswith("val/")))
            raise UserError(f"callbacks.monitor={self.monitor}: never logged by this run; it logs {known}")
        value = float(logged[self.monitor])
        if not torch.isfinite(torch.tensor(value)):
            raise UserError(diverged(self.monitor, value, trainer.global_step))
        return value

    def _save_if_told(self, trainer: Trainer, saved: bool = False) -> None:
        """Saves to stop, all processes together (they ask each other only now and then: it costs a round trip)."""
        if trainer.world_size > 1:
            if not saved and trainer.global_step % trainer.log_every_n_steps:
                return
            self.stop_requested = trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False)
        if self.stop_requested:
            if not saved:
                trainer.save_checkpoint(self.folder / LAST)
            self._saved_to_stop = True

    def _restore_signals(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        del number, frame
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        print("\nllm2slm: stopping after this step; once more to stop at once, without saving", file=sys.stderr)


def _validate_now(trainer: Trainer, due: bool) -> None:
    """Makes Lightning validate after this batch, or not: it does where `val_check_batch` divides the batches so far."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    trainer.val_check_batch = batches if due else batches + 1


def diverged(name: str, value: float, step: int) -> str:
    """What to tell of a value that is not finite."""
    return (
        f"training diverged: {name} is {value} at step {step}; lower optim.lr, warm up longer (optim.warmup_steps), "
        "clip (trainer.gradient_clip_val), and use bf16 rather than fp16 (T5 overflows in it)"
    )
