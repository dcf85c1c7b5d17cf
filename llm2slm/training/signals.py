"""Signals during training (`llm2slm.stops`): the first one requests a stop, the second one stops immediately.

A requested stop takes effect where training resumes exactly: after an optimizer step or before a validation batch.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Trainer

from llm2slm.stops import Handlers, Stopped, ending, install, restore


def without_signals(trainer: Trainer) -> None:
    """Turns Lightning's signal handlers off: with several processes that for SIGTERM waits for a broadcast in which the
    other processes take no part."""
    trainer._signal_connector.register_signal_handlers = lambda: None


@contextmanager
def kept_ctrl_c() -> Iterator[None]:
    """Restores the handler of Ctrl-C after the block: after a KeyboardInterrupt Lightning ignores further ones."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            restore({int(signal.SIGINT): before})


class StopSignals:
    """Stop requests of this run.

    Attributes:
        number: of the signal that this process or (after `any_requested`) another one has received; 0: none.
        validating: a validation is running; affects the message only.
    """

    def __init__(self) -> None:
        self.number = 0
        self.validating = False
        self._handlers: Handlers = {}

    @property
    def requested(self) -> bool:
        """Whether a stop is requested."""
        return self.number != 0

    def install(self) -> None:
        """Installs the handlers, once. (Lightning's would stop in the middle of an accumulation window.)"""
        if not self._handlers:
            self._handlers = install(ending(), self._on_signal)

    def restore(self) -> None:
        """Restores the previous handlers."""
        handlers, self._handlers = self._handlers, {}
        restore(handlers)

    def any_requested(self, trainer: Trainer) -> bool:
        """Whether any process received a signal. Collective: every process must call it."""
        if trainer.world_size > 1:
            number = torch.tensor(self.number, device=trainer.strategy.root_device)
            self.number = int(trainer.strategy.reduce(number, reduce_op="max"))
        return self.requested

    def stopped(self) -> Stopped:
        """The exception that ends the command."""
        return Stopped(self.number or signal.SIGINT)

    def _on_signal(self, number: int, frame: Any) -> None:
        del frame
        if self.requested:
            raise Stopped(number)
        self.number = number
        when = "; a resumed run repeats this validation" if self.validating else " after this step"
        print(f"\nllm2slm: stopping{when}; once more to stop at once, without saving", file=sys.stderr)
