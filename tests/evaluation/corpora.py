"""Small seeded corpora for the tests of significance: references, and answers with a given share of wrong words."""

from __future__ import annotations

import random

TEXT = "the a cat dog old woman house reads sees gives book river never often small blue was tree bird runs to in"
WORDS = TEXT.split(" ")


def sentences(rows: int, seed: int, low: int = 4, high: int = 12) -> list[str]:
    """Random sentences of `low` to `high` words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(low, high))) for _ in range(rows)]


def noisy(references: list[str], share: float, seed: int) -> list[str]:
    """The references with that share of words replaced, dropped or duplicated."""
    rng = random.Random(seed)
    answers = []
    for reference in references:
        words = []
        for word in reference.split():
            if rng.random() >= share:
                words.append(word)
            else:
                words += rng.choice([[], [rng.choice(WORDS)], [word, word]])
        answers.append(" ".join(words))
    return answers
