"""Text is read unchanged: every kind of file, read at once and streamed, gives the same rows or the same error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples, representatives

from llm2slm.config import DataConfig, TaskConfig
from llm2slm.data.sources.sources import load_rows, stream_rows, task_of
from llm2slm.data.tasks import TASKS
from llm2slm.types import UserError

TASK = TASKS["instruction"]
BLOCK = 10 * 2**20
"""Bytes after which type inference by block would start again."""


def config(path, **values):
    return DataConfig(name="json", train=str(path), **values)


def result(read):
    """Rows, or the error."""
    try:
        return list(read())
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)


def both(data, task=TASK):
    """The result of reading at once, checked to equal that of streaming."""
    whole = result(lambda: load_rows(data, "train", 1, task.templates))
    assert result(lambda: stream_rows(data, task)) == whole
    return whole


def complaint(path, **values):
    found = both(config(path, **values))
    assert isinstance(found, str), found[:3]
    return found.replace(str(path), "FILE")


def pairs(texts):
    return [{"source": text, "target": text} for text in texts]


NUMBERS = ["007", "008", "0123", "1.50", "1e5", "123456789012345678901234567890"]
WORDS = ["True", "NA", "null", "None", "", " 7 "]
DATES = ["2024-01-15", "2024-01-16"]


# Text is read as written


@pytest.mark.parametrize("last", [NUMBERS, NUMBERS + WORDS, ["True", "False"]], ids=["numbers", "mixed", "booleans"])
@pytest.mark.parametrize("first", [0, 10_000])
@pytest.mark.parametrize("suffix", representatives([".csv", ".csv.gz", ".tsv"], [".csv", ".csv.gz"]))
def test_a_csv_field_is_text_independent_of_other_rows(tmp_path, suffix, first, last):
    texts = ["word"] * first + last
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if suffix == ".tsv" else ",")
    writer.writerows([["source", "target", "other"], *([text, text, n] for n, text in enumerate(texts))])
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(text.getvalue().encode()) if suffix.endswith("gz") else text.getvalue().encode())
    assert both(config(path)) == pairs(texts)


@pytest.mark.parametrize("last", [DATES, NUMBERS + WORDS], ids=["dates", "numbers"])
@pytest.mark.parametrize("first", ["", "word " * (BLOCK // 5 + 1)], ids=["small", "large"])
@pytest.mark.parametrize("kind", representatives(["json", "jsonl"], ["jsonl"]))
def test_a_json_string_is_read_unchanged(tmp_path, kind, first, last):
    texts = ([first] if first else []) + last
    path = tmp_path / f"a.{kind}"
    lines = [json.dumps(row) for row in pairs(texts)]
    path.write_text("\n".join(lines) if kind == "jsonl" else "[" + ",\n".join(lines) + "]")
    assert both(config(path)) == pairs(texts)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_unused_fields_do_not_matter(tmp_path, kind):
    """A field first occurs, is first filled, or changes its type after more than a block."""
    long = {"pad": "x" * 1_000}
    rows = [{"source": str(n), "target": "t", "late": None} | long for n in range(11_000)]
    more = [
        {"late": "filled"},
        {"late": 5},
        {"new": [1]},
        {"new": {"a": "2024-01-15"}},
        {"late": 10**30},
        {"pad": None},
    ]
    rows += [{"source": f"more {n}", "target": "t"} | extra for n, extra in enumerate(more)]
    path = tmp_path / f"a.{kind}"
    lines = [json.dumps(row) for row in rows]
    lines.append(
        '{"source": "last", "target": "t", "x": 1, "x": 2, "y": "\\ud83d", "z": NaN, "n": ' + "9" * 5_000 + "}"
    )
    path.write_text("\n".join(lines) if kind == "jsonl" else "[" + ",".join(lines) + "]")
    sources = [row["source"] for row in rows] + ["last"]
    assert both(config(path)) == [{"source": source, "target": "t"} for source in sources]


def test_parquet_columns_of_text_are_read_and_others_ignored(tmp_path):
    texts = DATES + NUMBERS + WORDS
    table = pa.table(
        {
            "source": pa.array(texts, pa.large_string()),
            "target": pa.array(texts).dictionary_encode(),
            "n": pa.array(range(len(texts))),
            "a.b": pa.array(texts),
            "a": pa.array([{"b": "nested"}] * len(texts)),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    assert both(config(tmp_path / "a.parquet")) == pairs(texts)
    for skip in (4, 5, 7, 17, 18, 30):
        assert list(stream_rows(config(tmp_path / "a.parquet"), TASK, skip)) == pairs(texts)[skip:]
    dotted = config(tmp_path / "a.parquet", source="a.b", target="source")
    assert both(dotted) == pairs(texts)
    assert complaint(tmp_path / "a.parquet", source="n") == (
        "FILE, row 0 (from 0), column 'n': expected text, found int 0; write it as text, or name another column"
    )


def test_a_hub_folder_keeps_texts_that_look_like_other_types(tmp_path):
    texts = ["None", "NA", "null", "007", "2024-01-15", ""]
    for name, split in (("train.csv", "train"), ("valid.jsonl", "validation"), ("test.parquet", "test")):
        if name.endswith("csv"):
            with (tmp_path / name).open("w", newline="") as file:
                csv.writer(file).writerows([["source", "target"], *([text, text] for text in texts)])
        elif name.endswith("jsonl"):
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in pairs(texts)))
        else:
            pq.write_table(pa.Table.from_pylist(pairs(texts)), tmp_path / name)
        (tmp_path / split).mkdir()
        (tmp_path / name).rename(tmp_path / split / f"{split}{(tmp_path / name).suffix}")
        data = DataConfig(name="hub", path=str(tmp_path / split), train=split)
        assert both(data) == pairs(texts)


# Read at once and streamed

TEXTS = st.text(st.sampled_from('ab 01",\n\t\r\\{}[]:é漢😀\u2028\x0b'), max_size=8)


@examples(30)
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=30),
    extra=st.lists(st.sampled_from([None, 1, "x", [1], {"a": 1}, 1e400, True]), min_size=30, max_size=30),
    skip=st.integers(0, 35),
    size=st.integers(1, 35),
)
def test_every_kind_of_file_is_read_as_written(tmp_path_factory, rows, extra, skip, size):
    folder = tmp_path_factory.mktemp("rows")
    wanted = [{"source": source, "target": target} for source, target in rows]
    full = [row | {"extra": value} for row, value in zip(wanted, extra, strict=False)]
    lines = [json.dumps(row, ensure_ascii=n % 2 == 0) for n, row in enumerate(full)]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\r\n" if skip % 2 else "\n", quoting=csv.QUOTE_ALL)
    writer.writerows([["source", "target"], *rows])
    files = {
        "a.jsonl": "\n\n".join(lines),
        "b.jsonl": "\ufeff" + "\r\n".join(lines) + "\r\n",
        "c.json": "\n[" + " ,\n".join(lines) + "\n] \n",
        "d.json": json.dumps(full, indent=2),
        "e.json": "\n".join(json.dumps(row, indent=1) for row in full),
        "f.json": "\n".join(lines),
        "g.csv": table.getvalue(),
        "h.csv": "\ufeff" + table.getvalue(),
    }
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.Table.from_pylist(wanted), folder / "i.parquet", row_group_size=7)
    for path in sorted(folder.iterdir()):
        assert both(config(path)) == wanted, path.name
        assert list(stream_rows(config(path, train_size=size), TASK, skip)) == wanted[skip:size], path.name
        assert load_rows(config(path, train_size=size), "train", 1) == wanted[:size]


def broken(rng, kind):
    """A small file of rows with a few bytes of it changed."""
    rows = [{"source": "a" * rng.randrange(4), "target": "é", "more": [rng.randrange(9)]} for _ in range(4)]
    if kind == "csv":
        text = "source,target\n" + "".join(f'{row["source"]},"{row["target"]}"\n' for row in rows)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) if kind == "jsonl" else "[" + ",\n".join(lines) + "]"
    data = bytearray(text.encode())
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(data))
        data[place : place + rng.randrange(3)] = rng.choice([b"", b"\xff", b'"', b",", b"{", b"]", b"\n", b"7", b"\\"])
    return bytes(data)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_a_damaged_file_is_read_or_refused_identically_at_once_and_streamed(tmp_path, kind):
    rng, complaints = random.Random(kind), set()
    for number in range(300):
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(broken(rng, kind))
        found = both(config(path))
        if isinstance(found, str):
            assert found.startswith(str(path))
            complaints.add(found.partition(": ")[2][:12])
        for row in found if isinstance(found, list) else ():
            assert all(isinstance(text, str) for text in row.values())
    assert len(complaints) > 3


# Errors state file, line and column


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            '{"source": "a", "target": 7}',
            "FILE, line 3, column 'target': expected text, found int 7; write it as text, or name another column",
        ),
        (
            '{"source": "a", "target": null}',
            "FILE, line 3, column 'target': expected text, found null; fill it in, or leave the row out",
        ),
        (
            '{"source": "a", "target": "b", "source": "c"}',
            "FILE, line 3, column 'source': the key occurs twice; keep one of them",
        ),
        (
            '{"source": "\\ud83d hi", "target": "b"}',
            "FILE, line 3, column 'source': half a character (\\ud83d); write the whole one",
        ),
        (
            '{"source": "a", "tagret": "b"}',
            "FILE, line 3: no column 'target' (data.target); did you mean 'tagret'? columns: source, tagret",
        ),
        ('"text"', "FILE, line 3: expected a JSON object, found str"),
    ],
)
def test_an_invalid_row_of_json_is_reported(tmp_path, kind, line, found):
    good = '{"source": "a", "target": "b"}'
    path = tmp_path / f"a.{kind}"
    path.write_text(f"{good}\n\n{line}\n{good}" if kind == "jsonl" else f"[\n{good},\n{line},\n{good}]")
    assert complaint(path) == found
    assert next(stream_rows(config(path), TASK, 1 + (kind == "jsonl" or 1))) == {"source": "a", "target": "b"}


def test_an_invalid_nested_field_is_reported(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": {"en": "a", "de": "b"}}\n{"t": {"en": "a", "de": "b", "en": "c"}}\n')
    asked = {"source": "t.en", "target": "t.de"}
    assert complaint(path, **asked) == "FILE, line 2, column 't.en': the key occurs twice; keep one of them"
    assert both(config(path, source="t.de", target="t.de")) == pairs(["b", "b"])


def test_a_duplicate_column_is_refused_if_it_is_used(tmp_path):
    (tmp_path / "a.csv").write_text("source,target,source,n,n\na,b,c,1,2\n")
    assert complaint(tmp_path / "a.csv") == "FILE: column 'source' (data.source) occurs twice; rename one of them"
    assert both(config(tmp_path / "a.csv", source="target")) == pairs(["b"])
    table = pa.table([["a"], ["b"], ["c"]], names=["source", "target", "source"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert complaint(tmp_path / "a.parquet").startswith("FILE: column 'source' (data.source) occurs twice")


def test_bytes_that_are_not_utf_8_are_reported(tmp_path):
    for name, text in (("a.csv", b"source,target\na,b\n"), ("a.json", b'[{"source":\n"a", "target": "b"},\n')):
        path = tmp_path / name
        path.write_bytes(text + b"\xc3\xa9 \xff")
        assert complaint(path) == "FILE, line 3: not UTF-8 (byte 4: 0xff); save the file as UTF-8"
    wrong = pa.Array.from_buffers(pa.string(), 2, [None, *pa.array([b"ok", b"\xff"], pa.binary()).buffers()[1:]])
    pq.write_table(pa.table({"source": wrong, "target": ["a", "b"]}), tmp_path / "a.parquet")
    assert (
        complaint(tmp_path / "a.parquet") == "FILE, row 1 (from 0), column 'source': not UTF-8; save the text as UTF-8"
    )


def test_a_large_json_list_is_read_in_pieces(tmp_path):
    """One line of 30 MB: earlier rows are yielded before the error at its end."""
    rows = pairs([f"{n} " + "x" * 10_000 for n in range(1_500)])
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows)[:-1])
    stream = stream_rows(config(path), TASK)
    assert list(islice(stream, 1_500)) == rows
    assert result(lambda: stream) == f"{path}, line 1: not JSON (Expecting ',' delimiter)"
    path.write_text(json.dumps(rows) + " []")
    assert both(config(path)) == f"{path}, line 1: not JSON (Extra data)"


def test_a_truncated_gzip_file_is_reported(tmp_path):
    rows = pairs([random.Random(n).randbytes(300).hex() for n in range(2_000)])
    for name, text in (
        ("a.jsonl.gz", "\n".join(map(json.dumps, rows))),
        ("a.json.gz", json.dumps(rows)),
        ("a.csv.gz", "source,target\n" + "".join(f"{row['source']},{row['target']}\n" for row in rows)),
    ):
        path = tmp_path / name
        packed = gzip.compress(text.encode())
        path.write_bytes(packed[: len(packed) // 2])
        assert list(islice(stream_rows(config(path), TASK), 100)) == rows[:100]
        assert complaint(path).startswith("FILE: not a complete gzip file (")


def test_templates_accept_a_field_of_late_rows_and_refuse_a_field_of_no_row(tmp_path):
    rows = [{"question": f"q{n}", "target": "t"} for n in range(3_000)] + [
        {"question": "q", "target": "t", "context": "c"}
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = config(path)
    task = task_of(TaskConfig("instruction", template=["{question} {context}", "{question}"]), data)
    found = both(data, task)
    assert [found[0]["source"], found[-1]["source"]] == ["q0", "q c"]
    assert list(stream_rows(data, task, 2_999)) == found[2_999:]
    task = task_of(TaskConfig("instruction", template=["{question} {kontext}", "{question}"]), data)
    assert both(data, task) == (
        f"{path}: no column 'kontext' (task.template) in any row; did you mean 'context'? "
        "columns: question, target, context"
    )


# Existing paths are not patterns

ODD = ["run[1]", "a*b", "a?b", "[!x]", "{a,b}", "a b, c", "x=y", "a'b", "$HOME", "a::b", "~nobody"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ODD)
def test_an_existing_path_is_not_a_pattern(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    for folder, text in ((name, "mine"), ("run1", "other"), ("aXb", "other"), ("a", "other"), ("b", "other")):
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            path = tmp_path / folder / f"{split}.{kind}"
            rows = pairs([f"{text} {split}"])
            if kind == "parquet":
                pq.write_table(pa.Table.from_pylist(rows), path)
            elif kind == "csv":
                path.write_text(f"source,target\n{text} {split},{text} {split}\n")
            else:
                path.write_text(json.dumps(rows[0]))
    assert both(config(f"{name}/train.{kind}")) == pairs(["mine train"])
    data = DataConfig(name="hub", path=name)
    assert both(data) == pairs(["mine train"])
    assert load_rows(data, "test", 1) == pairs(["mine test"])
    (tmp_path / name / f"{name}.{kind}").write_bytes((tmp_path / name / f"test.{kind}").read_bytes())
    assert both(config(f"{name}/{name}.{kind}")) == pairs(["mine test"])


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize(
    ("row", "line"),
    [('"Hi," he said.{d}ok', 2), ('x{d}"unclosed\ny{d}z "quoted" w', 2)],
    ids=["text after a quote", "an open quote that a later one closes"],
)
def test_quotes_that_are_not_csv_are_refused_and_not_dropped(tmp_path, delimiter, row, line):
    path = tmp_path / ("rows.tsv" if delimiter == "\t" else "rows.csv")
    path.write_text(f"source{delimiter}target\n{row.format(d=delimiter)}\nlast{delimiter}row\n")
    with pytest.raises(UserError, match=f"line {line}: not CSV .*each quote in it is doubled"):
        load_rows(DataConfig(name="json", train=str(path)), "train", 1)
