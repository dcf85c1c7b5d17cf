"""Rows of every kind of source, and errors on one line."""

from __future__ import annotations

import csv
import gzip
import json
import os
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2slm.config import DataConfig, TaskConfig
from llm2slm.data.sources.corpora import CORPORA
from llm2slm.data.sources.sources import BUILTIN, languages, load_rows, target_language, task_of
from llm2slm.types import UserError

ROWS = [
    {"source": "A dog.", "target": "Ein Hund."},
    {"source": 'None, "quoted",\nNA', "target": "null"},
    {"source": "  12 ", "target": "über 😀"},
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write(path, rows, columns=("source", "target")):
    """Writes `rows` in the format of the suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if ".csv" in path.name:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        elif ".jsonl" in path.name:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            json.dump(rows, file)
    return path


def read(path, **values):
    return load_rows(DataConfig(name="json", train=str(path), **values), "train", 1)


def complaint(path, **values):
    with pytest.raises(UserError) as caught:
        read(path, **values)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text.replace(str(path), "FILE")


NAMES = ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_formats_give_the_same_rows(tmp_path, name):
    assert read(write(tmp_path / name, ROWS)) == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_columns_are_mapped_and_others_ignored(tmp_path, name):
    rows = [{"target": "X", "question": "q", "answer": "a", "n": 3}]
    path = write(tmp_path / name, rows, ("target", "question", "answer", "n"))
    assert read(path, source="question", target="answer") == [{"source": "q", "target": "a"}]


def test_task_column_is_kept(tmp_path):
    rows = [{"source": "s", "target": "t", "task": "summarization"}]
    assert read(write(tmp_path / "a.jsonl", rows)) == rows


@pytest.mark.parametrize("other", [None, 7, ["a"]])
def test_a_task_that_is_not_text_is_left_out(tmp_path, other):
    rows = [{"source": "s", "target": "t", "task": other}, {"source": "S", "target": "T", "task": "summarization"}]
    pq.write_table(pa.table({"source": ["s"], "target": ["t"], "task": [other]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [{"source": "s", "target": "t"}]
    if not isinstance(other, list):
        found = read(write(tmp_path / "a.jsonl", rows))
        assert found[0] == {"source": "s", "target": "t"}
        assert {"source": found[1]["source"], "target": found[1]["target"]} == {"source": "S", "target": "T"}
    if other is None:
        assert found[1]["task"] == "summarization"


def test_one_column_may_be_source_and_target(tmp_path):
    assert read(write(tmp_path / "a.jsonl", ROWS), target="source")[0] == {"source": "A dog.", "target": "A dog."}


def test_the_size_limits_the_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    assert read(path, train_size=2) == ROWS[:2]
    assert read(path, train_size=9) == ROWS
    with pytest.raises(UserError, match=r"data\.train_size=0: must be at least 1"):
        read(path, train_size=0)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet"])
def test_a_changed_file_is_read_again(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    times = path.stat()
    assert read(path) == ROWS
    changed = [{**row, "target": "neu"} for row in ROWS]
    write(path, changed)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert read(path) == changed


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"source": "x", "target": ', "FILE, line 3: not JSON (Expecting value at column 27)"),
        ("[1, 2]", "FILE, line 3: expected a JSON object, found list"),
        ('{"source": "x" "target": "y"}', "FILE, line 3: not JSON (Expecting ',' delimiter at column 16)"),
    ],
)
def test_an_invalid_json_line_is_reported(tmp_path, name, line, found):
    text = '{"source": "a", "target": "b"}\n\n' + line + '\n{"source": "a", "target": "b"}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert complaint(path) == found


def test_an_invalid_line_late_in_a_large_file_is_reported(tmp_path):
    lines = [json.dumps({"source": "s" * 2000, "target": str(i)}) for i in range(8000)]
    lines[7500] = lines[7500][:-1]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    assert complaint(path).startswith("FILE, line 7501: not JSON")


def test_an_invalid_json_list_is_reported(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"source": "a", "target": "b"},\n {"source": }\n]')
    assert complaint(path) == "FILE, line 3: not JSON (Expecting value)"


def test_invalid_utf8_is_reported(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"source": "a", "target": "b"}\n{"source": "\xff", "target": "b"}\n')
    assert complaint(path) == "FILE, line 2: not UTF-8 (byte 13: 0xff); save the file as UTF-8"


def test_csv_with_too_many_fields_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('source,target\n"a\nb",c\nd,e,f\n')
    assert complaint(path) == "FILE, line 4: 3 fields, but the header has 2"


def test_csv_with_an_open_quote_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('source,target\na,b\n"c,d\n')
    assert complaint(path) == "FILE, line 3: not CSV (a quote is not closed)"


def test_truncated_and_invalid_gzip_files_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", [{"source": os.urandom(500).hex(), "target": "t"} for _ in range(50)])
    path.write_bytes(path.read_bytes()[:2000])
    assert complaint(path).startswith("FILE: not a complete gzip file (")
    path.write_bytes(b'{"source": "a", "target": "b"}\n')
    assert complaint(path).startswith("FILE: not a complete gzip file (")


def test_an_invalid_parquet_file_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"this is no parquet file")
    assert complaint(path).startswith("FILE: cannot be read as parquet (")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.csv", "a.parquet"])
def test_empty_files_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert complaint(path) == "FILE: the file is empty"


def test_files_without_rows_are_refused(tmp_path):
    assert complaint(write(tmp_path / "a.csv", [])) == "FILE: holds no rows"
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table({"source": pa.array([], pa.string()), "target": pa.array([], pa.string())}), path)
    assert complaint(path) == "FILE: holds no rows"
    assert complaint(write(tmp_path / "c.json", [])) == "FILE: holds no rows"


def test_missing_and_unsupported_files_are_refused(tmp_path):
    assert complaint(tmp_path / "a.jsonl") == "FILE: no such file; give a json, jsonl, csv, tsv or parquet file"
    (tmp_path / "b.json").mkdir()
    assert complaint(tmp_path / "b.json").startswith("FILE: is a folder")
    for name, kind in (("a.txt", ".txt"), ("a", ""), ("a.parquet.gz", ".gz"), ("a.tar.gz", ".gz")):
        assert complaint(tmp_path / name).startswith(f"FILE: unsupported kind of file {kind!r}; use .json, ")


def test_an_unknown_column_is_reported_with_the_nearest_and_all_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "q", "answers": "a"}])
    found = complaint(path, source="question", target="answer")
    assert found == "FILE, line 1: no column 'answer' (data.target); did you mean 'answers'? columns: question, answers"
    assert complaint(path) == "FILE, line 1: no column 'source' (data.source); columns: question, answers"
    path = write(tmp_path / "a.csv", [{"question": "q", "answers": "a"}], ("question", "answers"))
    found = complaint(path, source="question", target="answer")
    assert found == "FILE: no column 'answer' (data.target); did you mean 'answers'? columns: question, answers"


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (None, "FILE, line 3, column 'target': expected text, found null; fill it in, or leave the row out"),
        (7, "FILE, line 3, column 'target': expected text, found int 7; write it as text, or name another column"),
        (
            ["x"],
            "FILE, line 3, column 'target': expected text, found list ['x']; name a text within it (NAME.FIELD), or "
            "name another column",
        ),
    ],
)
def test_a_value_that_is_not_text_is_refused(tmp_path, bad, found):
    path = write(tmp_path / "a.jsonl", [*ROWS[:2], {"source": "s", "target": bad}])
    assert complaint(path) == found


def test_other_columns_may_hold_anything(tmp_path):
    extra = ({"n": 1}, {"n": "x"}, {"n": ["y"]})
    path = write(tmp_path / "a.jsonl", [row | more for row, more in zip(ROWS, extra, strict=True)])
    assert read(path) == ROWS


def test_a_missing_key_and_a_numeric_column_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"source": "a", "target": "b"}\n{"source": "a"}\n')
    assert complaint(path) == "FILE, line 2: no column 'target' (data.target); columns: source"
    path.write_text('{"source": "a", "target": 1}\n')
    assert (
        complaint(path)
        == "FILE, line 1, column 'target': expected text, found int 1; write it as text, or name another column"
    )


def test_a_split_without_a_file_and_an_unknown_split_are_refused(tmp_path):
    config = DataConfig(name="json", train=str(write(tmp_path / "a.jsonl", ROWS)))
    with pytest.raises(UserError, match=r"data.test is not set; with data=json give .* as data.test=\.\.\."):
        load_rows(config, "test", 1)
    with pytest.raises(UserError, match="split 'dev' is unknown; use train, validation, test"):
        load_rows(config, "dev", 1)


def test_unknown_corpora_are_refused():
    with pytest.raises(UserError, match=r"data=multi30: unknown corpus; did you mean multi30k\?"):
        load_rows(DataConfig(name="multi30", root="x"), "train", 1)
    with pytest.raises(UserError, match=r"data.corpus=translations: unknown; did you mean translation\?"):
        load_rows(DataConfig(corpus="translations"), "train", 1)


def test_a_local_corpus_without_its_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data=t0_mixture: set data.root=DIR, the folder that holds t0_mixture/"):
        load_rows(DataConfig(name="t0_mixture"), "train", 1)
    with pytest.raises(UserError, match=r"data=hub data\.path=wmt/wmt14$"):
        load_rows(DataConfig(name="wmt_news"), "train", 1)
    with pytest.raises(UserError, match=r"holds small_parallel_enja/$"):  # without a counterpart on the Hub
        load_rows(DataConfig(name="small_parallel_enja"), "train", 1)
    with pytest.raises(UserError, match=r"samsum: no such folder; data.root=.* must hold samsum/"):
        load_rows(DataConfig(name="samsum", root=str(tmp_path)), "train", 1)


def test_hub_name_may_be_a_folder(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", ROWS[:1])
    config = DataConfig(name="hub", path=str(tmp_path))
    assert load_rows(config, "train", 1) == ROWS
    assert load_rows(config, "test", 1) == ROWS[:1]
    config.validation = "nothing"
    with pytest.raises(UserError, match=r"split nothing: not loaded \(no split 'nothing'; there are: t"):
        load_rows(config, "validation", 1)


def test_errors_of_the_hub_are_reported():
    with pytest.raises(UserError, match=r"data\.path is not set"):
        load_rows(DataConfig(name="hub"), "train", 1)
    with pytest.raises(UserError, match=r"nobody/nothing, split train: not loaded \("):
        load_rows(DataConfig(name="hub", path="nobody/nothing"), "train", 1)


def fake_corpus(name, split, size, seed):
    return [{"task": name, "source": f"{split} {seed} {i}", "target": "t"} for i in range(size)]


def test_builtin_corpora_have_default_sizes_and_mixture_proportions(monkeypatch):
    builtin = pytest.importorskip("llm2slm.builtin.corpora")
    monkeypatch.setattr(builtin, "corpus_rows", fake_corpus)
    assert len(load_rows(DataConfig(), "validation", 1)) == 500
    assert load_rows(DataConfig(train_size=2), "train", 5) == fake_corpus("translation", "train", 2, 5)
    rows = load_rows(DataConfig(corpus="mixture", train_size=10), "train", 1)
    assert [row["task"][0] for row in rows] == list("ttsitttsit")
    assert [row["source"] for row in rows if row["task"] == "translation"] == [f"train 1 {i}" for i in range(6)]
    assert len(load_rows(DataConfig(corpus="mixture"), "train", 1)) == 20_000


def test_languages_follow_the_corpus_and_its_columns():
    assert languages(DataConfig(name="multi30k")) == ("English", "German")
    assert languages(DataConfig(name="multi30k", source="fr", target="cs")) == ("French", "Czech")
    assert languages(DataConfig(name="small_parallel_enja")) == ("English", "Japanese")
    assert languages(DataConfig(name="samsum")) is None
    assert languages(DataConfig()) is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (DataConfig(name="multi30k"), "de"),
        (DataConfig(name="multi30k", target="cs"), "cs"),
        (DataConfig(name="multi30k", source="de", target="fr"), "fr"),
        (DataConfig(name="wmt14_en_fr"), "fr"),
        (DataConfig(name="wmt16_en_ro", source="translation.ro", target="translation.en"), "en"),
        (DataConfig(name="small_parallel_enja"), "ja"),
        (DataConfig(name="small_parallel_enja", source="target", target="source"), None),  # swapped columns
        (DataConfig(name="tatoeba_en_fr"), "fr"),
        (DataConfig(name="hub", path="x", source="translation.en", target="translation.zh-CN"), "zh"),
        (DataConfig(name="json", source="en", target="th"), "th"),  # prefixes exist for fewer languages
        (DataConfig(name="json", source="question", target="de"), None),
        (DataConfig(name="json", source="en", target="answer"), None),
        (DataConfig(name="samsum"), None),
        (DataConfig(), "de"),
        (DataConfig(corpus="summarization"), "en"),
        (DataConfig(corpus="mixture"), None),
    ],
)
def test_the_target_language_is_that_of_the_corpus_or_of_its_column_names(data, code):
    assert target_language(data) == code
    assert task_of(TaskConfig(), data).language == code
    assert task_of(TaskConfig(language="zh-TW"), data).language == "zh"


def test_rows_of_the_builtin_mixture_have_the_language_of_their_task():
    task = task_of(TaskConfig(name="mixture"), DataConfig(corpus="mixture"))
    rows = [task.example({"task": name, "source": "s", "target": "t"}, 0) for name in BUILTIN]
    assert [row.language for row in rows] == ["de", "en", "en"]
    task = task_of(TaskConfig(name="mixture", language="ko"), DataConfig(corpus="mixture"))
    assert task.example({"task": "translation", "source": "s", "target": "t"}, 0).language == "ko"


SIZES = {
    "multi30k": (29_000, 1_014, 1_000),
    "wmt_news": (13_566, 3_000, 3_003),
    "samsum": (14_638, 818, 819),
    "alpaca": (50_974, 500, 500),
    "dialogsum": (12_426, 500, 500),
    "dolly_3k": (2_581, 200, 200),
    "tatoeba_en_fr": (150_917, 1_500, 12_681),
    "small_parallel_enja": (49_800, 500, 500),
    "t0_mixture": (14_031, 982, 1_050),
}


@pytest.mark.parametrize("name", SIZES)
def test_known_corpora_are_read_completely(shared_data, name):
    assert set(SIZES) == {name for name, corpus in CORPORA.items() if corpus.files}
    corpus = CORPORA[name].files
    config = DataConfig(name=name, root=str(shared_data))
    for split, size in zip(("validation", "test"), SIZES[name][1:], strict=True):
        rows = load_rows(config, split, 1)
        assert len(rows) == size
        file = corpus.test.format(other="de") if split == "test" else split
        with gzip.open(shared_data / name / f"{file}.jsonl.gz", "rt", encoding="utf-8") as lines:
            expected = [json.loads(line) for line in lines]
        assert rows == [{"source": row[corpus.source], "target": row[corpus.target]} for row in expected]
    config.train_size = 5
    assert len(load_rows(config, "train", 1)) == 5


def test_other_columns_and_test_sets_of_a_known_corpus_are_read(shared_data):
    config = DataConfig(name="multi30k", root=str(shared_data), target="fr", test="test_2017_flickr", test_size=3)
    assert all("chien" in row["target"] for row in load_rows(config, "test", 1)[:1])
    config.target = "cs"
    with pytest.raises(
        UserError,
        match=r"test_2017_flickr.*line 1, column 'cs'.*found null; fill it in, or leave the row out",
    ):
        load_rows(config, "test", 1)
    wmt = DataConfig(name="wmt_news", root=str(shared_data), source="fr", target="en", test_size=1)
    assert load_rows(wmt, "test", 1)[0]["source"].startswith("Spectaculaire")
