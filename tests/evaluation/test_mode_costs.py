"""The cost of lossless and cascade decoding against torch's count of loops that draft, verify and regenerate.

The loops are written with plain transformers modules. Drafts are the LLM's tokens up to a wrong one, so that the LLM,
which verifies them by its logits, accepts exactly the numbers of a schedule; the SLM computes all its steps.
"""

import random

import pytest
import torch
from counted import DECODERS, ENCODER_DECODERS, T5_GATED, P, build, counted
from sampling import first_few, representatives
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from llm2slm.evaluation.benchmark.costs import Setup, generation_cost, prepared
from llm2slm.evaluation.benchmark.mode_costs import Drafting, after_encoding, cascade_cost, lossless_cost

Q, LOWER = 5, 1
"""Prompt tokens of the SLM; blocks of a decoder-only LLM whose output represents the prompt."""
IDS = torch.arange(3, 3 + P)[None]


class EncoderDecoder:
    """An encoder-decoder that encodes, then processes tokens of its decoder with a cache."""

    def __init__(self, config) -> None:
        self.model, self.states = build(config), None

    def encode(self, ids=None, embeds=None):
        self.states = self.model.get_encoder()(input_ids=ids, inputs_embeds=embeds).last_hidden_state
        return self.states

    def start(self):
        """The logits of the first token are those of the start token, which `process` computes."""
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return [0], None

    def process(self, tokens, logits):
        out = self.model.decoder if hasattr(self.model, "decoder") else self.model.model.decoder
        ids = torch.tensor([tokens])
        found = out(
            input_ids=ids, encoder_hidden_states=self.states, past_key_values=self.cache, use_cache=True
        ).last_hidden_state
        return self.model.lm_head(found[:, -logits:])[0]

    @property
    def kept(self):
        return self.cache.self_attention_cache.get_seq_length()


class Llama:
    """A llama whose lower blocks process the prompt first, and the others when they are needed."""

    def __init__(self, config) -> None:
        self.model, self.cache = build(config), DynamicCache()
        self.positions = torch.arange(P)[None]
        self.mask = torch.full((P, P), float("-inf")).triu(1)[None, None]

    def _blocks(self, states, blocks):
        rotary = self.model.model.rotary_emb(states, self.positions)
        for block in blocks:
            states = block(
                states, attention_mask=self.mask, position_ids=self.positions, past_key_values=self.cache,
                use_cache=True, position_embeddings=rotary,
            )  # fmt: skip
        return states

    def encode(self, ids):
        self.states = self._blocks(self.model.model.embed_tokens(ids), self.model.model.layers[:LOWER])
        return self.states

    def again(self):
        self.cache = DynamicCache()
        self.encode(IDS)

    def start(self):
        """No token to process: the logits of the first token are those of the last prompt token."""
        states = self._blocks(self.states, self.model.model.layers[LOWER:])
        return [], self.model.lm_head(self.model.model.norm(states[:, -1:]))[0]

    def process(self, tokens, logits):
        out = self.model(torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, logits_to_keep=logits)
        return out.logits[0]

    @property
    def kept(self):
        return self.cache.get_seq_length()


