"""Block selection of `model.slm.layers`, and the transformers config of the resulting cut model.

Model families name their depth differently, and hold per-block values (`layer_types`), block indices
(`mlp_only_layers`) and counts of leading blocks (`first_k_dense_replace`). `cut_config` adapts all of them. `cutting`
compares the remaining values that a model derives from a block's index, and refuses a cut that changes a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from llm2slm.types import UserError

KEY = "model.slm.layers"
RECORD = "llm2slm_cut"
"""Config attribute of a cut model: {"blocks": 1-based numbers in the original model, "depth": depth of the original
model}; for an encoder-decoder one record per side."""
ENCODER, DECODER = "encoder", "decoder"
DEPTHS = {ENCODER: ("encoder_layers", "num_encoder_layers"), DECODER: ("decoder_layers", "num_decoder_layers")}
"""Depth keys of an encoder-decoder with a flat config, in addition to `num_hidden_layers` (the encoder's)."""
NOT_PER_BLOCK = re.compile(
    r"token_ids?$|tokens$|multipliers$|limit$|shape$|dims?$|^lang|^architectures$|^bandwidths$|^mtp_"
)
"""Config lists that do not hold one value per block, even if their length happens to equal the depth."""
BLOCK_INDICES = re.compile(r"_only_layers$|_idxs$|_indices$|_layer_ids$|^moe_layers$|^cross_attention_layers$")
"""Lists of 0-based block indices."""
LEADING_COUNTS = re.compile(r"^first_k_dense_replace$|^num_dense_layers$|^max_window_layers$|^moe_layer_start_index$")
"""Counts of leading blocks that differ from the others. (transformers 5 ignores `max_window_layers` where a config has
`layer_types`; other programs read it.)"""
LAST_INDEX = re.compile(r"^moe_layer_end_index$")
"""0-based index of the last block of one kind; negative: the last block."""
UNSUPPORTED = ("num_kv_shared_layers", "per_layer_config", "n_layers_per_attn_res_block")
"""Settings that couple blocks, or whose effect `cutting` cannot compare: a config with one of them is not cut."""


@dataclass(frozen=True)
class Side:
    """A stack of blocks as a config describes it.

    Attributes:
        name: encoder, decoder, or "" for a decoder-only model.
        path: names of the nested sub-configs that contain the depth; () for the config itself.
        keys: depth keys of that config; a cut sets all of them.
        depth: number of blocks.
    """

    name: str
    path: tuple[str, ...]
    keys: tuple[str, ...]
    depth: int


def sides(config: PreTrainedConfig) -> list[Side]:
    """The block stacks of a generating model: one, or encoder and decoder.

    Raises:
        UserError: the config has no known depth key.
    """
    if not config.is_encoder_decoder:
        return [_whole(config, "", ())]
    halves = [(name, getattr(config, name, None)) for name in (ENCODER, DECODER)]
    if all(isinstance(half, PreTrainedConfig) for _, half in halves):
        return [_whole(half, name, (name,)) for name, half in halves if isinstance(half, PreTrainedConfig)]
    found = []
    for name in (ENCODER, DECODER):
        keys = tuple(key for key in DEPTHS[name] if isinstance(getattr(config, key, None), int))
        if not keys and name == ENCODER:
            keys = (config.attribute_map.get("num_hidden_layers", "num_layers"),)
        if not keys or not isinstance(getattr(config, keys[0], None), int):
            raise UserError(f"{KEY}: a {config.model_type} cannot be cut: its config has no depth of the {name}")
        found.append(Side(name, (), keys, int(getattr(config, keys[0]))))
    return found


def _whole(config: PreTrainedConfig, name: str, path: tuple[str, ...]) -> Side:
    """The stack of a config with a single stack, possibly described in a sub-config."""
    text = config.get_text_config()
    inner = () if text is config else tuple(key for key, value in vars(config).items() if value is text)[:1]
    key = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    depth = getattr(text, key, None)
    if not isinstance(depth, int):
        raise UserError(f"{KEY}: a {config.model_type} cannot be cut: its config has no {key}")
    return Side(name, (*path, *inner), (key,), depth)


def depth_keys(config: PreTrainedConfig) -> set[str]:
    """Config keys that set the depth of a named model."""
    return {"num_hidden_layers", *(key for side in sides(config) for key in side.keys)}


def chosen_blocks(layers: Any, config: PreTrainedConfig) -> dict[str, list[int]]:
    """Name of each side -> ascending 1-based numbers of its kept blocks.

    Args:
        layers: `model.slm.layers`, not None.

    Raises:
        UserError: the value selects no blocks of this model.
    """
    stacks = sides(config)
    if not isinstance(layers, Mapping):
        return {side.name: _chosen(layers, side, KEY) for side in stacks}
    names = [side.name for side in stacks]
    if names == [""]:
        raise UserError(
            f"{KEY}={dict(layers)}: a {config.model_type} has one stack of blocks; give a number, a fraction or a list"
        )
    unknown = [key for key in layers if key not in names]
    if unknown or not layers:
        wrong = ", ".join(map(str, unknown)) or "nothing"
        raise UserError(f"{KEY}={dict(layers)}: give {' and '.join(names)}, not {wrong}")
    return {
        side.name: list(range(1, side.depth + 1))
        if layers.get(side.name) is None
        else _chosen(layers[side.name], side, f"{KEY}.{side.name}")
        for side in stacks
    }


def _chosen(value: Any, side: Side, key: str) -> list[int]:
    """Kept blocks of one side, from a number, a fraction or a list."""
    depth, of = side.depth, f"the {side.name} has" if side.name else "the SLM has"
    if isinstance(value, list | tuple):
        return _listed(list(value), depth, key, of)
    if isinstance(value, float) and 0 < value < 1:
        return _even(min(depth, max(2, int(value * depth + 0.5))), depth)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"{key}={value}: give a whole number of blocks, a fraction between 0.0 and 1.0, or a list of their numbers"
        )
    if not 1 <= value <= depth:
        raise UserError(f"{key}={value}: {of} {depth} blocks, so give 1 to {depth}")
    return _even(value, depth)


