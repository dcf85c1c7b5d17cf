"""Complete trainings: golden losses, exact resuming from any step, checkpoints, early stopping, reports of failures."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import signal
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from lightning import Callback
from sampling import first_few, representatives
from stopped_runs import StopAt, assert_runs_equal, interrupted
from tiny_runs import assert_same, build, checkpoint, curve, taught, tiny_run, weights

from llm2slm import progress
from llm2slm.commands.train import run as train
from llm2slm.config import CallbacksConfig, TrainerConfig
from llm2slm.evaluation.metrics.scores import lower_is_better
from llm2slm.training import fit as fit_module
from llm2slm.training.checkpoints import direction
from llm2slm.training.fit import build_trainer, fit, set_seed
from llm2slm.training.loggers import MetricsFile
from llm2slm.training.module import TrainingModule
from llm2slm.training.progress_lines import TokenBar
from llm2slm.training.validation_scores import ValidationScorer
from llm2slm.types import UserError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TOLERANCE = 1e-4


def fitted(config, folder, scorer=None, resume=None):
    """A seeded fit; returns the model and the result of `fit`."""
    set_seed(config.seed)
    model, data, teacher = taught(config)
    logged = [MetricsFile(folder)]
    return model, fit(config, folder, model, data, loggers=logged, scorer=scorer, resume=resume, teacher=teacher)


def scoring(values):
    """A scorer that generates nothing and returns the values one by one."""
    return ValidationScorer(
        lambda model, examples, share, between: dict.fromkeys(range(len(examples)), ""),
        lambda examples, answers: {"score": next(values)},
    )


def column(folder, name):
    return [float(row[name]) for row in curve(folder) if row.get(name)]


# Golden losses


SYSTEMS = [("t5", "add"), ("t5", "memory"), ("gpt2", "add"), ("gpt2", "prepend"), ("gpt2", "memory")]


@pytest.mark.parametrize(("slm", "mode"), first_few(SYSTEMS, 2))
def test_losses_equal_the_golden_ones(tmp_path, slm, mode):
    """Ten losses of a seeded run, stored in tests/golden (LLM2SLM_GOLDEN=write writes them again)."""
    config = tiny_run(tmp_path, slm=slm, mode=mode, max_steps=10, val_every=10)
    off = {"t5": ["dropout_rate"], "gpt2": ["resid_pdrop", "embd_pdrop", "attn_pdrop"]}[slm]
    config.model.slm.config = dict.fromkeys(off, 0.0)  # the random numbers of dropout depend on torch
    fitted(config, tmp_path)
    losses = column(tmp_path, "train/loss")
    path = GOLDEN / f"{slm}_{mode}.txt"
    if os.environ.get("LLM2SLM_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        what = f"tiny {slm} hybrid, conditioning={mode}, no dropout, seed 5, CPU"
        how = "LLM2SLM_GOLDEN=write python -m pytest tests/training/test_fit.py -k golden"
        header = (
            f"# Training losses (nats per token) of ten steps: {what}.\n# Tolerance {TOLERANCE}. Written by: {how}\n"
        )
        path.write_text(header + "".join(f"{loss:.6f}\n" for loss in losses), encoding="utf-8")
    golden = [float(line) for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(losses) == 10
    assert losses == pytest.approx(golden, abs=TOLERANCE)
    assert losses[-1] < losses[0] - 0.05


def test_values_logged_every_third_step_are_those_of_these_steps(tmp_path):
    """A longer logging interval changes neither the training nor a logged value."""
    config = tiny_run(tmp_path, max_steps=8, val_every=8)
    config.callbacks.generate_rows = 0
    each, _ = fitted(config, tmp_path / "each")
    config.trainer.log_every_n_steps = 3
    third, _ = fitted(config, tmp_path / "third")
    rows = {name: [row for row in curve(tmp_path / name) if row["train/loss"]] for name in ("each", "third")}
    assert [row["step"] for row in rows["third"]] == ["2", "5", "7"], "the last step is written whatever the interval"
    for name in ("train/loss", "train/lr_slm", "train/lr_projector"):
        assert [row[name] for row in rows["third"]] == [rows["each"][step][name] for step in (2, 5, 7)]
    assert_same(weights(each), weights(third))


# Stopping and resuming


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Runs with dropout and accumulation, by optimizer; the length of an epoch is not a multiple of the window."""

    @cache
    def run(optimizer):
        root = tmp_path_factory.mktemp("whole")
        config = tiny_run(root, max_steps=10, val_every=3, accumulate_grad_batches=2)
        config.optim.name = optimizer
        config.data.batch_tokens = 150
        config.callbacks.patience = 50
        train(deepcopy(config), root / "run")
        return root, config

    return run


