"""The best of several results, by the validation scores that selected their checkpoints; never by a test score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llm2slm.evaluation.metrics.scores import computed_alike, title

SHOWN = 4
"""At most so many results without a validation score are named."""


def best_by_validation(results: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> tuple[int | None, str]:
    """Index of the result with the best validation score (the first in a tie), and "".

    If the results cannot be ranked: None, and one sentence with the reason ("" for fewer than two results, and if none
    has a test score). They can be ranked if each has a validation score of the same metric, direction and signature. A
    score that is not finite (a diverged training) ranks last.

    Args:
        labels: names of the results in the sentence.
    """
    if len(results) < 2 or not any(system.get("quality") for result in results for system in result.get("systems", ())):
        return None, ""
    selections, reason = comparable_selections(results, labels)
    if not selections:
        return None, reason
    finite = [index for index, each in enumerate(selections) if math.isfinite(each["value"])]
    if not finite:
        return None, f"Not ranked: no validation {metric_title(selections[0])} is finite."
    choose = min if selections[0]["mode"] == "min" else max
    return choose(finite, key=lambda index: float(selections[index]["value"])), ""


def comparable_selections(
    results: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> tuple[list[Mapping[str, Any]], str]:
    """The `selection` of each result, and ""; [] and one sentence with the reason if they cannot be compared.

    Args:
        results: those of several corpora have the key `corpus` (`corpora.py`).
        labels: names of the results in the sentence.
    """
    corpora = dict.fromkeys(str(result["corpus"]) for result in results if result.get("corpus"))
    if len(corpora) > 1:
        return [], f"Not ranked: the runs are of different corpora, {', '.join(corpora)}."
    selections = [result.get("selection") or {} for result in results]
    if missing := [name for name, each in zip(labels, selections, strict=True) if each.get("value") is None]:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        return [], f"Not ranked: no validation score of {', '.join(missing[:SHOWN])}{more}."
    metrics = dict.fromkeys(f"{metric_title(each)} ({each['mode']})" for each in selections)
    if len(metrics) > 1:
        return [], f"Not ranked: the validation scores are of different metrics, {', '.join(metrics)}."
    if len(_signatures(results, selections[0]["metric"])) > 1:
        return [], f"Not ranked: {metric_title(selections[0])} has different signatures."
    return selections, ""


def metric_title(selection: Mapping[str, Any]) -> str:
    """The metric of a `selection`, as shown to users."""
    return title(str(selection["metric"]).removeprefix("val/"))


def _signatures(results: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """The incompatible signatures of the test scores of a metric `val/NAME`, whose validation scores have none."""
    found: list[str] = []
    for result in results:
        for system in result.get("systems", ()):
            score = (system.get("quality") or {}).get(metric.removeprefix("val/"))
            if score is not None and not any(computed_alike(str(score["signature"]), other) for other in found):
                found.append(str(score["signature"]))
    return found
