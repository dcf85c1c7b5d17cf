"""The corpora that the project generates itself: endless, seeded, offline.

Row `index` of a training split is a function of corpus, seed and index; row `index` of a validation or test split is a
function of corpus, split and index only, so that runs with different seeds are evaluated on the same rows. A hash
partitions all source texts into the splits, so no source of the test or validation split is in the training split of
any seed.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

from llm2slm.types import UserError

Generator = Callable[[random.Random], tuple[str, str]]
# Corpus -> module and function: a random.Random to (source, target).
CORPORA = {
    "translation": ("llm2slm.builtin.corpora.translation", "sentence_pair"),
    "summarization": ("llm2slm.builtin.corpora.reports", "report"),
    "instruction": ("llm2slm.builtin.corpora.requests", "request"),
}
SPLITS = ("train", "validation", "test")
EVALUATION_SEED = 1
"""Draws validation and test, whatever the seed of a run."""


def generator(corpus: str) -> Generator:
    """The function that draws a (source, target) pair of `corpus`."""
    if corpus not in CORPORA:
        raise UserError(f"built-in corpus {corpus!r} does not exist; choose one of {', '.join(CORPORA)}")
    module, function = CORPORA[corpus]
    found: Generator = getattr(import_module(module), function)
    return found


def split_of(source: str) -> str:
    """The split of a source text: 2 % test, 2 % validation, the rest train."""
    bucket = zlib.crc32(source.encode("utf-8")) % 50
    return {0: "test", 1: "validation"}.get(bucket, "train")


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"split {split!r} does not exist; choose one of {', '.join(SPLITS)}")


def _draw(corpus: str, split: str, seed: int, index: int, seen: set[str] | frozenset[str]) -> dict[str, str]:
    draw = generator(corpus)
    drawn_by = seed if split == "train" else EVALUATION_SEED
    rng = random.Random(f"{corpus}/{split}/{drawn_by}/{index}")
    while True:
        source, target = draw(rng)
        if split_of(source) == split and source not in seen:
            return {"task": corpus, "source": source, "target": target}


def corpus_row(corpus: str, split: str, seed: int, index: int) -> dict[str, str]:
    """Row `index`: `task`, `source`, `target`. Only training rows depend on the seed.

    Raises:
        UserError: an unknown corpus or split.
    """
    _check_split(split)
    return _draw(corpus, split, seed, index, frozenset())


def corpus_rows(corpus: str, split: str, size: int, seed: int) -> list[dict[str, str]]:
    """The first `size` rows; in validation and test, which are the same for every seed, no source occurs twice."""
    return list(_rows(corpus, split, size, seed))


@lru_cache(maxsize=8)  # the systems of a demo, or the verbs of one process, read the same rows
def _rows(corpus: str, split: str, size: int, seed: int) -> tuple[dict[str, str], ...]:
    _check_split(split)
    seen: set[str] = set()
    rows = []
    for index in range(size):
        row = _draw(corpus, split, seed, index, seen)
        if split != "train":
            seen.add(row["source"])
        rows.append(row)
    return tuple(rows)
