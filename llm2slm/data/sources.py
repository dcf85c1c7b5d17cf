"""Corpora as rows of text: built-in ones, a user's files, Hub data sets, and the known corpora in a local folder.

A known corpus is a row of `CORPORA`, not a class. A local folder and a Hub id go the same way: `datasets.load_dataset`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import datasets

from llm2slm.config import DataConfig
from llm2slm.data.files import load, no_text, read_file
from llm2slm.types import UserError

SPLITS = ("train", "validation", "test")
BUILTIN = ("translation", "summarization", "instruction")
BUILTIN_SIZES = {"train": 20_000, "validation": 500, "test": 1000}
MIXTURE = (0.6, 0.2, 0.2)
"""Shares of the built-in corpora in the built-in mixture."""

LANGUAGES = {"en": "English", "de": "German", "fr": "French", "cs": "Czech", "ja": "Japanese"}


@dataclass(frozen=True)
class Corpus:
    """A corpus of which this project knows the files.

    Attributes:
        test: its test file, without suffix; `{other}` stands for the language that is not English.
        source: default column of the source text.
        target: default column of the target text.
        hub: nearest data set on the Hub, for who has no local copy.
        languages: language codes of source and target, where the columns' names are not they.
    """

    test: str = "test"
    source: str = "source"
    target: str = "target"
    hub: str = ""
    languages: tuple[str, str] | None = None


CORPORA = {
    "multi30k": Corpus("test_2016_flickr", "en", "de", "bentrevett/multi30k"),
    "wmt_news": Corpus("test_2014_en{other}", "en", "de", "wmt/wmt14"),
    "tatoeba_en_fr": Corpus(hub="Helsinki-NLP/tatoeba_mt", languages=("en", "fr")),
    "small_parallel_enja": Corpus(languages=("en", "ja")),
    "samsum": Corpus(hub="knkarthick/samsum"),
    "dialogsum": Corpus(hub="knkarthick/dialogsum"),
    "alpaca": Corpus(hub="tatsu-lab/alpaca"),
    "dolly_3k": Corpus(hub="databricks/databricks-dolly-15k"),
    "t0_mixture": Corpus(hub="yizhongw/self_instruct"),
}


def load_rows(config: DataConfig, split: str, seed: int) -> list[dict[str, str]]:
    """The rows of a split, in the corpus' own order, at most `<split>_size` of them.

    Args:
        config: which corpus.
        split: train, validation or test.
        seed: of a built-in corpus; others do not depend on it.

    Returns:
        Rows with keys source and target, and task where the corpus has such a column and the row a text in it.

    Raises:
        UserError: anything wrong with the corpus or a file of it; names the file, and the line, row or column.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; use {', '.join(SPLITS)}")
    size = getattr(config, f"{split}_size")
    if size is not None and size < 1:
        raise UserError(f"data.{split}_size={size}: must be at least 1")
    if config.name == "builtin":
        return _builtin(config.corpus, split, size or BUILTIN_SIZES[split], seed)
    if config.name == "json":
        name = _required(config, split, "a json, jsonl, csv or parquet file")
        source, target = config.source or "source", config.target or "target"
        return _texts(read_file(Path(name), (source, target)), name, source, target, size)
    if config.name == "hub":
        return _hub(config, split, size)
    return _local(config, split, size)


def languages(config: DataConfig) -> tuple[str, str] | None:
    """English names of source and target language, where the corpus is known to be a parallel one."""
    corpus = CORPORA.get(config.name)
    if corpus is None:
        return None
    pair = corpus.languages or (config.source or corpus.source, config.target or corpus.target)
    return (LANGUAGES[pair[0]], LANGUAGES[pair[1]]) if set(pair) <= set(LANGUAGES) else None


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    return get_close_matches(word, known, n=1, cutoff=0.0)[0]


