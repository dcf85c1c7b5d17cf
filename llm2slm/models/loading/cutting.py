"""Layer cut of a pretrained SLM to some of its blocks (shrink and fine-tune, Shleifer and Rush 2020).

Only the tensors of the cut model are read: `from_pretrained` fills a model of the full depth in which empty modules
replace the dropped blocks, so that tensor names match the files. The tensors then move into a model built from the cut
config, in which every block has its new index by construction.

A `Plan` maps each tensor of the cut model to its tensor in the whole model. `plan_cut` builds both models on the meta
device and compares them module by module: a cut that changes the computation of a block is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from llm2slm.models.loading.cut_config import DECODER, ENCODER, KEY, cut_config, rejected, sides
from llm2slm.models.loading.partial_loading import blocks_of
from llm2slm.types import UserError

POSITION = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number", "block_idx"})
"""Module attributes that hold the block's index (the key of its cache entry); they differ in the cut model."""


@dataclass(frozen=True)
class Plan:
    """A layer cut.

    Attributes:
        kind: model class.
        config: config of the cut model.
        kept: module path of each block stack -> 0-based indices of its kept blocks.
        source: name of each parameter and buffer of the cut model -> its name in the whole model.
    """

    kind: type[PreTrainedModel]
    config: PreTrainedConfig
    kept: dict[str, list[int]]
    source: dict[str, str]


def plan_cut(kind: type[PreTrainedModel], config: PreTrainedConfig, blocks: Mapping[str, Sequence[int]]) -> Plan:
    """Plans the cut of a model to some of its blocks.

    Args:
        kind: transformers' class for the config, with a language-modelling head.
        blocks: result of `chosen_blocks`.

    Raises:
        UserError: the model cannot be cut, or the cut changes the computation of a block.
    """
    smaller = cut_config(config, blocks)
    try:
        with torch.device("meta"):
            whole, cut = (kind._from_config(deepcopy(each)) for each in (config, smaller))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise rejected(config, error) from error
    before, after = stack_paths(whole, config), stack_paths(cut, smaller)
    kept = {before[name]: [number - 1 for number in blocks[name]] for name in before}
    if before != after:
        raise UserError(f"{KEY}: the blocks of a {config.model_type} cannot be identified")
    plan = Plan(kind, smaller, kept, _sources(whole, cut, kept))
    for path, numbers in kept.items():
        for new, old in enumerate(numbers):
            _compare(whole, cut, plan, (path, old, new))
    return plan


def stack_paths(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, str]:
    """Name of each side -> module path of its block stack.

    Raises:
        UserError: a side has no module list of the configured depth.
    """
    found = {}
    for side in sides(config):
        body = {ENCODER: model.get_encoder, DECODER: model.get_decoder}[side.name]() if side.name else model
        stack = blocks_of(body, side.depth)
        if stack is None and not side.name:  # an image encoder may have the same depth
            stack = blocks_of(model.get_decoder(), side.depth)
        path = None if stack is None else next(name for name, module in model.named_modules() if module is stack)
        if path is None:
            raise UserError(f"{KEY}: the {side.name or 'model'}'s blocks of a {config.model_type} cannot be identified")
        found[side.name] = path
    return found


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, non-persistent buffers included; a tied tensor under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _sources(whole: PreTrainedModel, cut: PreTrainedModel, kept: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """`Plan.source`. A tensor that only the first block has (T5's relative positions) moves to the new first block."""
    old, new, found = tensors(whole), tensors(cut), {}
    for name, tensor in new.items():
        source = name
        for path, numbers in kept.items():
            if name.startswith(f"{path}."):
                number, _, rest = name[len(path) + 1 :].partition(".")
                source = f"{path}.{numbers[int(number)]}.{rest}"
                others = (f"{path}.{i}.{rest}" for i in range(1, len(whole.get_submodule(path))))
                if source not in old and number == "0" and not any(other in old for other in others):
                    source = f"{path}.0.{rest}"
        if source not in old or old[source].shape != tensor.shape:
            has = "is not in the whole model" if source not in old else f"has the shape {tuple(old[source].shape)}"
            raise UserError(
                f"{KEY}: a {whole.config.model_type} cannot be cut so: {source} {has}, and the cut model needs "
                f"{name} {tuple(tensor.shape)}"
            )
        found[name] = source
    return found


def _compare(whole: PreTrainedModel, cut: PreTrainedModel, plan: Plan, place: tuple[str, int, int]) -> None:
    """Refuses a cut that changes a block's modules, their classes, tensors or plain attributes.

    Modules whose tensors come from the first block are compared with those of the first block.

    Args:
        place: module path of the stack; 0-based index of the block in the whole model and in the cut model.
    """
    path, old, new = place
    block, first = whole.get_submodule(f"{path}.{old}"), whole.get_submodule(f"{path}.0")
    then, now = dict(block.named_modules()), dict(cut.get_submodule(f"{path}.{new}").named_modules())
    prefix, origin = f"{path}.{new}.", f"{path}.{old}."
    borrowed = [
        name.removeprefix(prefix)
        for name, source in plan.source.items()
        if name.startswith(prefix) and not source.startswith(origin)
    ]
    for name, module in first.named_modules():
        if any(tensor.startswith(f"{name}." if name else "") for tensor in borrowed):
            then[name] = module
    what = None
    if then.keys() != now.keys():
        what = f"{min(then.keys() ^ now.keys())}: exists in one of them only"
    for name in then.keys() & now.keys():
        before, after = _plain(then[name]), _plain(now[name])
        if type(then[name]) is not type(now[name]):
            what = f"{name}: is a {type(then[name]).__name__}, and would be a {type(now[name]).__name__}"
        elif differ := sorted(
            key for key in before.keys() | after.keys() if not _same(before.get(key), after.get(key), plan.kept[path])
        ):
            key = differ[0]
            what = f"{f'{name}.{key}'.lstrip('.')} is {before.get(key)}, and would be {after.get(key)}"
        elif then[name]._parameters.keys() | then[name]._buffers.keys() != (
            now[name]._parameters.keys() | now[name]._buffers.keys()
        ):
            what = f"{name}: has other tensors"
    if what is not None:
        raise UserError(
            f"{KEY}: block {old + 1} of a {whole.config.model_type} differs from block {new + 1} of the cut model: "
            f"{what}; keep other blocks"
        )


def _same(before: Any, after: Any, kept: Sequence[int]) -> bool:
    """Whether two values are equal, or the second holds the kept blocks' entries of a per-block list."""
    if isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) > max(kept):
        return before == after or list(after) == [before[i] for i in kept]
    return bool(before == after)


