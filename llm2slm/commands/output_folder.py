"""Output folders of verbs, checked before anything is read, loaded or computed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm2slm.ranks import first_process
from llm2slm.types import UserError


def check_folder(key: str, folder: Path, *, writes: bool = True) -> None:
    """Refuses a folder that cannot be written to; creates nothing.

    Args:
        key: its configuration key, as "out".
        writes: whether to check the permission to write.

    Raises:
        UserError: it is a file, is below a file, or lacks permissions to read or write.
    """
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be used ({error.strerror}); give another folder") from None
    if not existing.is_dir():
        raise UserError(f"{key}={folder}: {existing} is a file; give a folder")
    if writes and not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder}: no permission to write into {existing}; give another folder")


@contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Removes a folder that the block creates if the block fails in the first process; an earlier folder stays."""
    if not first_process():  # it must not look for the folder: a network file system remembers that there is none
        yield
        return
    existed = folder.exists()
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def make_folder(key: str, folder: Path) -> None:
    """Creates a folder if missing.

    Args:
        key: its configuration key, as "hydra.run.dir".

    Raises:
        UserError: it cannot be created: below a file, on a read-only file system, or without permission.
    """
    check_folder(key, folder, writes=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be created ({error.strerror}); give another folder") from None
