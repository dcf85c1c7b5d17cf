"""Conditioning `cross_attention`: gated layers in front of the blocks of a decoder-only SLM attend to z.

The SLM processes its prompt as without an LLM. The layers are those of Flamingo (Alayrac
et al. 2022, arXiv 2204.14198): h + tanh(gate) * attention(norm(h), z) in front of a block, the gate at zero, so that
training starts from the plain SLM. Needs a model whose stack of blocks can be identified.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from llm2slm.config import ModelConfig
from llm2slm.models.conditioning import Conditioning
from llm2slm.models.loading.partial_loading import blocks_of
from llm2slm.models.matrix_shapes import Cross, HybridShapes, PromptCost
from llm2slm.models.prompt import GatedStates, Prompt
from llm2slm.types import Batch, Reps, UserError


class GatedCrossAttention(nn.Module):
    """One layer. Keys and values are computed from z once per prompt, queries from each new position."""

    def __init__(self, width: int, width_z: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width)
        self.query, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(width_z, width, bias=False) for _ in range(2))
        self.gate = nn.Parameter(torch.zeros(()))

    def keys_values(self, z_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (B, heads, P, D / heads)."""
        return self._split(self.key(z_BPD)), self._split(self.value(z_BPD))

    def forward(self, states_BQD: Tensor, keys: Tensor, values: Tensor, mask_BP: Tensor) -> Tensor:
        """The states plus gated attention to z where the mask is 1: states_BQD -> states_BQD."""
        query = self._split(self.query(self.norm(states_BQD)))
        found = scaled_dot_product_attention(query, keys, values, attn_mask=mask_BP[:, None, None, :].bool())
        guided_BQD: Tensor = states_BQD + self.gate.tanh() * self.out(found.transpose(1, 2).flatten(2))
        return guided_BQD

    def _split(self, states_BQD: Tensor) -> Tensor:
        split: Tensor = states_BQD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split


class CrossAttentionBlocks(nn.Module):
    """A gated layer in front of every k-th block of an SLM. Outside of `attending` the SLM computes as without them.

    Args:
        slm: decoder-only.
        every: k; the first layer is in front of block k, counted from 1.

    Raises:
        UserError: the SLM's stack of blocks cannot be identified, or has fewer than k blocks.
    """

    def __init__(self, slm: PreTrainedModel, every: int = 1) -> None:
        super().__init__()
        blocks = blocks_of(slm.base_model)
        if blocks is None:
            raise UserError(
                f"model.conditioning=cross_attention: the blocks of a {slm.config.model_type} cannot be identified; "
                "use another conditioning"
            )
        if not 1 <= every <= len(blocks):
            raise UserError(f"model.cross_every={every}: the SLM has {len(blocks)} blocks; give 1 to {len(blocks)}")
        config = slm.config.get_text_config()
        self.layers = nn.ModuleList()
        for number in range(every - 1, len(blocks), every):
            blocks[number].register_forward_pre_hook(partial(self._cross, len(self.layers)), with_kwargs=True)
            width_z = slm.get_input_embeddings().embedding_dim
            self.layers.append(GatedCrossAttention(config.hidden_size, width_z, config.num_attention_heads))
        self._attended: GatedStates | None = None

    def states(self, z: Reps) -> GatedStates:
        """Keys and values of z in every layer."""
        dtype = next(self.parameters()).dtype  # float32, where the SLM may be bfloat16
        pairs = tuple(layer.keys_values(z.reps_BPE.to(dtype)) for layer in self.layers)  # type: ignore[operator]
        return GatedStates(pairs, z.mask_BP)

    @contextmanager
    def attending(self, states: GatedStates) -> Iterator[None]:
        """Within this context the SLM's blocks attend to the states."""
        self._attended = states
        try:
            yield
        finally:
            self._attended = None

    def _cross(self, number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._attended is None:
            return None
        states_BQD: Tensor = args[0] if args else kwargs["hidden_states"]
        attended: tuple[Tensor, ...] = (*self._attended.keys_values[number], self._attended.mask_BP)
        copies = states_BQD.shape[0] // attended[-1].shape[0]
        if copies > 1:  # beams and samples of a prompt are consecutive rows
            attended = tuple(t.repeat_interleave(copies, 0) for t in attended)
        guided_BQD = self.layers[number](states_BQD.to(attended[0].dtype), *attended).to(states_BQD)
        return ((guided_BQD, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": guided_BQD})


class Mode(Conditioning):
    """Fits decoder-only SLMs."""

    options: ClassVar[tuple[str, ...]] = ("cross_every",)

    def misfit(self, slm: PreTrainedModel) -> str | None:
        """An encoder-decoder has cross-attention already."""
        return "it is an encoder-decoder" if slm.config.is_encoder_decoder else None

    def modules(self, config: Any, slm: PreTrainedModel, encoder: Any) -> dict[str, nn.Module]:
        """The projector, and the gated layers (`crossing`)."""
        return super().modules(config, slm, encoder) | {"crossing": CrossAttentionBlocks(slm, config.cross_every)}

    def prompt(self, model: Any, batch: Batch, z: Reps) -> Prompt:
        """The embeddings; the gated layers' keys and values of z as the gated states."""
        return Prompt(model.prompt_embeddings(batch, z), batch.slm_mask_BQ, gated_states=model.crossing.states(z))

    def attending(self, model: Any, prompt: Prompt) -> AbstractContextManager[None]:
        """The SLM's blocks attend to the gated states."""
        states = prompt.gated_states
        return nullcontext() if states is None else model.crossing.attending(states)

    def cost(self, shapes: HybridShapes) -> PromptCost:
        """Every new position attends to P positions in the gated layers."""
        slm, every = shapes.slm, shapes.options["cross_every"]
        gated = Cross(slm.layers // every, slm.width, slm.width, slm.width, shapes.width_z)
        return replace(super().cost(shapes), slm=replace(slm, cross=gated), attended=shapes.llm_tokens)

    def cost_settings(self, model: Any) -> dict[str, Any]:
        """With the distance of the gated layers."""
        return super().cost_settings(model) | {"cross_every": model.config.cross_every}

    def planned_cost_settings(self, cfg: ModelConfig, llm: Any, slm: Any, record: Any = None) -> dict[str, Any]:
        """With the distance of the gated layers."""
        return super().planned_cost_settings(cfg, llm, slm, record) | {"cross_every": cfg.cross_every}
