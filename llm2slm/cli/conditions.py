"""Rows of the tables of `reads.py`: verbs that read a key, and the conditions under which they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class When:
    """The condition for reading a key.

    Attributes:
        words: the condition in words, as "model.kind=llm2slm"; "" if always true; or a function that returns them.
        test: the condition as a function of verb and configuration.
    """

    words: str | Callable[[], str]
    test: Callable[[str, Any], bool]

    def __str__(self) -> str:
        return self.words if isinstance(self.words, str) else self.words()

    def __and__(self, other: When) -> When:
        return When(
            lambda: " and ".join(filter(None, (str(self), str(other)))),
            lambda verb, config: self.test(verb, config) and other.test(verb, config),
        )


def when(words: str, test: Callable[[Any], bool]) -> When:
    """A condition that does not depend on the verb."""
    return When(words, lambda verb, config: test(config))  # noqa: ARG005


@dataclass(frozen=True)
class Reads:
    """Verbs that read a key under a condition."""

    verbs: tuple[str, ...]
    when: When


class Row(tuple[Reads, ...]):
    """All verbs and conditions under which a key is read."""

    def read(self, verb: str, config: Any) -> bool:
        """Whether the verb reads the key under this configuration."""
        return any(verb in each.verbs and each.when.test(verb, config) for each in self)

    def where(self, verb: str) -> str:
        """Where the key is read, in words: the conditions of this verb, else the verbs."""
        modes = dict.fromkeys(text for each in self if verb in each.verbs and (text := str(each.when)))
        verbs = dict.fromkeys(name for each in self for name in each.verbs)
        return f"read with {' or '.join(modes)}" if modes else f"read by {', '.join(verbs)}"


ALWAYS = when("", lambda config: True)  # noqa: ARG005


def row(*verbs: str, if_: When = ALWAYS) -> Row:
    """A row of verbs with one condition."""
    return Row((Reads(verbs, if_),))


def either(*rows: Row) -> Row:
    """The union of rows."""
    return Row(each for one in rows for each in one)
