"""The split of the tests: the tests that the default run leaves out can be selected."""

from __future__ import annotations

import pytest
from command_line import ROOT, python
from sampling import examples, first_of_each, representatives

SLOW = "tests/test_environment.py::test_tests_pass_in_a_hostile_environment"


def slow(parameters: list[object]) -> list[object]:
    """The values that are marked slow."""
    return [parameter.values for parameter in parameters if hasattr(parameter, "marks")]


def test_other_values_are_marked_slow_in_their_order() -> None:
    found = representatives(["a", "b", "c"], ["b"])
    assert found[1] == "b" and slow(found) == [("a",), ("c",)]
    assert [[mark.name for mark in found[n].marks] for n in (0, 2)] == [["slow"], ["slow"]]
    pairs = [("a", 1), ("b", 2), ("a", 3)]
    assert slow(representatives(pairs, lambda pair: pair[1] == 1)) == pairs[1:]
    assert slow(representatives(pairs, pairs[:1], whole=True)) == [(("b", 2),), (("a", 3),)]
    assert slow(first_of_each(pairs, lambda pair: pair[0])) == [("a", 3)]


@pytest.mark.parametrize("keep", [["t6"], [], lambda value: False])
def test_a_missing_representative_is_an_error(keep: object) -> None:
    with pytest.raises(AssertionError, match="are not among"):
        representatives(["t5", "gpt2"], keep)


def test_the_default_run_has_a_fifth_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM2SLM_SLOW_TESTS", raising=False)
    assert examples(100).max_examples == 20
    monkeypatch.setenv("LLM2SLM_SLOW_TESTS", "1")
    assert examples(100).max_examples == 100


@pytest.mark.parametrize(
    ("arguments", "collected"),
    representatives(
        [(["tests/test_environment.py"], False), (["--slow", "tests/test_environment.py"], True), ([SLOW], True)],
        lambda case: "--slow" in case[0],
    ),
    ids=["default", "--slow", "named"],
)
def test_slow_tests_run_if_selected(arguments: list[str], collected: bool) -> None:
    done = python("-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *arguments, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (SLOW in done.stdout.splitlines()) == collected
