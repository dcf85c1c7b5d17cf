"""Prompt templates: format strings with the fields of a row, for example "{instruction}\\n\\n{input}".

Of several templates, the first one whose fields all have a text in the row is used, so that the pair "with input",
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
"""Named templates: those of Stanford Alpaca (Taori et al. 2023)."""


@dataclass(frozen=True)
class Template:
    """A format string. Literal braces are doubled, as in Python.

    Attributes:
        answer: the template makes the target, and may contain `{target}`.

    Raises:
        UserError: by `parts`: not a format string, no field, or a conversion or format in a field.
    """

    text: str
    answer: bool = False

    @cached_property
    def parts(self) -> list[tuple[str, str | None]]:
        """Pieces of text, each with the name of the field that follows it (None after the last)."""
        where = f"{KEY}={shown(self.text)}"
        try:
            parsed = list(Formatter().parse(self.text))
        except ValueError as error:
            raise UserError(f"{where}: {str(error).lower()}; write a literal brace twice") from None
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
        """The columns in the template, each once, in order."""
        return list(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, row: Mapping[str, str]) -> str:
        """The text with the fields of a row."""
        return "".join(text + ("" if name is None else row[name]) for text, name in self.parts)

    def around(self) -> tuple[str, str] | None:
        """The text before and after the field, if the template has a single one, once."""
        names = [name for _, name in self.parts if name is not None]
        if len(names) != 1:
            return None
        position = next(i for i, (_, name) in enumerate(self.parts) if name is not None)
        before, after = self.parts[: position + 1], self.parts[position + 1 :]
        return "".join(text for text, _ in before), "".join(text for text, _ in after)


def parse(templates: Sequence[str], answer: bool = False) -> tuple[Template, ...]:
    """Templates from their texts, or from names of `TEMPLATES`.

    Args:
        answer: the templates make the target.

    Raises:
        UserError: a text is not a valid template.
    """
    texts = [text for given in templates for text in TEMPLATES.get(given, (given,))]
    parsed = tuple(Template(text, answer) for text in texts)
    for template in parsed:
        _ = template.parts  # raises UserError
    return parsed


def fields(templates: Sequence[Template]) -> list[str]:
    """The columns in any of the templates."""
    return list(dict.fromkeys(name for template in templates for name in template.fields))


def filled(templates: Sequence[Template], row: Mapping[str, str], location: str) -> str:
    """The text of a row by the first template whose fields all have a text.

    Args:
        row: text by field, "" if there is none.
        location: location of the row, for the message.

    Raises:
        UserError: every template has a field without a text.
    """
    for template in templates:
        if all(row[name].strip() for name in template.fields):
            return template.fill(row)
    fewest = min((template.fields for template in templates), key=len)
    missing = next(name for name in fewest if not row[name].strip())
    raise UserError(
        f"{location}: the field {missing!r} has no text, and every {KEY} uses it; add a template without it"
    )


def shown(text: str) -> str:
    """A template in a message, shortened."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
