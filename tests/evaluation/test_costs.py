"""The cost model against torch's own count of the floating-point operations of real (tiny, random) models: exactly.

torch counts matrix products, and attention only if it is computed by matrix products: `eager`, and
`SDPBackend.MATH` where torch's attention is called.
"""

import os
from itertools import cycle, product

import pytest
import torch
from counted import (
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    GPT2_CROSS,
    READERS,
    T5_GATED,
    WRITERS,
    P,
    T,
    build,
    counted,
)  # fmt: skip
from sampling import first_of_each, representatives
from torch import nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from llm2slm.decoding.decoder import GenerateDecoder
from llm2slm.evaluation.benchmark import costs
from llm2slm.evaluation.benchmark.workload import Condition, Request
from llm2slm.evaluation.benchmark.workload_costs import workload_cost
from llm2slm.models import families
from llm2slm.models.build import build_model
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.testing import LLM_TEXTS, tiny_model_config
from llm2slm.types import Init, SystemKind, Tokenizers, UserError


def generated(model, tokens: int) -> int:
    """FLOPs of greedy generation of exactly this many tokens by transformers."""
    ids = torch.arange(3, 3 + P)[None]
    arguments = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "eos_token_id": 1, "do_sample": False}
    if model.config.is_encoder_decoder:
        from transformers import DynamicCache, EncoderDecoderCache

        arguments["decoder_start_token_id"] = 0  # and a separate cache: `generate` sizes it by the encoder's depth
        arguments["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
    return counted(lambda: model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **arguments))


def test_every_known_family_is_compared_with_torchs_count():
    held = {config.model_type for config in (*READERS.values(), ENCODER_DECODERS["t5gemma"].encoder)}
    assert held == set(families.FAMILIES)


@pytest.mark.parametrize("layer", representatives([-1, 1], [-1]), ids=["whole", "first block"])
@pytest.mark.parametrize("name", READERS)
def test_the_cost_of_encoding_equals_torchs_count(name, layer):
    """The part of the LLM that `FrozenEncoder` runs, from the config of that part."""
    reader, ids = FrozenEncoder(build(READERS[name], AutoModel), layer), torch.arange(3, 3 + P)[None]
    values = reader.body.config.to_dict()
    assert families.supported(values, generates=False)
    found = counted(lambda: reader(ids, torch.ones_like(ids)))
    assert families.encoder_stack(values, reader.blocks).flops(P, P) == found
    if layer == -1:
        assert families.encoder_stack(values).flops(P, P) == found


@pytest.mark.parametrize("name", DECODERS)
def test_the_head_is_computed_at_every_position(name):
    model, ids = build(DECODERS[name]), torch.arange(3, 3 + P)[None]
    stack = families.decoder_stack(DECODERS[name].to_dict())
    assert stack.flops(P, P, logits=P) == counted(lambda: model(input_ids=ids, use_cache=False))


@pytest.mark.parametrize(
    "name", representatives(WRITERS, ["t5", "t5 gated", "bart", "t5gemma", "gpt2", "opt narrow", "llama", "gemma2"])
)
def test_the_cost_of_generation_equals_torchs_count_in_each_phase(name):
    model, values = build(WRITERS[name]), WRITERS[name].to_dict()
    assert families.supported(values)
    cost = costs.generation_cost(values, P, T)
    prefill, total = generated(model, 1), generated(model, T)
    assert cost.prefill_flops == prefill
    assert cost.decode_flops == total - prefill
    assert cost.flops == total


