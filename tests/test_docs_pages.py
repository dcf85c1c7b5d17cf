"""docs/: on every page each command composes, each override in the text is one, and each file named exists."""

from __future__ import annotations

import re
import shlex
import tomllib

import pytest
from command_line import ROOT
from documented import calls, spans

from llm2slm.cli import VERBS
from llm2slm.cli.compose import Composer, runs_named
from llm2slm.data.sources.corpora import CORPORA
from llm2slm.data.tasks import TASKS
from llm2slm.evaluation.metrics.scores import METRICS
from llm2slm.types import UserError

PAGES = sorted((ROOT / "docs").glob("*.md"))
WITHOUT_COMMANDS = {"glossary"}
OF_PYTHON = (
    "num_return_sequences=3",
    "remove_unused_columns=False",
    "device_map=auto",
    "stop_strings=[\\n]",
    "PYTHON=/path/to/python3.12",
    "decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels)",
)
"""Arguments of Python or make, which are not overrides."""
VERB_KEYS = {verb: Composer(verb) for verb in VERBS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_compose(page):
    found = calls(page.read_text(encoding="utf-8"))
    assert len(found) > 2 or page.stem in WITHOUT_COMMANDS
    for verb, *overrides in found:
        composer, words = VERB_KEYS[verb], [word for word in overrides if word != "-m"]
        for override in runs_named(composer.schema, words):
            composer.prepare(override, sweeping="-m" in overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_overrides_in_the_text_are_valid(page):
    checked = 0
    for span in spans(page.read_text(encoding="utf-8")):
        if not re.match(r"(llm2slm \w+ )?[a-z][\w./]*=\S", span):
            continue
        given = re.sub(r"^llm2slm \w+ ", "", span).replace("[...]", "[]").replace("...", "x")
        for word in [given] if "{" in given else shlex.split(given):
            swept = page.stem == "sweeps"
            assert word in OF_PYTHON or any(takes(each, word, swept) for each in VERB_KEYS.values()), word
            checked += 1
    assert checked > 3


def takes(composer: Composer, override: str, sweeping: bool) -> bool:
    try:
        composer.prepare(override, sweeping=sweeping)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_named_and_linked_exist(page):
    text = page.read_text(encoding="utf-8")
    for span in spans(text):
        if re.fullmatch(r"(docs|experiments|conf|tests|llm2slm)/[\w./-]*", span):
            assert (ROOT / span).exists(), span
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        assert (page.parent / link).exists(), link


def test_every_corpus_task_and_metric_is_documented():
    data, results = (set(re.findall(r"[\w+:]+", " ".join(spans((ROOT / "docs" / name).read_text("utf-8"))))) for name in
                     ("data.md", "results.md"))  # fmt: skip
    assert set(CORPORA) <= data
    assert set(TASKS) <= data
    assert {f"{name}MODEL" if name.endswith(":") else name for name in METRICS} <= results


def test_the_glossary_has_ten_terms():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\| \*\*", text, re.MULTILINE)) == 10


def test_every_extra_is_in_the_installation():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = set(re.findall(r"'llm-to-slm\[(\w+)\]'", (ROOT / "docs" / "install.md").read_text("utf-8")))
    assert named == set(extras)


def test_the_map_of_the_package_is_correct():
    """Every module and folder of the map in CONTRIBUTING.md exists, and every package is in it."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## The package\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"(?<![\w/])(\w+(?:/\w+)*(?:\.py|/))", section))
    files = [path.relative_to(ROOT) for path in (ROOT / "llm2slm").rglob("*") if "__pycache__" not in path.parts]
    known = {path.name for path in files} | {f"{path.parent.name}/{path.name}" for path in files}
    assert len(named) > 40
    for name in named:
        assert name.rstrip("/") in known or (ROOT / name).exists(), name
    folders = {path.parent.name for path in files if path.name == "__init__.py"} - {"llm2slm", "rows", "corpora"}
    assert folders <= {name.rstrip("/") for name in named}
