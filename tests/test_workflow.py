"""The GitHub workflow, the pre-commit hooks and `.ci/run`: their commands exist, on supported versions of Python."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml
from command_line import ROOT
from packaging.specifiers import SpecifierSet

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def steps() -> list[dict[str, Any]]:
    return [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_every_make_target_exists() -> None:
    texts = [step.get("run", "") for step in steps()] + [(ROOT / ".ci" / "run").read_text(encoding="utf-8")]
    called = {target for text in texts for target in re.findall(r"\bmake ([a-z-]+)", text)}
    assert {"lint", "test", "test-all"} <= called <= TARGETS


def test_the_oldest_and_a_newer_python_are_tested() -> None:
    versions = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(supported.contains(version) for version in versions) and len(versions) > 1
    major, minor = map(int, versions[0].split("."))
    assert not supported.contains(f"{major}.{minor - 1}")


@pytest.mark.parametrize("step", [step for step in steps() if "uses" in step], ids=lambda step: step["uses"])
def test_actions_are_pinned_to_a_version(step: dict[str, Any]) -> None:
    assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def test_local_hooks_run_tools_of_the_dev_extra() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = [hook["entry"].split()[0] for repo in hooks if repo["repo"] == "local" for hook in repo["hooks"]]
    declared = {re.split(r"[>=\[ ]", line)[0] for line in PROJECT["optional-dependencies"]["dev"]}
    assert len(entries) == 3
    assert {entry.removeprefix(".venv/bin/") for entry in entries} <= declared
