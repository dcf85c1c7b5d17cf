"""The processes of `demo`: results equal to sequential training, and failures and signals that stop all processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from copy import deepcopy
from io import StringIO
from queue import SimpleQueue
from threading import Lock

import pytest
from command_line import ROOT
from rich.console import Console
from tiny_runs import assert_same, checkpoint, curve, tiny_run

from llm2slm import runs
from llm2slm.commands import side_by_side
from llm2slm.commands import train as train_command
from llm2slm.commands.demo import processes, system_config
from llm2slm.commands.side_by_side import LOG, Training, train_side_by_side
from llm2slm.commands.side_by_side import curve as rows_so_far
from llm2slm.config import RunConfig
from llm2slm.types import UserError

ENDLESS = {"max_steps": 1_000_000, "val_every": 1_000_000}
SYSTEMS = {
    "small": {"model": {"kind": "slm"}},
    "guided": {"model": {"kind": "llm2slm", "conditioning": "memory"}, "optim": {"lr": 0.002}},
}


def configs_in(folder, **trainer):
    """The configurations of an SLM and a hybrid with unlimited training, or as `trainer` sets."""
    config = tiny_run(folder, **{**ENDLESS, **trainer})
    config.systems = deepcopy(SYSTEMS)
    return {name: system_config(config, name) for name in SYSTEMS}


@pytest.fixture
def started(monkeypatch):
    """The processes that a test starts."""
    found = []
    start = Training.__init__

    def recorded(self, *arguments, **more):
        start(self, *arguments, **more)
        found.append(self)

    monkeypatch.setattr(Training, "__init__", recorded)
    yield found
    for each in found:
        each.process.kill()


def once_all_train(folder, action):
    """Calls `action` in a thread as soon as both systems have logged a step."""

    def wait():
        while not all((folder / name / "metrics.csv").is_file() for name in SYSTEMS):
            time.sleep(0.01)
        action()

    threading.Thread(target=wait, daemon=True).start()


def trained(configs, folder, at_once=2):
    """Trains; returns the systems and what was printed."""
    screen = StringIO()
    return train_side_by_side(configs, folder, Console(file=screen, width=100), at_once=at_once, threads=1), screen


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two systems that were trained at the same time: folder, configurations, systems, output."""
    folder = tmp_path_factory.mktemp("both")
    configs = configs_in(folder, max_steps=6, val_every=3, progress=True)
    systems, screen = trained(deepcopy(configs), folder / "out")
    return folder, configs, systems, screen.getvalue()


@pytest.mark.parametrize("name", SYSTEMS)
def test_results_equal_those_of_sequential_training(finished, name):
    folder, configs, systems, _ = finished
    alone = folder / "alone" / name
    system = train_command.run(deepcopy(configs[name]), alone).systems[0]
    both = folder / "out" / name
    assert curve(both) == curve(alone)
    for file in ("last.ckpt", "best.ckpt"):
        found, wanted = (checkpoint(run / "checkpoints" / file)["state_dict"] for run in (both, alone))
        assert_same(found, wanted)
    assert (both / "predictions.jsonl").read_bytes() == (alone / "predictions.jsonl").read_bytes()
    assert runs.plain(systems[name].quality) == runs.plain(system.quality)
    assert systems[name].weights == system.weights
    assert systems[name].samples == system.samples
    assert systems[name].validation == system.validation
    assert runs.read_config(both) == runs.read_config(alone) == runs.plain(configs[name])


def test_the_output_states_the_data_once_and_the_scores_of_each_system(finished):
    folder, _, systems, printed = finished
    assert printed.count("task instruction:") == 1
    for name in SYSTEMS:
        validated = [line for line in printed.splitlines() if line.startswith(f"{name}: step ")]
        assert [line.split(":")[1].strip() for line in validated] == ["step 3 of 6", "step 6 of 6"]
        loss = float(curve(folder / "out" / name)[-1]["val/loss"])
        assert f"val/loss {loss:.4g}" in validated[-1]
        assert f"chrf {systems[name].quality['chrf'].value:.2f}" in printed
        assert "Training:" not in (folder / "out" / name / LOG).read_text()  # no progress bar


