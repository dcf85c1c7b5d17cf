"""`model.SIDE.config` of a model with a name: entries of a group or experiment for another model are removed.

`model.slm.config` is composed from the chosen group, the primary config, an experiment and the command line. Only
entries from the source of the name, and from sources that override it, apply to the named model.
"""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from llm2slm.cli.compose import Composer
from llm2slm.commands.deferred_warnings import hold_warning
from llm2slm.types import UserError

SIDES = ("llm", "slm")


def with_named_models(composer: Composer, composed: DictConfig, overrides: list[str], *, shown: bool = True) -> None:
    """Removes entries for other models from `model.llm.config` and `model.slm.config` of models with a name.

    Args:
        composed: changed in place.
        overrides: the overrides of this job, from `Composer.prepare`.
        shown: whether to warn of removed entries of an experiment.

    Raises:
        UserError: the command line chooses both a group that describes a model and a name.
    """
    if "model" not in composed or not OmegaConf.is_dict(composed.model) or "slm" not in composed.model:
        return
    for side in SIDES:
        found = composed.model[side]
        if found.name is not None and found.config:
            found.config = _of_the_named(composer, composed, overrides, side, shown)


def _of_the_named(
    composer: Composer, composed: DictConfig, overrides: list[str], side: str, shown: bool
) -> dict[str, Any]:
    key, group = f"model.{side}", f"model/{side}"
    parsed = [composer.parse(override) for override in overrides]
    without = [override for override, each in zip(overrides, parsed, strict=True) if each.key_or_group != group]
    outside = _config(composer.compose([*without, f"~{group}"]), side)
    if any(each.key_or_group == f"{key}.name" for each in parsed):
        if any(each.key_or_group == group for each in parsed) and _config(composed, side).keys() - outside.keys():
            chosen = next(each for each in parsed if each.key_or_group == group)
            raise UserError(
                f"{chosen.input_line} and {key}.name={composed.model[side].name} describe two models; leave one of "
                "them out"
            )
        given = {name for each in parsed for name in _entries(each, f"{key}.config")}
        lost = {name for name in outside.keys() - given if outside.get(name) != _primary(composer, side).get(name)}
        if lost and shown:
            hold_warning(
                f"{key}.config of the experiment ({', '.join(sorted(lost))}) is for another model, "
                f"and not used for {key}.name={composed.model[side].name}"
            )
        return {name: outside[name] for name in outside if name in given}
    plain = composer.defaults().model[side]
    if plain.name == composed.model[side].name:
        return outside
    primary = _primary(composer, side)
    return {name: value for name, value in outside.items() if name not in primary or primary[name] != value}


def _config(composed: DictConfig, side: str) -> dict[str, Any]:
    found = OmegaConf.to_container(composed.model[side].config)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}


def _primary(composer: Composer, side: str) -> dict[str, Any]:
    """`model.SIDE.config` of the primary config of the verb."""
    return _config(composer.compose([f"~model/{side}"]), side)


def _entries(override: Override, key: str) -> list[str]:
    """The entries of an open dict that an override sets: a single entry, or those of a whole dict."""
    name = override.key_or_group
    if name.startswith(f"{key}."):
        return [name.removeprefix(f"{key}.").partition(".")[0]]
    value = override.value() if name == key and not override.is_delete() else None
    return [str(getattr(entry, "text", entry)) for entry in value] if isinstance(value, dict) else []
