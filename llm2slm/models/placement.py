"""Precision and devices of a model that is loaded with `from_pretrained(dtype=..., device_map=...)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llm2slm.types import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POLICIES = ("auto", "balanced", "balanced_low_0", "sequential")


def chosen_dtype(value: torch.dtype | str | None) -> str | None:
    """The name of a dtype as `from_pretrained` takes it; None for the stored one ("auto").

    Raises:
        UserError: it is none of `DTYPES`.
    """
    name = str(value).removeprefix("torch.")
    if value is None or name == "auto":
        return None
    if name not in DTYPES:
        raise UserError(f"dtype={value}: give torch.{', torch.'.join(DTYPES)}, or 'auto' for the stored one")
    return name


def keep_in_float32(slm: PreTrainedModel) -> None:
    """Converts the modules to float32 that transformers keeps there: some in float16, others in bfloat16 too."""
    half = set(slm._keep_in_fp32_modules or ()) if slm.dtype == torch.float16 else set()
    kept = half | (set(slm._keep_in_fp32_modules_strict or ()) if slm.dtype != torch.float32 else set())
    for name, parameter in slm.named_parameters():
        if kept & set(name.split(".")):
            parameter.data = parameter.data.float()


def place(
    model: PreTrainedModel,
    device_map: Any,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
) -> None:
    """Moves a model to a device, or distributes it over devices, memory and disk with accelerate, in place.

    Args:
        device_map: a device; one of `POLICIES`; or a device (or "cpu", "disk") for each named module.
        max_memory, offload_folder: as in transformers' `from_pretrained`.

    Raises:
        UserError: accelerate is missing, or the device map does not fit.
    """
    if isinstance(device_map, Mapping) and list(device_map) == [""]:
        device_map = device_map[""]
    if not isinstance(device_map, Mapping) and device_map not in POLICIES:
        model.to(device_map)
        return
    try:
        from accelerate import dispatch_model
    except ImportError:
        raise UserError(f"device_map={device_map}: needs accelerate: pip install accelerate") from None
    if not isinstance(device_map, Mapping):
        device_map = inferred_map(model, device_map, max_memory)
    try:
        dispatch_model(model, dict(device_map), offload_dir=offload_folder, skip_keys=["past_key_values"])
    except ValueError as error:
        raise UserError(f"device_map: {' '.join(str(error).split())}") from None


def inferred_map(
    model: PreTrainedModel, policy: str, max_memory: Mapping[int | str, int | str] | None = None
) -> dict[str, int | str]:
    """The device of each part of a model, by accelerate's `infer_auto_device_map`.

    accelerate finds the module of a tied parameter by parts of its name, and confuses the LLM (`encoder`) with the
    encoder of an encoder-decoder SLM (`slm.encoder`). So it is given the parts under other names.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    names = {f"part_{number}": name for number, name in enumerate(dict(model.named_children()))}
    parts = nn.ModuleDict({new: model.get_submodule(name) for new, name in names.items()})
    classes = sorted(model._no_split_modules or ())
    if policy != "sequential":
        low_zero = policy == "balanced_low_0"
        max_memory = get_balanced_memory(parts, max_memory, no_split_module_classes=classes, low_zero=low_zero)
    found: dict[str, int | str] = infer_auto_device_map(parts, max_memory, no_split_module_classes=classes)
    if list(found) == [""]:
        return found
    parted = {name: name.partition(".") for name in found}
    return {names[part] + dot + rest: found[name] for name, (part, dot, rest) in parted.items()}
