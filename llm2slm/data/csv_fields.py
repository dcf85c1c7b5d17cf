"""The rows of a csv file as pandas counts them, each looked at whether it has as many fields as the header.

pandas, which `datasets` reads csv with, takes what a row lacks for empty texts; and where every row has a field too
many, it takes their first ones for names of rows, so that each text stands in the next column. Neither is told.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from llm2slm.types import UserError

BLANKS = " \t\n"
"""A line of nothing else is no row."""


def check_fields(path: Path) -> None:
    """Looks through a whole file.

    Raises:
        UserError: a row has fewer fields than the header, or more; names its line.
    """
    for _ in _fitting(path):
        pass


def whole_rows(
    path: Path, parts: Iterable[Mapping[str, Sequence[Any]]], skip: int = 0
) -> Iterator[Mapping[str, Sequence[Any]]]:
    """The parts of a file that is streamed, each by columns, handed on once its rows are looked at.

    Args:
        skip: rows of the file before the first part.

    Raises:
        UserError: as `check_fields`, when the row's part is reached.
    """
    rows = _fitting(path, skip)
    for part in parts:
        count = len(next(iter(part.values())))
        for _ in islice(rows, count):
            pass
        yield part


def _fitting(path: Path, skip: int = 0) -> Iterator[None]:
    """Goes from row to row behind the header; rows that are skipped are not looked at."""
    width = 0
    for number, (line, fields) in enumerate(_records(path)):
        width = width or len(fields)
        if number == 0 or number <= skip:
            continue
        if len(fields) < width:
            raise UserError(f"{path}, line {line}: {len(fields)} of {width} fields; an empty one needs its comma too")
        if len(fields) > width:
            raise UserError(too_many(path, line, fields, width))
        yield


def too_many(path: Path, line: int, fields: Sequence[str], width: int) -> str:
    """The complaint about a row with more fields than the header."""
    return f"{path}, line {line}: {len(fields)} fields, but the header has {width}"


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows, each with the number of the line that it begins on."""
    csv.field_size_limit(2**31 - 1)  # a document may be longer than Python's 128 Ki characters
    options: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "replace"}  # the reader itself says what is no UTF-8
    with gzip.open(path, "rt", **options) if path.suffix == ".gz" else path.open(**options) as file:
        begun: list[str] = []  # the lines of the record under way

        def lines() -> Iterator[str]:
            for text in file:  # ends of lines of all three kinds, as pandas
                begun.append(text)
                yield text

        rows = csv.reader(lines())
        for fields in rows:
            if begun[0].strip(BLANKS):
                yield rows.line_num - len(begun) + 1, fields
            begun.clear()
