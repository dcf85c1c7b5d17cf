"""Text in, scores out: n-gram, overlap and length metrics, each with the signature of how it was computed.

Every function takes plain strings and touches no network: sentences for ROUGE-Lsum are told apart by newlines, never by
a downloaded sentence splitter. `tokenization.py` decides by the language of the references how words are found. Scores
of different signatures must not be compared. Two metrics are not of texts alone and have files of their own:
`bertscore.py`, `perplexity.py`.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from llm2slm.evaluation.metrics import tokenization
from llm2slm.evaluation.metrics.tokenization import Languages, Tokenization
from llm2slm.evaluation.metrics.words import content_words, set_apart, words
from llm2slm.runs import Score
from llm2slm.types import UserError

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
UNICODE = "tok:unicode-chars, case folded, not stemmed"
CHARACTERS = "each character of a script without spaces a word (tok:chars)"
"""What signatures say of tokenizers that are this project's."""
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
NO_C_STRING = re.compile("[\0\ud800-\udfff]")
CUT = re.compile(r", \d+ texts cut to \d+ tokens$")
"""What a signature adds about the texts (bertscore.py), not about how a score is computed."""
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


def score(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str], languages: Languages = None
) -> dict[str, Score]:
    """Scores predictions against one reference each; arguments and errors are those of `measure`."""
    return {name: found.score() for name, found in measure(names, predictions, references, languages).items()}


def measure(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str], languages: Languages = None
) -> dict[str, Measured]:
    """Measures predictions against one reference each.

    * bleu: corpus BLEU of sacrebleu, 0 to 100 (Papineni et al. 2002; Post 2018); its tokenizer is 13a, for Chinese zh,
      for Japanese ja-mecab, for Korean ko-mecab (char where that is not installed), for Thai, Lao, Khmer, Burmese and
      Tibetan char.
    * chrf: corpus chrF2 of sacrebleu, 0 to 100 (Popović 2015); chrf++: with words and pairs of words (Popović 2017).
    * ter: edits, shifts of phrases among them, over the references' words, in per cent, so above 100 where there are
      more edits than words; lower is better. sacrebleu's, which ignores upper case (Snover et al. 2006).
    * rouge1, rouge2, rougeL, rougeLsum: mean F1 of the rouge-score package, 0 to 100 (Lin 2004). For English by its own
      tokenizer, which keeps a-z and 0-9 alone, and its English stemmer; else by words of Unicode, not stemmed.
    * token_f1: mean F1 of the words that prediction and reference share, order aside, 0 to 100. For English in lower
      case, without punctuation and articles, as SQuAD does (Rajpurkar et al. 2016); else of words of Unicode.
    * exact_match: share of predictions equal to the reference, white space at both ends aside, 0 to 100.
    * length_ratio: words of all predictions over words of all references, 13a tokenizer; 1 where lengths agree.
    * repetition: share of an answer's 4-grams that it has written before, mean over answers, 0 to 100; 0 for an answer
      of less than four words (seq-rep-4 of Welleck et al. 2020, on 13a words); lower is better. Of the predictions
      alone.

    In a language whose script has no spaces between words, each character is a word (`words.py`) of every metric but
    BLEU, chrF and exact match.

    Args:
        names: metrics wanted, of texts alone; the result keeps their order.
        predictions: one text per row; an empty one is a legal, bad answer.
        references: the same rows' right answers.
        languages: codes of the references' languages, one for all rows or one for each; rows of None are tokenized as
            the script of their references suggests (`tokenization.seen`).

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
    codes = tokenization.by_row(languages, references)
    return {name: _by_language(name, predictions, references, codes) for name in names}


def _by_language(name: str, predictions: Sequence[str], references: Sequence[str], codes: Sequence[str]) -> Measured:
    """A metric of rows in one or several languages, each row tokenized by its own; its signature tells which by which.

    Rows whose languages the metric tokenizes alike are measured together.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, code in enumerate(codes):
        groups.setdefault(tokenization.aspect(name, code), []).append(row)
    parts = []
    for rows in groups.values():
        ours, right = [predictions[row] for row in rows], [references[row] for row in rows]
        parts.append((rows, METRICS[name](name, ours, right, tokenization.of(codes[rows[0]]))))
    if len(parts) == 1:
        return parts[0][1]
    placed = dict(pair for rows, part in parts for pair in zip(rows, part.counts, strict=True))
    named = [f"{', '.join(sorted({codes[row] for row in rows}))}: {part.signature}" for rows, part in parts]
    return Measured([placed[row] for row in range(len(codes))], parts[0][1].value, "; ".join(sorted(named)))


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


def computed_alike(one: str, two: str) -> bool:
    """Whether scores of two signatures compare: how many texts a model had to cut makes no difference."""
    return CUT.sub("", one) == CUT.sub("", two)


