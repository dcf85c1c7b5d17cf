"""Random choice of words for the plans: lookups over the lexicon, and sets of ownable and kinship nouns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

from llm2slm.builtin.corpora.lexicon import Adjective, Lexicon, Noun, Verb, load_lexicon

T = TypeVar("T")
POSSESSIVES = ("my", "his", "her", "our", "their", "your")
OWNED = frozenset({"animal", "clothing", "text", "tool", "furniture", "vehicle", "building", "room", "fixture"})
KIN = frozenset(
    [
        "friend",
        "brother",
        "sister",
        "mother",
        "father",
        "uncle",
        "aunt",
        "grandmother",
        "grandfather",
        "son",
        "daughter",
        "cousin",
        "neighbor",
        "boss",
        "teacher",
        "doctor",
        "lawyer",
        "child",
        "driver",
        "guest",
    ]
)
ACTION_FRAMES = (
    ("trans",) * 9 + ("motion",) * 3 + ("dat",) * 2 + ("ditrans",) * 3 + ("ditransto", "prepobj", "prepobj", "put")
)
FRAMES = ACTION_FRAMES + ("intr",) * 5 + ("posture",) * 2 + ("copula",) * 4
NO_PLACE = frozenset({"know", "love", "hate", "need", "understand", "forget"})
FLATNESS = 0.1  # of Zipf's curve: Mandelbrot's offset as a fraction of the number of words
STATES = NO_PLACE | {"trust", "thank", "agree with", "obey", "forgive"}


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One item, uniformly (faster than `rng.choice`)."""
    return items[int(rng.random() * len(items))]


def pick_word(rng: random.Random, words: Sequence[T]) -> T:
    """One lexeme, by Zipf's law as Mandelbrot wrote it: the word of rank r (from 0, in the lexicon's order, of n) is
    drawn about in proportion to 1 / (r + n / 10), the first one thus eleven times as often as the last.

    As in natural language, word frequencies differ; a model with more training data predicts rare words better.
    """
    return words[int(len(words) * FLATNESS * (((1 + FLATNESS) / FLATNESS) ** rng.random() - 1))]


class Index:
    """Lookups that the sampler needs over the lexicon."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.words = lexicon.by_category
        self.people = lexicon.by_class["person"]
        self.names = self.words["name_f"] + self.words["name_m"]
        self.places = tuple(noun for noun in lexicon.nouns if noun.place_de and noun.semantic_class != "furniture")
        self.indoors = tuple(noun for noun in self.places if noun.place_de == "in" and noun.semantic_class != "vehicle")
        self.landmarks = tuple(
            n for n in lexicon.nouns if n.semantic_class in ("building", "plant", "furniture", "vehicle")
        )
        self.surfaces = lexicon.by_class["furniture"]
        self.described = tuple(noun for noun in lexicon.nouns if len(lexicon.adjectives_of[noun.en_sg]) > 1)
        self.subject_verbs = self._by_noun(("trans", "dat", "intr", "motion", "prepobj", "ditrans"), subjects=True)
        self.acc_verbs = self._by_noun(("trans",), subjects=False)
        self.dat_verbs = lexicon.by_frame["dat"] + lexicon.by_frame["ditrans"]
        self.prep_verbs = self._by_noun(("prepobj",), subjects=False)
        self.preposition = {
            word.en: word
            for word in lexicon.others
            if word.category.startswith("preposition") or word.category == "direction"
        }

    def _by_noun(self, frames: tuple[str, ...], subjects: bool) -> dict[str, tuple[Verb, ...]]:
        found: dict[str, list[Verb]] = {noun.en_sg: [] for noun in self.lexicon.nouns}
        for frame in frames:
            for verb in self.lexicon.by_frame[frame]:
                for noun in verb.subjects if subjects else verb.objects:
                    found[noun.en_sg].append(verb)
        return {name: tuple(verbs) for name, verbs in found.items()}


@lru_cache(maxsize=1)
def index() -> Index:
    """The lookups over the package's lexicon, built once."""
    return Index(load_lexicon())


def draw_adjectives(rng: random.Random, noun: Noun) -> tuple[Adjective, ...]:
    """None, one or rarely two adjectives that fit the noun."""
    draw = rng.random()
    choices = index().lexicon.adjectives_of[noun.en_sg]
    if draw < 0.58 or not choices:
        return ()
    first = pick_word(rng, choices)
    if draw < 0.94 or len(choices) == 1:
        return (first,)
    second = pick_word(rng, choices)
    return (first, second) if second is not first and second.en_comparative != first.en_comparative else (first,)
