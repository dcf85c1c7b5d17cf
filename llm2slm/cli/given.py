"""Warnings of keys that were set and that the verb does not read, and errors for the keys in `reads.REFUSED`.

Unread keys are a warning, since a sweep over several modes, or one list of overrides for several verbs, may set them on
purpose. The keys in `REFUSED` select the model or the training data; without them the result would be that of another
model. Impossible combinations of keys that are read are errors of the code that builds the model.

A key counts as set if its value differs from the default of the verb: by the command line, a group, or a file of the
user. Values recorded in a run directory do not count. An experiment describes a run for several verbs, so keys that it
sets cause no warning, but the keys in `REFUSED` are errors there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm2slm import runs
from llm2slm.cli.conditions import Row
from llm2slm.cli.reads import REFUSED
from llm2slm.cli.reads_verbs import TABLES, leaves, unread_parts
from llm2slm.commands.deferred_warnings import hold_warning
from llm2slm.config import PartConfig, RunConfig
from llm2slm.types import UserError


def check_read(
    verb: str,
    config: Any,
    default: Any,
    names: Sequence[str] | None = None,
    *,
    experiment: Any = None,
    shown: bool = True,
) -> None:
    """Defers a warning (`show_held` prints it) of the keys that are set and not read.

    Args:
        config: the configuration of the verb, with recorded values of a run directory.
        default: the configuration without overrides.
        names: keys and sections that the command line sets; all others of `config` are recorded. None: none is
            recorded.
        experiment: the configuration with only the chosen experiment; None: no experiment is chosen.
        shown: whether to warn.

    Raises:
        UserError: a key in `REFUSED` is not read.
    """
    found: list[tuple[str, str]] = []
    base = default if experiment is None else experiment
    for name in given(config, default, names):
        each, current = TABLES[type(config)][name], value(config, name)
        if reason := unread(verb, name, each, config):
            if (verb, name) in REFUSED:
                shown_as = _text(current, value(default, name))
                raise UserError(f"{name}={shown_as}: not read by {verb} here ({reason}); leave it out")
            if current != value(base, name):
                found.append((f"{name}={_text(current, value(base, name))}", reason))
    data = getattr(config, "data", None)
    chosen = names is None or "data.parts" in names or "data" in names
    if data is not None and data.name == "mixture" and chosen and data.parts != base.data.parts:
        found += unread_parts(verb, data.parts, PartConfig())
    if found and shown:
        listed = "; ".join(f"{key} ({reason})" for key, reason in found)
        hold_warning(f"given and not read by {verb}: {listed}")


def given(config: Any, default: Any, names: Sequence[str] | None = None) -> list[str]:
    """Keys whose values differ from the default, in the order of the schema."""
    found = []
    for name in leaves(type(config)):
        current = value(config, name)
        chosen = names is None or any(name == each or name.startswith(f"{each}.") for each in names)
        if chosen and current != value(default, name) and current not in ({}, []):
            found.append(name)
    return found


def unread(verb: str, name: str, each: Row, config: Any) -> str:
    """Where a key is read, in words, if this verb does not read it; "" if it does."""
    if not isinstance(config, RunConfig):
        return "" if each.read(verb, config) else each.where(verb)
    trained = config.run is not None and runs.home(config.run) is not None
    if trained and name.startswith("model."):  # equal to the recorded value: other values are errors
        return ""
    if verb != "demo":
        return "" if each.read(verb, config) else each.where(verb)
    systems = {key: overrides for key, overrides in config.systems.items() if isinstance(overrides, dict)}
    if systems and all(_sets(overrides, name) for overrides in systems.values()):
        return f"each of the systems {', '.join(systems)} sets it"
    return "" if any(each.read(verb, one) for one in _configs(config, systems)) else each.where(verb)


def _configs(config: RunConfig, systems: Mapping[str, Any]) -> list[RunConfig]:
    """The configurations of the systems of a demo; that of the demo if they are invalid (the demo raises the error)."""
    found = []
    for overrides in systems.values():
        try:
            base = OmegaConf.merge(OmegaConf.structured(RunConfig), runs.plain(config) | {"systems": {}})
            one = OmegaConf.to_object(OmegaConf.merge(base, overrides))
        except OmegaConfBaseException:
            return [config]
        assert isinstance(one, RunConfig)
        found.append(one)
    return found or [config]


def _sets(overrides: Mapping[str, Any], name: str) -> bool:
    """Whether nested overrides contain a key."""
    inner: Any = overrides
    for part in name.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            return False
        inner = inner[part]
    return True


def value(config: Any, name: str) -> Any:
    """The value of a key, by its dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _text(found: Any, default: Any = None) -> str:
    """A value in the syntax of the command line; of a mapping the entries that differ from the default."""
    plain = runs.plain(found)
    if isinstance(plain, dict):
        usual = default if isinstance(default, dict) else {}
        inner = [f"{k}: {_text(v)}" for k, v in plain.items() if k not in usual or usual[k] != v]
        return f"{{{', '.join(inner)}}}"
    if isinstance(plain, list):
        return f"[{', '.join(map(_text, plain))}]"
    return str(plain).lower() if isinstance(plain, bool) else str(plain)
