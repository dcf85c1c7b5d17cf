"""JSON-lines files: one object per line, written atomically, read with line numbers for messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llm2slm.atomic import replacing
from llm2slm.types import UserError


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object per line, atomically."""
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers from 1, without line ends (LF or CRLF) and byte-order mark.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        with path.open("rb") as file:  # as bytes: only a newline ends a line, not U+2028 or a form feed
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start + 1}: 0x{error.object[error.start]:02x}"
        raise UserError(f"{path}, line {number}: not UTF-8 text ({wrong}); save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers from 1; blank lines are skipped.

    Raises:
        UserError: a line is no JSON object; names the file and the line.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        yield number, row
