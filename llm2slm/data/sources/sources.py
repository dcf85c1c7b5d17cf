"""Corpora as rows of text: built-in corpora, files, data sets of the Hub, known corpora (`corpora.py`), mixtures.

`rows` reads files and folders, `datasets` reads from the Hub. A split in memory is the list of the rows of its stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2slm.config import CorpusConfig, DataConfig, PartConfig, TaskConfig
from llm2slm.data.languages import known
from llm2slm.data.sources import mixture
from llm2slm.data.sources.columns import TASK, Columns
from llm2slm.data.sources.corpora import (
    BUILTIN_LANGUAGES,
    CORPORA,
    SPLITS,
    columns_of,
    known_corpus,
    languages,
    target_language,
)
from llm2slm.data.sources.hub import Split, hub_split
from llm2slm.data.sources.rows import open_table
from llm2slm.data.sources.rows.table import memory_table
from llm2slm.data.tasks import LM, TASKS, TEXT, WHOLE, Task, mixed, resolve
from llm2slm.data.templates import Template
from llm2slm.nearest_names import nearest
from llm2slm.types import Labels, Overlong, UserError

BUILTIN = ("translation", "summarization", "instruction")
BUILTIN_SIZES = {"train": 20_000, "validation": 500, "test": 1000}
WHOLE_TEXT = "text"
"""Task lm: the column of json and hub where `data.target` names none."""
SHARES = (0.6, 0.2, 0.2)
"""Shares of the built-in corpora in the built-in mixture."""


Rows = list[dict[str, str]]
"""Each with the keys source and target; and task in a mixture."""


def load_rows(
    config: CorpusConfig, split: str, seed: int, templates: tuple[Template, ...] = (), text: bool = False
) -> Rows:
    """The rows of a split in their order, at most `<split>_size`.

    Args:
        config: the corpus; not a mixture.
        split: train, validation or test.
        seed: of the training rows of a built-in corpus; all other rows are independent of it.
        templates: make the source from fields of a row.
        text: the templates make the target, and the source is empty.

    Returns:
        Rows with the keys source and target, and task if the corpus has this column and the row has a text in it.

    Raises:
        UserError: invalid corpus or file; the message names the file, and the line, row or column.
    """
    size = _size(config, split)
    if config.name == "builtin":
        label = f"data.corpus={config.corpus}, {split}"
        made = memory_table(label, _builtin(config.corpus, split, size or BUILTIN_SIZES[split], seed))
        return list(Columns("source", "target", templates, text).rows([made], label))
    return list(_rows(config, split, size, templates, text))


def _rows(
    config: CorpusConfig,
    split: str,
    size: int | None,
    templates: tuple[Template, ...],
    text: bool,
    *,
    skip: int = 0,
    streaming: bool = False,
) -> Iterator[dict[str, str]]:
    """Reads the rows of a split one by one; at most `size`, without the first `skip`."""
    if text and config.target is None and config.name in ("json", "hub"):
        config = replace(config, target=WHOLE_TEXT)
    columns = replace(columns_of(config), templates=templates, text=text)
    path = None
    if config.name == "json":
        path = Path(_required(config, split, "a json, jsonl, csv, tsv or parquet file"))
    elif config.root is not None and config.name != "hub":
        path = _local(config, split)
    try:
        found = Split(str(path), [open_table(path)]) if path is not None else hub_split(config, split, streaming)
        ends = [end for end in (found.stop, None if size is None else found.start + size) if end is not None]
        read = columns.rows(found.tables, found.label, found.start + skip, min(ends, default=None))
        first = next(read, None)
        if first is None and skip == 0:
            raise UserError(f"{found.label}: holds no rows")
        if first is not None:
            yield first
            yield from read
    except UserError as error:
        raise UserError(f"{error}{_root_suggestion(config)}") from None


def read_split(data: DataConfig, task: Task, split: str, seed: int) -> tuple[Rows, list[dict[str, Any]]]:
    """The rows of a split for a task; those of a mixture are drawn by weight (`mixture.py`).

    Returns:
        The rows; and for each part of a mixture its name, task, prefix, metrics, weight, number of rows in the mixture
        (`rows`) and in the part (`of`).

    Raises:
        UserError: as `load_rows`; or the parts cannot be mixed.
    """
    if data.name != "mixture":
        return load_rows(data, split, seed, task.templates, task.text), []
    size, parts = _size(data, split), _parts(data)
    whole = []
    for number, (part, (_, part_task)) in enumerate(zip(parts, task.parts, strict=True)):
        try:
            whole.append(load_rows(part, split, seed, part_task.templates, part_task.text))
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
        {"name": label, "task": of.name, "prefix": of.prefix, "metrics": list(of.metrics), "weight": part.weight}
        | {"rows": given[label], "of": len(rows)}
        for part, (label, of), rows in zip(parts, task.parts, whole, strict=True)
    ]
    return found, notes


def stream_rows(data: DataConfig, task: Task, skip: int = 0) -> Iterator[dict[str, str]]:
    """One pass over the training rows in their order, read one by one; at most `train_size`.

    Args:
        skip: number of rows to skip at the beginning.

    Raises:
        UserError: as `load_rows`, when the row is read; the corpus is generated or mixed in memory; or data.labels is
            not gold.
    """
    if data.labels is not Labels.gold:
        raise UserError(
            f"data.streaming=true: rows are read with the targets of the corpus, not with data.labels={data.labels}; "
            "set data.streaming=false, or stream the file of labels itself (data=json data.train=DIR/labels.jsonl "
            "data.source=source data.target=prediction)"
        )
    if data.name in ("builtin", "mixture"):
        raise UserError(f"data.streaming=true: data={data.name} is made in memory; set data.streaming=false")
    yield from _rows(data, "train", _size(data, "train"), task.templates, task.text, skip=skip, streaming=True)


def task_of(task: TaskConfig, data: DataConfig) -> Task:
    """The task of a configuration for its corpus, with the prefix, language and templates of the corpus.

    Without `task.name`, it is the default task of the corpus (`default_task`). The task of a part of a mixture is its
    `task`, else the default task of its corpus, else `task.name`.

    Raises:
        UserError: unknown task or language, invalid template, parts that cannot be mixed, or keys of `data` that do not
            match the task.
    """
    found = _task_of(*with_default_tasks(task, data))
    texts = [part.text for _, part in found.parts] or [found.text]
    if data.overlong is Overlong.split and not all(texts):
        raise UserError("data.overlong=split: only for plain text (task=lm); use truncate or drop")
    if data.labels is not Labels.gold and any(texts):
        raise UserError(f"data.labels={data.labels}: not for plain text (task=lm); leave it out")
    return found


def _task_of(task: TaskConfig, data: DataConfig) -> Task:
    if data.name != "mixture":
        found = resolve(task, languages(data), _templates(data, task.name), target_language(data))
        by_task = data.name == "builtin" and data.corpus == "mixture" and task.language is None
        return replace(found, languages=tuple(BUILTIN_LANGUAGES.items())) if by_task else found
    parts = _parts(data)
    mixture.check_parts(parts)
    tasks = [_part_task(task, part, f"data.parts[{number}]") for number, part in enumerate(parts)]
    return mixed(task, list(zip(mixture.labels(parts), tasks, strict=True)))


def default_task(config: CorpusConfig) -> str:
    """The default task of a corpus; `TEXT` for files and data sets of the user."""
    if config.name == "builtin":
        return config.corpus if config.corpus in TASKS else TEXT  # an unknown corpus raises when it is read
    if config.name == "mixture":
        return config.name
    return CORPORA[config.name].task if config.name in CORPORA else TEXT


def with_default_tasks(task: TaskConfig, data: DataConfig) -> tuple[TaskConfig, DataConfig]:
    """The configuration with the default tasks filled in: `task.name`, and the task of each part of a mixture."""
    if task.name is not None:
        return task, data
    parts = [replace(part, task=part.task or default_task(part)) for part in data.parts]
    return replace(task, name=default_task(data)), replace(data, parts=parts)


def _templates(config: CorpusConfig, task: str | None) -> tuple[str, ...]:
    """Templates of a corpus of the Hub, unless the user sets data.source.

    With task=lm, templates of the text: source and target with a blank line between them if the source is another
    column; else the target alone.
    """
    hub = CORPORA[config.name].hub if config.name in CORPORA and config.root is None else None
    templates = hub.templates if hub is not None and config.source is None else ()
    if task != LM.name:
        return templates
    paired = config.name == "builtin" or config.name in CORPORA or config.source is not None
    target = WHOLE_TEXT if config.target is None and config.name in ("json", "hub") else config.target
    paired = paired and (config.source is None or config.source != target)
    return (*(f"{one}\n\n{{target}}" for one in templates or ("{source}",)), *WHOLE) if paired else tuple(WHOLE)


def _parts(data: DataConfig) -> list[PartConfig]:
    """The parts of a mixture; `data.root` applies to known corpora without root and path."""

    def with_root(part: PartConfig) -> PartConfig:
        no_folder = part.root is None and part.path is None and part.name in CORPORA
        return replace(part, root=data.root) if no_folder and CORPORA[part.name].files else part

    return [with_root(part) for part in data.parts]


def _part_task(task: TaskConfig, part: PartConfig, key: str) -> Task:
    is_known = part.name == "builtin" or part.name in CORPORA
    if part.name not in ("builtin", "json", "hub"):
        try:
            known_corpus(part.name)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
    name = part.task or (default_task(part) if is_known else task.name)
    single = [task_name for task_name in TASKS if task_name != "mixture"]
    if name not in single:
        raise UserError(f"{key}: its task is one of {', '.join(single)}; it is {name}")
    template = task.template if part.template is None else part.template
    language = task.language if part.language is None else known(part.language, f"{key}.language")
    config = TaskConfig(name, prefix=part.prefix, template=template, language=language)
    return resolve(config, languages(part), _templates(part, name), target_language(part))


def _size(config: CorpusConfig, split: str) -> int | None:
    """Maximum number of rows of a split.

    Raises:
        UserError: unknown split, or a number below 1.
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
    from llm2slm.builtin.corpora import corpus_rows

    if name == "mixture":
        sizes = [max(1, round(size * share)) for share in SHARES]
        parts = [corpus_rows(corpus, split, n, seed) for corpus, n in zip(BUILTIN, sizes, strict=True)]
        return mixture.interleaved(parts)[:size]
    if name not in BUILTIN:
        known = (*BUILTIN, "mixture")
        raise UserError(f"data.corpus={name}: unknown; did you mean {nearest(name, known)}? ({', '.join(known)})")
    rows: list[dict[str, str]] = corpus_rows(name, split, size, seed)
    return rows


