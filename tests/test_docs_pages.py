"""docs/: on every page each command composes, each override in the text is one, and each file named exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import ROOT

from llm2slm.cli import VERBS
from llm2slm.cli.compose import Composer, runs_named
from llm2slm.data.sources.corpora import CORPORA
from llm2slm.evaluation.metrics.scores import METRICS
from llm2slm.types import UserError

PAGES = sorted((ROOT / "docs").glob("*.md"))
OF_PYTHON = ("num_return_sequences=3", "stop_strings=[\\n]")
"""Arguments that a page names and that are no override."""
VERB_KEYS = {verb: Composer(verb) for verb in VERBS}


def read(page: Path) -> str:
    return re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[list[str]]:
    lines = re.findall(r"^ {4}(llm2slm .*)$", read(page), re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def spans(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```\n", "", read(page), flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^ {4,}.*\n", "", prose, flags=re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_compose(page):
    calls = commands(page)
    assert len(calls) > 2
    for verb, *overrides in calls:
        composer, words = VERB_KEYS[verb], [word for word in overrides if word != "-m"]
        for override in runs_named(composer.schema, words):
            composer.prepare(override, sweeping="-m" in overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_overrides_in_the_text_are_valid(page):
    checked = 0
    for span in spans(page):
        if not re.match(r"(llm2slm \w+ )?[a-z][\w./]*=\S", span):
            continue
        given = re.sub(r"^llm2slm \w+ ", "", span).replace("[...]", "[]")
        for word in [given] if "{" in given else shlex.split(given):
            assert word in OF_PYTHON or any(takes(composer, word) for composer in VERB_KEYS.values()), word
            checked += 1
    assert checked > 5


def takes(composer: Composer, override: str) -> bool:
    try:
        composer.prepare(override, sweeping=False)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_named_exist(page):
    for span in spans(page):
        if re.fullmatch(r"(docs|experiments|conf|tests|llm2slm)/[\w./]*", span):
            assert (ROOT / span).exists(), span


def test_every_corpus_and_every_metric_is_named():
    data, results = (set(re.findall(r"[\w+:]+", " ".join(spans(ROOT / "docs" / name)))) for name in
                     ("data.md", "results.md"))  # fmt: skip
    assert set(CORPORA) <= data
    assert {f"{name}MODEL" if name.endswith(":") else name for name in METRICS} <= results
