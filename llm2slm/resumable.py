"""A file of lines that a long job writes batch by batch and that an interrupted job resumes.

Until the job is finished, the lines are in FILE.part, after a header line with the job's settings. A file without
`.part` is therefore complete, and lines of jobs with different settings are never mixed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from llm2slm.atomic import WriteLock, replacing, writing
from llm2slm.types import UserError

FOREIGN = "not a file of an unfinished job; remove it, or write to another file"


class ResumableLines:
    """Lines of a file, in order.

    Args:
        path: the file; written atomically by `finish`.
        settings: plain values that determine the lines.
        batch: a job resumes at multiples of this number of lines.
        total: number of lines of the whole file; a complete job writes none again. None: unknown.

    Attributes:
        partial: the file that holds the lines until `finish`. done: number of lines in it.

    Raises:
        UserError: the partial file belongs to a job with other settings (the message lists them), or another process
            is writing it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], batch: int = 1, total: int | None = None) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".part")
        self._lock = WriteLock(self.partial)
        with writing(self.partial):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            try:
                self._file = self.partial.open("a+b", buffering=0)  # unbuffered: close() must not repeat a failed write
            except OSError:
                self._lock.release()
                raise
        self._file.seek(0)
        header = json.dumps({"settings": dict(settings)}, ensure_ascii=False).encode() + b"\n"
        content = self._file.read()
        found = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]  # without an incomplete last line
        wrong = _difference(found[0], settings) if found and found[0] + b"\n" != header else None
        if wrong or (not found and not header.startswith(content)):
            self.close()
            raise UserError(f"{self.partial}: {wrong or FOREIGN}")
        complete = max(len(found) - 1, 0)
        self.done = complete if complete == total else complete // batch * batch
        self._head = len(header)
        try:
            self._cut(content, header, found)
        except BaseException:
            self.close()
            raise

    def _cut(self, content: bytes, header: bytes, found: list[bytes]) -> None:
        """Leaves the header and the lines of complete batches in the partial file."""
        kept = header + b"".join(line + b"\n" for line in found[1 : self.done + 1])
        # kept is a prefix of the content, or (incomplete header) the content is a prefix of kept: only append or cut
        if len(content) > len(kept):
            self._file.truncate(len(kept))
        elif content != kept:
            self._write(kept[len(content) :])

    def _write(self, content: bytes) -> None:
        with writing(self.partial):
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())

    def append(self, lines: Iterable[str]) -> None:
        """Adds lines, without their line ends, and flushes them to disk."""
        content = [line.encode() + b"\n" for line in lines]
        self._write(b"".join(content))
        self.done += len(content)

    def lines(self) -> list[str]:
        """The lines so far."""
        self._file.seek(self._head)
        return self._file.read().decode().split("\n")[:-1]

    def finish(self, key: Callable[[str], Any] | None = None) -> None:
        """Writes the finished file atomically and removes the partial one.

        Args:
            key: sort key of a line. None: order of appending.
        """
        lines = self.lines() if key is None else sorted(self.lines(), key=key)
        self.put(self.path, "".join(f"{line}\n" for line in lines).encode())
        self.discard()

    def put(self, path: Path, content: bytes) -> None:
        """Writes a finished file atomically. The partial file marks the job as unfinished until `discard`."""
        if path.is_file() and path.read_bytes() == content:
            return
        with replacing(path) as file:
            file.write(content)

    def discard(self) -> None:
        """Removes the partial file: the job is finished."""
        self._file.close()  # Windows cannot remove an open file
        self.partial.unlink()
        self.close()

    def close(self) -> None:
        """Closes the partial file and releases its lock, so that another process can resume the job."""
        self._file.close()
        self._lock.release()


def other_settings(known: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The settings in which two jobs differ, with both values; empty if they are equal."""
    changed = [key for key in {**known, **settings} if known.get(key) != settings.get(key)]
    return ", ".join(f"{key} {known.get(key)!r}, now {settings.get(key)!r}" for key in changed)


def _difference(header: bytes, settings: Mapping[str, Any]) -> str:
    """Why a partial file does not belong to this job."""
    try:
        changed = other_settings(json.loads(header)["settings"], settings)
    except (ValueError, TypeError, KeyError):
        return FOREIGN
    return f"was begun with other settings ({changed}); finish it with those settings, or remove it"
