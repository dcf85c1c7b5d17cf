"""The cost model against torch's own count of the floating-point operations of real (tiny, random) models: exactly."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from llm2slm.evaluation import costs
from llm2slm.types import Conditioning, UserError

T5 = T5Config(
    vocab_size=53, d_model=24, d_kv=5, num_heads=3, d_ff=40, num_layers=2, num_decoder_layers=3,
    attn_implementation="eager",
)  # fmt: skip
T5_GATED = T5Config(
    vocab_size=53, d_model=24, d_kv=8, num_heads=4, d_ff=40, num_layers=3, num_decoder_layers=3,
    feed_forward_proj="gated-gelu", tie_word_embeddings=False, attn_implementation="eager",
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=61, n_embd=24, n_layer=3, n_head=3, n_positions=64, attn_implementation="eager")
GPT2_INNER = GPT2Config(
    vocab_size=61, n_embd=24, n_layer=2, n_head=2, n_inner=50, n_positions=64, attn_implementation="eager"
)
GPT2_CROSS = GPT2Config(
    vocab_size=61, n_embd=24, n_layer=3, n_head=3, n_positions=64, attn_implementation="eager", add_cross_attention=True
)
LLAMA = LlamaConfig(
    vocab_size=61, hidden_size=24, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=10, attn_implementation="eager",
)  # fmt: skip
P, T = 7, 6


def build(config):
    torch.manual_seed(0)
    by_type = {"t5": T5ForConditionalGeneration, "gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}
    return by_type[config.model_type](config).eval()


def counted(call: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def generated(model, tokens: int) -> int:
    """FLOPs of transformers' own greedy generation of exactly so many tokens."""
    ids = torch.arange(3, 3 + P)[None]
    arguments = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "eos_token_id": 1, "do_sample": False}
    if model.config.is_encoder_decoder:
        from transformers import DynamicCache, EncoderDecoderCache

        arguments["decoder_start_token_id"] = 0  # and a cache of its own: `generate` sizes it by the encoder's depth
        arguments["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
    return counted(lambda: model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **arguments))


@pytest.mark.parametrize("config", [T5, T5_GATED])
def test_encoder_of_t5(config):
    encoder = build(config).get_encoder()
    ids = torch.arange(3, 3 + P)[None]
    assert costs.encoder_flops(config.to_dict(), P) == counted(lambda: encoder(input_ids=ids))


@pytest.mark.parametrize("config", [GPT2, GPT2_INNER, LLAMA])
def test_decoder_only_reading_and_its_head(config):
    model, ids = build(config), torch.arange(3, 3 + P)[None]
    body = model.transformer if config.model_type == "gpt2" else model.model
    assert costs.encoder_flops(config.to_dict(), P) == counted(lambda: body(input_ids=ids))
    assert costs.decoder_flops(config.to_dict(), P, logits=P) == counted(lambda: model(input_ids=ids, use_cache=False))


def test_some_layers_cost_their_share():
    values = GPT2.to_dict()
    assert costs.encoder_flops(values, P, layers=1) * 3 == costs.encoder_flops(values, P)


@pytest.mark.parametrize("config", [T5, T5_GATED, GPT2, GPT2_INNER, LLAMA], ids=lambda c: c.model_type)
def test_generation_phase_by_phase(config):
    model = build(config)
    cost = costs.generation_cost(config.to_dict(), P, T)
    prefill, total = generated(model, 1), generated(model, T)
    assert cost.prefill_flops == prefill
    assert cost.decode_flops == total - prefill
    assert cost.flops == total