def test_the_result_records_the_command_of_the_parent(finished):
    folder = finished[0]
    for name in SYSTEMS:
        assert runs.read_result(folder / "out" / name)["command"] == runs.command()


def test_a_cpu_runs_one_process_per_core_with_one_thread_and_other_devices_run_one_process(monkeypatch):
    config = RunConfig()
    config.trainer.accelerator = "cpu"
    monkeypatch.setattr(runs, "usable_cores", lambda: 3)
    assert processes(config) == (3, 1)
    monkeypatch.setattr("llm2slm.commands.demo.device_type", lambda _: "cuda")
    assert processes(config) == (1, None)


@pytest.mark.slow
def test_on_one_core_the_second_system_starts_when_the_first_has_ended(tmp_path, started):
    configs = configs_in(tmp_path, max_steps=2, val_every=2)
    systems, _ = trained(configs, tmp_path / "out", at_once=1)
    assert list(systems) == ["small", "guided"] == [each.name for each in started]
    results = [tmp_path / "out" / name / "result.json" for name in systems]
    assert results[0].stat().st_mtime < (tmp_path / "out" / "guided" / "config.yaml").stat().st_mtime


@pytest.mark.slow
def test_a_user_error_of_one_process_stops_the_other_and_is_reported_on_one_line(tmp_path, started):
    configs = configs_in(tmp_path)
    configs["small"].trainer.precision = "bf16-true"
    with pytest.raises(UserError, match=r"^systems\.small: trainer\.precision=bf16-true") as caught:
        trained(configs, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [each.process.poll() is not None for each in started] == [True, True]
    assert not (tmp_path / "out" / "guided" / "result.json").exists()


@pytest.mark.slow
def test_an_internal_error_is_reported_on_one_line_with_its_traceback_in_the_log(tmp_path, started, capsys):
    configs = configs_in(tmp_path)
    configs["guided"].optim.betas = None  # the optimizer raises a TypeError
    with pytest.raises(UserError, match=r"^systems\.guided: its training failed \(\w+Error: .*train\.log$") as caught:
        trained(configs, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "Traceback (most recent call last)" in (tmp_path / "out" / "guided" / LOG).read_text()
    assert "Traceback" not in capsys.readouterr().err
    assert all(each.process.poll() is not None for each in started)


@pytest.mark.slow
def test_a_killed_process_stops_the_other(tmp_path, started):
    def kill():
        started[1].process.kill()

    once_all_train(tmp_path / "out", kill)
    with pytest.raises(UserError, match=r"^systems\.guided: its process was ended by signal 9, "):
        trained(configs_in(tmp_path), tmp_path / "out")
    assert started[0].process.poll() is not None
    assert (tmp_path / "out" / "small" / "checkpoints" / "last.ckpt").is_file()  # saved before it stopped


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_stops_both_which_can_be_resumed(tmp_path, started, capsys, number):
    once_all_train(tmp_path / "out", lambda: os.kill(os.getpid(), number))
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        trained(configs_in(tmp_path), tmp_path / "out")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [each.process.poll() for each in started] == [130, 130]
    shown = capsys.readouterr().err
    assert shown.count("llm2slm: stopping after this step") == 1
    for name in SYSTEMS:
        assert f"checkpoint: llm2slm train run={tmp_path / 'out' / name}\n" in shown
        saved = checkpoint(tmp_path / "out" / name / "checkpoints" / "last.ckpt")
        assert saved["global_step"] == int(curve(tmp_path / "out" / name)[-1]["step"]) + 1


PARENT = """
import pickle, sys, time
from pathlib import Path
from llm2slm.commands.side_by_side import Training
config, folder = pickle.load(sys.stdin.buffer)
Training("small", config, Path(folder), 1)
time.sleep(1000)
"""


@pytest.mark.slow
def test_a_process_saves_and_stops_when_its_parent_is_killed(tmp_path):
    import pickle

    folder = tmp_path / "out" / "small"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    parent.stdin.write(pickle.dumps((configs_in(tmp_path)["small"], str(folder))))
    parent.stdin.flush()
    while not (folder / "metrics.csv").is_file():
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 100
    while not (folder / "checkpoints" / "last.ckpt").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_rows_are_read_while_they_are_written(tmp_path):
    path = tmp_path / "metrics.csv"
    assert rows_so_far(path) == {}
    path.write_text("step,train/loss,val/loss\n0,2.5,\n9,1.5,1.25\n19,1.")
    assert rows_so_far(path) == {0: {"train/loss": 2.5}, 9: {"train/loss": 1.5, "val/loss": 1.25}}
    path.write_text("step,train/loss\n0,2.5\n1x,3\n")
    assert rows_so_far(path) == {}


def test_a_validation_is_printed_once_and_complete(tmp_path):
    training = Training.__new__(Training)
    training.name, training.folder, training.config = "small", tmp_path, RunConfig()
    training._rows, training._shown = {}, set()
    path = tmp_path / "metrics.csv"
    path.write_text("step,val/loss\n9,1.25\n")
    assert training.validations() == []  # val/bleu may follow
    path.write_text("step,val/loss,val/bleu\n9,1.25,31.5\n")
    assert training.validations() == []
    assert training.validations() == ["small: step 10 of 1,000: val/loss 1.25, val/bleu 31.5"]
    assert training.validations(final=True) == []
    assert json.dumps(training.progress()) == '[10, ""]'


def test_a_second_signal_is_passed_on_and_a_third_kills(tmp_path, monkeypatch):
    """Without real processes: each poll sends one more signal."""
    calls = []

    class Never:
        returncode = -9

        def __init__(self, name, *_):
            self.name, self.process, self.looks = name, self, 0

        def ended(self):
            self.looks += 1
            os.kill(os.getpid(), signal.SIGTERM)
            return "kill" in calls

        def progress(self):
            return 0, ""

        def interrupt(self):
            calls.append("interrupt")

        def kill(self):
            calls.append("kill")

    monkeypatch.setattr(side_by_side, "Training", Never)
    monkeypatch.setattr(side_by_side, "show", lambda *_, **__: None)
    monkeypatch.setattr(side_by_side, "POLL", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side({"small": RunConfig()}, tmp_path, Console(file=StringIO()), at_once=2, threads=1)
    assert calls == ["interrupt", "interrupt", "kill"]


class Full:
    """A log on a full disk."""

    def write(self, *_):
        raise OSError(28, "No space left on device")

    close = write


def test_a_log_that_cannot_be_written_prints_one_warning(tmp_path):
    training = Training.__new__(Training)
    training.folder, training._log, training._logging, training.printed = tmp_path, Full(), Lock(), SimpleQueue()
    for text in ("one line", "another"):
        training._log_line(text)
    assert training.printed.qsize() == 1
    lost = f"{tmp_path / LOG}: cannot be written (No space left on device); it ends here"
    assert training.printed.get() == (True, f"llm2slm: warning: {lost}")


@pytest.mark.slow
def test_training_continues_if_its_log_cannot_be_written(tmp_path, capsys):
    """Errors of a full disk are reported for the files of the training."""
    configs = configs_in(tmp_path, max_steps=2, val_every=2)
    write = side_by_side.Training._log_line

    def full(self, text):
        if self._log is not None:
            self._log = Full()
        write(self, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side.Training, "_log_line", full)
        found = train_side_by_side(configs, tmp_path, Console(file=StringIO()), at_once=2, threads=1)
    assert set(found) == set(configs)
    lines = [line for line in capsys.readouterr().err.splitlines() if LOG in line]
    assert lines == [
        f"llm2slm: warning: {tmp_path / name / LOG}: cannot be written (No space left on device); it ends here"
        for name in sorted(configs, key=lambda name: next(i for i, line in enumerate(lines) if name in line))
    ]


def test_a_folder_that_cannot_be_written_is_reported_on_one_line(tmp_path):
    (tmp_path / "small").write_text("a file")
    with pytest.raises(UserError, match=r"small/train.log: cannot be written \("):
        train_side_by_side(configs_in(tmp_path), tmp_path, Console(file=StringIO()), at_once=2, threads=1)
