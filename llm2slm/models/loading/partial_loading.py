"""Partial loading of an LLM as an encoder: without decoder, and without the blocks above the layers that are read.

`encoder_class` subclasses transformers' class for a config and drops the unused modules on construction.
`from_pretrained` constructs on the meta device and reads only the remaining tensors from safetensors, so the dropped
modules cost neither memory nor time. Modules are found by interface and structure, not by model name.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from llm2slm.types import UserError

Layer = int | float | list[int | float] | None


def body_of(llm: PreTrainedModel) -> PreTrainedModel:
    """The encoding part: the encoder of an encoder-decoder, else the model itself."""
    return llm.get_encoder() if llm.config.is_encoder_decoder else llm


def is_bidirectional(config: PreTrainedConfig) -> bool:
    """Whether attention is bidirectional: an encoder-only model, or the encoder of an encoder-decoder."""
    return bool(config.is_encoder_decoder) or (
        type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    )


def depth_of(body: PreTrainedModel) -> int:
    """Number of blocks in the body's config (dropped ones included)."""
    return int(body.config.get_text_config().num_hidden_layers)


def chosen_layers(layer: Layer, depth: int, bidirectional: bool) -> list[int]:
    """Absolute numbers, 0 (the embeddings) to depth, of the layers selected by `model.llm.layer`.

    Args:
        layer: a number, negative from the end (-1 the last); a fraction of the depth, as 0.5; a list of them; None:
            the last layer of an encoder, the middle one of a decoder-only model, whose last layers are specialized
            in next-token prediction (Bergner et al. 2024).

    Raises:
        UserError: a layer does not exist, or is selected twice.
    """
    if layer is None:
        return [depth if bidirectional else depth // 2]
    several = list(layer) if isinstance(layer, list | tuple) else [layer]
    chosen: list[int] = []
    for one in several:
        number: Any = one
        if isinstance(one, float) and 0 <= one <= 1:
            number = round(one * depth)
        if isinstance(one, bool | str) or not isinstance(number, int):
            raise UserError(f"model.llm.layer={one}: give a whole number, a fraction of 0.0 to 1.0, or a list of them")
        number = number + depth + 1 if number < 0 else number
        if not 0 <= number <= depth:
            raise UserError(f"model.llm.layer={one}: the LLM has layers 0 to {depth} (or -{depth + 1} to -1)")
        chosen.append(number)
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"model.llm.layer={several}: give at least one layer, and none twice (they are {chosen})")
    return chosen


def blocks_of(body: PreTrainedModel, depth: int | None = None) -> nn.ModuleList | None:
    """The stack of blocks: the only outermost module list of the model's depth; None if there is not exactly one.

    Args:
        depth: number of blocks; None: from the body's config (which may give the encoder's depth for both halves).
    """
    depth = depth_of(body) if depth is None else depth
    stacks = [m for m in body.modules() if isinstance(m, nn.ModuleList) and getattr(m, "full_length", len(m)) == depth]
    inner = {id(m) for stack in stacks for block in stack for m in block.modules()}
    outer = [stack for stack in stacks if id(stack) not in inner]
    return outer[0] if len(outer) == 1 else None


def remove_unread(llm: PreTrainedModel, layer: Layer) -> list[int]:
    """Removes the modules that an encoder of `layer` does not use, in place; idempotent.

    Returns:
        The numbers of the layers that are read.

    Raises:
        UserError: as `encoder_view`.
    """
    body = body_of(llm)
    read = _shorten(body, layer, is_bidirectional(llm.config))
    if body is not llm and getattr(llm, "decoder", None) is not None:
        llm.decoder = None
        _untie(llm, "decoder.")
    return read


def encoder_view(llm: PreTrainedModel, layer: Layer) -> tuple[PreTrainedModel, list[int]]:
    """The part of an LLM that an encoder of `layer` runs, as a shallow copy: same tensors, fewer modules.

    Returns:
        The encoder of an encoder-decoder, else the model, without pooler and without blocks above the highest layer
        (the given object if it has neither); and the absolute numbers of the layers that are read.

    Raises:
        UserError: no such layer, or one below the last of a model whose blocks cannot be identified.
    """
    body = body_of(llm)
    view = _shallow(body)
    if (blocks := blocks_of(body)) is not None:
        parent = view
        for name in next(name for name, module in body.named_modules() if module is blocks).split("."):
            parent._modules[name] = _shallow(parent._modules[name])
            parent = parent._modules[name]
    read = _shorten(view, layer, is_bidirectional(llm.config))
    before, after = ([name for name, _ in model.named_modules()] for model in (body, view))
    return (body if before == after else view), read


def _shallow(module: Any) -> Any:
    """A copy of a module that shares its children, parameters and buffers."""
    found = copy.copy(module)
    found._modules = dict(module._modules)
    return found


def _shorten(body: PreTrainedModel, layer: Layer, bidirectional: bool) -> list[int]:
    """Removes pooler and unused blocks of an encoding part, in place; returns the layers that are read."""
    depth = depth_of(body)
    read = chosen_layers(layer, depth, bidirectional)
    if read != [depth]:
        blocks = blocks_of(body)
        if blocks is None:
            raise UserError(
                f"model.llm.layer={layer}: the blocks of a {body.config.model_type} cannot be identified; only its "
                "last layer can be read (model.llm.layer=-1)"
            )
        vars(blocks)["full_length"] = depth
        del blocks[max(1, *read) :]  # layer 0 is the first block's input, so one block stays
    if body._modules.get("pooler") is not None:
        body._modules["pooler"] = None
        _untie(body, "pooler.")
    return read


def _untie(llm: PreTrainedModel, prefix: str) -> None:
    """Removes the weight-tying entries of the dropped tensors under a prefix."""
    for name in ("all_tied_weights_keys", "_tied_weights_keys"):
        tied = getattr(llm, name, None)
        if tied:
            setattr(llm, name, {key: value for key, value in tied.items() if not key.startswith(prefix)})


def encoder_class(config: PreTrainedConfig, layer: Layer, *, head: bool = False) -> type[PreTrainedModel]:
    """A subclass of transformers' class for a config, without the modules that an encoder of `layer` does not use.

    Args:
        head: keep the language-modelling head of a decoder-only model; its `base_model` is the encoder.

    Raises:
        UserError: transformers has no such model; on construction: as `remove_unread`.
    """
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING if head else MODEL_MAPPING
    if type(config) not in mapping:
        raise UserError(f"model {config.model_type!r}: transformers has no text encoder of this type")
    whole: type[PreTrainedModel] = _get_model_class(config, mapping)

    def __init__(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        remove_unread(self.base_model if head else self, layer)

    members = {
        "__init__": __init__,
        "__module__": whole.__module__,  # where transformers looks up the supported attention implementations
        "from_config": whole._from_config,
        "_keys_to_ignore_on_load_unexpected": [".*"],  # the dropped modules
        "blocks_read": staticmethod(partial(_blocks_read, layer)),
    }
    return type(whole.__name__, (whole,), members)


def _blocks_read(layer: Layer, config: PreTrainedConfig) -> int:
    """Number of leading blocks that an encoder of `layer` has."""
    depth = int(config.get_text_config().num_hidden_layers)
    chosen = chosen_layers(layer, depth, is_bidirectional(config))
    return depth if chosen == [depth] else max(1, *chosen)
