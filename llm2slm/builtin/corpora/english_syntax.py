"""Renders the plans of `plan` in English."""

from __future__ import annotations

from llm2slm.builtin.corpora import english
from llm2slm.builtin.corpora.lexicon import Word
from llm2slm.builtin.corpora.plan import (
    NP,
    PP,
    Both,
    Clause,
    Complement,
    Phrase,
    Predicate,
    Pron,
    Rel,
    Sentence,
    person,
    without,
)


def en_phrase(phrase: Phrase, subject: bool = False) -> str:
    """The English phrase."""
    if isinstance(phrase, Word):
        return phrase.en
    if isinstance(phrase, Pron):
        return phrase.en if subject else english.OBJECT_PRONOUNS[phrase.en]
    if isinstance(phrase, Both):
        return f"{en_phrase(phrase.first, subject)} and {en_phrase(phrase.second, subject)}"
    words = [adjective.en for adjective in phrase.adjectives]
    words.append(phrase.noun.en_pl if phrase.plural else phrase.noun.en_sg)
    det = phrase.det
    if isinstance(det, Word):
        det = det.en if det.category == "number" else f"{det.en}'s"
    elif det == "a":
        det = english.article(words[0])
    elif det == "this" and phrase.plural:
        det = "these"
    if det:
        words.insert(0, det)
    if phrase.of is not None:
        words += ["of", en_phrase(phrase.of)]
    if phrase.rel is not None:
        words.append(en_relative(phrase.rel, phrase))
    return " ".join(words)


def en_relative(rel: Rel, head: NP) -> str:
    """`who sleeps`, `that the man bought`, `for whom …`, `in which …`, `whose dog …`."""
    human = head.noun.semantic_class == "person"
    clause = rel.clause
    whom = "whom" if human else "which"
    if rel.role == "subject":
        return ("who " if human else "that ") + en_clause(clause, "relative", "3pl" if head.plural else "3sg")
    if rel.role in ("whose", "acc"):
        pronoun = "whose" if rel.role == "whose" else "whom" if human else "that"
        return f"{pronoun} {en_clause(clause)}"
    if rel.role == "dat":
        particle = clause.verb.en_particle
        if clause.verb.frame in ("ditrans", "ditransto"):
            return f"to {whom} {en_clause(clause)}"
        return f"{particle} {whom} {en_clause(clause, 'pied')}" if particle else f"{whom} {en_clause(clause)}"
    if rel.role == "object":
        return f"{clause.verb.en_particle} {whom} {en_clause(clause, 'pied')}"
    return f"{head.noun.place_en} {whom} {en_clause(clause)}"


def _en_place(place: PP | Word) -> str:
    return place.en if isinstance(place, Word) else f"{place.preposition.en} {en_phrase(place.np)}"


def en_rest(clause: Clause) -> list[str]:
    """Objects, adverbials and complement in English order."""
    words: list[str] = []
    to_object = ""
    if clause.dat is not None:
        if clause.verb.frame == "ditransto":
            to_object = f"to {en_phrase(clause.dat)}"
        else:
            words.append(en_phrase(clause.dat))
    for phrase in (clause.acc, clause.object):
        if phrase is not None:
            words.append(en_phrase(phrase))
    if to_object:
        words.append(to_object)
    if clause.predicate is not None:
        words.append(_en_predicate(clause.predicate))
    if clause.manner is not None:
        words.append(clause.manner.en)
    if clause.company is not None:
        words.append(_en_place(clause.company))
    if clause.place is not None and clause.front != "place":
        words.append(_en_place(clause.place))
    if clause.time is not None and clause.front != "time":
        words.append(clause.time.en)
    if clause.complement is not None:
        words.append(en_complement(clause.complement))
    return words


def _en_predicate(predicate: Predicate) -> str:
    if predicate.than is not None:
        return f"{predicate.adjective.en_comparative} than {en_phrase(predicate.than)}"
    degree = f"{predicate.degree.en} " if predicate.degree is not None else ""
    return degree + predicate.adjective.en


def en_complement(complement: Complement) -> str:
    """`that …`, `whether …`, `to …`."""
    if complement.word is None:
        verb = complement.clause.verb
        head = f"to {verb.en_base} {verb.en_particle}".strip()
        return " ".join([head, *en_rest(complement.clause)])
    return f"{complement.word.en} {en_clause(complement.clause)}"


def en_clause(clause: Clause, kind: str = "main", subject_person: str = "") -> str:
    """The English clause. `kind`: main, question (auxiliary first), relative (no subject spoken), pied (particle has
    moved to the front)."""
    who = subject_person or person(clause.subject)
    support = clause.negated or kind == "question"
    auxiliary, main, particle = english.verb_group(clause.verb, clause.tense, clause.modal, who, support)
    words: list[str] = []
    if clause.front == "time" and clause.time is not None:
        words.append(clause.time.en)
    elif clause.front == "place" and clause.place is not None:
        words.append(_en_place(clause.place))
    if kind == "question":
        words.append(auxiliary)
    if kind != "relative" and clause.subject is not None:
        words.append(en_phrase(clause.subject, subject=True))
    if kind != "question" and auxiliary:
        words.append(auxiliary)
    if clause.negated:
        if auxiliary == "can" and kind != "question":
            words[-1] = "cannot"
        else:
            words.append("not")
    if clause.frequency is not None:
        words.append(clause.frequency.en)
    if main:
        words.append(main)
    if particle and kind != "pied":
        words.append(particle)
    return " ".join(words + en_rest(clause))


def english_sentence(sentence: Sentence) -> str:
    """The English sentence, cased and punctuated."""
    clause, question = sentence.clause, sentence.question
    if question == "subject":
        text = "who " + en_clause(clause, "relative", "3sg")
    elif question:
        asked = {"yes/no": "", "acc": "what ", "whom": "whom ", "dat": "whom ", "place": "where ", "goal": "where "}
        head = {**asked, "time": "when ", "reason": "why "}.get(question, "")
        if question == "which" and clause.acc is not None:
            head = en_phrase(clause.acc) + " "
            clause = without(clause, "acc")
        text = head + en_clause(clause, "question")
    else:
        text = en_clause(clause)
    if sentence.joined is not None:
        word, second = sentence.joined
        comma = "," if second.subject is not None else ""
        text = f"{text}{comma} {word.en} {en_clause(second, subject_person=person(second.subject or clause.subject))}"
    if sentence.sub is not None:
        word, sub = sentence.sub
        text = f"{word.en} {en_clause(sub)}, {text}" if sentence.sub_first else f"{text} {word.en} {en_clause(sub)}"
    return text[0].upper() + text[1:] + ("?" if question else ".")
