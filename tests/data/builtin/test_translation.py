"""The built-in translation corpus against hand-written pairs, and its distribution."""

from __future__ import annotations

import math
import random
import re
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

from llm2slm.builtin.corpora import corpus_row, corpus_rows
from llm2slm.builtin.corpora.english_syntax import english_sentence
from llm2slm.builtin.corpora.german_syntax import german_sentence
from llm2slm.builtin.corpora.lexicon import load_lexicon, parse_nouns, parse_verbs
from llm2slm.builtin.corpora.sampling import pick_word
from llm2slm.builtin.corpora.translation import sentence_pair
from llm2slm.types import UserError

sys.path.insert(0, str(Path(__file__).parent))
from plan_notation import plan

SAMPLE = 20_000
ROWS = [
    line.split("\t") for line in (Path(__file__).parent / "translation_pairs.tsv").read_text("utf-8").splitlines()[1:]
]
# A pattern for each phenomenon in the German text; at least 2 % of the sentences must match.
SIGNS = {
    "genitive": r"\b(des|eines|meines|seines|ihres|unseres) (\w+en )*[A-ZÄÖÜ]\w+s\b"
    r"|[a-zß] der (\w+en )?[A-ZÄÖÜ]|s? \w+as [A-Z]",
    "dative": r"\b(dem|einem|meinem|ihm|ihnen|mir|euch)\b",
    "accusative": r"\b(den|einen|keinen|meinen|ihn|mich)\b",
    "contraction": r"\b([Ii]m|[Aa]m|zum|zur|ins|vom)\b",
    "verb_second": r"^(Gestern|Heute|Morgen|Jetzt|Bald|Am|Im|Jeden|Jede Woche|Letzte"
    r"|Nächste|Nächstes|In der|Vor|Hinter|Unter) ",
    "verb_final": r"(^|, )([Ww]eil|[Oo]bwohl|[Ww]enn|[Ww]ährend|[Bb]evor|[Bb]is|[Ss]obald|[Aa]ls|[Nn]achdem) ",
    "complement": r", (dass|ob|wo|wann|warum) ",
    "zu": r", .*\b(zu \w+n|\w+zu\w+en)\.",
    "relative": r"\w, (\w+ )?(der|die|das|dem|den|denen|dessen|deren) ",
    "separable": r" (an|auf|ab|ein|zu|mit|aus|weg|zurück|vor)[.?,]",
    "modal": r"\b([Kk]ann|können|könnt|konnte\w*|muss|müssen|müsst|musste\w*"
    r"|will|wollen|wollt|wollte\w*|sollte\w*|d[au]rf\w*|dürf\w*)\b",
    "perfect": r"\b([Hh]at|[Hh]aben|[Hh]abe|[Hh]abt|[Ii]st|[Ss]ind) .*\b(ge\w+(en|t)|\w+ge\w+(en|t)|\w+iert)\b",
    "future": r"\b(wird|werde|werden|werdet|W\w+)\b .*\w+n\b",
    "nicht": r"\bnicht\b",
    "kein": r"\bkein",
    "number": r"\b([Zz]wei|[Dd]rei|[Vv]ier|[Ff]ünf|[Ss]echs|[Ss]ieben|[Aa]cht"
    r"|[Nn]eun|[Zz]ehn|[Ee]lf|[Zz]wölf|[Zz]wanzig|viele|einige|mehrere)\b",
    "coordination": r"\b(und|aber)\b",
    "question": r"\?$",
    "comparison": r"\w+er als ",
}


@lru_cache(maxsize=1)
def sample() -> tuple[tuple[str, str], ...]:
    rng = random.Random(7)
    return tuple(sentence_pair(rng) for _ in range(SAMPLE))


def test_there_are_enough_hand_written_pairs() -> None:
    rules = Counter(rule for rule, *_ in ROWS)
    assert len(ROWS) >= 120
    assert min(rules.values()) >= 4, rules


@pytest.mark.parametrize(("rule", "english", "german", "text"), ROWS, ids=[f"{r[0]}: {r[1]}" for r in ROWS])
def test_hand_written_pairs_are_generated(rule: str, english: str, german: str, text: str) -> None:
    sentence = plan(text)
    assert english_sentence(sentence) == english, rule
    assert german_sentence(sentence) == german, rule


