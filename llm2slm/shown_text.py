"""Text of models, corpora and users for a terminal, a page or a spreadsheet: it is data there, never code.

Terminals execute escape codes, bidirectional controls reorder what follows them, and spreadsheets compute cells that
begin like a formula. Files for programs (JSON lines) keep the exact text.
"""

from __future__ import annotations

import sys
from typing import Any

_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_C1 = dict.fromkeys(range(0x80, 0xA0), 0xFFFD)  # control codes of some terminals, which have no printable symbol
_SURROGATES = dict.fromkeys([*range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)
BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""The characters with Unicode's property Bidi_Control."""
_BIDI = {code: f"⟨U+{code:04X}⟩" for code in BIDI}
_VISIBLE: dict[int, int | str] = {**_CONTROL, **_C1, **_SURROGATES, **_BIDI}
FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
"""Beginnings of cells that spreadsheets compute."""


def visible(text: str) -> str:
    """The text with visible symbols for control characters and bidirectional controls; lone surrogates are replaced.
    Newlines and tabs are kept."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def on_one_line(text: str) -> str:
    """`visible` text on one line."""
    return " ".join(visible(text).split())


def in_terminal(text: str) -> str:
    """`visible` text if standard output is a terminal; otherwise a program or a file gets the exact text."""
    return visible(text) if sys.stdout.isatty() else text


def cell(value: Any) -> str:
    """A value as a cell of a CSV file: numbers unchanged, texts `visible`, and with an apostrophe in front if a
    spreadsheet would compute them."""
    text = visible(str(value))
    if isinstance(value, str) and text.startswith(FORMULA) and not _number(text):
        return f"'{text}"
    return text


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def counted(n: int, unit: str) -> str:
    """A number with its unit, in singular or plural: "1 thread", "2 threads"."""
    return f"{n} {unit}{'' if n == 1 else 's'}"
