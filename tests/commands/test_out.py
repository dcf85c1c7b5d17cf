"""`out=` and `hydra.run.dir=` that are not folders: reported on one line before anything is read or changed."""

from __future__ import annotations

import os

import pytest
from command_line import mistake
from compared_runs import GOOD, POOR, write_run
from sampling import representatives

from llm2slm.cli import main
from llm2slm.commands.output_folder import check_folder
from llm2slm.types import UserError

VERBS = {
    "tokenizer": ["data.train_size=20", "vocab_size=300"],
    "report": ["a", "b"],
    "compare": ["a", "b"],
    "judge": ["a", "local=nowhere"],
    "export": ["run=a"],
}
VERBS_OF_RUNS = ["train", "evaluate", "encode", "label", "benchmark", "demo"]
"""Verbs that write into a run directory."""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", "slm", POOR)
    write_run(tmp_path / "b", "slm", GOOD)
    (tmp_path / "file").write_text("the user's own")
    return tmp_path


@pytest.mark.parametrize("out", representatives(["file", "file/below/it"], ["file/below/it"]))
@pytest.mark.parametrize("verb", VERBS)
def test_a_file_is_refused_as_output_folder(workspace, capsys, verb, out):
    assert main([verb, *VERBS[verb], f"out={out}"]) == 2
    told = mistake(capsys)
    assert told.startswith(f"out={out}: ") and told.endswith("file is a file; give a folder")
    assert (workspace / "file").read_text() == "the user's own"
    assert {path.name for path in workspace.iterdir()} == {"a", "b", "file"}


@pytest.mark.parametrize("out", ["file", "file/below/it"])
def test_a_file_is_refused_as_run_directory(workspace, capsys, out):
    assert main(["train", f"hydra.run.dir={out}"]) == 2
    assert mistake(capsys).startswith(f"hydra.run.dir={out}: ")


@pytest.mark.parametrize("path", ["/proc/nothing/here", "file/below", "n" * 300])
@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
@pytest.mark.parametrize("verb", representatives(VERBS_OF_RUNS, ["train"]))
def test_a_run_directory_that_cannot_be_created_is_reported_on_one_line(calls, tmp_path, capsys, verb, key, path):
    """/proc stands for a read-only file system, in which not even root can create a folder."""
    (tmp_path / "file").write_text("the user's own")
    sweep = ["-m", "trainer.accelerator=cpu,auto"] if key == "hydra.sweep.dir" else []
    assert main([verb, *sweep, f"{key}={path}"]) == 2
    told = mistake(capsys)
    assert told.startswith(f"{key}={path if key == 'hydra.run.dir' else tmp_path / path}: ") and "give a" in told
    assert not calls and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_at_the_path_of_a_sweep_job_is_reported(calls, tmp_path, capsys):
    """The file is at the path of the second job."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "1").write_text("own")
    assert main(["train", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"]) == 2
    assert mistake(capsys).startswith(f"hydra.sweep.dir={tmp_path}/sweep/1: {tmp_path}/sweep/1 is a file; ")
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["1"] and not calls


def test_a_disk_too_full_for_a_sweep_is_reported_on_one_line(calls, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["train", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"]) == 2
    told = mistake(capsys)
    assert told.startswith(f"{tmp_path}/sweep/sweep.json: cannot be written (No space left on device); ")
    assert not calls


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match=rf"^out={tmp_path}/new: no permission to write into {tmp_path}; give another"):
        check_folder("out", tmp_path / "new")


def test_the_tokenizer_is_written_to_the_reported_path(workspace, capsys):
    assert main(["tokenizer", *VERBS["tokenizer"], "out=new/folder"]) == 0
    assert capsys.readouterr().out.startswith("new/folder: 300 entries from 20 rows; ")
    assert (workspace / "new" / "folder" / "tokenizer.json").is_file()
