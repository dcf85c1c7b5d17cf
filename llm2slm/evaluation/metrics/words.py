"""Words of a text in any script. In scripts without spaces between words, each character counts as a word.

These scripts are Chinese, Japanese kana, Thai, Lao, Khmer, Burmese, Tibetan and those of the Tai languages. A character
is a letter with the combining marks that follow it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache

UNSPACED = (
    "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f\u3100-\u312f\u31a0-\u31bf"  # kana, bopomofo
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ecf\u0eda-\u0eff"  # Thai and Lao, without their digits
    "\u0f40-\u0fbc\u1000-\u103f\u1050-\u108f\u109a-\u109f\ua9e0-\ua9ef\ua9fa-\ua9ff\uaa60-\uaa7f"  # Tibetan, Burmese
    "\u1780-\u17d3\u17d7\u17dc\u17dd\u1950-\u19cf\u19da-\u19df\u1a20-\u1a7f\uaa80-\uaadf"  # Khmer, Tai
)
"""Letters and marks of scripts without spaces, as the content of a character class of a regular expression."""
JOINERS = "\u200c\u200d\u2060"
"""Characters of zero width within a word."""
ENDS = "\u200b\u0f0b"
"""Characters after a word or syllable that count with it: the zero-width space of some Khmer, Thai and Burmese texts,
and the Tibetan tsheg."""

_SCRIPTS = {
    "CJK": "Han", "IDEOGRAPHIC": "Han", "KANGXI": "Han", "BOPOMOFO": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana",
    "KATAKANA-HIRAGANA": "Kana", "HALFWIDTH": "Kana", "FULLWIDTH": "Latin", "MYANMAR": "Burmese",
}  # fmt: skip
"""First word of a character's Unicode name -> script, where the two differ."""


def words(text: str) -> list[str]:
    """Substrings between white space, and each character of a script without spaces; with their punctuation."""
    return set_apart(text).split()


def set_apart(text: str) -> str:
    """The text with spaces around each character of a script without spaces."""
    return _character().sub(r" \g<0> ", text)


def with_spaces(text: str) -> list[tuple[str, str]]:
    """The words of `words`, each with its separator from the previous word: " " or ""."""
    found = list(_word().finditer(text))
    ends = [0, *(match.end() for match in found)]
    return [
        (" " if end and match.start() > end else "", match.group()) for end, match in zip(ends, found, strict=False)
    ]


def content_words(text: str) -> list[str]:
    """Sequences of letters, digits and their marks, and each character of a script without spaces; case-folded,
    normalized to NFC, without punctuation."""
    return _content().findall(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()))


def script_shares(texts: Iterable[str]) -> dict[str, float]:
    """Share of the words in each script, largest first; numbers are not counted."""
    firsts = Counter(word[0] for text in texts for word in content_words(text))
    counts: Counter[str] = Counter()
    for letter, count in firsts.items():
        if letter.isalpha():
            counts[script(letter)] += count
    return {name: count / counts.total() for name, count in counts.most_common()}


def script(letter: str) -> str:
    """The script of a letter, as "Latin"; "" if the letter has no Unicode name."""
    name = unicodedata.name(letter, "").partition(" ")[0]
    return _SCRIPTS.get(name, name.capitalize())


@cache
def _character() -> re.Pattern[str]:
    return re.compile(f"[{UNSPACED}][{_marks()}{JOINERS}{ENDS}]*")


@cache
def _word() -> re.Pattern[str]:
    return re.compile(f"{_character().pattern}|(?:(?![{UNSPACED}])\\S)+")


@cache
def _content() -> re.Pattern[str]:
    unspaced = f"(?=[^\\W_])[{UNSPACED}][{_marks()}{JOINERS}]*"
    return re.compile(f"{unspaced}|(?:(?![{UNSPACED}])[^\\W_][{_marks()}{JOINERS}]*)+")


@cache
def _marks() -> str:
    """All combining marks, as the content of a character class; \\w does not include them."""
    runs: list[list[int]] = []
    for code in (*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0)):
        if unicodedata.category(chr(code))[0] == "M":
            if runs and code == runs[-1][1] + 1:
                runs[-1][1] = code
            else:
                runs.append([code, code])
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in runs)
