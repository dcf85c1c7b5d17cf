"""Columns of a table as rows of text: top-level ones, and nested ones by a dotted path (`translation.en`, `turns.0`).

Every value is looked at: what is not text, or not there, is told with its row and column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from llm2slm.data.files import no_text
from llm2slm.data.templates import KEY, Template, fields, worded
from llm2slm.types import UserError

TASK = "task"
"""Column that says a row's own task (only mixtures look at it)."""

PART = 1_000
"""Rows taken out of a table at once."""


@dataclass(frozen=True)
class Columns:
    """Which columns a row's `source` and `target` are read from.

    Attributes:
        templates: word the source from fields of the row instead; in them `{source}` stands for the column `source`.
    """

    source: str
    target: str
    templates: tuple[Template, ...] = ()

    def rows(
        self, parts: Iterable[Mapping[str, Sequence[Any]]], label: str, before: int = 0
    ) -> Iterator[dict[str, str]]:
        """The rows of a table given in parts, each by columns.

        Args:
            label: names the table in a complaint.
            before: number of the first row.

        Yields:
            source and target, and task where there is such a column and the row has a text in it.

        Raises:
            UserError: no such column or field, or a value that is no text; names the row.
        """
        for part in parts:
            sources = self._sources(part, label, before)
            targets = _texts(part, self.target, "data.target", label, before=before)
            tasks = part.get(TASK, [None] * len(sources))
            for source, target, task in zip(sources, targets, tasks, strict=True):
                row = {"source": source, "target": target}
                yield row | {TASK: task} if isinstance(task, str) else row
            before += len(sources)

    def needed(self, names: Sequence[str], label: str) -> list[str]:
        """Those of a table's columns that have to be read.

        Raises:
            UserError: a column is not there.
        """
        read = [*self._fields().values(), (self.target, "data.target")]
        return sorted({_path(name, key, names, label)[0] for name, key in read} | ({TASK} & set(names)))

    def _fields(self) -> dict[str, tuple[str, str]]:
        """What the source is made of: by field the column, and the key that names it."""
        source = (self.source, "data.source")
        if not self.templates:
            return {"source": source}
        return {name: source if name == "source" else (name, KEY) for name in fields(self.templates)}

    def _sources(self, part: Mapping[str, Sequence[Any]], label: str, before: int) -> list[str]:
        """The source of each row, in the words of a template where there are any."""
        read = self._fields()
        if not self.templates:
            return _texts(part, *read["source"], label, before=before)
        texts = [_texts(part, *place, label, before=before, gaps=True) for place in read.values()]
        rows = (dict(zip(read, values, strict=True)) for values in zip(*texts, strict=True))
        return [worded(self.templates, row, f"{label}, row {n} (from 0)") for n, row in enumerate(rows, before)]


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant."""
    return get_close_matches(word, list(known), n=1, cutoff=0.0)[0]


def _meant(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, as the end of a complaint; "" where none is like it."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ";"


def _path(name: str, key: str, names: Sequence[str], label: str) -> list[str]:
    """The column, and the fields and numbers that lead on from it."""
    if name in names:
        return [name]
    path = name.split(".")
    if path[0] in names:
        return path
    raise UserError(f"{label}: no column {name!r} ({key}){_meant(name, names)} columns: {', '.join(names)}")


def _texts(
    part: Mapping[str, Sequence[Any]], name: str, key: str, label: str, *, before: int, gaps: bool = False
) -> list[str]:
    """The texts of one column or nested field.

    Args:
        before: the number of the first row.
        gaps: a null stands for an empty text.
    """
    first, *fields = _path(name, key, list(part), label)
    texts = []
    for number, whole in enumerate(part[first], before):
        value = whole
        for field in fields:
            if value is None:
                break
            try:
                value = value[int(field)] if isinstance(value, list) else value[field]
            except (KeyError, IndexError, ValueError, TypeError):
                raise UserError(f"{label}, row {number} (from 0): {_absent(name, key, first, whole)}") from None
        if gaps and value is None:
            value = ""
        if not isinstance(value, str):
            raise UserError(no_text(label, number, name, value))
        texts.append(value)
    return texts


def _absent(name: str, key: str, column: str, value: Any) -> str:
    """The complaint about a nested field that is not there."""
    known = list(_leaves(value, column))
    return f"no field {name!r} ({key}){_meant(name, known)} fields: {', '.join(known)}"


def _leaves(value: Any, name: str) -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = list(items)
    if not inner:
        yield name
    for key, below in inner:
        yield from _leaves(below, f"{name}.{key}")
