"""Imports resolve, their distributions are declared and pinned, and `import llm2slm` loads no heavy library."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from package_sources import PACKAGE, SOURCES, Source, imports
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def test_relative_imports_are_resolved() -> None:
    assert list(imports(Source("data", "from . import collate\nfrom .. import types", is_package=True))) == [
        "llm2slm.data.collate",
        "llm2slm.types",
    ]
    assert list(imports(Source("data.collate", "from . import files\nfrom ..types import Batch"))) == [
        "llm2slm.data.files",
        "llm2slm.types.Batch",
    ]


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"__main__"}))
def test_module_imports(name: str) -> None:
    """No missing name, no missing library."""
    importlib.import_module("llm2slm" if name == "__init__" else f"llm2slm.{name}")


# Every imported distribution is declared in pyproject.toml, and every declared one is imported.

PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [
    Requirement(line) for name, lines in PROJECT["optional-dependencies"].items() for line in lines if name != "dev"
]
PINNED = {
    canonicalize_name(name): version
    for name, _, version in (
        line.strip().partition("==") for line in (PACKAGE.parent / "constraints.txt").read_text().splitlines()
    )
    if version
}
DISTRIBUTIONS = packages_distributions()


def distributions(source: Source) -> set[str]:
    """The distributions of a module's imports; for an import without a known distribution the name of the import."""
    roots = {full.partition(".")[0] for full in imports(source)} - sys.stdlib_module_names - {"llm2slm"}
    return {canonicalize_name(dist) for root in roots for dist in DISTRIBUTIONS.get(root, [root])}


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def test_imported_and_declared_distributions_are_equal() -> None:
    """An indirect dependency may disappear with the next version of the direct one."""
    imported = set().union(*map(distributions, SOURCES.values()))
    assert imported - names(NEEDED) - names(EXTRAS) == set()
    assert names(NEEDED) - imported == set()


def test_the_distribution_of_an_import_is_found() -> None:
    text = "import os.path, yaml\nfrom rouge_score import scoring\ndef f():\n    import not_there.at_all"
    assert distributions(Source("config", text)) == {"pyyaml", "rouge-score", "not-there"}
    assert distributions(Source("config", 'importlib.import_module("hydra.core")\nfrom . import runs')) == {
        "hydra-core"
    }


@pytest.mark.parametrize("requirement", [*NEEDED, *EXTRAS], ids=str)
def test_the_pinned_version_is_in_the_declared_range(requirement: Requirement) -> None:
    assert requirement.specifier
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)])


HEAVY = ("torch", "transformers", "lightning", "hydra", "datasets", "wandb", "matplotlib")


@pytest.mark.parametrize("statement", ["import llm2slm", "import llm2slm.types, llm2slm.config, llm2slm.runs"])
def test_import_loads_no_heavy_library(statement: str) -> None:
    assert heavy_after(statement) == []


@pytest.mark.slow
def test_heavy_imports_are_found() -> None:
    """The check above can fail: accessing the model class loads torch."""
    assert "torch" in heavy_after("from llm2slm import LLM2SLM")


def heavy_after(statement: str) -> list[str]:
    """The heavy libraries that a new interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return list(ast.literal_eval(done.stdout))
