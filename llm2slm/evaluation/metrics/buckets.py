"""Quality by length: each metric on subsets of rows with prompts, or responses, of similar length.

The LLM encodes the prompt once, before the first token is generated; quality by response length shows whether its
effect decreases in long responses. Lengths are counted in words (`words.py`), not in tokens, so that the subsets are
the same for systems with different tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from llm2slm.evaluation.metrics.metric import Measured
from llm2slm.evaluation.metrics.words import words
from llm2slm.runs import Bucket
from llm2slm.types import Example

SMALLEST = 20
"""Minimum number of rows of a bucket."""
PARTS = 4


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Row indices in buckets of similar length, shortest first; empty if fewer than two buckets remain.

    Cut points are the quartiles of the lengths: of n lengths in order, counted from 0, those at n//4, 2n//4 and 3n//4;
    each is the shortest of its bucket, and equal lengths stay together. While the smallest bucket (the first in a tie)
    has fewer than `SMALLEST` rows, it is merged with its smaller neighbour (the first in a tie).
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
        neighbour = min((n for n in (at - 1, at + 1) if 0 <= n < len(buckets)), key=lambda n: len(buckets[n]))
        first = min(at, neighbour)
        buckets[first : first + 2] = [buckets[first] + buckets[first + 1]]
    return buckets if len(buckets) > 1 else []


def quality_by_length(examples: Sequence[Example], measured: Mapping[str, Measured]) -> list[Bucket]:
    """Every metric in every bucket: by the prompt's words (without the task's prefix), then by the reference's.

    A metric without a value in a bucket (length_ratio if all references are empty) is left out there.
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
