"""Targets of a benchmark: the compared values, and incomplete targets."""

import pytest

from llm2slm.config import TargetConfig
from llm2slm.evaluation.benchmark.targets import check, check_names, compared, missing
from llm2slm.evaluation.report.report import target_table
from llm2slm.runs import SpeedRow, Spread
from llm2slm.types import UserError


def row(rounds, batch=1, response=64, lengths="grid", **more):
    one = Spread(1.0, 1.0, 1.0)
    return SpeedRow(
        batch, 8, response, lengths, "float32", 1, "fake", 1, len(rounds), one, Spread(0.25, 0.2, 0.3), one, one, None,
        None, rounds_ms=rounds, **more,
    )  # fmt: skip


ROWS = {
    "llm": [row([10, 30, 20], lengths="test", response=19.5), row([40, 40, 40]), row([80, 80, 80], batch=8)],
    "fast": [row([1, 2, 4], lengths="test", response=19.5), row([10, 20, 5], share_of_bandwidth=0.3)],
}


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        ({"against": "llm", "at_least": 9}, 10, True),  # 10, 15 and 5 times by round
        ({"against": "llm", "at_least": 11}, 10, False),
        ({"against": "llm", "at_least": 4, "response_tokens": 64}, 4, True),  # 4, 2, 8
        ({"against": "llm", "at_least": 4, "response_tokens": 32}, None, None),
        ({"against": "llm", "at_least": 4, "response_tokens": 64, "batch": 8}, None, None),
        ({"against": "slow", "at_least": 4}, None, None),
        ({"measure": "share_of_bandwidth", "at_least": 0.4, "response_tokens": 64}, 0.3, False),
        ({"measure": "share_of_bandwidth", "at_least": 0.4}, None, None),  # unknown
        ({"measure": "ms_per_token", "at_most": 0.3}, 0.25, True),
        ({"measure": "ms_per_token", "at_most": 0.2}, 0.25, False),
    ],
)
def test_a_target_is_compared_with_its_rows(target, value, met):
    (found,) = compared([TargetConfig(name="t", system="fast", **target)], ROWS)
    assert found.value == (value if value is None else pytest.approx(value))
    assert found.met is met


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ({"against": "llm", "at_least": 1}, None),
        ({"against": "llm (int8)", "at_least": 1}, "llm (int8) was not timed (benchmark.decoders"),
        ({"against": "llm", "at_least": 4, "response_tokens": 32}, "fast was not timed at batch 1 with 32 response"),
        ({"against": "llm", "at_least": 4, "response_tokens": 64, "batch": 8}, "fast was not timed at batch 8 with 64"),
        ({"against": "llm", "at_least": 4, "batch": 8}, "fast was not timed at batch 8 of the test split"),
        ({"measure": "share_of_bandwidth", "at_least": 0.4}, "share_of_bandwidth of fast is not known"),
    ],
)
def test_a_target_without_a_value_has_a_reason(target, reason):
    lines = missing([TargetConfig(name="t", system="fast", **target)], ROWS)
    assert [line.startswith(f"target 't' is not measured: {reason}") for line in lines] == [True] * (reason is not None)


def test_the_table_states_target_value_and_result(capsys):
    from rich.console import Console

    targets = [
        {"name": "a", "wanted": "at least 4", "value": 4.5, "met": True},
        {"name": "b", "wanted": "at most 0.3", "value": 0.5, "met": False},
        {"name": "c", "wanted": "at least 2", "value": None, "met": None},
    ]
    Console(width=80).print(target_table({"targets": targets}, 80))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip() and "─" not in line]
    assert lines == [
        ["Target", "Wanted", "Measured", "Result"],
        ["a", "at", "least", "4", "4.50", "met"],
        ["b", "at", "most", "0.3", "0.500", "not", "met"],
        ["c", "at", "least", "2", "–", "not", "measured"],
    ]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"system": "fast", "at_least": 1}, r"targets\[0\]\.name is not set"),
        ({"name": "t", "at_least": 1}, r"targets\[0\]\.system is not set"),
        ({"name": "t", "system": "fast"}, "set at_least or at_most"),
        ({"name": "t", "system": "fast", "at_least": 1, "at_most": 2}, "set at_least or at_most, and not both"),
        ({"name": "t", "system": "a", "against": "b", "measure": "prefill_ms", "at_least": 1}, "leave measure out"),
    ],
)
def test_an_incomplete_target_is_reported_on_one_line(target, message):
    with pytest.raises(UserError, match=message):
        check([TargetConfig(**target)])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"system": "hybrd"}, r"^benchmark.targets\[1\].system=hybrd: no such system; nearest: hybrid.*: llm, hybrid$"),
        ({"against": "llm (captred)"}, r"^benchmark.targets\[1\].against=llm \(captred\): .*llm \(captured\)"),
    ],
)
def test_a_target_of_an_unknown_system_is_refused(given, words):
    first = TargetConfig(name="a", system="hybrid (captured)", against="llm", at_least=1)
    check_names([first], ["llm", "hybrid"], ["generate", "captured"])
    with pytest.raises(UserError, match=words):
        second = TargetConfig(**{"name": "b", "system": "hybrid", "against": "llm", "at_least": 1} | given)
        check_names([first, second], ["llm", "hybrid"], ["generate", "captured"])
