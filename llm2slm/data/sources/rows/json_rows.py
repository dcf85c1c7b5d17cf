"""Reader of JSON files: one object on each line, one list of objects, or concatenated objects of several lines.

All three are read in pieces, so a file may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from llm2slm.data.sources.rows.table import LINE, Repeated, Row, Table
from llm2slm.data.sources.rows.text import lines, pieces
from llm2slm.types import UserError

SPACES = " \t\n\r"
TAIL = 16
"""An error within this number of characters before the end of a piece may be due to the end; a literal is shorter."""


def json_table(path: Path) -> Table:
    """The table of a JSON file; rows may have different keys.

    Raises:
        UserError: it has only white space. Reading a row raises if it is not UTF-8, not JSON, or not an object; the
            message names the line.
    """
    values = _layout(path)

    def read(_: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
        for line, value in values(path, skip):
            if not isinstance(value, dict):
                raise UserError(f"{path}, line {line}: expected a JSON object, found {type(value).__name__}")
            yield line, value

    return Table(str(path), None, read, lambda: _count(path, values), LINE)


Values = Callable[[Path, int], Iterator[tuple[int, Any]]]
"""(file, number of values to skip) -> the values, each with the number of its first line."""


def _layout(path: Path) -> Values:
    """The function that reads the layout of a file, determined from its beginning."""
    rest = ""
    for piece in pieces(path):
        rest = piece.lstrip()
        if rest:
            break
    else:
        raise UserError(f"{path}: the file is empty")
    if rest.startswith("["):
        return _items
    first, end, _ = rest.partition("\n")
    if end and first.rstrip().endswith(("{", "[", ",")):  # an object continues on the next line: pretty-printed
        return _objects
    return _lines


def _lines(path: Path, skip: int) -> Iterator[tuple[int, Any]]:
    """One value on each line. Blank lines are skipped."""
    for number, line in lines(path):
        if not line.strip():
            continue
        if skip:
            skip -= 1
            continue
        try:
            value = _decoded(DECODER.decode, line.rstrip("\r\n"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from None
        except RecursionError:
            raise UserError(f"{path}, line {number}: cannot be read (lists or objects are nested too deeply)") from None
        yield number, value


def _objects(path: Path, skip: int) -> Iterator[tuple[int, Any]]:
    """Concatenated values, with or without line ends between and within them."""
    scanner = _Scanner(path)
    while scanner.next_character():
        found = scanner.value()
        if skip:
            skip -= 1
        else:
            yield found


def _items(path: Path, skip: int) -> Iterator[tuple[int, Any]]:
    """The values of one list."""
    scanner = _Scanner(path)
    scanner.next_character()
    scanner.position += 1
    mark = scanner.next_character()
    while mark != "]":
        found = scanner.value()
        if skip:
            skip -= 1
        else:
            yield found
        mark = scanner.next_character()
        if mark not in (",", "]"):
            scanner.refuse("Expecting ',' delimiter", scanner.position)
        scanner.position += mark == ","
    scanner.position += 1
    if scanner.next_character():
        scanner.refuse("Extra data", scanner.position)


def _count(path: Path, values: Values) -> int:
    if values is _lines:
        return sum(1 for _, line in lines(path) if line.strip())
    return sum(1 for _ in values(path, 0))


class _Scanner:
    """Decodes JSON values from a text that is read in pieces.

    Attributes:
        position: of the next character in the current text.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._pieces = path, pieces(path)
        self._text, self.position = "", 0
        self._line, self._counted = 1, 0  # the line of the character at `_counted`
        self._ended = False

    def next_character(self) -> str:
        """Advances to the next character that is not white space. Returns it, or "" at the end of the file."""
        while True:
            while self.position < len(self._text) and self._text[self.position] in SPACES:
                self.position += 1
            if self.position < len(self._text):
                return self._text[self.position]
            if not self._more():
                return ""

    def value(self) -> tuple[int, Any]:
        """The next value, and the number of its first line.

        Raises:
            UserError: it is not JSON; the message names the line.
        """
        self.next_character()
        while True:
            try:
                value, end = _decoded(DECODER.raw_decode, self._text, self.position)
            except json.JSONDecodeError as error:
                if self._cut(error) and self._more():
                    continue
                self.refuse(error.msg, error.pos)
            except RecursionError:
                line = self._line_of(self.position)
                raise UserError(
                    f"{self._path}, line {line}: cannot be read (lists or objects are nested too deeply)"
                ) from None
            if end == len(self._text) and self._more():  # a number may continue
                continue
            line, self.position = self._line_of(self.position), end
            return line, value

    def refuse(self, reason: str, position: int) -> NoReturn:
        """Raises UserError for a position."""
        raise UserError(f"{self._path}, line {self._line_of(position)}: not JSON ({reason})") from None

    def _cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may be due to the end of the current text."""
        return error.msg.startswith("Unterminated string") or error.pos + TAIL >= len(self._text)

    def _more(self) -> bool:
        """Reads at least as many characters as are left: a long value is decoded few times, not once for each piece."""
        left = len(self._text) - self.position
        new: list[str] = []
        while not self._ended and sum(map(len, new)) < max(left, 1):
            piece = next(self._pieces, None)
            self._ended = piece is None
            new.append(piece or "")
        if not any(new):
            return False
        self._line_of(self.position, keep=True)
        self._text = self._text[self.position :] + "".join(new)
        self.position = self._counted = 0
        return True

    def _line_of(self, position: int, keep: bool = False) -> int:
        line = self._line + self._text.count("\n", self._counted, position)
        if keep or position == self.position:
            self._line, self._counted = line, position
        return line


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Repeated(pairs)


DECODER = json.JSONDecoder(object_pairs_hook=_object)
LENIENT = json.JSONDecoder(object_pairs_hook=_object, parse_int=float)


def _decoded(decode: Callable[..., Any], *arguments: Any) -> Any:
    """Decodes a text; an integer with more digits than Python converts becomes a float."""
    try:
        return decode(*arguments)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return getattr(LENIENT, decode.__name__)(*arguments)
