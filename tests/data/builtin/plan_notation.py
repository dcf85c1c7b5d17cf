"""A short notation for plans of the built-in grammar, used by the hand-written pairs in translation_pairs.tsv.

A noun phrase is a string such as "the old man", "three dogs", "Anna's car", "she"; `0` stands for no article.
A place is a preposition and a noun phrase ("next_to the bed"); `+` after the preposition requires
the accusative of direction.
"""

from __future__ import annotations

from typing import Any

from llm2slm.builtin.corpora.lexicon import Verb, Word, load_lexicon
from llm2slm.builtin.corpora.plan import BE, NP, PP, Both, Clause, Complement, Phrase, Predicate, Pron, Rel, Sentence

LEXICON = load_lexicon()
SINGULARS = {"an": "a", "0": "", "these": "this"}
ACCUSATIVE = ("into", "through", "for", "without")


def word(en: str, *categories: str) -> Word:
    """The word of the first category (a prefix of its name) that has it."""
    for category in categories:
        for item in LEXICON.others:
            if item.en == en and item.category.startswith(category):
                return item
    raise KeyError(en)


def n(text: str, of: str | None = None, rel: Rel | None = None) -> NP:
    """The noun phrase of the text."""
    det, *adjectives, head = text.split()
    noun = next(noun for noun in LEXICON.nouns if head in (noun.en_sg, noun.en_pl))
    determiner: str | Word = SINGULARS.get(det, det)
    if det.endswith("'s"):
        determiner = word(det[:-2], "name")
    elif any(item.en == det for item in LEXICON.by_category["number"]):
        determiner = word(det, "number")
    owner = n(of) if of else None
    return NP(noun, determiner, head == noun.en_pl, tuple(LEXICON.adjective[a] for a in adjectives), owner, rel)


def phrase(value: Phrase | str | None) -> Phrase | None:
    """A phrase from its text; phrases pass through."""
    if not isinstance(value, str):
        return value
    if value in ("I", "he", "she", "we", "you", "they"):
        return Pron(value)
    return n(value) if " " in value else word(value, "name")


def place(text: str | None) -> PP | Word | None:
    """A place or company from its text."""
    if text is None:
        return None
    if " " not in text:
        return word(text, "place", "direction")
    preposition, rest = text.split(" ", 1)
    name = preposition.rstrip("+").replace("_", " ")
    np = phrase(rest)
    assert np is not None
    case = "acc" if preposition.endswith("+") or name in ACCUSATIVE else "dat"
    return PP(word(name, "preposition"), np, case)


def predicate(value: str | tuple[str, str]) -> Predicate:
    """`big`, `very big` or (`big`, compared with)."""
    if isinstance(value, tuple):
        return Predicate(LEXICON.adjective[value[0]], None, phrase(value[1]))
    *degree, adjective = value.split()
    return Predicate(LEXICON.adjective[adjective], word(degree[0], "degree") if degree else None)


def C(subject: Phrase | str | None, verb: str | Verb, tense: str = "present", **parts: Any) -> Clause:
    """A clause; the keywords are short names of the fields of `Clause`."""
    parts.pop("zu", None)
    key = verb if isinstance(verb, str) else ""
    verb = verb if isinstance(verb, Verb) else LEXICON.verb.get(key) or LEXICON.verb[f"{key} (zu)"]
    return Clause(
        phrase(subject),
        verb,
        tense,
        parts.pop("mod", ""),
        parts.pop("neg", False),
        dat=phrase(parts.pop("dat", None)),
        acc=phrase(parts.pop("acc", None)),
        object=phrase(parts.pop("obj", None)),
        time=word(parts.pop("time"), "time") if "time" in parts else None,
        frequency=word(parts.pop("freq"), "frequency") if "freq" in parts else None,
        manner=word(parts.pop("manner"), "manner") if "manner" in parts else None,
        company=place(parts.pop("company", None)),  # type: ignore[arg-type]  # company is never a bare word
        place=place(parts.pop("place", None)),
        predicate=predicate(parts.pop("pred")) if "pred" in parts else None,
        complement=parts.pop("comp", None),
        **parts,
    )


def M(*args: Any, **parts: Any) -> Sentence:
    """A statement of one clause."""
    return Sentence(C(*args, **parts))


def Q(kind: str, *args: Any, **parts: Any) -> Sentence:
    """A question."""
    return Sentence(C(*args, **parts), question=kind)


def Sub(main: Sentence, conjunction: str, clause: Clause, first: bool = False) -> Sentence:
    """A statement with an adverbial clause."""
    return Sentence(main.clause, sub=(word(conjunction, "subordinator"), clause), sub_first=first)


def Join(main: Sentence, conjunction: str, clause: Clause) -> Sentence:
    """Two main clauses."""
    return Sentence(main.clause, joined=(word(conjunction, "coordinator"), clause))


def Comp(conjunction: str, clause: Clause) -> Complement:
    """that, whether, where, when, why."""
    return Complement(
        word(conjunction, "question_word" if conjunction in ("where", "when", "why") else "subordinator"), clause
    )


def To(clause: Clause) -> Complement:
    """An infinitive."""
    return Complement(None, clause)


NAMES: dict[str, Any] = {"BE": BE, "Both": Both, "C": C, "Comp": Comp, "Join": Join, "M": M}
NAMES |= {"Pron": Pron, "Q": Q, "Rel": Rel, "Sub": Sub, "To": To, "n": n}


def plan(text: str) -> Sentence:
    """The plan of an expression in this notation (from a file of the project, so `eval` is harmless)."""
    sentence = eval(text, {"__builtins__": {}}, NAMES)
    assert isinstance(sentence, Sentence)
    return sentence
