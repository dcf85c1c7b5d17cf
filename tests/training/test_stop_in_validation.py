"""A stop requested during a validation: it is aborted within a batch, and a resumed run repeats it exactly."""

from __future__ import annotations

import os
import signal
from copy import deepcopy

import pytest
import torch
from command_line import python
from lightning import Callback
from sampling import representatives
from test_fit import assert_runs_equal, fitted, interrupted
from tiny_runs import checkpoint, curve, tiny_run, two_processes

from llm2slm.commands import train as train_command
from llm2slm.commands.train import run as train
from llm2slm.config import CallbacksConfig, TrainerConfig
from llm2slm.evaluation.predict import answer_batches
from llm2slm.training import fit as fit_module
from llm2slm.training.checkpoints import Limits, Progress
from llm2slm.training.fit import build_trainer
from llm2slm.training.validation_scores import ValidationScorer

VALIDATIONS, BATCHES = (3, 6, 9, 10), 3
"""Validated steps, and batches of each: of 11 rows for the loss, and as many of 9 rows for the answers."""


class Draws(Callback):
    """A validation that draws random numbers, like sampled answers do: a repeated one must draw the same."""

    def on_validation_batch_start(self, *_):
        torch.rand(7)


class StopAtBatch(Callback):
    """Sends signals before the given batches (numbered from 1 over all validations), and counts the executed ones."""

    def __init__(self, *batches):
        self.batches, self.seen = batches, 0

    def on_validation_batch_start(self, *_):
        self.seen += 1
        for _ in range(self.batches.count(self.seen)):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def drawing():
    """Every run of this module draws random numbers in its validations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fit_module, "build_trainer", lambda cfg, at, calls, logs: build_trainer(cfg, at, [*calls, Draws()], logs)
        )
        patch.setitem(interrupted.__globals__, "build_trainer", fit_module.build_trainer)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, drawing):
    """Folder and config of an uninterrupted run: dropout, accumulation, epochs that are no multiple of the window."""
    root = tmp_path_factory.mktemp("whole")
    config = tiny_run(root, max_steps=10, val_every=3, accumulate_grad_batches=2)
    config.data.batch_tokens, config.callbacks.generate_rows, config.callbacks.patience = 150, 9, 50
    train(deepcopy(config), root / "run")
    assert [int(row["step"]) + 1 for row in curve(root / "run") if row["val/loss"]] == list(VALIDATIONS)
    return root / "run", config


def assert_aborted(folder, number):
    """last.ckpt is of the step whose validation was aborted, without its values."""
    step = VALIDATIONS[number]
    assert checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == step
    rows = curve(folder)
    assert int(rows[-1]["step"]) + 1 == step and rows[-1]["train/loss"]
    assert [int(row["step"]) + 1 for row in rows if row.get("val/loss")] == list(VALIDATIONS[:number])
    assert not (folder / "result.json").exists()


def resumed(config, folder):
    again = deepcopy(config)
    again.run = str(folder)
    return train(again, folder)


@pytest.mark.parametrize(("validation", "batch"), representatives([(0, 2), (2, 1), (3, 3)], [(2, 1)]))
def test_a_validation_is_aborted_before_a_batch_of_the_loss(whole, tmp_path, monkeypatch, validation, batch):
    stop = StopAtBatch(validation * BATCHES + batch)
    interrupted(deepcopy(whole[1]), tmp_path, monkeypatch, stop)
    assert stop.seen == validation * BATCHES + batch, "no batch is run after the signal"
    assert_aborted(tmp_path, validation)
    result = resumed(whole[1], tmp_path)
    assert_runs_equal(tmp_path, whole[0])
    assert (tmp_path / "predictions.jsonl").read_bytes() == (whole[0] / "predictions.jsonl").read_bytes()
    assert result.systems[0].notes["optimizer_steps"] == 10


@pytest.mark.parametrize(("validation", "batch"), representatives([(1, 2), (3, 3)], [(1, 2)]))
def test_a_validation_is_aborted_before_a_batch_of_answers(whole, tmp_path, monkeypatch, validation, batch):
    answered = []

    def signalling(*arguments, **more):
        for found in answer_batches(*arguments, **more):
            answered.append(len(found[0]))
            if len(answered) == validation * BATCHES + batch - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(train_command, "answer_batches", signalling)
        interrupted(deepcopy(whole[1]), tmp_path, patch)
    assert len(answered) == validation * BATCHES + batch - 1
    assert_aborted(tmp_path, validation)
    resumed(whole[1], tmp_path)
    assert_runs_equal(tmp_path, whole[0])


@pytest.mark.slow
def test_a_validation_is_aborted_twice_also_while_it_is_repeated(whole, tmp_path, monkeypatch):
    interrupted(deepcopy(whole[1]), tmp_path, monkeypatch, StopAtBatch(2))
    again = deepcopy(whole[1])
    again.run = str(tmp_path)
    interrupted(deepcopy(again), tmp_path, monkeypatch, StopAtBatch(3))
    assert_aborted(tmp_path, 0)
    interrupted(deepcopy(again), tmp_path, monkeypatch, StopAtBatch(BATCHES + 1))
    assert_aborted(tmp_path, 1)
    train(again, tmp_path)
    assert_runs_equal(tmp_path, whole[0])


def test_a_second_signal_stops_immediately(whole, tmp_path, monkeypatch, capsys):
    """Nothing is saved: the run resumes from the previous validation."""
    stop = StopAtBatch(BATCHES + 2, BATCHES + 2)
    interrupted(deepcopy(whole[1]), tmp_path, monkeypatch, stop)
    assert "stopping; a resumed run repeats this validation; once more to stop at once" in capsys.readouterr().err
    assert checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == VALIDATIONS[0]
    resumed(whole[1], tmp_path)
    assert_runs_equal(tmp_path, whole[0])


def test_a_validation_that_ends_training_early_is_repeated_and_ends_it(tmp_path):
    """Patience 2: the values of steps 3 and 4 are no better than that of step 2. That of step 4 is aborted first."""
    values = iter([1.0, 2.0, 1.5, 2.0])

    def stopped(model, examples, share, between):
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        calls.append(between())
        return dict.fromkeys(range(len(examples)), "")

    config, calls = tiny_run(tmp_path, max_steps=50, val_every=1), []
    config.callbacks.patience, config.callbacks.generate_rows = 2, 1
    config.callbacks.monitor, config.callbacks.mode = "val/score", "max"
    scorer = ValidationScorer(stopped, lambda examples, answers: {"score": next(values)})
    with pytest.raises(KeyboardInterrupt):
        fitted(config, tmp_path, scorer=scorer)
    last, limits = tmp_path / "checkpoints" / "last.ckpt", Limits.of(config.trainer, config.callbacks)
    assert (Progress.of(last, limits).steps, Progress.of(last, limits).finished) == (4, False)
    calls.append(None)
    assert fitted(config, tmp_path, scorer=scorer, resume=last)[1].steps == 4
    assert next(values, None) is None
    assert Progress.of(last, limits).finished


@pytest.mark.parametrize("given_up", [False, True])
def test_a_training_that_max_time_ends_is_finished(tmp_path, monkeypatch, given_up):
    """max_time is exceeded from the first step on; the following validation may be aborted first."""
    begun, stop = [], StopAtBatch(*([2] if given_up else []))

    class Begin(Callback):
        def on_train_batch_start(self, *_):
            begun.append(True)

    monkeypatch.setattr("lightning.pytorch.callbacks.timer.Timer.time_elapsed", lambda *_: 1.5 * bool(begun))
    monkeypatch.setattr(
        fit_module, "build_trainer", lambda cfg, at, calls, logs: build_trainer(cfg, at, [*calls, Begin(), stop], logs)
    )
    config = tiny_run(tmp_path, max_steps=50, val_every=25, max_time="00:00:00:01")
    last, limits = tmp_path / "checkpoints" / "last.ckpt", Limits.of(config.trainer, config.callbacks)
    if given_up:
        with pytest.raises(KeyboardInterrupt):
            fitted(config, tmp_path)
        assert not Progress.of(last, limits).finished
    assert fitted(config, tmp_path, resume=last if given_up else None)[1].steps == 1
    assert Progress.of(last, limits).finished
    longer = TrainerConfig(max_steps=50, max_time="00:00:01:00")
    assert not Progress.of(last, Limits.of(longer, CallbacksConfig())).finished


STOPPER = """
import os, signal, sys
from lightning import Callback
from llm2slm.cli import main
from llm2slm.training import fit

