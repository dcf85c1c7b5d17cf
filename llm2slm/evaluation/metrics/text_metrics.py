"""Metrics of texts: n-gram, overlap and length statistics of predictions and references. No network access.

Each function takes the metric's name, predictions, references and a tokenization, and returns per-row statistics with
the corpus formula. In languages whose script has no spaces between words, each character is a word (`words.py`) in
every metric but BLEU, chrF and exact match.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from llm2slm.evaluation.metrics.metric import Measured, mean
from llm2slm.evaluation.metrics.tokenization import PACKAGES, Tokenization, usable
from llm2slm.evaluation.metrics.words import content_words, set_apart, words

UNICODE = "tok:unicode-chars, case folded, not stemmed"
CHARACTERS = "each character of a script without spaces a word (tok:chars)"
"""Names of this project's tokenizers in signatures."""
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
NO_C_STRING = re.compile("[\0\ud800-\udfff]")


def bleu(_name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    """Corpus BLEU of sacrebleu, 0 to 100 (Papineni et al. 2002; Post 2018).

    Tokenizer: 13a; zh for Chinese, ja-mecab for Japanese, ko-mecab for Korean (char where that is not installed), char
    for Thai, Lao, Khmer, Burmese and Tibetan.
    """
    from sacrebleu.metrics import BLEU

    tokenizer = usable(how.bleu)
    if tokenizer in PACKAGES:  # MeCab's interface takes C strings
        predictions = [NO_C_STRING.sub("\ufffd", text) for text in predictions]
        references = [NO_C_STRING.sub("\ufffd", text) for text in references]
    # force: no warning about texts that look tokenized; the score is the same
    return _sacrebleu(BLEU(force=True, tokenize=tokenizer), predictions, references)


def sentence_bleu(sums: list[float]) -> float:
    """BLEU of one row over the n-gram orders that the row has (effective order)."""
    from sacrebleu.metrics import BLEU

    return float(BLEU(force=True, effective_order=True)._compute_score_from_stats(sums).score)


def chrf(name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    """Corpus chrF2 of sacrebleu, 0 to 100 (Popović 2015); chrf++: with word unigrams and bigrams (Popović 2017)."""
    from sacrebleu.metrics import CHRF

    metric = CHRF(word_order=2 if name == "chrf++" else 0)
    if name == "chrf++" and how.characters:
        return _spaced(metric, predictions, references)
    return _sacrebleu(metric, predictions, references)


def ter(_name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    """Edits, phrase shifts included, over reference words, in per cent: above 100 if there are more edits than words.

    Lower is better. Computed by sacrebleu, case-insensitive (Snover et al. 2006).
    """
    from sacrebleu.metrics import TER

    if how.characters and not how.asian:
        return _spaced(TER(), predictions, references)
    return _sacrebleu(TER(normalized=how.asian, asian_support=how.asian), predictions, references)


def _sacrebleu(metric: Any, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    """A metric of sacrebleu by the per-row statistics that its own significance tests resample."""
    counts = metric._extract_corpus_statistics(list(predictions), [list(references)])
    signature = f"sacrebleu {metric.get_signature()}"
    return Measured(counts, lambda sums: float(metric._compute_score_from_stats(sums).score), signature)


def _spaced(metric: Any, predictions: Sequence[str], references: Sequence[str]) -> Measured:
    """A metric of sacrebleu that splits words at spaces, on texts with spaces inserted between characters."""
    found = _sacrebleu(metric, [set_apart(text) for text in predictions], [set_apart(text) for text in references])
    return replace(found, signature=f"{found.signature}, {CHARACTERS}")


class _UnicodeWords:
    """A tokenizer for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return content_words(text)


def rouge(name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    """rouge1, rouge2, rougeL, rougeLsum: mean F1 of the rouge-score package, 0 to 100 (Lin 2004).

    English: rouge-score's tokenizer, which keeps a-z and 0-9 only, and its stemmer; other languages: Unicode words, not
    stemmed. ROUGE-Lsum splits sentences at newlines, not by a downloaded sentence splitter.
    """
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = _UnicodeWords() if how.unicode else None
    scorer = RougeScorer([name], use_stemmer=True, split_summaries=False, tokenizer=tokenizer)
    pairs = zip(references, predictions, strict=True)
    values = [float(scorer.score(reference, prediction)[name].fmeasure) for reference, prediction in pairs]
    signature = f"rouge-score {metadata.version('rouge-score')}, F1, {UNICODE if how.unicode else 'English stemmer'}"
    return mean(values, signature + (", sentences split by newline" if name == "rougeLsum" else ""))


def token_f1(_name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    """Mean F1 of the words that prediction and reference share, in any order, 0 to 100.

    English: lower case, without punctuation and articles, as SQuAD (Rajpurkar et al. 2016); else Unicode words.
    """

    def squad(text: str) -> list[str]:
        return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()

    def f1(prediction: list[str], reference: list[str]) -> float:
        if not prediction or not reference:  # as SQuAD 2.0: an empty reference needs an empty prediction
            return float(prediction == reference)
        shared = (Counter(prediction) & Counter(reference)).total()
        return 2 * shared / (len(prediction) + len(reference))

    split = content_words if how.unicode else squad
    values = [f1(split(p), split(r)) for p, r in zip(predictions, references, strict=True)]
    english = "SQuAD: lower case, without ASCII punctuation and English articles"
    return mean(values, f"F1 of words, {UNICODE if how.unicode else english}")


def exact_match(_name: str, predictions: Sequence[str], references: Sequence[str], _how: Tokenization) -> Measured:
    """Share of predictions equal to the reference after stripping white space at both ends, 0 to 100."""
    hits = [float(p.strip() == r.strip()) for p, r in zip(predictions, references, strict=True)]
    return mean(hits, "equal after stripping white space at both ends")


def length_ratio(_name: str, predictions: Sequence[str], references: Sequence[str], how: Tokenization) -> Measured:
    """Words of all predictions over words of all references (13a tokenizer); 1 where the lengths agree."""
    split, named = _splitter(how)
    counts = [(len(split(p)), len(split(r))) for p, r in zip(predictions, references, strict=True)]
    signature = f"predictions over references, {named}"
    return Measured(counts, lambda sums: sums[0] / sums[1] if sums[1] else float("nan"), signature)


def repetition(_name: str, predictions: Sequence[str], _references: Sequence[str], how: Tokenization) -> Measured:
    """Share of a prediction's 4-grams that occurred earlier in it, mean over predictions, 0 to 100; lower is better.

    seq-rep-4 of Welleck et al. 2020, on 13a words; 0 for a prediction of fewer than four words.
    """
    split, named = _splitter(how)

    def repeated(text: str) -> float:
        found = split(text)
        grams = [tuple(found[i : i + 4]) for i in range(len(found) - 3)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    return mean([repeated(prediction) for prediction in predictions], f"1 - different 4-grams over all, {named}")


def _splitter(how: Tokenization) -> tuple[Callable[[str], list[str]], str]:
    """A function from text to words, and its name in signatures: BLEU's 13a; `words` for scripts without spaces."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    if how.characters:
        return words, f"words between spaces, {CHARACTERS}"
    tokenize = Tokenizer13a()
    return lambda text: tokenize(text).split(), f"13a words, sacrebleu {metadata.version('sacrebleu')}"
