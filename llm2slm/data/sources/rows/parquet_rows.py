"""Reader of parquet files: reads only the needed columns, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from llm2slm.data.sources.rows.table import Row, Table
from llm2slm.types import UserError

PART = 1_000
"""Number of rows decoded at once."""


def parquet_table(path: Path) -> Table:
    """The table of a parquet file.

    Raises:
        UserError: the file cannot be read as parquet. Reading raises the same, and on text that is not UTF-8.
    """
    try:
        with path.open("rb") as file, parquet.ParquetFile(file) as found:
            names, total = tuple(found.schema_arrow.names), found.metadata.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(_unreadable(path, error)) from None
    table = Table(str(path), names, lambda columns, skip: _rows(path, table, columns, skip), lambda: total)
    return table


def _rows(path: Path, table: Table, columns: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
    try:
        with path.open("rb") as file, parquet.ParquetFile(file) as found:
            first, number = 0, 0  # row group, and its first row
            sizes = [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)]
            while first < len(sizes) and number + sizes[first] <= skip:
                number, first = number + sizes[first], first + 1
            groups = list(range(first, len(sizes)))
            for part in found.iter_batches(PART, row_groups=groups, columns=list(columns)) if groups else ():
                drop = min(max(skip - number, 0), part.num_rows)
                number, part = number + drop, part.slice(drop)  # noqa: PLW2901  the remaining rows
                values = [_values(table, number, name, part.column(name)) for name in columns]
                for row in zip(*values, strict=True):
                    yield number, dict(zip(columns, row, strict=True))
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(_unreadable(path, error)) from None


def _values(table: Table, number: int, name: str, column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        for wrong, value in enumerate(column, number):
            try:
                value.as_py()
            except UnicodeDecodeError:
                number = wrong
                break
        raise UserError(f"{table.location(number)}, column {name!r}: not UTF-8; save the text as UTF-8") from None


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path}: cannot be read as parquet ({str(error).strip().partition(chr(10))[0]}); write it again"
