"""Configs of published models that are part of the package, for what needs only shapes: costs without a network."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


@cache
def known() -> dict[str, dict[str, Any]]:
    """Hub id -> values of its config."""
    text = (files("llm2slm.models") / "known_configs.yaml").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return loaded


def known_config(name: str) -> PreTrainedConfig | None:
    """The config of a Hub id, with the defaults of its class for all values that are not stored; None: not stored."""
    if name not in known():
        return None
    values = dict(known()[name])
    config: PreTrainedConfig = CONFIG_MAPPING[values.pop("model_type")].from_dict(values)
    return config
