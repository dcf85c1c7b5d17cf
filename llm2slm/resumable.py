"""A file of lines that a long job writes batch by batch, and goes on with after it was ended at any moment.

Until all is there the lines stand in FILE.part, behind one that records the job's settings; so a file under its own
name is whole, and one job's lines are never mixed with another's.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from llm2slm.atomic import replacing, writing
from llm2slm.types import UserError

FOREIGN = "is no file of an unfinished job; remove it, or write to another file"


class ResumableLines:
    """Lines for a file, in order.

    Args:
        path: the file; written in one step by `finish`.
        settings: plain values that decide what the lines say.
        batch: lines are taken up again at multiples of so many.
        total: lines of the whole file; where all are there, none is written again. None: not known.

    Attributes:
        partial: where they stand until then. done: how many are there.

    Raises:
        UserError: the partial file is of a job with other settings (names them), or another process writes it now.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], batch: int = 1, total: int | None = None) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".part")
        with writing(self.partial):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._opened()
        header = json.dumps({"settings": dict(settings)}, ensure_ascii=False).encode() + b"\n"
        content = self._file.read()
        found = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]  # the last line may be half of one
        wrong = _difference(found[0], settings) if found and found[0] + b"\n" != header else None
        if wrong or (not found and not header.startswith(content)):
            self.close()
            raise UserError(f"{self.partial}: {wrong or FOREIGN}")
        there = max(len(found) - 1, 0)
        self.done = there if there == total else there // batch * batch
        self._head = len(header)
        kept = header + b"".join(line + b"\n" for line in found[1 : self.done + 1])
        # kept is the beginning of the content, or (of a header cut short) the other way round: what is there stays
        if len(content) > len(kept):
            self._file.truncate(len(kept))
        elif content != kept:
            self._write(kept[len(content) :])

    def _opened(self) -> FileIO:
        """The partial file, for this process alone until it is closed or the process ends."""
        while True:
            file = self.partial.open("a+b", buffering=0)  # else closing would try a failed line once more
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.partial}: another process is writing it; wait, or write to another file"
                ) from None
            if self.partial.is_file() and self.partial.stat().st_ino == os.fstat(file.fileno()).st_ino:
                file.seek(0)
                return file
            file.close()  # whoever had it has finished in between, and the name is free or another's

    def _write(self, content: bytes) -> None:
        with writing(self.partial):
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())

    def append(self, lines: Iterable[str]) -> None:
        """Adds lines (none of which holds a line end), and sees to it that they are on the disk."""
        content = [line.encode() + b"\n" for line in lines]
        self._write(b"".join(content))
        self.done += len(content)

    def lines(self) -> list[str]:
        """What is there."""
        self._file.seek(self._head)
        return self._file.read().decode().split("\n")[:-1]

    def finish(self, key: Callable[[str], Any] | None = None) -> None:
        """Gives the lines their file, in one step.

        Args:
            key: of a line; they are sorted by it. None: as they were added.
        """
        lines = self.lines() if key is None else sorted(self.lines(), key=key)
        self.put(self.path, "".join(f"{line}\n" for line in lines).encode())
        self.discard()

    def put(self, path: Path, content: bytes) -> None:
        """Writes a finished file in one step. The partial file stays until `discard`: it shows that not all is done."""
        if path.is_file() and path.read_bytes() == content:
            return
        with replacing(path) as file:
            file.write(content)

    def discard(self) -> None:
        """Removes the partial file: all that was to be made of it is there."""
        self.partial.unlink()
        self.close()

    def close(self) -> None:
        """Lets others go on with what is there."""
        self._file.close()


def other_settings(known: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The settings in which two jobs differ, in words; empty where they do not."""
    changed = [key for key in {**known, **settings} if known.get(key) != settings.get(key)]
    return ", ".join(f"{key} {known.get(key)!r}, now {settings.get(key)!r}" for key in changed)


def _difference(header: bytes, settings: Mapping[str, Any]) -> str:
    """Why a partial file is none of this job's."""
    try:
        said = other_settings(json.loads(header)["settings"], settings)
    except (ValueError, TypeError, KeyError):
        return FOREIGN
    return f"was begun with other settings ({said}); finish it with its own settings, or remove it"
