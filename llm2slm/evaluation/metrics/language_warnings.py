"""Warnings about metrics and the references' language: it is unknown, in another script, or has no tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from llm2slm.data.languages import NAMES
from llm2slm.evaluation.metrics.scores import find
from llm2slm.evaluation.metrics.tokenization import (
    BY_SCRIPT,
    OTHER,
    PACKAGES,
    Languages,
    by_row,
    of,
    per_row,
    scripts,
    usable,
)
from llm2slm.evaluation.metrics.words import content_words, script

CODES = {
    "Arabic": "ar, fa, ur, ...", "Cyrillic": "ru, uk, bg, ...", "Devanagari": "hi, mr, ne, ...", "Ethiopic": "am, ti",
    "Greek": "el", "Hebrew": "he, yi", "Armenian": "hy", "Georgian": "ka", "Bengali": "bn, as", "Han": "zh, ja",
}  # fmt: skip
"""Codes to suggest for a script, where `BY_SCRIPT` does not decide."""
DROPPED = 0.005
"""Least share of letters for a warning that ROUGE's English tokenizer drops them."""
PART = 0.1
"""Least share of words for a warning about a second script."""


def advice(
    metrics: Sequence[str], languages: Languages, references: Sequence[str], *, key: str = "task.language"
) -> list[str]:
    """Warnings to print before the metrics are computed, one line each.

    They report references of unknown language that are not in Latin script, or not in the script of their language;
    letters that a tokenizer drops; references without words; a tokenizer that is not installed.

    Args:
        key: the configuration key that sets the language.
    """
    codes = per_row(languages, len(references))
    found = []
    for code in dict.fromkeys(codes):
        texts = [reference for each, reference in zip(codes, references, strict=True) if each == code]
        found += _unknown(metrics, texts, key) if code is None else _other_script(metrics, code, texts, key)
    found += _without_words(metrics, references)
    if any("bleu" in metric.tokenization for name in metrics if (metric := find(name)) is not None):
        for name in dict.fromkeys(of(code).bleu for code in by_row(languages, references)):
            if usable(name) != name:
                found.append(
                    f"sacrebleu's tokenizer {name} is not installed: BLEU is computed over characters (tok:char), and "
                    f"does not compare with tok:{name}; for that, pip install {PACKAGES[name]}"
                )
    return found


def _depend(metrics: Sequence[str], one: str, two: str) -> str:
    """The metrics that tokenize two languages differently, as a list in words."""
    known = [(name, metric) for name in metrics if (metric := find(name)) is not None]
    return ", ".join(name for name, metric in known if metric.tokenized(one) != metric.tokenized(two))


def _words_only(metrics: Sequence[str]) -> str:
    return ", ".join(name for name in metrics if (metric := find(name)) is not None and metric.words_only)


def _unknown(metrics: Sequence[str], references: Sequence[str], key: str) -> list[str]:
    """Warnings about references of unknown language."""
    shares = scripts(references)
    main = next(iter(shares), "Latin")
    code, found, named = BY_SCRIPT.get(main, OTHER), [], set()
    if names := _depend(metrics, code, "en"):
        how = "by Unicode words" if code == OTHER else f"as {code} ({NAMES[code]})"
        found.append(
            f"{key} is not set, and the references are in {main} script: tokenized {how} for {names}; set {key} "
            f"({_codes(main)})"
        )
    for second, share in list(shares.items())[1:]:
        other = BY_SCRIPT.get(second, OTHER)
        if share >= PART and other != "en" and (names := _depend(metrics, other, code)):
            named |= {"Han", "Kana"} if second in ("Han", "Kana") else {second}
            found.append(
                f"{key} is not set, and {100 * share:.0f} % of the references' words are in {second} script, "
                f"which is tokenized wrongly for {names}: score rows of each language separately, with {key}"
            )
    dropped = _dropped(references, named) if code == "en" and _depend(metrics, "en", OTHER) else []
    if dropped and (names := _words_only(metrics)):
        found.append(
            f"{key} is not set, and letters that English does not have ({' '.join(dropped)}) are dropped for "
            f"{names}; set {key}"
        )
    return found


def _without_words(metrics: Sequence[str], references: Sequence[str]) -> list[str]:
    """A warning about references of symbols only (emoji, punctuation), in which ROUGE finds no word."""
    symbols = [reference.strip() for reference in references if reference.strip() and not content_words(reference)]
    if not symbols or not (names := _words_only(metrics)):
        return []
    return [
        f"{len(symbols)} of {len(references)} references hold neither letters nor digits, as {symbols[0][:20]!r}: "
        f"every answer to them scores 0 by {names}"
    ]


def _other_script(metrics: Sequence[str], code: str, references: Sequence[str], key: str) -> list[str]:
    """A warning about references of a known language in a script that its tokenization does not suit."""
    main = next(iter(scripts(references)), "Latin")
    other = BY_SCRIPT.get(main, OTHER)
    suits = of(other) == of(code) or (main, code) == ("Han", "ja") or (other == OTHER and code != "en")
    if main == "Latin" or suits or not (names := _depend(metrics, code, other)):
        return []
    return [
        f"the references' language is {code} ({NAMES[code]}), by {key} or by the corpus, but they are in "
        f"{main} script, which is tokenized wrongly for {names}; set {key} ({_codes(main)})"
    ]


def _codes(name: str) -> str:
    return CODES.get(name) or BY_SCRIPT.get(name) or "the code of ISO 639-1"


def _dropped(references: Sequence[str], named: Collection[str]) -> list[str]:
    """The five most frequent letters outside a to z, if their share is at least `DROPPED`.

    Args:
        named: scripts that another warning reports; their letters do not count.
    """
    letters = Counter(letter for letter in "".join(references).lower() if letter.isalpha())
    others = [letter for letter, _ in letters.most_common() if not letter.isascii() and script(letter) not in named]
    share = sum(letters[letter] for letter in others) / max(1, letters.total())
    return others[:5] if share >= DROPPED else []
