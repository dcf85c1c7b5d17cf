"""English forms: articles, agreement, tenses, do-support. Persons are named as in `german.py`."""

from __future__ import annotations

from functools import lru_cache

from llm2slm.data.builtin.lexicon import Verb

OBJECT_PRONOUNS = {"I": "me", "he": "him", "she": "her", "we": "us", "you": "you", "they": "them"}
PERSONS = {"I": "1sg", "he": "3sg", "she": "3sg", "we": "1pl", "you": "2pl", "they": "3pl"}
PLAIN_MODALS = {
    "can": {"present": "can", "past": "could"},
    "should": {"present": "should", "past": "should"},
    "may": {"present": "may", "past": "was allowed to"},
}


def article(next_word: str) -> str:
    """`a` or `an` before the word."""
    return "an" if next_word[0] in "aeiou" or next_word.startswith("hon") and next_word != "honey" else "a"


def _be(tense: str, person: str) -> str:
    if tense == "past":
        return "was" if person.endswith("sg") else "were"
    return {"1sg": "am", "3sg": "is"}.get(person, "are")


def _has(person: str) -> str:
    return "has" if person == "3sg" else "have"


@lru_cache(maxsize=None)
def verb_group(verb: Verb, tense: str, modal: str, person: str, support: bool) -> tuple[str, str, str]:
    """(auxiliary, main verb, particle). `support` asks for an auxiliary even where the tense has none (do-support,
    for negation and questions). The auxiliary is "" when there is none; an adverb of frequency goes before the main
    verb, and before `not`'s complement: `has not often bought`."""
    base = verb.en_base
    particle = verb.en_particle
    if modal in ("can", "should", "may"):
        if modal == "may" and tense == "past":
            return _be("past", person), f"allowed to {base}", particle
        return PLAIN_MODALS[modal][tense], base, particle
    if modal:
        rest = f"to {base}"
        head = modal.split()[0]
        if support:
            return _do(tense, person), f"{head} {rest}", particle
        third = _has(person) if head == "have" else "wants" if person == "3sg" else "want"
        return "", f"{({'have': 'had', 'want': 'wanted'}[head] if tense == 'past' else third)} {rest}", particle
    if tense in ("perfect", "pluperfect"):
        return _has(person) if tense == "perfect" else "had", verb.en_participle, particle
    if tense == "future":
        return "will", base, particle
    if base == "be":
        return _be(tense, person), "", particle
    if support:
        return _do(tense, person), base, particle
    if tense == "past":
        return "", verb.en_past, particle
    return "", verb.en_3sg if person == "3sg" else base, particle


def _do(tense: str, person: str) -> str:
    if tense == "past":
        return "did"
    return "does" if person == "3sg" else "do"
