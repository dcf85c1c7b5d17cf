"""Columns of tables as rows of text: top-level ones, and nested ones by a dotted path (`translation.en`, `turns.0`).

Only the columns that are asked for are looked at; what is not text, or not there, is named by its row and column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from llm2slm.data.sources.rows.table import Row, Table, check_once, holds, no_column, path_in, text_in, value_in
from llm2slm.data.templates import KEY, Template, fields, worded
from llm2slm.types import UserError

TASK = "task"
"""Column that says a row's own task (only mixtures look at it)."""


@dataclass(frozen=True)
class Columns:
    """Which columns a row's `source` and `target` are read from.

    Attributes:
        templates: word the source from fields of the row instead; in them `{source}` stands for the column `source`.
        text: they word the target, in which `{target}` stands for the column `target`; the source is empty.
    """

    source: str
    target: str
    templates: tuple[Template, ...] = ()
    text: bool = False

    def rows(
        self, tables: Sequence[Table], label: str, start: int = 0, stop: int | None = None
    ) -> Iterator[dict[str, str]]:
        """The rows of tables, one table after another, as they are asked for.

        Args:
            label: names the tables together in a complaint.
            start: rows to leave out at the beginning; they are not checked.
            stop: number of the row at which to end; None: after the last one.

        Yields:
            source and target, and task where there is such a column and the row has a text in it.

        Raises:
            UserError: no such column or field, a value that is not text, or no rows at all; when it is reached.
        """
        unmet = _Unmet({name: key for name, key in self._fields().values() if key == KEY or self.text})
        last = None
        for table, number, row in islice(self._read(tables, start), None if stop is None else max(stop - start, 0)):
            last = table, number, row
            unmet.look(row)
            yield self._row(table, number, row, unmet)
        if start == 0 and last is None:
            raise UserError(f"{label}: holds no rows")
        if start == 0 and last is not None:
            unmet.check(*last, label)

    def needed(self, table: Table) -> list[str]:
        """Those of a table's columns that have to be read.

        Raises:
            UserError: a column is not there, or twice.
        """
        if table.names is None:  # each row has its own keys
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
        """The rows of all tables from the row of that number on, each with its table and its number in it."""
        for place, table in enumerate(tables):
            needed = self.needed(table)
            if start and place < len(tables) - 1 and (count := table.count()) <= start:
                start -= count
                continue
            for number, row in table.read(needed, start):
                yield table, number, row
            start = 0

    def _fields(self) -> dict[str, tuple[str, str]]:
        """What the source is made of: by field the column, and the key that names it."""
        if not self.templates:
            return {"source": self._named("source")}
        return {name: self._named(name) for name in fields(self.templates)}

    def _named(self, field: str) -> tuple[str, str]:
        """The column of a field, and the key that names it."""
        named = {"source": (self.source, "data.source"), "target": (self.target, "data.target")}
        return named.get(field, (field, KEY))

    def _row(self, table: Table, number: int, row: Row, unmet: _Unmet) -> dict[str, str]:
        """Source, target and task of a row; source (or the text) in the words of a template where there are any."""
        if self.templates:
            texts = {
                name: text_in(table, number, row, column, key, gaps=True)
                for name, (column, key) in self._fields().items()
            }
            try:
                empty = self.text and not any(text.strip() for text in texts.values())
                source = "" if empty else worded(self.templates, texts, table.place(number))
            except UserError:
                unmet.check(table, number, row)
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
class _Unmet:
    """The fields of templates that no row had so far, each with the key that names it.

    Where each row has its own keys, a misspelt field would else look like one without a text.
    """

    names: dict[str, str]
    columns: dict[str, None] = field(default_factory=dict)

    def look(self, row: Row) -> None:
        """Takes note of a row."""
        if self.names:
            self.names = {name: key for name, key in self.names.items() if not holds(row, name)}
            self.columns |= dict.fromkeys(row)

    def check(self, table: Table, number: int, row: Row, label: str | None = None) -> None:
        """Raises the complaint about a field that no row had so far.

        Args:
            table, number, row: the last row.
            label: names all tables, where this was the last row of all.
        """
        for name, key in self.names.items():
            if path_in(self.columns, name) is None and label is not None:
                raise UserError(no_column(label, name, key, list(self.columns), " in any row"))
            value_in(table, number, row, name, key)
