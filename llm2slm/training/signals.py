"""SIGINT (Ctrl-C) and SIGTERM while a model is trained: the first one asks the run to stop, the second one stops it.

The run asks for it where it can be resumed exactly: after an optimizer step, and within a validation before each batch.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from lightning import Trainer


class StopSignals:
    """Whether this run was told to stop.

    Attributes:
        requested: a signal has come, to this process or (after `agreed`) to another one.
        validating: a validation is running; only the message depends on it.
    """

    def __init__(self) -> None:
        self.requested = False
        self.validating = False
        self._handlers: dict[int, Any] = {}

    def take_over(self) -> None:
        """Handles both signals here. (Lightning would stop in the middle of an accumulation window.)"""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def give_back(self) -> None:
        """Restores the handlers from before `take_over`."""
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)

    def agreed(self, trainer: Trainer) -> bool:
        """Whether any process was told to stop; the same in all of them, which must all call it."""
        if trainer.world_size > 1:
            self.requested = trainer.strategy.reduce_boolean_decision(self.requested, all=False)
        return self.requested

    def _on_signal(self, number: int, frame: Any) -> None:
        del number, frame
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        when = "; a resumed run repeats this validation" if self.validating else " after this step"
        print(f"\nllm2slm: stopping{when}; once more to stop at once, without saving", file=sys.stderr)
