"""Atomic writes and write locks.

A file is written under a hidden name in the same folder, flushed to disk, and renamed. A process that is killed at any
time leaves the old file or the new one, never a part of it. The temporary directory is not used: it may be on another
file system, where a rename is a copy, and it may be full.

Errors of writing (full disk, no permission) are raised as `NotWritten`, independent of the library that was writing.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from llm2slm.types import UserError

STAGE = ".part"
"""Name of the hidden subfolder that `filling` uses, and suffix of hidden files."""


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
REFUSED = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""Error numbers that only writing causes, for errors without a file name."""

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""End of the message of an operating system error in libraries written in Rust (safetensors, tokenizers)."""


class NotWritten(UserError):
    """A file or folder cannot be written.

    Attributes:
        path: the file or folder. number: the error number of the operating system.
    """

    def __init__(self, path: Path, number: int) -> None:
        advice = "free space on this disk" if number in FULL else "write to another folder"
        super().__init__(f"{path}: cannot be written ({os.strerror(number)}); {advice}")
        self.path, self.number = path, number


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises errors of writing within the block as `NotWritten` of `path`; other errors are unchanged.

    Args:
        path: the file or folder that the block writes.

    Raises:
        NotWritten: full disk, no permission, read-only file system, or a file in place of a folder.
    """
    try:
        yield
    except NotWritten as error:
        raise (NotWritten(path, error.number) if STAGE in error.path.parts else error) from error.__cause__
    except Exception as error:
        number = _refusal(error, path)
        if number is None:
            raise
        raise NotWritten(path, number) from error


def _refusal(error: BaseException, path: Path) -> int | None:
    """The error number of an error of writing `path`; None for other errors."""
    if (
        isinstance(error, RuntimeError) and error.__context__ is not None
    ):  # torch.save hides the operating system's error
        error = error.__context__
    if not isinstance(error, OSError):
        found = OS_ERROR.search(str(error))
        return int(found[1]) if found and int(found[1]) in REFUSED else None
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return error.errno if error.errno in REFUSED else None
    named = Path(os.fsdecode(error.filename))
    if named in (path, hidden(path), *path.parents) or (path in named.parents and error.errno in REFUSED):
        return error.errno
    return None


def hidden(path: Path) -> Path:
    """The name of a file until it is complete."""
    return path.with_name(f".{path.name}{STAGE}")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that is renamed to `path` when the block ends without an error; otherwise it is removed.

    Raises:
        NotWritten: it cannot be written; `path` is unchanged.
    """
    partial = hidden(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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
    """Writes a UTF-8 text file atomically, with unchanged line ends; creates its folder if necessary.

    Args:
        errors: as of `str.encode`.

    Raises:
        NotWritten: it cannot be written; `path` is unchanged.
    """
    content = text.encode("utf-8", errors)
    with replacing(path) as file:
        file.write(content)
    return path


@contextmanager
def filling(folder: Path, last: str) -> Iterator[Path]:
    """An empty folder; its files are moved to the same relative paths in `folder` if the block ends without an error.

    Each file is replaced atomically. Until the first one is moved, `folder` is unchanged.

    Args:
        last: name of the file that is moved last: without it, the others are not used.

    Raises:
        NotWritten: a file cannot be written.
    """
    stage = folder / STAGE  # a subfolder, since `folder` may be the root of a file system
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        try:
            yield stage
            files = sorted((path for path in stage.rglob("*") if path.is_file()), key=lambda path: path.name == last)
            for path in files:
                to_disk(path)
            for path in files:
                target = folder / path.relative_to(stage)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
            sync_names(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


class WriteLock:
    """An advisory lock that lets one process write `path`: a hidden lock file next to it, by `filelock`.

    The lock ends with `release` or with the process. Only the lock file of a killed process remains; it locks nothing.

    Args:
        path: the file to write; its folder exists when `acquire` is called.
        advice: what the user can do instead of waiting, for the message.
    """

    def __init__(self, path: Path, advice: str = "write to another file") -> None:
        self.path, self.advice = path, advice
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), blocking=False)

    def acquire(self) -> None:
        """Takes the lock without waiting.

        Raises:
            UserError: another process, or another job of this process, holds it.
            NotWritten: the lock file cannot be created.
            OSError: the file system has no locks.
        """
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(f"{self.path}: another process is writing it; wait, or {self.advice}") from None
        except OSError as error:
            if error.errno in REFUSED:
                raise NotWritten(self.path, error.errno) from error
            raise

    def release(self) -> None:
        """Releases the lock, if it is held, and removes the lock file."""
        if self._lock.is_locked:
            with suppress(OSError):  # Windows cannot remove an open file; there, filelock removes it on release
                os.unlink(self._lock.lock_file)  # noqa: PTH108  a str; before the release: later it may be another's
            self._lock.release()


def sync_names(folder: Path) -> None:
    """Flushes the names in a folder to disk, if the file system supports it."""
    with suppress(OSError):  # some network file systems do not support it for folders
        to_disk(folder)


def to_disk(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk.

    Raises:
        OSError: the file system does not support it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
