"""Templates: a row's fields put into words, `{instruction}` and a blank line and `{input}`; plain text otherwise.

Of several templates a row takes the first whose fields all have a text in that row, so that the pair "with input",
"without input" needs no condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

from llm2slm.types import UserError

KEY = "task.template"

_ALPACA = "Below is an instruction that describes a task"
_CONTEXT = "paired with an input that provides further context"
_REQUEST = "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"

TEMPLATES: dict[str, tuple[str, ...]] = {
    "alpaca": (
        f"{_ALPACA}, {_CONTEXT}. {_REQUEST}### Input:\n{{input}}\n\n### Response:",
        f"{_ALPACA}. {_REQUEST}### Response:",
    ),
}
"""Templates that have a name: those of Stanford Alpaca (Taori et al. 2023)."""


@dataclass(frozen=True)
class Template:
    """A plain format string. Braces that are meant as such are doubled, as in Python.

    Attributes:
        answer: it words the text that is written, and may name the column of the target.

    Raises:
        UserError: by `parts`: no format string, no field in it, or more than a name in braces.
    """

    text: str
    answer: bool = False

    @cached_property
    def parts(self) -> list[tuple[str, str | None]]:
        """Pieces of text, each with the name of the field behind it (None behind the last)."""
        where = f"{KEY}={shown(self.text)}"
        try:
            parsed = list(Formatter().parse(self.text))
        except ValueError as error:
            raise UserError(f"{where}: {str(error).lower()}; a brace that is no field is written twice") from None
        for _, name, form, conversion in parsed:
            if name is not None and (not name or form or conversion):
                raise UserError(f"{where}: a field is the name of a column in braces, as {{instruction}}")
            if name == "target" and not self.answer:
                raise UserError(f"{where}: {{target}} would show the answer in the prompt")
        if not any(name for _, name, _, _ in parsed):
            known = f", or the name of one: {', '.join(TEMPLATES)}"
            raise UserError(f"{where}: names no field; write columns in braces, as {{instruction}}{known}")
        return [(text, name) for text, name, _, _ in parsed]

    @property
    def fields(self) -> list[str]:
        """The columns that it names, each once, in order."""
        return list(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, row: Mapping[str, str]) -> str:
        """The text with the row's fields in their places."""
        return "".join(text + ("" if name is None else row[name]) for text, name in self.parts)

    def around(self) -> tuple[str, str] | None:
        """What stands before and after its field, where it has a single one, once."""
        names = [name for _, name in self.parts if name is not None]
        if len(names) != 1:
            return None
        place = next(i for i, (_, name) in enumerate(self.parts) if name is not None)
        before, after = self.parts[: place + 1], self.parts[place + 1 :]
        return "".join(text for text, _ in before), "".join(text for text, _ in after)


def parse(templates: Sequence[str], answer: bool = False) -> tuple[Template, ...]:
    """Templates from their texts, or from names of `TEMPLATES`.

    Args:
        answer: they word the text that is written.

    Raises:
        UserError: one is no template.
    """
    texts = [text for given in templates for text in TEMPLATES.get(given, (given,))]
    parsed = tuple(Template(text, answer) for text in texts)
    for template in parsed:
        _ = template.parts  # complains
    return parsed


def fields(templates: Sequence[Template]) -> list[str]:
    """The columns that any of them names."""
    return list(dict.fromkeys(name for template in templates for name in template.fields))


def worded(templates: Sequence[Template], row: Mapping[str, str], place: str) -> str:
    """The row in the words of the first template all of whose fields have a text in it.

    Args:
        row: text by field, "" where there is none.
        place: names the row in a complaint.

    Raises:
        UserError: there is no such template.
    """
    for template in templates:
        if all(row[name].strip() for name in template.fields):
            return template.fill(row)
    fewest = min((template.fields for template in templates), key=len)
    missing = next(name for name in fewest if not row[name].strip())
    raise UserError(f"{place}: the field {missing!r} has no text, and no {KEY} does without it; add one that does")


def shown(text: str) -> str:
    """A template within a line of complaint."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
