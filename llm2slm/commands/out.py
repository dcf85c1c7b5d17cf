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
        UserError: it is a file, lies below one, or may not be written to.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{key}={folder}: {there} is a file; give a folder")
    if writes and not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder}: no permission to write into {there}; give another folder")
