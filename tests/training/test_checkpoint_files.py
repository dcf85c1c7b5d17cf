"""Checkpoint files: damaged files, full disks, kills, and a temporary directory on another file system."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from forks import finished, forked
from lightning import Callback
from sampling import representatives
from stopped_runs import StopAt, assert_runs_equal, interrupted, resumed
from tiny_runs import build, checkpoint, taught, tiny_run

from llm2slm.commands.train import run as train
from llm2slm.training import fit as fit_module
from llm2slm.training.checkpoint_io import CheckpointFiles, damage
from llm2slm.training.fit import build_trainer, fit, set_seed
from llm2slm.training.loggers import MetricsFile
from llm2slm.types import UserError


def messages(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines of the error stream about checkpoints."""
    return [line for line in capsys.readouterr().err.splitlines() if ".ckpt" in line]


# Damaged files


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run stopped at step 5 after validations at 2 and 4, the last of which was the best; and the complete run."""
    root = tmp_path_factory.mktemp("stopped")
    config = tiny_run(root, max_steps=8, val_every=2)
    config.callbacks.generate_rows = 0
    train(deepcopy(config), root / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupted(deepcopy(config), root / "run", patch, StopAt(5))
    assert checkpoint(root / "run/checkpoints/last.ckpt")["global_step"] == 5
    assert checkpoint(root / "run/checkpoints/best.ckpt")["global_step"] == 4
    return root, config


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """Flips one bit of a weight."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", representatives([cut, empty, flip, Path.unlink], [flip]))
def test_a_damaged_last_checkpoint_is_replaced_by_the_previous_one(stopped, tmp_path, capsys, harm):
    root, config = stopped
    shutil.copytree(root / "run", tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    harm(last)
    resumed(config, tmp_path / "run")
    what = "is missing" if harm is Path.unlink else r"is damaged \(.*\)"
    line = rf"llm2slm: {last}: {what}; resuming from previous.ckpt instead, of step 4: step 5 is trained again"
    assert_lines(messages(capsys), line)
    assert_runs_equal(tmp_path / "run", root / "whole")
    assert (last.parent / "last.ckpt.damaged").is_file() == (harm is not Path.unlink)


def test_the_newest_valid_checkpoint_is_chosen(stopped, tmp_path, capsys):
    """best.ckpt is of step 4; previous.ckpt is of step 2, or of step 4 and damaged."""
    root, config = stopped
    for name, harm in (("older", None), ("damaged", flip)):
        shutil.copytree(root / "run", tmp_path / name)
        folder = tmp_path / name / "checkpoints"
        if harm is None:
            saved = checkpoint(folder / "previous.ckpt")
            (folder / "previous.ckpt").unlink()
            torch.save(saved | {"global_step": 2}, folder / "previous.ckpt")
        else:
            harm(folder / "previous.ckpt")
        cut(folder / "last.ckpt")
        resumed(config, tmp_path / name)
        (line,) = messages(capsys)
        assert "; resuming from best.ckpt instead, of step 4: step 5 is trained again" in line
        assert_runs_equal(tmp_path / name, root / "whole")


def test_checkpoints_are_copied_if_hard_links_are_not_supported(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    files = CheckpointFiles()
    for step in range(3):
        files.save_checkpoint({"step": step}, tmp_path / "last.ckpt")
    assert {p.name: checkpoint(p)["step"] for p in tmp_path.iterdir()} == {"last.ckpt": 2, "previous.ckpt": 1}


def assert_lines(found, *patterns):
    assert len(found) == len(patterns), found
    for line, pattern in zip(found, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_damaged_best_checkpoint_is_renamed(stopped, tmp_path, capsys):
    root, config = stopped
    shutil.copytree(root / "run", tmp_path / "run")
    best = tmp_path / "run/checkpoints/best.ckpt"
    flip(best)
    resumed(config, tmp_path / "run")
    line = r"is damaged \(.*\); it is now best.ckpt.damaged, and the best is chosen among validations to come"
    assert_lines(messages(capsys), rf"llm2slm: {best}: {line}")
    assert_runs_equal(tmp_path / "run", root / "whole")  # the loss still decreased
    assert (best.parent / "best.ckpt.damaged").is_file()


def test_a_run_without_a_valid_checkpoint_is_reported_on_one_line(stopped, tmp_path):
    root, config = stopped
    shutil.copytree(root / "run", tmp_path / "run")
    empty(tmp_path / "run/checkpoints/last.ckpt")
    (tmp_path / "run/checkpoints/previous.ckpt").unlink()
    cut(tmp_path / "run/checkpoints/best.ckpt")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    both = r"^[^\n]*last.ckpt: is damaged \(.*\), previous.ckpt is missing, and best.ckpt is damaged \(.*\), so "
    with pytest.raises(
        UserError, match=both + "nothing is left to resume from; train anew in another folder, without run=$"
    ):
        resumed(config, tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_other_files_are_not_checkpoints(tmp_path):
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    assert damage(tmp_path / "other.ckpt") == "is no checkpoint of a training (it has no global_step)"
    torch.save(resource.getrusage, tmp_path / "code.ckpt")
    assert damage(tmp_path / "code.ckpt").startswith("cannot be read (Weights only load failed")


# Disks


def test_a_training_does_not_use_the_temporary_directory(stopped, tmp_path, monkeypatch):
    """It may be full or missing."""
    root, config = stopped
    model, data = build(config)
    for split in ("train", "validation"):
        data.prepare(split)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        tempfile.NamedTemporaryFile()  # noqa: SIM115
    set_seed(config.seed)
    fit(config, tmp_path / "run", *taught(config)[:1], data, loggers=[MetricsFile(tmp_path / "run")])
    model.save_pretrained(tmp_path / "run/model")
    assert_runs_equal(tmp_path / "run", root / "whole")
    found = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*.[!js]*")}
    assert found == {"metrics.csv", *(f"checkpoints/{name}.ckpt" for name in ("last", "previous", "best"))}
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_is_reported_on_one_line_and_keeps_the_previous_checkpoint(stopped, tmp_path):
    """The limit on the size of a file replaces a full disk: it fails the same call."""
    root, _ = stopped
    shutil.copytree(root / "run", tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
            CheckpointFiles().save_checkpoint({"a": torch.zeros(10**6)}, folder / "last.ckpt")
        except UserError as error:
            (tmp_path / "said").write_text(str(error))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "said").read_text() == (
        f"{folder / 'last.ckpt'}: cannot be written (File too large); free space on this disk"
    )
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before | {"previous.ckpt": before["last.ckpt"]}


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_keeps_the_previous_one(stopped, tmp_path):
    """The old checkpoint is complete, and the next training removes the partial new one."""
    root, config = stopped
    save = torch.save

    def half(checkpoint, file):
        save(checkpoint, file)
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    shutil.copytree(root / "run", tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    child = os.fork()
    if child == 0:
        try:
            torch.save = half
            resumed(config, tmp_path / "run")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert {p.name for p in last.parent.iterdir() if p.name.startswith(".")} == {".best.ckpt.part"}
    assert damage(last) is None
    assert checkpoint(last)["global_step"] == 5
    resumed(config, tmp_path / "run")
    assert {p.name for p in last.parent.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    assert_runs_equal(tmp_path / "run", root / "whole")


class Kills(Callback):
    """SIGKILL during a step or a validation."""

    def __init__(self, where: str, step: int) -> None:
        self.where, self.step = where, step

    def _at(self, where: str, trainer) -> None:
        if (where, trainer.global_step) == (self.where, self.step):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_after_backward(self, trainer, pl_module):
        self._at("step", trainer)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            self._at("validation", trainer)


def killed(config, folder: Path, where: str, step: int) -> None:
    """Starts or resumes a run in a fork that is killed."""

    def work() -> None:
        fit_module.build_trainer = lambda cfg, at, calls, logs: build_trainer(
            cfg, at, [*calls, Kills(where, step)], logs
        )
        if where == "checkpoint":
            save = torch.save

            def half(saved, file):
                save(saved, file)
                if saved["global_step"] == step and file.name.endswith(".last.ckpt.part"):
                    file.truncate(file.tell() // 2)
                    os.kill(os.getpid(), signal.SIGKILL)

            torch.save = half
        resumed(config, folder) if (folder / "config.yaml").is_file() else train(deepcopy(config), folder)

    child = forked(work)
    assert not finished(os.waitpid(child, 0)[1]), "it was not killed"


def test_a_run_killed_in_a_step_a_validation_and_a_checkpoint_equals_the_undisturbed_run(stopped, tmp_path):
    """Also before the first checkpoint; the slow test below kills at random moments."""
    root, config = stopped
    folder = tmp_path / "run"
    for where, step in (("validation", 2), ("step", 3), ("checkpoint", 6)):
        killed(config, folder, where, step)
    resumed(config, folder)
    assert_runs_equal(folder, root / "whole")
    assert (folder / "predictions.jsonl").read_bytes() == (root / "whole" / "predictions.jsonl").read_bytes()
    assert (folder / "config.yaml").read_bytes() == (root / "whole" / "config.yaml").read_bytes()


def two_file_systems(folder: Path) -> Path | None:
    """A folder on another file system than `folder`, if this machine has a writable one."""
    for place in ("/dev/shm", "/run/user/" + str(os.getuid()), "/var/tmp", str(Path.home())):
        if os.access(place, os.W_OK) and Path(place).stat().st_dev != folder.stat().st_dev:
            return Path(tempfile.mkdtemp(prefix="llm2slm-tests-", dir=place))
    return None


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_resumed_with_a_temporary_directory_on_another_file_system(tmp_path):
    """SIGKILL at random moments: last.ckpt is valid whenever it is read, and each resumed run starts from it."""
    other = two_file_systems(tmp_path)
    temporary = other if other is not None else tmp_path / "temporary"  # else the other assertions remain
    temporary.mkdir(exist_ok=True)
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    script = [sys.executable, str(root / "tests/killed_checkpoints.py"), str(tmp_path), "20"]
    try:
        done = subprocess.run(script, capture_output=True, text=True, check=False, env=env | {"TMPDIR": str(temporary)})
        assert done.returncode == 0, done.stderr[-3000:]
        assert not [path for path in temporary.iterdir() if path.is_file()], "nothing is left there"
    finally:
        shutil.rmtree(temporary)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == 20
    assert told["damaged"] == []
    assert told["looks"] >= 20
    assert len(set(told["resumed_from"])) >= 3, "kills came at one place only"
    assert told["same"], "the end is that of an undisturbed training"
    if other is None:
        pytest.skip("this machine has one file system to write to; only the kills within it were tried")