def _even(count: int, depth: int) -> list[int]:
    """`count` numbers from 1 to depth, evenly spaced and including both ends, halves rounded up. A single block is the
    first one, the only block trained on embeddings as input (as in Shleifer and Rush 2020)."""
    if count == 1:
        return [1]
    return [1 + (2 * i * (depth - 1) + count - 1) // (2 * (count - 1)) for i in range(count)]


def _listed(numbers: list[Any], depth: int, key: str, of: str) -> list[int]:
    shown = ",".join(map(str, numbers))
    found = []
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= abs(number) <= depth:
            raise UserError(f"{key}=[{shown}]: {number}: {of} blocks 1 to {depth} (or -{depth} to -1)")
        found.append(number + depth + 1 if number < 0 else number)
    if not found or found != sorted(set(found)):
        raise UserError(f"{key}=[{shown}]: give one block or more, in ascending order, none twice (they are {found})")
    return found


def cut_config(config: PreTrainedConfig, blocks: Mapping[str, Sequence[int]]) -> PreTrainedConfig:
    """The config of the model with only the given blocks, recorded under `llm2slm_cut`.

    Args:
        blocks: result of `chosen_blocks`.

    Raises:
        UserError: the config has an unsupported setting, or transformers rejects the cut config.
    """
    values = config.to_dict()
    stacks = sides(config)
    for side in stacks:
        kept, inner = [number - 1 for number in blocks[side.name]], values
        for name in side.path:
            inner = inner[name]
        for key in UNSUPPORTED:
            if inner.get(key):
                raise UserError(f"{KEY}: a {config.model_type} with {key}={inner[key]} cannot be cut")
        _check_attention(inner.get("layer_types"), kept, config)
        for key, value in inner.items():
            # flat encoder-decoder config: keys without the decoder prefix describe the encoder (LED's windows)
            if side.path or not side.name or key.startswith(DECODER) == (side.name == DECODER):
                inner[key] = _cut_value(key, value, kept, side.depth)
        _with_attention_types(inner)
        inner |= dict.fromkeys(side.keys, len(kept))
    try:
        cut = type(config).from_dict(values)
    except (TypeError, ValueError, KeyError, IndexError) as error:  # another value must match the depth
        raise rejected(config, error) from error
    setattr(cut, RECORD, _record(config, stacks, blocks))
    return cut


def rejected(config: PreTrainedConfig, error: Exception) -> UserError:
    """The error for a cut that transformers rejects."""
    reason = str(error).replace("\n", " ")
    return UserError(f"{KEY}: a {config.model_type} cannot be cut so: {reason}")


def first_blocks(config: PreTrainedConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes that cut the per-block lists of a config, and its `llm2slm_cut`, to the first blocks; {} unless the given
    changes lower the depth of a model with one stack of blocks.

    Args:
        changes: new values of the config, under its native key names.
    """
    if config.is_encoder_decoder or config.get_text_config() is not config:
        return {}
    (key,), depth = (stack := _whole(config, "", ())).keys, stack.depth
    count = changes.get(key)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < depth:
        return {}
    values = {key: value for key, value in config.to_dict().items() if isinstance(value, list | tuple)}
    cut = {key: _cut_value(key, value, range(count), depth) for key, value in values.items()}
    record = getattr(config, RECORD, None)
    if record is not None:
        cut[RECORD] = record | {"blocks": record["blocks"][:count]}
    return _with_attention_types(cut)


def _with_attention_types(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with GPT-Neo's `attention_types` rewritten from `attention_layers`, of which it is a short form."""
    if isinstance(values.get("attention_types"), list | tuple):
        values["attention_types"] = [[[kind], 1] for kind in values["attention_layers"]]
    return values


def _check_attention(kinds: Any, kept: Sequence[int], config: PreTrainedConfig) -> None:
    """Refuses a cut of a model with linear attention (or other recurrent blocks) that keeps no full-attention block:
    transformers needs the position count of such a block's cache to generate."""
    if not isinstance(kinds, list | tuple):
        return
    counting = [i for i, kind in enumerate(kinds) if "attention" in str(kind) and "linear" not in str(kind)]
    if counting and not set(counting) & set(kept):
        raise UserError(
            f"{KEY}: no kept block of this {config.model_type} has full attention, so the cut model cannot generate; "
            f"keep one of {', '.join(str(i + 1) for i in counting)}"
        )


def _cut_value(key: str, value: Any, kept: Sequence[int], depth: int) -> Any:
    """A config value after a cut to the blocks `kept` (0-based)."""
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and LEADING_COUNTS.search(key):
        return sum(i < value for i in kept)
    if number and LAST_INDEX.search(key) and value >= 0:
        return sum(i <= value for i in kept) - 1
    if not isinstance(value, list | tuple) or NOT_PER_BLOCK.search(key):
        return value
    if BLOCK_INDICES.search(key):
        return [kept.index(i) for i in value if i in kept]
    return [value[i] for i in kept] if len(value) == depth else value


def _record(
    config: PreTrainedConfig, stacks: Sequence[Side], blocks: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, Any]] | dict[str, Any]:
    """The kept blocks in the numbering of the original model, earlier cuts included."""
    before = getattr(config, RECORD, None) or {}
    records: dict[str, dict[str, Any]] = {}
    for side in stacks:
        earlier = before.get(side.name) if side.name else before
        kept = list(blocks[side.name])
        records[side.name] = (
            {"blocks": [earlier["blocks"][number - 1] for number in kept], "depth": earlier["depth"]}
            if earlier
            else {"blocks": kept, "depth": side.depth}
        )
    return records.get("", records)
