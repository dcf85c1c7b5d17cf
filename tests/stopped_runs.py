"""Trainings that are stopped before their end, and the files of two trainings that must be equal."""

from __future__ import annotations

import os
import signal
from copy import deepcopy

import pytest
import torch
from lightning import Callback
from tiny_runs import assert_same, checkpoint, curve, taught

from llm2slm.commands.train import run as train
from llm2slm.training import fit as fit_module
from llm2slm.training.fit import build_trainer, fit, set_seed
from llm2slm.training.loggers import MetricsFile


class StopAt(Callback):
    """Sends this process a signal during the given batch (1-based, over all epochs), `times` times."""

    def __init__(self, batch, number=signal.SIGINT, times=1):
        self.batch, self.number, self.times, self.seen = batch, number, times, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += 1
        if self.seen == self.batch:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def interrupted(config, folder, monkeypatch, *signals):
    """A run that receives signals; it ends like the command on Ctrl-C."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            fit_module,
            "build_trainer",
            lambda cfg, where, callbacks, loggers: build_trainer(cfg, where, [*callbacks, *signals], loggers),
        )
        train(config, folder)


def resumed(config, folder):
    """Resumes a run until its end."""
    again = deepcopy(config)
    again.run = str(folder)
    train(again, folder)


def state_of(folder):
    """Weights, optimizer, schedule and generator in last.ckpt."""
    saved = checkpoint(folder / "checkpoints" / "last.ckpt")
    (optimizer,) = saved["optimizer_states"]
    flat = {f"{i}.{k}": v for i, state in optimizer["state"].items() for k, v in state.items()}
    return {**saved["state_dict"], **flat, **generators(saved)}, (saved["lr_schedulers"], saved["global_step"])


def generators(saved):
    """The random states of each process as tensors, and the prompts that it stores from earlier batches."""
    found = {}
    for rank, own in enumerate(saved["random_states"]):
        (_, words, spare), (_, keys, *rest) = own["python"], own["numpy"]
        found |= {f"{rank}.python": torch.tensor([*words, spare or 0]), f"{rank}.numpy": keys}
        found |= {f"{rank}.numpy.rest": torch.tensor(rest, dtype=torch.float64), f"{rank}.torch": own["torch"]}
        found |= {f"{rank}.heard.{n}": reps for n, (_, reps) in enumerate(own.get("heard", []))}
    return found


def assert_runs_equal(found, wanted):
    (tensors, rest), (wanted_tensors, wanted_rest) = state_of(found), state_of(wanted)
    assert_same(tensors, wanted_tensors)
    assert rest == wanted_rest
    assert curve(found) == curve(wanted)
    assert_same(
        checkpoint(found / "checkpoints" / "best.ckpt")["state_dict"],
        checkpoint(wanted / "checkpoints" / "best.ckpt")["state_dict"],
    )


class Fails(Callback):
    """Ends every process before the given step, without saving."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("ended by the test")


def fitted(config, folder, resume=None, *callbacks):
    set_seed(config.seed)
    model, data, teacher = taught(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fit_module,
            "build_trainer",
            lambda cfg, where, calls, loggers: build_trainer(cfg, where, [*calls, *callbacks], loggers),
        )
        return fit(config, folder, model, data, loggers=[MetricsFile(folder)], resume=resume, teacher=teacher)
