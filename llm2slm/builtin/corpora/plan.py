"""The synchronous grammar's plans: sentence structures that `english_syntax` and `german_syntax` render.

Each plan renders to exactly one English and one German sentence, and the conventions below make German a function of
English: `you` is `ihr`; past is Präteritum, present perfect is Perfekt, past perfect is Plusquamperfekt, `will` is
Futur; `not` with an indefinite object is `kein`, otherwise `nicht` stands after the objects and before manner,
prepositional object, place and predicate; `to` a place is `zu`, `into` is `in` with the accusative; adverbial `when` is
`als` in the past and `wenn` in the present; a preposition merges with the definite article (`im`, `zur`); the order of
the middle field is subject, pronouns and names, time, frequency, dative, accusative, `nicht`, manner, company,
prepositional object, place, predicate; relative clauses stand directly after their noun; `und` takes no comma, `aber`
does.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm2slm.builtin.corpora.english import PERSONS
from llm2slm.builtin.corpora.lexicon import Adjective, Noun, Verb, Word

BE = Verb(
    "be", "is", "was", "been", "", "copula", "sein", "ist", "war", "gewesen", "sein", "", "", "", (), ()
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pron:
    """A personal pronoun by its English subject form: I, he, she, we, you, they."""

    en: str


@dataclass(frozen=True, slots=True)
class Rel:
    """A relative clause. `role` is the syntactic role of the pronoun: subject, acc, dat, object (of the verb's
    preposition), place or whose (the clause's subject then lacks its determiner)."""

    role: str
    clause: Clause


@dataclass(frozen=True, slots=True)
class NP:
    """A noun phrase. `det` is an English determiner, a number or quantifier word, a name (possessor) or empty."""

    noun: Noun
    det: str | Word = "the"
    plural: bool = False
    adjectives: tuple[Adjective, ...] = ()
    of: NP | None = None
    rel: Rel | None = None


@dataclass(frozen=True, slots=True)
class Both:
    """Two phrases joined by `and`: a plural."""

    first: Phrase
    second: Phrase


Phrase = NP | Pron | Both | Word


@dataclass(frozen=True, slots=True)
class PP:
    """A prepositional phrase: the preposition in both languages and the German case."""

    preposition: Word
    np: Phrase
    case: str


@dataclass(frozen=True, slots=True)
class Predicate:
    """What follows `be`: an adjective, with a degree word, or compared with `than`."""

    adjective: Adjective
    degree: Word | None = None
    than: Phrase | None = None


@dataclass(frozen=True, slots=True)
class Complement:
    """`that`, `whether`, `where`, `when`, `why` and a clause; or `to` and a clause whose subject is not spoken."""

    word: Word | None
    clause: Clause


@dataclass(frozen=True, slots=True)
class Clause:
    """A clause: subject, verb and the rest. `front` names what stands before the German finite verb."""

    subject: Phrase | None
    verb: Verb
    tense: str = "present"
    modal: str = ""
    negated: bool = False
    dat: Phrase | None = None
    acc: Phrase | None = None
    object: Phrase | None = None
    time: Word | None = None
    frequency: Word | None = None
    manner: Word | None = None
    company: PP | None = None
    place: PP | Word | None = None
    predicate: Predicate | None = None
    complement: Complement | None = None
    front: str = "subject"


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence. `question` is "" for a statement, `yes/no`, or the questioned part: subject, acc, dat, place, goal,
    time, reason, which. `sub` is an adverbial clause, in front if `sub_first`. `joined` is a second main clause;
    without a subject it shares that of the first."""

    clause: Clause
    question: str = ""
    sub: tuple[Word, Clause] | None = None
    sub_first: bool = False
    joined: tuple[Word, Clause] | None = None


def person(phrase: Phrase | None) -> str:
    """The grammatical person of a subject (the same in both languages)."""
    if isinstance(phrase, Pron):
        return PERSONS[phrase.en]
    if isinstance(phrase, Both):
        return "1pl" if isinstance(phrase.second, Pron) and phrase.second.en == "I" else "3pl"
    return "3pl" if isinstance(phrase, NP) and phrase.plural else "3sg"


def without(clause: Clause, field: str) -> Clause:
    """The clause with one part removed."""
    values = {name: getattr(clause, name) for name in Clause.__slots__}
    values[field] = None
    return Clause(**values)