@pytest.mark.parametrize("name", WRITERS)
def test_bytes_equal_those_of_the_models_matrices(name):
    model, values = build(WRITERS[name]), WRITERS[name].to_dict()
    matrices = {n: m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    cost = costs.generation_cost(values, P, 2)
    assert cost.prefill_bytes == 4 * sum(matrices.values())
    once = ("EncDecAttention.k", "EncDecAttention.v", "encoder_attn.k_proj", "encoder_attn.v_proj")
    once += ("cross_attn.k_proj", "cross_attn.v_proj")
    per_step = [count for n, count in matrices.items() if ".encoder." not in f".{n}" and not n.endswith(once)]
    ids = torch.arange(3, 3 + P)[None]
    if model.config.is_encoder_decoder:
        cache = model(input_ids=ids, decoder_input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True)
        parts = [cache.past_key_values.self_attention_cache, cache.past_key_values.cross_attention_cache]
    else:
        parts = [model(input_ids=torch.arange(3, 4 + P)[None], use_cache=True).past_key_values]
    held = sum(layer.keys.numel() + layer.values.numel() for part in parts for layer in part.layers)
    assert cost.decode_bytes == 4 * (sum(per_step) + held)
    half = costs.generation_cost(values, P, 2, bytes_per_weight=2)
    assert half.decode_bytes * 2 == cost.decode_bytes


class Hybrid:
    """The steps of a hybrid's generation, written with plain modules."""

    def __init__(self, writer, conditioning: str, q: int) -> None:
        self.llm, self.writer, self.q = build(T5_GATED).get_encoder(), build(writer), q
        width = writer.hidden_size
        self.projector = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, width))
        self.conditioning, self.width = conditioning, width

    def __call__(self, tokens: int) -> None:
        z = self.projector(self.llm(input_ids=torch.arange(3, 3 + P)[None]).last_hidden_state)
        own = torch.randn(1, self.q, self.width)
        if self.conditioning == "memory":
            states = z
        elif self.conditioning == "prepend":
            states = torch.cat([z, own], 1)
        else:
            states = own + torch.rand(1, self.q, P) @ z
        arguments = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        if not self.writer.config.is_encoder_decoder and self.conditioning == "memory":
            start = torch.zeros(1, 1, dtype=torch.long)
            self.writer.generate(start, encoder_hidden_states=states, eos_token_id=1, **arguments)
            return
        if not self.writer.config.is_encoder_decoder:
            self.writer.generate(inputs_embeds=states, eos_token_id=1, **arguments)
            return
        from transformers.modeling_outputs import BaseModelOutput

        arguments |= {"decoder_start_token_id": 0, "eos_token_id": 1}
        if self.conditioning == "memory":
            self.writer.generate(encoder_outputs=BaseModelOutput(last_hidden_state=states), **arguments)
        else:
            self.writer.generate(inputs_embeds=states, **arguments)


