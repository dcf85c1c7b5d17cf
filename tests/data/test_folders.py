"""The files of a local folder by split: those that `datasets` finds, and never those of another folder."""

from __future__ import annotations

import bz2
import json
import re
from pathlib import Path

import datasets
import pytest

from llm2slm.config import DataConfig
from llm2slm.data.sources.folders import find_files
from llm2slm.data.sources.sources import load_rows, stream_rows
from llm2slm.data.tasks import TASKS
from llm2slm.types import UserError

LAYOUTS = {
    "names": ["train.jsonl", "dev.jsonl", "test.jsonl", "README.txt"],
    "shards": ["train-1.csv", "train-0.csv", "my_test.csv", "notes.md"],
    "data": [f"data/{s}-0000{n}-of-00002.parquet" for s in ("train", "extra", "test") for n in (0, 1)],
    "folders": ["train/b.json", "train/a.json", "valid/x/c.json", "testing-2/d.json", "train.json"],
    "nested": ["a/b/train.tsv", "a/b/eval_1.tsv"],
    "no names": ["b.csv", "a.csv", "c/d.csv"],
    "mixed": ["train.csv", "train.json", "train_2.json"],
    "hidden": ["train.jsonl", ".train.jsonl", ".git/train.jsonl", "__old__/train.jsonl", "test.jsonl"],
    "packed": ["train.jsonl.gz", "validation.jsonl.gz", "config.json", "dataset_info.json"],
    "keywords": ["training.csv", "constrained.csv", "validate.csv", "latest.csv", "test set.csv"],
    "text": ["train.txt", "test.txt"],
}

READMES = {
    "one": "- config_name: default\n  data_files: '*/b*.csv'\n",
    "splits": (
        "- config_name: en\n  data_files:\n  - split: train\n    path: [x/a.csv, 'x/b?.csv']\n"
        "  - split: dev\n    path: y/**\n- config_name: de\n  default: true\n  data_dir: y\n"
    ),
}
FILES = ["x/a.csv", "x/b1.csv", "x/b2.csv", "y/train.csv", "y/z/test.csv"]


def make(folder, names, readme=None):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    if readme is not None:
        (folder / "README.md").write_text(f"---\nconfigs:\n{readme}---\n# Data\n")
    return folder


def oracle(folder, **arguments):
    """The files that `datasets` finds."""
    builder = datasets.load_dataset_builder(str(folder), **arguments)
    files = builder.config.data_files
    return {str(split): [str(Path(path).relative_to(folder)) for path in files[split]] for split in files}


def found(folder, subset=None):
    splits = find_files(folder, subset, must=subset is not None).splits
    return {split: [str(path.relative_to(folder)) for path in files] for split, files in splits.items()}


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_splits_are_those_of_datasets(tmp_path, names):
    folder = make(tmp_path.resolve() / "plain", names)
    assert found(folder) == oracle(folder)
    odd = make(tmp_path / "p[l]ain *?", names)
    assert found(odd) == found(folder)


@pytest.mark.parametrize("readme", READMES.values(), ids=READMES)
def test_subsets_are_those_that_the_readme_describes(tmp_path, readme):
    folder = make(tmp_path.resolve() / "plain", FILES, readme)
    odd = make(tmp_path / "[plain]", FILES, readme)
    assert found(folder) == found(odd) == oracle(folder)
    for subset in ("en", "de") if "config_name: en" in readme else ():
        assert found(folder, subset) == found(odd, subset) == oracle(folder, name=subset)
    assert found(folder, "y") == found(odd, "y") == {"train": ["y/train.csv"], "test": ["y/z/test.csv"]}
    if "data_dir" not in readme:  # which `datasets` would look for in y
        assert found(folder, "y") == oracle(folder, data_dir="y")


def complaint(folder, subset=None):
    with pytest.raises(UserError) as caught:
        find_files(folder, subset, must=subset is not None)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(folder))


def test_errors_in_a_folder_are_reported(tmp_path):
    assert complaint(make(tmp_path / "a", ["en/train.csv", "de/train.csv"]), "eng") == (
        ": no subset 'eng'; did you mean 'en'? (de, en)"
    )
    several = "- config_name: a\n  data_files: x/a.csv\n- config_name: b\n  data_files: x/b.csv\n"
    assert complaint(make(tmp_path / "b", FILES, several)) == (
        ": holds several subsets; choose one by data.subset=NAME: a, b"
    )
    assert complaint(tmp_path / "b", "b") == "/x/b.csv: no such file, but README.md names it"
    (tmp_path / "c").mkdir()
    assert complaint(tmp_path / "c") == ": does not contain any data files"
    outside = "- config_name: a\n  data_files: ../b/x/a.csv\n"
    assert "names files outside this folder" in complaint(make(tmp_path / "d", FILES, outside))
    assert "its metadata cannot be read" in complaint(make(tmp_path / "e", FILES, "- [\n"))


