"""Corpora as rows of text: built-in ones, a user's files, data sets of the Hub, and the known corpora (`corpora.py`).

A local folder and a Hub id go the same way: `datasets.load_dataset`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from llm2slm.config import CorpusConfig, DataConfig, PartConfig, TaskConfig
from llm2slm.data import mixture
from llm2slm.data.columns import PART, TASK, Columns, nearest
from llm2slm.data.corpora import CORPORA, LANGUAGES, PARQUET, SPLITS, Corpus
from llm2slm.data.files import file_parts, load, read_file, stream_file, unreadable
from llm2slm.data.tasks import TASKS, TEXT, Task, mixed, resolve
from llm2slm.data.templates import Template, fields
from llm2slm.types import Labels, UserError

PIECE = re.compile(r"(\w+)\[(?:(\d+))?:(?:(\d+))?\]")
"""Part of a split by the numbers of its rows, as train[1000:]."""

BUILTIN = ("translation", "summarization", "instruction")
BUILTIN_SIZES = {"train": 20_000, "validation": 500, "test": 1000}
SHARES = (0.6, 0.2, 0.2)
"""Shares of the built-in corpora in the built-in mixture."""


Rows = list[dict[str, str]]
"""Each with source and target, and task where it matters which one it is."""


def load_rows(config: CorpusConfig, split: str, seed: int, templates: tuple[Template, ...] = ()) -> Rows:
    """The rows of a split, in the corpus' own order, at most `<split>_size` of them.

    Args:
        config: which corpus; no mixture.
        split: train, validation or test.
        seed: of the training rows of a built-in corpus; no other rows depend on it.
        templates: word each row's source from its fields.

    Returns:
        Rows with keys source and target, and task where the corpus has such a column and the row a text in it.

    Raises:
        UserError: anything wrong with the corpus or a file of it; names the file, and the line, row or column.
    """
    size = _size(config, split)
    if config.name == "builtin":
        made = _builtin(config.corpus, split, size or BUILTIN_SIZES[split], seed)
        table = {key: [row[key] for row in made] for key in made[0]}
        return list(Columns("source", "target", templates).rows([table], f"data.corpus={config.corpus}, {split}"))
    columns = replace(columns_of(config), templates=templates)
    if config.name == "json":
        path = Path(_required(config, split, "a json, jsonl, csv or parquet file"))
    elif config.root is not None and config.name != "hub":
        path = _local(config, split)
    else:
        try:
            return _rows(*_hub(config, split), columns, size)
        except UserError as error:
            raise UserError(f"{error}{_meant_root(config)}") from None
    texts = (columns.target, *fields(templates)) if templates else (columns.source, columns.target)
    return _rows(read_file(path, texts), str(path), columns, size)


def read_split(data: DataConfig, task: Task, split: str, seed: int) -> tuple[Rows, list[dict[str, Any]]]:
    """The rows of a split as a task asks for them; those of a mixture drawn by weight (`mixture.py`).

    Returns:
        The rows; and for a mixture what each part gave: name, task, prefix, metrics, weight, rows, and of how many.

    Raises:
        UserError: as `load_rows`; and parts that cannot be mixed.
    """
    if data.name != "mixture":
        return load_rows(data, split, seed, task.templates), []
    size, parts = _size(data, split), _parts(data)
    whole = []
    for number, (part, (_, own)) in enumerate(zip(parts, task.parts, strict=True)):
        try:
            whole.append(load_rows(part, split, seed, own.templates))
        except UserError as error:
            raise UserError(f"data.parts[{number}]: {error}") from None
    counts = mixture.shares([len(rows) for rows in whole], parts, size) if split == "train" else None
    used = whole
    if counts is not None:
        used = [mixture.drawn(rows, n, seed, k) for k, (rows, n) in enumerate(zip(whole, counts, strict=True))]
    marked = [[row | {TASK: label} for row in rows] for rows, (label, _) in zip(used, task.parts, strict=True)]
    found = mixture.interleaved(marked)[:size]
    given = Counter(row[TASK] for row in found)
    notes = [
        {"name": label, "task": own.name, "prefix": own.prefix, "metrics": list(own.metrics), "weight": part.weight}
        | {"rows": given[label], "of": len(rows)}
        for part, (label, own), rows in zip(parts, task.parts, whole, strict=True)
    ]
    return found, notes


def stream_rows(data: DataConfig, task: Task, skip: int = 0) -> Iterator[dict[str, str]]:
    """The training rows once, in the corpus' own order, read as they are asked for; at most `train_size`.

    Args:
        skip: leave out so many rows at the beginning.

    Raises:
        UserError: as `load_rows`, when the row is reached; a corpus that is made or mixed in memory; or labels other
            than the corpus' own.
    """
    if data.labels is not Labels.gold:
        raise UserError(
            f"data.streaming=true: rows are read with the corpus' own answers, without data.labels={data.labels}; set "
            "data.streaming=false, or stream the file of labels itself (data=json data.train=DIR/labels.jsonl "
            "data.source=source data.target=prediction)"
        )
    if data.name in ("builtin", "mixture"):
        raise UserError(f"data.streaming=true: data={data.name} is put together in memory; set data.streaming=false")
    size, columns = _size(data, "train"), replace(columns_of(data), templates=task.templates)
    path = None
    if data.name == "json":
        path = Path(_required(data, "train", "a json, jsonl, csv or parquet file"))
    elif data.root is not None and data.name != "hub":
        path = _local(data, "train")
    stream, label = _hub_stream(data) if path is None else (stream_file(path), str(path))
    if size is not None:
        stream = stream.take(size)
    try:
        parts = stream.skip(skip).iter(PART) if path is None else file_parts(path, stream, PART, skip)
        yield from columns.rows(parts, label, skip)
    except UserError:
        raise
    except Exception as error:  # whatever the reader of a file, `datasets` or the Hub client raised
        reason = not_loaded(data, label, "train", error) if path is None else unreadable(path, error)
        raise UserError(reason) from None


def _hub_stream(config: CorpusConfig) -> tuple[datasets.IterableDataset, str]:
    """The training rows from the Hub or from a folder of the same form, and what to call them in a complaint."""
    path, arguments, part = hub_place(config, "train")
    label = f"{path}, split {part}"
    piece = PIECE.fullmatch(part)
    split, start, end = (part, None, None) if piece is None else piece.groups()
    try:
        stream = load(path, split=split, streaming=True, **arguments)
    except Exception as error:  # as in `_hub`
        raise UserError(not_loaded(config, label, "train", error)) from None
    stream = stream if end is None else stream.take(int(end))
    return stream if start is None else stream.skip(int(start)), label


def task_of(task: TaskConfig, data: DataConfig) -> Task:
    """The task of a configuration on its corpus: languages word the prefix, templates the source.

    Without `task.name` it is the corpus' own (`own_task`). Each part of a mixture has a task: the one it names, else
    the one its corpus is made for, else `task`.

    Raises:
        UserError: no such task, something that is no template, or parts that cannot be mixed.
    """
    task, data = chosen_task(task, data)
    if data.name != "mixture":
        return resolve(task, languages(data), _templates(data))
    parts = _parts(data)
    mixture.check_parts(parts)
    own = [_part_task(task, part, f"data.parts[{number}]") for number, part in enumerate(parts)]
    return mixed(task, list(zip(mixture.labels(parts), own, strict=True)))


def own_task(config: CorpusConfig) -> str:
    """The task that a corpus is made for; `TEXT` for rows of which nothing is known."""
    if config.name == "builtin":
        return config.corpus if config.corpus in TASKS else TEXT  # a wrong one is refused where it is read
    if config.name == "mixture":
        return config.name
    return CORPORA[config.name].task if config.name in CORPORA else TEXT


def chosen_task(task: TaskConfig, data: DataConfig) -> tuple[TaskConfig, DataConfig]:
    """The same with every task that nobody chose named: `task.name`, and that of each part of a mixture."""
    if task.name is not None:
        return task, data
    parts = [replace(part, task=part.task or own_task(part)) for part in data.parts]
    return replace(task, name=own_task(data)), replace(data, parts=parts)


def _templates(config: CorpusConfig) -> tuple[str, ...]:
    """Those of a corpus of the Hub, unless the user names a source column."""
    hub = CORPORA[config.name].hub if config.name in CORPORA and config.root is None else None
    return hub.templates if hub is not None and config.source is None else ()


def _parts(data: DataConfig) -> list[PartConfig]:
    """The parts of a mixture; `data.root` holds for those that it may hold."""

    def placed(part: PartConfig) -> PartConfig:
        open_place = part.root is None and part.path is None and part.name in CORPORA
        return replace(part, root=data.root) if open_place and CORPORA[part.name].files else part

    return [placed(part) for part in data.parts]


def _part_task(task: TaskConfig, part: PartConfig, place: str) -> Task:
    known = part.name == "builtin" or part.name in CORPORA
    if part.name not in ("builtin", "json", "hub"):
        try:
            _known(part)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    name = part.task or (own_task(part) if known else task.name)
    single = [task_name for task_name in TASKS if task_name != "mixture"]
    if name not in single:
        raise UserError(f"{place}: its task is one of {', '.join(single)}; it is {name}")
    template = task.template if part.template is None else part.template
    return resolve(TaskConfig(name, prefix=part.prefix, template=template), languages(part), _templates(part))


def columns_of(config: CorpusConfig) -> Columns:
    """The columns that a configuration names; where it names none, the corpus' own."""
    corpus = CORPORA.get(config.name)
    own = corpus and (corpus.files if config.root is not None or corpus.hub is None else corpus.hub)
    source, target = (own.source, own.target) if own else ("source", "target")
    return Columns(config.source or source, config.target or target)


