"""A file of lines that a long job writes batch by batch, and goes on with after it was ended at any moment.

Until all is there the lines stand in FILE.part, behind one that records the job's settings; so a file under its own
name is whole, and one job's lines are never mixed with another's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from llm2slm.types import UserError


class ResumableLines:
    """Lines for a file, in order.

    Args:
        path: the file; written in one step by `finish`.
        settings: plain values that decide what the lines say.
        batch: lines are taken up again at multiples of so many.

    Attributes:
        partial: where they stand until then. done: how many are there.

    Raises:
        UserError: the partial file is of a job with other settings; names them.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], batch: int = 1) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".part")
        header = json.dumps({"settings": dict(settings)}, ensure_ascii=False).encode() + b"\n"
        content = self.partial.read_bytes() if self.partial.is_file() else b""
        found = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]  # the last line may be half of one
        if found and found[0] + b"\n" != header:
            raise UserError(f"{self.partial}: {_difference(found[0], settings)}")
        self.done = max(len(found) - 1, 0) // batch * batch
        self._head = len(header)
        kept = header + b"".join(line + b"\n" for line in found[1 : self.done + 1])
        path.parent.mkdir(parents=True, exist_ok=True)
        if content != kept:
            with self.partial.open("wb") as file:
                file.write(kept)

    def append(self, lines: Iterable[str]) -> None:
        """Adds lines (none of which holds a line end), and sees to it that they are on the disk."""
        with self.partial.open("ab") as file:
            for line in lines:
                file.write(line.encode() + b"\n")
                self.done += 1
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[str]:
        """What is there."""
        return self.partial.read_bytes()[self._head :].decode().split("\n")[:-1]

    def finish(self, key: Callable[[str], Any] | None = None) -> None:
        """Gives the lines their file, in one step.

        Args:
            key: of a line; they are sorted by it. None: as they were added.
        """
        lines = self.lines() if key is None else sorted(self.lines(), key=key)
        whole = self.path.with_name(self.path.name + ".whole")
        whole.write_bytes("".join(f"{line}\n" for line in lines).encode())
        whole.replace(self.path)
        self.partial.unlink()


def _difference(header: bytes, settings: Mapping[str, Any]) -> str:
    """Why a partial file is none of this job's."""
    end = "finish it with its own settings, or remove it"
    try:
        known = json.loads(header)["settings"]
        changed = [key for key in {**known, **settings} if known.get(key) != settings.get(key)]
    except (ValueError, TypeError, KeyError):
        return "is no file of an unfinished job; remove it, or write to another file"
    said = ", ".join(f"{key} {known.get(key)!r}, now {settings.get(key)!r}" for key in changed)
    return f"was begun with other settings ({said}); {end}"