@pytest.mark.parametrize(
    ("writer", "conditioning"),
    [
        (T5_GATED, "add"),
        (T5_GATED, "prepend"),
        (T5_GATED, "memory"),
        (DECODERS["gpt2"], "add"),
        (DECODERS["gpt2"], "prepend"),
        (GPT2_CROSS, "memory"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_the_cost_of_a_hybrid_equals_torchs_count_in_each_phase(writer, conditioning):
    q = 5
    hybrid = Hybrid(writer, conditioning, q)
    cost = costs.generation_cost(
        writer.to_dict(), q, T, llm_config=T5_GATED.to_dict(), llm_tokens=P, conditioning=conditioning,
        projector_shape=(24, 16, 24), aligned=conditioning == "add",
    )  # fmt: skip
    prefill, total = counted(lambda: hybrid(1)), counted(lambda: hybrid(T))
    assert cost.prefill_flops == prefill
    assert cost.decode_flops == total - prefill


MODES = {
    "add": {}, "replace": {}, "prepend": {}, "memory": {}, "cross_attention": {},
    "prepend, 4 of z": {"pool": 4}, "prepend, 0.3 of z": {"pool": 0.3}, "prepend, all of z": {"pool": 64},
    "cross_attention, every 2nd": {"cross_every": 2}, "cross_attention, every 3rd": {"cross_every": 3},
}  # fmt: skip
EVERY = bool(os.environ.get("LLM2SLM_MATRIX"))  # else pairs 2, 3, ... have one kind of tokenizers each, in turn
PAIRS = [("flan", "gpt2"), ("gpt2", "t5"), ("bert", "opt"), ("bart", "t5gemma"), ("gemma3", "llama")]  # in every mode
TUNES = ("prompt", "prefix")


def fits(slm: str, mode: str) -> bool:
    if mode.startswith("memory"):
        return slm in ("gpt2", "t5", "t5gemma")
    return not mode.startswith("cross_attention") or slm in ("gpt2", "opt", "llama")


def system(folder, llm: str, slm: str, mode: str, tokenizers: Tokenizers, layer=None, prefix="", tune="", **projector):
    torch.manual_seed(3)
    cfg = tiny_model_config(folder, llm, slm, mode.partition(",")[0], tokenizers, **projector)
    cfg.slm.tune = tune or cfg.slm.tune
    for name, value in MODES[mode].items():
        setattr(cfg, name, value)
    cfg.llm.layer, cfg.llm.prefix = layer, prefix
    cfg.llm.attn_implementation = cfg.slm.attn_implementation = "eager"
    return build_model(cfg).eval()


def require_torchs_count(model) -> None:
    """For prefill alone (one token) and for a whole answer, with the arguments that the benchmark uses."""
    prompt = LLM_TEXTS[0]
    batch = model.collator.batch_of_texts([prompt])
    for tokens in (1, T):
        condition = Condition("grid", 1, P, (Request((prompt,), tokens),))
        found = counted(lambda n=tokens: model.generate(batch, max_new_tokens=n, min_new_tokens=n))
        assert workload_cost(GenerateDecoder(model), condition).flops == found, tokens


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


WHOLE = PAIRS if EVERY else PAIRS[:1]
CASES = [
    *product(WHOLE, MODES, Tokenizers),
    *((*case, kind) for case, kind in zip(product(PAIRS[len(WHOLE) :], MODES), cycle(Tokenizers))),
]


def kind_of(case: tuple[tuple[str, str], str, Tokenizers]) -> tuple[str, ...]:
    """Each mode once, with the first pair; each other pair once."""
    pair, mode, _ = case
    return (mode,) if pair == PAIRS[0] else pair


@pytest.mark.parametrize(
    ("pair", "mode", "tokenizers"),
    first_of_each([case for case in CASES if fits(case[0][1], case[1])], kind_of),
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_cost_of_every_mode_of_a_real_hybrid(zoo, pair, mode, tokenizers):
    require_torchs_count(system(zoo, *pair, mode, tokenizers))


READ = [
    {"layer": [0, 1, -1]},
    {"layer": 0},
    {"layer": 1},
    {"hidden": 0},
    {"hidden": 11, "norm": False},
    {"prefix": "the dog says: "},
]


@pytest.mark.parametrize(
    ("mode", "arguments", "tokenizers"),
    representatives(
        [
            (mode, arguments, tokenizers)
            for (i, mode), (j, arguments), (k, tokenizers) in product(
                enumerate(["add", "cross_attention", "prepend, 4 of z"]),
                enumerate(READ),
                enumerate([Tokenizers.shared, Tokenizers.llm_tokens]),
            )
            if EVERY or (i + j + k) % 2 == 0  # every two of them occur together
        ],
        lambda case: case[0] == "add",
    ),
    ids=str,
)
def test_the_cost_of_every_layer_choice_and_projector(zoo, mode, arguments, tokenizers):
    require_torchs_count(system(zoo, "gpt2", "pythia", mode, tokenizers, **arguments))


VIRTUAL = [
    (slm, mode, tune)
    for slm, mode, tune in product(["gpt2", "t5", "bart", "llama"], ["add", "prepend, 4 of z", "memory"], TUNES)
    if fits(slm, mode) and (mode, tune) != ("memory", "prompt")
]


@pytest.mark.parametrize(("slm", "mode", "tune"), first_of_each(VIRTUAL, lambda case: case[1:]))
def test_the_cost_of_virtual_tokens_of_a_hybrid(zoo, slm, mode, tune):
    require_torchs_count(system(zoo, "flan", slm, mode, Tokenizers.offsets, tune=tune))


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("slm", representatives(["gpt2", "t5", "bart", "t5gemma", "llama"], ["gpt2", "t5"]))
def test_the_cost_of_virtual_tokens_of_an_slm_alone(zoo, slm, tune):
    cfg = tiny_model_config(zoo, "flan", slm, tokenizers=Tokenizers.offsets, kind=SystemKind.slm)
    cfg.slm.tune, cfg.slm.attn_implementation = tune, "eager"
    require_torchs_count(build_model(cfg).eval())


def test_the_cost_of_an_slm_whose_embeddings_are_narrower_than_its_blocks(zoo):
    """As OPT-350m: gated layers compute keys and values from z, which has the embeddings' width."""
    cfg = tiny_model_config(zoo, "flan", "opt", "cross_attention")
    cfg.llm.attn_implementation = cfg.slm.attn_implementation = "eager"
    cfg.slm.init, cfg.slm.config = Init.random, {"word_embed_proj_dim": 6}
    model = build_model(cfg).eval()
    assert model.crossing.layers[0].key.weight.shape == (16, 6)
    require_torchs_count(model)


def hybrid_cost(writer, conditioning: str, **arguments) -> costs.Cost:
    return costs.generation_cost(
        writer.to_dict(), 5, 2, llm_config=T5_GATED.to_dict(), llm_tokens=P, conditioning=conditioning,
        projector_shape=(24, 16, 24), **arguments,
    )  # fmt: skip


def test_the_bytes_that_a_hybrid_adds():
    plain = hybrid_cost(DECODERS["gpt2"], "add")
    mapped = hybrid_cost(DECODERS["gpt2"], "add", embedding_width=24)
    assert mapped.prefill_bytes - plain.prefill_bytes == 4 * 24 * 24
    assert mapped.decode_bytes == plain.decode_bytes
    crossed = hybrid_cost(DECODERS["gpt2"], "cross_attention", cross_every=2)  # one layer of three
    assert crossed.prefill_bytes - plain.prefill_bytes == 4 * 4 * 24 * 24
    assert crossed.decode_bytes - plain.decode_bytes == 4 * (2 * 24 * 24 + 2 * 24 * P)
    pooled = hybrid_cost(DECODERS["gpt2"], "prepend", pooled=3)
    prepended = hybrid_cost(DECODERS["gpt2"], "prepend")
    assert prepended.decode_bytes - pooled.decode_bytes == 4 * 3 * 2 * 24 * (P - 3)


def test_cross_attention_costs_only_where_z_is_attended_to():
    plain = costs.generation_cost(DECODERS["gpt2"].to_dict(), P, T)
    assert costs.generation_cost(GPT2_CROSS.to_dict(), P, T) == plain


def test_the_cost_of_a_linear_projector_and_of_longer_answers():
    assert costs.projector_weights((24, 0, 16)) == 24 * 16
    long, short = (costs.generation_cost(ENCODER_DECODERS["t5"].to_dict(), P, t) for t in (20, 10))
    assert long.prefill_flops == short.prefill_flops
    assert long.decode_flops > 2 * short.decode_flops  # the cache grows


def test_unknown_families_are_refused():
    assert not families.supported({"model_type": "mamba"}, generates=False)
    with pytest.raises(UserError, match=r"model_type 'mamba': .*known: bart, bert"):
        families.encoder_stack({"model_type": "mamba"})
    assert not families.supported(ENCODERS["bert"].to_dict())  # an encoder cannot generate
    with pytest.raises(UserError, match=r"model_type 'bert': .*known: bart, gemma"):
        costs.generation_cost(ENCODERS["bert"].to_dict(), 3, 3)
    with pytest.raises(ValueError, match="needs llm_config"):
        costs.generation_cost(ENCODER_DECODERS["t5"].to_dict(), 3, 3, conditioning="add")


@pytest.mark.parametrize("mapped", [False, True])
def test_the_cost_of_kv_equals_torchs_count_in_each_phase(tmp_path, mapped):
    """Counted on the model itself: the LLM's blocks up to the last used one, the maps, the steps of the SLM."""
    cfg = tiny_model_config(tmp_path, "llama", "gpt2" if mapped else "llama", "kv", kv_blocks=[1, 1, 2, 3])
    model = build_model(cfg).eval()
    assert model.config.kv["mapped"] == mapped
    batch = model.collator.batch_of_texts(["the old dog sees a house."])
    q, p = batch.slm_ids_BQ.shape[1], batch.llm_ids_BP.shape[1]
    weight = model.projector.weight
    cost = costs.generation_cost(
        model.slm.config.to_dict(), q, T, llm_config=model.encoder.body.config.to_dict(), llm_tokens=p,
        llm_layers=model.encoder.blocks, conditioning="kv",
        kv_mapped=None if weight is None else tuple(weight.shape),
    )  # fmt: skip
    assert model.encoder.blocks == 3
    prefill, total = (counted(lambda n=n: model.generate(batch, max_new_tokens=n, min_new_tokens=n)) for n in (1, T))
    assert (cost.prefill_flops, cost.flops) == (prefill, total)
