"""Reader of csv files: each field is its text. Every row has as many fields as the header.

Line ends within quotes are kept unchanged.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from llm2slm.data.sources.rows.table import LINE, Row, Table
from llm2slm.data.sources.rows.text import lines_of_any_end
from llm2slm.types import UserError

BLANKS = " \t\r\n"
"""A line of only these characters is not a row (except for the delimiter)."""


def csv_table(path: Path, delimiter: str = ",") -> Table:
    """The table of a csv file.

    Raises:
        UserError: it has no header. Reading a row raises if it is not UTF-8, has an open quote, or fewer or more fields
            than the header; the message names the line.
    """
    header = next(records(path, delimiter), None)
    if header is None:
        raise UserError(f"{path}: the file is empty")
    names = tuple(header[1])

    def read(columns: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
        positions = [(name, names.index(name)) for name in columns]
        rows = records(path, delimiter)
        next(rows)
        for number, (line, fields) in enumerate(rows):
            if number < skip:
                continue
            if len(fields) < len(names):
                raise UserError(
                    f"{path}, line {line}: {len(fields)} of {len(names)} fields; an empty one needs its comma too"
                )
            if len(fields) > len(names):
                raise UserError(f"{path}, line {line}: {len(fields)} fields, but the header has {len(names)}")
            yield line, {name: fields[position] for name, position in positions}

    return Table(str(path), names, read, lambda: sum(1 for _ in records(path, delimiter)) - 1, LINE)


def records(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The header and the rows, each with the number of its first line."""
    csv.field_size_limit(2**31 - 1)  # Python's default is 128 Ki characters
    begun: list[str] = []  # the lines of the current record

    def lines() -> Iterator[str]:
        for text in lines_of_any_end(path):
            begun.append(text)
            yield text
        if begun:  # the record does not end before the end of the file
            raise UserError(f"{path}, line {rows.line_num - len(begun) + 1}: not CSV (a quote is not closed)")

    rows, blanks = csv.reader(lines(), delimiter=delimiter, strict=True), BLANKS.replace(delimiter, "")
    try:
        for fields in rows:
            if begun[0].strip(blanks):
                yield rows.line_num - len(begun) + 1, fields
            begun.clear()
    except csv.Error as error:
        line = rows.line_num - max(len(begun), 1) + 1
        raise UserError(
            f"{path}, line {line}: not CSV ({error}); a field that begins with a quote ends with one, and each "
            "quote in it is doubled"
        ) from None
