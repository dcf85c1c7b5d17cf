"""Conditioning `kv`: the SLM's cache of the prompt holds keys and values of the LLM's blocks.

After OverFill (Kim et al. 2025, arXiv 2508.08446): the full model processes the prompt, a smaller one cut from it
generates. Each SLM block attends to the keys and values of one LLM block (`model.kv_blocks`). There are two cases:

    unmapped  The SLM is cut from a model of the LLM's architecture: its blocks have the LLM's shapes and positions, and
              its tokenizer is the LLM's, or a cut of it. The LLM's keys and values of all prompt tokens but the last
              are the SLM's cache. The SLM processes the last prompt token alone, at its position, and generates.
    mapped    Any other LLM. The SLM processes its own prompt, and a linear map per block adds the LLM's keys and
              values, aligned to the SLM's tokens, to the SLM's. The maps start at zero: the hybrid starts as the SLM.

Keys are taken as the LLM's cache holds them, with its rotary positions applied.

The representations of a prompt (`Reps`) are here the concatenated keys and values of the chosen blocks: reps_BPE with
E = 2 x blocks x key-value heads x head width, in the order keys of the first block, its values, keys of the second
block, and so on. Stores, ablations and benchmarks treat them as those of any other way of conditioning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from llm2slm.config import ModelConfig
from llm2slm.data.interface import is_cut
from llm2slm.models.conditioning import Conditioning
from llm2slm.models.families import decoder_stack, encoder_stack
from llm2slm.models.kv_cache import CacheShape, PromptCache, by_block, cache_shape, refuse_checkpointing
from llm2slm.models.loading.configs import model_config
from llm2slm.models.loading.cut_config import RECORD
from llm2slm.models.loading.partial_loading import is_bidirectional
from llm2slm.models.matrix_shapes import HybridShapes, PromptCost
from llm2slm.models.prompt import Prompt, embed, embed_scale
from llm2slm.models.sequences import align, positions
from llm2slm.models.soft_prompts import PREFIX, PROMPT
from llm2slm.types import Batch, Reps, Tokenizers, UserError

GEOMETRY = ("model_type", "hidden_size", "num_attention_heads", "head_dim", "rope_parameters", "rope_theta",
            "rotary_dim", "alibi", "alibi_bias_max", "sliding_window", "window_size", "attention_chunk_size",
            "query_pre_attn_scalar", "attn_logit_softcapping", "position_embedding_type")  # fmt: skip
"""Settings that determine keys and values. Models that agree in all of them can share a cache."""


def chosen_blocks(given: Sequence[int] | None, slm: PreTrainedConfig, llm_depth: int) -> list[int]:
    """For each block of the SLM the LLM block (1-based) whose keys and values it attends to.

    Args:
        given: `model.kv_blocks`; None: the blocks that the SLM was cut to if it was cut from a model as deep as the
            LLM; else evenly spaced blocks, the last one included.
        slm: its config.

    Raises:
        UserError: not one number per block, or no such block.
    """
    slm = slm.get_text_config()
    depth = int(slm.num_hidden_layers)
    cut = getattr(slm, RECORD, None) or {}
    if given is None and cut.get("depth") == llm_depth and len(cut.get("blocks", ())) == depth:
        return [int(block) for block in cut["blocks"]]
    if given is None:
        spaced = [round((n + 1) * llm_depth / depth) for n in range(depth)]
        return [max(1, block) for block in spaced]
    if len(given) != depth:
        raise UserError(
            f"model.kv_blocks={list(given)}: names {len(given)} blocks of the LLM, and the SLM has {depth}; give "
            "one for each of them"
        )
    blocks = []
    for block in given:
        if isinstance(block, bool) or not isinstance(block, int) or block == 0 or not -llm_depth <= block <= llm_depth:
            raise UserError(f"model.kv_blocks: {block} is no block of the LLM; give 1 to {llm_depth}, or negative")
        blocks += [block + llm_depth + 1 if block < 0 else block]
    return blocks


def blocks_of_llm(cfg: ModelConfig, llm: PreTrainedConfig, slm: PreTrainedConfig) -> list[int]:
    """`chosen_blocks` of a configuration.

    Raises:
        UserError: the LLM is not decoder-only, or `model.kv_blocks` does not fit.
    """
    if is_bidirectional(llm):
        raise UserError(
            f"model.conditioning=kv needs a decoder-only LLM, and {cfg.llm.source} is a {llm.model_type}: use "
            "model.conditioning=memory, another conditioning, or another model.llm.name"
        )
    return chosen_blocks(cfg.kv_blocks, slm, int(llm.get_text_config().num_hidden_layers))


def shares_cache(slm: PreTrainedConfig, llm: PreTrainedConfig) -> bool:
    """Whether two models compute keys and values alike: same architecture, widths and positions; depth may differ."""
    one, two = slm.get_text_config(), llm.get_text_config()
    counts = ("num_key_value_heads", "num_attention_heads")
    heads = [next((n for name in counts if (n := getattr(c, name, None))), None) for c in (one, two)]
    return heads[0] == heads[1] and all(getattr(one, key, None) == getattr(two, key, None) for key in GEOMETRY)


class CacheMap(nn.Module):
    """Linear maps from the LLM's keys and values to the SLM's; the identity without parameters if unmapped.

    Args:
        source, target: cache shapes of a block of LLM and SLM.
        blocks: number of the SLM's blocks.
    """

    def __init__(self, source: CacheShape, target: CacheShape, blocks: int, mapped: bool) -> None:
        super().__init__()
        self.source, self.target, self.mapped = source, target, mapped
        # one matrix for keys and one for values of each block: (2 x blocks, source, target)
        self.weight = nn.Parameter(torch.zeros(2 * blocks, source.size, target.size)) if mapped else None

    def forward(self, reps_BPE: Tensor) -> Tensor:
        """The LLM's keys and values as the SLM's: reps_BPE -> z_BPD, D = 2 x blocks x the SLM's heads and width."""
        if self.weight is None:
            return reps_BPE
        reps_BPME = reps_BPE.to(self.weight.dtype).unflatten(-1, (len(self.weight), self.source.size))
        z_BPD: Tensor = torch.einsum("bpme,med->bpmd", reps_BPME, self.weight).flatten(2)
        return z_BPD


