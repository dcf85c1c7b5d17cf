"""Cascade decoding: threshold -inf equals the hybrid, inf equals the LLM, and each row is from one of both."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest
import torch
from deep_models import write
from sampling import representatives
from test_loop import TEXTS, lengths_of
from test_lossless import LENGTH, PAIRS

from llm2slm.config import LLMConfig
from llm2slm.decoding.cascade import CascadeDecoder, Rule
from llm2slm.decoding.choose import decoder as choose
from llm2slm.decoding.reading import shares_the_encoding
from llm2slm.models.build import build_llm
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_tokenizer
from llm2slm.types import Confidence, Decoding, UserError

MEASURES = list(Confidence)


def ends(model: LLM2SLM, **arguments: Any) -> None:
    """Sets end tokens with which the responses have different lengths."""
    rows = model.generate(model.collator.batch_of_texts(TEXTS), **{"max_new_tokens": LENGTH} | arguments).tolist()
    pairs = [[row[1], other[5]] for row in rows for other in rows]
    model.generation_config.eos_token_id = max(pairs, key=lambda pair: len(set(lengths_of(rows, pair))))


def log_probabilities(model: LLM2SLM, text: str, ids: list[int]) -> list[float]:
    """Log-probabilities of the tokens of a response under teacher forcing."""
    batch = replace(model.collator.batch_of_texts([text]), labels_BT=torch.tensor([ids]))
    with torch.no_grad():
        scores_TV = model.logits(batch)[0].log_softmax(-1)
    return [float(scores_TV[step, token]) for step, token in enumerate(ids)]


@pytest.mark.parametrize("names", representatives(PAIRS, [PAIRS[4], PAIRS[9]], whole=True), ids="-".join)
def test_extreme_thresholds_give_one_model_and_others_a_mixture(names: tuple[str, ...], pair: Any) -> None:
    hybrid, llm = pair(*names)
    arguments = {"max_new_tokens": LENGTH, "no_repeat_ngram_size": 2}
    ends(hybrid, **arguments)
    ends(llm, **arguments)
    never, always = (CascadeDecoder(hybrid, llm, Rule(threshold)) for threshold in (-inf, inf))
    assert (never.shift == 0) == (names[3] == "shared")
    for texts in (TEXTS[:1], TEXTS):
        ours = hybrid.generate(hybrid.collator.batch_of_texts(texts), **arguments)
        theirs = llm.generate(llm.collator.batch_of_texts(texts), **arguments)
        assert torch.equal(never.generate(never.batch(texts), **arguments), ours)
        assert torch.equal(always.generate(always.batch(texts), **arguments), theirs + always.shift)
        both = [model.collator.decode(ids) for model, ids in ((hybrid, ours), (llm, theirs))]
        assert never.decode(ours) == both[0] and always.decode(theirs + always.shift) == both[1]
    assert (never.counts.summary()["share_rewritten"], always.counts.summary()["share_rewritten"]) == (0, 1)
    # a threshold between the two middle confidences: half of the rows, and texts of one or the other model
    middle = CascadeDecoder(hybrid, llm, Rule(0.0))
    answered = middle.answer(middle.batch(TEXTS), **arguments)
    confidence = answered.scores.confidence(Confidence.mean)
    ordered = confidence.sort().values
    split = len(ordered) // 2
    middle.rule = Rule(float(ordered[split - 1 : split + 1].mean()))
    arrived: list[int] = []
    found = middle.generate(
        middle.batch(TEXTS), on_tokens=lambda *given: arrived.extend(given[2].tolist()), **arguments
    )
    lower = (confidence < middle.rule.threshold).tolist()
    assert middle.counts.rewritten == sum(lower) == split
    assert middle.decode(found) == [both[low][row] for row, low in enumerate(lower)]
    lengths = (
        lengths_of(ours.tolist(), hybrid.generation_config.eos_token_id),
        lengths_of(theirs.tolist(), llm.generation_config.eos_token_id),
    )
    assert arrived == [min(lengths[low][row], LENGTH) for row, low in enumerate(lower)]


@pytest.mark.parametrize("names", [PAIRS[0], PAIRS[4]], ids="-".join)
def test_confidence_is_that_of_teacher_forcing(names: tuple[str, ...], pair: Any) -> None:
    hybrid, llm = pair(*names)
    ends(hybrid)
    decoder = CascadeDecoder(hybrid, llm, Rule(-inf))
    answered = decoder.answer(decoder.batch(TEXTS), max_new_tokens=LENGTH)
    rows = answered.ids_RT.tolist()
    lengths = lengths_of(rows, hybrid.generation_config.eos_token_id)
    assert len(set(lengths)) > 1
    for row, (text, length) in enumerate(zip(TEXTS, lengths, strict=True)):
        expected = log_probabilities(hybrid, text, rows[row][:length])
        for measure, value in ((Confidence.mean, sum(expected) / length), (Confidence.min, min(expected))):
            found = float(answered.scores.confidence(measure)[row])
            assert found == pytest.approx(value, abs=2e-4, rel=1e-4), measure


def test_each_sample_of_a_prompt_is_a_row(pair: Any) -> None:
    """Three sampled responses to each prompt; the LLM answers the prompt of each row again."""
    hybrid, llm = pair(*PAIRS[0])
    decoder = CascadeDecoder(hybrid, llm, Rule(inf))
    arguments = {"max_new_tokens": 6, "num_return_sequences": 3, "do_sample": True, "top_k": 2}
    torch.manual_seed(1)
    ids = decoder.generate(decoder.batch(TEXTS[:2]), **arguments)
    assert len(ids) == 6
    arguments["top_k"] = 1  # deterministic
    ids = decoder.generate(decoder.batch(TEXTS[:2]), **arguments)
    expected = llm.generate(llm.collator.batch_of_texts(TEXTS[:2]), max_new_tokens=6)
    assert torch.equal(ids, expected.repeat_interleave(3, 0))


def test_an_encoder_decoder_llm_encodes_once(pair: Any) -> None:
    hybrid, llm = pair(*PAIRS[0])
    decoder = CascadeDecoder(hybrid, llm, Rule(inf))
    batch = decoder.batch(TEXTS)
    assert shares_the_encoding(hybrid, llm, *batch)
    passes: list[int] = []
    llm.slm.get_encoder().block[0].register_forward_hook(lambda *_: passes.append(1))
    decoder.generate(batch, max_new_tokens=4)
    assert len(passes) == 1


def test_a_nan_score_is_low_confidence(pair: Any) -> None:
    hybrid, llm = pair(*PAIRS[0])
    answered = CascadeDecoder(hybrid, llm, Rule(-inf)).answer(
        CascadeDecoder(hybrid, llm, Rule(-inf)).batch(TEXTS[:2]), max_new_tokens=3
    )
    answered.scores.sum_R[1] = float("nan")
    found = answered.scores.confidence(Confidence.mean)
    assert found[1] == -inf and found[0] > -inf


def test_unsupported_settings_are_refused_and_an_llm_without_captured_steps_is_accepted(pair: Any, zoo: Any) -> None:
    hybrid, llm = pair(*PAIRS[0])
    decoder = CascadeDecoder(hybrid, llm, Rule(0.0))
    with pytest.raises(UserError, match=r"^num_beams=3: decoding=cascade does not support it; use decoding=generate$"):
        decoder.generate(decoder.batch(TEXTS[:1]), num_beams=3)
    with pytest.raises(UserError, match=r"^decoding=cascade: needs a hybrid, some of whose answers its LLM"):
        choose(Decoding.cascade, llm, None, Rule(0.0))
    write("longt5", zoo / "longt5", vocab_size=len(tiny_tokenizer()))
    local = build_llm(LLMConfig(name=str(zoo / "longt5"), tokenizer=str(zoo / "tokenizer_llm"))).eval()
    found = CascadeDecoder(hybrid, local, Rule(inf))  # its steps are not captured
    expected = local.generate(local.collator.batch_of_texts(TEXTS), max_new_tokens=5)
    assert torch.equal(found.generate(found.batch(TEXTS), max_new_tokens=5) - found.shift, expected)


def test_settings_that_require_generate_are_generated_by_transformers(pair: Any) -> None:
    """Settings that the LLM publishes."""
    hybrid, llm = pair(*PAIRS[0])
    llm.generation_config.encoder_no_repeat_ngram_size = 1
    decoder = CascadeDecoder(hybrid, llm, Rule(inf))
    expected = llm.generate(llm.collator.batch_of_texts(TEXTS), max_new_tokens=6)
    assert torch.equal(decoder.generate(decoder.batch(TEXTS), max_new_tokens=6), expected)
