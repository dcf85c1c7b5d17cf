"""The first phase of a training (`optim.freeze_slm_steps`): the SLM is bit-identical, and is trained afterwards."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from sampling import representatives
from stopped_runs import Fails, StopAt, assert_runs_equal, fitted, interrupted, resumed
from tiny_runs import build, checkpoint, curve, tiny_run

from llm2slm.commands.train import run as train
from llm2slm.config import LanguageModelConfig, ModelConfig, OptimConfig, RunConfig
from llm2slm.training import fit as fit_module
from llm2slm.training.fit import build_trainer
from llm2slm.training.phases import frozen_in_first_phase, projector_rate
from llm2slm.types import SystemKind, UserError

NEW = ("crossattention", "ln_cross_attn")


def phased(root: Path, steps: int, slm: str = "t5", mode: str = "add", **trainer: Any) -> RunConfig:
    config = tiny_run(root, slm=slm, mode=mode, **{"max_steps": 6, "val_every": 2, **trainer})
    config.optim.freeze_slm_steps, config.optim.weight_decay, config.optim.warmup_steps = steps, 0.1, 0
    config.callbacks.generate_rows = 0
    return config


class States(Callback):
    """The trainable weights after each optimizer step, and the parameters with an optimizer state."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []
        self.stateful: list[set[str]] = []

    def keep(self, module: Any) -> None:
        self.after.append({n: p.detach().clone() for n, p in module.model.named_parameters() if p.requires_grad})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.keep(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.after):
            self.keep(pl_module)
            state = trainer.optimizers[0].state
            self.stateful.append({n for n, p in pl_module.model.named_parameters() if p in state})