def _plain(module: nn.Module) -> dict[str, Any]:
    """The plain-valued public attributes of a module, except its block's index."""
    return {
        key: value
        for key, value in vars(module).items()
        if key not in POSITION and not key.startswith("_") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def partial_class(plan: Plan) -> type[PreTrainedModel]:
    """A subclass of the model's class with empty modules in place of dropped blocks, for `from_pretrained`."""
    whole = plan.kind

    def __init__(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        needed = set(plan.source.values())
        for path, numbers in plan.kept.items():
            stack = self.get_submodule(path)
            assert isinstance(stack, nn.ModuleList)
            for number, block in enumerate(stack):
                if number not in numbers:
                    stack[number] = _only(block, f"{path}.{number}.", needed)

    members = {
        "__init__": __init__,
        "__module__": whole.__module__,  # where transformers looks up the supported attention implementations
        "_keys_to_ignore_on_load_unexpected": [".*"],  # the dropped blocks
    }
    return type(whole.__name__, (whole,), members)


def _only(block: nn.Module, prefix: str, needed: set[str]) -> nn.Module:
    """A module with only the needed tensors of a block, under unchanged names."""
    left = nn.Module()
    for name in tensors(block):
        if prefix + name in needed:
            *parents, leaf = name.split(".")
            target = left
            for depth, parent in enumerate(parents):
                if not hasattr(target, parent):
                    module = block.get_submodule(".".join(parents[: depth + 1]))
                    target.add_module(parent, module if depth == len(parents) - 1 else nn.Module())
                target = target.get_submodule(parent)
            if not parents:
                setattr(left, leaf, getattr(block, leaf))
    return left


def cut_model(partial: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """The cut model, which shares the tensors (no copies) of a loaded model of `partial_class`.

    Raises:
        UserError: a non-persistent buffer depends on the block's index.
    """
    own, config = tensors(partial), plan.config
    with no_init_weights():  # the parameters are replaced below
        cut = plan.kind._from_config(
            config, dtype=partial.config.dtype, attn_implementation=partial.config._attn_implementation
        )
    for name, source in plan.source.items():
        path, _, leaf = name.rpartition(".")
        module, tensor = cut.get_submodule(path), own[source]
        if leaf in module._parameters:
            module._parameters[leaf] = tensor
            continue
        if leaf in module._non_persistent_buffers_set and not torch.equal(getattr(module, leaf), tensor):
            raise UserError(
                f"{KEY}: a {config.model_type} cannot be cut so: {source} depends on the index of its block, and would "
                "differ in the cut model"
            )
        module._buffers[leaf] = tensor
    cut.config.name_or_path = cut.name_or_path = partial.name_or_path
    cut.generation_config = partial.generation_config
    return cut.eval()