class Gpt2:
    """A decoder-only SLM."""

    def __init__(self, config) -> None:
        self.model = build(config)

    def encode(self, embeds):
        self.embeds = embeds

    def start(self):
        self.cache = DynamicCache()
        out = self.model(inputs_embeds=self.embeds, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return [], out.logits[0]

    process = Llama.process
    kept = Llama.kept


class Hybrid:
    """LLM encoder, projector, alignment and SLM; the verifier is the LLM itself."""

    def __init__(self, llm_config, slm_config) -> None:
        decoder_only = not llm_config.is_encoder_decoder
        self.llm = Llama(llm_config) if decoder_only else EncoderDecoder(llm_config)
        self.slm = EncoderDecoder(slm_config) if slm_config.is_encoder_decoder else Gpt2(slm_config)
        self.projector = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 24))
        self.setup = Setup(
            llm_config=llm_config.to_dict(), llm_tokens=P, conditioning="add", projector_shape=(24, 16, 24),
            aligned=True, llm_layers=LOWER if decoder_only else None,
        )  # fmt: skip
        self.configs = llm_config.to_dict(), slm_config.to_dict()

    def prepared(self):
        return prepared(self.configs[1], Q, self.setup)

    def prefill(self):
        """Up to the logits of the first drafted token."""
        z = self.projector(self.llm.encode(IDS))
        embeds = torch.randn(1, Q, 24) + torch.rand(1, Q, P) @ z
        self.slm.encode(embeds=embeds)
        tokens, logits = self.slm.start()
        return self.slm.process(tokens, 1) if logits is None else logits

    def encode_again(self):
        if isinstance(self.llm, Llama):
            self.llm.again()
        else:
            self.llm.encode(IDS)

    def answer(self, tokens, *, shared=True):
        """The LLM's greedy response to the prompt, which the hybrid has encoded."""
        if not shared:
            self.encode_again()
        fed, logits = self.llm.start()
        found = []
        while len(found) < tokens:
            logits = self.llm.process(fed, 1) if fed else logits
            fed = [int(logits[-1].argmax())]
            found += fed
        return found

    def lossless(self, truth, schedule, drafted, *, shared):
        """Drafts and verifies; the schedule gives the number of accepted tokens of each draft."""
        self.prefill()
        if not shared:
            self.encode_again()
        fed, logits = self.llm.start()
        start_slm, start_llm = self.slm.kept, len(fed)
        found, pending = [], []
        for number, accepted in enumerate(schedule):
            position, draft = len(found), []
            for step in range(drafted):
                if number or step:  # the prefill has produced the first one
                    self.slm.process(pending, 1)
                right = truth[position + step]
                draft += [right if step < accepted else (right + 1) % 50]
                pending = [draft[-1]]
            if fed + draft:
                more = self.llm.process(fed + draft, len(fed + draft))
                logits = more if logits is None else torch.cat([logits, more])
            chosen = logits.argmax(-1).tolist()
            matched = next((i for i, token in enumerate(draft) if token != chosen[i]), drafted)
            assert matched == accepted
            found += [*draft[:matched], chosen[matched]]
            crop(self.llm.cache, (P if start_llm == 0 else 1) + len(found) - 1)
            fed, logits = [found[-1]], None
            pending = found[-2:] if matched == drafted and drafted else found[-1:]
            crop(self.slm.cache, start_slm + len(found) - len(pending))
        return found


def crop(cache, length):
    kept = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    if kept.get_seq_length() > length:
        kept.crop(length - kept.get_seq_length())


PAIRS = {
    "t5-gpt2": (T5_GATED, DECODERS["gpt2"]),
    "llama-t5": (DECODERS["llama"], T5_GATED),
    "llama-gpt2": (DECODERS["llama"], DECODERS["gpt2"]),
    "t5-t5": (ENCODER_DECODERS["t5"], T5_GATED),
}
"""LLM and SLM."""


def model_of(name):
    torch.manual_seed(1)
    return Hybrid(*PAIRS[name])


def lossless_count(name, schedule, drafted, shared):
    hybrid = model_of(name)
    with torch.no_grad():
        hybrid.prefill()
        truth = hybrid.answer(sum(schedule) + len(schedule) + drafted)
    return counted(lambda: check(model_of(name), truth, schedule, drafted, shared))


def check(hybrid, truth, schedule, drafted, shared):
    found = hybrid.lossless(truth, schedule, drafted, shared=shared)
    assert found == truth[: len(found)]


def predicted(name, tokens, shared, drafting):
    hybrid = model_of(name)
    return lossless_cost(
        hybrid.prepared(), hybrid.configs[0], P, tokens, drafting, llm_layers=hybrid.setup.llm_layers, shared=shared
    )


@pytest.mark.parametrize("shared", first_few([True, False], 1), ids=["shared", "again"])
@pytest.mark.parametrize(
    ("name", "drafted", "accepted"),
    representatives(
        [(name, *draft) for draft in ((4, 2), (3, 3), (2, 0)) for name in PAIRS],
        [("t5-gpt2", 4, 2), ("llama-t5", 3, 3), ("t5-gpt2", 2, 0)],
    ),
)
def test_the_cost_of_lossless_decoding_with_equal_drafts_is_exact(name, shared, drafted, accepted):
    schedule = [accepted] * 3
    first, total = (lossless_count(name, rounds, drafted, shared) for rounds in (schedule[:1], schedule))
    cost = predicted(name, 3 * (accepted + 1), shared, Drafting(drafted, accepted, whole=float(accepted == drafted)))
    assert cost.prefill_flops == pytest.approx(first, rel=1e-12)
    assert cost.flops == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("name", first_few(PAIRS, 1))
