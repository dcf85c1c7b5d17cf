"""Conversion of configurations that earlier versions recorded in run directories and saved models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIXED_SEED = 1
"""Seed of validation and test rows of the built-in corpora. Earlier versions used the seed of the run."""


def recorded_changes(name: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """`LanguageModelConfig.config` as it was used: earlier versions recorded, but ignored, a whole config (with a
    model_type) if the model also had a name."""
    return {} if name is not None and "model_type" in config else dict(config)


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run in the current form; changes `config` in place."""
    model, trainer = config.get("model"), config.get("trainer")
    for side in (model.get("llm"), model.get("slm")) if isinstance(model, dict) else ():
        if isinstance(side, dict) and isinstance(side.get("config"), dict):
            side["config"] = recorded_changes(side.get("name"), side["config"])
    if isinstance(trainer, dict) and before_fixed_rows(config):
        trainer["val_rows"] = None
    optim = config.get("optim")
    if before_zero_start(config):
        config["model"]["projector"]["start"] = "random"
        if isinstance(optim, dict) and optim.get("projector_lr") is None and "lr" in optim:
            optim["projector_lr"] = optim["lr"]
    return config


def before_zero_start(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is older than `projector.start`: z started at random, and the default learning rate of
    the projector was that of the SLM."""
    model = config.get("model")
    projector = model.get("projector") if isinstance(model, Mapping) else None
    return isinstance(projector, Mapping) and "start" not in projector


def before_fixed_rows(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is older than `trainer.val_rows`: the validation loss was computed on all validation
    rows, and validation and test rows of the built-in corpora depended on the seed of the run."""
    trainer = config.get("trainer")
    return isinstance(trainer, Mapping) and "val_rows" not in trainer


def other_rows(config: Mapping[str, Any]) -> bool:
    """Whether the validation and test rows of a run differ from the current ones of its built-in corpus. (Training rows
    do not: the splits share no source, for all seeds.)"""
    data = config.get("data")
    if not before_fixed_rows(config) or not isinstance(data, Mapping) or config.get("seed", FIXED_SEED) == FIXED_SEED:
        return False
    return any(
        part.get("name") == "builtin" for part in (data, *(data.get("parts") or ())) if isinstance(part, Mapping)
    )