@pytest.fixture(params=representatives(["adamw", "muon"], ["adamw"]))
def whole(uninterrupted, request):
    return uninterrupted(request.param)


def test_the_run_to_resume_has_dropout_and_incomplete_windows(whole):
    root, config = whole
    model, data = build(config)
    batches = len(data.train_dataloader())
    assert batches % config.trainer.accumulate_grad_batches == 1
    assert 1 < batches < 10
    assert any(m.p > 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    set_seed(config.seed)
    other = tiny_run(root, max_steps=2, val_every=1)
    other.model.slm.config = {"dropout_rate": 0.0}
    fitted(other, root / "dry")
    assert column(root / "dry", "train/loss")[1] != column(root / "run", "train/loss")[1]


EVERY = bool(os.environ.get("LLM2SLM_MATRIX"))
PLACES = {"adamw": (1, 2, 4, 5, 6, 9, 11, 14), "muon": (1, 2, 4, 5, 6, 9, 11, 14) if EVERY else (2, 5, 14)}


@pytest.mark.parametrize(
    ("whole", "batch"),
    representatives(
        [(name, batch) for name, places in PLACES.items() for batch in places],
        [("adamw", 5), ("muon", 5)],
    ),
    indirect=["whole"],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, monkeypatch, batch):
    root, config = whole
    interrupted(deepcopy(config), tmp_path, monkeypatch, StopAt(batch))
    assert not (tmp_path / "result.json").exists()
    begun = checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"]
    assert 0 < begun < config.trainer.max_steps
    again = deepcopy(config)
    again.run = str(tmp_path)
    result = train(again, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    assert_runs_equal(tmp_path, root / "run")
    assert (tmp_path / "predictions.jsonl").read_bytes() == (root / "run" / "predictions.jsonl").read_bytes()
    assert (tmp_path / "config.yaml").read_bytes() == (root / "run" / "config.yaml").read_bytes()
    assert result.systems[0].notes["optimizer_steps"] == config.trainer.max_steps


def test_the_bar_counts_the_steps_of_the_whole_run_and_continues_after_resuming(whole, tmp_path, monkeypatch):
    shown = []

    class Watched(TokenBar):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            bar = self.train_progress_bar
            shown.append((bar.initial, bar.n, bar.total))

    monkeypatch.setattr(fit_module, "training_progress", Watched)
    config = deepcopy(whole[1])
    config.trainer.progress = True
    interrupted(deepcopy(config), tmp_path, monkeypatch, StopAt(8))
    begun = checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"]
    # two micro-batches per step, and one at the end of an epoch
    assert list(dict.fromkeys(shown)) == [(0, step, 10) for step in range(begun + 1)]
    shown.clear()
    config.run = str(tmp_path)
    train(config, tmp_path)
    assert list(dict.fromkeys(shown)) == [(begun, step, 10) for step in range(begun, 11)][-len(set(shown)) :]
    assert len(set(shown)) >= 10 - begun > 0


def test_without_a_terminal_a_training_prints_plain_lines(whole, tmp_path, monkeypatch, capsys):
    """A line for each validation and, by the clock, for the steps in between; nothing is redrawn."""
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    config = deepcopy(whole[1])
    config.trainer.progress = True
    train(config, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert not any("it/s" in line for line in lines if not line.startswith("Loading weights"))  # of transformers
    assert list(dict.fromkeys(line.partition(",")[0] for line in steps)) == [f"step {n} of 10" for n in range(1, 11)]
    assert all("train/loss" in line for line in steps) and "val/loss" in steps[-1]
    assert all(re.search(r", \d:\d\d:\d\d left$", line) for line in steps if not line.startswith("step 10 "))

    monkeypatch.setattr(progress, "INTERVAL", 1e9)
    train(config, tmp_path / "slow")
    steps = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    validations = {row["step"] for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row["val/loss"]}
    assert len(steps) == len(validations) and all("val/loss" in line for line in steps)


@pytest.mark.parametrize("batch", first_few([2, 8], 1))
def test_an_interrupted_bar_ends_with_a_newline(whole, tmp_path, monkeypatch, capsys, batch):
    """Otherwise the next output, on the other stream, would follow the bar on the same line if both go to one file."""
    shown = []
    monkeypatch.setattr("builtins.print", lambda *_, **__: shown.append(capsys.readouterr().out))
    monkeypatch.setattr(fit_module, "training_progress", TokenBar)
    config = deepcopy(whole[1])
    config.trainer.progress = True
    interrupted(config, tmp_path, monkeypatch, StopAt(batch))
    assert "it/s" in "".join(shown) and shown[-1].endswith("\n")


@pytest.mark.slow
def test_a_run_is_resumed_after_two_stops_in_a_moved_folder_and_after_sigterm(whole, tmp_path, monkeypatch):
    root, config = whole
    interrupted(deepcopy(config), tmp_path / "a", monkeypatch, StopAt(7, signal.SIGTERM))
    shutil.move(tmp_path / "a", tmp_path / "b")
    again = deepcopy(config)
    again.run = str(tmp_path / "b")
    interrupted(again, tmp_path, monkeypatch, StopAt(4))
    train(deepcopy(again), tmp_path)
    assert_runs_equal(tmp_path / "b", root / "run")


@pytest.mark.slow
def test_a_second_signal_stops_immediately_and_the_last_validation_is_kept(whole, tmp_path, monkeypatch):
    root, config = whole
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupted(deepcopy(config), tmp_path, monkeypatch, StopAt(8, times=2))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] < 5
    again = deepcopy(config)
    again.run = str(tmp_path)
    train(again, tmp_path)
    assert_runs_equal(tmp_path, root / "run")


def test_the_message_states_the_command_that_resumes(whole, tmp_path, monkeypatch, capsys):
    interrupted(deepcopy(whole[1]), tmp_path, monkeypatch, StopAt(3))
    said = capsys.readouterr().err
    assert "stopping after this step" in said
    assert f"llm2slm train run={tmp_path}" in said


# Checkpoints


@pytest.mark.parametrize(("slm", "mode"), [("t5", "add"), ("t5", "memory"), ("gpt2", "replace")])
def test_checkpoints_contain_trained_parameters_and_nothing_of_the_llm(tmp_path, slm, mode):
    config = tiny_run(tmp_path, slm=slm, mode=mode, max_steps=2, val_every=1)
    model, _ = fitted(config, tmp_path)
    llm = sum(p.numel() for p in model.encoder.parameters())
    for name in ("last", "best"):
        state = checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt")["state_dict"]
        assert not [key for key in state if "encoder.body" in key]
        assert {f"model.{key}" for key in model.trainable_names()} <= state.keys()
        size = (tmp_path / "checkpoints" / f"{name}.ckpt").stat().st_size
        own = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert size < 4 * (3 * own + llm / 2) + 100_000  # weights and two moments; less than with the LLM


def test_a_missing_trainable_tensor_is_an_error(tmp_path):
    config = tiny_run(tmp_path, max_steps=1)
    config.callbacks.generate_rows = 0
    model, _ = fitted(config, tmp_path)
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = checkpoint(path)
    for name in sorted(model.trainable_names())[::18]:
        torch.save(
            {**saved, "state_dict": {k: v for k, v in saved["state_dict"].items() if k != f"model.{name}"}}, path
        )
        with pytest.raises(UserError, match=f"tensor {re.escape(name)} is missing"):
            fitted(config, tmp_path, resume=path)


def test_the_llm_is_bit_identical_and_without_gradient_after_a_fit(tmp_path):
    config = tiny_run(tmp_path, max_steps=3)
    before = {k: v.clone() for k, v in build(config)[0].encoder.body.state_dict().items()}
    model, _ = fitted(config, tmp_path)
    assert_same(model.encoder.body.state_dict(), before)
    assert all(p.grad is None for p in model.encoder.parameters())
    assert not model.encoder.training


def test_dropout_is_enabled_in_training_regardless_of_the_models_mode(tmp_path):
    seen = []
    config = tiny_run(tmp_path, max_steps=2, val_every=1)
    model, data = build(config)
    model.eval()
    model.slm.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    model.encoder.body.register_forward_pre_hook(lambda module, _: seen.append(("llm", module.training)))
    fit(config, tmp_path, model, data, loggers=[MetricsFile(tmp_path)])
    assert {True, False, ("llm", False)} == set(seen)


def test_after_a_fit_the_model_has_the_best_weights_and_not_the_last(tmp_path):
    config = tiny_run(tmp_path, max_steps=6, val_every=1)
    values = iter([3.0, 1.0, 5.0, 0.5, 2.0, 4.0])
    config.callbacks.monitor, config.callbacks.mode = "val/score", "max"
    config.callbacks.generate_rows = 1
    model, done = fitted(config, tmp_path, scorer=scoring(values))
    best = checkpoint(Path(done.best))
    assert best["global_step"] == 3
    assert column(tmp_path, "val/score") == [3.0, 1.0, 5.0, 0.5, 2.0, 4.0]
    kept = {k.removeprefix("model."): v for k, v in best["state_dict"].items()}
    assert_same(weights(model), {k: kept[k] for k in weights(model)})
    last = checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 6
    assert any(not torch.equal(last["state_dict"][f"model.{k}"], v) for k, v in weights(model).items())


def test_the_last_step_is_validated_and_saved_for_every_interval(tmp_path):
    config = tiny_run(tmp_path, max_steps=5, val_every=3)
    _, done = fitted(config, tmp_path)
    validated = [int(row["step"]) for row in curve(tmp_path) if row.get("val/loss")]
    assert validated == [2, 4]  # Lightning counts the steps of a row from 0
    assert checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == done.steps == 5


# Other ends


def test_early_stopping_ends_the_training(tmp_path):
    config = tiny_run(tmp_path, max_steps=50, val_every=1)
    config.callbacks.patience, config.callbacks.generate_rows = 2, 1
    config.callbacks.monitor, config.callbacks.mode = "val/score", "max"
    values = iter([1.0, 2.0, 1.5, 2.0, 9.0])
    _, done = fitted(config, tmp_path, scorer=scoring(values))
    assert done.steps == 4
    assert checkpoint(Path(done.best))["global_step"] == 2


def test_a_resumed_run_stops_by_its_new_patience(tmp_path):
    """Values decrease from the second validation on: patience 1 stops at step 2; resumed with 3, at step 4."""
    config = tiny_run(tmp_path, max_steps=50, val_every=1)
    config.callbacks.patience, config.callbacks.generate_rows = 1, 1
    config.callbacks.monitor, config.callbacks.mode = "val/score", "max"
    values = iter([9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    assert fitted(config, tmp_path, scorer=scoring(values))[1].steps == 2
    config.callbacks.patience = 3
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert fitted(config, tmp_path, scorer=scoring(values), resume=last)[1].steps == 4


def test_the_best_value_of_another_monitor_is_ignored(tmp_path):
    """val/loss is minimized and below 9; the first value of the new score, 30, is nevertheless its best."""
    config = tiny_run(tmp_path, max_steps=2, val_every=1)
    config.callbacks.generate_rows = 1
    fitted(config, tmp_path, scorer=scoring(iter([0.0, 0.0])))
    config.trainer.max_steps = 4
    config.callbacks.monitor, config.callbacks.mode = "val/score", "min"
    last = tmp_path / "checkpoints" / "last.ckpt"
    _, done = fitted(config, tmp_path, scorer=scoring(iter([30.0, 40.0])), resume=last)
    assert checkpoint(Path(done.best))["global_step"] == 3


def test_a_monitor_that_is_never_logged_is_reported_on_one_line(tmp_path):
    config = tiny_run(tmp_path, max_steps=4, val_every=1)
    config.callbacks.monitor, config.callbacks.patience = "val/blue", 3
    with pytest.raises(UserError, match=r"^callbacks\.monitor=val/blue: never logged by this run; it logs val/loss$"):
        fitted(config, tmp_path)
    with pytest.raises(UserError, match=r"callbacks\.monitor=val/blue: .* val/loss, val/chrf, val/exact_match"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_nan_loss_ends_the_run(tmp_path):
    config = tiny_run(tmp_path, max_steps=20, val_every=10)
    config.optim.lr, config.optim.warmup_steps, config.trainer.gradient_clip_val = 1e30, 0, None
    with pytest.raises(
        UserError, match=r"^training diverged: train/loss is nan at step \d+; lower optim\.lr"
    ) as caught:
        fitted(config, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_nan_validation_loss_overwrites_nothing(tmp_path, monkeypatch):
    config = tiny_run(tmp_path, max_steps=6, val_every=1, log_every_n_steps=100)
    model, data = build(config)

    def spoil(module):
        if module.trainer.global_step == 3:
            model.slm.shared.weight.data.fill_(math.nan)

    monkeypatch.setattr(TrainingModule, "on_validation_epoch_start", spoil)
    with pytest.raises(UserError, match=r"training diverged: val/loss is nan at step 3"):
        fit(config, tmp_path, model, data, loggers=[MetricsFile(tmp_path)])
    for name in ("last", "best"):
        state = checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt")
        assert state["global_step"] <= 2


def test_an_impossible_trainer_is_reported_on_one_line(tmp_path):
    for key, value in (("precision", "7-mixed"), ("accelerator", "gpux"), ("strategy", "telepathy")):
        config = tiny_run(tmp_path, **{key: value})
        with pytest.raises(UserError, match=rf"^trainer(\.{key}={value})?: ") as caught:
            fitted(config, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("slm", representatives(["t5", "gpt2"], ["t5"]))
def test_bf16_training_decreases_the_loss(tmp_path, slm):
    config = tiny_run(tmp_path, slm=slm, max_steps=25, val_every=25, precision="bf16-mixed")
    model, _ = fitted(config, tmp_path)
    losses = column(tmp_path, "train/loss")
    assert sum(losses[-5:]) < sum(losses[:5]) - 1.0
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    full = tiny_run(tmp_path, slm=slm, max_steps=1, val_every=1)
    fitted(full, tmp_path / "full")
    (first,) = column(tmp_path / "full", "train/loss")
    assert 0 < abs(first - losses[0]) < 0.1


@pytest.mark.parametrize(
    ("monitor", "mode", "expected"),
    [
        ("val/loss", None, "min"),
        ("val/bleu", None, "max"),
        ("val/chrf", None, "max"),
        ("val/bleu", "min", "min"),
        ("val/ter", None, "min"),
        ("val/repetition", None, "min"),
        ("val/chrf++", None, "max"),
    ],
)
def test_losses_and_error_rates_are_minimized_and_other_metrics_maximized(monitor, mode, expected):
    assert direction(CallbacksConfig(monitor=monitor, mode=mode), lower_is_better) == expected


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precisions_that_would_change_the_llm_are_refused(tmp_path, precision):
    with pytest.raises(UserError, match=f"trainer.precision={precision} would change the frozen LLM"):
        build_trainer(TrainerConfig(precision=precision), tmp_path, [], [])


def test_matmul_precision_is_set_during_training_only(tmp_path):
    seen = []

    class Seen(Callback):
        def on_train_batch_end(self, *_):
            seen.append(torch.get_float32_matmul_precision())

    before = torch.get_float32_matmul_precision()
    config = tiny_run(tmp_path, max_steps=2, matmul_precision="medium")
    config.callbacks.generate_rows = 0
    original = fit_module.build_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fit_module, "build_trainer", lambda cfg, at, calls, logs: original(cfg, at, [*calls, Seen()], logs)
        )
        fitted(config, tmp_path)
    assert seen == ["medium"] * 2
    assert torch.get_float32_matmul_precision() == before == "highest"


def test_an_unknown_matmul_precision_is_reported_on_one_line(tmp_path):
    with pytest.raises(UserError, match=r"trainer\.matmul_precision=low: expected one of highest, high, medium"):
        fitted(tiny_run(tmp_path, matmul_precision="low"), tmp_path)
