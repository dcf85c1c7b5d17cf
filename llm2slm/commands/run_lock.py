"""The lock of a run directory: two trainings in one directory would mix their checkpoints and curves."""

from __future__ import annotations

import sys
from pathlib import Path

from llm2slm.atomic import NotWritten, WriteLock
from llm2slm.ranks import first_process
from llm2slm.training.checkpoint_io import CHECKPOINTS
from llm2slm.types import reason_of


class RunLock:
    """Excludes other trainings from a run directory until the block ends. Only the first process of a training locks.

        with RunLock(folder) as lock:
            lock.acquire()

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: WriteLock | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def acquire(self, *, unless_read_only: bool = False) -> None:
        """Locks the directory; does nothing if this object has locked it.

        Args:
            unless_read_only: do not fail in a directory that cannot be written; a later call does.

        Raises:
            UserError: another training uses the directory.
            NotWritten: the directory cannot be written.
        """
        if self._lock is not None or not first_process():
            return
        lock = WriteLock(self.folder / CHECKPOINTS, "train into another folder by hydra.run.dir=DIR")
        try:
            lock.acquire()
        except NotWritten:
            if unless_read_only:
                return
            raise
        except (OSError, NotImplementedError) as error:  # a file system without locks
            print(
                f"llm2slm: warning: {self.folder} cannot be locked ({reason_of(error)}): do not start a second "
                "training in it",
                file=sys.stderr,
            )
            return
        self._lock = lock
