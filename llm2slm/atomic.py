"""Files that are written whole: under a hidden name in their own folder, flushed to the disk, then renamed.

A process that is killed at any moment leaves the old file or the new one, never a part of it. Nothing passes through
the temporary directory: it is often on another file system, where a rename becomes a copy, and it may be full.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

STAGE = ".part"
"""Name of the hidden subfolder in which `filling` collects files; the suffix of hidden files."""


def hidden(path: Path) -> Path:
    """The name that a file has until it is whole."""
    return path.with_name(f".{path.name}{STAGE}")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that gets the name `path` when the block ends without an error; otherwise it is removed.

    Raises:
        OSError: it cannot be written; `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = hidden(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_names(path.parent)


def write_text(path: Path, text: str, *, errors: str = "strict") -> Path:
    """Writes a UTF-8 text file whole, with line ends as they are, and makes its folder if there is none.

    Args:
        errors: as of `str.encode`.
    """
    content = text.encode("utf-8", errors)
    with replacing(path) as file:
        file.write(content)
    return path


@contextmanager
def filling(folder: Path, last: str) -> Iterator[Path]:
    """An empty folder; the files put into it move to the same places in `folder` when the block ends without an error.

    Each file is replaced whole. Until the first one is moved, `folder` holds what it held before.

    Args:
        last: name of the file without which the others are not used; it is moved last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stage = folder / STAGE  # inside, since `folder` may be the root of a file system
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        files = sorted((path for path in stage.rglob("*") if path.is_file()), key=lambda path: path.name == last)
        for path in files:
            _sync(path)
        for path in files:
            place = folder / path.relative_to(stage)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
        sync_names(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def sync_names(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the file system can do that."""
    with suppress(OSError):  # some network file systems refuse it for folders
        _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
