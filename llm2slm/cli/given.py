"""Keys that a user gives and the verb does not read, in its mode: printed in one line, or refused.

A warning, since a sweep over several modes, or one list of overrides for several verbs, sets such keys on purpose.
Refused are those of `reads.REFUSED`, without which the result would be of something else. Combinations that are
impossible within a mode are refused where the model is built.

A key counts as given where its value is not the default of the verb: set on the command line, by a group that is chosen
there or in a user's own file. What a run directory recorded does not count. An experiment describes a run for several
verbs, so what it sets is not warned of either; a key that is refused may not stand in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm2slm import runs
from llm2slm.cli.reads import REFUSED, Row
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
    """Holds a warning (`show_held` prints it) of the given keys that are not read.

    Args:
        config: what the verb gets, the configuration of a run directory included.
        default: what the verb gets where nothing is given.
        experiment: what it gets where nothing but an experiment is chosen; None: none is.
        names: keys and sections that were given, where others of `config` are recorded ones; None: all may be.
        shown: warn; else only refuse.

    Raises:
        UserError: one is not read that must be.
    """
    found: list[tuple[str, str]] = []
    base = default if experiment is None else experiment
    for name in given(config, default, names):
        each, own = TABLES[type(config)][name], value(config, name)
        if reason := unread(verb, name, each, config):
            if (verb, name) in REFUSED:
                shown_as = _text(own, value(default, name))
                raise UserError(f"{name}={shown_as}: not read by {verb} here ({reason}); leave it out")
            if own != value(base, name):
                found.append((f"{name}={_text(own, value(base, name))}", reason))
    data = getattr(config, "data", None)
    chosen = names is None or "data.parts" in names or "data" in names
    if data is not None and data.name == "mixture" and chosen and data.parts != base.data.parts:
        found += unread_parts(verb, data.parts, PartConfig())
    if found and shown:
        listed = "; ".join(f"{key} ({reason})" for key, reason in found)
        hold_warning(f"given and not read by {verb}: {listed}")


def given(config: Any, default: Any, names: Sequence[str] | None = None) -> list[str]:
    """Keys with another value than the default's, in the order of the schema."""
    found = []
    for name in leaves(type(config)):
        own = value(config, name)
        chosen = names is None or any(name == each or name.startswith(f"{each}.") for each in names)
        if chosen and own != value(default, name) and own not in ({}, []):
            found.append(name)
    return found


def unread(verb: str, name: str, each: Row, config: Any) -> str:
    """Where a key is read in place of here, in words; "" where it is read."""
    if not isinstance(config, RunConfig):
        return "" if each.read(verb, config) else each.told(verb)
    trained = config.run is not None and runs.home(config.run) is not None
    if trained and name.startswith("model."):  # equal to what was trained, else it has been refused
        return ""
    if verb != "demo":
        return "" if each.read(verb, config) else each.told(verb)
    systems = {key: own for key, own in config.systems.items() if isinstance(own, dict)}
    if systems and all(_sets(own, name) for own in systems.values()):
        return f"each of the systems {', '.join(systems)} sets its own"
    return "" if any(each.read(verb, one) for one in _configs(config, systems)) else each.told(verb)


def _configs(config: RunConfig, systems: Mapping[str, Any]) -> list[RunConfig]:
    """Those of the systems of a demo; the demo's own where they cannot be had (which it says itself)."""
    found = []
    for own in systems.values():
        try:
            base = OmegaConf.merge(OmegaConf.structured(RunConfig), runs.plain(config) | {"systems": {}})
            one = OmegaConf.to_object(OmegaConf.merge(base, own))
        except OmegaConfBaseException:
            return [config]
        assert isinstance(one, RunConfig)
        found.append(one)
    return found or [config]


def _sets(overrides: Mapping[str, Any], name: str) -> bool:
    """Whether nested overrides set a key."""
    inner: Any = overrides
    for part in name.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            return False
        inner = inner[part]
    return True


def value(config: Any, name: str) -> Any:
    """The value of a key by its dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _text(found: Any, default: Any = None) -> str:
    """A value as it would be typed; of keys and values those that are not the default's."""
    plain = runs.plain(found)
    if isinstance(plain, dict):
        own = default if isinstance(default, dict) else {}
        inner = [f"{k}: {_text(v)}" for k, v in plain.items() if k not in own or own[k] != v]
        return f"{{{', '.join(inner)}}}"
    if isinstance(plain, list):
        return f"[{', '.join(map(_text, plain))}]"
    return str(plain).lower() if isinstance(plain, bool) else str(plain)
