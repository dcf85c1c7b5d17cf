"""Draws noun phrases and clauses: the two are recursive, since a noun can carry a relative clause."""

from __future__ import annotations

import random
from dataclasses import replace

from llm2slm.builtin.corpora.adverbials import draw_adverbials, draw_time
from llm2slm.builtin.corpora.lexicon import Noun, Verb, Word
from llm2slm.builtin.corpora.plan import (
    BE,
    NP,
    PP,
    Both,
    Clause,
    Phrase,
    Predicate,
    Pron,
    Rel,
    person,
)
from llm2slm.builtin.corpora.sampling import (
    ACTION_FRAMES,
    FRAMES,
    KIN,
    OWNED,
    POSSESSIVES,
    STATES,
    draw_adjectives,
    index,
    pick,
    pick_word,
)


def draw_determiner(rng: random.Random, noun: Noun, plural: bool, definite: bool) -> str | Word:
    """The determiner of a noun phrase; only ownable nouns get a possessive."""
    ix = index()
    det: str | Word
    draw = rng.random()
    if definite:
        det = "the" if draw < 0.75 else pick(rng, POSSESSIVES) if draw < 0.9 else "this"
    elif draw < 0.42:
        det = "the"
    elif draw < 0.58:
        det = pick(rng, POSSESSIVES)
    elif draw < 0.63:
        det = "this"
    elif draw < 0.67 and not noun.mass:
        det = pick_word(rng, ix.names)
    elif noun.mass:
        det = ""
    elif plural:
        det = (
            "" if draw < 0.78 else pick(rng, ix.words["number"]) if draw < 0.9 else pick(rng, ix.words["quantifier"]).en
        )
    else:
        det = "a" if draw < 0.95 else "every"
    if isinstance(det, str) and det in POSSESSIVES and (noun.semantic_class not in OWNED and noun.en_sg not in KIN):
        det = "the"
    if (
        isinstance(det, Word)
        and det.category != "number"
        and noun.semantic_class not in OWNED
        and noun.en_sg not in KIN
    ):
        det = "the"
    return det


def draw_np(rng: random.Random, noun: Noun, depth: int = 1, definite: bool = False) -> NP:
    """A noun phrase over `noun`; `depth` 0 forbids clauses and genitives inside it."""
    plural = not noun.mass and rng.random() < 0.27
    det = draw_determiner(rng, noun, plural, definite)
    np = NP(noun, det, plural, draw_adjectives(rng, noun))
    if depth and det in ("the", "a", "this") and rng.random() < 0.22:
        if det != "this" and rng.random() < 0.5:
            np = replace(np, of=draw_possessor(rng, noun), det="the") if _ownable(noun) else np
        else:
            np = replace(np, rel=draw_relative(rng, noun, plural))
    return np


def _ownable(noun: Noun) -> bool:
    return noun.semantic_class in OWNED or noun.en_sg in KIN


def draw_possessor(rng: random.Random, head: Noun) -> NP:
    """The owner in `the dog of the old man`: definite, a person."""
    owner = pick_word(rng, index().people)
    while owner is head:
        owner = pick_word(rng, index().people)
    det = pick(rng, POSSESSIVES) if owner.en_sg in KIN and rng.random() < 0.4 else "a" if rng.random() < 0.15 else "the"
    return NP(owner, det, det != "a" and rng.random() < 0.2, draw_adjectives(rng, owner))


def draw_relative(rng: random.Random, head: Noun, plural: bool) -> Rel | None:
    """A relative clause on `head`, or none where nothing fits."""
    ix = index()
    tense = "past" if rng.random() < 0.5 else "present"
    draw = rng.random()
    human = head.semantic_class == "person"
    number = "3pl" if plural else "3sg"
    if draw < 0.35 and ix.subject_verbs[head.en_sg]:
        clause = draw_clause(
            rng, 0, tense, verb=pick_word(rng, ix.subject_verbs[head.en_sg]), subject=NP(head, "the", plural)
        )
        return Rel("subject", unambiguous(replace(clause, subject=None), number))
    subject = draw_person(rng, 0)
    if draw < 0.5 and human:
        whose = pick_word(rng, ix.lexicon.by_class[pick(rng, ("animal", "vehicle", "person"))])
        whose = pick_word(rng, [n for n in ix.people if n.en_sg in KIN]) if whose.semantic_class == "person" else whose
        owned = NP(whose, "", False, draw_adjectives(rng, whose))
        if ix.subject_verbs[whose.en_sg]:
            clause = draw_clause(rng, 0, tense, verb=pick_word(rng, ix.subject_verbs[whose.en_sg]), subject=owned)
            return Rel("whose", clause)
    if draw < 0.6 and human:
        verb = pick_word(rng, ix.dat_verbs)
        if ix.people[0] in verb.subjects:
            acc = draw_np(rng, pick_word(rng, verb.objects), 0, True) if verb.frame == "ditrans" else None
            return Rel("dat", unambiguous(Clause(subject, verb, tense, acc=acc)))
    if draw < 0.7 and ix.prep_verbs[head.en_sg]:
        return Rel("object", unambiguous(Clause(subject, pick_word(rng, ix.prep_verbs[head.en_sg]), tense)))
    if draw < 0.8 and head.place_de == "in" and head.semantic_class != "vehicle":
        verb = pick(
            rng, [ix.lexicon.verb[name] for name in ("sleep", "work", "play", "sing", "dance", "wait", "study")]
        )
        return Rel("place", unambiguous(Clause(subject, verb, tense)))
    if ix.acc_verbs[head.en_sg]:
        verb = pick_word(rng, ix.acc_verbs[head.en_sg])
        actor: Phrase = subject if ix.people[0] in verb.subjects else NP(pick_word(rng, verb.subjects), "the")
        return Rel("acc", unambiguous(Clause(actor, verb, tense, negated=rng.random() < 0.1)))
    return None