def rows_of(path, start, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"source": f"s{n}", "target": f"t{n}"} for n in range(start, start + count)]
    if path.suffix == ".csv":
        path.write_text("source,target\n" + "".join(f"{row['source']},{row['target']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_several_files_are_one_split_and_parts_of_it_can_be_selected(tmp_path, kind):
    folder = tmp_path / "e[1]"
    rows = [*rows_of(folder / f"train-0.{kind}", 0, 7), *rows_of(folder / f"train-1.{kind}", 7, 5)]
    test = rows_of(folder / f"test.{kind}", 100, 4)

    def both(part):
        data = DataConfig(name="hub", path=str(folder), train=part)
        whole = load_rows(data, "train", 1)
        for skip in (0, 1, 3, 7, 8, 15):
            assert list(stream_rows(data, TASKS["instruction"], skip)) == whole[skip:]
        return whole

    wanted = {
        "train": rows, "train[3:9]": rows[3:9], "train[8:]": rows[8:], "train[:50%]": rows[:6], "train[-2:]": rows[-2:],
        "test+train": test + rows, "train[5:9]+test[:1]": rows[5:9] + test[:1], "train[:99]": rows,
    }  # fmt: skip
    for part, expected in wanted.items():
        assert both(part) == expected, part
    (folder / f"validation.{kind}").write_text("")  # of an unused split
    assert both("train") == rows
    data = DataConfig(name="hub", path=str(folder), train="train[40:]")
    with pytest.raises(UserError, match=r"split train\[40:\]: holds no rows"):
        load_rows(data, "train", 1)


def test_other_formats_are_loaded_by_datasets(tmp_path):
    """Lines of text, and settings of a README.md; the path of the folder is not a pattern there either."""
    for name in ("e[1]", "e1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_text(f"{name} one\n{name} two\n")
    data = DataConfig(name="hub", path=str(tmp_path / "e[1]"), source="text", target="text")
    assert [row["source"] for row in load_rows(data, "train", 1)] == ["e[1] one", "e[1] two"]
    assert list(stream_rows(data, TASKS["instruction"], 1)) == [{"source": "e[1] two", "target": "e[1] two"}]
    config = "- config_name: a\n  data_files: a.csv\n  sep: ';'\n"
    folder = tmp_path / "sep"
    folder.mkdir()
    (folder / "README.md").write_text(f"---\nconfigs:\n{config}---\n")
    (folder / "a.csv").write_text("source;target\n007;NA\n")
    data = DataConfig(name="hub", path=str(folder))
    assert load_rows(data, "train", 1) == [{"source": "007", "target": "NA"}]


@pytest.mark.parametrize(
    ("name", "readme", "complaint"),
    [
        ("train.csv.bz2", None, "train.csv.bz2: cannot be read as text; unpack it, or compress it with gzip"),
        ("train.csv", "skiprows: 0", "README.md sets skiprows for these files, which is not supported"),
    ],
)
def test_csv_whose_types_datasets_would_infer_is_refused(tmp_path, name, readme, complaint):
    text = b"source,target\n007,1.50\n0123,1e5\n"
    (tmp_path / name).write_bytes(bz2.compress(text) if name.endswith(".bz2") else text)
    if readme is not None:
        described = f"configs:\n- config_name: default\n  data_files: train.csv\n  {readme}\n"
        (tmp_path / "README.md").write_text(f"---\n{described}---\n")
    with pytest.raises(UserError, match=re.escape(complaint)):
        load_rows(DataConfig(name="hub", path=str(tmp_path)), "train", 1)


def test_the_default_encoding_in_a_readme_is_accepted(tmp_path):
    (tmp_path / "train.csv").write_text("source,target\n007,1.50\n")
    described = "configs:\n- config_name: default\n  data_files: train.csv\n  encoding: utf-8\n"
    (tmp_path / "README.md").write_text(f"---\n{described}---\n")
    rows = load_rows(DataConfig(name="hub", path=str(tmp_path)), "train", 1)
    assert rows == [{"source": "007", "target": "1.50"}]
