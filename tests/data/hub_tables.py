"""Miniature data sets with the schemas of those on the Hub, as folders that `datasets.load_dataset` reads.

`write` stores one in the layout of its repository: Parquet, JSON lines or CSV, subsets in folders, split names in file
names. All texts are made up.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Translation, Value

SIZES = {"train": 6, "validation": 3, "test": 2}
ONLY_TRAIN = {"train": 1_006}
TEXT = Value("string")

Row = dict[str, Any]


def text(kind: str, split: str, number: int) -> str:
    """A text that states its column, split and row."""
    return f"{kind} {split} {number}"


def pair(source: str, target: str) -> Callable[[str, int], Row]:
    """Rows of a translation table: one column with both languages."""
    return lambda split, n: {"translation": {source: text(source, split, n), target: text(target, split, n)}}


def columns(*names: str) -> Callable[[str, int], Row]:
    """Rows of a table of texts."""
    return lambda split, n: {name: text(name, split, n) for name in names}


def alpaca(split: str, n: int) -> Row:
    """Every second instruction has an input; `text` is the complete prompt of its authors."""
    row = columns("instruction", "input", "output", "text")(split, n)
    return row if n % 2 else row | {"input": ""}


def dolly(split: str, n: int) -> Row:
    """Every second instruction has a context."""
    row = columns("instruction", "context", "response", "category")(split, n)
    return row if n % 2 else row | {"context": ""}


def translation(*codes: str) -> Features:
    """The features of a translation table."""
    return Features({"translation": Translation(codes)})


def texts(*names: str) -> Features:
    """The features of a table of texts."""
    return Features(dict.fromkeys(names, TEXT))


TABLES: dict[str, tuple[str, Callable[[str, int], Row], Features | None, dict[str, int]]] = {
    # corpus: path of the file of a split (suffix: format), rows, features if the format stores them, rows by split
    "wmt14_en_de": ("de-en/{split}-00000-of-00001.parquet", pair("en", "de"), translation("de", "en"), SIZES),
    "wmt14_en_fr": ("fr-en/{split}-00000-of-00001.parquet", pair("en", "fr"), translation("fr", "en"), SIZES),
    "wmt16_en_ro": ("ro-en/{split}-00000-of-00001.parquet", pair("en", "ro"), translation("ro", "en"), SIZES),
    "iwslt2017_en_de": ("iwslt2017-en-de/{split}/0000.parquet", pair("en", "de"), translation("en", "de"), SIZES),
    "multi30k": ("{split}.jsonl", columns("en", "de"), None, SIZES),
    "cnn_dailymail": (
        "3.0.0/{split}-00000-of-00001.parquet",
        columns("article", "highlights", "id"),
        texts("article", "highlights", "id"),
        SIZES,
    ),
    "xsum": (
        "default/{split}/0000.parquet",
        columns("document", "summary", "id"),
        texts("document", "summary", "id"),
        SIZES,
    ),
    "samsum": ("{split}.csv", columns("id", "dialogue", "summary"), None, SIZES),
    "dialogsum": ("{split}.csv", columns("id", "dialogue", "summary", "topic"), None, SIZES),
    "alpaca": (
        "data/{split}-00000-of-00001-a09b74b3ef9c3b56.parquet",
        alpaca,
        texts("instruction", "input", "output", "text"),
        ONLY_TRAIN,
    ),
    "dolly": ("databricks-dolly-15k.jsonl", dolly, None, ONLY_TRAIN),
}
"""Corpora that come from the Hub."""

LOCAL: dict[str, Callable[[str, int], Row]] = {
    "multi30k": columns("en", "de", "fr", "cs"),
    "wmt_news": columns("en", "de", "fr", "cs"),
    "tatoeba_en_fr": columns("source", "target"),
    "small_parallel_enja": columns("source", "target"),
    "samsum": columns("id", "source", "target"),
    "dialogsum": lambda split, n: columns("id", "source", "target", "topic")(split, n) | {"references": ["x", "y"]},
    "alpaca": columns("source", "target", "instruction", "input"),
    "dolly_3k": columns("source", "target", "instruction", "input", "category"),
    "t0_mixture": columns("dataset", "template", "source", "target"),
}
"""Rows of the corpora in `data.root`."""


def write(corpus: str, folder: Path) -> Path:
    """Writes the miniature of a corpus' data set on the Hub."""
    place, row, features, sizes = TABLES[corpus]
    for split, size in sizes.items():
        path = folder / place.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, [row(split, n) for n in range(size)], features)
    return folder


def write_local(corpus: str, root: Path) -> Path:
    """Writes the miniature of a corpus in the folder of corpora."""
    names = {"multi30k": "test_2016_flickr", "wmt_news": "test_2014_ende"}
    for split, size in SIZES.items():
        path = root / corpus / f"{names.get(corpus, split) if split == 'test' else split}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, [LOCAL[corpus](split, n) for n in range(size)])
    return root


def write_file(path: Path, rows: list[Row], features: Features | None = None) -> Path:
    """Writes rows in the format of the suffix."""
    if path.suffix == ".parquet":
        Dataset.from_list(rows, features=features).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path
