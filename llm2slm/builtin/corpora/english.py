"""English forms: articles, agreement, tenses, do-support. Persons are named as in `german.py`."""

from __future__ import annotations

from functools import cache

from llm2slm.builtin.corpora.lexicon import Verb

OBJECT_PRONOUNS = {"I": "me", "he": "him", "she": "her", "we": "us", "you": "you", "they": "them"}
PERSONS = {"I": "1sg", "he": "3sg", "she": "3sg", "we": "1pl", "you": "2pl", "they": "3pl"}
PLAIN_MODALS = {
    "can": {"present": "can", "past": "could"},
    "should": {"present": "should", "past": "should"},
    "may": {"present": "may", "past": "was allowed to"},
}


def article(next_word: str) -> str:
    """`a` or `an` before the word."""
    return "an" if next_word[0] in "aeiou" or (next_word.startswith("hon") and next_word != "honey") else "a"


def _be(tense: str, person: str) -> str:
    if tense == "past":
        return "was" if person.endswith("sg") else "were"
    return {"1sg": "am", "3sg": "is"}.get(person, "are")


def _has(person: str) -> str:
    return "has" if person == "3sg" else "have"


@cache
def verb_group(verb: Verb, tense: str, modal: str, person: str, support: bool) -> tuple[str, str, str]:
    """(auxiliary, main verb, particle). `support` forces an auxiliary even where the tense has none (do-support,
    for negation and questions). The auxiliary is "" when there is none; an adverb of frequency goes before the main
    verb, and before `not`'s complement: `has not often bought`."""
    if modal:
        auxiliary, main = _modal_group(verb.en_base, tense, modal, person, support)
    elif tense == "perfect":
        auxiliary, main = _has(person), verb.en_participle
    elif tense == "pluperfect":
        auxiliary, main = "had", verb.en_participle
    elif tense == "future":
        auxiliary, main = "will", verb.en_base
    elif verb.en_base == "be":
        auxiliary, main = _be(tense, person), ""
    elif support:
        auxiliary, main = _do(tense, person), verb.en_base
    elif tense == "past":
        auxiliary, main = "", verb.en_past
    else:
        auxiliary, main = "", verb.en_3sg if person == "3sg" else verb.en_base
    return auxiliary, main, verb.en_particle


def _modal_group(base: str, tense: str, modal: str, person: str, support: bool) -> tuple[str, str]:
    if modal == "may" and tense == "past":
        return _be("past", person), f"allowed to {base}"
    if modal in PLAIN_MODALS:
        return PLAIN_MODALS[modal][tense], base
    head = modal.removesuffix(" to")
    if support:
        return _do(tense, person), f"{head} to {base}"
    if tense == "past":
        return "", f"{'had' if head == 'have' else 'wanted'} to {base}"
    third = "has" if head == "have" else "wants"
    return "", f"{third if person == '3sg' else head} to {base}"


def _do(tense: str, person: str) -> str:
    if tense == "past":
        return "did"
    return "does" if person == "3sg" else "do"
