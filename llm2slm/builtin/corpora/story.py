"""Parts shared by the report kinds: names, numbers in words, and rendering of a story in varied order."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from llm2slm.builtin.corpora.lexicon import load_lexicon

NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("March", "April", "May", "June", "July")
TOWNS = ("Berlin", "Hamburg", "Bonn", "Bremen", "Dresden", "Kiel", "Ulm", "Jena")
NAMES = tuple(word.en for kind in ("name_f", "name_m") for word in load_lexicon().by_category[kind])
COLORS = ("red", "blue", "green", "black", "white")
PLACES = {"park": "in", "station": "at", "museum": "in", "church": "in", "market": "at", "library": "in"}
MIN_WORDS, MAX_WORDS, MAX_SENTENCES = 36, 66, 7


class Story(NamedTuple):
    """The parts of one report: opening and facts, each in several wordings, and irrelevant sentences.

    `ordered` keeps the facts in the order in which they happened.
    """

    opening: Sequence[str]
    facts: Sequence[Sequence[str]]
    noise: Sequence[str]
    summary: str
    ordered: bool = False


def count(n: int, unit: str, plural: str = "") -> str:
    """Writes `n` (0 to 20) of a unit in words: `one point`, `three points`."""
    return f"{NUMBERS[n]} {unit if n == 1 else plural or unit + 's'}"


def tell(rng: random.Random, story: Story) -> str:
    """Joins a story's facts and irrelevant sentences to a report of 4 to 7 sentences."""
    opening = rng.choice(story.opening)
    facts = [rng.choice(wordings) for wordings in story.facts]
    if not story.ordered:
        rng.shuffle(facts)
    extras = rng.sample(story.noise, len(story.noise))
    length = len(" ".join([opening, *facts]).split())
    wanted = len(facts) + rng.randint(1, 3)
    for extra in extras:
        words = len(extra.split())
        if length >= MIN_WORDS and (len(facts) >= wanted or length + words > MAX_WORDS):
            break
        if len(facts) + 1 >= MAX_SENTENCES:
            break
        facts.insert(rng.randint(0, len(facts)), extra)
        length += words
    return " ".join([opening, *facts])
