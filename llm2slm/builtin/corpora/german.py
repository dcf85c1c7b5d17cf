"""German inflection: nouns, determiners, adjectives, pronouns and verbs, from the forms in the lexicon.

Cases are `nom`, `acc`, `dat`, `gen`; a person is `1sg`, `3sg`, `1pl`, `2pl` or `3pl`.
"""

from __future__ import annotations

from functools import cache

from llm2slm.builtin.corpora.lexicon import Adjective, Noun, Verb

CASES = ("nom", "acc", "dat", "gen")
# The key is the gender, `p` for the plural of every gender; the four entries follow CASES.
DEFINITE = {"m": "der den dem des", "f": "die die der der", "n": "das das dem des", "p": "die die den der"}
DIES = {"m": "er en em es", "f": "e e er er", "n": "es es em es", "p": "e e en er"}
EIN = {"m": "- en em es", "f": "e e er er", "n": "- - em es", "p": "e e en er"}
WEAK = {"m": "e en en en", "f": "e e en en", "n": "e e en en", "p": "en en en en"}
MIXED = {"m": "er en en en", "f": "e e en en", "n": "es es en en", "p": "en en en en"}
STRONG = {"m": "er en em en", "f": "e e er er", "n": "es es em en", "p": "e e en er"}
RELATIVE = {"m": "der den dem dessen", "f": "die die der deren", "n": "das das dem dessen", "p": "die die denen deren"}
EIN_WORDS = {
    "a": "ein",
    "no": "kein",
    "my": "mein",
    "his": "sein",
    "her": "ihr",
    "our": "unser",
    "your": "euer",
    "their": "ihr",
}
DIES_WORDS = {"this": "dies", "every": "jed", "which": "welch"}
QUANTIFIERS = {"many": "viel", "some": "einig", "several": "mehrer", "few": "wenig"}
PRONOUNS = {
    "I": ("ich", "mich", "mir"),
    "he": ("er", "ihn", "ihm"),
    "she": ("sie", "sie", "ihr"),
    "we": ("wir", "uns", "uns"),
    "you": ("ihr", "euch", "euch"),
    "they": ("sie", "sie", "ihnen"),
}
CONTRACTIONS = {
    "in dem": "im",
    "in das": "ins",
    "an dem": "am",
    "an das": "ans",
    "zu dem": "zum",
    "zu der": "zur",
    "von dem": "vom",
}
SEIN = {"1sg": "bin", "3sg": "ist", "1pl": "sind", "2pl": "seid", "3pl": "sind"}
HABEN = {"1sg": "habe", "3sg": "hat", "1pl": "haben", "2pl": "habt", "3pl": "haben"}
WERDEN = {"1sg": "werde", "3sg": "wird", "1pl": "werden", "2pl": "werdet", "3pl": "werden"}
# English modal: (infinitive, singular present, second plural present, past).
MODALS = {
    "can": ("können", "kann", "könnt", "konnte"),
    "have to": ("müssen", "muss", "müsst", "musste"),
    "want to": ("wollen", "will", "wollt", "wollte"),
    "should": ("sollten", "sollte", "solltet", "sollte"),
    "may": ("dürfen", "darf", "dürft", "durfte"),
}


def _pick(table: dict[str, str], key: str, case: str) -> str:
    ending = table[key].split()[CASES.index(case)]
    return "" if ending == "-" else ending


@cache
def determiner(word: str, gender: str, case: str) -> tuple[str, str]:
    """German determiner for the English `word` (`the`, `a`, `no`, `my`, `this`, `many`, …) and the class of the
    adjective endings after it. `gender` is `m`, `f`, `n` or `p`."""
    if word == "the":
        return _pick(DEFINITE, gender, case), "weak"
    if word in DIES_WORDS:
        return DIES_WORDS[word] + _pick(DIES, gender, case), "weak"
    if word in EIN_WORDS:
        ending = _pick(EIN, gender, case)
        stem = "eur" if word == "your" and ending else EIN_WORDS[word]
        return stem + ending, "mixed"
    if word in QUANTIFIERS:
        return QUANTIFIERS[word] + _pick(DIES, gender, case), "strong"
    if word == "":
        return "", "strong"
    raise ValueError(f"unknown determiner {word!r}")


@cache
def adjective(word: Adjective, endings: str, gender: str, case: str) -> str:
    """The attributive form; `endings` is `weak`, `mixed` or `strong`."""
    table = {"weak": WEAK, "mixed": MIXED, "strong": STRONG}[endings]
    return word.de_stem + _pick(table, gender, case)


def noun(word: Noun, plural: bool, case: str) -> str:
    """The form of a noun; a weak noun takes its oblique form in every singular case but the nominative."""
    if plural:
        return word.de_dative_pl if case == "dat" else word.de_pl
    if case == "gen" or (word.weak and case != "nom"):
        return word.de_genitive_sg
    return word.de_sg


def relative_pronoun(gender: str, case: str) -> str:
    """der, die, das as a relative pronoun; `gender` is `p` for a plural."""
    return _pick(RELATIVE, gender, case)


def contract(preposition: str, phrase: str) -> str:
    """`in` + `dem Haus` -> `im Haus`."""
    article, _, rest = phrase.partition(" ")
    short = CONTRACTIONS.get(f"{preposition} {article}")
    return f"{short} {rest}" if short and rest else f"{preposition} {phrase}"


def _stem(infinitive: str) -> str:
    return infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]


def _needs_e(stem: str) -> bool:
    return stem.endswith(("t", "d", "chn", "ffn"))


@cache
def present(verb: Verb, person: str) -> str:
    """Present without the separable prefix; `be` is sein."""
    if verb.de_infinitive == "sein":
        return SEIN[person]
    base = verb.de_infinitive[len(verb.prefix) :]
    stem = _stem(base)
    if person == "3sg" or (base == "wissen" and person == "1sg"):
        return verb.de_3sg
    if person == "1sg":
        return base[:-3] + "le" if base.endswith("eln") else stem + "e"
    if person == "2pl":
        return stem + ("et" if _needs_e(stem) else "t")
    return base


def past_form(first: str, person: str) -> str:
    """Präteritum of `person` from the first person singular."""
    if person.endswith("sg"):
        return first
    if person == "2pl":
        return first + ("et" if first[-1] in "td" else "t")
    return first + ("n" if first.endswith("e") else "en")


@cache
def verb_group(verb: Verb, tense: str, modal: str, person: str) -> tuple[str, str, str]:
    """(finite form, its separable prefix, infinite rest): ("stand", "auf", ""), ("hat", "", "gekauft")."""
    if modal:
        infinitive, singular, second, past = MODALS[modal]
        if tense == "past":
            return past_form(past, person), "", verb.de_infinitive
        finite = singular if person.endswith("sg") else second if person == "2pl" else infinitive
        return finite, "", verb.de_infinitive
    if tense == "future":
        return WERDEN[person], "", verb.de_infinitive
    if tense in ("perfect", "pluperfect"):
        is_sein = verb.auxiliary == "sein"
        had = past_form("war" if is_sein else "hatte", person)
        has = (SEIN if is_sein else HABEN)[person]
        return has if tense == "perfect" else had, "", verb.de_participle
    finite = present(verb, person) if tense == "present" else past_form(verb.de_past, person)
    return finite, verb.prefix, ""


def zu_infinitive(verb: Verb) -> str:
    """`zu kaufen`, `aufzustehen`."""
    if verb.prefix:
        return f"{verb.prefix}zu{verb.de_infinitive[len(verb.prefix) :]}"
    return f"zu {verb.de_infinitive}"
