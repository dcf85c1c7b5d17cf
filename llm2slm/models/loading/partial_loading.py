"""Only what is read of an LLM is built: no decoder beside an encoder, no block above the layers that are read.

`encoder_class` makes, of the class that transformers has for a config, one that leaves the rest out while it is built.
`from_pretrained` then builds on no memory, and reads from safetensors only the tensors that are left: what is not read
costs neither memory nor time. What a model consists of is found by its interface and its modules, not by its name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from llm2slm.types import UserError

Layer = int | float | list[int | float] | None


def body_of(llm: PreTrainedModel) -> PreTrainedModel:
    """The part that reads: the encoder of an encoder-decoder, else the model itself."""
    return llm.get_encoder() if llm.config.is_encoder_decoder else llm


def reads_both_ways(config: PreTrainedConfig) -> bool:
    """Whether each token's representation has seen the whole text: an encoder, on its own or before a decoder."""
    return bool(config.is_encoder_decoder) or (
        type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    )


def depth_of(body: PreTrainedModel) -> int:
    """Number of blocks that the body's config tells of (whether or not some were left out)."""
    return int(body.config.get_text_config().num_hidden_layers)


def chosen_layers(layer: Layer, depth: int, both_ways: bool) -> list[int]:
    """Absolute numbers, 0 (the embeddings) to depth, of the layers that `model.llm.layer` names.

    Args:
        layer: a number, negative from the end (-1 the last); a fraction of the depth, as 0.5; several of them; None:
            the last layer of an encoder, the middle one of a decoder-only model, whose last layers serve the
            prediction of the next token (Bergner et al. 2024).

    Raises:
        UserError: no such layer, or one twice.
    """
    if layer is None:
        return [depth if both_ways else depth // 2]
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
    """The stack of blocks, where one is plain to see: the outermost list of modules as long as the model is deep.

    Args:
        depth: None: as the body's config says. (An encoder-decoder's config may say the encoder's to both halves.)
    """
    depth = depth_of(body) if depth is None else depth
    stacks = [m for m in body.modules() if isinstance(m, nn.ModuleList) and getattr(m, "full_length", len(m)) == depth]
    inner = {id(m) for stack in stacks for block in stack for m in block.modules()}
    outer = [stack for stack in stacks if id(stack) not in inner]
    return outer[0] if len(outer) == 1 else None


def leave_out(llm: PreTrainedModel, layer: Layer) -> list[int]:
    """Takes out of a model, in place, what a reader of `layer` does not use. Done twice, it does nothing more.

    Returns:
        The numbers of the layers that are read.

    Raises:
        UserError: no such layer, or one below the last of a model whose blocks cannot be told apart.
    """
    body = body_of(llm)
    depth = depth_of(body)
    chosen = chosen_layers(layer, depth, reads_both_ways(llm.config))
    for name in [name for name, _ in llm.named_children() if name in ("decoder", "pooler")]:
        if getattr(llm, name) is not body and (name == "pooler" or llm.config.is_encoder_decoder):
            setattr(llm, name, None)
            _untie(llm, f"{name}.")
    if chosen != [depth]:
        blocks = blocks_of(body)
        if blocks is None:
            raise UserError(
                f"model.llm.layer={layer}: the blocks of a {llm.config.model_type} cannot be told apart; only its last "
                "layer can be read (model.llm.layer=-1)"
            )
        vars(blocks)["full_length"] = depth
        del blocks[max(1, *chosen) :]  # of layer 0, one block stays: its input is what is read
    return chosen


def _untie(llm: PreTrainedModel, prefix: str) -> None:
    """Forgets that tensors under a prefix, which are gone, share others' memory."""
    for name in ("all_tied_weights_keys", "_tied_weights_keys"):
        tied = getattr(llm, name, None)
        if tied:
            setattr(llm, name, {key: value for key, value in tied.items() if not key.startswith(prefix)})


def encoder_class(config: PreTrainedConfig, layer: Layer, *, head: bool = False) -> type[PreTrainedModel]:
    """transformers' own class for a config, without what a reader of `layer` does not use.

    Args:
        head: with the language-modelling head of a decoder-only model; its `base_model` reads.

    Raises:
        UserError: transformers has no such model; on building: as `leave_out`.
    """
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING if head else MODEL_MAPPING
    if type(config) not in mapping:
        raise UserError(f"model {config.model_type!r}: transformers has no such model that reads text")
    whole: type[PreTrainedModel] = _get_model_class(config, mapping)

    def __init__(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        leave_out(self.base_model if head else self, layer)

    members = {
        "__init__": __init__,
        "__module__": whole.__module__,  # where transformers looks for the kinds of attention that it has
        "from_config": whole._from_config,
        "_keys_to_ignore_on_load_unexpected": [".*"],  # what was left out is no surprise
        "blocks_read": staticmethod(partial(_blocks_read, layer)),
    }
    return type(whole.__name__, (whole,), members)


def _blocks_read(layer: Layer, config: PreTrainedConfig) -> int:
    """How many blocks a reader of `layer` has, from the first on."""
    depth = int(config.get_text_config().num_hidden_layers)
    chosen = chosen_layers(layer, depth, reads_both_ways(config))
    return depth if chosen == [depth] else max(1, *chosen)