def draw_person(rng: random.Random, depth: int, taken: Phrase | None = None, bare: bool = False) -> Phrase:
    """A person: pronoun, name, noun phrase or two of them; `taken` is the subject, which does not occur again."""
    ix = index()
    draw = rng.random()
    if draw < 0.27:
        used = taken.en if isinstance(taken, Pron) else ""
        free = [en for en in ("I", "he", "she", "we", "you", "they") if en != used]
        if used in ("I", "we"):
            free = [en for en in free if en not in ("I", "we")]
        return Pron(pick(rng, free))
    if draw < 0.38:
        name = pick_word(rng, ix.names)
        return name if name is not taken else Pron("they")
    first = draw_np(rng, pick_word(rng, ix.people), depth, bare)
    if isinstance(taken, NP) and taken.noun is first.noun:
        first = replace(
            first, noun=ix.people[(ix.people.index(first.noun) + 7) % len(ix.people)], adjectives=(), rel=None
        )
    if draw > 0.95 and depth:
        second = draw_np(rng, pick_word(rng, ix.people), 0, True)
        if second.noun is not first.noun:
            return Both(replace(first, of=None, rel=None), second)
    return first


def draw_tense(rng: random.Random) -> str:
    """Present, past, perfect or future."""
    draw = rng.random()
    return "present" if draw < 0.4 else "past" if draw < 0.75 else "perfect" if draw < 0.9 else "future"


def unambiguous(clause: Clause, subject_person: str = "") -> Clause:
    """`they read` would be present or past: without an auxiliary it is always past here."""
    verb = clause.verb
    bare = clause.tense == "present" and not (clause.modal or clause.negated)
    if bare and verb.en_base == verb.en_past and (subject_person or person(clause.subject)) != "3sg":
        return replace(clause, tense="past")
    return clause


def draw_clause(
    rng: random.Random,
    depth: int,
    tense: str,
    verb: Verb | None = None,
    *,
    subject: Phrase | None = None,
    actions: bool = False,
) -> Clause:
    """A clause without a complement; `depth` 0 keeps it short."""
    ix = index()
    if verb is None:
        frame = pick(rng, ACTION_FRAMES if actions else FRAMES)
        if frame == "copula":
            return draw_copula(rng, depth, tense)
        verb = pick_word(rng, ix.lexicon.by_frame[frame])
    if subject is None:
        noun = pick_word(rng, verb.subjects)
        subject = draw_person(rng, depth) if noun.semantic_class == "person" else draw_np(rng, noun, depth)
    human = not isinstance(subject, NP) or subject.noun.semantic_class == "person"
    modal = ""
    if human and tense in ("present", "past") and rng.random() < 0.2:
        modals = ("can", "have to", "want to", "may")
        modal = pick(rng, (*modals, "should") if tense == "present" else modals)
    negated = rng.random() < 0.2 and not (isinstance(subject, NP) and (subject.det in ("a", "every", "few")))
    clause = Clause(subject, verb, tense, modal, negated)
    clause = draw_objects(rng, clause, depth)
    clause = draw_adverbials(rng, clause, depth)
    if depth and rng.random() < 0.12:
        clause = draw_company(rng, clause)
    return unambiguous(clause)


