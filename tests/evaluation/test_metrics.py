"""Scores against second packages, brute force by hand, and hostile input."""

import math
import random
import socket
from collections import Counter

import pytest
import sacrebleu

from llm2slm.evaluation.metrics.scores import METRICS, measure, of_texts, score
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


PERFECT = {"length_ratio": 1, "ter": 0, "repetition": 0}
"""Scores of identical texts without repetition, if not 100."""


def corpus(rows: int, seed: int = 4) -> tuple[list[str], list[str]]:
    """Made-up sentences as predictions and references: words dropped, inserted, and a phrase moved; none is empty."""
    draw = random.Random(seed)
    known = "the little dog sees an old house , two Dogs don't run ; it's 3.5 km away Der Äpfel fällt (nicht) weit a"
    predictions, references = [], []
    for _ in range(rows):
        right = draw.choices(known.split(), k=draw.randint(4, 18))
        ours = [word for word in right if draw.random() > 0.12] or ["dog"]
        if draw.random() < 0.4:
            start, at = draw.randrange(len(ours)), draw.randrange(len(ours))
            moved = ours[start : start + 2]
            ours[start : start + 2] = []
            ours[at:at] = moved
        predictions.append(" ".join(ours + draw.choices(known.split(), k=draw.randint(0, 2))))
        references.append(" ".join(right))
    return predictions, references


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


def chrf_by_hand(predictions: list[str], references: list[str], pairs_of_words: bool = False) -> float:
    """Corpus chrF2, character 1- to 6-grams without white space (Popović 2015): mean of precisions and recalls.

    Args:
        pairs_of_words: chrF++, which adds single words and pairs (Popović 2017); punctuation is a separate word (and
            is preceded by a space here anyway).
    """
    precisions, recalls = [], []
    for n, of_words in [(n, False) for n in range(1, 7)] + ([(1, True), (2, True)] if pairs_of_words else []):
        hits = ours = theirs = 0
        for prediction, reference in zip(predictions, references, strict=True):
            text, right = (t.split() if of_words else list("".join(t.split())) for t in (prediction, reference))
            grams = Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
            known = Counter(tuple(right[i : i + n]) for i in range(len(right) - n + 1))
            hits += sum((grams & known).values())
            ours, theirs = ours + sum(grams.values()), theirs + sum(known.values())
        precisions.append(hits / ours)
        recalls.append(hits / theirs)
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_chrf_equals_one_written_by_hand():
    assert value("chrf", PREDICTIONS, REFERENCES) == pytest.approx(chrf_by_hand(PREDICTIONS, REFERENCES), abs=1e-6)
    found = value("chrf++", PREDICTIONS, REFERENCES)
    assert found == pytest.approx(chrf_by_hand(PREDICTIONS, REFERENCES, pairs_of_words=True), abs=1e-6)


def test_corpus_scores_equal_those_of_sacrebleus_public_functions():
    """The package uses sacrebleu's private row counts: this test fails if a version changes them."""
    predictions, references = corpus(40)
    predictions[5] = ""
    pair = predictions, [references]
    assert value("bleu", predictions, references) == sacrebleu.corpus_bleu(*pair).score
    assert value("chrf", predictions, references) == sacrebleu.corpus_chrf(*pair).score
    assert value("chrf++", predictions, references) == sacrebleu.corpus_chrf(*pair, word_order=2).score
    assert value("ter", predictions, references) == sacrebleu.corpus_ter(*pair).score


