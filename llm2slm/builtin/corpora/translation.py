"""English-German sentence pairs: random plans, rendered by `english_syntax` and `german_syntax`.

Plans respect the semantic classes of the lexicon, so that most sentences make sense. `sentence_pair` is the entry
point; `draw_sentence` returns the plan. `plan` documents the conventions of the translation.
"""

from __future__ import annotations

import random
from dataclasses import replace

from llm2slm.builtin.corpora.adverbials import draw_time
from llm2slm.builtin.corpora.clauses import draw_clause, draw_person, draw_tense, unambiguous
from llm2slm.builtin.corpora.english_syntax import english_sentence
from llm2slm.builtin.corpora.german_syntax import german_sentence
from llm2slm.builtin.corpora.plan import (
    NP,
    Clause,
    Complement,
    Sentence,
)
from llm2slm.builtin.corpora.sampling import (
    STATES,
    draw_adjectives,
    index,
    pick,
    pick_word,
)

MAX_WORDS = 26


def draw_with_sub(rng: random.Random) -> Sentence:
    """A main clause with an adverbial clause before or after it."""
    words = index().words["subordinator"]
    word = pick(rng, [word for word in words if word.en not in ("that", "whether")])
    tense = "past" if rng.random() < 0.55 else "present"
    sub_tense = tense
    if word.en == "after":
        tense, sub_tense = "past", "pluperfect"
    elif word.en == "if":
        tense, sub_tense = pick(rng, ("present", "future")), "present"
    clause = draw_clause(rng, 1 if rng.random() < 0.5 else 0, tense)
    sub = draw_clause(rng, 1 if rng.random() < 0.3 else 0, sub_tense)
    sub = replace(sub, front="subject")
    if word.en in ("while", "until", "before", "after", "as soon as", "when", "if"):
        sub = replace(sub, negated=sub.negated and word.en in ("if", "when"), time=None, frequency=None)
        sub = unambiguous(sub)
    first = rng.random() < 0.45
    if first:
        clause = replace(clause, front="subject")
    return Sentence(clause, sub=(word, sub), sub_first=first)


def draw_with_complement(rng: random.Random) -> Sentence:
    """A sentence whose verb has a clause as complement, with "that", "whether" or a question word."""
    ix = index()
    tense = "past" if rng.random() < 0.5 else "present"
    whether = rng.random() < 0.45
    verb = ix.lexicon.verb["ask (whether)"] if whether else pick_word(rng, ix.lexicon.by_frame["that"])
    negated = verb.en_base in ("know", "believe") and rng.random() < 0.25
    main = Clause(draw_person(rng, 0), verb, tense, "", negated)
    if rng.random() < 0.15 and verb.en_base not in ("know", "believe"):
        main = replace(main, frequency=pick_word(rng, ix.words["frequency"][:4]))
    inner = draw_clause(rng, 1 if rng.random() < 0.5 else 0, tense if rng.random() < 0.6 else draw_tense(rng))
    inner = replace(inner, front="subject")
    if whether:
        draw = rng.random()
        kind = "whether" if draw < 0.55 else "why" if draw < 0.7 else "when" if draw < 0.82 else "where"
        if kind in ("when", "where"):
            inner = replace(inner, time=None, frequency=None, negated=False)
        if kind == "where":
            inner = draw_clause(
                rng, 0, tense, verb=pick_word(rng, ix.lexicon.by_frame["intr"] + ix.lexicon.by_frame["posture"])
            )
            inner = replace(inner, place=None, frequency=None, time=None, negated=False)
        category = "subordinator" if kind == "whether" else "question_word"
        word = next(word for word in ix.words[category] if word.en == kind)
    else:
        word = next(word for word in ix.words["subordinator"] if word.en == "that")
    return Sentence(replace(main, complement=Complement(word, unambiguous(inner))))


def draw_with_zu(rng: random.Random) -> Sentence:
    """tries to open the door."""
    ix = index()
    verb = pick_word(rng, ix.lexicon.by_frame["zu"])
    subject = draw_person(rng, 1)
    inner = draw_clause(rng, 0, "present", subject=subject, actions=True)
    while ix.people[0] not in inner.verb.subjects or inner.verb.key in STATES:
        inner = draw_clause(rng, 0, "present", subject=subject, actions=True)
    inner = replace(inner, subject=None, tense="present", modal="", negated=False, time=None, frequency=None)
    tense = pick(rng, ("present", "past", "past", "perfect"))
    main = Clause(subject, verb, tense, complement=Complement(None, inner))
    if rng.random() < 0.3:
        main = replace(main, time=draw_time(rng, main), front="time")
    return Sentence(main)


