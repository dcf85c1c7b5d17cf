"""Rows of csv files: equal to those of pandas; rows with another number of fields than the header are refused."""

from __future__ import annotations

import csv
import gzip
import io
import re

import pandas as pd
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sampling import examples

from llm2slm.config import DataConfig
from llm2slm.data.sources.rows.csv_rows import records
from llm2slm.data.sources.sources import load_rows, stream_rows
from llm2slm.data.tasks import TASKS
from llm2slm.types import UserError

TASK = TASKS["instruction"]
PIECES = ["a", "b c", " ", "\t", ",", ",", "\n", "\n", "\r", "\r\n", '"', '""', '"x,y"', '"p\nq"', '" "', "é", "\x0b"]


@examples(400)
@given(body=st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
@example(body='one,two\n\n  \n""\n" "\nthree,four\r')
@example(body="\n\n\ta\t\n")
def test_rows_and_fields_equal_those_of_pandas(tmp_path_factory, body):
    assume(not re.search(r"[\r\n][ \t]*\r,", "\n" + body))  # pandas joins such a blank line with the next line
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(("source,target\n" + body).encode())
    try:
        table = pd.read_csv(path, keep_default_na=False, index_col=False, dtype=str, names=range(40), header=None)
    except pd.errors.ParserError:
        return  # an open quote, which is reported
    strict = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True)
    assume(not_refused(strict))  # pandas drops quotes that are not doubled
    found = [row + [""] * (40 - len(row)) for _, row in records(path)]  # pandas fills missing fields
    assert found == table.to_numpy().tolist()


def not_refused(rows):
    try:
        return bool(list(rows))
    except csv.Error:
        return False


def error_of(read):
    with pytest.raises(UserError) as caught:
        read()
    return str(caught.value)


FAULTS = {
    "too few": ("source,target\na,b\n\nc\nd,e\n", "line 4: 1 of 2 fields; an empty one needs its comma too"),
    "blank in quotes": ('source,target\na,b\n""\nd,e\n', "line 3: 1 of 2 fields; an empty one needs its comma too"),
    "line end within a row": (
        "source,target\na\rb,c\nd,e\n",
        "line 2: 1 of 2 fields; an empty one needs its comma too",
    ),
    "after a text of two lines": ('source,target\n"a\nb",c\nd\n', "line 4: 1 of 2 fields; an empty one needs its"),
    "too many in every row": ("source,target\na,b,c\nd,e,f\n", "line 2: 3 fields, but the header has 2"),
    "trailing commas": ("source,target\na,b,\nd,e,\n", "line 2: 3 fields, but the header has 2"),
}


@pytest.mark.parametrize(("text", "complaint"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_row_that_does_not_match_its_header_is_reported_read_at_once_and_streamed(tmp_path, text, complaint, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix == ".csv.gz" else text.encode())
    data = DataConfig(name="json", train=str(path))
    assert error_of(lambda: load_rows(data, "train", 1)).startswith(f"{path}, {complaint}")
    assert error_of(lambda: list(stream_rows(data, TASK))).startswith(f"{path}, {complaint}")


def test_an_invalid_late_row_is_reported_only_when_it_is_reached(tmp_path):
    lines = ["source,target", *[f"s{n},t{n}" for n in range(2_500)]]
    lines[2_201] = "alone"
    (path := tmp_path / "a.csv").write_text("\n".join(lines))
    data = DataConfig(name="json", train=str(path), train_size=2_200)
    assert len(list(stream_rows(data, TASK, 500))) == 1_700
    data.train_size = None
    rows = stream_rows(data, TASK, 1_150)
    assert [next(rows)["source"] for _ in range(1_000)] == [f"s{n}" for n in range(1_150, 2_150)]
    assert error_of(lambda: list(rows)) == f"{path}, line 2202: 1 of 2 fields; an empty one needs its comma too"
    assert next(stream_rows(data, TASK, 2_201)) == {"source": "s2201", "target": "t2201"}


def test_valid_files_are_read(tmp_path):
    (path := tmp_path / "a.csv").write_text('\ufeffsource,target,n\n\n"a, ""b""\nc",d,1\r\n   \ne,"",2\r\n')
    data = DataConfig(name="json", train=str(path))
    expected = [{"source": 'a, "b"\nc', "target": "d"}, {"source": "e", "target": ""}]
    assert load_rows(data, "train", 1) == list(stream_rows(data, TASK)) == expected
