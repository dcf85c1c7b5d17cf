"""Signals at any moment of a command: exit codes, saved files and messages; the lock of a run directory; the recorded
configuration of a resume that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from command_line import ROOT, files_of, tiny_overrides
from sampling import representatives
from stopped_runs import StopAt, assert_runs_equal, interrupted
from tiny_runs import checkpoint, tiny_run

from llm2slm import stops
from llm2slm.atomic import NotWritten, WriteLock
from llm2slm.cli import main
from llm2slm.commands import evaluate, run_lock
from llm2slm.commands import label as label_command
from llm2slm.commands import train as train_command
from llm2slm.commands.run_lock import RunLock
from llm2slm.training import fit as fit_module
from llm2slm.training.fit import build_trainer
from llm2slm.types import UserError

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138, "SIGHUP": 129}


@pytest.fixture
def trained_with(monkeypatch):
    """Adds callbacks to the next trainings."""
    return lambda *added: monkeypatch.setattr(
        fit_module, "build_trainer", lambda cfg, at, calls, logs: build_trainer(cfg, at, [*calls, *added], logs)
    )


@pytest.mark.parametrize("name", representatives(list(CODES), ["SIGTERM", "SIGUSR1"]))
def test_a_signal_in_training_saves_and_ends_with_its_code(tmp_path, tiny_llm, trained_with, capsys, name):
    trained_with(StopAt(1, getattr(signal, name)))
    folder = tmp_path / "run"
    assert main(["train", *tiny_overrides(tiny_llm), "trainer.val_every=2", f"hydra.run.dir={folder}"]) == CODES[name]
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"llm2slm: interrupted{'' if name == 'SIGINT' else f' by {name}'}"
    assert f"to resume from the last checkpoint: llm2slm train run={folder}" in said and "Traceback" not in said
    assert checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 1
    assert not list(folder.rglob(".*")), "no lock and no partial file is left"


@pytest.mark.parametrize("name", representatives(list(CODES), ["SIGTERM"]))
@pytest.mark.parametrize("verb", representatives(["train", "label"], ["label"]))
def test_a_signal_outside_of_training_ends_with_its_code(tmp_path, tiny_llm, monkeypatch, capsys, verb, name):
    """Before the first step of a training, or between two batches of labels."""

    def ended(*_, **__):
        os.kill(os.getpid(), getattr(signal, name))
        pytest.fail("the signal was ignored")

    monkeypatch.setattr(train_command, "prepare", ended)
    monkeypatch.setattr(label_command, "answer_batches", ended)
    before = {number: signal.getsignal(number) for number in stops.ending()}
    words = tiny_overrides(tiny_llm)
    words = (
        words if verb == "train" else [word for word in words if not word.startswith(("trainer.max", "optim", "call"))]
    )
    folder = tmp_path / "run"
    assert main([verb, *words, f"hydra.run.dir={folder}"]) == CODES[name]
    assert "Traceback" not in (said := capsys.readouterr().err)
    assert (f"run the same command with hydra.run.dir={folder} to continue" in said) == (verb == "label")
    assert {number: signal.getsignal(number) for number in before} == before


def test_ignored_signals_and_handlers_of_the_caller_are_kept():
    """As under nohup, and within a program that has handlers."""
    own = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGUSR1, lambda *_: own.append(1))
    try:
        with stops.raised():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            with pytest.raises(stops.Stopped) as caught:
                os.kill(os.getpid(), signal.SIGTERM)
        assert own == [1] and stops.exit_code(caught.value) == 143
        assert stops.exit_code(KeyboardInterrupt()) == 130
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGUSR1, before[1])


WAITING = """
import sys, time
from pathlib import Path
from llm2slm.atomic import WriteLock
lock = WriteLock(Path(sys.argv[1]) / "checkpoints")
lock.acquire()
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def locked_elsewhere():
    """Locks a run directory in another process until the test ends."""
    others = []

    def lock(folder: Path) -> subprocess.Popen[str]:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", WAITING, str(folder)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        others.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env))
        assert others[-1].stdout.readline() == "locked\n"
        return others[-1]

    yield lock
    for other in others:
        other.kill()
        other.wait()
        other.stdout.close()