class Stop(Callback):
    def on_validation_batch_start(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step == 2 and os.environ["STOP"] == "yes":
            os.kill(os.getpid(), signal.SIGTERM)

build = fit.build_trainer
fit.build_trainer = lambda cfg, at, calls, logs: build(cfg, at, [*calls, Stop()], logs)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_processes_abort_a_validation_together(tmp_path):
    """Only the second one gets the signal, in a validation of which it has one batch and the first has two."""
    config = tiny_run(tmp_path)
    (tmp_path / "stopper.py").write_text(STOPPER)
    overrides = [
        *two_processes(tmp_path, config, tmp_path / "run"), "trainer.max_steps=3", "trainer.val_every=2",
        "data.eval_batch_size=5", "task.metrics=[chrf]", "task.max_new_tokens=4", "optim.warmup_steps=1",
        "callbacks.generate_rows=3",
    ]  # fmt: skip
    script = str(tmp_path / "stopper.py")
    done = python(script, "train", *overrides, cwd=tmp_path, OMP_NUM_THREADS="1", STOP="yes")
    assert done.returncode == 143, done.stderr
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert checkpoint(last)["global_step"] == 2
    assert not [row for row in curve(tmp_path / "run") if row.get("val/loss")]
    done = python(script, "train", f"run={tmp_path / 'run'}", cwd=tmp_path, OMP_NUM_THREADS="1", STOP="no")
    assert done.returncode == 0, done.stderr
    rows = curve(tmp_path / "run")
    assert [row["step"] for row in rows if row["val/loss"]] == ["1", "2"]
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2"]
    assert checkpoint(last)["global_step"] == 3