def test_german_is_a_function_of_english() -> None:
    known: dict[str, str] = {}
    for english, german in sample():
        assert known.setdefault(english, german) == german
    assert len(known) > 0.99 * SAMPLE


def test_rows_depend_on_seed_and_index_only() -> None:
    rows = corpus_rows("translation", "train", 50, 3)
    # one by one and in reverse order, since whole lists are cached
    assert rows[::-1] == [corpus_row("translation", "train", 3, index) for index in reversed(range(50))]
    assert rows != corpus_rows("translation", "train", 50, 4)


def test_no_duplicates_in_test() -> None:
    sources = [row["source"] for row in corpus_rows("translation", "test", 300, 0)]
    assert len(set(sources)) == 300


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"translations"):
        corpus_row("translations", "train", 0, 0)
    with pytest.raises(UserError, match=r"dev"):
        corpus_row("translation", "dev", 0, 0)


def test_sentences_have_the_expected_lengths() -> None:
    lengths = [len(english.split()) for english, _ in sample()]
    assert 9.5 < sum(lengths) / SAMPLE < 12.5
    assert sum(5 <= length <= 20 for length in lengths) > 0.85 * SAMPLE
    assert sum(length >= 20 for length in lengths) > 0.02 * SAMPLE
    assert max(lengths) <= 26


@pytest.mark.parametrize("name", SIGNS)
def test_every_phenomenon_is_common(name: str) -> None:
    sign = re.compile(SIGNS[name])
    assert sum(bool(sign.search(german)) for _, german in sample()) >= 0.02 * SAMPLE


def test_texts_are_well_formed_sentences() -> None:
    for pair in sample():
        for text in pair:
            assert re.fullmatch(r"[A-ZÄÖÜ][A-Za-zÄÖÜäöüßé' ,-]+[.?]", text), text
            assert not re.search(r" ,|,,|  |,[^ ]|,[.?]", text), text


def test_the_lexicon_is_large_enough_and_every_lexeme_is_used() -> None:
    lexicon = load_lexicon()
    assert len(lexicon) >= 400
    english = " ".join(source for source, _ in sample()).lower()
    words = Counter(re.findall(r"[a-z-]+", english))
    missing = [noun.en_sg for noun in lexicon.nouns if not words[noun.en_sg] + words[noun.en_pl]]
    missing += [adj.en for adj in lexicon.adjectives if not words[adj.en]]
    missing += [
        verb.key
        for verb in lexicon.verbs
        if not sum(words[form] for form in (verb.en_base, verb.en_3sg, verb.en_past, verb.en_participle))
    ]
    missing += [
        item.en for item in lexicon.others if item.category != "modal" and f" {item.en.lower()}" not in " " + english
    ]
    assert not missing


def test_words_are_drawn_by_zipfs_law() -> None:
    """Frequencies by rank against the integral of 1 / (r + n / 10), within five standard errors."""
    rng, n, draws = random.Random(1), 20, 40_000
    seen = Counter(pick_word(rng, range(n)) for _ in range(draws))
    for rank in range(n):
        share = math.log((rank + 1 + n / 10) / (rank + n / 10)) / math.log(11)
        assert abs(seen[rank] / draws - share) < 5 * math.sqrt(share / draws), rank


def test_an_invalid_row_is_reported_with_its_line() -> None:
    header = "\t".join(
        [
            "en_sg",
            "en_pl",
            "de_sg",
            "de_pl",
            "gender",
            "semantic_class",
            "de_genitive_sg",
            "weak",
            "de_dative_pl",
            "mass",
            "place_en",
            "place_de",
        ]
    )
    row = "dog\tdogs\tHund\tHunde\tx\tanimal\tHundes\tno\tHunden\tno\t-\t-"
    with pytest.raises(UserError, match=r"nouns\.tsv, line 2: gender is 'x'"):
        parse_nouns("nouns.tsv", f"{header}\n{row}\n")
    with pytest.raises(UserError, match=r"nouns\.tsv, line 2: expected 12 filled columns, found 2"):
        parse_nouns("nouns.tsv", f"{header}\ndog\tdogs\n")
    with pytest.raises(UserError, match=r"verbs\.tsv, line 1: the header"):
        parse_verbs("verbs.tsv", "en\tde\n", ())