def mean(values: Sequence[float], signature: str) -> Measured:
    """A metric that is the mean of a value for each row, in per cent of 1."""
    return Measured([(value, 1.0) for value in values], lambda sums: 100 * sums[0] / sums[1], signature)


def _sacrebleu(metric: Any, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    """A metric of sacrebleu by its own counts of each row, which its significance tests resample in the same way."""
    counts = metric._extract_corpus_statistics(list(predictions), [list(references)])
    signature = f"sacrebleu {metric.get_signature()}"
    return Measured(counts, lambda sums: float(metric._compute_score_from_stats(sums).score), signature)


def _bleu(_name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    from sacrebleu.metrics import BLEU

    tokenizer = tokenization.usable(how.bleu)
    if tokenizer in tokenization.PACKAGES:  # MeCab's interface takes C strings
        predictions = [NO_C_STRING.sub("\ufffd", text) for text in predictions]
        references = [NO_C_STRING.sub("\ufffd", text) for text in references]
    # force: no warning about texts that look tokenized; the score is the same
    return _sacrebleu(BLEU(force=True, tokenize=tokenizer), predictions, references)


def _chrf(name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    from sacrebleu.metrics import CHRF

    metric = CHRF(word_order=2 if name == "chrf++" else 0)
    if name == "chrf++" and how.characters:
        return _apart(metric, predictions, references)
    return _sacrebleu(metric, predictions, references)


def _ter(_name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    from sacrebleu.metrics import TER

    if how.characters and not how.asian:
        return _apart(TER(), predictions, references)
    return _sacrebleu(TER(normalized=how.asian, asian_support=how.asian), predictions, references)


def _apart(metric: Any, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    """A metric of sacrebleu that finds words by their spaces, on texts with spaces between characters."""
    found = _sacrebleu(metric, [set_apart(text) for text in predictions], [set_apart(text) for text in references])
    return replace(found, signature=f"{found.signature}, {CHARACTERS}")


class _UnicodeWords:
    """Tokenizer of rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return content_words(text)


def _rouge(name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    from rouge_score.rouge_scorer import RougeScorer

    own = _UnicodeWords() if how.unicode else None
    scorer = RougeScorer([name], use_stemmer=True, split_summaries=False, tokenizer=own)
    pairs = zip(references, predictions, strict=True)
    values = [float(scorer.score(reference, prediction)[name].fmeasure) for reference, prediction in pairs]
    signature = f"rouge-score {metadata.version('rouge-score')}, F1, {UNICODE if how.unicode else 'English stemmer'}"
    if name == "rougeLsum":
        signature += ", sentences split by newline"
    return mean(values, signature)


def _token_f1(_name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    def squad(text: str) -> list[str]:
        return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()

    def f1(ours: list[str], right: list[str]) -> float:
        if not ours or not right:  # as SQuAD 2.0: nothing is right where nothing is asked for
            return float(ours == right)
        return 2 * sum((Counter(ours) & Counter(right)).values()) / (len(ours) + len(right))

    cut = content_words if how.unicode else squad
    values = [f1(cut(p), cut(r)) for p, r in zip(predictions, references, strict=True)]
    english = "SQuAD: lower case, without ASCII punctuation and English articles"
    return mean(values, f"F1 of words, {UNICODE if how.unicode else english}")


def _exact_match(_name: str, predictions: Sequence[str], references: Sequence[str], _how: Tokenization) -> Measured:
    hits = [float(p.strip() == r.strip()) for p, r in zip(predictions, references, strict=True)]
    return mean(hits, "equal after stripping white space at both ends")


def _counted(how: Tokenization) -> tuple[Callable[[str], list[str]], str]:
    """Cuts a text into the words whose number counts, and what a signature calls them: the 13a words of BLEU; where
    there are no spaces, those of `words`, by which `buckets.py` counts too."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    if how.characters:
        return words, f"words between spaces, {CHARACTERS}"
    cut = Tokenizer13a()
    return lambda text: cut(text).split(), f"13a words, sacrebleu {metadata.version('sacrebleu')}"


def _length_ratio(_name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    cut, named = _counted(how)
    counts = [(len(cut(p)), len(cut(r))) for p, r in zip(predictions, references, strict=True)]
    signature = f"predictions over references, {named}"
    return Measured(counts, lambda sums: sums[0] / sums[1] if sums[1] else float("nan"), signature)


def _repetition(_name: str, predictions: Sequence[str], _references: Sequence[str], how: Tokenization) -> Measured:
    cut, named = _counted(how)

    def repeated(text: str) -> float:
        found = cut(text)
        grams = [tuple(found[i : i + 4]) for i in range(len(found) - 3)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    values = [repeated(prediction) for prediction in predictions]
    return mean(values, f"1 - different 4-grams over all, {named}")


METRICS: dict[str, Callable[[str, Sequence[str], Sequence[str], Tokenization], Measured]] = {
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
