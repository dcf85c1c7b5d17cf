"""FrozenEncoder: any transformers model as a frozen encoder of prompts. Token ids in, representations out.

Of an encoder-decoder, the encoder is used and its last layer read. Of a decoder-only model, `layer` selects the layer
(an intermediate one by default, Bergner et al. 2024).
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llm2slm.models.kv_cache import CacheShape, cache_shape, flat
from llm2slm.models.loading.gguf import Packed, plain_tensors
from llm2slm.models.loading.partial_loading import (
    Layer,
    blocks_of,
    depth_of,
    encoder_view,
    is_bidirectional,
)
from llm2slm.types import Reps

SAMPLED = 1024
"""Approximate number of elements of a tensor that enter a fingerprint."""


class FrozenEncoder(nn.Module):
    """An LLM as an encoder. It has no gradient, and stays in eval mode.

    The given model is not changed: what is run is a shallow copy (`encoder_view`) that shares its tensors.

    Args:
        llm: encoder-decoder, encoder, or decoder-only model without a head.
        layer: 0 the embeddings, n the output of block n, negative from the end (-1 the last, after the model's final
            norm); a fraction of the depth; or a list of several, whose representations are concatenated along E. None:
            the last layer of an encoder, the middle one of a decoder-only model.
        kv_blocks: of a decoder-only model: return the keys and values of these blocks (1-based) instead of hidden
            states, for conditioning `kv`. `layer` is then ignored.

    Attributes:
        body: the model that is run. layers: absolute numbers of the layers that are read (for keys and values: each
            block twice); chosen: as configured.
        width: of one layer, E / len(layers). blocks: number of blocks that are run. depth: of the whole model.
        embedding_width: of the LLM's embedding matrix (`embed`). positions: number of position embeddings; None:
            unlimited.

    Raises:
        UserError: the model has no such layer.
    """

    def __init__(self, llm: PreTrainedModel, layer: Layer = None, kv_blocks: Sequence[int] | None = None) -> None:
        super().__init__()
        self.kv_blocks = None if kv_blocks is None else list(kv_blocks)
        layer = layer if self.kv_blocks is None else max(self.kv_blocks)
        self.body, read = encoder_view(llm, layer)
        self.chosen = layer
        self.width: int = self.body.config.get_text_config().hidden_size
        self.layers = read
        self.cache_shape: CacheShape | None = None
        if self.kv_blocks is not None:
            self.cache_shape = cache_shape(self.body, "LLM")
            self.width, self.layers = self.cache_shape.size, [block for block in self.kv_blocks for _ in range(2)]
        self.embedding_width: int = self.body.get_input_embeddings().embedding_dim
        self.positions: int | None = getattr(self.body.config.get_text_config(), "max_position_embeddings", None)
        self.depth = depth_of(self.body)
        self.blocks = max(1, *read) if read != [self.depth] else self.depth
        self.decoder_only = not is_bidirectional(llm.config)
        self._states: dict[int, Tensor] | None = None  # of a forward pass of this encoder
        for number in read if self.kv_blocks is None else ():
            self._hook(number)
        takes_cache = self.decoder_only and "use_cache" in inspect.signature(self.body.forward).parameters
        self._arguments: dict[str, Any] = {"use_cache": False} if takes_cache else {}
        self.requires_grad_(False)
        self.eval()

    def _hook(self, number: int) -> None:
        """Makes a forward pass of this encoder keep the states of a layer; the last layer is the body's output."""
        blocks = blocks_of(self.body)
        if number == self.depth or blocks is None:
            return
        if number == 0:
            blocks[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        else:
            blocks[number - 1].register_forward_hook(partial(self._keep, number))

    def _keep(self, number: int, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del args
        if self._states is not None:  # else another view of the LLM runs the block
            self._states[number] = output[0] if isinstance(output, tuple) else output

    def _keep_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._states is not None:
            self._states[0] = args[0] if args else kwargs["hidden_states"]

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in eval mode: dropout in a frozen encoder would only add noise."""
        del mode
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, ids_BP: Tensor, mask_BP: Tensor) -> Reps:
        """Encodes a batch of prompts, padded on either side.

        The LLM gets them padded on the right: there positions count from the first token, however the model derives
        them, and no token of a decoder-only model attends to padding.

        Returns:
            reps_BPE of the chosen layer (several are concatenated along E), zero at padding, and the mask.
        """
        order_BP = torch.argsort(1 - mask_BP, dim=1, stable=True)  # real tokens first
        # also where nothing moves: a branch that depends on the data could not be compiled or exported
        ids, mask = ids_BP.gather(1, order_BP), mask_BP.gather(1, order_BP)
        reps_BPE = self._hidden_states(ids, mask) if self.kv_blocks is None else self._keys_values(ids, mask)
        back_BP = torch.argsort(order_BP, dim=1)
        reps_BPE = reps_BPE.gather(1, back_BP.unsqueeze(-1).expand_as(reps_BPE))
        return Reps(reps_BPE.masked_fill(~mask_BP.unsqueeze(-1).bool(), 0), mask_BP)

    def _hidden_states(self, ids_BP: Tensor, mask_BP: Tensor) -> Tensor:
        """Hidden states of the chosen layers, concatenated along E."""
        self._states = {}
        try:
            output = self.body(input_ids=ids_BP, attention_mask=mask_BP, **self._arguments)
            self._states[self.depth] = output.last_hidden_state
            return torch.cat([self._states[number].to(ids_BP.device) for number in self.layers], dim=-1)
        finally:
            self._states = None

    def _keys_values(self, ids_BP: Tensor, mask_BP: Tensor) -> Tensor:
        """Keys and values of the chosen blocks. A cache without a config has no sliding window: no position is lost."""
        cache = DynamicCache()
        self.body(input_ids=ids_BP, attention_mask=mask_BP, past_key_values=cache, use_cache=True)
        return flat(cache, self.kv_blocks or ())

    @contextmanager
    def observed(self) -> Iterator[Callable[[Any], Tensor]]:
        """Within this context, a forward pass of the whole LLM over a prompt serves as that of this encoder.

        The LLM is decoder-only and shares its blocks with the encoder, which reads no layer after the final norm.

        Yields:
            a function of the cache that the pass filled: reps_BPE, with the padding that the LLM's prompt had.
        """
        states: dict[int, Tensor] = {}
        self._states = states

        def reps(cache: Any) -> Tensor:
            if self.kv_blocks is not None:
                return flat(cache, self.kv_blocks)
            return torch.cat([states[number] for number in self.layers], dim=-1)

        try:
            yield reps
        finally:
            self._states = None

    def fingerprint(self) -> str:
        """Identifies the weights (see `fingerprint`)."""
        return fingerprint(plain_tensors(self.body))

    def embed(self, ids_BP: Tensor) -> Tensor:
        """Rows of the LLM's embedding matrix, unscaled: ids_BP -> embeds_BPE."""
        embeds_BPE: Tensor = self.body.get_input_embeddings()(ids_BP)
        return embeds_BPE.detach()


def keep_out_of_state_dicts(model: nn.Module) -> None:
    """Excludes the frozen LLM (`encoder`) from a model's state dicts: checkpoints hold trained tensors only."""
    model.register_state_dict_post_hook(_remove_encoder)
    model.register_load_state_dict_post_hook(_ignore_missing_encoder)


def _remove_encoder(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    if module.encoder is not None and not _offloading():
        for key in [key for key in state if key.startswith(f"{prefix}encoder.")]:
            del state[key]


def _offloading() -> bool:
    """Whether accelerate collects a model's tensors in order to offload them: it takes them from the state dict."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__") != "accelerate.big_modeling":
        frame = frame.f_back
    return frame.f_back is not None


def _ignore_missing_encoder(module: Any, keys: Any) -> None:
    """Removes the frozen LLM's tensors from the missing keys."""
    if module.encoder is not None:
        keys.missing_keys[:] = [key for key in keys.missing_keys if "encoder.body." not in key]


def fingerprint(tensors: Iterable[tuple[str, Tensor | Packed]]) -> str:
    """Twelve hexadecimal digits that identify weights: a hash of names, shapes, and about a thousand evenly spaced
    elements of each tensor. Cheap at any size. Training changes it, copying does not.
    """
    digest = hashlib.sha256()
    for name, found in sorted(tensors, key=lambda named: named[0]):
        tensor = found.unpacked() if isinstance(found, Packed) else found
        if type(tensor) is not Tensor:  # quantized; the other tensors identify the model
            continue
        values = tensor.detach().reshape(-1)
        sample = values[:: max(1, values.numel() // SAMPLED)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:12]
