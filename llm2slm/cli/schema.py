"""The keys of the configuration of each verb, with type, default and help, from the dataclasses and their source."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import itertools
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Union

from llm2slm import config
from llm2slm.config.choices import CHOICES
from llm2slm.data.tasks import TASKS
from llm2slm.models import conditioning
from llm2slm.types import UserError

SCHEMAS: dict[str, type] = {
    "train": config.RunConfig,
    "evaluate": config.RunConfig,
    "calibrate": config.RunConfig,
    "generate": config.GenerateConfig,
    "label": config.RunConfig,
    "encode": config.RunConfig,
    "benchmark": config.RunConfig,
    "costs": config.CostsConfig,
    "judge": config.JudgeConfig,
    "export": config.ExportConfig,
    "report": config.ReportConfig,
    "compare": config.CompareConfig,
    "dashboard": config.DashboardConfig,
    "demo": config.RunConfig,
    "tokenizer": config.TokenizerConfig,
}
"""Verb -> the dataclass of its configuration."""


def _metrics() -> list[str]:
    from llm2slm.evaluation.metrics.scores import METRICS, of_texts

    return of_texts(METRICS)


REGISTERED: dict[str, Callable[[], list[str]]] = {
    "model.conditioning": conditioning.names,
    "task.name": lambda: list(TASKS),
    "task.metrics": _metrics,
    "calibrate.metric": _metrics,
    "metrics": _metrics,  # of compare
}
"""Text keys whose values are names in a registry, and the names. Help and completion list them."""
CLOSED = ("model.conditioning",)
"""Those of them that the composition checks; the commands check the others, which allow more (bertscore:MODEL)."""
OPTION = r"[\w+-]+(?: \([^()]*\))?"
LISTED = re.compile(rf"(?:^|: )({OPTION}(?: \| {OPTION})+)")


@dataclass(frozen=True)
class Key:
    """A key of the configuration: dotted name, type, default, and the docstring of its field."""

    name: str
    annotation: Any
    default: Any
    help: str
    owner: type
    """The dataclass of the field."""

    @property
    def field(self) -> dataclasses.Field[Any]:
        """The field of the dataclass."""
        return next(f for f in dataclasses.fields(self.owner) if f.name == self.name.rpartition(".")[2])

    @property
    def closed(self) -> tuple[str, ...]:
        """The only possible values of a text; empty: any."""
        return CHOICES.get(self.owner, {}).get(self.field.name, ())

    @property
    def section(self) -> bool:
        """Whether it contains keys (a nested dataclass)."""
        return dataclasses.is_dataclass(self.annotation)

    @property
    def open(self) -> bool:
        """Whether it accepts any key (a dict)."""
        return typing.get_origin(self.annotation) is dict

    @property
    def members(self) -> tuple[Any, ...]:
        """The types of a union without None; (type,) for any other type."""
        if typing.get_origin(self.annotation) in (Union, types.UnionType):
            return tuple(t for t in typing.get_args(self.annotation) if t is not type(None))
        return (self.annotation,)

    @property
    def text(self) -> bool:
        """Whether the value is a string."""
        return self.members == (str,)

    @property
    def choices(self) -> list[str]:
        """Values of a text: the only possible ones, else those of its registry, else those that the help lists, as
        "A | B (explanation) | C", at its start or after a colon."""
        if self.closed:
            return list(self.closed)
        if self.name in REGISTERED:
            return REGISTERED[self.name]()
        found = LISTED.search(self.help) if self.text or self.texts else None
        return [re.sub(r" \(.*", "", option) for option in found[1].split(" | ")] if found else []

    @property
    def many(self) -> bool:
        """Whether the value is a list."""
        return typing.get_origin(self.members[0]) in (list, tuple)

    @property
    def texts(self) -> bool:
        """Whether the value is a list of strings."""
        return self.many and typing.get_args(self.members[0])[:1] == (str,)

    @property
    def element(self) -> type | None:
        """The dataclass of the items of a list; None for other types."""
        inner = typing.get_args(self.members[0])[:1] if self.many else ()
        return inner[0] if inner and isinstance(inner[0], type) and dataclasses.is_dataclass(inner[0]) else None

    @property
    def expected(self) -> str:
        """The type in words."""
        if self.name in CLOSED or self.closed:
            return f"one of {', '.join(self.choices)}"
        words = " or ".join(_words(t) for t in self.members)
        nullable = type(None) in typing.get_args(self.annotation)
        return words + (" or null" if nullable else "")


def _words(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "one of " + ", ".join(annotation.__members__)
    origin = typing.get_origin(annotation)
    if origin in (list, tuple):
        return f"a list of {_plural(typing.get_args(annotation)[0])}, [A,B]"
    if origin is dict:
        return "keys and values, {key: value}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(annotation, str(annotation))


def _plural(annotation: Any) -> str:
    if dataclasses.is_dataclass(annotation):
        return "{KEY: VALUE}"
    return {int: "integers", float: "numbers", str: "texts"}.get(annotation, "values")


@cache
def keys(schema: type, prefix: str = "") -> dict[str, Key]:
    """Every key of a schema by dotted name, sections included, in the order of the source."""
    found: dict[str, Key] = {}
    hints = typing.get_type_hints(schema)
    texts = docstrings(schema)
    for field in dataclasses.fields(schema):
        name = prefix + field.name
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        key = Key(name, hints[field.name], default, texts.get(field.name, ""), schema)
        found[name] = key
        if key.section:
            found |= keys(key.annotation, name + ".")
    return found


def has_groups(schema: type, section: str) -> bool:
    """Whether a section of a schema takes the options of the configuration group of that name: they set keys of
    `RunConfig`, so the section must have the same type."""
    key, of_run = keys(schema).get(section), keys(config.RunConfig).get(section)
    return key is not None and of_run is not None and key.section and key.annotation is of_run.annotation


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def as_help(docstring: str) -> str:
    """A docstring on one line, with null for None, as users write it."""
    return re.sub(r"\bNone\b", "null", " ".join(docstring.split()))


def docstrings(schema: type) -> dict[str, str]:
    """Field -> the string below it in the source of its class or of a parent, `as_help`."""
    found: dict[str, str] = {}
    for parent in (parent for parent in reversed(schema.__mro__) if dataclasses.is_dataclass(parent)):
        node = _classes(parent.__module__).get(parent.__name__)
        body = node.body if node else []
        for above, below in itertools.pairwise(body):
            if (
                isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[above.target.id] = as_help(str(below.value.value))
    return found


def lookup(schema: type, name: str) -> Key | None:
    """The key `name`; for a name within an open dict the key of the dict; None for an unknown name."""
    known = keys(schema)
    if name in known:
        return known[name]
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        parent = known.get(".".join(parts[:end]))
        if parent is not None:
            return parent if parent.open else None
    return None


def nearest_keys(name: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """The dotted keys most similar to `name`, best first: equal last part, then similar names. (`nearest_names`
    compares whole names.)"""
    pool = list(candidates)
    if "." in name or "/" in name:
        parent, _, last = name.replace("/", ".").rpartition(".")
        inside = {c.rpartition(".")[2]: c for c in pool if c.rpartition(".")[0] == parent}
        siblings = [inside[c] for c in difflib.get_close_matches(last, inside, n=1, cutoff=0.6)]
    else:
        last, siblings = name, []
    if siblings:
        return siblings
    same = [c for c in pool if c.replace("/", ".").rpartition(".")[2] == last]
    whole = difflib.get_close_matches(name, pool, n=n, cutoff=0.6)
    tails = {c.rpartition(".")[2]: c for c in reversed(pool)}
    alike = [tails[c] for c in difflib.get_close_matches(last, tails, n=n, cutoff=0.7)]
    return list(dict.fromkeys(same + whole + alike))[:n]


def unknown_key(schema: type, name: str, groups: Iterable[str]) -> UserError:
    """The error for an unknown key, with the most similar keys."""
    near = nearest_keys(name, [*groups, *keys(schema)])
    if near:
        return UserError(f"unknown key {name!r}; did you mean {' or '.join(near)}?")
    sections = ", ".join(k for k in keys(schema) if "." not in k)
    return UserError(f"unknown key {name!r}; keys start with one of: {sections} (llm2slm VERB --help lists them)")
