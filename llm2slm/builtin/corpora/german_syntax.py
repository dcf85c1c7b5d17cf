"""Renders the plans of `plan` in German; the conventions of the translation are listed there."""

from __future__ import annotations

from llm2slm.builtin.corpora import german
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


def de_phrase(phrase: Phrase, case: str, negated: bool = False) -> str:
    """The German phrase in a case; a relative clause is set off by ` ,`. `negated` makes kein of ein or of nothing."""
    if isinstance(phrase, Word):
        return phrase.de
    if isinstance(phrase, Pron):
        return german.PRONOUNS[phrase.en][german.CASES.index(case)]
    if isinstance(phrase, Both):
        return f"{de_phrase(phrase.first, case)} und {de_phrase(phrase.second, case)}"
    gender = "p" if phrase.plural else phrase.noun.gender
    det = phrase.det
    if isinstance(det, Word):
        word, endings = (det.de if det.category == "number" else f"{det.de}s"), "strong"
    else:
        word, endings = german.determiner("no" if negated and det in ("a", "") else det, gender, case)
    words = [word] if word else []
    words += [german.adjective(adjective, endings, gender, case) for adjective in phrase.adjectives]
    words.append(german.noun(phrase.noun, phrase.plural, case))
    if phrase.of is not None:
        words.append(de_phrase(phrase.of, "gen"))
    if phrase.rel is not None:
        words.append(f", {de_relative(phrase.rel, phrase)} ,")
    return " ".join(words)


def de_relative(rel: Rel, head: NP) -> str:
    """`der schläft`, `den der Mann kaufte`, `auf den …`, `in dem …`, `dessen Hund …`."""
    gender = "p" if head.plural else head.noun.gender
    clause = rel.clause
    if rel.role == "subject":
        pronoun = german.relative_pronoun(gender, "nom")
        return f"{pronoun} {de_final(clause, '3pl' if head.plural else '3sg')}"
    if rel.role == "whose":
        return f"{german.relative_pronoun(gender, 'gen')} {de_final(clause)}"
    if rel.role in ("acc", "dat"):
        return f"{german.relative_pronoun(gender, rel.role)} {de_final(clause)}"
    if rel.role == "object":
        verb = clause.verb
        return f"{verb.de_preposition} {german.relative_pronoun(gender, verb.preposition_case)} {de_final(clause)}"
    return f"{head.noun.place_de} {german.relative_pronoun(gender, 'dat')} {de_final(clause)}"


def _de_place(place: PP | Word) -> str:
    if isinstance(place, Word):
        return place.de
    phrase = de_phrase(place.np, place.case)
    merges = isinstance(place.np, NP) and place.np.det == "the"
    return german.contract(place.preposition.de, phrase) if merges else f"{place.preposition.de} {phrase}"


def de_middle(clause: Clause) -> list[str]:
    """The middle field after the subject, without the verb's own parts."""
    words: list[str] = []
    acc, dat = clause.acc, clause.dat
    indefinite = acc if acc is not None else dat
    kein = clause.negated and isinstance(indefinite, NP) and indefinite.det in ("a", "")
    for phrase, case in ((acc, "acc"), (dat, "dat")):
        if isinstance(phrase, Pron | Word):
            words.append(de_phrase(phrase, case))
    if clause.time is not None and clause.front != "time":
        words.append(clause.time.de)
    if clause.frequency is not None:
        words.append(clause.frequency.de)
    if dat is not None and not isinstance(dat, Pron | Word):
        words.append(de_phrase(dat, "dat", kein and acc is None))
    if acc is not None and not isinstance(acc, Pron | Word):
        words.append(de_phrase(acc, "acc", kein))
    if clause.negated and not kein:
        words.append("nicht")
    if clause.manner is not None:
        words.append(clause.manner.de)
    if clause.company is not None:
        words.append(_de_place(clause.company))
    if clause.object is not None:
        verb = clause.verb
        words.append(_de_place(PP(Word("", verb.de_preposition, ""), clause.object, verb.preposition_case)))
    if clause.place is not None and clause.front != "place":
        words.append(_de_place(clause.place))
    if clause.predicate is not None:
        words.append(_de_predicate(clause.predicate))
    return words


