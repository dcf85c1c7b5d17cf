"""Virtual tokens: trained vectors in the input of a frozen generating model, as an alternative to training the model.

`prompt` (Lester et al. 2021, arXiv 2104.08691): embeddings in front of the prompt's. `prefix` (Li and Liang 2021,
arXiv 2101.00190): keys and values in front of those of every self-attention layer. Parameters and initialisation are
peft's modules; `slm` inserts them into the model's input, in the same way for all systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from llm2slm.types import UserError

PROMPT, PREFIX = "prompt", "prefix"
NAME = "virtual_tokens"
"""Attribute of a transformers model that holds its `SoftPrompts`."""
DEFAULTS: dict[str, dict[str, Any]] = {
    PROMPT: {
        "num_virtual_tokens": 20,
        "prompt_tuning_init": "SAMPLE_VOCAB",
    },  # peft's default, N(0, 1), fits few models
    PREFIX: {"num_virtual_tokens": 20},
}
SHAPES = ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")
"""Arguments of peft's configs that the model determines."""
INITIAL = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")
"""Arguments that concern initialisation only."""


class SoftPrompts(nn.Module):
    """The virtual tokens of a generating model.

    Args:
        tune: prompt or prefix.
        arguments: of peft's config class, including `SHAPES`.
        words: the model's embedding matrix, for initialisation; None: the parameters will be loaded.

    Attributes:
        length: number of virtual tokens.
        record: tune and arguments, from which the module can be built again.
    """

    def __init__(self, tune: str, arguments: Mapping[str, Any], words: nn.Module | None) -> None:
        from peft import PrefixEncoder, PrefixTuningConfig, PromptEmbedding, PromptTuningConfig

        super().__init__()
        kept = {name: value for name, value in arguments.items() if name not in INITIAL}
        self.tune, self.record = tune, {"tune": tune, **kept}
        self.length = int(arguments["num_virtual_tokens"])
        self.shape: tuple[int, int] = (arguments.get("num_layers", 0), arguments.get("num_attention_heads", 0))
        if tune == PREFIX:
            self.part: nn.Module = PrefixEncoder(PrefixTuningConfig(**kept))
        else:
            self.part = PromptEmbedding(PromptTuningConfig(**(kept if words is None else arguments)), words)

    def _all(self) -> Tensor:
        """The output of peft's module for all virtual tokens."""
        device = next(self.parameters()).device
        offloaded = device.type == "meta"  # by accelerate, which moves the input itself
        vectors: Tensor = self.part(torch.arange(self.length, device=None if offloaded else device))
        return vectors

    def embeddings(self, rows: int, dtype: torch.dtype) -> Tensor:
        """Of prompt tuning: embeddings (rows, length, D), unscaled like those of an embedding matrix."""
        return self._all().to(dtype).expand(rows, -1, -1)

    def cache(self, slm: PreTrainedModel, rows: int) -> DynamicCache | EncoderDecoderCache:
        """Of prefix tuning: keys and values for a batch of `rows`, in a cache of the type that `generate` creates."""
        layers, heads = self.shape
        own = slm.config.get_text_config(decoder=True)
        found = DynamicCache(config=own)
        # (length, layers, keys and values, heads, head width), in the order of peft's prefix
        vectors = self._all().to(slm.dtype).view(self.length, layers, 2, heads, -1)
        for number, layer in enumerate(vectors.permute(1, 2, 3, 0, 4)):
            keys, values = layer.unsqueeze(1).expand(-1, rows, -1, -1, -1)
            found.update(keys, values, number)
        if slm.config.is_encoder_decoder or getattr(slm.config, "add_cross_attention", False):
            return EncoderDecoderCache(found, DynamicCache(config=own))
        return found


def virtual_tokens(slm: PreTrainedModel) -> SoftPrompts | None:
    """The virtual tokens of a model, if it has any."""
    found: SoftPrompts | None = getattr(slm, NAME, None)
    return found


def add_soft_prompts(slm: PreTrainedModel, tune: str, given: Mapping[str, Any], key: str) -> None:
    """Adds new virtual tokens to a model, in place.

    Args:
        given: arguments of peft's config class; defaults are `DEFAULTS`, then peft's.
        key: configuration key of the model, for error messages.

    Raises:
        UserError: peft is missing or refuses the arguments, or the model cannot have such tokens.
    """
    own = [name for name in given if name in (*SHAPES, "peft_type", "task_type", "inference_mode", "modules_to_save")]
    if own:
        raise UserError(f"{key}.peft.{own[0]}: the model determines it; leave it out")
    values = DEFAULTS[tune] | dict(given)
    number = values["num_virtual_tokens"]
    if not isinstance(number, int) or number < 1:
        raise UserError(f"{key}.peft.num_virtual_tokens={number}: give a whole number, 1 or more")
    words = slm.get_input_embeddings()
    if tune == PREFIX:
        layers, heads, width = _cached_shape(slm, key)
        values |= {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * width}
        values = {"encoder_hidden_size": heads * width} | values
    else:
        values |= {"token_dim": words.embedding_dim, "num_transformer_submodules": 1}
    try:
        setattr(slm, NAME, SoftPrompts(tune, values, words))
    except ImportError:
        raise UserError(f"{key}.tune={tune} needs peft: pip install peft") from None
    except (TypeError, ValueError, OSError) as error:  # OSError: no tokenizer for prompt_tuning_init_text
        raise UserError(f"{key}.peft: {str(error).splitlines()[0]}") from None


@torch.no_grad()
def _cached_shape(slm: PreTrainedModel, key: str) -> tuple[int, int, int]:
    """Layers, heads and head width of a model's cached keys and values, from a forward pass on two tokens.

    peft derives them from the config, where T5 has the encoder's number of layers, and d_model is not the heads' width.
    """
    ids_BQ = torch.zeros((1, 2), dtype=torch.int64, device=slm.device)
    names = ["input_ids", *(["decoder_input_ids"] if slm.config.is_encoder_decoder else [])]
    was_training = slm.training
    slm.eval()
    try:
        cache = slm(
            **dict.fromkeys(names, ids_BQ), attention_mask=torch.ones_like(ids_BQ), use_cache=True
        ).past_key_values
    finally:
        slm.train(was_training)
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    layers = own.layers if isinstance(own, DynamicCache) else []
    kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    shapes = {(tensor.shape[1], tensor.shape[3]) if isinstance(tensor, Tensor) else None for tensor in kept}
    shape = next(iter(shapes)) if len(shapes) == 1 else None
    if shape is None:
        raise UserError(
            f"{key}.tune=prefix: a {slm.config.model_type} does not cache keys and values of the same shape in "
            "all layers, as a prefix needs; use prompt or lora"
        )
    return len(layers), *shape


def taken(slm: PreTrainedModel) -> tuple[int, int]:
    """Positions that virtual tokens take: of the prompt's, and of the response's.

    In a decoder-only model prompt and response share their positions, so both numbers are equal.
    """
    tokens = virtual_tokens(slm)
    if tokens is None:
        return 0, 0
    one = not slm.config.is_encoder_decoder
    return tuple(tokens.length if one or tokens.tune == which else 0 for which in (PROMPT, PREFIX))  # type: ignore[return-value]
