"""The split of the tests: the default run takes representatives of a parametrized matrix and fewer examples of each
hypothesis test; `pytest --slow` (`make test-all`) takes all of both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings

SLOW = "LLM2SLM_SLOW_TESTS"
"""Environment variable that `conftest.py` sets with `--slow`."""


def representatives(
    values: Iterable[Any], keep: Iterable[Any] | Callable[[Any], bool], *, whole: bool = False
) -> list[Any]:
    """Parameters for `pytest.mark.parametrize` or a fixture, in order; those that are not kept are marked `slow`.

    Args:
        keep: the values of the default run, or a predicate. A listed value that does not exist is an error, so that a
            renamed family cannot leave the default run unnoticed.
        whole: a tuple is the value of one argument, and not the values of several.
    """
    values = list(values)
    chosen = [value for value in values if keep(value)] if callable(keep) else list(keep)
    assert chosen and all(value in values for value in chosen), f"representatives {chosen} are not among {values}"

    def slow(value: Any) -> Any:
        arguments = value if isinstance(value, tuple) and not whole else (value,)
        return pytest.param(*arguments, marks=pytest.mark.slow)

    return [value if value in chosen else slow(value) for value in values]


def first_of_each(values: Iterable[Any], kind: Callable[[Any], Any], *, whole: bool = False) -> list[Any]:
    """Parameters; the first one of each kind is in the default run."""
    values = list(values)
    firsts = {kind(value): value for value in reversed(values)}
    return representatives(values, list(firsts.values()), whole=whole)


def first_few(values: Iterable[Any], number: int) -> list[Any]:
    """Parameters; the first `number` are in the default run."""
    values = list(values)
    return representatives(values, values[:number])


def examples(number: int) -> settings:
    """Hypothesis settings with `number` examples, or a fifth of them in the default run."""
    return settings(max_examples=number if SLOW in os.environ else number // 5, deadline=None)
