"""Tables of rows that are read one by one, and the values in the columns of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from llm2slm.nearest_names import similar
from llm2slm.types import UserError, check_text

Row = Mapping[str, Any]
Read = Callable[[Sequence[str], int], Iterator[tuple[int, Row]]]
"""(top-level columns to read, number of rows to skip) -> number and values of each row."""


@dataclass(frozen=True)
class Table:
    """Rows of a file, of a data set of the Hub, or in memory.

    Attributes:
        label: name of the table in messages.
        names: top-level columns; None if rows may have different keys.
        read: reads the rows; skipped ones are not checked.
        count: number of rows, including invalid ones.
        unit: meaning of a row's number: its first line (from 1), or its index (from 0).
    """

    label: str
    names: tuple[str, ...] | None
    read: Read
    count: Callable[[], int]
    unit: str = "row {} (from 0)"

    def location(self, number: int) -> str:
        """Location of a row, for messages."""
        return f"{self.label}, {self.unit.format(number)}"

    def cut(self, start: int, stop: int) -> Table:
        """The rows from index `start` to before `stop`."""

        def read(columns: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
            return islice(self.read(columns, start + skip), max(stop - start - skip, 0))

        return replace(self, read=read, count=lambda: stop - start)


LINE = "line {}"


def memory_table(label: str, rows: Sequence[Row]) -> Table:
    """A table of rows in memory, all with the columns of the first."""
    return Table(label, tuple(rows[0]), lambda _, skip: iter(list(enumerate(rows))[skip:]), lambda: len(rows))


class Repeated(dict[str, Any]):
    """A JSON object with repeated keys; each has its last value.

    Attributes:
        keys_repeated: the repeated keys.
    """

    __slots__ = ("keys_repeated",)

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.keys_repeated = {name for name in names if names.count(name) > 1}


def check_once(table: Table, column: str, key: str) -> None:
    """Checks that a column occurs only once.

    Args:
        key: configuration key of the column.

    Raises:
        UserError: the table has two columns of this name.
    """
    if table.names is not None and table.names.count(column) > 1:
        raise UserError(f"{table.label}: column {column!r} ({key}) occurs twice; rename one of them")


def text_in(table: Table, number: int, row: Row, name: str, key: str, *, gaps: bool = False) -> str:
    """The text of a row in a column, or in a nested field given by a dotted path (`translation.en`, `turns.0`).

    Args:
        number: number of the row in the table.
        key: configuration key of the column.
        gaps: null, a missing column and a missing field count as empty texts.

    Raises:
        UserError: missing column or field, or a value that is not text; the message names file, line (or row), column.
    """
    value = row.get(name) if row.__class__ is dict else None
    if value.__class__ is not str:
        value = value_in(table, number, row, name, key, gaps=gaps)
    if gaps and value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(no_text(f"{table.location(number)}, column {name!r}", value))
    if not value.isascii():
        check_text(f"{table.location(number)}, column {name!r}", value)
    return value


def no_text(location: str, value: Any) -> str:
    """The message on a value that is not text."""
    if value is None:
        return f"{location}: expected text, found null; fill it in, or leave the row out"
    way = "name a text within it (NAME.FIELD)" if isinstance(value, dict | list) else "write it as text"
    return f"{location}: expected text, found {type(value).__name__} {value!r:.40}; {way}, or name another column"


def path_in(row: Iterable[str], name: str) -> list[str] | None:
    """The top-level column with a name, or the parts of a dotted path whose first part is a column; else None."""
    if name in row:
        return [name]
    path = name.split(".")
    return path if path[0] in row else None


def value_in(table: Table, number: int, row: Row, name: str, key: str, *, gaps: bool = False) -> Any:
    """The value of a row in a column or nested field; the arguments are those of `text_in`."""
    path = path_in(row, name)
    if path is None:
        if gaps:
            return None
        raise UserError(no_column(table.location(number), name, key, list(row)))
    value: Any = row
    for field in path:
        if value is None:
            break
        if isinstance(value, Repeated) and field in value.keys_repeated:
            raise UserError(f"{table.location(number)}, column {name!r}: the key occurs twice; keep one of them")
        if gaps and isinstance(value, dict) and field not in value:
            return None
        try:
            value = value[int(field)] if isinstance(value, list) else value[field]
        except (KeyError, IndexError, ValueError, TypeError):
            known = list(_leaves(row[path[0]], path[0]))
            hint = f"{suggestion(name, known)} fields: {', '.join(known)}"
            raise UserError(f"{table.location(number)}: no field {name!r} ({key}){hint}") from None
    return value


def holds(row: Row, name: str) -> bool:
    """Whether a row has a value, null or not, in a column or nested field."""
    value: Any = row
    for part in path_in(row, name) or [name]:
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return False
    return True


def no_column(location: str, name: str, key: str, names: Sequence[str], where: str = "") -> str:
    """The message on a missing column.

    Args:
        where: what was searched, if not the location.
    """
    return f"{location}: no column {name!r} ({key}){where}{suggestion(name, names)} columns: {', '.join(names)}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a message, with the most similar known word; ";" if none is similar."""
    near = similar(word, known)
    return f"; did you mean {near!r}?" if near else ";"


def _leaves(value: Any, name: str) -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = list(items)
    if not inner:
        yield name
    for key, below in inner:
        yield from _leaves(below, f"{name}.{key}")