def _required(config: DataConfig, split: str, what: str) -> str:
    value: str | None = getattr(config, split)
    if value is None:
        raise UserError(f"data.{split} is not set; with data={config.name} give {what} as data.{split}=...")
    return value


def _builtin(name: str, split: str, size: int, seed: int) -> list[dict[str, str]]:
    from llm2slm.data.builtin import corpus_rows

    if name == "mixture":
        sizes = [max(1, round(size * share)) for share in MIXTURE]
        parts = [corpus_rows(corpus, split, n, seed) for corpus, n in zip(BUILTIN, sizes, strict=True)]
        return list(itertools.islice(_interleaved(parts), size))
    if name not in BUILTIN:
        known = (*BUILTIN, "mixture")
        raise UserError(f"data.corpus={name}: unknown; did you mean {_nearest(name, known)}? ({', '.join(known)})")
    rows: list[dict[str, str]] = corpus_rows(name, split, size, seed)
    return rows


def _interleaved(parts: list[list[dict[str, str]]]) -> Iterator[dict[str, str]]:
    """Every part spread evenly over the whole, each in its own order."""
    placed = [((i + 0.5) / len(part), k, i) for k, part in enumerate(parts) for i in range(len(part))]
    return (parts[k][i] for _, k, i in sorted(placed))


def _hub(config: DataConfig, split: str, size: int | None) -> list[dict[str, str]]:
    if config.path is None:
        raise UserError("data.path is not set; with data=hub give the id of a data set (or a folder) as data.path=ID")
    part = getattr(config, split) or split
    label = f"{config.path}, split {part}"
    try:
        found = load(config.path, name=config.subset, split=part)
    except Exception as error:  # `datasets` and the Hub client raise some twenty kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{label}: not loaded ({reason}); check data.path, data.subset and data.{split}") from None
    return _texts(found, label, config.source or "source", config.target or "target", size)


def _local(config: DataConfig, split: str, size: int | None) -> list[dict[str, str]]:
    corpus = CORPORA.get(config.name)
    if corpus is None:
        known = ("builtin", "json", "hub", *CORPORA)
        near = _nearest(config.name, known)
        raise UserError(f"data={config.name}: unknown corpus; did you mean {near}? ({', '.join(known)})")
    if config.root is None:
        hub = f"; or, with its own columns as data.source and data.target: data=hub data.path={corpus.hub}"
        raise UserError(
            f"data={config.name}: set data.root=DIR, the folder that holds {config.name}/{hub if corpus.hub else ''}"
        )
    folder = Path(config.root) / config.name
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; data.root={config.root} must hold {config.name}/")
    source, target = config.source or corpus.source, config.target or corpus.target
    default = corpus.test.format(other=source if target == "en" else target) if split == "test" else split
    path = folder / f"{getattr(config, split) or default}.jsonl.gz"
    return _texts(read_file(path, (source, target)), str(path), source, target, size)


def _texts(table: datasets.Dataset, label: str, source: str, target: str, size: int | None) -> list[dict[str, str]]:
    """The two columns as rows, each value checked to be text; and `task`, where it is one (only mixtures need it)."""
    names = list(table.column_names)
    for key, name in (("source", source), ("target", target)):
        if name not in names:
            near = _nearest(name, names)
            raise UserError(
                f"{label}: no column {name!r} (data.{key}); did you mean {near!r}? columns: {', '.join(names)}"
            )
    if len(table) == 0:
        raise UserError(f"{label}: holds no rows")
    kept = {source, target} | ({"task"} & set(names))
    columns: dict[str, list[Any]] = table.select_columns(sorted(kept))[: size or len(table)]
    for name in (source, target):
        for number, value in enumerate(columns[name]):
            if not isinstance(value, str):
                raise UserError(no_text(label, number, name, value))
    rows = [{"source": a, "target": b} for a, b in zip(columns[source], columns[target], strict=True)]
    for row, task in zip(rows, columns.get("task", ()), strict=False):
        if isinstance(task, str):
            row["task"] = task
    return rows