def watched(config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> States:
    states = States()
    with monkeypatch.context() as patch:
        patch.setattr(
            fit_module, "build_trainer", lambda cfg, at, calls, logs: build_trainer(cfg, at, [*calls, states], logs)
        )
        train(deepcopy(config), folder)
    return states


@pytest.mark.parametrize(
    ("slm", "mode", "optimizer", "windows"),
    representatives(
        [
            ("t5", "add", "adamw", 1),
            ("t5", "add", "muon", 2),
            ("gpt2", "cross_attention", "adamw", 1),
            ("gpt2", "memory", "adamw", 1),
        ],
        lambda case: case[:2] != ("t5", "add") or case[3] == 2,
    ),
)
def test_the_slm_is_bit_identical_in_the_first_phase_and_is_trained_afterwards(
    tmp_path, monkeypatch, slm, mode, optimizer, windows
) -> None:
    config = phased(tmp_path, 3, slm, mode, accumulate_grad_batches=windows)
    config.optim.name = optimizer
    states = watched(config, tmp_path / "run", monkeypatch)
    start = states.after[0]
    slm_names = {n for n in start if n.startswith("slm.") and not any(new in n for new in NEW)}
    others = start.keys() - slm_names
    assert slm_names and others and (mode != "memory" or any(new in n for n in others for new in NEW))
    for step in (1, 2, 3):
        assert all(torch.equal(states.after[step][name], start[name]) for name in slm_names)
        assert not states.stateful[step - 1] & slm_names
        assert any(not torch.equal(states.after[step][name], states.after[step - 1][name]) for name in others)
    moved = [name for name in slm_names if not torch.equal(states.after[4][name], start[name])]
    assert len(moved) > len(slm_names) * 0.8  # embedding rows that are in no batch need not change
    assert states.stateful[3] >= slm_names


@pytest.mark.slow
def test_the_projectors_first_step_is_that_of_a_training_without_phases(tmp_path, monkeypatch) -> None:
    """Its gradient does not depend on whether the SLM's is computed; neither does any learning rate."""
    one = watched(phased(tmp_path, 3), tmp_path / "phased", monkeypatch)
    other = watched(phased(tmp_path, 0), tmp_path / "plain", monkeypatch)
    # clipping uses the norm of the trained parameters: an unclipped run is compared
    for name in one.after[0]:
        assert torch.equal(one.after[0][name], other.after[0][name])
    rates = [
        [(row["train/lr_slm"], row["train/lr_projector"]) for row in curve(tmp_path / n)] for n in ("phased", "plain")
    ]
    assert rates[0] == rates[1]
    unclipped = [phased(tmp_path, steps, gradient_clip_val=None) for steps in (3, 0)]
    first, second = (watched(config, tmp_path / f"unclipped{n}", monkeypatch) for n, config in enumerate(unclipped))
    for name in first.after[1]:
        if name.startswith("projector."):
            assert torch.equal(first.after[1][name], second.after[1][name])


@pytest.mark.parametrize("optimizer", representatives(["adamw", "muon"], ["adamw"]))
@pytest.mark.parametrize("stop", representatives([2, 5], [2]))
def test_a_run_stopped_in_either_phase_and_resumed_equals_an_undisturbed_one(
    tmp_path, monkeypatch, stop, optimizer
) -> None:
    config = phased(tmp_path, 4, max_steps=8)
    config.optim.name = optimizer
    train(deepcopy(config), tmp_path / "whole")
    interrupted(deepcopy(config), tmp_path / "run", monkeypatch, StopAt(stop))
    assert checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == stop
    resumed(config, tmp_path / "run")
    assert_runs_equal(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_stopped_in_the_first_phase_and_resumed_equal_undisturbed_ones(tmp_path) -> None:
    """Each process drops the same gradients, after the reduction."""
    config = phased(tmp_path, 3, devices=2, strategy="ddp_fork")
    config.data.batch_tokens = 110
    start = {f"model.{n}": p.detach().clone() for n, p in build(config)[0].named_parameters() if n.startswith("slm.")}
    fitted(config, tmp_path / "whole")
    with pytest.raises(Exception, match="ended by the test"):
        fitted(config, tmp_path / "run", None, Fails(3))
    last = tmp_path / "run/checkpoints/last.ckpt"
    saved = checkpoint(last)
    assert saved["global_step"] == 2
    assert all(torch.equal(saved["state_dict"][name], tensor) for name, tensor in start.items())
    fitted(config, tmp_path / "run", last)
    assert_runs_equal(tmp_path / "run", tmp_path / "whole")
    ended = checkpoint(tmp_path / "whole/checkpoints/last.ckpt")
    moved = [not torch.equal(ended["state_dict"][name], tensor) for name, tensor in start.items()]
    assert sum(moved) > len(moved) * 0.8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": SystemKind.slm}, r"there is no projector to train alone with model\.kind=slm"),
        ({"kind": SystemKind.llm}, r"there is no projector to train alone with model\.kind=llm"),
        ({"tune": "none"}, r"model\.slm\.tune=none freezes the SLM in every step"),
        ({"steps": 6}, r"trainer\.max_steps=6 has no step in which the SLM is trained"),
    ],
)
def test_an_impossible_first_phase_is_refused(tmp_path, changes, words) -> None:
    config = phased(tmp_path, changes.get("steps", 3))
    config.model.kind = changes.get("kind", SystemKind.llm2slm)
    config.model.slm.tune = changes.get("tune", "full")
    with pytest.raises(UserError, match=rf"^optim\.freeze_slm_steps={config.optim.freeze_slm_steps}: {words}"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_adapters_are_frozen_in_the_first_phase(tmp_path) -> None:
    config = tiny_run(tmp_path)
    config.model.slm.tune, config.model.slm.peft = "lora", {"r": 2, "target_modules": ["q"]}
    model = build(config)[0]
    held = {id(parameter) for parameter in frozen_in_first_phase(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in held}
    assert names and all("lora_" in name for name in names)


@pytest.mark.parametrize(
    ("lr", "given", "slm", "expected"),
    [
        (1e-5, None, LanguageModelConfig(name="x"), 1e-4),
        (1e-4, None, LanguageModelConfig(name="x"), 1e-3),
        (3e-4, None, LanguageModelConfig(name="x"), 1e-3),
        (1e-3, None, LanguageModelConfig(name="x"), 1e-3),
        (5e-3, None, LanguageModelConfig(name="x"), 5e-3),
        (1e-4, 2e-4, LanguageModelConfig(name="x"), 2e-4),
        (1e-4, None, LanguageModelConfig(config={"model_type": "gpt2"}), 1e-4),
    ],
)
def test_the_default_rate_of_the_projector(lr, given, slm, expected) -> None:
    optim = OptimConfig(lr=lr, projector_lr=given)
    assert projector_rate(optim, ModelConfig(slm=slm)) == pytest.approx(expected)
    assert projector_rate(OptimConfig(lr=lr), ModelConfig(kind=SystemKind.slm, slm=slm)) == lr


def test_the_rate_of_the_projector_is_set_in_the_optimizer(tmp_path) -> None:
    config = phased(tmp_path, 0, max_steps=2)
    config.optim.lr, config.optim.projector_lr = 2e-5, None
    result = train(config, tmp_path / "run")
    assert float(curve(tmp_path / "run")[0]["train/lr_projector"]) == pytest.approx(2e-4)
    assert result.systems[0].notes["projector_lr"] == pytest.approx(2e-4)


def without_projector(root: Path) -> RunConfig:
    """`kv` with an SLM that shares the LLM's cache: the hybrid has no projector."""
    config = tiny_run(root, slm="gpt2", llm="gpt2", mode="kv", max_steps=4)
    config.model.slm.name, config.model.slm.tokenizer = config.model.llm.name, config.model.llm.tokenizer
    return config


@pytest.mark.parametrize(("change", "said"), [
    ({"tune": "none"}, r"model\.slm\.tune=none: leaves nothing to train, as model\.conditioning=kv has no projector"),
    ({"freeze_slm_steps": 2}, r"optim\.freeze_slm_steps=2: model\.conditioning=kv has no projector: the SLM uses"),
])  # fmt: skip
def test_without_a_projector_frozen_slms_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    config = without_projector(tmp_path)
    for name, value in change.items():
        setattr(config.model.slm if name == "tune" else config.optim, name, value)
    with pytest.raises(UserError, match=said):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unused_rate_of_embeddings_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_run(tmp_path)
    config.optim.embedding_lr, config.trainer.max_steps = 1e-2, 2
    train(deepcopy(config), tmp_path / "one")
    assert "embedding_lr" not in capsys.readouterr().err
    config.model.slm.tune = "lora"
    train(config, tmp_path / "two")
    message = "warning: optim.embedding_lr=0.01 is not used: model.slm.tune=lora trains no embedding matrix of the SLM"
    assert message in capsys.readouterr().err


def test_an_unused_rate_of_the_projector_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = without_projector(tmp_path)
    config.optim.projector_lr = None
    train(deepcopy(config), tmp_path / "one")
    assert "projector_lr" not in capsys.readouterr().err
    config.optim.projector_lr = 1e-2
    train(config, tmp_path / "two")
    assert "warning: optim.projector_lr=0.01 is not used: model.conditioning=kv has no projector" in (
        capsys.readouterr().err
    )
