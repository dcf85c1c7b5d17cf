"""A loss that is not finite: the run ends before a checkpoint is written, and the batch is saved."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from lightning import Callback
from sampling import representatives
from tiny_runs import assert_same, checkpoint, tiny_run

from llm2slm.commands.train import run as train
from llm2slm.training import fit as fit_module
from llm2slm.training.checkpoints import Checkpoints
from llm2slm.training.fit import build_trainer
from llm2slm.training.module import TrainingModule
from llm2slm.types import UserError


@pytest.mark.parametrize("interval", representatives([1, 100], [100]))
@pytest.mark.parametrize("stops", representatives([False, True], [False]))
def test_the_batch_is_saved_and_no_checkpoint_is_damaged(tmp_path, monkeypatch, capsys, interval, stops):
    """NaN at the third of eight steps, after the validation of the second; logged immediately, or never."""
    config = tiny_run(tmp_path, max_steps=8, val_every=2, log_every_n_steps=interval)
    config.callbacks.generate_rows = 0
    batches, original = [], TrainingModule._forward

    def forward(module, batch):
        batches.append(batch)
        losses, tokens = original(module, batch)
        return ({"loss": losses["loss"] * float("nan")} if len(batches) == 3 else losses), tokens

    class Stop(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            if stops and trainer.global_step == 2:
                [checkpoints] = [each for each in trainer.callbacks if isinstance(each, Checkpoints)]
                checkpoints.signals.number = 15  # a stop is requested in the same step

    monkeypatch.setattr(TrainingModule, "_forward", forward)
    monkeypatch.setattr(
        fit_module, "build_trainer", lambda cfg, at, calls, logs: build_trainer(cfg, at, [*calls, Stop()], logs)
    )
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=rf"train/loss is nan at step 3; .*; the batch is saved in {folder}/diverged$"):
        train(deepcopy(config), folder)
    line = f"llm2slm: to resume from the last checkpoint: llm2slm train run={folder}"
    assert capsys.readouterr().err.splitlines()[-1] == line
    saved = checkpoint(folder / "diverged" / "rank_0.pt")
    assert saved["step"] == 3
    (found,), (before,) = saved["batches"], saved["previous"]
    for stored, batch in ((found, batches[2]), (before, batches[1])):
        assert stored["indices"] == batch.indices
        names = ("slm_ids_BQ", "slm_mask_BQ", "llm_ids_BP", "labels_BT")
        assert_same({name: stored[name] for name in names}, {name: getattr(batch, name) for name in names})
    assert found["loss"] != found["loss"] and before["loss"] > 0
    last = checkpoint(folder / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in last["state_dict"].values() if tensor.is_floating_point())
    monkeypatch.setattr(TrainingModule, "_forward", original)
    monkeypatch.setattr(fit_module, "build_trainer", build_trainer)
    again = deepcopy(config)
    again.run = str(folder)
    assert train(again, folder).systems[0].notes["optimizer_steps"] == 8
