"""Lossless decoding: the output is that of the LLM, independent of the drafts."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deep_models import write
from matrix import READERS
from sampling import representatives
from test_loop import TEXTS
from torch import Tensor

from llm2slm.config import LLMConfig
from llm2slm.decoding import choose
from llm2slm.decoding.choice import Choice
from llm2slm.decoding.compiled import Compiled
from llm2slm.decoding.draft import Draft, SameTokens
from llm2slm.decoding.forward import Forward
from llm2slm.decoding.int8 import Int8
from llm2slm.decoding.lossless import LENGTHS, LosslessDecoder
from llm2slm.decoding.products import Products
from llm2slm.decoding.reading import read, shares_the_encoding
from llm2slm.decoding.verify import accepted
from llm2slm.models.build import build_llm
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_tokenizer
from llm2slm.types import Decoding, UserError

LENGTH = 14
PAIRS = [
    ("t5", "t5", "add", "shared"), ("t5", "t5", "memory", "shared"), ("bart", "gpt2", "prepend", "shared"),
    ("gpt2", "gpt2", "add", "shared"), ("gpt2", "gpt2", "kv", "shared"), ("llama", "t5", "memory", "shared"),
    ("qwen2", "llama", "cross_attention", "shared"), ("pythia", "opt", "replace", "shared"),
    ("t5", "t5", "add", "offsets"), ("llama", "gpt2", "add", "offsets"), ("t5", "llama", "replace", "llm_tokens"),
]  # fmt: skip
"""With the same tokenizer, drafts are compared as tokens (PAIRS[4]), else as texts (PAIRS[9])."""

NO_PRODUCTS = SimpleNamespace(reading=Products({}))
"""The `forward` of a drafter that computes nothing."""


class Scripted:
    """Drafts the responses of the LLM, with some tokens replaced."""

    forward = NO_PRODUCTS

    def __init__(self, wrong: float, seed: int) -> None:
        self.wrong, self.random, self.rows = wrong, random.Random(seed), Tensor()

    def start(self, prompt: Any, new_tokens: int) -> None:
        self.rows = self.responses

    def keep(self, rows_K: Tensor) -> None:
        self.rows = self.rows[rows_K]

    def draft(self, ids_BT: Tensor, counts_B: Tensor, active_B: Tensor, length: int, choice: Choice) -> Draft:
        columns = counts_B.unsqueeze(1) + torch.arange(length)
        padded = torch.cat([self.rows, self.rows.new_full((len(self.rows), length + 1), 5)], dim=1)
        ids = padded.gather(1, columns.clamp(max=padded.shape[1] - 1))
        other = torch.tensor([[self.random.random() < self.wrong for _ in row] for row in ids])
        return Draft(torch.where(other, (ids + 1) % 60, ids))


class Uniform:
    """Samples drafts from some tokens, each with the same probability."""

    forward = NO_PRODUCTS

    def __init__(self, ids: list[int], words: int) -> None:
        self.probabilities_V = torch.zeros(words).index_fill(0, torch.tensor(ids), 1 / len(ids))

    def start(self, prompt: Any, new_tokens: int) -> None:
        pass

    def draft(self, ids_BT: Tensor, counts_B: Tensor, active_B: Tensor, length: int, choice: Choice) -> Draft:
        rows_BV = self.probabilities_V.expand(len(ids_BT), -1)
        ids_BN = torch.multinomial(rows_BV, length, replacement=True)
        return Draft(ids_BN, rows_BV.unsqueeze(1).expand(-1, length, -1))


@pytest.mark.parametrize("names", representatives(PAIRS, [PAIRS[4], PAIRS[9]], whole=True), ids="-".join)
def test_greedy_responses_equal_those_of_the_llm(names: tuple[str, ...], pair: Any) -> None:
    hybrid, llm = pair(*names)
    decoder = LosslessDecoder(hybrid, llm, (2, 4))
    assert decoder.same_tokens == (names[3] == "shared")
    for arguments in ({}, {"min_new_tokens": 9}, {"no_repeat_ngram_size": 0}, {"repetition_penalty": 1.0}):
        for texts in (TEXTS[:1], TEXTS):
            expected = llm.generate(llm.collator.batch_of_texts(texts), max_new_tokens=LENGTH, **arguments)
            found = decoder.generate(decoder.batch(texts), max_new_tokens=LENGTH, **arguments)
            assert torch.equal(found, expected), arguments
    assert decoder.counts.rows == 4 * (1 + len(TEXTS))
    assert decoder.counts.verifications > decoder.counts.rows


CASES = 12
"""Random batches of a pair in the default run."""


@pytest.mark.parametrize(
    ("names", "wrong"),
    representatives(
        [(names, wrong) for names in (PAIRS[1], PAIRS[6]) for wrong in (0.0, 0.15, 0.6, 1.0)],
        [(PAIRS[6], 0.15)],  # only wrong drafts: test_verifications_and_accepted_tokens_are_counted
    ),
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_responses_do_not_depend_on_the_drafts(
    names: tuple[str, ...], wrong: float, pair: Any, request: pytest.FixtureRequest
) -> None:
    """Random prompts, batch sizes, draft lengths, ends and limits; drafts from always right to always wrong."""
    hybrid, llm = pair(*names)
    draws = random.Random(f"{names} {wrong}")
    words = [word for text in TEXTS for word in text.split()]
    for case in range(CASES * (4 if request.config.getoption("--slow") else 1)):
        lengths = tuple(sorted(draws.sample(range(1, 9), draws.randint(1, 3))))
        decoder = LosslessDecoder(hybrid, llm, lengths)
        decoder.drafter = Scripted(wrong, case)
        texts = [" ".join(draws.choices(words, k=draws.randint(1, 9))) for _ in range(draws.randint(1, 5))]
        batch, limit = decoder.batch(texts), draws.randint(1, 20)
        llm.generation_config.eos_token_id = None
        ends = draws.choices(llm.generate(batch[1], max_new_tokens=20).flatten().tolist(), k=2)
        ends = draws.choice([ends, ends[:1], []])
        llm.generation_config.eos_token_id = ends or None
        expected = llm.generate(batch[1], max_new_tokens=limit)
        decoder.drafter.responses = llm.generate(batch[1], max_new_tokens=40)
        arrived: dict[int, list[int]] = {row: [] for row in range(len(texts))}

        def receive(rows_K: Tensor, ids_KN: Tensor, counts_K: Tensor, to: dict[int, list[int]] = arrived) -> None:
            for row, ids, count in zip(rows_K.tolist(), ids_KN.tolist(), counts_K.tolist(), strict=True):
                to[row] += ids[:count]

        assert torch.equal(decoder.generate(batch, max_new_tokens=limit, on_tokens=receive), expected)
        for row, ids in enumerate(expected.tolist()):
            known = next((n for n, token in enumerate(ids, 1) if token in ends), len(ids))
            assert arrived[row] == ids[:known]
        if wrong == 0:
            assert decoder.counts.whole == len(texts)
        elif wrong == 1:
            assert decoder.counts.accepted == 0


def test_verifications_and_accepted_tokens_are_counted(pair: Any) -> None:
    """Right drafts of 3 for 13 tokens: 3 + 1 three times, then 1; wrong ones: a verification for each token."""
    hybrid, llm = pair(*PAIRS[1])
    llm.generation_config.eos_token_id = None
    for wrong, expected in ((0.0, (4, 10, 1)), (1.0, (13, 0, 0))):
        decoder = LosslessDecoder(hybrid, llm, (3,))
        decoder.drafter = Scripted(wrong, 1)
        batch = decoder.batch(TEXTS[:1])
        decoder.drafter.responses = llm.generate(batch[1], max_new_tokens=40)
        assert decoder.generate(batch, max_new_tokens=13).shape == (1, 13)
        assert (decoder.counts.verifications, decoder.counts.accepted, decoder.counts.whole) == expected


@pytest.mark.parametrize(
    ("rows", "wrong_rows", "expected"),
    [(2, 0, [4, 8, 6]), (2, 2, [4, 2, 1, 1]), (2, 1, [4, 4, 4]), (4, 3, [4, 4, 4]), (5, 4, [4, 2, 1])],
)
def test_draft_length_adapts(rows: int, wrong_rows: int, expected: list[int], pair: Any) -> None:
    """Grows after drafts that are right in all rows; shrinks if less than a quarter of the drafted tokens is right."""
    hybrid, llm = pair(*PAIRS[1])
    llm.generation_config.eos_token_id = None
    decoder = LosslessDecoder(hybrid, llm, (1, 2, 4, 8))
    decoder.drafter = Scripted(0.0, 1)
    lengths, draft = [], decoder.drafter.draft
    decoder.drafter.draft = lambda *given: lengths.append(given[3]) or draft(*given)
    batch = decoder.batch((TEXTS * 5)[:rows])
    responses = llm.generate(batch[1], max_new_tokens=40)
    right = torch.arange(rows).unsqueeze(1) >= wrong_rows
    decoder.drafter.responses = torch.where(right, responses, (responses + 1) % 60)
    decoder.generate(batch, max_new_tokens=20)
    assert lengths[: len(expected)] == expected


@pytest.mark.parametrize(("lengths", "first"), [(LENGTHS, 4), ((3,), 3), ((1, 2), 2), ((5, 8), 5)])
def test_first_draft_length(lengths: tuple[int, ...], first: int, pair: Any) -> None:
    decoder = LosslessDecoder(*pair(*PAIRS[1]), lengths)
    assert decoder.lengths[decoder.size] == first


def test_sampling_has_the_llms_distribution(pair: Any) -> None:
    """Pairs of first two tokens, against their exact probabilities under the LLM (chi-square, 0.1 % level)."""
    hybrid, llm = pair(*PAIRS[1])
    llm.generation_config.no_repeat_ngram_size = None
    decoder = LosslessDecoder(hybrid, llm, (2,))
    batch, draws = decoder.batch(TEXTS[:1]), 4000
    exact: dict[tuple[int, ...], float] = {}
    for first, p in top_4(llm, batch[1], []).items():
        for second, q in top_4(llm, batch[1], [first]).items():
            exact[first, second] = p * q
    decoder.drafter = Uniform(sorted({second for _, second in exact} | {9}), llm.slm.config.vocab_size)
    settings = {"do_sample": True, "temperature": 0.9, "top_k": 4, "eos_token_id": None}
    torch.manual_seed(1)
    ids = decoder.generate(batch, max_new_tokens=2, num_return_sequences=draws, **settings)
    found = Counter(map(tuple, ids.tolist()))
    assert set(found) <= set(exact) and len(exact) == 16
    statistic = sum((found[pair_] - draws * p) ** 2 / (draws * p) for pair_, p in exact.items())
    assert statistic < 37.7  # 15 degrees of freedom
    assert 0 < decoder.counts.accepted < draws  # drafts were accepted, and rejected


def test_sampling_does_not_depend_on_earlier_batches(pair: Any) -> None:
    """A resumed job samples the same responses; the draft length of greedy decoding persists."""
    hybrid, llm = pair(*PAIRS[1])
    decoder = LosslessDecoder(hybrid, llm, (1, 2, 4))
    batch, settings = decoder.batch(TEXTS), {"do_sample": True, "temperature": 2.0, "max_new_tokens": 12}
    found = []
    for size in (0, 2):
        decoder.size = size
        torch.manual_seed(1)
        found.append(decoder.generate(batch, **settings))
    assert torch.equal(*found)


def test_drafts_of_another_tokenizer_stay_within_their_buffers(pair: Any, monkeypatch: Any) -> None:
    """An almost full row, next to one that has many tokens to catch up."""
    hybrid, llm = pair(*PAIRS[9])
    decoder = LosslessDecoder(hybrid, llm, (2,))
    drafter, batch = decoder.drafter, decoder.batch(TEXTS[:2])
    drafter.start(hybrid.prefill(batch[0]), 60)
    capacity = drafter.state.session.layout.capacity - drafter.state.length
    full, behind = [9] * (capacity - 3), [8] * (capacity // 2)
    drafter._continued([full[:-1], []], [True, True], 2)
    used, advance = [], drafter.state.session.advance
    monkeypatch.setattr(
        drafter.state.session, "advance", lambda ids, slots: used.append(int(slots.max())) or advance(ids, slots)
    )
    drafted = drafter._continued([full, behind], [True, True], 2)
    assert max(used) < drafter.state.session.layout.capacity
    alone = LosslessDecoder(hybrid, llm, (2,)).drafter
    alone.start(hybrid.prefill(decoder.batch(TEXTS[:1])[0]), 60)
    assert drafted[0] == alone._continued([full], [True], 2)[0]


def top_4(llm: LLM2SLM, batch: Any, before: list[int]) -> dict[int, float]:
    """The probabilities of the four most probable tokens after a response, at temperature 0.9."""
    labels = torch.tensor([[*before, 5]])
    with torch.no_grad():
        scores = llm.logits(replace(batch, labels_BT=labels))[0, len(before)] / 0.9
    values, ids = scores.topk(4)
    return dict(zip(ids.tolist(), values.softmax(-1).tolist(), strict=True))


def test_accepted_samples_have_the_distribution_of_the_llm() -> None:
    """Two tokens from drafters of any distribution have the LLM's distribution (chi-square, 0.1 % level)."""
    generator = torch.Generator().manual_seed(3)
    rows, words = 20000, 4
    for sharpness in (0.0, 1.0, 4.0):
        scores_QV = torch.randn(3, words, generator=generator)
        drafter_NV = (sharpness * torch.randn(2, words, generator=generator)).softmax(-1)
        torch.manual_seed(5)
        ids_BN = torch.multinomial(drafter_NV, rows, replacement=True).T
        draft = Draft(ids_BN, drafter_NV.expand(rows, 2, words))
        ids_BQ, accepted_B = accepted(draft, scores_QV.expand(rows, 3, words), sampled=True)
        for position in range(3):
            reached = accepted_B >= position
            counts = torch.bincount(ids_BQ[reached, position], minlength=words)
            expected = scores_QV[position].softmax(-1) * reached.sum()
            assert ((counts - expected) ** 2 / expected).sum() < 16.3  # 3 degrees of freedom
    ids_BQ, accepted_B = accepted(Draft(ids_BN), scores_QV.expand(rows, 3, words), sampled=True)
    counts = torch.bincount(ids_BQ[:, 0], minlength=words)
    expected = scores_QV[0].softmax(-1) * rows
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


