"""Scores against second packages, brute force by hand, and hostile input."""

import math
import socket
from collections import Counter

import pytest

from llm2slm.evaluation.metrics import METRICS, score
from llm2slm.types import UserError

PREDICTIONS = [
    "the cat sat on the mat .",
    "a quick brown fox jumped over dogs",
    "completely different words here today",
    "there are exactly three trains , running late tonight !",
]
REFERENCES = [
    "the cat is sitting on the mat .",
    "the quick brown fox jumps over the lazy dog",
    "nothing in common with that one",
    "there are exactly three trains running late tonight !",
]


def value(name: str, predictions: list[str], references: list[str]) -> float:
    return score([name], predictions, references)[name].value


def bleu_by_hand(predictions: list[str], references: list[str]) -> float:
    """Corpus BLEU-4 of white-space tokens, written from Papineni et al. 2002; every order must have a match."""
    hits, counts, ours, theirs = Counter(), Counter(), 0, 0
    for prediction, reference in zip(predictions, references, strict=True):
        words, right = prediction.split(), reference.split()
        ours, theirs = ours + len(words), theirs + len(right)
        for n in range(1, 5):
            grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            known = Counter(tuple(right[i : i + n]) for i in range(len(right) - n + 1))
            hits[n] += sum(min(count, known[gram]) for gram, count in grams.items())
            counts[n] += sum(grams.values())
    brevity = min(1.0, math.exp(1 - theirs / ours))
    return 100 * brevity * math.exp(sum(math.log(hits[n] / counts[n]) for n in range(1, 5)) / 4)


def test_bleu_equals_one_written_by_hand():
    assert value("bleu", PREDICTIONS, REFERENCES) == pytest.approx(bleu_by_hand(PREDICTIONS, REFERENCES), abs=1e-9)


def test_bleu_of_a_toy_case_worked_out_on_paper():
    # 1-grams 5/5, 2-grams 4/4, 3-grams 3/3, 4-grams 2/2, and a brevity penalty of exp(1 - 6/5)
    assert value("bleu", ["a b c d e"], ["a b c d e f"]) == pytest.approx(100 * math.exp(-0.2), abs=1e-9)


def test_bleu_agrees_with_torchmetrics():
    from torchmetrics.text import SacreBLEUScore

    targets = [[reference] for reference in REFERENCES]
    bleu = SacreBLEUScore()(PREDICTIONS, targets).item()
    assert value("bleu", PREDICTIONS, REFERENCES) == pytest.approx(100 * bleu, abs=1e-3)


def chrf_by_hand(predictions: list[str], references: list[str]) -> float:
    """Corpus chrF2, character 1- to 6-grams without white space (Popović 2015): mean of precisions and recalls."""
    precisions, recalls = [], []
    for n in range(1, 7):
        hits = ours = theirs = 0
        for prediction, reference in zip(predictions, references, strict=True):
            text, right = "".join(prediction.split()), "".join(reference.split())
            grams = Counter(text[i : i + n] for i in range(len(text) - n + 1))
            known = Counter(right[i : i + n] for i in range(len(right) - n + 1))
            hits += sum((grams & known).values())
            ours, theirs = ours + sum(grams.values()), theirs + sum(known.values())
        precisions.append(hits / ours)
        recalls.append(hits / theirs)
    precision, recall = sum(precisions) / 6, sum(recalls) / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_chrf_equals_one_written_by_hand():
    assert value("chrf", PREDICTIONS, REFERENCES) == pytest.approx(chrf_by_hand(PREDICTIONS, REFERENCES), abs=1e-6)


def test_rouge_agrees_with_torchmetrics():
    from torchmetrics.text import ROUGEScore

    theirs = ROUGEScore(use_stemmer=True, rouge_keys=("rouge1", "rouge2", "rougeL"))(PREDICTIONS, REFERENCES)
    for name in ("rouge1", "rouge2", "rougeL"):
        assert value(name, PREDICTIONS, REFERENCES) == pytest.approx(100 * theirs[f"{name}_fmeasure"].item(), abs=1e-3)


def test_rouge_worked_out_on_paper():
    # reference "a b c d e", prediction "a c b d": 4 common words, common pairs none, longest common subsequence 3
    predictions, references = ["a c b d"], ["a b c d e"]
    f1 = lambda hits, ours, theirs: 100 * 2 * (hits / ours) * (hits / theirs) / (hits / ours + hits / theirs)  # noqa: E731
    assert value("rouge1", predictions, references) == pytest.approx(f1(4, 4, 5))
    assert value("rouge2", predictions, references) == 0
    assert value("rougeL", predictions, references) == pytest.approx(f1(3, 4, 5))
    # sentence by sentence the order of the two does not matter, as one text it does
    swapped, right = ["x y z\na b c"], ["a b c\nx y z"]
    assert value("rougeLsum", swapped, right) == pytest.approx(100)
    assert value("rougeL", swapped, right) == pytest.approx(50)


def test_rouge_is_the_mean_over_rows_and_stems():
    assert value("rouge1", ["running", "walks"], ["runs", "nothing"]) == pytest.approx(50)


@pytest.mark.parametrize("name", METRICS)
def test_identical_texts_are_perfect(name):
    found = score([name], REFERENCES, REFERENCES)[name]
    assert found.value == pytest.approx(1 if name == "length_ratio" else 100)
    assert found.n == len(REFERENCES)


@pytest.mark.parametrize("name", METRICS)
def test_empty_predictions_score_nothing(name):
    assert value(name, [""] * 4, REFERENCES) == 0
    if name not in ("bleu", "length_ratio"):  # corpus figures, not means of rows
        mixed = value(name, ["", *REFERENCES[1:]], REFERENCES)
        assert 50 < mixed < 100


def test_exact_match_and_length_ratio():
    predictions, references = [" yes ", "No", "a, b"], ["yes", "no", "a"]
    assert value("exact_match", predictions, references) == pytest.approx(100 / 3)
    assert value("length_ratio", predictions, references) == pytest.approx(5 / 3)  # the comma is a word of its own


def test_signatures_say_how():
    found = score(list(METRICS), PREDICTIONS, REFERENCES)
    assert list(found) == list(METRICS)
    assert found["bleu"].signature.startswith("sacrebleu nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].signature.startswith("sacrebleu nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert "English stemmer, sentences split by newline" in found["rougeLsum"].signature
    assert "newline" not in found["rougeL"].signature


def test_nothing_touches_the_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    score(list(METRICS), ["One. Two.\nThree."], ["One. Two. Three."])


@pytest.mark.parametrize(
    ("names", "predictions", "references", "message"),
    [
        (["blue"], ["a"], ["a"], "did you mean 'bleu'"),
        (["rougeLSum"], ["a"], ["a"], "did you mean 'rougeLsum'"),
        (["bleu"], [], [], "no predictions"),
        (["bleu"], ["a"], ["a", "b"], "1 predictions for 2 references"),
        (["bleu"], ["a", "b"], ["", " "], "all 2 references are empty"),
    ],
)
def test_bad_input_is_told_in_one_line(names, predictions, references, message):
    with pytest.raises(UserError) as caught:
        score(names, predictions, references)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
