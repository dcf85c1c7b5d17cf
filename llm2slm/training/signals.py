"""SIGINT (Ctrl-C) and SIGTERM during training: the first signal requests a stop, the second one stops immediately.

A requested stop takes effect where training resumes exactly: after an optimizer step or before a validation batch.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from lightning import Trainer


class StopSignals:
    """Stop requests of this run.

    Attributes:
        requested: this process or (after `any_requested`) another one has received a signal.
        validating: a validation is running; affects the message only.
    """

    def __init__(self) -> None:
        self.requested = False
        self.validating = False
        self._handlers: dict[int, Any] = {}

    def install(self) -> None:
        """Installs the handlers. (Lightning's would stop in the middle of an accumulation window.)"""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def restore(self) -> None:
        """Restores the previous handlers."""
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)

    def any_requested(self, trainer: Trainer) -> bool:
        """Whether any process received a signal. Collective: every process must call it."""
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
