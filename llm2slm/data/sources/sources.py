"""Corpora as rows of text: built-in ones, a user's files, data sets of the Hub, and the known corpora (`corpora.py`).

Rows of a file or a folder come from `rows`, those of the Hub from `datasets`. A split that is read whole is the list of
its stream.
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
from llm2slm.types import Labels, Overlong, UserError, nearest

BUILTIN = ("translation", "summarization", "instruction")
BUILTIN_SIZES = {"train": 20_000, "validation": 500, "test": 1000}
SHARES = (0.6, 0.2, 0.2)
"""Shares of the built-in corpora in the built-in mixture."""


Rows = list[dict[str, str]]
"""Each with source and target, and task where it matters which one it is."""


def load_rows(
    config: CorpusConfig, split: str, seed: int, templates: tuple[Template, ...] = (), text: bool = False
) -> Rows:
    """The rows of a split, in the corpus' own order, at most `<split>_size` of them.

    Args:
        config: which corpus; no mixture.
        split: train, validation or test.
        seed: of the training rows of a built-in corpus; no other rows depend on it.
        templates: word each row's source from its fields.
        text: they word the target, and the source is empty.

    Returns:
        Rows with keys source and target, and task where the corpus has such a column and the row a text in it.

    Raises:
        UserError: anything wrong with the corpus or a file of it; names the file, and the line, row or column.
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
    """The rows of a split that is read, as they are asked for; at most `size`, without the first `skip` of them."""
    if text and config.target is None and config.name in ("json", "hub"):
        config = replace(config, target="text")
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
        raise UserError(f"{error}{_meant_root(config)}") from None


def read_split(data: DataConfig, task: Task, split: str, seed: int) -> tuple[Rows, list[dict[str, Any]]]:
    """The rows of a split as a task asks for them; those of a mixture drawn by weight (`mixture.py`).

    Returns:
        The rows; and for a mixture what each part gave: name, task, prefix, metrics, weight, rows, and of how many.

    Raises:
        UserError: as `load_rows`; and parts that cannot be mixed.
    """
    if data.name != "mixture":
        return load_rows(data, split, seed, task.templates, task.text), []
    size, parts = _size(data, split), _parts(data)
    whole = []
    for number, (part, (_, own)) in enumerate(zip(parts, task.parts, strict=True)):
        try:
            whole.append(load_rows(part, split, seed, own.templates, own.text))
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
    yield from _rows(data, "train", _size(data, "train"), task.templates, task.text, skip=skip, streaming=True)


def task_of(task: TaskConfig, data: DataConfig) -> Task:
    """The task of a configuration on its corpus: languages word the prefix and tokenize targets in metrics, templates
    word the source.

    Without `task.name` it is the corpus' own (`own_task`). Each part of a mixture has a task: the one it names, else
    the one its corpus is made for, else `task`.

    Raises:
        UserError: no such task, no such language, something that is no template, parts that cannot be mixed, or keys
            of `data` that do not fit the task.
    """
    found = _task_of(*chosen_task(task, data))
    texts = [own.text for _, own in found.parts] or [found.text]
    if data.overlong is Overlong.split and not all(texts):
        raise UserError(
            "data.overlong=split: makes rows of the pieces of a plain text, for task=lm; use truncate or drop"
        )
    if data.labels is not Labels.gold and any(texts):
        raise UserError(f"data.labels={data.labels}: a plain text (task=lm) has no answer of an LLM; leave it out")
    return found


def _task_of(task: TaskConfig, data: DataConfig) -> Task:
    if data.name != "mixture":
        found = resolve(task, languages(data), _templates(data, task.name), target_language(data))
        by_task = data.name == "builtin" and data.corpus == "mixture" and task.language is None
        return replace(found, languages=tuple(BUILTIN_LANGUAGES.items())) if by_task else found
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


def _templates(config: CorpusConfig, task: str | None) -> tuple[str, ...]:
    """Those of a corpus of the Hub, unless the user names a source column.

    With task lm the text of a row: source and target with a blank line between them, where there is a source; else the
    target.
    """
    hub = CORPORA[config.name].hub if config.name in CORPORA and config.root is None else None
    own = hub.templates if hub is not None and config.source is None else ()
    if task != LM.name:
        return own
    paired = config.name == "builtin" or config.name in CORPORA or config.source is not None
    return (*(f"{one}\n\n{{target}}" for one in own or ("{source}",)), *WHOLE) if paired else tuple(WHOLE)


def _parts(data: DataConfig) -> list[PartConfig]:
    """The parts of a mixture; `data.root` holds for those that it may hold."""

    def placed(part: PartConfig) -> PartConfig:
        open_place = part.root is None and part.path is None and part.name in CORPORA
        return replace(part, root=data.root) if open_place and CORPORA[part.name].files else part

    return [placed(part) for part in data.parts]


def _part_task(task: TaskConfig, part: PartConfig, place: str) -> Task:
    of_project = part.name == "builtin" or part.name in CORPORA
    if part.name not in ("builtin", "json", "hub"):
        try:
            known_corpus(part.name)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    name = part.task or (own_task(part) if of_project else task.name)
    single = [task_name for task_name in TASKS if task_name != "mixture"]
    if name not in single:
        raise UserError(f"{place}: its task is one of {', '.join(single)}; it is {name}")
    template = task.template if part.template is None else part.template
    language = task.language if part.language is None else known(part.language, f"{place}.language")
    config = TaskConfig(name, prefix=part.prefix, template=template, language=language)
    return resolve(config, languages(part), _templates(part, name), target_language(part))


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
    """The file of a known corpus in the folder of corpora."""
    files, columns = known_corpus(config.name).files, columns_of(config)
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
