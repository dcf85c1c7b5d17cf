"""A user's own files as columns of text: one call of `datasets.load_dataset`, and one clear line where it fails.

`datasets` does not say which line of a file is broken; after a failure the file is scanned here to find it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from llm2slm.data.csv_fields import check_fields, too_many, whole_rows
from llm2slm.types import UserError

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffix (before an optional .gz) to the reader of `datasets`."""

SCANNED = 2**30
"""Bytes of a file at most that is looked through for its broken line."""

OPTIONS: dict[str, dict[str, Any]] = {"csv": {"keep_default_na": False}}
"""A text such as "None" or "NA" is a text."""


def read_file(path: Path, texts: Sequence[str] = ()) -> datasets.Dataset:
    """All rows of a json, jsonl, csv or parquet file, plain or gzipped. Never stale, never from the network.

    Args:
        path: the file.
        texts: columns that must not mix text with other values (other columns may).

    Raises:
        UserError: missing, of another kind, malformed (with the line), or without rows.
    """
    reader = _checked(path)
    with tempfile.TemporaryDirectory(prefix="llm2slm-data-") as cache:  # a cache of its own: the file may change
        try:
            options: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True, **OPTIONS.get(reader, {})}
            loaded = load(reader, data_files=str(path), split="train", **options)
            loaded.data.validate(full=True)  # Arrow's JSON reader does not check that text is UTF-8
        except Exception as error:
            # whatever the reader raised (Arrow, pandas, zlib, datasets), the scan says it better
            fault = _first_fault(path, reader) or f"{path}: cannot be read as {reader} ({_innermost(error)})"
            raise UserError(fault) from None
    if len(loaded) == 0:
        raise UserError(f"{path}: holds no rows")
    if reader == "csv":
        check_fields(path)
    for column in texts:
        if isinstance(loaded.features.get(column), datasets.Json):
            # `datasets` keeps mixed values as JSON, in which the text "null" and a null are one: look into the file
            raise UserError(_first_no_text(path, column))
    return loaded


def stream_file(path: Path) -> datasets.IterableDataset:
    """The rows of such a file, read as they are asked for.

    Raises:
        UserError: missing, of another kind, or empty. What is malformed shows when it is reached (`unreadable`).
    """
    reader = _checked(path)
    try:
        return load(reader, data_files=str(path), split="train", streaming=True, **OPTIONS.get(reader, {}))
    except Exception as error:  # as in `read_file`
        raise UserError(unreadable(path, error)) from None


def file_parts(path: Path, stream: datasets.IterableDataset, size: int, skip: int) -> Iterator[Mapping[str, Any]]:
    """The rows of a streamed file in parts of so many rows, each by columns, from the row of that number on.

    Raises:
        UserError: a row of a csv file that has not as many fields as its header, when its part is reached.
    """
    parts: Iterable[Mapping[str, Any]] = stream.skip(skip).iter(size)
    yield from whole_rows(path, parts, skip) if _reader(path) == "csv" else parts


def unreadable(path: Path, error: BaseException) -> str:
    """The complaint about a file whose rows cannot be read on; names the broken line where the file is not too large to
    be looked through."""
    reader = _reader(path)
    fault = _first_fault(path, reader) if path.stat().st_size <= SCANNED else None
    return fault or f"{path}: cannot be read as {reader} ({_innermost(error)})"


def _checked(path: Path) -> str:
    """The reader of a file that is there and holds something.

    Raises:
        UserError: it is not, or does not.
    """
    reader = _reader(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {found}; give a json, jsonl, csv or parquet file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    return reader


def load(path: str, bars: bool = False, **arguments: Any) -> Any:
    """`datasets.load_dataset`, without its progress bars unless they are asked for (a download takes its time)."""
    restore = not (bars or datasets.are_progress_bars_disabled())
    if restore:
        datasets.disable_progress_bars()
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # a failure is told once, by the caller
    try:
        return datasets.load_dataset(path, **arguments)
    finally:
        datasets.logging.set_verbosity(level)
        if restore:
            datasets.enable_progress_bars()


def _reader(path: Path) -> str:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in READERS or path.name.endswith(".parquet.gz"):
        allowed = ", ".join(READERS)
        raise UserError(
            f"{path}: unsupported kind of file {path.suffix!r}; use {allowed} (json, jsonl, csv also as .gz)"
        )
    return READERS[suffix]


def _innermost(error: BaseException) -> str:
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _first_fault(path: Path, reader: str) -> str | None:
    """The first broken line of a file, told in one line; None when the scan finds none."""
    if reader == "parquet":
        try:
            return f"{path}: holds no rows" if parquet.read_metadata(path).num_rows == 0 else None
        except (OSError, pyarrow.ArrowException):  # not a Parquet file at all: the reader's own words will do
            return None
    try:
        lines = list(_decoded(path))
    except UnicodeDecodeError as error:
        return f"{path}, {error.reason}; save the file as UTF-8"
    except (OSError, EOFError, zlib.error) as error:
        return f"{path}: not a whole gzip file ({error})"
    if not any(line.strip() for line in lines):
        return f"{path}: the file is empty"
    return _csv_fault(path, lines) if reader == "csv" else _json_fault(path, lines)


def _first_no_text(path: Path, column: str) -> str:
    text = "".join(_decoded(path))
    rows = json.loads(text) if text.lstrip().startswith("[") else map(json.loads, filter(str.strip, text.split("\n")))
    for number, row in enumerate(rows):
        if not isinstance(row.get(column), str):
            return no_text(f"{path}", number, column, row.get(column))
    return f"{path}, column {column!r}: mixes text with other values"


def no_text(label: str, number: int, column: str, value: Any) -> str:
    """The complaint about a value that is not text."""
    found = "null" if value is None else f"{type(value).__name__} {value!r:.40}"
    return f"{label}, row {number} (from 0), column {column!r}: expected text, found {found}"


def _decoded(path: Path) -> Iterator[str]:
    """The lines of a file; a UnicodeDecodeError names the line in its `reason`."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                error.reason = f"line {number}: not UTF-8 (byte {error.start + 1}: 0x{line[error.start]:02x})"
                raise


def _json_fault(path: Path, lines: list[str]) -> str | None:
    text = "".join(lines)
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            return f"{path}, line {error.lineno}: not JSON ({error.msg})"
        if not found:
            return f"{path}: holds no rows"
        bad = next((i for i, row in enumerate(found) if not isinstance(row, dict)), None)
        return None if bad is None else f"{path}, item {bad}: expected a JSON object, found {type(found[bad]).__name__}"
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip("\r\n"))
        except json.JSONDecodeError as error:
            return f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})"
        if not isinstance(row, dict):
            return f"{path}, line {number}: expected a JSON object, found {type(row).__name__}"
    return None


def _csv_fault(path: Path, lines: list[str]) -> str | None:
    rows = csv.reader(io.StringIO("".join(lines), newline=""), strict=True)
    width, number = 0, 1
    try:
        for row in rows:
            width = width or len(row)
            if len(row) > width:
                return too_many(path, number, row, width)
            number = rows.line_num + 1
    except csv.Error as error:
        return f"{path}, line {number}: not CSV ({error})"
    return f"{path}: holds no rows" if rows.line_num <= 1 else None
