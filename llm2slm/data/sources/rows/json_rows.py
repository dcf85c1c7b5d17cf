"""The rows of a JSON file: an object a line, one list of objects, or objects one after another over several lines.

All three are read in pieces, a list as well, so that a file may be larger than the memory.
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
"""Characters before the end of a piece in which a fault may come from the cut: longer than a literal or an escape."""


def json_table(path: Path) -> Table:
    """The table of a JSON file; each row has its own keys.

    Raises:
        UserError: nothing but blanks is in it. Reading raises what is wrong with a row when that row is reached: not
            UTF-8, not JSON, not an object; names the line.
    """
    values = _layout(path)

    def read(_: Sequence[str], skip: int) -> Iterator[tuple[int, Row]]:
        for line, value in values(path, skip):
            if not isinstance(value, dict):
                raise UserError(f"{path}, line {line}: expected a JSON object, found {type(value).__name__}")
            yield line, value

    return Table(str(path), None, read, lambda: _count(path, values), LINE)


Values = Callable[[Path, int], Iterator[tuple[int, Any]]]
"""(file, values to skip) -> the values, each with the line on which it begins."""


def _layout(path: Path) -> Values:
    """How the values stand in the file: as its beginning shows."""
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
    if end and first.rstrip().endswith(("{", "[", ",")):  # an object goes on in the next line: it is pretty-printed
        return _objects
    return _lines


def _lines(path: Path, skip: int) -> Iterator[tuple[int, Any]]:
    """A value a line. Lines of blanks do not count."""
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
            raise UserError(f"{path}, line {number}: not read (lists or objects are nested too deeply)") from None
        yield number, value


def _objects(path: Path, skip: int) -> Iterator[tuple[int, Any]]:
    """Values one after another, with or without line ends between and within them."""
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
    """Takes one JSON value after another from a text that is read in pieces.

    Attributes:
        position: in the text that is held; what lies before it is done with.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._pieces = path, pieces(path)
        self._text, self.position = "", 0
        self._line, self._counted = 1, 0  # the line of the character at `_counted`
        self._ended = False

    def next_character(self) -> str:
        """Goes to the next character that is no blank. Returns it, "" at the end of the file."""
        while True:
            while self.position < len(self._text) and self._text[self.position] in SPACES:
                self.position += 1
            if self.position < len(self._text):
                return self._text[self.position]
            if not self._more():
                return ""

    def value(self) -> tuple[int, Any]:
        """The value that begins at the next character that is no blank, and its line.

        Raises:
            UserError: it is not JSON; names the line.
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
                    f"{self._path}, line {line}: not read (lists or objects are nested too deeply)"
                ) from None
            if end == len(self._text) and self._more():  # a number may go on
                continue
            line, self.position = self._line_of(self.position), end
            return line, value

    def refuse(self, reason: str, position: int) -> NoReturn:
        """Raises the complaint about what stands at a position."""
        raise UserError(f"{self._path}, line {self._line_of(position)}: not JSON ({reason})") from None

    def _cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the fault may be that the text ends too early."""
        return error.msg.startswith("Unterminated string") or error.pos + TAIL >= len(self._text)

    def _more(self) -> bool:
        """Reads on, at least as much as is held: a long value is not tried once a piece."""
        held = len(self._text) - self.position
        new: list[str] = []
        while not self._ended and sum(map(len, new)) < max(held, 1):
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
    """What the decoder makes of a text; an integer of more digits than Python converts becomes a float."""
    try:
        return decode(*arguments)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return getattr(LENIENT, decode.__name__)(*arguments)
