"""Splits of data sets: on the Hub by `datasets`, in a local folder of the same layout by this project's readers."""

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
from llm2slm.data.sources.folders import READABLE, FolderFiles, find_files
from llm2slm.data.sources.rows import open_table
from llm2slm.data.sources.rows.table import Read, Row, Table
from llm2slm.types import UserError

PIECE = re.compile(r"(\w+)\[(?:(\d+))?:(?:(\d+))?\]")
"""A slice of a split, for example train[1000:]."""
PART = 1_000
"""Number of rows read at once."""

Request = tuple[str, dict[str, Any]]
"""Arguments of `datasets.load_dataset`: id or builder, and further arguments."""


@dataclass(frozen=True)
class Split:
    """The rows of a split: those of the tables in order, from row `start` to before row `stop` (None: to the last).

    Attributes:
        label: name of the split in messages.
    """

    label: str
    tables: Sequence[Table]
    start: int = 0
    stop: int | None = None


def hub_split(config: CorpusConfig, split: str, streaming: bool = False) -> Split:
    """A split from the Hub, or from a local folder of the same layout.

    Args:
        streaming: read a data set of the Hub row by row (a folder always is).

    Raises:
        UserError: the data set or the split does not exist.
    """
    path, arguments, part = hub_location(config, split)
    label = f"{path}, split {part}"
    folder = local_folder(path)
    if folder is not None:
        try:
            found = find_files(folder, arguments["name"], must=config.subset is not None)
            if found.as_rows:
                return _folder_split(found, label, part)
        except UserError as error:
            raise UserError(not_loaded(config, label, split, error)) from None
        return _loaded(config, label, split, part, _by_datasets(found), streaming=streaming)
    return _loaded(config, label, split, part, (path, arguments), streaming=streaming)


def hub_location(config: CorpusConfig, split: str) -> tuple[str, dict[str, Any], str]:
    """Location of a split: id or folder, further arguments of `datasets.load_dataset`, name of the split.

    Raises:
        UserError: no id is known, or the folder does not exist.
    """
    hub = None if config.name == "hub" else known_corpus(config.name).hub
    path = config.path or (hub.id if hub else None)
    if path is None:
        raise UserError(_no_location(config))
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
    """The folder of a path, where `~` may be the home directory; None if it does not exist."""
    if Path(path).is_dir():
        return Path(path)
    home = Path(path).expanduser() if path == "~" or path.startswith("~/") else Path(path)
    return home if home.is_dir() else None


def _folder_split(found: FolderFiles, label: str, part: str) -> Split:
    """A split, a slice of one, or several, of files that this project reads."""
    piece = PIECE.fullmatch(part)
    spec = "+".join(found.splits) if part == "all" else part
    named = re.sub(r"\[.*?\]|\(.*?\)", "", spec).split("+")
    if unknown := [name for name in named if name not in found.splits]:
        raise UserError(f"no split {unknown[0]!r}; there are: {', '.join(found.splits)}")
    tables = {name: [open_table(path, found.options.get("sep")) for path in found.splits[name]] for name in named}
    if spec in tables:
        return Split(label, tables[spec])
    if piece is not None:
        return Split(label, tables[piece[1]], int(piece[2] or 0), None if piece[3] is None else int(piece[3]))
    sizes = {name: sum(table.count() for table in several) for name, several in tables.items()}
    try:
        pieces = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise UserError(str(error)) from None
    return Split(label, [one for cut in pieces for one in _between(tables[cut.splitname], cut.from_, cut.to)])


def _between(tables: Sequence[Table], start: int, stop: int) -> Iterator[Table]:
    """The rows of concatenated tables from row `start` to before row `stop`."""
    for table in tables:
        count = table.count()
        if start < count and stop > 0:
            yield table.cut(max(start, 0), min(stop, count))
        start, stop = start - count, stop - count