def test_every_metric_agrees_with_a_second_package():
    """torchmetrics, on a corpus. To 1e-3 of 100, since it counts in float32.

    chrF agrees this closely only for predictions as long as their references: torchmetrics averages the F of each n,
    sacrebleu computes the F of mean precision and mean recall. No prediction is empty: torchmetrics leaves such rows
    out of chrF and TER (so that an empty answer is perfect). None is shuffled as a whole: where many shifts compete,
    the two searches of TER choose different ones.
    """
    from torchmetrics.text import CHRFScore, ROUGEScore, SacreBLEUScore, SQuAD, TranslationEditRate

    predictions, references = corpus(60)
    targets = [[reference] for reference in references]
    theirs = {
        "bleu": SacreBLEUScore()(predictions, targets),
        "chrf": CHRFScore(n_word_order=0)(predictions, targets),
        "chrf++": CHRFScore(n_word_order=2)(predictions, targets),
        "ter": TranslationEditRate()(predictions, targets),
    }
    rouge = ROUGEScore(use_stemmer=True, rouge_keys=("rouge1", "rouge2", "rougeL"))(predictions, references)
    theirs |= {name: rouge[f"{name}_fmeasure"] for name in ("rouge1", "rouge2", "rougeL")}
    answers = [{"answers": {"answer_start": [0], "text": [text]}, "id": str(i)} for i, text in enumerate(references)]
    squad = SQuAD()([{"prediction_text": text, "id": str(i)} for i, text in enumerate(predictions)], answers)
    theirs["token_f1"] = squad["f1"] / 100
    ours = score(list(theirs), predictions, references)
    for name, found in theirs.items():
        assert 5 < ours[name].value < 95, f"{name} would say little here"
        assert ours[name].value == pytest.approx(100 * found.item(), abs=1e-3), name


def test_ter_worked_out_on_paper():
    # nothing to shift: two words replaced and one inserted, of six
    assert value("ter", ["the x dog saw y house again"], ["the old dog saw a house"]) == pytest.approx(100 * 3 / 6)
    # a moved phrase is one edit, regardless of its length
    assert value("ter", ["d e f a b c"], ["a b c d e f"]) == pytest.approx(100 / 6)
    # edits and words are summed over the rows: (3 + 0) / (1 + 5), and a row can cost more than it has words
    assert value("ter", ["x y z", "a b c d e"], ["w", "a b c d E"]) == pytest.approx(100 * 3 / 6)


def test_token_f1_worked_out_on_paper():
    # "the" and the full stop are removed; then dog, dog, runs against dog, runs, fast: two in common, one dog too many
    assert value("token_f1", ["The dog, dog runs."], ["A DOG runs fast"]) == pytest.approx(100 * 2 * 2 / 6)
    assert value("token_f1", ["the", "the", "x"], ["", "y", "y"]) == pytest.approx(100 / 3)  # empty for empty


def repetition_by_hand(text: str) -> float:
    """Repeated windows of four words, over all windows."""
    cut = text.split()
    windows = [cut[i : i + 4] for i in range(len(cut) - 3)]
    return sum(window in windows[:i] for i, window in enumerate(windows)) / len(windows) if windows else 0.0


def test_repetition_counts_repeated_windows_of_four_words():
    # a b c d a b c d a: six windows, the fifth and sixth are repeated
    assert value("repetition", ["a b c d a b c d a"], ["x"]) == pytest.approx(100 * 2 / 6)
    texts = ["a b " * 9, "a b c", "", "one two three four five six", "x " * 30, "go on and go on and go on and stop"]
    wanted = sum(repetition_by_hand(text) for text in texts) / len(texts)
    assert 0 < wanted < 1
    assert value("repetition", texts, ["x"] * len(texts)) == pytest.approx(100 * wanted)


@pytest.mark.parametrize("rows", [[0], [3, 1, 8], list(range(5, 30)), [2, 2, 7, 7, 7]])
def test_the_score_of_some_rows_equals_that_of_these_rows_alone(rows):
    """A row that was drawn twice counts twice."""
    predictions, references = corpus(30)
    predictions[7] = "again and again and again and again"
    chosen = [[texts[row] for row in rows] for texts in (predictions, references)]
    names = of_texts(METRICS)
    apart = score(names, *chosen)
    for name, found in measure(names, predictions, references).items():
        part = found.score(rows)
        assert part.value == pytest.approx(apart[name].value, abs=1e-9), name
        assert (part.n, part.signature) == (len(rows), apart[name].signature)


