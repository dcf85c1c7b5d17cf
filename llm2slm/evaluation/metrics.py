"""Text in, scores out: n-gram, overlap and length metrics, each with the signature of how it was computed.

Every function takes plain strings and touches no network: sentences for ROUGE-Lsum are told apart by newlines, never by
a downloaded sentence splitter. Scores of different signatures must not be compared. Two metrics are not of texts alone
and have files of their own: `bertscore.py`, `perplexity.py`.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from llm2slm.runs import Score
from llm2slm.types import UserError

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PERPLEXITY, BERTSCORE = "perplexity", "bertscore:"
"""Metrics that need a model: a name, and the beginning of one (bertscore:MODEL[:layer])."""


@dataclass(frozen=True)
class Measured:
    """A metric taken apart by rows: numbers of each row, and the value that the sums of these numbers make.

    So the score of any choice of rows (those of a length, a resample) is exact, and nothing is computed anew for it.
    """

    counts: Sequence[Sequence[float]]
    value: Callable[[list[float]], float]
    signature: str

    def score(self, rows: Sequence[int] | None = None) -> Score:
        """The score of some rows, by their positions; None: of all."""
        counts = self.counts if rows is None else [self.counts[row] for row in rows]
        sums = [sum(column) for column in zip(*counts, strict=True)]
        return Score(float(self.value(sums)), self.signature, len(counts))


def score(names: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> dict[str, Score]:
    """Scores predictions against one reference each; arguments and errors are those of `measure`."""
    return {name: found.score() for name, found in measure(names, predictions, references).items()}


def measure(names: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> dict[str, Measured]:
    """Measures predictions against one reference each.

    * bleu: corpus BLEU of sacrebleu, 0 to 100 (Papineni et al. 2002; Post 2018).
    * chrf: corpus chrF2 of sacrebleu, 0 to 100 (Popović 2015); chrf++: with words and pairs of words (Popović 2017).
    * ter: edits, shifts of phrases among them, over the references' words, in per cent, so above 100 where there are
      more edits than words; lower is better. sacrebleu's, which ignores upper case (Snover et al. 2006).
    * rouge1, rouge2, rougeL, rougeLsum: mean F1 of the rouge-score package, 0 to 100 (Lin 2004). Its tokenizer keeps
      a-z and 0-9 alone and its stemmer is English: meant for English text.
    * token_f1: mean F1 of the words that prediction and reference share, order aside, 0 to 100; lower case, without
      punctuation and English articles, as SQuAD does (Rajpurkar et al. 2016): meant for short English answers.
    * exact_match: share of predictions equal to the reference, white space at both ends aside, 0 to 100.
    * length_ratio: words of all predictions over words of all references, 13a tokenizer; 1 where lengths agree.
    * repetition: share of an answer's 4-grams that it has written before, mean over answers, 0 to 100; 0 for an answer
      of less than four words (seq-rep-4 of Welleck et al. 2020, on 13a words); lower is better. Of the predictions
      alone.

    Args:
        names: metrics wanted, of texts alone; the result keeps their order.
        predictions: one text per row; an empty one is a legal, bad answer.
        references: the same rows' right answers.

    Raises:
        UserError: unknown metric, no rows, counts that differ, or no reference with any text.
    """
    check(names)
    if len(predictions) != len(references):
        raise UserError(f"{len(predictions)} predictions for {len(references)} references; each row needs both")
    if not predictions:
        raise UserError("nothing to score: no predictions; check that the split is not empty")
    if not any(reference.strip() for reference in references):
        raise UserError(f"nothing to score against: all {len(references)} references are empty; check data.target")
    if len(of_texts(names)) < len(names):
        raise UserError(f"{', '.join(name for name in names if name not in METRICS)}: needs a model, not texts alone")
    return {name: METRICS[name](name, predictions, references) for name in names}


def check(names: Sequence[str]) -> None:
    """Refuses a metric that is not known.

    Raises:
        UserError: names it, and the nearest one.
    """
    for name in names:
        if name not in METRICS and name != PERPLEXITY and not name.startswith(BERTSCORE):
            near = difflib.get_close_matches(name, [*METRICS, PERPLEXITY, BERTSCORE], 1, 0.0)[0]
            known = ", ".join([*METRICS, PERPLEXITY, f"{BERTSCORE}MODEL[:layer]"])
            raise UserError(f"metric {name!r} is unknown; did you mean {near!r}? Known: {known}")


def of_texts(names: Sequence[str]) -> list[str]:
    """The metrics among these that need no model."""
    return [name for name in names if name in METRICS]


def mean(values: Sequence[float], signature: str) -> Measured:
    """A metric that is the mean of a value for each row, in per cent of 1."""
    return Measured([(value, 1.0) for value in values], lambda sums: 100 * sums[0] / sums[1], signature)


def _sacrebleu(metric: Any, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    """A metric of sacrebleu by its own counts of each row, which its significance tests resample in the same way."""
    counts = metric._extract_corpus_statistics(list(predictions), [list(references)])
    signature = f"sacrebleu {metric.get_signature()}"
    return Measured(counts, lambda sums: float(metric._compute_score_from_stats(sums).score), signature)


def _bleu(_name: str, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    from sacrebleu.metrics import BLEU

    # force: no warning about texts that look tokenized; the score is the same
    return _sacrebleu(BLEU(force=True), predictions, references)


def _chrf(name: str, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    from sacrebleu.metrics import CHRF

    return _sacrebleu(CHRF(word_order=2 if name == "chrf++" else 0), predictions, references)


def _ter(_name: str, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    from sacrebleu.metrics import TER

    return _sacrebleu(TER(), predictions, references)


def _rouge(name: str, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=True, split_summaries=False)
    pairs = zip(references, predictions, strict=True)
    values = [float(scorer.score(reference, prediction)[name].fmeasure) for reference, prediction in pairs]
    signature = f"rouge-score {metadata.version('rouge-score')}, F1, English stemmer"
    if name == "rougeLsum":
        signature += ", sentences split by newline"
    return mean(values, signature)


ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _token_f1(_name: str, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    def words(text: str) -> list[str]:
        return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()

    def f1(ours: list[str], right: list[str]) -> float:
        if not ours or not right:  # as SQuAD 2.0: nothing is right where nothing is asked for
            return float(ours == right)
        return 2 * sum((Counter(ours) & Counter(right)).values()) / (len(ours) + len(right))

    values = [f1(words(p), words(r)) for p, r in zip(predictions, references, strict=True)]
    return mean(values, "F1 of words, SQuAD: lower case, without ASCII punctuation and English articles")


def _exact_match(_name: str, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    hits = [float(p.strip() == r.strip()) for p, r in zip(predictions, references, strict=True)]
    return mean(hits, "equal after stripping white space at both ends")


def _words() -> Callable[[str], list[str]]:
    """Cuts a text into 13a words, those of BLEU."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    cut = Tokenizer13a()
    return lambda text: cut(text).split()


def _length_ratio(_name: str, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    words = _words()
    counts = [(len(words(p)), len(words(r))) for p, r in zip(predictions, references, strict=True)]
    signature = f"predictions over references, 13a words, sacrebleu {metadata.version('sacrebleu')}"
    return Measured(counts, lambda sums: sums[0] / sums[1] if sums[1] else float("nan"), signature)


def _repetition(_name: str, predictions: Sequence[str], _references: Sequence[str]) -> Measured:
    words = _words()

    def repeated(text: str) -> float:
        cut = words(text)
        grams = [tuple(cut[i : i + 4]) for i in range(len(cut) - 3)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    values = [repeated(prediction) for prediction in predictions]
    return mean(values, f"1 - different 4-grams over all, 13a words, sacrebleu {metadata.version('sacrebleu')}")


METRICS: dict[str, Callable[[str, Sequence[str], Sequence[str]], Measured]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "chrf++": _chrf,
    "ter": _ter,
    **dict.fromkeys(ROUGE, _rouge),
    "token_f1": _token_f1,
    "exact_match": _exact_match,
    "length_ratio": _length_ratio,
    "repetition": _repetition,
}
"""Every metric of texts alone by its name, in the order that messages list them."""