def languages(config: CorpusConfig) -> tuple[str, str] | None:
    """English names of source and target language, where the corpus or its columns' names tell them."""
    corpus, columns = CORPORA.get(config.name), columns_of(config)
    pair = tuple(name.rpartition(".")[2] for name in (columns.source, columns.target))
    if corpus is not None and corpus.languages and not (config.source or config.target):
        pair = corpus.languages
    return (LANGUAGES[pair[0]], LANGUAGES[pair[1]]) if set(pair) <= set(LANGUAGES) else None


def _known(config: CorpusConfig) -> Corpus:
    if config.name not in CORPORA:
        known = ("builtin", "json", "hub", "mixture", *CORPORA)
        near = nearest(config.name, known)
        raise UserError(f"data={config.name}: unknown corpus; did you mean {near}? ({', '.join(known)})")
    return CORPORA[config.name]


def _size(config: CorpusConfig, split: str) -> int | None:
    """Rows of a split at most.

    Raises:
        UserError: no such split, or no such number.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; use {', '.join(SPLITS)}")
    size: int | None = getattr(config, f"{split}_size")
    if size is not None and size < 1:
        raise UserError(f"data.{split}_size={size}: must be at least 1")
    return size


def _required(config: CorpusConfig, split: str, what: str) -> str:
    value: str | None = getattr(config, split)
    if value is None:
        raise UserError(f"data.{split} is not set; with data={config.name} give {what} as data.{split}=...")
    return value


def _builtin(name: str, split: str, size: int, seed: int) -> list[dict[str, str]]:
    from llm2slm.data.builtin import corpus_rows

    if name == "mixture":
        sizes = [max(1, round(size * share)) for share in SHARES]
        parts = [corpus_rows(corpus, split, n, seed) for corpus, n in zip(BUILTIN, sizes, strict=True)]
        return mixture.interleaved(parts)[:size]
    if name not in BUILTIN:
        known = (*BUILTIN, "mixture")
        raise UserError(f"data.corpus={name}: unknown; did you mean {nearest(name, known)}? ({', '.join(known)})")
    rows: list[dict[str, str]] = corpus_rows(name, split, size, seed)
    return rows


def _hub(config: CorpusConfig, split: str) -> tuple[datasets.Dataset, str]:
    """A split from the Hub or from a folder of the same form, and what to call it in a complaint."""
    path, arguments, part = hub_place(config, split)
    label = f"{path}, split {part}"
    try:
        found = load(path, bars=not Path(path).is_dir(), split=part, **arguments)
    except Exception as error:  # `datasets` and the Hub client raise some twenty kinds
        raise UserError(not_loaded(config, label, split, error)) from None
    return found, label


def hub_place(config: CorpusConfig, split: str) -> tuple[str, dict[str, Any], str]:
    """Where `datasets.load_dataset` finds a split: id or folder, further arguments, name of the split.

    Raises:
        UserError: no id is known, or no such folder.
    """
    hub = None if config.name == "hub" else _known(config).hub
    path = config.path or (hub.id if hub else None)
    if path is None:
        raise UserError(_no_place(config))
    part = getattr(config, split) or (hub.splits[SPLITS.index(split)] if hub else split)
    subset = config.subset or (hub.subset if hub else None)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder), _local_subset(folder, subset, must=config.subset is not None), part
    if path.startswith(("/", ".", "~")):
        raise UserError(f"data.path={path}: no such folder")
    revision = config.revision or (hub.revision if hub and config.path is None else None)
    return path, {"data_dir" if revision == PARQUET else "name": subset, "revision": revision}, part


def _local_subset(folder: Path, subset: str | None, must: bool) -> dict[str, str]:
    """How `load_dataset` is told of a subset in a local folder: its README.md names it, or a folder in it has its name.

    Args:
        must: the user has named it; else the folder may as well hold that one subset alone.
    """
    if subset is None:
        return {}
    if (folder / "README.md").is_file() and subset in datasets.get_dataset_config_names(str(folder)):
        return {"name": subset}
    if (folder / subset).is_dir():
        return {"data_dir": subset}
    return {"name": subset} if must else {}


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


def _local(config: CorpusConfig, split: str) -> Path:
    """The file of a known corpus in the folder of corpora."""
    files, columns = _known(config).files, columns_of(config)
    if config.path is not None:
        raise UserError(
            "data.root and data.path are both set; give data.root=DIR (a folder of corpora), or data.path=FOLDER (a "
            "copy of the Hub's data set)"
        )
    if files is None:
        raise UserError(
            f"data={config.name}: is a data set of the Hub, and none of data.root={config.root}; leave data.root out, "
            "or give a copy of it as data.path=FOLDER"
        )
    folder = Path(str(config.root)) / config.name
    if not folder.is_dir():
        root = Path(str(config.root)).absolute()
        hint = f"; did you mean data.root={root.parent}?" if root.name == config.name else ""
        raise UserError(f"{folder}: no such folder; data.root={config.root} must hold {config.name}/{hint}")
    other = columns.source if columns.target == "en" else columns.target
    default = files.test.format(other=other) if split == "test" else split
    return folder / f"{getattr(config, split) or default}.jsonl.gz"


def _meant_root(config: CorpusConfig) -> str:
    """What to add to a complaint about `data.path` where that is a known corpus' folder of a `data.root`."""
    folder = Path(config.path or "").expanduser().absolute()
    known = CORPORA.get(config.name)
    if config.path is None or known is None or known.files is None or folder.name != config.name:
        return ""
    if not (folder / "train.jsonl.gz").is_file():
        return ""
    return f"; data.path is for a copy of the Hub's data set: did you mean data.root={folder.parent}?"


def _rows(table: datasets.Dataset, label: str, columns: Columns, size: int | None) -> list[dict[str, str]]:
    """At most `size` rows of a table."""
    if len(table) == 0:
        raise UserError(f"{label}: holds no rows")
    slim = table.select_columns(columns.needed(table.column_names, label))
    end = min(size or len(slim), len(slim))
    return list(columns.rows((slim[i : min(i + PART, end)] for i in range(0, end, PART)), label))
