"""Text in, scores out: BLEU, chrF, ROUGE, exact match and length ratio, each with the signature of how it was computed.

Every function takes plain strings and touches no network: sentences for ROUGE-Lsum are told apart by newlines, never by
a downloaded sentence splitter. Scores of different signatures must not be compared.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from importlib import metadata

from llm2slm.runs import Score
from llm2slm.types import UserError

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def score(names: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> dict[str, Score]:
    """Scores predictions against one reference each.

    * bleu: corpus BLEU of sacrebleu, 0 to 100 (Papineni et al. 2002; Post 2018).
    * chrf: corpus chrF2 of sacrebleu, 0 to 100 (Popović 2015).
    * rouge1, rouge2, rougeL, rougeLsum: mean F1 of the rouge-score package, 0 to 100 (Lin 2004). Its tokenizer keeps
      a-z and 0-9 alone and its stemmer is English: meant for English text.
    * exact_match: share of predictions equal to the reference, white space at both ends aside, 0 to 100.
    * length_ratio: words of all predictions over words of all references, 13a tokenizer; 1 where lengths agree.

    Args:
        names: metrics wanted; the result keeps their order.
        predictions: one text per row; an empty one is a legal, bad answer.
        references: the same rows' right answers.

    Raises:
        UserError: unknown metric, no rows, counts that differ, or no reference with any text.
    """
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, 1, 0.0)[0]
            raise UserError(f"metric {name!r} is unknown; did you mean {near!r}? Known: {', '.join(METRICS)}")
    if len(predictions) != len(references):
        raise UserError(f"{len(predictions)} predictions for {len(references)} references; each row needs both")
    if not predictions:
        raise UserError("nothing to score: no predictions; check that the split is not empty")
    if not any(reference.strip() for reference in references):
        raise UserError(f"nothing to score against: all {len(references)} references are empty; check data.target")
    return {name: METRICS[name](name, predictions, references) for name in names}


def _bleu(_name: str, predictions: Sequence[str], references: Sequence[str]) -> Score:
    from sacrebleu.metrics import BLEU

    metric = BLEU(force=True)  # force: no warning about texts that look tokenized; the score is the same
    value = metric.corpus_score(list(predictions), [list(references)]).score
    return Score(float(value), f"sacrebleu {metric.get_signature()}", len(predictions))


def _chrf(_name: str, predictions: Sequence[str], references: Sequence[str]) -> Score:
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    value = metric.corpus_score(list(predictions), [list(references)]).score
    return Score(float(value), f"sacrebleu {metric.get_signature()}", len(predictions))


def _rouge(name: str, predictions: Sequence[str], references: Sequence[str]) -> Score:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=True, split_summaries=False)
    pairs = zip(references, predictions, strict=True)
    values = [float(scorer.score(reference, prediction)[name].fmeasure) for reference, prediction in pairs]
    signature = f"rouge-score {metadata.version('rouge-score')}, F1, English stemmer"
    if name == "rougeLsum":
        signature += ", sentences split by newline"
    return Score(100 * sum(values) / len(values), signature, len(values))


def _exact_match(_name: str, predictions: Sequence[str], references: Sequence[str]) -> Score:
    hits = sum(p.strip() == r.strip() for p, r in zip(predictions, references, strict=True))
    return Score(100 * hits / len(predictions), "equal after stripping white space at both ends", len(predictions))


def _length_ratio(_name: str, predictions: Sequence[str], references: Sequence[str]) -> Score:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    words = Tokenizer13a()

    def count(texts: Sequence[str]) -> int:
        return sum(len(words(text).split()) for text in texts)

    signature = f"predictions over references, 13a words, sacrebleu {metadata.version('sacrebleu')}"
    return Score(count(predictions) / count(references), signature, len(predictions))


METRICS: dict[str, Callable[[str, Sequence[str], Sequence[str]], Score]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    **dict.fromkeys(ROUGE, _rouge),
    "exact_match": _exact_match,
    "length_ratio": _length_ratio,
}
"""Every metric by its name, in the order that messages list them."""