@pytest.mark.parametrize(
    ("llm", "slm", "mode", "layer"),
    [("t5", "t5", "add", None), ("bart", "gpt2", "prepend", None), ("gpt2", "gpt2", "add", 1),
     ("llama", "t5", "memory", [1, 2]), ("gpt2", "gpt2", "kv", None), ("qwen2", "llama", "cross_attention", 1)],
)  # fmt: skip
def test_the_prompt_is_encoded_once(llm: str, slm: str, mode: str, layer: Any, pair: Any) -> None:
    hybrid, whole = pair(llm, slm, mode, layer=layer)
    decoder = LosslessDecoder(hybrid, whole)
    batch, llm_batch = decoder.batch(TEXTS[:3])
    assert shares_the_encoding(hybrid, whole, batch, llm_batch)
    runs = Counter()
    body = whole.slm.get_encoder() if llm in READERS else whole.slm.base_model
    block = next(
        module for module in body.modules() if type(module).__name__.endswith(("Block", "EncoderLayer", "Layer"))
    )
    block.register_forward_hook(lambda *_: runs.update(["block"]))
    prompt, llm_prompt, started = read(hybrid, Forward(whole), batch, llm_batch, 2)
    assert runs["block"] == 1
    expected = hybrid.prefill(batch).repeated(2)
    if expected.gated_states is not None:
        pairs = zip(prompt.gated_states.keys_values, expected.gated_states.keys_values, strict=True)
        torch.testing.assert_close(*[[t for pair_ in side for t in pair_] for side in zip(*pairs, strict=True)])
    torch.testing.assert_close(prompt.states_BQD, expected.states_BQD, atol=2e-5, rtol=1e-4)
    if expected.cache is not None:
        layers = zip(prompt.cache.new(6).layers, expected.cache.new(6).layers, strict=True)
        for one, other in layers:
            torch.testing.assert_close((one.keys, one.values), (other.keys, other.values), atol=2e-5, rtol=1e-4)
    _, logits_BV = Forward(whole).start(llm_prompt, 1) if started is None else started
    _, alone_BV = Forward(whole).start(whole.prefill(llm_batch).repeated(2), 1)
    torch.testing.assert_close(logits_BV, alone_BV, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("reason", representatives(["weights", "last layer", "tokens"], ["tokens"]))
def test_the_prompt_is_encoded_twice_if_the_encoding_cannot_be_shared(reason: str, pair: Any) -> None:
    """The LLM is loaded twice, its representations are taken after the last norm, or its prompt has another frame."""
    hybrid, llm = pair("gpt2", "gpt2", "add", layer=-1 if reason == "last layer" else 1, shared=reason != "weights")
    decoder = LosslessDecoder(hybrid, llm, (3,))
    batch, llm_batch = decoder.batch(TEXTS[:3])
    if reason == "tokens":
        llm_batch = llm.collator.batch_of_texts([f"a {text}" for text in TEXTS[:3]])
    assert not shares_the_encoding(hybrid, llm, batch, llm_batch)
    found = decoder.generate((batch, llm_batch), max_new_tokens=LENGTH)
    assert torch.equal(found, llm.generate(llm_batch, max_new_tokens=LENGTH))


def test_unsupported_settings_are_refused(pair: Any, zoo: Path) -> None:
    hybrid, llm = pair(*PAIRS[9])
    decoder = LosslessDecoder(hybrid, llm)
    batch = decoder.batch(TEXTS[:1])
    with pytest.raises(UserError, match=r"^decoding=lossless with do_sample=true: LLM and SLM have different tok"):
        decoder.generate(batch, do_sample=True)
    with pytest.raises(UserError, match=r"^num_beams=3: decoding=lossless does not support it; use decoding=generate$"):
        decoder.generate(batch, num_beams=3)
    write("longt5", zoo / "longt5", vocab_size=len(tiny_tokenizer()))
    local = build_llm(LLMConfig(name=str(zoo / "longt5"), tokenizer=str(zoo / "tokenizer_llm")))
    with pytest.raises(UserError, match=r"^decoding=lossless: transformers does not support a static cache for longt5"):
        LosslessDecoder(hybrid, local)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_compiled_lossless_compiles_passes_and_drafts_with_int8_weights(pair: Any) -> None:
    hybrid, llm = pair("t5", "t5", "memory")
    decoder = choose.decoder(Decoding.compiled_lossless, hybrid, llm)
    assert isinstance(decoder, LosslessDecoder) and decoder.name == "compiled_lossless"
    assert isinstance(decoder.drafter, SameTokens)
    drafts, passes = decoder.drafter.forward.rewrite, decoder.verifier.rewrite
    assert isinstance(drafts, Compiled) and isinstance(drafts.int8, Int8)
    assert isinstance(passes, Compiled) and passes.int8 is None
    batch = decoder.batch(TEXTS[:2])
    expected = llm.generate(batch[1], max_new_tokens=LENGTH)
    assert torch.equal(decoder.generate(batch, max_new_tokens=LENGTH), expected)
    assert drafts.int8.products
