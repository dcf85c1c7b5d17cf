"""The splits of the built-in corpora: validation and test do not depend on the seed and share no row with train."""

from __future__ import annotations

import hashlib

import pytest
from sampling import representatives

from llm2slm.builtin.corpora import CORPORA, corpus_row, corpus_rows, split_of
from llm2slm.cli.compose import Composer
from llm2slm.config import DataConfig
from llm2slm.data.sources.sources import load_rows, read_split, task_of

NAMES = (*CORPORA, "mixture")
SEEDS = (0, 1, 2, 17)
EVALUATION = ("validation", "test")


def composed(*overrides):
    """The configuration that `llm2slm train` gets."""
    composer = Composer("train")
    return composer.typed(composer.compose([composer.prepare(override, sweeping=False) for override in overrides]))


def rows(corpus, split, seed, size):
    """Rows of a split as a run gets them, as (source, target)."""
    config = DataConfig(corpus=corpus, train_size=size, validation_size=size, test_size=size)
    return [(row["source"], row["target"]) for row in load_rows(config, split, seed)]


@pytest.mark.parametrize("corpus", representatives(NAMES, ["translation", "mixture"]))
def test_validation_and_test_are_the_same_for_every_seed_and_training_rows_are_not(corpus):
    for split in EVALUATION:
        first, *others = (rows(corpus, split, seed, 30) for seed in SEEDS)
        assert all(other == first for other in others)
    trained = [rows(corpus, "train", seed, 30) for seed in SEEDS]
    assert all(one != other for i, one in enumerate(trained) for other in trained[:i])


@pytest.mark.parametrize("corpus", representatives(NAMES, ["mixture"]))
def test_no_evaluation_row_is_a_training_row_of_any_seed(corpus):
    evaluated = {split: {source for source, _ in rows(corpus, split, 1, 200)} for split in EVALUATION}
    assert not evaluated["validation"] & evaluated["test"]
    for seed in SEEDS:
        trained = {source for source, _ in rows(corpus, "train", seed, 1500)}
        assert not trained & (evaluated["validation"] | evaluated["test"])


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_source_is_in_one_split_for_every_seed(corpus):
    """Over all sources, not only those that are drawn above: the split is a function of the text."""
    for split in ("train", *EVALUATION):
        for seed in SEEDS:
            assert {split_of(row["source"]) for row in corpus_rows(corpus, split, 40, seed)} == {split}
            assert split_of(corpus_row(corpus, split, seed, 1000)["source"]) == split


def test_rows_of_seed_1_are_those_of_the_published_results():
    """SHA-256 of the rows that seed 1 had before validation and test were the same for all seeds."""
    published = {
        ("translation", "validation"): "73d8e966c7ae6976", ("translation", "test"): "4d3daf681ae31106",
        ("summarization", "validation"): "ab23f4bdf55b3cb0", ("summarization", "test"): "d48cd59f7b930c48",
        ("instruction", "validation"): "b7bff953972829b4", ("instruction", "test"): "10512048c6650d07",
        ("translation", "train"): "c2478654f45c4a07",
    }  # fmt: skip
    found = {
        (corpus, split): hashlib.sha256(repr(rows(corpus, split, 1, 50)).encode()).hexdigest()[:16]
        for corpus, split in published
    }
    assert found == published


@pytest.mark.slow
def test_only_training_rows_of_a_mixture_part_depend_on_the_seed():
    overrides = ["data=mixture", "task=mixture", "data.parts=[{name: builtin, corpus: translation, train_size: 20}]"]
    config = composed(*overrides)
    task = task_of(config.task, config.data)
    one, two = (read_split(config.data, task, "test", seed)[0] for seed in (1, 2))
    assert one == two
    one, two = (read_split(config.data, task, "train", seed)[0] for seed in (1, 2))
    assert sorted(row["source"] for row in one) != sorted(row["source"] for row in two)


@pytest.mark.slow
def test_the_training_rows_of_the_builtin_llm_contain_no_evaluation_row():
    """The first rows of its experiment; the others are in the training split by the same hash."""
    config = composed("experiment=builtin_llm")
    data = config.data
    assert (data.name, data.corpus, data.streaming) == ("builtin", "mixture", False)
    data.train_size = 3000
    trained = {row["source"] for row in load_rows(data, "train", config.seed)}
    for corpus in CORPORA:
        for split in EVALUATION:
            assert not trained & {source for source, _ in rows(corpus, split, 3, 300)}