def _de_predicate(predicate: Predicate) -> str:
    if predicate.than is not None:
        return f"{predicate.adjective.de_comparative} als {de_phrase(predicate.than, 'nom')}"
    degree = f"{predicate.degree.de} " if predicate.degree is not None else ""
    return degree + predicate.adjective.de


def de_complement(complement: Complement) -> str:
    """`, dass …`, `, ob …`, `, … zu …`, with the comma."""
    clause = complement.clause
    if complement.word is None:
        return " ".join([",", *de_middle(clause), german.zu_infinitive(clause.verb), ","])
    return f", {complement.word.de} {de_final(clause)} ,"


def de_final(clause: Clause, subject_person: str = "") -> str:
    """A verb-final clause: subject, middle field, infinite verb, finite verb with its prefix, complement."""
    who = subject_person or person(clause.subject)
    finite, prefix, rest = german.verb_group(clause.verb, clause.tense, clause.modal, who)
    words = [de_phrase(clause.subject, "nom")] if clause.subject is not None else []
    words += de_middle(clause)
    if rest:
        words.append(rest)
    words.append(prefix + finite)
    if clause.complement is not None:
        words.append(de_complement(clause.complement))
    return " ".join(words)


def de_main(clause: Clause, first: str | None, subject_person: str = "") -> str:
    """A main clause. `first` is the front field when it is not a part of the clause; empty puts the verb first."""
    who = subject_person or person(clause.subject)
    finite, prefix, rest = german.verb_group(clause.verb, clause.tense, clause.modal, who)
    subject = de_phrase(clause.subject, "nom") if clause.subject is not None else ""
    if first is None:
        if clause.front == "time" and clause.time is not None:
            first = clause.time.de
        elif clause.front == "place" and clause.place is not None:
            first = _de_place(clause.place)
        else:
            first, subject = subject, ""
    words = [first, finite, subject, *de_middle(clause), rest or prefix]
    if clause.complement is not None:
        words.append(de_complement(clause.complement))
    return " ".join(word for word in words if word)


QUESTION_WORDS = {
    "yes/no": "",
    "subject": "wer",
    "acc": "was",
    "whom": "wen",
    "dat": "wem",
    "place": "wo",
    "goal": "wohin",
    "time": "wann",
    "reason": "warum",
}


def subordinator(word: Word, clause: Clause) -> str:
    """The German conjunction: `when` is als in the past."""
    return "als" if word.en == "when" and clause.tense in ("past", "pluperfect") else word.de


def tidy(text: str) -> str:
    """Joins the set-off commas to their words, one comma where two meet, none before the end."""
    while ", ," in text:
        text = text.replace(", ,", ",")
    return text.strip(" ,").replace(" ,", ",")


def german_sentence(sentence: Sentence) -> str:
    """The German sentence, cased and punctuated."""
    clause, question = sentence.clause, sentence.question
    sub = ""
    if sentence.sub is not None:
        word, sub_clause = sentence.sub
        sub = f"{subordinator(word, sub_clause)} {de_final(sub_clause)}"
    if question == "which" and clause.acc is not None:
        text = de_main(without(clause, "acc"), de_phrase(clause.acc, "acc"))
    elif question:
        text = de_main(clause, QUESTION_WORDS[question], "3sg" if question == "subject" else "")
    elif sub and sentence.sub_first:
        text = de_main(clause, f"{sub} ,")
    else:
        text = de_main(clause, None)
    if sentence.joined is not None:
        word, second = sentence.joined
        comma = " ," if word.en == "but" else ""
        shared = "" if second.subject is not None else person(clause.subject)
        text = f"{text}{comma} {word.de} {de_main(second, None, shared)}"
    if sub and not sentence.sub_first:
        text = f"{text} , {sub}"
    text = tidy(text)
    return text[0].upper() + text[1:] + ("?" if question else ".")
