"""Calling the command line from tests: in a separate process, or in this one with a stub instead of a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python of this environment that imports the checkout (unless PYTHONPATH is given)."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def replace_command(monkeypatch: pytest.MonkeyPatch, verb: str, run: Callable[[Any, Path], Any]) -> None:
    """Replaces the stub that the fixture `calls` installed by another one."""
    monkeypatch.setattr(sys.modules[f"llm2slm.commands.{verb}"], "run", run)


def mistake(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line that reported a user error."""
    shown = capsys.readouterr().err
    assert shown.startswith("llm2slm: error: "), shown
    assert shown.endswith("\n")
    assert shown.count("\n") == 1, shown
    return shown.removeprefix("llm2slm: error: ").removesuffix("\n")


def without_next(shown: str) -> str:
    """The error stream of a command without its last line, which names the next command."""
    lines = shown.splitlines(keepends=True)
    return "".join(lines[:-1]) if lines and lines[-1].startswith("llm2slm: next: ") else shown


def files_of(folder: Path) -> dict[str, bytes]:
    """The contents of all files in a folder, to check later that nothing changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tiny_overrides(llm: Path) -> list[str]:
    """Overrides that shorten any training to about a second: a tiny LLM, a few rows, two steps."""
    return [
        f"model.llm.name={llm}",
        "trainer.accelerator=cpu",
        "trainer.max_steps=2",
        "trainer.progress=false",
        "optim.warmup_steps=1",
        "callbacks.generate_rows=2",
        "data.train_size=8",
        "data.validation_size=4",
        "data.test_size=4",
        "task.max_new_tokens=5",
    ]