def last_real(mask_BP: Tensor) -> Tensor:
    """True at the last real position of each row: (B, P)."""
    real_BP = mask_BP.bool()
    return real_BP & (real_BP.long().cumsum(1) == real_BP.sum(1, keepdim=True))


def without_last(mask_BP: Tensor) -> Tensor:
    """The mask without each row's last real position."""
    return mask_BP.masked_fill(last_real(mask_BP), 0)


def llm_cache(z_BPD: Tensor, mask_BP: Tensor, shape: CacheShape) -> PromptCache:
    """The LLM's keys and values of all prompt tokens but the last, padded on the left, zero at padding."""
    mask_BP = without_last(mask_BP)
    order_BC = torch.argsort(mask_BP, dim=1, stable=True)[:, 1:]  # real tokens last; one is masked in every row
    mask_BC = mask_BP.gather(1, order_BC)
    z_BCD = z_BPD.gather(1, order_BC.unsqueeze(-1).expand(*order_BC.shape, z_BPD.shape[-1]))
    return PromptCache(by_block(z_BCD.masked_fill(mask_BC.unsqueeze(-1) == 0, 0), shape), mask_BC)


def own_cache(
    slm: PreTrainedModel, embeds_BQD: Tensor, mask_BQ: Tensor, position_ids_BQ: Tensor, added_BQD: Tensor
) -> PromptCache:
    """The SLM's own keys and values of a prompt (padded on the left) without its last position, with others added.

    Args:
        added_BQD: what is added, in the layout of `flat`, of the same positions.
    """
    refuse_checkpointing(slm, "the prompt (conditioning=kv) is")
    before = slice(None, -1)
    cache = DynamicCache()
    mask_BC = mask_BQ[:, before]
    if mask_BC.shape[1]:
        slm.base_model(
            inputs_embeds=embeds_BQD[:, before], attention_mask=mask_BC, position_ids=position_ids_BQ[:, before],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
    own = tuple((layer.keys, layer.values) for layer in cache.layers)
    if not own:  # a prompt of one token
        return PromptCache(own, mask_BC)
    shape = CacheShape(own[0][0].shape[1], own[0][0].shape[3])
    others = by_block((added_BQD * mask_BQ.unsqueeze(-1).to(added_BQD.dtype))[:, before], shape)
    pairs = zip(own, others, strict=True)
    summed = tuple((keys + k.to(keys.dtype), values + v.to(values.dtype)) for (keys, values), (k, v) in pairs)
    return PromptCache(summed, mask_BC)


class Mode(Conditioning):
    """Fits decoder-only SLMs with a decoder-only LLM. Its `projector` is a `CacheMap`."""

    options: ClassVar[tuple[str, ...]] = ("kv_blocks",)
    uses_projector: ClassVar[bool] = False
    uses_llm_cache: ClassVar[bool] = True

    def misfit(self, slm: PreTrainedModel) -> str | None:
        """A prompt in the SLM's cache needs a decoder-only SLM."""
        return "it is an encoder-decoder" if slm.config.is_encoder_decoder else None

    def check(self, cfg: ModelConfig) -> None:
        """The SLM's cache belongs to the LLM: no virtual tokens in it, no embeddings of LLM tokens."""
        if cfg.slm.tune in (PROMPT, PREFIX):
            raise UserError(
                f"model.slm.tune={cfg.slm.tune} puts virtual tokens in front of the prompt, whose keys and values are "
                "the LLM's with model.conditioning=kv; use tune=full, lora or none"
            )
        if cfg.tokenizers is Tokenizers.llm_tokens:
            raise UserError("model.conditioning=kv: use model.tokenizers=shared or offsets; llm_tokens maps embeddings")

    def record(self, cfg: ModelConfig, slm: PreTrainedModel, tokenizer: Any, llm_tokenizer: Any) -> dict[str, Any]:
        """`kv`: the LLM's blocks, and whether their keys and values are mapped.

        Raises:
            UserError: the LLM is not decoder-only, or `model.kv_blocks` does not fit.
        """
        llm = model_config(cfg.llm, llm_tokenizer)
        blocks = blocks_of_llm(cfg, llm, slm.config)
        mapped = not (shares_cache(slm.config, llm) and is_cut(tokenizer, llm_tokenizer))
        return {"kv": {"blocks": blocks, "mapped": mapped}}

    def kv_blocks(self, config: Any) -> list[int] | None:
        """Those of the record."""
        return list(config.kv["blocks"])

    def projector_settings(self, cfg: ModelConfig, slm: Any, encoder: Any) -> None:
        """No `Projector`."""
        del cfg, slm, encoder

    def modules(self, config: Any, slm: PreTrainedModel, encoder: Any) -> dict[str, nn.Module]:
        """The `CacheMap`, under the name `projector`; refuses an SLM that takes no embeddings."""
        if encoder.cache_shape is None:
            raise ValueError("conditioning kv needs an encoder that gives keys and values")
        embed_scale(slm)
        blocks = len(encoder.layers) // 2
        return {"projector": CacheMap(encoder.cache_shape, cache_shape(slm, "SLM"), blocks, config.kv["mapped"])}

    def in_words(self, record: Mapping[str, Any]) -> str:
        """The LLM block of each SLM block, and the use of its keys and values."""
        given = f"the keys and values of its blocks {', '.join(map(str, record['kv']['blocks']))}"
        if record["kv"]["mapped"]:
            return f"linear maps add {given} to those of the prompt in"
        return f"{given} are, without a projector, the cache of the prompt of"

    def token_by_token(self, config: Any) -> bool:
        """Mapped keys and values are added to those of the SLM's tokens."""
        return bool(config.kv["mapped"])

    def collation(self, config: Any) -> dict[str, Any]:
        """Unmapped: of the prompt, the SLM gets the last token alone."""
        return super().collation(config) | ({} if config.kv["mapped"] else {"last_token": True})

    def prompt(self, model: Any, batch: Batch, z: Reps) -> Prompt:
        """The last position, with a cache of all others."""
        slm, mapping = model.slm, model.projector
        embeds_BQD, mask_BQ = embed(slm, batch.slm_ids_BQ), batch.slm_mask_BQ
        if not mapping.mapped:  # the batch holds the last prompt token only
            return Prompt(embeds_BQD, mask_BQ, cache=llm_cache(z.reps_BPE, z.mask_BP, mapping.target))
        added_BQD = align(z.reps_BPE, batch.align_BQP)
        cache = own_cache(slm, embeds_BQD, mask_BQ, positions(mask_BQ), added_BQD)
        return Prompt(embeds_BQD[:, -1:], mask_BQ[:, -1:], cache=cache)

    def positions(self, config: Any, own: int, llm: int) -> int:
        """Unmapped: the LLM's tokens but the last, and the SLM's token for that one."""
        return own if config.kv["mapped"] else own + llm - 1

    def cost(self, shapes: HybridShapes) -> PromptCost:
        """Mapped: the SLM computes its own keys and values before. Unmapped: it processes the last token only."""
        if shapes.options["kv_mapped"] is None:
            return PromptCost(shapes.slm, shapes.prompt_tokens, cached=shapes.llm_tokens - 1)
        before = shapes.prompt_tokens - 1
        own = shapes.slm.flops(before, before)
        return PromptCost(shapes.slm, 1, cached=before, flops=own, weights=shapes.slm.weights)

    def cost_settings(self, model: Any) -> dict[str, Any]:
        """The shape of the linear maps."""
        weight = model.projector.weight
        return {"kv_mapped": None if weight is None else tuple(weight.shape)}

    def planned_cost_settings(self, cfg: ModelConfig, llm: Any, slm: Any, record: Any = None) -> dict[str, Any]:
        """Unmapped, the SLM's prompt is one token. Tokenizers are not read: an SLM with the LLM's shapes counts as cut
        from it if it has as many vocabulary entries, shares the tokenizer, or has a vocabulary cut."""
        blocks = blocks_of_llm(cfg, llm, slm)
        sizes = [each.get_text_config().vocab_size for each in (slm, llm)]
        cut = sizes[0] == sizes[1] or cfg.tokenizers is Tokenizers.shared or cfg.slm.vocab is not None
        mapped = not (shares_cache(slm, llm) and cut) if record is None else record.kv["mapped"]
        if not mapped:
            return {"kv_mapped": None, "llm_layers": max(blocks), "prompt_tokens": 1}
        source, target = encoder_stack(llm.to_dict()).kv, decoder_stack(slm.to_dict()).kv
        return {"kv_mapped": (2 * len(blocks), source, target), "llm_layers": max(blocks)}