def test_rouge_worked_out_on_paper():
    # reference "a b c d e", prediction "a c b d": 4 common words, no common pairs, longest common subsequence 3
    predictions, references = ["a c b d"], ["a b c d e"]
    f1 = lambda hits, ours, theirs: 100 * 2 * (hits / ours) * (hits / theirs) / (hits / ours + hits / theirs)  # noqa: E731
    assert value("rouge1", predictions, references) == pytest.approx(f1(4, 4, 5))
    assert value("rouge2", predictions, references) == 0
    assert value("rougeL", predictions, references) == pytest.approx(f1(3, 4, 5))
    # sentence by sentence the order of the two does not matter; as one text it does
    swapped, right = ["x y z\na b c"], ["a b c\nx y z"]
    assert value("rougeLsum", swapped, right) == pytest.approx(100)
    assert value("rougeL", swapped, right) == pytest.approx(50)


def test_rouge_stems_and_is_the_mean_over_rows():
    assert value("rouge1", ["running", "walks"], ["runs", "nothing"]) == pytest.approx(50)


@pytest.mark.parametrize("name", of_texts(METRICS))
def test_identical_texts_are_perfect(name):
    found = score([name], REFERENCES, REFERENCES)[name]
    assert found.value == pytest.approx(PERFECT.get(name, 100))
    assert found.n == len(REFERENCES)


@pytest.mark.parametrize("name", of_texts(METRICS))
def test_empty_predictions_score_zero(name):
    assert value(name, [""] * 4, REFERENCES) == (100 if name == "ter" else 0)
    if name not in ("bleu", "length_ratio", "ter", "repetition"):  # corpus metrics, or metrics of which less is better
        mixed = value(name, ["", *REFERENCES[1:]], REFERENCES)
        assert 50 < mixed < 100


def test_exact_match_and_length_ratio_by_hand():
    predictions, references = [" yes ", "No", "a, b"], ["yes", "no", "a"]
    assert value("exact_match", predictions, references) == pytest.approx(100 / 3)
    assert value("length_ratio", predictions, references) == pytest.approx(5 / 3)  # the comma is a separate word


def test_signatures_state_the_settings():
    found = score(of_texts(METRICS), PREDICTIONS, REFERENCES)
    assert list(found) == of_texts(METRICS)
    assert found["bleu"].signature.startswith("sacrebleu nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].signature.startswith("sacrebleu nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert "|nc:6|nw:2|" in found["chrf++"].signature
    assert "|tok:tercom|" in found["ter"].signature
    assert "English stemmer, sentences split by newline" in found["rougeLsum"].signature
    assert "newline" not in found["rougeL"].signature


def test_scoring_needs_no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    score(of_texts(METRICS), ["One. Two.\nThree."], ["One. Two. Three."])


@pytest.mark.parametrize(
    ("names", "predictions", "references", "message"),
    [
        (["blue"], ["a"], ["a"], "did you mean 'bleu'"),
        (["rougeLSum"], ["a"], ["a"], "did you mean 'rougeLsum'"),
        (["berscore:a"], ["a"], ["a"], "did you mean 'bertscore:'"),
        (["bleu", "perplexity"], ["a"], ["a"], "perplexity: needs a model"),
        (["bertscore:a:3"], ["a"], ["a"], "bertscore:a:3: needs a model"),
        (["bleu"], [], [], "no predictions"),
        (["bleu"], ["a"], ["a", "b"], "1 predictions for 2 references"),
        (["bleu"], ["a", "b"], ["", " "], "all 2 references are empty"),
    ],
)
def test_bad_input_is_reported_on_one_line(names, predictions, references, message):
    with pytest.raises(UserError) as caught:
        score(names, predictions, references)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metrics_of_texts_are_distinguished_from_those_that_need_a_model():
    assert of_texts(["perplexity", "chrf++", "bertscore:a/b:3", "bleu"]) == ["chrf++", "bleu"]
