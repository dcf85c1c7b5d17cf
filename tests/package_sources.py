"""The modules of llm2slm as syntax trees, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "llm2slm"


@dataclass(frozen=True)
class Source:
    """A module: its dotted name within llm2slm (`data.collate`; `data/__init__.py` is `data`) and its text."""

    name: str
    text: str
    is_package: bool = False

    @property
    def package(self) -> str:
        """The package or module directly below llm2slm that contains it."""
        return self.name.partition(".")[0]

    def tree(self) -> ast.Module:
        return parsed(self.text)


@cache
def parsed(text: str) -> ast.Module:
    """The syntax tree; each rule reads the same modules."""
    return ast.parse(text)


def sources() -> dict[str, Source]:
    """Every module of llm2slm by its dotted name; `llm2slm/__init__.py` is `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        is_package = parts[-1] == "__init__" and len(parts) > 1
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = Source(name, path.read_text(encoding="utf-8"), is_package)
    return found


SOURCES = sources()


@cache
def imports(source: Source) -> tuple[str, ...]:
    """Full dotted names of all imports of a module, those within functions and TYPE_CHECKING included.

    `from a import b` gives `a.b`, since b may be a module; `import_module("a.b")` counts too.
    """
    return tuple(found_imports(source))


def found_imports(source: Source) -> Iterator[str]:
    home = ["llm2slm", *source.name.split(".")]
    for node in ast.walk(source.tree()):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    up = node.level - 1 if source.is_package else node.level
                    base = ".".join([*home[: len(home) - up], *([base] if base else [])])
                yield from (f"{base}.{alias.name}" for alias in node.names)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
                    yield name


def within(name: str, folder: str) -> bool:
    """Whether a dotted name is `folder` or a name below it."""
    return name == folder or name.startswith(folder + ".")