@pytest.mark.parametrize("config", [T5, T5_GATED, GPT2, GPT2_INNER, LLAMA], ids=lambda c: c.model_type)
def test_bytes_are_those_of_the_models_matrices(config):
    model = build(config)
    matrices = {n: m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    cost = costs.generation_cost(config.to_dict(), P, 2)
    assert cost.prefill_bytes == 4 * sum(matrices.values())
    per_step = [
        count
        for name, count in matrices.items()
        if not name.startswith("encoder.") and not name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
    ]
    ids = torch.arange(3, 3 + P)[None]
    if config.model_type == "t5":
        cache = model(input_ids=ids, decoder_input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True)
        parts = [cache.past_key_values.self_attention_cache, cache.past_key_values.cross_attention_cache]
    else:
        parts = [model(input_ids=torch.arange(3, 4 + P)[None], use_cache=True).past_key_values]
    held = sum(layer.keys.numel() + layer.values.numel() for part in parts for layer in part.layers)
    assert cost.decode_bytes == 4 * (sum(per_step) + held)
    half = costs.generation_cost(config.to_dict(), P, 2, bytes_per_weight=2)
    assert half.decode_bytes * 2 == cost.decode_bytes


class Hybrid:
    """The steps of a hybrid's generation, written out with plain modules."""

    def __init__(self, writer, conditioning: Conditioning, q: int) -> None:
        self.llm, self.writer, self.q = build(T5_GATED).get_encoder(), build(writer), q
        width = writer.hidden_size
        self.projector = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, width))
        self.conditioning, self.width = conditioning, width

    def __call__(self, tokens: int) -> None:
        z = self.projector(self.llm(input_ids=torch.arange(3, 3 + P)[None]).last_hidden_state)
        own = torch.randn(1, self.q, self.width)
        if self.conditioning == Conditioning.memory:
            states = z
        elif self.conditioning == Conditioning.prepend:
            states = torch.cat([z, own], 1)
        else:
            states = own + torch.rand(1, self.q, P) @ z
        arguments = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        if not self.writer.config.is_encoder_decoder and self.conditioning == Conditioning.memory:
            start = torch.zeros(1, 1, dtype=torch.long)
            self.writer.generate(start, encoder_hidden_states=states, eos_token_id=1, **arguments)
            return
        if not self.writer.config.is_encoder_decoder:
            self.writer.generate(inputs_embeds=states, eos_token_id=1, **arguments)
            return
        from transformers.modeling_outputs import BaseModelOutput

        arguments |= {"decoder_start_token_id": 0, "eos_token_id": 1}
        if self.conditioning == Conditioning.memory:
            self.writer.generate(encoder_outputs=BaseModelOutput(last_hidden_state=states), **arguments)
        else:
            self.writer.generate(inputs_embeds=states, **arguments)


@pytest.mark.parametrize(
    ("writer", "conditioning"),
    [
        (T5_GATED, Conditioning.add),
        (T5_GATED, Conditioning.prepend),
        (T5_GATED, Conditioning.memory),
        (GPT2, Conditioning.add),
        (GPT2, Conditioning.prepend),
        (GPT2_CROSS, Conditioning.memory),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_hybrid_phase_by_phase(writer, conditioning):
    q = 5
    hybrid = Hybrid(writer, conditioning, q)
    cost = costs.generation_cost(
        writer.to_dict(), q, T, llm_config=T5_GATED.to_dict(), llm_tokens=P, conditioning=conditioning,
        projector_shape=(24, 16, 24), aligned=conditioning == Conditioning.add,
    )  # fmt: skip
    prefill, total = counted(lambda: hybrid(1)), counted(lambda: hybrid(T))
    assert cost.prefill_flops == prefill
    assert cost.decode_flops == total - prefill


def test_cross_attention_costs_only_where_something_is_attended_to():
    assert costs.generation_cost(GPT2_CROSS.to_dict(), P, T) == costs.generation_cost(GPT2.to_dict(), P, T)


def test_a_linear_projector_and_longer_answers():
    assert costs.projector_flops((24, 0, 16), 3) == 2 * 3 * 24 * 16
    long, short = (costs.generation_cost(T5.to_dict(), P, t) for t in (20, 10))
    assert long.prefill_flops == short.prefill_flops
    assert long.decode_flops > 2 * short.decode_flops  # the cache grows


def test_what_is_not_known_is_refused():
    assert not costs.supported({"model_type": "bert"})
    with pytest.raises(UserError, match="model_type 'bert'"):
        costs.generation_cost({"model_type": "bert"}, 3, 3)
    with pytest.raises(ValueError, match="needs llm_config"):
        costs.generation_cost(T5.to_dict(), 3, 3, conditioning=Conditioning.add)
