"""The header of a GGUF file: metadata (config values, tokenizer) and tensor table, checked against the file size."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, wraps
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, TypeVar

from llm2slm.types import UserError, reason_of

T = TypeVar("T")

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
"""Non-numeric value types."""
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Numeric value types -> `struct` format characters."""
FLOATS = {0: "float32", 1: "float16", 30: "bfloat16"}
"""Unquantized ggml tensor types; all others hold blocks of quantized weights."""
NEEDS = ("gguf", "accelerate")
"""Packages that transformers needs to read GGUF files."""


@dataclass(frozen=True)
class Tensor:
    """A row of the tensor table. shape: in torch's order; kind: ggml type; start, size: bytes in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True)
class Values:
    """A metadata value or array.

    Attributes:
        kind: type of the value or of the array's elements.
        array: whether it is an array.
        size: number of values.
        values: the values; None for arrays of strings and of the tokenizer, which are not kept.
    """

    kind: int
    array: bool
    size: int
    values: tuple[Any, ...] | None


@dataclass(frozen=True)
class Header:
    """Metadata and tensor table of a GGUF file."""

    path: Path
    values: dict[str, Values]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.one("general.architecture"))

    def one(self, key: str) -> Any:
        """A scalar metadata value; None if the key is missing or an array."""
        found = self.values.get(key)
        return None if found is None or found.array or found.values is None else found.values[0]

    @property
    def settings(self) -> dict[str, Any]:
        """The metadata that determines the model's computation: without tokenizer, names and descriptions."""
        return {
            key: found.values
            for key, found in self.values.items()
            if key == "general.architecture" or not key.startswith(("general.", "tokenizer."))
        }

    @property
    def packed(self) -> tuple[Tensor, ...]:
        """The quantized tensors."""
        return tuple(tensor for tensor in self.tensors if tensor.kind not in FLOATS)


def require_packages(name: str) -> None:
    """Refuses a GGUF file if a package needed to read it is not installed."""
    missing = [package for package in NEEDS if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(
            f"model {name!r}: a GGUF file is read with the package {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )


def once_per_file(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """Caches a function of a GGUF file until the file changes (size or modification time)."""

    @lru_cache(maxsize=8)
    def known(path: Path, size: int, changed: int) -> T:
        del size, changed
        return read(path)

    @wraps(read)
    def found(path: Path) -> T:
        read_header(path)  # raises for an unreadable file
        stat = path.stat()
        return known(path, stat.st_size, stat.st_mtime_ns)

    return found


def read_header(path: Path) -> Header:
    """The header of a file, checked against the file size; cached until the file changes.

    Raises:
        UserError: a package is missing; the file is not a GGUF file of a known version, is truncated or split.
    """
    require_packages(str(path))
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason_of(error)}") from None
    return _header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _header(path: Path, size: int, changed: int) -> Header:
    del changed  # only part of the cache key
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{path}: is no GGUF file (it does not begin with the letters GGUF)")
        cut = UserError(f"{path}: is cut off (it has {size:,} bytes, and its header describes more); copy it again")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            try:
                header = _parse(path, _Cursor(data))
            except (struct.error, IndexError, OverflowError):
                raise cut from None
            except UnicodeDecodeError:
                raise UserError(f"{path}: is damaged (its header is not valid text); copy it again") from None
    if any(tensor.start + tensor.size > size for tensor in header.tensors):
        raise cut
    return header


class _Cursor:
    """Reads consecutive little-endian values."""

    def __init__(self, data: mmap) -> None:
        self.data, self.at = data, 0

    def numbers(self, codes: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{codes}", self.data, self.at)
        self.at += struct.calcsize(f"<{codes}")
        return found

    def bytes(self) -> bytes:
        (length,) = self.numbers("Q")
        if self.at + length > len(self.data):
            raise IndexError(length)
        self.at += length
        return self.data[self.at - length : self.at]

    def text(self) -> str:
        return self.bytes().decode()

    def skip_strings(self, count: int) -> None:
        data, at, end, read = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + read(data, at)[0]
            if at > end:
                raise IndexError(at)
        self.at = at


def _parse(path: Path, cursor: _Cursor) -> Header:
    cursor.at = len(MAGIC)
    (version,) = cursor.numbers("I")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise UserError(f"{path}: is of version {version} of the GGUF format (or of the other byte order); versions "
                        f"{known} can be read")  # fmt: skip
    tensors, count = cursor.numbers("QQ")
    values = {}
    for _ in range(count):
        key = cursor.text()
        values[key] = _values(path, key, cursor)
    header = Header(path, values, ())
    if header.one("general.architecture") is None:
        raise UserError(f"{path}: its header has no general.architecture, so it is no model")
    if (header.one("split.count") or 1) > 1:
        raise UserError(
            f"{path}: is one of {header.one('split.count')} parts of a model; join them first "
            "(llama-gguf-split --merge, of llama.cpp)"
        )
    return Header(path, values, tuple(_tensors(path, cursor, tensors, header.one("general.alignment") or 32)))


def _values(path: Path, key: str, cursor: _Cursor) -> Values:
    (kind,) = cursor.numbers("I")
    if kind == STRING:
        return Values(kind, False, 1, (cursor.text(),))
    if kind in NUMBERS:
        return Values(kind, False, 1, cursor.numbers(NUMBERS[kind]))
    if kind != ARRAY:
        raise UserError(f"{path}: the value {key} of its header is of type {kind}, which is unknown; it is damaged, or "
                        "of a newer format")  # fmt: skip
    kind, count = cursor.numbers("IQ")
    if kind == STRING:
        cursor.skip_strings(count)
        return Values(kind, True, count, None)
    if kind not in NUMBERS:
        raise UserError(f"{path}: the value {key} of its header is an array of type {kind}, which is unknown")
    if count > len(cursor.data):
        raise IndexError(count)
    found = cursor.numbers(f"{count}{NUMBERS[kind]}")
    return Values(kind, True, count, None if key.startswith("tokenizer.") else found)


def _tensors(path: Path, cursor: _Cursor, count: int, alignment: int) -> Iterator[Tensor]:
    from gguf import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    table = []
    for _ in range(count):
        name, (dimensions,) = cursor.text(), cursor.numbers("I")
        shape = tuple(reversed(cursor.numbers(f"{dimensions}Q")))
        table.append((name, shape, *cursor.numbers("IQ")))
    begin = -(-cursor.at // alignment) * alignment
    for name, shape, kind, offset in table:
        if kind not in sizes:
            raise UserError(f"{path}: the tensor {name} is of ggml type {kind}, which the package gguf does not know; "
                            "renew it, or take a file of another quantization")  # fmt: skip
        block, size = sizes[kind]
        yield Tensor(name, shape, kind, begin + offset, prod(shape) // block * size)