def draw_objects(rng: random.Random, clause: Clause, depth: int) -> Clause:
    """Adds the objects required by the verb's frame."""
    verb, frame, subject = clause.verb, clause.verb.frame, clause.subject
    acc: Phrase | None = None
    dat: Phrase | None = None
    target: Phrase | None = None
    if frame in ("trans", "ditrans", "ditransto", "put"):
        acc = draw_object(rng, clause, depth)
    if frame == "prepobj":
        target = draw_object(rng, clause, depth)
    if frame == "dat":
        target_noun = pick_word(rng, verb.objects)
        person_object = target_noun.semantic_class == "person"
        dat = draw_person(rng, depth, subject) if person_object else draw_np(rng, target_noun, depth)
        if clause.negated and isinstance(dat, NP) and (dat.det not in ("the", "a", "this", "my", "his", "her")):
            dat = replace(dat, det="the")
    if frame in ("ditrans", "ditransto"):
        dat = draw_person(rng, 0, subject, bare=clause.negated)
        if isinstance(acc, (Pron, Word)):
            acc = draw_np(rng, pick_word(rng, index().people), 0, definite=True)
        if isinstance(dat, Pron) and isinstance(acc, NP) and acc.det == "":
            acc = replace(acc, det="the")
    return replace(clause, acc=acc, dat=dat, object=target)


def draw_company(rng: random.Random, clause: Clause) -> Clause:
    """Adds `with`, `without` or `for` a person if it fits the verb and the object."""
    subject, frame, acc = clause.subject, clause.verb.frame, clause.acc
    human = not isinstance(subject, NP) or subject.noun.semantic_class == "person"
    if not human or clause.manner is not None or clause.verb.key in STATES or frame not in ("trans", "intr", "motion"):
        return clause
    if isinstance(acc, Pron | Both | Word) or (
        isinstance(acc, NP) and (acc.rel or acc.noun.semantic_class == "person")
    ):
        return clause
    preposition = pick(rng, ("with", "without", "for") if frame == "trans" else ("with", "without"))
    other = draw_person(rng, 0, subject, bare=True)
    return replace(
        clause, company=PP(index().preposition[preposition], other, "dat" if preposition == "with" else "acc")
    )


def draw_object(rng: random.Random, clause: Clause, depth: int) -> Phrase:
    """An object of the verb's classes, other than the subject."""
    verb = clause.verb
    noun = pick_word(rng, verb.objects)
    if noun.semantic_class == "person" and verb.frame not in ("ditrans", "ditransto"):
        bare = clause.negated
        found = draw_person(rng, 0 if bare else depth, clause.subject, bare)
        if isinstance(found, Pron) and verb.frame == "trans" and verb.en_particle:
            return draw_np(rng, noun, depth, definite=True)
        return found
    kein = clause.negated and rng.random() < 0.75
    np = draw_np(rng, noun, depth, definite=clause.negated)
    if kein and np.of is None and np.rel is None:
        np = replace(np, det="" if np.plural or noun.mass else "a")
    if isinstance(clause.subject, NP) and clause.subject.noun is np.noun:
        np = draw_np(rng, pick_word(rng, verb.objects), 0)
    if clause.negated and (isinstance(np.det, Word) or np.det in ("every", "many", "some", "several", "few")):
        np = replace(np, det="the")
    return np


def draw_copula(rng: random.Random, depth: int, tense: str) -> Clause:
    """`The house is very old`, `the dog is bigger than the cat`."""
    ix = index()
    noun = pick_word(rng, ix.described)
    adjective = pick_word(rng, ix.lexicon.adjectives_of[noun.en_sg])
    subject: Phrase = draw_np(rng, noun, depth, definite=True)
    if isinstance(subject, NP):
        subject = replace(subject, adjectives=())
    if noun.semantic_class == "person" and rng.random() < 0.4:
        subject = draw_person(rng, 0, bare=True)
        if isinstance(subject, NP):
            subject = replace(subject, adjectives=(), noun=noun)
    degree = pick(rng, ix.words["degree"]) if rng.random() < 0.35 else None
    than: Phrase | None = None
    if adjective.de_comparative and rng.random() < 0.3:
        rival = pick_word(rng, ix.lexicon.by_class[noun.semantic_class])
        if rival is not noun and rival.en_sg in adjective.nouns:
            degree, than = (
                None,
                NP(rival, pick(rng, ("the", "my", "your") if rival.semantic_class in OWNED else ("the",))),
            )
    negated = rng.random() < 0.15 and degree is None
    clause = Clause(subject, BE, tense, "", negated, predicate=Predicate(adjective, degree, than))
    draw = rng.random()
    if draw < 0.12 and than is None:
        return replace(clause, time=draw_time(rng, clause), front="time" if rng.random() < 0.5 else "subject")
    if draw < 0.26 and not negated and than is None and degree is None:
        return replace(clause, frequency=pick_word(rng, ix.words["frequency"][:6]))
    return clause
