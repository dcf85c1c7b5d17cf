"""Checks the config.json of a saved model: each value of `LLM2SLMConfig` before a module is built from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from enum import StrEnum
from inspect import signature
from typing import Any

from transformers import PreTrainedConfig

from llm2slm.config import ModelConfig, ProjectorConfig
from llm2slm.config.ranges import RANGES, Range
from llm2slm.data.interface import Frame
from llm2slm.models import conditioning
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.llm import LLMRecord
from llm2slm.models.projector import Projector
from llm2slm.types import Control, Overlong, SystemKind, Tokenizers, UserError

ENUMS: dict[str, type[StrEnum]] = {"kind": SystemKind, "tokenizers": Tokenizers, "control": Control}
LIMITS = ("max_prompt_tokens", "max_response_tokens", "overlong")
REMEDY = "give a model folder that llm2slm wrote, or save the model again"


def check_record(config: LLM2SLMConfig, name: str) -> None:
    """Refuses a config.json whose values do not describe a model.

    Args:
        name: the folder or Hub id that it was read from.

    Raises:
        UserError: names the file, the key and the value.
    """
    file = f"{name}/config.json"
    for key, kind in ENUMS.items():
        _one_of(file, key, getattr(config, key), [member.value for member in kind])
    _one_of(file, "conditioning", config.conditioning, conditioning.names())
    if not isinstance(config.slm, PreTrainedConfig):
        raise UserError(f"{file}: slm: missing; expected the config of the SLM; {REMEDY}")
    hybrid = config.kind == SystemKind.llm2slm.value
    if hybrid != (config.llm is not None) or hybrid != (config.conditioning != conditioning.NONE):
        raise UserError(
            f"{file}: kind={config.kind}, conditioning={config.conditioning} and {'an' if config.llm else 'no'} llm do "
            f"not belong together; {REMEDY}"
        )
    needed = [f.name for f in fields(LLMRecord) if f.default is MISSING and f.name != "config"]
    _mapping(file, "llm", config.llm, needed=needed)
    arguments = [each for each in signature(Projector).parameters if not each.startswith("width")]
    _mapping(file, "projector", config.projector, known=arguments)
    _mapping(file, "llm_frame", config.llm_frame, known=[f.name for f in fields(Frame)])
    _mapping(file, "limits", config.limits, known=LIMITS, needed=LIMITS)
    _mapping(file, "kv", config.kv, needed=["blocks"])
    _mapping(file, "virtual_tokens", config.virtual_tokens, needed=["tune", "num_virtual_tokens"])
    if hybrid and config.projector is None and conditioning.get(config.conditioning).uses_projector:
        raise UserError(f"{file}: projector: missing; {REMEDY}")
    numbers = RANGES[ModelConfig] | {"trained": Range(0)}
    for key in ("pool", "cross_every", "trained"):
        _number(file, key, getattr(config, key), numbers[key])
    _number(file, "projector.hidden", (config.projector or {}).get("hidden"), RANGES[ProjectorConfig]["hidden"])
    for key, value in (config.limits or {}).items():
        if key == "overlong":
            _one_of(file, "limits.overlong", value, [member.value for member in Overlong])
        else:
            _number(file, f"limits.{key}", value, Range(1))
    if not isinstance(config.prefix, str | None) or not isinstance(config.suffix, str):
        raise UserError(f"{file}: prefix={config.prefix!r}, suffix={config.suffix!r}: expected texts; {REMEDY}")


def plain_record(config: PreTrainedConfig, name: str) -> dict[str, Any]:
    """The record `llm2slm` in the config.json of a system without an LLM encoder; empty for any other model.

    Raises:
        UserError: names the file, the key and the value.
    """
    record = getattr(config, "llm2slm", None)
    _mapping(f"{name}/config.json", "llm2slm", record)
    if record and record.get("kind") is not None:
        _one_of(f"{name}/config.json", "llm2slm.kind", record["kind"], [member.value for member in SystemKind])
    return dict(record or {})


def _one_of(file: str, key: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f"{file}: {key}={value}: expected one of {', '.join(known)}; {REMEDY}")


def _mapping(file: str, key: str, value: Any, known: Iterable[str] = (), needed: Iterable[str] = ()) -> None:
    """Refuses a value that is neither None nor a mapping, or has an unknown key, or lacks a needed one."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise UserError(f"{file}: {key}={value}: expected keys and values; {REMEDY}")
    for name in [name for name in value if known and name not in known]:
        raise UserError(f"{file}: {key}.{name}: unknown; expected {', '.join(known)}; {REMEDY}")
    for name in [name for name in needed if name not in value]:
        raise UserError(f"{file}: {key}.{name}: missing; {REMEDY}")


def _number(file: str, key: str, value: Any, legal: Range) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and legal.holds(value)):
        raise UserError(f"{file}: {key}={value}: must be {legal}; {REMEDY}")