def test_a_second_training_in_a_run_directory_is_refused(tmp_path, tiny_llm, capsys, monkeypatch, locked_elsewhere):
    monkeypatch.setattr(train_command, "trained", lambda *_: pytest.fail("trained"))
    folder = tmp_path / "run"
    other = locked_elsewhere(folder)
    before = files_of(folder)
    refused = (
        f"llm2slm: error: {folder / 'checkpoints'}: another process is writing it; wait, or train into another folder "
        "by hydra.run.dir=DIR"
    )
    for words in ([*tiny_overrides(tiny_llm), f"hydra.run.dir={folder}"], [f"run={folder}"]):
        if words[0].startswith("run="):
            (folder / "config.yaml").write_text("seed: 1\n")
        assert main(["train", *words]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == refused
    (folder / "config.yaml").unlink()
    assert files_of(folder) == before
    other.kill()  # the lock ends with its process
    other.wait()
    with RunLock(folder) as lock:
        lock.acquire()


def test_a_file_system_without_locks_causes_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(WriteLock, "acquire", lambda _: (_ for _ in ()).throw(NotImplementedError("no flock")))
    with RunLock(tmp_path) as lock:
        lock.acquire()
    assert f"warning: {tmp_path} cannot be locked (no flock)" in capsys.readouterr().err


def test_a_read_only_folder_is_refused_when_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock.WriteLock, "acquire", lambda lock: (_ for _ in ()).throw(NotWritten(lock.path, 30)))
    with RunLock(tmp_path) as lock:
        lock.acquire(unless_read_only=True)
        with pytest.raises(NotWritten, match="Read-only file system"):
            lock.acquire()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped at step 3 of 4, and the same run without a stop."""
    root = tmp_path_factory.mktemp("stopped")
    config = tiny_run(root, max_steps=4, val_every=2)
    config.callbacks.generate_rows = 0
    train_command.run(deepcopy(config), root / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupted(deepcopy(config), root / "run", patch, StopAt(3))
    return root, config


def test_a_failed_resume_leaves_the_recorded_configuration(stopped, monkeypatch, trained_with):
    root, config = stopped
    again = deepcopy(config)
    again.run, again.trainer.max_steps = str(root / "run"), 6

    class Fails(StopAt):
        def on_train_batch_start(self, *_):
            raise UserError("out of luck")

    before = (root / "run/config.yaml").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(UserError, match="out of luck"):
        patch.setattr(train_command, "prepare", lambda *_: (_ for _ in ()).throw(UserError("out of luck")))
        train_command.run(deepcopy(again), root / "run")
    assert (root / "run/config.yaml").read_bytes() == before
    with monkeypatch.context() as patch, pytest.raises(UserError, match="out of luck"):
        patch.setattr(
            fit_module, "build_trainer", lambda cfg, at, calls, logs: build_trainer(cfg, at, [*calls, Fails(0)], logs)
        )
        train_command.run(deepcopy(again), root / "run")
    assert (root / "run/config.yaml").read_bytes() == before
    again.trainer.max_steps = 4
    train_command.run(deepcopy(again), root / "run")
    assert_runs_equal(root / "run", root / "whole")
    assert (root / "run/config.yaml").read_bytes() == (root / "whole/config.yaml").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):  # after training with the new limits
        patch.setattr(evaluate, "measure", lambda *_, **__: (_ for _ in ()).throw(RuntimeError()))
        again.trainer.max_steps = 5
        train_command.run(deepcopy(again), root / "run")
    assert b"max_steps: 5" in (root / "run/config.yaml").read_bytes()
