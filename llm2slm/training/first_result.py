"""Results of the first process for the others, where a launcher has started all of them at once.

Lightning connects the processes when the training starts. Before that, the first process chooses the run directory and
trains tokenizers, which the others read. They wait for it by a store of torch: that of torchrun, or one in the first
process at the address where Lightning connects the processes later. Unlike a file in the run directory, a store
contains nothing of an earlier attempt, and its connections end with the process that has it.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from torch import distributed

from llm2slm.ranks import first_process
from llm2slm.types import UserError

POLL = 0.2
"""Seconds between two requests to the store. A waiting process handles signals in between."""
START = 300.0
"""Seconds within which the store must exist."""
GRACE = 10.0
"""Seconds before the others end after a failure of the first process. A launcher ends all processes as soon as one has
failed; the first one must have reported its error by then."""
DONE, FAILED = "done:", "failed"
_CALLS: Counter[str] = Counter()
_CONNECTED: list[Any] = []
"""The store, which must exist as long as this process: the others notice the end of the first one by it."""


def from_first(name: str, work: Callable[[], str]) -> str:
    """The result of a function that the first process calls; the others wait for it.

    Every process must call it, in the same order, and only where `ranks.started_at_once`.

    Args:
        name: what the first process makes, for messages.

    Raises:
        UserError: the first process was not found, or has ended.
        SystemExit: in the others, if the function raised an exception in the first process, which reports it.
    """
    _CALLS[name] += 1
    key, store = f"{name}/{_CALLS[name]}", _store()
    if not first_process():
        return _received(store, key, name)
    try:
        value = work()
    except BaseException:
        with suppress(RuntimeError):
            store.set(key, FAILED)
        raise
    store.set(key, DONE + value)
    return value


def _received(store: Any, key: str, name: str) -> str:
    """Waits for a result of the first process."""
    try:
        while not store.check([key]):
            time.sleep(POLL)
        value = str(store.get(key), "utf-8")
    except RuntimeError:
        raise UserError(f"{name}: the first process has ended before it was complete; see its messages") from None
    if value == FAILED:
        time.sleep(GRACE)
        sys.exit(2)
    return value.removeprefix(DONE)


def _store() -> Any:
    """The store of the first process or of torchrun."""
    if not _CONNECTED:
        slurm = "MASTER_PORT" not in os.environ or "MASTER_ADDR" not in os.environ
        environment = SLURMEnvironment() if slurm else None
        host = environment.main_address if environment else os.environ["MASTER_ADDR"]
        port = environment.main_port if environment else int(os.environ["MASTER_PORT"])
        hosts = first_process() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not hosts:
            _wait_for(host, port)
        of_torch: Any = distributed  # its stubs do not export the stores
        patience = timedelta(seconds=START)
        try:  # several tenants: torch adds the store by which Lightning connects the processes
            store = of_torch.TCPStore(host, port, None, hosts, patience, wait_for_workers=False, multi_tenant=True)
        except distributed.DistNetworkError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the processes cannot be connected at {host}:{port} ({reason}); set MASTER_PORT") from None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun starts failed processes again
        _CONNECTED.append(of_torch.PrefixStore(f"llm2slm/{attempt}", store))
    return _CONNECTED[0]


def _wait_for(host: str, port: int) -> None:
    """Waits until the store accepts connections. torch would print a warning at each attempt that fails.

    Raises:
        UserError: it does not within `START` seconds.
    """
    end = time.monotonic() + START
    while True:
        try:
            socket.create_connection((host, port), timeout=POLL * 10).close()
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"the first process does not answer at {host}:{port} ({error.strerror or error}); start all "
                    "processes by one command, or set MASTER_ADDR and MASTER_PORT"
                ) from None
            time.sleep(POLL)
        else:
            return
