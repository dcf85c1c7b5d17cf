"""Simple English sentences over the lexicon, and the transformed forms that the instruction corpus requests."""

import random
from typing import NamedTuple

from llm2slm.builtin.corpora.lexicon import Noun, Verb, load_lexicon
from llm2slm.builtin.corpora.story import NAMES

_LEXICON = load_lexicon()
_ACTIONS = tuple(verb for frame in ("trans", "prepobj") for verb in _LEXICON.by_frame[frame])
# Verbs whose action can happen at any place, and whose object can be carried there.
_SITED = tuple(_LEXICON.verb[key] for key in ("buy", "sell", "find", "lose", "forget", "hide", "read", "eat", "need"))
_PORTABLE = frozenset(
    noun.en_sg
    for name in ("tool", "text", "clothing", "food")
    for noun in _LEXICON.by_class[name]
    if noun.en_sg not in ("story", "fairytale", "poem", "message")
)
_PLACES = tuple(noun for noun in _LEXICON.nouns if noun.place_en and noun.semantic_class in ("building", "outdoor"))


def capitalized(text: str) -> str:
    """Raises the first letter and leaves the others."""
    return text[:1].upper() + text[1:]


def with_article(noun: Noun) -> str:
    """Puts the indefinite article before a noun, or `some` before one that is not counted."""
    if noun.mass:
        return f"some {noun.en_sg}"
    return f"{'an' if noun.en_sg[0] in 'aeiou' else 'a'} {noun.en_sg}"


class Sentence(NamedTuple):
    """Someone does something to something, perhaps somewhere; `subject` and `object` are whole phrases."""

    subject: str
    verb: Verb
    object: str
    place: str = ""

    def _rest(self) -> str:
        return " ".join(part for part in (self.verb.en_particle, self.object, self.place) if part)

    def present(self) -> str:
        """`The cook buys an egg.`"""
        return capitalized(f"{self.subject} {self.verb.en_3sg} {self._rest()}.")

    def past(self) -> str:
        """`The cook bought an egg.`"""
        return capitalized(f"{self.subject} {self.verb.en_past} {self._rest()}.")

    def future(self) -> str:
        """`The cook will buy an egg.`"""
        return capitalized(f"{self.subject} will {self.verb.en_base} {self._rest()}.")

    def negative(self) -> str:
        """`The cook did not buy the egg.`"""
        return capitalized(f"{self.subject} did not {self.verb.en_base} {self._rest()}.")

    def question(self) -> str:
        """`Did the cook buy the egg?`"""
        return f"Did {self.subject} {self.verb.en_base} {self._rest()}?"

    def passive(self) -> str:
        """`The egg was bought by the cook.`"""
        verb = f"{self.verb.en_participle} {self.verb.en_particle}".strip()
        return capitalized(f"{self.object} was {verb} by {self.subject}.")


def draw_subject(rng: random.Random, verb: Verb) -> str:
    """Draws a doer for a verb: a name, or a definite noun phrase."""
    noun = rng.choice(verb.subjects)
    if noun.semantic_class == "person" and rng.random() < 0.4:
        return rng.choice(NAMES)
    return f"the {noun.en_sg}"


def draw_sentence(rng: random.Random, definite: bool = False) -> Sentence:
    """Draws a sentence without a place; with `definite`, the object has the article `the`."""
    verb = rng.choice(_ACTIONS)
    subject = draw_subject(rng, verb)
    thing = rng.choice(verb.objects)
    while subject == f"the {thing.en_sg}":
        thing = rng.choice(verb.objects)
    known = definite or thing.mass or rng.random() < 0.5
    return Sentence(subject, verb, f"the {thing.en_sg}" if known else with_article(thing))


def draw_pair(rng: random.Random) -> tuple[Sentence, Sentence]:
    """Draws two sentences with places that differ in every part."""
    verbs, places = rng.sample(_SITED, 2), rng.sample(_PLACES, 2)
    first, second = _sited(rng, verbs[0], places[0]), _sited(rng, verbs[1], places[1])
    while first.subject == second.subject or first.object == second.object:
        second = _sited(rng, verbs[1], places[1])
    return first, second


def draw_sited(rng: random.Random) -> Sentence:
    """Draws a sentence with a place."""
    return _sited(rng, rng.choice(_SITED), rng.choice(_PLACES))


def _sited(rng: random.Random, verb: Verb, place: Noun) -> Sentence:
    thing = rng.choice(verb.objects)
    while thing.en_sg not in _PORTABLE:
        thing = rng.choice(verb.objects)
    person = rng.choice(_LEXICON.by_class["person"])
    subject = rng.choice(NAMES) if rng.random() < 0.5 else f"the {person.en_sg}"
    return Sentence(subject, verb, with_article(thing), f"{place.place_en} the {place.en_sg}")
