"""The learning rate of every step: that of the optimizer and that in metrics.csv, against a closed formula, with and
without resuming, with the same and with another trainer.max_steps."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
from lightning import Callback
from sampling import representatives
from tiny_runs import assert_same, checkpoint, curve, tiny_run

from llm2slm.commands.train import run as train
from llm2slm.training import fit as fit_module
from llm2slm.training.fit import build_trainer

LR, PROJECTOR_LR, WARMUP, FINAL = 4e-3, 1e-2, 3, 0.05
PEAKS = {"slm": LR, "projector": PROJECTOR_LR}


def rate(peak, step, schedule, max_steps):
    """By hand: linear warm-up to the peak, then down to FINAL times the peak at `max_steps`."""
    if step < WARMUP:
        return peak * (step + 1) / WARMUP
    done = (step - WARMUP) / (max_steps - WARMUP)
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule]
    return peak if schedule == "constant" else peak * (FINAL + (1 - FINAL) * left)


class Applied(Callback):
    """Records the rate of each group at each optimizer step."""

    def __init__(self):
        self.rates = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates[trainer.global_step] = {group["name"]: group["lr"] for group in optimizer.param_groups}


def scheduled(root, optimizer, schedule, max_steps):
    config = tiny_run(root, max_steps=max_steps, val_every=4)
    config.optim.name, config.optim.schedule, config.optim.final_lr = optimizer, schedule, FINAL
    config.optim.lr, config.optim.projector_lr, config.optim.warmup_steps = LR, PROJECTOR_LR, WARMUP
    config.callbacks.generate_rows = 0
    return config


def applied(monkeypatch, config, folder):
    """Trains, and returns the applied rates by step."""
    seen = Applied()
    with monkeypatch.context() as patch:
        patch.setattr(
            fit_module,
            "build_trainer",
            lambda cfg, where, callbacks, loggers: build_trainer(cfg, where, [*callbacks, seen], loggers),
        )
        train(config, folder)
    return seen.rates


@pytest.mark.parametrize("optimizer", representatives(["adamw", "muon"], ["adamw"]))
@pytest.mark.parametrize("schedule", representatives(["cosine", "linear", "constant"], ["cosine"]))
@pytest.mark.parametrize(
    "steps", representatives([(6, 12), (2, 7)], [(6, 12)], whole=True), ids=["after warm-up", "within warm-up"]
)
def test_a_longer_schedule_applies_from_the_first_resumed_step(tmp_path, monkeypatch, optimizer, schedule, steps):
    first, last = steps
    rates = applied(monkeypatch, scheduled(tmp_path, optimizer, schedule, first), tmp_path / "run")
    longer = scheduled(tmp_path, optimizer, schedule, last)
    longer.run = str(tmp_path / "run")
    rates |= applied(monkeypatch, longer, tmp_path / "run")
    assert list(rates) == list(range(last))
    rows = {int(row["step"]): row for row in curve(tmp_path / "run")}
    for step, groups in rates.items():
        for name, found in groups.items():
            part = name.removesuffix("_no_decay")
            wanted = rate(PEAKS[part], step, schedule, first if step < first else last)
            assert found == pytest.approx(wanted, rel=1e-9), (step, name)
            assert float(rows[step][f"train/lr_{part}"]) == pytest.approx(wanted, rel=1e-6), (step, name)


@pytest.mark.slow
def test_stored_rates_and_weights_of_an_extended_run_equal_those_of_an_uninterrupted_one(tmp_path):
    """A constant rate after warm-up does not depend on trainer.max_steps: both runs are bit-identical."""
    short = scheduled(tmp_path, "adamw", "constant", 4)
    train(deepcopy(short), tmp_path / "parts")
    short.trainer.max_steps, short.run = 8, str(tmp_path / "parts")
    train(short, tmp_path / "parts")
    train(scheduled(tmp_path, "adamw", "constant", 8), tmp_path / "whole")
    parts, whole = (checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("parts", "whole"))
    assert_same(parts["state_dict"], whole["state_dict"])
    assert parts["lr_schedulers"] == whole["lr_schedulers"]
    stored = [[group["lr"] for group in saved["optimizer_states"][0]["param_groups"]] for saved in (parts, whole)]
    assert stored[0] == stored[1] == [PROJECTOR_LR, PROJECTOR_LR, LR, LR]
