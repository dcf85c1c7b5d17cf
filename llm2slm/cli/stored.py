"""`run=DIR` (or DIR/model): the configuration that a run was made with is the base, and the command line goes on top.

So `llm2slm evaluate run=DIR` scores a run on its own test split, and with data=samsum on another one.
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

VERBS = ("train", "evaluate", "label", "benchmark")
"""Verbs for which `run=DIR` brings DIR's configuration along."""
BESIDE = tuple(f"model.llm.{key.name}" for key in dataclasses.fields(PlainLLMConfig))
"""How the LLM is loaded and asked that an SLM without one is timed beside."""
OWN = ("run", "llm", "split", "systems", "benchmark", "label", "encode")
"""Keys that belong to one command and are never taken from an earlier run."""


def with_stored(verb: str, config: RunConfig, overrides: list[str]) -> RunConfig:
    """The configuration stored in `config.run` changed by `overrides`; `config` as it is where none is stored.

    Raises:
        UserError: the stored file is no configuration of this version; names the key.
    """
    folder = None if verb not in VERBS or config.run is None else runs.home(config.run)
    if folder is None:
        return config
    stored = runs.read_config(folder)
    chosen = chosen_keys(overrides)
    if "experiment" in chosen:  # an experiment may set any key: it replaces the stored configuration
        return config
    for name in flat(stored):
        if lookup(RunConfig, name) is None:
            raise unknown_key_in(folder / "config.yaml", name)
    merged = OmegaConf.create(stored)
    composed = OmegaConf.create(runs.plain(config))
    if verb != "train":
        refuse_other_model(
            folder, merged, composed, [name for name in chosen if not beside(verb, name, merged, config)]
        )
        # what an LLM wrote was to be trained on; answers are judged by the corpus' own, whatever the split
        OmegaConf.update(merged, "data.labels", Labels.gold.value, force_add=True)
    for name in [*OWN, *chosen]:
        if lookup(RunConfig, name) is not None:
            OmegaConf.update(merged, name, OmegaConf.select(composed, name), merge=False, force_add=True)
    result: RunConfig = typed(RunConfig, merged)
    return result


def chosen_keys(overrides: list[str]) -> list[str]:
    """The keys, sections and groups (with dots) that overrides name."""
    return [o.lstrip("+").partition("=")[0].partition("@")[0].replace("/", ".") for o in overrides]


def beside(verb: str, name: str, stored: Any, config: RunConfig) -> bool:
    """Whether a key is of the LLM that an SLM without one is timed beside (`benchmark run=SLM llm=LLM`)."""
    slm = OmegaConf.select(stored, "model.kind") == SystemKind.slm.value
    return verb == "benchmark" and slm and config.llm is not None and name in BESIDE


def refuse_other_model(folder: Path, stored: Any, composed: Any, chosen: list[str]) -> None:
    """A trained model is used as it is: another value of it would be recorded, and change nothing.

    Raises:
        UserError: names the first key of the model that is given and is not what it was trained with.
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
    """Keys under a name that have two values, with both; a group (model=slm) sets many."""
    if OmegaConf.is_dict(was) and OmegaConf.is_dict(given):
        for key in {**was, **given}:
            yield from _differences(f"{name}.{key}", was.get(key), given.get(key))
    elif given != was and not name.endswith(".tokenizer"):  # train:8000 has become a folder
        yield name, was, given


def flat(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the leaves."""
    found: list[str] = []
    for key, value in values.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return found


def unknown_key_in(path: Path, name: str) -> Exception:
    """The error for a key of a stored configuration that this version does not know."""
    error = unknown_key(RunConfig, name, [])
    return type(error)(f"{path}: {error}")