def test_the_cost_of_lossless_decoding_with_random_acceptance(name):
    """Tokens accepted at a constant rate: the mean number of accepted tokens gives the mean count within 2 %."""
    drafted, rate, found, expected = 6, 0.75, 0, 0
    for seed in range(2):
        rng = random.Random(seed)
        schedule = [next((i for i in range(drafted) if rng.random() > rate), drafted) for _ in range(10)]
        tokens, accepted = sum(schedule) + len(schedule), sum(schedule) / len(schedule)
        expected += lossless_count(name, schedule, drafted, shared=True)
        found += predicted(name, tokens, True, Drafting(drafted, accepted)).flops
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("rate", "drafted"), [(0.9, 8), (0.5, 3), (0.2, 4)])
def test_the_share_of_whole_drafts_follows_from_the_mean(rate, drafted):
    accepted = sum(rate**k for k in range(1, drafted + 1))
    assert Drafting(drafted, accepted).accepted_whole == pytest.approx(rate**drafted, rel=1e-4)
    assert Drafting(drafted, drafted).accepted_whole == 1
    assert Drafting(drafted, 0).accepted_whole == pytest.approx(0, abs=1e-6)


def test_a_draft_accepts_no_more_tokens_than_it_has():
    with pytest.raises(ValueError, match="accepted=3: must be between 0 and drafted=2"):
        Drafting(2, 3)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "again"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_cost_of_the_llm_after_its_encoding(name, shared):
    """In a cascade, multiplied by the share of the responses that the LLM generates."""
    tokens, model = 9, model_of(name)
    hybrid = counted(model.prefill)
    anew = counted(lambda: model.answer(tokens, shared=shared))
    llm, setup = model.configs[0], model.setup
    cost = after_encoding(llm, P, setup.llm_layers, shared=shared).response(tokens)
    assert cost.flops == anew
    ready = model.prepared()
    assert ready.response(1).flops == hybrid
    cascade = cascade_cost(ready, llm, P, tokens, 0.25, llm_layers=setup.llm_layers, shared=shared)
    assert cascade.flops == pytest.approx(ready.response(tokens).flops + 0.25 * anew)


@pytest.mark.parametrize("name", PAIRS)
def test_the_extremes_of_a_cascade_cost_the_hybrid_or_the_llm(name):
    model, tokens = model_of(name), 9
    arguments = {"llm_layers": model.setup.llm_layers}
    none, every = (cascade_cost(model.prepared(), model.configs[0], P, tokens, s, **arguments) for s in (0, 1))
    hybrid = model.prepared().response(tokens)
    assert (none.flops, none.prefill_bytes, none.decode_bytes) == (
        hybrid.flops, hybrid.prefill_bytes, hybrid.decode_bytes,
    )  # fmt: skip
    whole = generation_cost(model.configs[0], P, tokens)
    encoder = hybrid.prefill[0]
    assert every.flops == pytest.approx(hybrid.flops + whole.flops - encoder.flops)
    assert every.weights > hybrid.weights and every.weights > whole.weights


def test_weights_are_read_if_any_row_needs_them():
    model = model_of("t5-gpt2")
    cost = cascade_cost(model.prepared(), model.configs[0], P, 9, 0.5)
    step = cost.decode[-1]
    values = step.rows * step.cache * 4
    assert cost.bytes_of(step) == 0.5 * 8 * step.weights * 4 + values
    assert cost.bytes_of(step, batch=2) == 0.75 * 8 * step.weights * 4 + 2 * values


def test_one_token_needs_no_draft():
    """Its cost is that of the hybrid's first step and of one step of the LLM."""
    model = model_of("t5-gpt2")
    cost = lossless_cost(model.prepared(), model.configs[0], P, 1, Drafting(8, 6))
    llm = generation_cost(model.configs[0], P, 1)
    assert cost.decode == ()
    assert cost.flops == pytest.approx(model.prepared().response(1).flops + llm.flops - llm.prefill[0].flops)
