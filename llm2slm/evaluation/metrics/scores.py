"""The registry of metrics, and scores of predictions against references.

To add a metric, add one `Metric` to `METRICS`: name, title, direction, tokenization, per-row statistics and corpus
formula. The statistics are computed in `text_metrics.py`, `perplexity.py` and `bertscore.py`; `tokenization.py` selects
the tokenization by the language of the references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llm2slm.evaluation.metrics import text_metrics as text
from llm2slm.evaluation.metrics import tokenization
from llm2slm.evaluation.metrics.metric import Evaluated, Measured, Metric
from llm2slm.evaluation.metrics.tokenization import Languages
from llm2slm.nearest_names import nearest
from llm2slm.runs import Score
from llm2slm.types import UserError

TRUNCATED = re.compile(r", \d+ texts cut to \d+ tokens$")
"""Part of a BERTScore signature that describes the texts, not how the score is computed."""


def _perplexity(_name: str, evaluated: Evaluated) -> Measured:
    from llm2slm.evaluation.metrics.perplexity import perplexity

    return perplexity(evaluated.model, evaluated.encoded(), evaluated.batch_size, progress=evaluated.progress)


def _bertscore(name: str, evaluated: Evaluated) -> Measured:
    from llm2slm.evaluation.metrics.bertscore import BertScore

    scorer = BertScore(name, evaluated.model.device)
    return scorer.measure(evaluated.predictions, evaluated.references, progress=evaluated.progress)


def _check_bertscore(name: str) -> None:
    from llm2slm.evaluation.metrics.bertscore import check as check_model

    check_model(name)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("bleu", "BLEU", text.bleu, tokenization=("bleu",), row_score=text.sentence_bleu),
        Metric("chrf", "chrF", text.chrf),
        Metric("chrf++", "chrF++", text.chrf, tokenization=("characters",)),
        Metric("ter", "TER", text.ter, tokenization=("characters", "asian"), lower_is_better=True),
        Metric("rouge1", "ROUGE-1", text.rouge, tokenization=("unicode",), words_only=True),
        Metric("rouge2", "ROUGE-2", text.rouge, tokenization=("unicode",), words_only=True),
        Metric("rougeL", "ROUGE-L", text.rouge, tokenization=("unicode",), words_only=True),
        Metric("rougeLsum", "ROUGE-Lsum", text.rouge, tokenization=("unicode",), words_only=True),
        Metric("token_f1", "Token F1", text.token_f1, tokenization=("unicode",)),
        Metric("exact_match", "Exact match", text.exact_match),
        Metric("length_ratio", "Length ratio", text.length_ratio, tokenization=("characters",), ranked=False),
        Metric("repetition", "Repetition", text.repetition, tokenization=("characters",), lower_is_better=True),
        Metric("perplexity", "Perplexity", with_model=_perplexity, lower_is_better=True),
        Metric("bertscore:", "BERTScore", with_model=_bertscore, check=_check_bertscore),
    )
}
"""Every metric by name, in the order in which messages list them."""


def find(name: str) -> Metric | None:
    """The metric of a name, argument included (bertscore:MODEL); None: unknown."""
    head, colon, _ = name.partition(":")
    return METRICS.get(head + colon)


def check(names: Sequence[str]) -> None:
    """Refuses unknown metrics.

    Raises:
        UserError: names the metric and the most similar known one.
    """
    for name in names:
        if find(name) is None:
            near = nearest(name, METRICS)
            known = ", ".join(f"{each}MODEL[:layer]" if each.endswith(":") else each for each in METRICS)
            raise UserError(f"metric {name!r} is unknown; did you mean {near!r}? Known: {known}")


def of_texts(names: Iterable[str]) -> list[str]:
    """The metrics among these that are computed from texts alone."""
    return [name for name in names if (metric := find(name)) is not None and metric.texts is not None]


def title(name: str) -> str:
    """A metric as shown to users; of its argument, a path or Hub id, the last part. An unknown name is unchanged."""
    if (metric := find(name)) is None:
        return name
    argument = name.removeprefix(metric.name).rpartition("/")[2]
    return f"{metric.title} ({argument})" if argument else metric.title


def lower_is_better(name: str) -> bool:
    """The direction of a metric; False for an unknown one, True for the loss."""
    return name == "loss" or ((metric := find(name)) is not None and metric.lower_is_better)


def ranked(name: str) -> bool:
    """Whether one of the two directions of a metric is better."""
    return (metric := find(name)) is None or metric.ranked


def computed_alike(one: str, two: str) -> bool:
    """Whether scores of two signatures compare: the number of texts that were truncated makes no difference."""
    return TRUNCATED.sub("", one) == TRUNCATED.sub("", two)


def score(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str], languages: Languages = None
) -> dict[str, Score]:
    """Corpus scores of predictions; arguments and errors are those of `measure`."""
    return {name: found.score() for name, found in measure(names, predictions, references, languages).items()}


def measure(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str], languages: Languages = None
) -> dict[str, Measured]:
    """Per-row statistics of predictions, each against one reference.

    Args:
        names: metrics of texts; the result keeps their order.
        predictions: one text per row; it may be empty.
        references: the reference of each row.
        languages: codes of the references' languages, one for all rows or one per row. Rows of None are tokenized for
            the main script of their references (`tokenization.detected`).

    Raises:
        UserError: an unknown metric or one that needs a model, no rows, counts that differ, or no reference with text.
    """
    check(names)
    if len(predictions) != len(references):
        raise UserError(f"{len(predictions)} predictions for {len(references)} references; each row needs both")
    if not predictions:
        raise UserError("nothing to score: no predictions; check that the split is not empty")
    if not any(reference.strip() for reference in references):
        raise UserError(f"nothing to score against: all {len(references)} references are empty; check data.target")
    if missing := [name for name in names if name not in of_texts(names)]:
        raise UserError(f"{', '.join(missing)}: needs a model, not texts alone")
    codes = tokenization.by_row(languages, references)
    return {name: _by_language(name, predictions, references, codes) for name in names}


def _by_language(name: str, predictions: Sequence[str], references: Sequence[str], codes: Sequence[str]) -> Measured:
    """A metric over rows in one or several languages, each row tokenized for its language.

    Rows whose languages the metric tokenizes alike are scored together. With several tokenizations the signature lists
    each with its languages.
    """
    metric = METRICS[name]
    assert metric.texts is not None
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, code in enumerate(codes):
        groups.setdefault(metric.tokenized(code), []).append(row)
    parts = []
    for rows in groups.values():
        texts = [predictions[row] for row in rows], [references[row] for row in rows]
        parts.append((rows, metric.texts(name, *texts, tokenization.of(codes[rows[0]]))))
    if len(parts) == 1:
        return parts[0][1]
    counts = dict(pair for rows, part in parts for pair in zip(rows, part.counts, strict=True))
    named = [f"{', '.join(sorted({codes[row] for row in rows}))}: {part.signature}" for rows, part in parts]
    return Measured([counts[row] for row in range(len(codes))], parts[0][1].value, "; ".join(sorted(named)))
