"""The rows that differ most: complete in the CSV file, shortened and sanitized in the terminal."""

from __future__ import annotations

import csv
import io

import pytest
from compared_runs import GOOD, POOR, TARGETS, write_demo, write_run
from rich.console import Console
from test_comparison import compared

from llm2slm.evaluation.compare.rows import LENGTH, rows_csv, terminal_rows


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    answers = {"llm": GOOD, "slm": POOR, "llm2slm": [*POOR[:4], *GOOD[4:]]}
    return compared(write_demo(tmp_path_factory.mktemp("runs") / "demo", answers))


def shown(comparison, width=200):
    console = Console(width=width, file=io.StringIO())
    console.print(terminal_rows(comparison))
    return console.file.getvalue()


def test_the_file_contains_every_row_of_the_comparison_in_its_order(found):
    rows = list(csv.DictReader(io.StringIO(rows_csv(found), newline="")))
    expected = [
        (part["system"], direction, str(row["row"]), row["source"], row["target"], row["baseline"], row["prediction"],
         str(row["baseline_score"]), str(row["score"]), str(row["difference"]))
        for part in found["row_differences"] for direction in ("worse", "better") for row in part[direction]
    ]  # fmt: skip
    keys = ("system", "direction", "row", "source", "target", "baseline_output", "system_output",
            "baseline_score", "score", "difference")  # fmt: skip
    assert [tuple(row[key] for key in keys) for row in rows] == expected
    assert {(row["baseline"], row["metric"]) for row in rows} == {("llm", "bleu")}
    assert {row["system"] for row in rows} == {"slm", "llm2slm"}
    assert len(rows) > 6


def test_the_file_contains_whole_texts_and_no_formula(tmp_path):
    texts = ['one, "two"\nthree', "=1+1", *TARGETS[2:]]
    write_run(tmp_path / "a", "slm", TARGETS)
    write_run(tmp_path / "b", "slm", texts)
    rows = list(csv.DictReader(io.StringIO(rows_csv(compared(tmp_path / "a", tmp_path / "b")), newline="")))
    assert {row["system_output"] for row in rows} == {texts[0], "'=1+1"}


@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_shows_the_worst_rows_side_by_side(found, width):
    text = " ".join(shown(found, width).split())
    worst = {part["system"]: part["worse"] for part in found["row_differences"]}
    for system, rows in worst.items():
        assert f"{system} worse than llm, by BLEU of the row" in text
        assert len(rows) >= 3
        for row in rows[:3]:  # six of the two systems
            words = [word for key in ("source", "target", "baseline", "prediction") for word in row[key].split()]
            assert width < 200 or all(word in text for word in words)  # on a wide terminal, words are not broken
            assert f"({row['difference']:+.2f})".replace("-", "−") in text
    assert shown(found, width).count("(−") == 6
    assert max(map(len, shown(found, width).splitlines())) <= width


def test_texts_are_cut_and_control_characters_are_removed_in_the_terminal(tmp_path):
    long = "word " * 300
    write_run(tmp_path / "a", "slm", [long, *TARGETS[1:]], targets=[long, *TARGETS[1:]])
    answers = ["\x1b[31mred\x9b2J [bold]b[/bold]\r\n", *TARGETS[1:]]
    write_run(tmp_path / "b", "slm", answers, targets=[long, *TARGETS[1:]])
    text = shown(compared(tmp_path / "a", tmp_path / "b"))
    assert not {"\x1b", "\x9b", "\r"} & set(text)
    assert "[bold]b[/bold]" in text
    assert "…" in text
    assert text.count("word") <= 2 * LENGTH // len("word ")


def test_a_system_that_is_worse_on_no_row_has_no_table(tmp_path):
    write_run(tmp_path / "a", "slm", POOR)
    write_run(tmp_path / "b", "slm", TARGETS)
    assert shown(compared(tmp_path / "a", tmp_path / "b")).strip() == ""
    assert "a worse than b" in shown(compared(tmp_path / "b", tmp_path / "a"))


def test_of_many_systems_the_terminal_shows_one_row_each(tmp_path):
    for name in "abcdefghi":
        write_run(tmp_path / name, "slm", TARGETS if name == "a" else POOR)
    assert shown(compared(*(tmp_path / name for name in "abcdefghi"))).count("(−") == 8
