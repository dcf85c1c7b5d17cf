"""The tensors that checkpoints leave out and their restoration; the random states of each process."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from sampling import representatives
from stopped_runs import Fails, StopAt, assert_runs_equal, fitted, interrupted, resumed, state_of
from tiny_runs import assert_same, build, checkpoint, publish, tiny_run

from llm2slm.commands.train import run as train
from llm2slm.testing import write_tiny_t5
from llm2slm.types import Control, Init, UserError

TUNES = {
    "none": {},
    "lora": {"r": 2, "target_modules": ["q"]},
    "prompt": {"num_virtual_tokens": 3},
    "prefix": {"num_virtual_tokens": 3},
    r"decoder\.block\.1\.": {},
    "full": {},
}


def partly(root: Path, tune: str, **trainer):
    """A run whose SLM is loaded from a folder, and of which only a part is trained."""
    config = tiny_run(root, **trainer)
    config.model.slm.name, config.model.slm.init = str(root / "slm"), Init.pretrained
    if not (root / "slm").is_dir():
        write_tiny_t5(root / "slm", seed=3)
    config.model.slm.tune, config.model.slm.peft = tune, TUNES[tune]
    config.callbacks.generate_rows = 0
    return config


# Frozen weights


@pytest.mark.parametrize("tune", representatives(TUNES, ["lora"]))
def test_frozen_weights_are_left_out_and_restored(tmp_path, monkeypatch, tune):
    config = partly(tmp_path, tune, max_steps=6, val_every=2)
    model = build(config)[0]
    kept = model.state_dict(keep_vars=True)
    trained = {f"model.{name}" for name, t in kept.items() if t.requires_grad}
    buffers = {f"model.{name}" for name, t in kept.items() if not isinstance(t, torch.nn.Parameter)}
    train(deepcopy(config), tmp_path / "whole")
    for name in ("last", "best"):
        path = tmp_path / "whole" / "checkpoints" / f"{name}.ckpt"
        assert checkpoint(path)["state_dict"].keys() == trained | buffers
        own = sum(t.numel() for t in {id(t): t for t in kept.values() if t.requires_grad}.values())
        assert path.stat().st_size < 4 * 3 * own + 120_000, "weights and two moments of what is trained, no more"
    interrupted(deepcopy(config), tmp_path / "run", monkeypatch, StopAt(3))
    resumed(config, tmp_path / "run")
    assert_runs_equal(tmp_path / "run", tmp_path / "whole")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "run/model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()


def test_a_replaced_frozen_model_is_refused_on_one_line(tmp_path, monkeypatch):
    config = partly(tmp_path, "none", max_steps=4, val_every=2)
    slm, llm, run = tmp_path / "slm", Path(config.model.llm.name), tmp_path / "run"
    interrupted(deepcopy(config), run, monkeypatch, StopAt(3))
    begins = r"the frozen part of the model that is trained \(.*slm\) is not the one that this training began with: "
    ends = r"its weights \(fingerprint .*\) are not those recorded in the checkpoint \(.*\); restore .*slm to resume"
    shutil.copytree(slm, tmp_path / "own_slm")
    write_tiny_t5(slm, seed=4)
    with pytest.raises(UserError, match=f"^{begins}{ends}$"):
        resumed(config, run)
    shutil.copytree(tmp_path / "own_slm", slm, dirs_exist_ok=True)
    shutil.copytree(llm, tmp_path / "own_llm")
    write_tiny_t5(llm, seed=77, width=24)
    with pytest.raises(UserError, match=r"^the LLM \(.*\) is not the one that this training began with"):
        resumed(config, run)
    shutil.copytree(tmp_path / "own_llm", llm, dirs_exist_ok=True)
    resumed(config, run)
    (run / "result.json").unlink()  # so that only the final test of the trained model remains
    write_tiny_t5(slm, seed=4)
    with pytest.raises(UserError, match=f"^{begins}{ends}$"):
        resumed(config, run)


@pytest.mark.slow
def test_trained_weights_are_not_checked(tmp_path, monkeypatch):
    """If the whole model is trained, its folder may change: the checkpoint contains all weights."""
    config = partly(tmp_path, "full", max_steps=4, val_every=2)
    train(deepcopy(config), tmp_path / "whole")
    interrupted(deepcopy(config), tmp_path / "run", monkeypatch, StopAt(3))
    shutil.rmtree(tmp_path / "slm")
    write_tiny_t5(tmp_path / "slm", seed=4)
    resumed(config, tmp_path / "run")
    assert_runs_equal(tmp_path / "run", tmp_path / "whole")


def test_a_hub_model_is_resumed_at_the_commit_of_the_first_training(tmp_path, hub, monkeypatch):
    old, new = "a" * 40, "b" * 40
    config = partly(tmp_path, "none", max_steps=4, val_every=2)
    for name in ("slm", "llm"):
        publish(hub, f"someone/{name}", old)
        getattr(config.model, name).name = f"someone/{name}"
    config.model.llm.init = Init.pretrained
    train(deepcopy(config), tmp_path / "whole")
    interrupted(deepcopy(config), tmp_path / "run", monkeypatch, StopAt(3))
    record = checkpoint(tmp_path / "run/checkpoints/last.ckpt")["frozen"]
    assert {part["name"]: part["revision"] for part in record.values()} == {"someone/slm": old, "someone/llm": old}
    for name in ("slm", "llm"):
        publish(hub, f"someone/{name}", new, encoder_layers=3)
    resumed(config, tmp_path / "run")
    assert_runs_equal(tmp_path / "run", tmp_path / "whole")
    for name in ("config.yaml", "model/config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_frozen_weights_without_a_file_are_saved(tmp_path, monkeypatch):
    """Random and frozen: another version of torch may draw other weights from the same seed."""
    config = tiny_run(tmp_path, max_steps=4, val_every=2)
    config.model.slm.tune, config.model.slm.init = "none", Init.random
    train(deepcopy(config), tmp_path / "whole")
    interrupted(deepcopy(config), tmp_path / "run", monkeypatch, StopAt(3))
    model = build(config)[0]
    assert {f"model.{name}" for name in model.state_dict()} == checkpoint(tmp_path / "run/checkpoints/last.ckpt")[
        "state_dict"
    ].keys()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", lambda self, *args, **kwargs: self.fill_(0.25))
        resumed(config, tmp_path / "run")
    assert_same(*(state_of(tmp_path / name)[0] for name in ("run", "whole")))


def test_a_missing_trained_tensor_is_an_error(tmp_path, monkeypatch):
    config = partly(tmp_path, "none", max_steps=4, val_every=2)
    interrupted(deepcopy(config), tmp_path / "run", monkeypatch, StopAt(3))
    path = tmp_path / "run/checkpoints/last.ckpt"
    saved = checkpoint(path)
    lost = min(saved["state_dict"])
    del saved["state_dict"][lost]
    torch.save(saved, path)
    with pytest.raises(UserError, match=rf"tensor {lost.removeprefix('model.')} is missing in the checkpoint"):
        resumed(config, tmp_path / "run")


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path, monkeypatch):
    config = partly(tmp_path, "lora", max_steps=4, val_every=2)
    train(deepcopy(config), tmp_path / "whole")
    interrupted(deepcopy(config), tmp_path / "run", monkeypatch, StopAt(3))
    path = tmp_path / "run/checkpoints/last.ckpt"
    saved = checkpoint(path)
    model = build(config)[0]
    saved["state_dict"] = {f"model.{name}": t for name, t in model.state_dict().items()} | saved["state_dict"]
    saved["rng"] = saved.pop("random_states")[0]["torch"]
    del saved["frozen"]
    torch.save(saved, path)
    resumed(config, tmp_path / "run")
    found, wanted = (state_of(tmp_path / name)[0] for name in ("run", "whole"))
    assert_same(*({k: v for k, v in s.items() if k.startswith("model.") or "exp_avg" in k} for s in (found, wanted)))


# Random states, and stored prompts


@pytest.mark.parametrize(("mode", "batch"), representatives([("add", 2), ("add", 3), ("prepend", 4)], [("add", 3)]))
def test_the_stored_prompts_of_a_control_are_resumed(tmp_path, monkeypatch, mode, batch):
    """A batch of one row gets the LLM's prompt of an earlier batch."""
    config = tiny_run(tmp_path, mode=mode, max_steps=6, val_every=6)
    config.model.control, config.data.batch_tokens, config.callbacks.generate_rows = Control.shuffled, 22, 0
    _, data = build(config)
    sizes = [len(batch.slm_ids_BQ) for batch in data.train_dataloader()]
    assert sizes.count(1) > len(sizes) / 2
    train(deepcopy(config), tmp_path / "whole")
    interrupted(deepcopy(config), tmp_path / "run", monkeypatch, StopAt(batch))
    assert len(checkpoint(tmp_path / "run/checkpoints/last.ckpt")["random_states"][0]["heard"]) > 0
    resumed(config, tmp_path / "run")
    assert_runs_equal(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("control", representatives([Control.none, Control.shuffled], [Control.shuffled]))
def test_two_processes_with_dropout_stopped_and_resumed_equal_undisturbed(tmp_path, control):
    """Bit for bit: weights, optimizer, and the random state and stored prompts of each process."""
    config = tiny_run(tmp_path, max_steps=6, val_every=2, devices=2, strategy="ddp_fork")
    config.data.batch_tokens, config.model.control = 110, control
    assert any(m.p > 0 for m in build(config)[0].modules() if isinstance(m, torch.nn.Dropout))
    fitted(config, tmp_path / "whole")
    with pytest.raises(Exception, match="ended by the test"):
        fitted(config, tmp_path / "run", None, Fails(3))
    last = tmp_path / "run/checkpoints/last.ckpt"
    saved = checkpoint(last)
    one, two = (own["torch"] for own in saved["random_states"])
    assert saved["global_step"] == 2
    assert not torch.equal(one, two), "the test needs processes in different states"
    if control is Control.shuffled:
        kept = [[prompt for prompt, _ in each["heard"]] for each in saved["random_states"]]
        assert all(kept) and kept[0] != kept[1]
    fitted(config, tmp_path / "run", last)
    assert_runs_equal(tmp_path / "run", tmp_path / "whole")

    config.trainer.devices, config.trainer.strategy = 1, "auto"
    with pytest.raises(UserError, match=r"^the checkpoint is of 2 processes, this run has 1; .*trainer\.devices"):
        fitted(config, tmp_path / "run", last)