def _local(config: CorpusConfig, split: str) -> Path:
    """The file of a known corpus below data.root."""
    files, columns = known_corpus(config.name).files, columns_of(config)
    if config.path is not None:
        raise UserError(
            "data.root and data.path are both set; give data.root=DIR (a folder of corpora), or data.path=FOLDER (a "
            "copy of the Hub's data set)"
        )
    if files is None:
        raise UserError(
            f"data={config.name}: is a data set of the Hub, without files for data.root={config.root}; leave "
            "data.root out, or give a local copy as data.path=FOLDER"
        )
    folder = Path(str(config.root)) / config.name
    if not folder.is_dir():
        root = Path(str(config.root)).absolute()
        hint = f"; did you mean data.root={root.parent}?" if root.name == config.name else ""
        raise UserError(f"{folder}: no such folder; data.root={config.root} must hold {config.name}/{hint}")
    other = columns.source if columns.target == "en" else columns.target
    default = files.test.format(other=other) if split == "test" else split
    return folder / f"{getattr(config, split) or default}.jsonl.gz"


def _root_suggestion(config: CorpusConfig) -> str:
    """A suggestion if `data.path` is a folder of a known corpus below a `data.root`, else ""."""
    folder = Path(config.path or "").expanduser().absolute()
    known = CORPORA.get(config.name)
    if config.path is None or known is None or known.files is None or folder.name != config.name:
        return ""
    if not (folder / "train.jsonl.gz").is_file():
        return ""
    return f"; data.path is for a copy of the Hub's data set: did you mean data.root={folder.parent}?"
