"""Folders that a verb is to write into: checked before anything is read, loaded or computed."""

from __future__ import annotations

import os
from pathlib import Path

from llm2slm.types import UserError


def check_folder(key: str, folder: Path, *, writes: bool = True) -> None:
    """Refuses a folder that cannot be written to; makes nothing.

    Args:
        key: what the user sets it by, as "out".
        writes: whether the verb is certain to write into it.

    Raises:
        UserError: it is a file, lies below one, may not be looked at, or may not be written to.
    """
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be used ({error.strerror}); give another folder") from None
    if not there.is_dir():
        raise UserError(f"{key}={folder}: {there} is a file; give a folder")
    if writes and not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder}: no permission to write into {there}; give another folder")


def make_folder(key: str, folder: Path) -> None:
    """Makes a folder, unless it is there.

    Args:
        key: what the user sets it by, as "hydra.run.dir".

    Raises:
        UserError: it cannot be made: it lies below a file, on a read-only file system, or where nobody may write.
    """
    check_folder(key, folder, writes=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be made ({error.strerror}); give another folder") from None