def _by_datasets(found: FolderFiles) -> tuple[str, dict[str, Any]]:
    """Arguments of `datasets.load_dataset` for files that this project does not read.

    Raises:
        UserError: csv or json files with an unsupported compression or option, since `datasets` would infer the types
            of their values.
    """
    if found.kind in READABLE and found.kind != "parquet":
        raise UserError(found.not_as_rows)
    files = {name: [glob.escape(str(path)) for path in paths] for name, paths in found.splits.items()}
    return found.kind, {"data_files": files, **found.options}


def _loaded(config: CorpusConfig, label: str, split: str, part: str, request: Request, *, streaming: bool) -> Split:
    """A split read by `datasets`."""
    path, arguments = request
    piece = PIECE.fullmatch(part) if streaming else None
    try:
        if streaming:
            stream = load(path, split=part if piece is None else piece[1], streaming=True, **arguments)
            names, read, count = stream.column_names, _stream_reader(stream), _uncounted
        else:
            table = load(path, bars="data_files" not in arguments, split=part, **arguments)
            names, read, count = table.column_names, _table_reader(table), table.__len__
    except Exception as error:  # `datasets` and the Hub client raise many classes
        raise UserError(not_loaded(config, label, split, error)) from None

    def reading(columns: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
        try:
            yield from read(columns, skip)
        except Exception as error:  # the same during reading
            raise UserError(not_loaded(config, label, split, error)) from None

    start, stop = (None, None) if piece is None else piece.groups()[1:]
    tables = [Table(label, None if names is None else tuple(names), reading, count)]
    return Split(label, tables, int(start or 0), None if stop is None else int(stop))


def _table_reader(table: datasets.Dataset) -> Read:
    def read(columns: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
        slim = table.select_columns(list(columns))
        for start in range(skip, len(slim), PART):
            yield from _numbered(slim[start : min(start + PART, len(slim))], start)

    return read


def _stream_reader(stream: datasets.IterableDataset) -> Read:
    def read(columns: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
        slim = stream.select_columns(list(columns)) if columns else stream
        for part in slim.skip(skip).iter(PART):
            yield from (rows := list(_numbered(part, skip)))
            skip += len(rows)

    return read


def _numbered(part: Mapping[str, Sequence[Any]], start: int) -> Iterator[tuple[int, Row]]:
    """The rows of a part that is given by columns, numbered from `start`."""
    for number, values in enumerate(zip(*part.values(), strict=True), start):
        yield number, dict(zip(part, values, strict=True))


def _uncounted() -> int:
    raise NotImplementedError("rows of a stream are not counted")


def load(path: str, bars: bool = False, **arguments: Any) -> Any:
    """`datasets.load_dataset`; `bars`: with progress bars (for downloads)."""
    restore = not (bars or datasets.are_progress_bars_disabled())
    if restore:
        datasets.disable_progress_bars()
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the caller reports a failure
    try:
        return datasets.load_dataset(path, **arguments)
    finally:
        datasets.logging.set_verbosity(level)
        if restore:
            datasets.enable_progress_bars()


def not_loaded(config: CorpusConfig, label: str, split: str, error: Exception) -> str:
    """The message on a data set that `datasets` did not load."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if config.path is not None:
        return f"{label}: not loaded ({reason}); check data.path, data.subset and data.{split}"
    files = f", or data.root=DIR, the folder that holds {config.name}/" if CORPORA[config.name].files else ""
    return f"{label}: not loaded ({reason}); without the Hub give a copy of it as data.path=FOLDER{files}"


def _no_location(config: CorpusConfig) -> str:
    if config.name == "hub":
        return "data.path is not set; with data=hub give the id of a data set (or a folder) as data.path=ID"
    near = CORPORA[config.name].near
    hub = f"; or, with other columns as data.source and data.target: data=hub data.path={near}" if near else ""
    return f"data={config.name}: set data.root=DIR, the folder that holds {config.name}/{hub}"