def draw_joined(rng: random.Random) -> Sentence:
    """Two main clauses, the second with its own subject or sharing the first one's."""
    ix = index()
    tense = pick(rng, ("present", "past", "past", "perfect"))
    word = pick(rng, ix.words["coordinator"])
    first = draw_clause(rng, 1 if rng.random() < 0.5 else 0, tense)
    if word.en == "and" and rng.random() < 0.6 and not first.modal:
        verb = pick_word(rng, ix.lexicon.by_frame[pick(rng, ("trans", "trans", "motion", "dat", "ditrans"))])
        subject = draw_person(rng, 0)
        first = draw_clause(rng, 0, tense, verb=pick_word(rng, ix.lexicon.by_frame["trans"]), subject=subject)
        second = draw_clause(rng, 0, tense, verb=verb, subject=subject)
        if ix.people[0] in first.verb.subjects and ix.people[0] in verb.subjects and first.verb is not verb:
            first = replace(first, modal="", negated=False, tense=tense, front="subject", frequency=None)
            second = replace(second, modal="", negated=False, tense=tense, time=None, frequency=None)
            first, second = unambiguous(first), unambiguous(second)
            if first.tense == second.tense:
                return Sentence(first, joined=(word, replace(second, subject=None)))
    second = replace(draw_clause(rng, 1 if rng.random() < 0.4 else 0, tense), front="subject")
    return Sentence(first, joined=(word, second))


def draw_question(rng: random.Random) -> Sentence:
    """A yes/no question or one with a question word."""
    ix = index()
    tense = draw_tense(rng)
    kind = pick(
        rng,
        ("yes/no",) * 5
        + ("subject", "subject", "acc", "acc", "whom", "dat", "place", "goal", "time", "reason", "which"),
    )
    frames = {"acc": "trans", "whom": "trans", "dat": "dat", "place": "intr", "goal": "motion", "which": "trans"}
    frame = frames.get(kind, pick(rng, ("trans", "trans", "dat", "ditrans", "motion", "prepobj", "intr")))
    verbs = ix.lexicon.by_frame[frame]
    if kind == "whom":
        verbs = tuple(verb for verb in verbs if ix.people[0] in verb.objects)
    elif kind in ("acc", "which"):
        verbs = tuple(verb for verb in verbs if ix.people[0] not in verb.objects)
    clause = draw_clause(rng, 1 if rng.random() < 0.4 else 0, tense, verb=pick_word(rng, verbs))
    clause = replace(clause, front="subject", negated=False, tense=tense if not clause.modal else clause.tense)
    if clause.frequency is not None and clause.frequency.en in ("never", "finally", "suddenly", "rarely"):
        clause = replace(clause, frequency=None)
    if kind == "subject":
        return Sentence(unambiguous(replace(clause, subject=None), "3sg"), question=kind)
    if kind in ("acc", "whom"):
        clause = replace(clause, acc=None, company=None)
    elif kind == "dat":
        clause = replace(clause, dat=None)
    elif kind == "which" and isinstance(clause.acc, NP):
        noun = clause.acc.noun
        plural = not noun.mass and rng.random() < 0.3
        clause = replace(clause, acc=NP(noun, "which", plural, draw_adjectives(rng, noun)))
    elif kind in ("place", "goal"):
        clause = replace(clause, place=None)
    elif kind == "time":
        clause = replace(clause, time=None, frequency=None)
    return Sentence(clause, question=kind)


def draw_sentence(rng: random.Random) -> Sentence:
    """The plan of a sentence."""
    draw = rng.random()
    if draw < 0.36:
        return Sentence(draw_clause(rng, 1, draw_tense(rng)))
    if draw < 0.56:
        return draw_with_sub(rng)
    if draw < 0.68:
        return draw_with_complement(rng)
    if draw < 0.76:
        return draw_with_zu(rng)
    if draw < 0.87:
        return draw_joined(rng)
    return draw_question(rng)


def sentence_pair(rng: random.Random) -> tuple[str, str]:
    """An English sentence and its German translation, of at most 26 English words."""
    while True:
        sentence = draw_sentence(rng)
        source = english_sentence(sentence)
        if 1 < source.count(" ") < MAX_WORDS:
            return source, german_sentence(sentence)
