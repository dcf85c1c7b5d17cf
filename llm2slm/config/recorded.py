"""What configurations mean today that earlier versions recorded in run directories and saved models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIXED_SEED = 1
"""Earlier versions drew the built-in corpora's validation and test rows by the seed of a run; now it is this one."""


def recorded_changes(name: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """`LanguageModelConfig.config` as it was used: earlier versions recorded a whole config (one with a model_type)
    beside a name, and did not use it."""
    return {} if name is not None and "model_type" in config else dict(config)


def understood(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with what earlier versions recorded in another way, changed in place."""
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
    """Whether a configuration was recorded when z always started at random, and the projector's learning rate was that
    of the SLM wherever it was not set."""
    model = config.get("model")
    projector = model.get("projector") if isinstance(model, Mapping) else None
    return isinstance(projector, Mapping) and "start" not in projector


def before_fixed_rows(config: Mapping[str, Any]) -> bool:
    """Whether a configuration was recorded when the validation loss was computed on all validation rows, and when the
    seed drew validation and test rows of the built-in corpora: it lacks `trainer.val_rows`, which came with both
    changes."""
    trainer = config.get("trainer")
    return isinstance(trainer, Mapping) and "val_rows" not in trainer


def other_rows(config: Mapping[str, Any]) -> bool:
    """Whether a run was validated and tested on rows of a built-in corpus that its seed drew. (Its training rows are
    those of today: the splits share no source, whatever the seed.)"""
    data = config.get("data")
    if not before_fixed_rows(config) or not isinstance(data, Mapping) or config.get("seed", FIXED_SEED) == FIXED_SEED:
        return False
    return any(
        part.get("name") == "builtin" for part in (data, *(data.get("parts") or ())) if isinstance(part, Mapping)
    )
