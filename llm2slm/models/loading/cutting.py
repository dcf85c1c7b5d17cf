"""A shallow SLM cut from a pretrained one (shrink and fine-tune, Shleifer and Rush 2020): some of its blocks, all else.

Only the tensors of the cut model are read: transformers' own `from_pretrained` fills a model of the whole depth with
empty modules in place of the blocks that are not kept (so all names are those of the files). Its tensors are then put
into a model built from the cut config, where each block's number, and what follows from it, is right by construction.

The plan of a cut names, for each tensor of the cut model, the one of the whole model. It is made from models without
weights, and compares them module by module: a cut after which a block would compute something else is refused.
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

from llm2slm.models.loading.cut_config import DECODER, ENCODER, KEY, cut_config, sides
from llm2slm.models.loading.partial_loading import blocks_of
from llm2slm.types import UserError

POSITION = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number", "block_idx"})
"""Attributes of modules that hold the block's number: a key of the cache, which the cut model counts anew."""


@dataclass(frozen=True)
class Plan:
    """How a model is cut.

    Attributes:
        kind: its class.
        config: of the cut model.
        kept: path of each stack of blocks -> 0-based numbers of those that are kept.
        source: name of each parameter and buffer of the cut model -> its name in the whole one.
    """

    kind: type[PreTrainedModel]
    config: PreTrainedConfig
    kept: dict[str, list[int]]
    source: dict[str, str]


def plan_cut(kind: type[PreTrainedModel], config: PreTrainedConfig, blocks: Mapping[str, Sequence[int]]) -> Plan:
    """The cut of a model to some of its blocks.

    Args:
        kind: transformers' class for the config, with a head.
        blocks: as `chosen_blocks` returns them.

    Raises:
        UserError: the model cannot be cut, or would compute something else.
    """
    smaller = cut_config(config, blocks)
    try:
        with torch.device("meta"):
            whole, cut = (kind._from_config(deepcopy(each)) for each in (config, smaller))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        reason = str(error).replace("\n", " ")
        raise UserError(f"{KEY}: a {config.model_type} cannot be cut so: {reason}") from error
    before, after = stack_paths(whole, config), stack_paths(cut, smaller)
    kept = {before[name]: [number - 1 for number in blocks[name]] for name in before}
    if before != after:
        raise UserError(f"{KEY}: the blocks of a {config.model_type} cannot be told apart")
    plan = Plan(kind, smaller, kept, _sources(whole, cut, kept))
    for path, numbers in kept.items():
        for new, old in enumerate(numbers):
            _compare(whole, cut, plan, (path, old, new))
    return plan


def stack_paths(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, str]:
    """Name of each side -> path of its blocks in the model.

    Raises:
        UserError: a side has no list of blocks as long as the config says.
    """
    found = {}
    for side in sides(config):
        body = {ENCODER: model.get_encoder, DECODER: model.get_decoder}[side.name]() if side.name else model
        stack = blocks_of(body, side.depth)
        if stack is None and not side.name:  # the blocks of an image encoder may be as many
            stack = blocks_of(model.get_decoder(), side.depth)
        path = None if stack is None else next(name for name, module in model.named_modules() if module is stack)
        if path is None:
            raise UserError(f"{KEY}: the {side.name or 'model'}'s blocks of a {config.model_type} cannot be told apart")
        found[side.name] = path
    return found


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, also buffers that no file has; a shared one under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _sources(whole: PreTrainedModel, cut: PreTrainedModel, kept: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """`Plan.source`. What only the first block has, and serves all (T5's relative positions), goes to the new first."""
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
    """Refuses a cut in which a block is another than it was: its modules, their classes, their plain attributes.

    The modules that hold a tensor which only the first block has are compared with the first block's.

    Args:
        place: path of the stack, the block's 0-based number in the whole model and in the cut one.
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
        what = f"{min(then.keys() ^ now.keys())}: is in one of them only"
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
            f"{KEY}: block {old + 1} of a {whole.config.model_type} would not be the same as block {new + 1} of the "
            f"cut model: {what}; keep other blocks"
        )


def _same(before: Any, after: Any, kept: Sequence[int]) -> bool:
    """Whether a value is the same, or a list with a value per block, of the kept ones."""
    if isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) > max(kept):
        return before == after or list(after) == [before[i] for i in kept]
    return bool(before == after)


def _plain(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are plain values, but for its block's number."""
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
    """The model's class, with empty modules in place of the blocks that are not kept: what `from_pretrained` fills."""
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
        "__module__": whole.__module__,  # where transformers looks for the kinds of attention that it has
        "_keys_to_ignore_on_load_unexpected": [".*"],  # what is not kept is no surprise
    }
    return type(whole.__name__, (whole,), members)


def _only(block: nn.Module, prefix: str, needed: set[str]) -> nn.Module:
    """A module with nothing but the needed tensors of a block, under their names."""
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
    """The cut model, with the tensors (the same objects, not copies) of a filled model of `partial_class`.

    Raises:
        UserError: a buffer that is saved in no file follows from the block's number, and would be another.
    """
    own, config = tensors(partial), plan.config
    with no_init_weights():  # memory of parameters that are replaced below is never touched
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
                f"{KEY}: a {config.model_type} cannot be cut so: {source} follows from the number of its block, and "
                "would be another in the cut model"
            )
        module._buffers[leaf] = tensor
    cut.config.name_or_path = cut.name_or_path = partial.name_or_path
    cut.generation_config = partial.generation_config
    return cut.eval()
