"""`run=DIR` (or DIR/model): overrides change the recorded configuration of the run, and not the defaults.

Thus `llm2slm evaluate run=DIR` scores a run on the test split of its corpus, and with data=samsum on another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llm2slm import runs
from llm2slm.cli.compose import typed
from llm2slm.cli.schema import lookup, unknown_key
from llm2slm.config import PlainLLMConfig, RunConfig
from llm2slm.types import Labels, SystemKind, UserError

VERBS = ("train", "evaluate", "calibrate", "label", "benchmark")
"""Verbs that use the recorded configuration of `run=DIR`."""
OF_OTHER_LLM = tuple(f"model.llm.{key.name}" for key in dataclasses.fields(PlainLLMConfig))
"""Loading and prompting of the LLM that `benchmark` compares with an SLM trained without an LLM."""
PER_COMMAND = (
    "run",
    "llm",
    "split",
    "systems",
    "benchmark",
    "label",
    "encode",
    *("calibrate", "cascade", "quality_kept"),
)
"""Keys of a single command, never taken from the recorded configuration."""
DEVICES = ("trainer.devices", "trainer.num_nodes", "trainer.strategy")
"""Processes of a command; only a resumed training takes those that were recorded."""


def with_stored(verb: str, config: RunConfig, overrides: list[str]) -> RunConfig:
    """The configuration recorded in `config.run`, changed by `overrides`; `config` itself if none is recorded.

    Raises:
        UserError: the recorded configuration has an unknown key, or the overrides change the trained model.
    """
    folder = None if verb not in VERBS or config.run is None else runs.home(config.run)
    if folder is None:
        return config
    stored = runs.read_config(folder)
    chosen = chosen_keys(overrides)
    if "experiment" in chosen:  # an experiment may set any key: it replaces the recorded configuration
        return config
    for name in flat(stored):
        if lookup(RunConfig, name) is None:
            raise unknown_key_in(folder / "config.yaml", name)
    merged = OmegaConf.create(stored)
    composed = OmegaConf.create(runs.plain(config))
    if verb != "train":
        refuse_other_model(
            folder, merged, composed, [name for name in chosen if not of_other_llm(verb, name, merged, config)]
        )
        # generated labels are for training only; answers are scored against the targets of the corpus
        OmegaConf.update(merged, "data.labels", Labels.gold.value, force_add=True)
    for name in [*PER_COMMAND, *(DEVICES if verb != "train" else ()), *chosen]:
        if lookup(RunConfig, name) is not None:
            OmegaConf.update(merged, name, OmegaConf.select(composed, name), merge=False, force_add=True)
    try:
        typed(RunConfig, OmegaConf.create(stored))
    except UserError as error:
        raise UserError(f"{folder / 'config.yaml'}: {error}") from None
    result: RunConfig = typed(RunConfig, merged)
    return result


def chosen_keys(overrides: list[str]) -> list[str]:
    """The keys, sections and groups (with dots) of overrides."""
    return [o.lstrip("+").partition("=")[0].partition("@")[0].replace("/", ".") for o in overrides]


def of_other_llm(verb: str, name: str, stored: Any, config: RunConfig) -> bool:
    """Whether a key configures the LLM that an SLM without LLM is compared with (`benchmark run=SLM llm=LLM`)."""
    slm = OmegaConf.select(stored, "model.kind") == SystemKind.slm.value
    return verb == "benchmark" and slm and config.llm is not None and name in OF_OTHER_LLM


def refuse_other_model(folder: Path, stored: Any, composed: Any, chosen: list[str]) -> None:
    """Refuses overrides of a trained model, which would be recorded without any effect.

    Raises:
        UserError: a key under `model` is set to another value than that of the training.
    """
    trained = OmegaConf.merge(OmegaConf.create(runs.plain(RunConfig())), stored)
    for name in chosen:
        if name.partition(".")[0] != "model":
            continue
        for key, was, given in _differences(name, OmegaConf.select(trained, name), OmegaConf.select(composed, name)):
            raise UserError(
                f"{key}={given}: the model of run={folder} was trained with {was}, and is used as it is; leave "
                f"{'it' if key == name else name} out, or train another model with it"
            )


def _differences(name: str, was: Any, given: Any) -> Iterator[tuple[str, Any, Any]]:
    """Keys at or below a name with different values, and both values; a group (model=slm) sets many keys."""
    if OmegaConf.is_dict(was) and OmegaConf.is_dict(given):
        for key in {**was, **given}:
            yield from _differences(f"{name}.{key}", was.get(key), given.get(key))
    elif given != was and not name.endswith(".tokenizer"):  # train:8000 was replaced by a folder
        yield name, was, given


def flat(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the leaves of nested dicts."""
    found: list[str] = []
    for key, value in values.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return found


def unknown_key_in(path: Path, name: str) -> Exception:
    """The error for an unknown key of a recorded configuration."""
    error = unknown_key(RunConfig, name, [])
    return type(error)(f"{path}: {error}")
