"""Progress of a training: a bar on a terminal; plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from llm2slm.progress import Pace, print_line


def training_progress() -> ProgressBar:
    """The callback that shows the progress of a training on the error stream."""
    return TokenBar(refresh_rate=1) if sys.stderr.isatty() else StepLines()


class TokenBar(TQDMProgressBar):
    """A progress bar over the optimizer steps of the whole run (Lightning's restarts at each epoch).

    Rate and time left are computed from the steps of this process; tokens/s comes from the module.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Creates one bar, which starts at the step of a resumed run."""
        self.train_progress_bar = self.init_train_tqdm()
        self.train_progress_bar.total = pl_module.max_steps  # the Trainer's value may differ until training starts
        self.train_progress_bar.n = self.train_progress_bar.initial = trainer.global_step

    def on_train_epoch_start(self, *_: Any) -> None:
        """Shows no epochs."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advances per optimizer step, not per micro-batch of an accumulated step."""
        bar, step = self.train_progress_bar, trainer.global_step
        if step > bar.n and (step % self.refresh_rate == 0 or step == trainer.max_steps):
            bar.update(step - bar.n)
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bars before anything else is printed."""
        del trainer, pl_module, exception
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Metrics shown after the bar."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class StepLines(ProgressBar):
    """Plain lines: at the pace of `progress.Pace`, after each validation, and at the end of training."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._pace, self._started, self._first, self._last = Pace(), 0.0, 0, ""

    def disable(self) -> None:
        """Prints nothing: in all processes but the first one."""
        self._shown = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        del pl_module
        self._pace, self._started, self._first = Pace(), time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Prints a line if one is due."""
        if trainer.global_step > self._first and self._pace.due():
            self._print(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the scores of the validation."""
        if not trainer.sanity_checking:
            self._print(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the last state."""
        self._print(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Metrics of a line."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _print(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, total = trainer.global_step, pl_module.max_steps
        values = (f"{name} {float(value):.4g}" for name, value in self.get_metrics(trainer, pl_module).items())
        text = ", ".join((f"step {step:,} of {total:,}", *values))
        if not self._shown or text == self._last:
            return
        self._last = text
        done = step - self._first
        left = (time.monotonic() - self._started) / done * (total - step) if done > 0 and step < total else 0
        print_line(f"{text}{f', {clock(left)} left' if left else ''}")


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
