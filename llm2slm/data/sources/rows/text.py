"""Reader of UTF-8 text files, plain or gzipped, in lines or pieces; errors name the line."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from llm2slm.types import UserError

PIECE = 2**20
"""Number of bytes of a piece."""
MAGIC = b"\x1f\x8b"
"""First bytes of a gzip file; no UTF-8 text begins with them."""


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines with numbers from 1 and line ends, without a byte-order mark. Only a newline ends a line.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8.
    """
    for number, line in enumerate(_bytes(path, whole_lines=True), 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(_not_utf8(path, number, error.start, line)) from None


def lines_of_any_end(path: Path) -> Iterator[str]:
    """The lines with their line ends; a carriage return without newline ends a line, too.

    Raises:
        UserError: as `lines`.
    """
    for _, line in lines(path):
        if line.find("\r", 0, len(line) - (2 if line.endswith("\r\n") else 1)) >= 0:
            yield from io.StringIO(line, newline="")
        else:
            yield line


def pieces(path: Path) -> Iterator[str]:
    """The text in pieces of any length, without a byte-order mark.

    Raises:
        UserError: as `lines`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, begun, read = 1, 0, 0  # line of the next byte, offset of its first byte, bytes decoded
    for number, piece in enumerate(_bytes(path)):
        waiting = decoder.getstate()[0]
        try:
            text = decoder.decode(piece)
        except UnicodeDecodeError as error:
            _raise_not_utf8(path, error, line, begun - read)
        data = (waiting + piece)[: len(waiting) + len(piece) - len(decoder.getstate()[0])]
        if (last := data.rfind(b"\n")) >= 0:
            line, begun = line + data.count(b"\n"), read + last + 1
        read += len(data)
        yield text.removeprefix("\ufeff") if number == 0 else text
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        _raise_not_utf8(path, error, line, begun - read)


def _raise_not_utf8(path: Path, error: UnicodeDecodeError, line: int, begun: int) -> None:
    """Raises UserError for a piece whose first byte is in `line`, which begins `begun` bytes from it."""
    before = error.object[: error.start]
    begun = before.rfind(b"\n") + 1 if b"\n" in before else begun
    number = line + before.count(b"\n")
    raise UserError(_not_utf8(path, number, error.start - begun, error.object[error.start :], 0)) from None


def _not_utf8(path: Path, number: int, start: int, data: bytes, at: int | None = None) -> str:
    found = data[start if at is None else at]
    return f"{path}, line {number}: not UTF-8 (byte {start + 1}: 0x{found:02x}); save the file as UTF-8"


def _bytes(path: Path, whole_lines: bool = False) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            packed = path.suffix.lower() == ".gz" or file.read(len(MAGIC)) == MAGIC
            file.seek(0)
            source: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=file) if packed else file
            if whole_lines:
                yield from source
            else:
                while piece := source.read(PIECE):
                    yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a complete gzip file ({error}); write it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
