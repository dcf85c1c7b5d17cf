"""BERTScore against a plain loop over pairs of tokens, one text at a time, on transformers models."""

from __future__ import annotations

import math

import pytest
import torch
from sampling import representatives
from tokenizers import normalizers
from transformers import AutoModel, RobertaConfig, RobertaModel

from llm2slm.data.tokenization.tokenizer import load_tokenizer
from llm2slm.evaluation.metrics import bertscore
from llm2slm.evaluation.metrics.bertscore import BertScore, Named, check, greedy_f1, parse
from llm2slm.testing import tiny_tokenizer, write_tiny
from llm2slm.types import UserError

PREDICTIONS = [
    "the little dog sees it",
    "",
    "a house",
    "zwei Hunde",
    "it",
    "the old old house sees the little dog",
    "  ",
]
REFERENCES = ["a little dog sees the house", "a dog", "", "two dogs, little dogs", "it", "the dog", "two"]
DEPTH = {"bert": 3, "t5": 2, "gpt2": 4}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bertscore")
    return {name: write_tiny(name, folder / name, seed=3) for name in DEPTH}


def states_of(folder, layer, text):
    """The states of a single text, a plain list per token; without the eos that the tokenizers of the test kit add."""
    tokenizer, model = load_tokenizer(str(folder)), AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert ids[0, -1] == tokenizer.eos_token_id
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states[layer][0, :-1].tolist()


def cosine(a, b):
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length


def f1_by_hand(ours, right):
    """For each token the maximum over the tokens of the other text; at least the score of an empty text."""
    if not ours or not right:
        return 0.0
    precision = sum(max(cosine(a, b) for b in right) for a in ours) / len(ours)
    recall = sum(max(cosine(a, b) for a in ours) for b in right) / len(right)
    return 2 * precision * recall / (precision + recall) if precision > 0 and recall > 0 else 0.0


@pytest.mark.parametrize(("name", "asked", "layer"), representatives([
    ("bert", "", 3), ("bert", ":1", 1), ("bert", ":0", 0), ("bert", ":-2", 2), ("t5", "", 2), ("t5", ":1", 1),
    ("gpt2", "", 2), ("gpt2", ":3", 3),
], lambda case: case[:2] in (("bert", ":1"), ("t5", ""), ("gpt2", ":3"))))  # fmt: skip
def test_bertscore_equals_a_plain_loop_over_pairs_of_tokens(zoo, monkeypatch, name, asked, layer):
    monkeypatch.setattr(bertscore, "PAIRS", 3)  # texts of all lengths in one batch, and more than one batch
    found = BertScore(f"bertscore:{zoo[name]}{asked}").measure(PREDICTIONS, REFERENCES)
    wanted = []
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        texts = [states_of(zoo[name], layer, text) if text.strip() else [] for text in (prediction, reference)]
        wanted.append(f1_by_hand(*texts))
    assert sum(0.05 < value < 0.999 for value in wanted) >= 3, "the rows would say little"
    rows = [found.score([row]).value for row in range(len(wanted))]
    assert rows == pytest.approx([100 * value for value in wanted], abs=1e-3)
    assert found.score().value == pytest.approx(100 * sum(wanted) / len(wanted), abs=1e-3)
    assert rows[1] == rows[2] == rows[6] == 0, "an empty answer, or one where nothing was to be said"
    assert rows[4] == pytest.approx(100, abs=1e-3)
    assert f"layer {layer} of {DEPTH[name]}, float32, no idf" in found.signature


def test_tokens_may_share_a_best_match_and_the_two_directions_differ():
    """Three tokens that all equal one of two: precision 1, recall (1 + 0) / 2."""
    right = torch.eye(2)
    assert greedy_f1(right[[0, 0, 0]], right) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert greedy_f1(-right, right) == 0  # the best of (-1, 0) is 0
    assert greedy_f1(-right[:1], right[:1]) == 0


def test_the_signature_identifies_weights_and_layers_but_no_local_path(zoo, tmp_path):
    other = write_tiny("bert", tmp_path / "secret" / "bert", seed=4)
    names = [f"bertscore:{zoo['bert']}", f"bertscore:{zoo['bert']}:1", f"bertscore:{other}"]
    signatures = [BertScore(name).measure(["a"], ["a"]).signature for name in names]
    assert len(set(signatures)) == 3
    assert "bert (a local folder), weights " in signatures[2]
    assert "secret" not in signatures[2]
    assert "cut" not in signatures[2]


def test_a_text_longer_than_the_maximum_length_is_cut_and_the_signature_states_it(tmp_path):
    """RoBERTa, whose positions start behind its padding index: of 12 positions 11 are for tokens."""
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=12, **sizes, **special)
    RobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    long = "the little dog sees the old house " * 9
    ids = tokenizer(long)["input_ids"]
    assert len(ids) > 40
    scorer = BertScore(f"bertscore:{tmp_path}")
    cut = tokenizer.decode(ids[:10])
    assert len(tokenizer(cut)["input_ids"]) == 11
    whole, short = scorer.measure(["dog", long], [long, "a house"]), scorer.measure(["dog", cut], [cut, "a house"])
    assert whole.counts == short.counts
    assert whole.signature == short.signature + ", 2 texts cut to 11 tokens"


def test_a_control_token_in_an_answer_is_tokenized_as_text(zoo):
    scorer = BertScore(f"bertscore:{zoo['bert']}")
    scorer.tokenizer.split_special_tokens = False
    ids = scorer._ids("a </s> dog").ids
    assert ids.count(scorer.tokenizer.eos_token_id) == 1 and ids[-1] == scorer.tokenizer.eos_token_id
    assert scorer.tokenizer.decode(ids[:-1]) == "a </s> dog"


def test_a_text_without_tokens_is_scored_as_empty(zoo):
    scorer = BertScore(f"bertscore:{zoo['bert']}")
    scorer.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    assert scorer.tokenizer("\u200b")["input_ids"] == [scorer.tokenizer.eos_token_id]
    found = scorer.measure(["\u200b", "a\u200b dog"], ["a dog", "a dog"])
    assert [found.score([row]).value for row in (0, 1)] == pytest.approx([0, 100], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "model", "layer"),
    [
        ("bertscore:roberta-large:17", "roberta-large", 17),
        ("bertscore:me/model", "me/model", None),
        ("bertscore:/a/b:c/model:-1", "/a/b:c/model", -1),
        ("bertscore:/a/b:c/model", "/a/b:c/model", None),
    ],
)
def test_the_metric_name_contains_model_and_layer(name, model, layer):
    assert parse(name) == Named(model, layer)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", "names no model; give bertscore:MODEL[:layer]"),
        (":3", "names no model"),
        ("{folder}:4", "bert has layers 0 to 3 (or -4 to -1)"),
        ("{folder}:-5", "bert has layers 0 to 3"),
        ("{folder}/nowhere", "no such folder"),
    ],
)
def test_an_invalid_model_or_layer_is_reported_before_loading(zoo, rest, message):
    with pytest.raises(UserError) as caught:
        check("bertscore:" + rest.format(folder=zoo["bert"]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    for layer in (0, 3, -4):
        check(f"bertscore:{zoo['bert']}:{layer}")


def test_a_hybrid_is_refused_as_a_scoring_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llm2slm"}')
    with pytest.raises(UserError, match="is a hybrid, or has virtual tokens; give a plain model of transformers"):
        check(f"bertscore:{tmp_path}:1")
