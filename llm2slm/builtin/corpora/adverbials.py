"""Draws the adverbials of a clause: place, goal, time, frequency, manner, company."""

from __future__ import annotations

import random
from dataclasses import replace

from llm2slm.builtin.corpora.lexicon import Noun, Word
from llm2slm.builtin.corpora.plan import (
    NP,
    PP,
    Clause,
    person,
)
from llm2slm.builtin.corpora.sampling import (
    NO_PLACE,
    OWNED,
    POSSESSIVES,
    STATES,
    draw_adjectives,
    index,
    pick,
    pick_word,
)


def draw_place(rng: random.Random, clause: Clause) -> PP | Word | None:
    """Where: in the kitchen, under the tree, outside."""
    ix = index()
    frame = clause.verb.frame
    draw = rng.random()
    if frame == "motion":
        return draw_goal(rng, clause)
    if frame == "put":
        noun = pick_word(rng, ix.surfaces)
        large = isinstance(clause.acc, NP) and clause.acc.noun.semantic_class == "furniture"
        around = (
            ("behind", "next to", "in front of")
            if large
            else ("on", "on", "on", "under", "behind", "next to", "in front of")
        )
        preposition = pick(rng, around)
        return PP(ix.preposition[preposition], _place_np(rng, noun), "acc")
    if draw < 0.2 and frame != "posture":
        return pick_word(rng, ix.words["place"])
    if draw < 0.4 or (frame == "posture" and draw < 0.75):
        things = (
            frame == "posture" and isinstance(clause.subject, NP) and clause.subject.noun.semantic_class != "person"
        )
        noun = pick_word(rng, ix.surfaces if things else ix.landmarks)
        solid = noun.semantic_class == "building"
        preposition = pick(
            rng, ("behind", "next to", "in front of") if solid else ("under", "behind", "next to", "in front of")
        )
        if noun.semantic_class == "furniture" and rng.random() < 0.4:
            preposition = "on"
        return PP(ix.preposition[preposition], _place_np(rng, noun), "dat")
    noun = pick_word(rng, ix.places)
    return PP(ix.preposition[noun.place_en], _place_np(rng, noun), "dat")


def _place_np(rng: random.Random, noun: Noun) -> NP:
    draw = rng.random()
    det = (
        "the"
        if draw < 0.8
        else "a"
        if draw < 0.9
        else pick(rng, POSSESSIVES)
        if noun.semantic_class in OWNED
        else "this"
    )
    return NP(noun, det, False, draw_adjectives(rng, noun))


def draw_goal(rng: random.Random, clause: Clause) -> PP | Word:
    """Whither: to the station, into the house, through the forest, out of the castle, home."""
    ix = index()
    draw = rng.random()
    allowed = clause.verb.objects
    if draw < 0.1 and clause.verb.en_base in ("go", "run", "drive", "come"):
        return pick_word(rng, ix.words["direction"])
    noun = pick_word(rng, allowed)
    np = _place_np(rng, noun)
    if draw < 0.5 or noun.place_de != "in":
        return PP(ix.preposition["to"], np, "dat")
    if draw < 0.75:
        return PP(ix.preposition["into"], np, "acc")
    if draw < 0.87 and noun.semantic_class == "outdoor":
        return PP(ix.preposition["through"], np, "acc")
    return PP(ix.preposition["out of"], np, "dat")


def draw_time(rng: random.Random, clause: Clause) -> Word | None:
    """A time that fits the tense."""
    words = index().words
    if clause.tense == "perfect":
        return words["time_any"][0]  # "today": the others clash with the English present perfect
    if clause.tense == "past":
        return pick_word(rng, words["time_past"] + words["time_any"])
    if clause.tense == "future":
        return pick_word(rng, words["time_future"] + words["time_any"])
    if clause.modal:
        return pick_word(rng, words["time_any"] + words["time_future"])
    return pick_word(rng, words["time_present"] + words["time_any"])


def draw_adverbials(rng: random.Random, clause: Clause, depth: int) -> Clause:
    """Adds time, frequency, manner, company and place, and chooses what stands in front."""
    words = index().words
    verb, frame = clause.verb, clause.verb.frame
    time = frequency = manner = None
    place: PP | Word | None = None
    front = "subject"
    if frame in ("motion", "put", "posture"):
        place = draw_place(rng, clause)
    draw = rng.random()
    if draw < (0.3 if depth else 0.1) and verb.key not in NO_PLACE:
        time = draw_time(rng, clause)
    elif draw < 0.42 and not clause.negated and clause.modal in ("", "can") and verb.key not in STATES:
        frequency = pick_word(rng, words["frequency"])
        if frequency.en in ("finally", "suddenly") and (clause.tense not in ("past", "perfect") or clause.modal):
            frequency = words["frequency"][0]
    if not depth:
        return replace(clause, time=time, frequency=frequency, place=place)
    draw = rng.random()
    human = not isinstance(clause.subject, NP) or clause.subject.noun.semantic_class == "person"
    if draw < 0.1 and human and frame in ("intr", "trans", "motion") and verb.key not in STATES:
        plural = person(clause.subject).endswith("pl")
        manner = pick_word(rng, [word for word in words["manner"] if word.en != ("alone" if plural else "together")])
    # After a relative clause, a place or time at the end would seem to belong to it.
    nested = any(isinstance(np, NP) and np.rel is not None for np in (clause.dat, clause.acc, clause.object))
    if place is None and not nested and rng.random() < 0.26 and verb.key not in STATES:
        place = draw_place(rng, clause)
    if time is not None and (nested or rng.random() < 0.5):
        front = "time"
    elif place is not None and frame in ("trans", "intr", "posture") and rng.random() < 0.2:
        front = "place"
    return replace(clause, time=time, frequency=frequency, manner=manner, place=place, front=front)
