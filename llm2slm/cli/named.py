"""A model that the command line names takes the place of the one that a group describes; its config is not the group's.

`model.slm.config` is put together from the chosen group, the verb's own file, an experiment and the command line. What
holds for a model that is named: entries that stand at the name's own layer or above it.
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
    """Leaves in `model.llm.config` and `model.slm.config`, of a model that has a name, what is meant for that model.

    Args:
        composed: changed in place.
        overrides: of this job, as `Composer.prepare` gave them.
        shown: print what an experiment sets for another model.

    Raises:
        UserError: a group chosen on the command line describes one model, and a name another.
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
        lost = {name for name in outside.keys() - given if outside.get(name) != _own(composer, side).get(name)}
        if lost and shown:
            hold_warning(
                f"{key}.config of the experiment ({', '.join(sorted(lost))}) is for another model, "
                f"and not used for {key}.name={composed.model[side].name}"
            )
        return {name: outside[name] for name in outside if name in given}
    plain = composer.defaults().model[side]
    if plain.name == composed.model[side].name:
        return outside
    own = _own(composer, side)
    return {name: value for name, value in outside.items() if name not in own or own[name] != value}


def _config(composed: DictConfig, side: str) -> dict[str, Any]:
    found = OmegaConf.to_container(composed.model[side].config)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}


def _own(composer: Composer, side: str) -> dict[str, Any]:
    """What the verb's own file sets."""
    return _config(composer.compose([f"~model/{side}"]), side)


def _entries(override: Override, key: str) -> list[str]:
    """The entries of an open dict that an override sets: one by its name, or those of a whole one."""
    name = override.key_or_group
    if name.startswith(f"{key}."):
        return [name.removeprefix(f"{key}.").partition(".")[0]]
    value = override.value() if name == key and not override.is_delete() else None
    return [str(getattr(entry, "text", entry)) for entry in value] if isinstance(value, dict) else []
