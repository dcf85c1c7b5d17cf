"""Columns of tables as rows of text: top-level ones, and nested fields by dotted paths (`translation.en`, `turns.0`).

Only the needed columns are read. A message on a missing value or a value that is not text names row and column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from llm2slm.data.sources.rows.table import Row, Table, check_once, holds, no_column, path_in, text_in, value_in
from llm2slm.data.templates import KEY, Template, fields, filled
from llm2slm.types import UserError

TASK = "task"
"""Column with the task of a row (used only by mixtures)."""


@dataclass(frozen=True)
class Columns:
    """The columns of a row's `source` and `target`.

    Attributes:
        templates: make the source from fields of the row; `{source}` is the column `source`.
        text: the templates make the target, where `{target}` is the column `target`; the source is empty.
    """

    source: str
    target: str
    templates: tuple[Template, ...] = ()
    text: bool = False

    def rows(
        self, tables: Sequence[Table], label: str, start: int = 0, stop: int | None = None
    ) -> Iterator[dict[str, str]]:
        """The rows of all tables in order, read one by one.

        Args:
            label: name of the tables in messages.
            start: number of rows to skip at the beginning; they are not checked.
            stop: number of the row before which to end; None: after the last one.

        Yields:
            source and target, and task if the column exists and the row has a text in it.

        Raises:
            UserError: missing column or field, a value that is not text, or no rows; raised when it is read.
        """
        unseen = _UnseenFields({name: key for name, key in self._fields().values() if key == KEY or self.text})
        last = None
        for table, number, row in islice(self._read(tables, start), None if stop is None else max(stop - start, 0)):
            last = table, number, row
            unseen.add(row)
            yield self._row(table, number, row, unseen)
        if start == 0 and last is None:
            raise UserError(f"{label}: holds no rows")
        if start == 0 and last is not None:
            unseen.check(*last, label)

    def needed(self, table: Table) -> list[str]:
        """The columns of a table that must be read.

        Raises:
            UserError: a column is missing, or occurs twice.
        """
        if table.names is None:  # each row may have different keys
            return []
        found = {TASK} & set(table.names)
        target = [] if self.text else [self._named("target")]
        for name, key in [*self._fields().values(), *target]:
            path = path_in(table.names, name)
            if path is None:
                raise UserError(no_column(table.label, name, key, table.names))
            check_once(table, path[0], key)
            found.add(path[0])
        return sorted(found)

    def _read(self, tables: Sequence[Table], start: int) -> Iterator[tuple[Table, int, Row]]:
        """The rows of all tables from row `start` on, each with its table and its number in the table."""
        for position, table in enumerate(tables):
            needed = self.needed(table)
            if start and position < len(tables) - 1 and (count := table.count()) <= start:
                start -= count
                continue
            for number, row in table.read(needed, start):
                yield table, number, row
            start = 0

    def _fields(self) -> dict[str, tuple[str, str]]:
        """By field of the source (or text): its column, and the configuration key of the column."""
        if not self.templates:
            return {"source": self._named("source")}
        return {name: self._named(name) for name in fields(self.templates)}

    def _named(self, field: str) -> tuple[str, str]:
        """The column of a field, and the configuration key of the column."""
        named = {"source": (self.source, "data.source"), "target": (self.target, "data.target")}
        return named.get(field, (field, KEY))

    def _row(self, table: Table, number: int, row: Row, unseen: _UnseenFields) -> dict[str, str]:
        """Source, target and task of a row; the source (or text) by a template, if there are templates."""
        if self.templates:
            texts = {
                name: text_in(table, number, row, column, key, gaps=True)
                for name, (column, key) in self._fields().items()
            }
            try:
                empty = self.text and not any(text.strip() for text in texts.values())
                source = "" if empty else filled(self.templates, texts, table.location(number))
            except UserError:
                unseen.check(table, number, row)
                raise
        else:
            source = text_in(table, number, row, self.source, "data.source")
        if self.text:
            found = {"source": "", "target": source}
        else:
            found = {"source": source, "target": text_in(table, number, row, self.target, "data.target")}
        task = row.get(TASK)
        return found | {TASK: task} if isinstance(task, str) else found


@dataclass
class _UnseenFields:
    """The fields of templates that no row had so far, with their configuration keys.

    If rows have different keys, a misspelt field would otherwise look like a field without a text.
    """

    names: dict[str, str]
    columns: dict[str, None] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Removes the fields that a row has."""
        if self.names:
            self.names = {name: key for name, key in self.names.items() if not holds(row, name)}
            self.columns |= dict.fromkeys(row)

    def check(self, table: Table, number: int, row: Row, label: str | None = None) -> None:
        """Raises UserError on a field that no row had so far.

        Args:
            table, number, row: the last row.
            label: name of all tables, if it is the last row of all tables.
        """
        for name, key in self.names.items():
            if path_in(self.columns, name) is None and label is not None:
                raise UserError(no_column(label, name, key, list(self.columns), " in any row"))
            value_in(table, number, row, name, key)
