"""FrozenEncoder: any transformers model as a reader. Token ids in, representations out, weights never touched.

Of an encoder-decoder the encoder is kept and its last layer read. Of a decoder-only model (features of an
intermediate layer, Bergner et al. 2024) `layer` says which one is read. What is not read is not kept.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llm2slm.models.kv_cache import CacheShape, cache_shape, flat
from llm2slm.models.loading.gguf import Packed, plain_tensors
from llm2slm.models.loading.partial_loading import Layer, blocks_of, body_of, depth_of, is_bidirectional, remove_unread
from llm2slm.types import Reps

SAMPLED = 1024
"""Values of a tensor that its fingerprint is taken from."""


class FrozenEncoder(nn.Module):
    """An LLM that reads. It has no gradient, and stays in eval mode whatever `.train()` is called on it.

    Args:
        llm: encoder-decoder, encoder, or decoder-only model without a head.
        layer: 0 the embeddings, n the output of block n, negative from the end (-1 the last, after the model's final
            norm); a fraction of the depth; or a list of several, whose representations stand side by side. None: the
            last layer of an encoder, the middle one of a decoder-only model.
        kv_blocks: of a decoder-only model: give the keys and values of these blocks (1-based) instead, as conditioning
            `kv` needs them (`models/kv.py`). `layer` is not used then.

    Attributes:
        layers: absolute numbers of the layers that are read (of keys and values: each block twice); chosen: as they
            were asked for; keys_values: whether it gives these.
        width: that of one of them, E / len(layers). blocks: how many are run.
        embedding_width: of the LLM's embedding matrix (`embed`). positions: it has embeddings of so many; None: of any.

    Raises:
        UserError: the model has no such layer.
    """

    def __init__(self, llm: PreTrainedModel, layer: Layer = None, kv_blocks: Sequence[int] | None = None) -> None:
        super().__init__()
        self.kv_blocks = None if kv_blocks is None else list(kv_blocks)
        layer = layer if self.kv_blocks is None else max(self.kv_blocks)
        read = remove_unread(llm, layer)
        self.chosen = layer
        self.body = body_of(llm)
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
        self._read: dict[int, Tensor] = {}
        for number in read if self.kv_blocks is None else ():
            self._listen(number)
        takes_cache = self.decoder_only and "use_cache" in inspect.signature(self.body.forward).parameters
        self._arguments: dict[str, Any] = {"use_cache": False} if takes_cache else {}
        self.requires_grad_(False)
        self.eval()

    def _listen(self, number: int) -> None:
        """Keeps what a layer says, whenever the body runs. The last one is the body's own output."""
        blocks = blocks_of(self.body)
        if number == self.depth or blocks is None:
            return

        if number == 0:
            blocks[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        else:
            blocks[number - 1].register_forward_hook(partial(self._keep, number))

    def _keep(self, number: int, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del args
        self._read[number] = output[0] if isinstance(output, tuple) else output

    def _keep_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._read[0] = args[0] if args else kwargs["hidden_states"]

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in eval mode: the dropout of a reader would be noise (a known bug of such hybrids)."""
        del mode
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, ids_BP: Tensor, mask_BP: Tensor) -> Reps:
        """Reads a batch of prompts, padded on either side.

        The LLM itself always gets them padded on the right: there positions count from the first token on, whatever
        the model derives them from, and no token of a decoder-only model sees a padding.

        Returns:
            reps_BPE of the chosen layer (of several: one after the other along E), zero at padding, and the mask.
        """
        order_BP = torch.argsort(1 - mask_BP, dim=1, stable=True)  # real tokens first
        moved = bool((mask_BP[:, :1] == 0).any())
        ids, mask = (ids_BP.gather(1, order_BP), mask_BP.gather(1, order_BP)) if moved else (ids_BP, mask_BP)
        reps_BPE = self._states(ids, mask) if self.kv_blocks is None else self._keys_values(ids, mask)
        if moved:
            back_BP = torch.argsort(order_BP, dim=1)
            reps_BPE = reps_BPE.gather(1, back_BP.unsqueeze(-1).expand_as(reps_BPE))
        return Reps(reps_BPE.masked_fill(~mask_BP.unsqueeze(-1).bool(), 0), mask_BP)

    def _states(self, ids_BP: Tensor, mask_BP: Tensor) -> Tensor:
        """Hidden states of the chosen layers, one after the other along E."""
        output = self.body(input_ids=ids_BP, attention_mask=mask_BP, **self._arguments)
        self._read[self.depth] = output.last_hidden_state
        reps_BPE = torch.cat([self._read[number] for number in self.layers], dim=-1)
        self._read.clear()
        return reps_BPE

    def _keys_values(self, ids_BP: Tensor, mask_BP: Tensor) -> Tensor:
        """Keys and values of the chosen blocks. The cache is of no window: it keeps all positions in every block."""
        cache = DynamicCache()
        self.body(input_ids=ids_BP, attention_mask=mask_BP, past_key_values=cache, use_cache=True)
        return flat(cache, self.kv_blocks or ())

    def fingerprint(self) -> str:
        """Tells this reader's weights from others' (see `fingerprint`)."""
        return fingerprint(plain_tensors(self.body))

    def embed(self, ids_BP: Tensor) -> Tensor:
        """Rows of the LLM's embedding matrix, as they are: ids_BP -> embeds_BPE."""
        embeds_BPE: Tensor = self.body.get_input_embeddings()(ids_BP)
        return embeds_BPE.detach()


def keep_out_of_state_dicts(model: nn.Module) -> None:
    """A model's state dicts leave its frozen LLM (`encoder`) out: checkpoints hold what was trained."""
    model.register_state_dict_post_hook(_forget_encoder)
    model.register_load_state_dict_post_hook(_excuse_encoder)


def _forget_encoder(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    if module.encoder is not None:
        for key in [key for key in state if key.startswith(f"{prefix}encoder.")]:
            del state[key]


def _excuse_encoder(module: Any, keys: Any) -> None:
    """The frozen LLM's tensors are not missing from such a state dict; everything else still is."""
    if module.encoder is not None:
        keys.missing_keys[:] = [key for key in keys.missing_keys if "encoder.body." not in key]


def fingerprint(tensors: Iterable[tuple[str, Tensor | Packed]]) -> str:
    """Twelve hexadecimal digits that tell weights from others': their names and shapes, and of each about a thousand
    values spread over it. Cheap at any size; training changes it, a copy does not.
    """
    digest = hashlib.sha256()
    for name, found in sorted(tensors, key=lambda named: named[0]):
        tensor = found.unpacked() if isinstance(found, Packed) else found
        if type(tensor) is not Tensor:  # quantized; the rest tells enough
            continue
        values = tensor.detach().reshape(-1)
        sample = values[:: max(1, values.numel() // SAMPLED)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:12]
