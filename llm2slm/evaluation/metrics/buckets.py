"""Quality by length: each metric on the rows with short and on those with long prompts, and so for responses.

The LLM reads once, before the first token is written; whether its guidance still serves at the end of a long answer
shows here. Lengths are counted in words (`words.py`), not in tokens of a tokenizer, so that systems with different
tokenizers are judged on the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from llm2slm.evaluation.metrics.metric import Measured
from llm2slm.evaluation.metrics.words import words
from llm2slm.runs import Bucket
from llm2slm.types import Example

SMALLEST = 20
"""Rows of a bucket at least: a score of fewer says little."""
PARTS = 4


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Positions of rows in buckets of like length, shortest first; none where fewer than two buckets remain.

    Cut points are the quartiles of the lengths: of n lengths in order, counted from 0, those at n//4, 2n//4 and 3n//4;
    each is the shortest of its bucket, and equal lengths stay together. Then, as long as the smallest bucket (the first
    of equal ones) has fewer than `SMALLEST` rows, it joins the smaller one of its neighbours (the first of equal ones).
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    starts = {lengths[order[len(order) * part // PARTS]] for part in range(PARTS)} if order else set()
    buckets: list[list[int]] = []
    for row in order:
        if lengths[row] in starts:
            starts.remove(lengths[row])
            buckets.append([])
        buckets[-1].append(row)
    while len(buckets) > 1 and len(min(buckets, key=len)) < SMALLEST:
        at = min(range(len(buckets)), key=lambda n: len(buckets[n]))
        beside = min((n for n in (at - 1, at + 1) if 0 <= n < len(buckets)), key=lambda n: len(buckets[n]))
        first = min(at, beside)
        buckets[first : first + 2] = [buckets[first] + buckets[first + 1]]
    return buckets if len(buckets) > 1 else []


def quality_by_length(examples: Sequence[Example], measured: Mapping[str, Measured]) -> list[Bucket]:
    """Every metric in every bucket: by the prompt's words (the task's prefix aside), then by the reference's.

    A metric that has no value in a bucket (length_ratio where all references are empty) is left out there.
    """
    sides = {
        "prompt": [len(words(example.source)) for example in examples],
        "response": [len(words(example.target)) for example in examples],
    }
    found = []
    for by, lengths in sides.items():
        for rows in by_length(lengths):
            values = {name: metric.score(rows).value for name, metric in measured.items()}
            quality = {name: value for name, value in values.items() if isfinite(value)}
            found.append(Bucket(by, lengths[rows[0]], lengths[rows[-1]], len(rows), quality))
    return found
