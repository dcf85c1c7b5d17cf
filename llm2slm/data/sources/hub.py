"""Splits of data sets: of the Hub by `datasets`, in a local folder of the same form by the project's own readers."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from llm2slm.config import CorpusConfig
from llm2slm.data.sources.corpora import CORPORA, PARQUET, SPLITS, known_corpus
from llm2slm.data.sources.folders import OWN, FolderFiles, find_files
from llm2slm.data.sources.rows import open_table
from llm2slm.data.sources.rows.table import Read, Row, Table
from llm2slm.types import UserError

PIECE = re.compile(r"(\w+)\[(?:(\d+))?:(?:(\d+))?\]")
"""Part of a split by the numbers of its rows, as train[1000:]."""
PART = 1_000
"""Rows taken out of a data set at once."""

Place = tuple[str, dict[str, Any]]
"""What `datasets.load_dataset` is asked for: id or kind of file, and further arguments."""


@dataclass(frozen=True)
class Split:
    """The rows of a split: those of the tables, one after another, from the row `start` on to the row `stop`.

    Attributes:
        label: names them in a complaint.
        stop: None: to the last one.
    """

    label: str
    tables: Sequence[Table]
    start: int = 0
    stop: int | None = None


def hub_split(config: CorpusConfig, split: str, streaming: bool = False) -> Split:
    """A split from the Hub, or from a folder of the same form.

    Args:
        streaming: read a data set of the Hub as its rows are asked for (a folder is always read so).

    Raises:
        UserError: no such data set or split.
    """
    path, arguments, part = hub_place(config, split)
    label = f"{path}, split {part}"
    folder = local_folder(path)
    if folder is not None:
        try:
            found = find_files(folder, arguments["name"], must=config.subset is not None)
            if found.as_rows:
                return _folder_split(found, label, part)
        except UserError as error:
            raise UserError(not_loaded(config, label, split, error)) from None
        return _loaded(config, label, split, part, _elsewhere(found), streaming=streaming)
    return _loaded(config, label, split, part, (path, arguments), streaming=streaming)


def hub_place(config: CorpusConfig, split: str) -> tuple[str, dict[str, Any], str]:
    """Where a split is: id or folder, further arguments for `datasets.load_dataset`, name of the split.

    Raises:
        UserError: no id is known, or no such folder.
    """
    hub = None if config.name == "hub" else known_corpus(config.name).hub
    path = config.path or (hub.id if hub else None)
    if path is None:
        raise UserError(_no_place(config))
    part = getattr(config, split) or (hub.splits[SPLITS.index(split)] if hub else split)
    subset = config.subset or (hub.subset if hub else None)
    folder = local_folder(path)
    if folder is not None:
        return str(folder), {"name": subset}, part
    if path.startswith(("/", ".", "~")):
        raise UserError(f"data.path={path}: no such folder")
    revision = config.revision or (hub.revision if hub and config.path is None else None)
    return path, {"data_dir" if revision == PARQUET else "name": subset, "revision": revision}, part


def local_folder(path: str) -> Path | None:
    """The folder of that name, `~` for the home directory where there is none; None: it is no folder."""
    if Path(path).is_dir():
        return Path(path)
    home = Path(path).expanduser() if path == "~" or path.startswith("~/") else Path(path)
    return home if home.is_dir() else None


def _folder_split(found: FolderFiles, label: str, part: str) -> Split:
    """A split, or a part of one, or several, of files that the project reads itself."""
    piece = PIECE.fullmatch(part)
    asked = "+".join(found.splits) if part == "all" else part
    named = re.sub(r"\[.*?\]|\(.*?\)", "", asked).split("+")
    if unknown := [name for name in named if name not in found.splits]:
        raise UserError(f"no split {unknown[0]!r}; there are: {', '.join(found.splits)}")
    tables = {name: [open_table(path, found.options.get("sep")) for path in found.splits[name]] for name in named}
    if asked in tables:
        return Split(label, tables[asked])
    if piece is not None:
        return Split(label, tables[piece[1]], int(piece[2] or 0), None if piece[3] is None else int(piece[3]))
    sizes = {name: sum(table.count() for table in several) for name, several in tables.items()}
    try:
        pieces = datasets.ReadInstruction.from_spec(asked).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise UserError(str(error)) from None
    return Split(label, [one for cut in pieces for one in _between(tables[cut.splitname], cut.from_, cut.to)])


def _between(tables: Sequence[Table], start: int, stop: int) -> Iterator[Table]:
    """The rows of tables, counted together, from one number to another."""
    for table in tables:
        count = table.count()
        if start < count and stop > 0:
            yield table.cut(max(start, 0), min(stop, count))
        start, stop = start - count, stop - count


def _elsewhere(found: FolderFiles) -> tuple[str, dict[str, Any]]:
    """How `datasets` is asked for files that the project does not read itself: kind, and further arguments.

    Raises:
        UserError: csv or json files with a compression or an option that the project's readers do not know;
            `datasets` would guess the types of their values.
    """
    if found.kind in OWN and found.kind != "parquet":
        raise UserError(found.not_as_rows)
    files = {name: [glob.escape(str(path)) for path in paths] for name, paths in found.splits.items()}
    return found.kind, {"data_files": files, **found.options}


def _loaded(config: CorpusConfig, label: str, split: str, part: str, place: Place, *, streaming: bool) -> Split:
    """A split by `datasets`."""
    path, arguments = place
    piece = PIECE.fullmatch(part) if streaming else None
    try:
        if streaming:
            stream = load(path, split=part if piece is None else piece[1], streaming=True, **arguments)
            names, read, count = stream.column_names, _stream_reader(stream), _uncounted
        else:
            table = load(path, bars="data_files" not in arguments, split=part, **arguments)
            names, read, count = table.column_names, _table_reader(table), table.__len__
    except Exception as error:  # `datasets` and the Hub client raise some twenty kinds
        raise UserError(not_loaded(config, label, split, error)) from None

    def reading(asked: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
        try:
            yield from read(asked, skip)
        except Exception as error:  # the same while rows arrive
            raise UserError(not_loaded(config, label, split, error)) from None

    start, stop = (None, None) if piece is None else piece.groups()[1:]
    tables = [Table(label, None if names is None else tuple(names), reading, count)]
    return Split(label, tables, int(start or 0), None if stop is None else int(stop))


def _table_reader(table: datasets.Dataset) -> Read:
    def read(asked: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
        slim = table.select_columns(list(asked))
        for start in range(skip, len(slim), PART):
            yield from _numbered(slim[start : min(start + PART, len(slim))], start)

    return read


def _stream_reader(stream: datasets.IterableDataset) -> Read:
    def read(asked: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
        slim = stream.select_columns(list(asked)) if asked else stream
        for part in slim.skip(skip).iter(PART):
            yield from (rows := list(_numbered(part, skip)))
            skip += len(rows)

    return read


def _numbered(part: Mapping[str, Sequence[Any]], start: int) -> Iterator[tuple[int, Row]]:
    """The rows of a part that is given by columns."""
    for number, values in enumerate(zip(*part.values(), strict=True), start):
        yield number, dict(zip(part, values, strict=True))


def _uncounted() -> int:
    raise NotImplementedError("rows of a stream are not counted")


def load(path: str, bars: bool = False, **arguments: Any) -> Any:
    """`datasets.load_dataset`, without its progress bars unless they are asked for (a download takes its time)."""
    restore = not (bars or datasets.are_progress_bars_disabled())
    if restore:
        datasets.disable_progress_bars()
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the caller reports a failure, once
    try:
        return datasets.load_dataset(path, **arguments)
    finally:
        datasets.logging.set_verbosity(level)
        if restore:
            datasets.enable_progress_bars()


def not_loaded(config: CorpusConfig, label: str, split: str, error: Exception) -> str:
    """The complaint about a data set that `datasets` did not load."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if config.path is not None:
        return f"{label}: not loaded ({reason}); check data.path, data.subset and data.{split}"
    files = f", or data.root=DIR, the folder that holds {config.name}/" if CORPORA[config.name].files else ""
    return f"{label}: not loaded ({reason}); without the Hub give a copy of it as data.path=FOLDER{files}"


def _no_place(config: CorpusConfig) -> str:
    if config.name == "hub":
        return "data.path is not set; with data=hub give the id of a data set (or a folder) as data.path=ID"
    near = CORPORA[config.name].near
    hub = f"; or, with its own columns as data.source and data.target: data=hub data.path={near}" if near else ""
    return f"data={config.name}: set data.root=DIR, the folder that holds {config.name}/{hub}"
