"""Perplexity of the references against loops over rows and tokens; without an LLM, against transformers models."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_runs import build, tiny_run
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from llm2slm.evaluation.metrics import perplexity as module
from llm2slm.evaluation.metrics.metric import Measured
from llm2slm.evaluation.metrics.perplexity import perplexity
from llm2slm.types import Overlong

SYSTEMS = [("llm2slm", "t5", "add"), ("llm2slm", "gpt2", "prepend"), ("slm", "t5", "add"), ("slm", "gpt2", "add")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("perplexity")


def by_hand(model, rows):
    """Row by row and token by token: the sum of -log p of all tokens, and their number."""
    nats = tokens = 0
    for row in rows:
        logits_TV = model.logits(model.collator([row]))[0].double()
        for scores, token in zip(logits_TV, row.response, strict=True):
            nats -= math.log(float(scores[token].exp() / scores.exp().sum()))
            tokens += 1
    return nats, tokens


@pytest.mark.parametrize(("kind", "slm", "mode"), SYSTEMS)
@pytest.mark.parametrize("batch_size", [4, 100])
def test_perplexity_is_the_exponential_of_the_mean_over_all_tokens(root, kind, slm, mode, batch_size):
    model, data = build(tiny_run(root, kind=kind, slm=slm, mode=mode))
    rows = data.encoded("validation")
    found = perplexity(model.train(), rows, batch_size, progress=False)
    assert model.training  # the mode is restored; dropout was off
    model.eval()
    with torch.no_grad():
        nats, tokens = by_hand(model, rows)
        first, count = by_hand(model, rows[2:4])
        means = [math.exp(n / t) for n, t in (by_hand(model, [row]) for row in rows)]
    score = found.score()
    assert score.value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert score.n == len(rows)
    assert found.score([2, 3]).value == pytest.approx(math.exp(first / count), rel=1e-5)
    assert abs(score.value - sum(means) / len(means)) > 1e-3 * score.value, "a mean of means would pass as well"


@pytest.mark.parametrize("slm", ["t5", "gpt2"])
def test_perplexity_of_an_slm_alone_equals_that_of_transformers(root, slm):
    config = tiny_run(root, kind="slm", slm=slm)
    model, data = build(config)
    auto = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM}[slm]
    plain = auto.from_pretrained(config.model.slm.name).eval()
    nats = tokens = 0
    for row in data.encoded("test"):
        right = torch.tensor([row.response])
        with torch.no_grad():
            if slm == "t5":
                loss = plain(input_ids=torch.tensor([row.slm]), labels=right).loss
            else:
                labels = torch.tensor([[-100] * len(row.slm) + row.response])
                loss = plain(input_ids=torch.tensor([row.slm + row.response]), labels=labels).loss
        nats, tokens = nats + float(loss) * len(row.response), tokens + len(row.response)
    found = perplexity(model, data.encoded("test"), 3, progress=False).score()
    assert found.value == pytest.approx(math.exp(nats / tokens), rel=1e-5)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary_size(root):
    model, data = build(tiny_run(root, kind="slm", slm="gpt2"))
    torch.nn.init.zeros_(model.slm.get_output_embeddings().weight)
    found = perplexity(model, data.encoded("test"), 4, progress=False).score()
    assert found.value == pytest.approx(model.slm.config.vocab_size, rel=1e-6)


def test_the_signature_identifies_tokenizer_and_limits(root, tmp_path):
    config = tiny_run(root)
    model, data = build(config)
    rows = data.encoded("test")
    said = perplexity(model, rows, 4, progress=False).signature
    assert f" of {len(model.collator.slm_tokenizer)} entries (" in said
    assert said.endswith("weights float32")
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert perplexity(again, rows, 4, progress=False).signature == said  # independent of the folder
    model.collator.overlong, model.collator.max_response_tokens = Overlong.truncate, 7
    assert "cut to 7 tokens" in perplexity(model, rows, 4, progress=False).signature
    again.collator.slm_tokenizer.add_tokens(["another"])
    assert module._signature(again).partition(" entries")[2] != said.partition(" entries")[2]


@pytest.mark.parametrize(("nats", "value"), [(0.0, 1.0), (699.0, math.exp(699)), (701.0, math.inf)])
def test_a_perplexity_beyond_all_floats_is_infinite(nats, value):
    assert Measured([(2 * nats, 2)], module._value, "").score().value == value


def test_nan_remains_nan():
    assert math.isnan(Measured([(math.nan, 2)], module._value, "").score().value)
