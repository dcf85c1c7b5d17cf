"""`run=`: a folder without a run or a model is refused, and the run directories in it or next to it are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm2slm.commands.loaded_models import check_folder
from llm2slm.types import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """outputs/ with two runs, a model, and a folder of neither."""
    for name, file in (("kv", "config.yaml"), ("slm", "config.yaml"), ("saved", "config.json"), ("notes", "a.txt")):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / file).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ("outputs", "neither a run directory (config.yaml) nor a model (config.json); run directories in it: kv, slm"),
        ("outputs/notes", "neither a run directory (config.yaml) nor a model (config.json)"),
        ("outputs/kvv", "no such folder; nearest: kv; give a run directory, a folder of a model, or a Hub id"),
        ("outputs/other", "no such folder; give a run directory, a folder of a model, or a Hub id"),
    ],
)
def test_a_wrong_folder_is_refused(run: str, reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as raised:
        check_folder(run)
    assert str(raised.value) == f"run={run}: {reason}"


@pytest.mark.parametrize("run", ["outputs/kv", "outputs/saved", "builtin/llm", "google/flan-t5-large", "gpt2"])
def test_runs_models_and_ids_are_accepted(run: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    check_folder(run)
