"""Labels instead of the targets of a corpus: their assignment to rows, and files of other rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest

from llm2slm.config import DataConfig
from llm2slm.data.sources.labels import relabelled
from llm2slm.types import Labels, UserError

ROWS = [{"source": f" text {i} ", "target": f"gold {i}"} for i in range(200)]
LABELS = [{"index": i, "source": f"text {i}", "prediction": f"llm {i}"} for i in range(200)]


def config(folder: Path, rows: Any = LABELS, kind: Labels = Labels.llm, share: float = 0.5) -> DataConfig:
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(labels=kind, labels_from=str(folder), labels_share=share)


def test_every_row_gets_the_label_of_its_index(tmp_path: Path) -> None:
    shuffled = LABELS[::-1]
    found = relabelled(ROWS, config(tmp_path, shuffled), seed=1)
    assert found == [{"source": f" text {i} ", "target": f"llm {i}"} for i in range(200)]
    assert relabelled(ROWS[:7], config(tmp_path), seed=1) == found[:7]  # data.train_size
    assert relabelled(ROWS, DataConfig(labels_from="nowhere"), seed=1) is ROWS  # gold: not read
    parquet.write_table(pyarrow.Table.from_pylist(LABELS), tmp_path / "other.parquet")
    named = DataConfig(labels=Labels.llm, labels_from=str(tmp_path / "other.parquet"))
    assert relabelled(ROWS, named, seed=1) == found


def test_a_share_of_the_rows_is_drawn_per_row_by_the_seed(tmp_path: Path) -> None:
    def theirs(seed: int, share: float, rows: int = 200) -> list[int]:
        mixed = relabelled(ROWS[:rows], config(tmp_path, kind=Labels.mix, share=share), seed)
        assert all(row["target"] in (f"llm {i}", f"gold {i}") for i, row in enumerate(mixed))
        return [i for i, row in enumerate(mixed) if row["target"].startswith("llm")]

    half = theirs(1, 0.5)
    assert 70 < len(half) < 130  # five standard deviations
    assert theirs(1, 0.5) == half != theirs(2, 0.5)
    assert theirs(1, 0.5, rows=50) == [i for i in half if i < 50]
    assert (theirs(1, 0.0), theirs(1, 1.0)) == ([], list(range(200)))
    assert set(half) <= set(theirs(1, 0.8))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:150], r"holds 150 labels, none of row 150 \(from 0\) of the 200"),
        (lambda rows: [rows[0] | {"source": "another"}, *rows[1:]], "the label of row 0 .* is of another text"),
        (lambda rows: [*rows, rows[3]], "line 201: row 3 has a label already"),
        (lambda rows: [{"index": "0"}, *rows], "line 1: not a label; expected index, source and prediction"),
    ],
)
def test_labels_of_other_rows_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        relabelled(ROWS, config(tmp_path, change(LABELS)), seed=1)


def test_labels_of_another_seed_of_the_builtin_corpus_are_refused(tmp_path: Path) -> None:
    asked = config(tmp_path, [row | {"source": "another"} for row in LABELS])
    asked.name = "builtin"
    with pytest.raises(UserError, match=r"label the split that you train on with the seed of this run \(7\), which"):
        relabelled(ROWS, asked, seed=7)


def test_missing_or_unfinished_labels_and_an_invalid_share_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.labels=llm: set data.labels_from"):
        relabelled(ROWS, DataConfig(labels=Labels.llm), 1)
    with pytest.raises(UserError, match=r"has no labels.jsonl or labels.parquet"):
        relabelled(ROWS, DataConfig(labels=Labels.llm, labels_from=str(tmp_path)), 1)
    (tmp_path / "labels.jsonl.part").write_text("{}\n")
    with pytest.raises(UserError, match=r"labels.jsonl.part: the labels are incomplete"):
        relabelled(ROWS, DataConfig(labels=Labels.llm, labels_from=str(tmp_path)), 1)
    with pytest.raises(UserError, match=r"data.labels_share=1.5: must be between 0 and 1"):
        relabelled(ROWS, DataConfig(labels=Labels.mix, labels_share=1.5), 1)


@pytest.mark.parametrize("name", ["index", "source", "prediction"])
def test_a_duplicate_column_is_refused(tmp_path: Path, name: str) -> None:
    names = ["index", "source", "prediction", name]
    values = {"index": [0], "source": ["text 0"], "prediction": ["llm 0"]}
    table = pyarrow.table([values[each] for each in names], names=names)
    parquet.write_table(table, tmp_path / "labels.parquet")
    (tmp_path / "labels.csv").write_text(",".join(names) + "\n0,text 0,llm 0,x\n")
    for path in (tmp_path / "labels.parquet", tmp_path / "labels.csv"):
        asked = DataConfig(labels=Labels.llm, labels_from=str(path))
        with pytest.raises(UserError) as caught:
            relabelled(ROWS[:1], asked, seed=1)
        assert str(caught.value) == f"{path}: column {name!r} (of a label) occurs twice; rename one of them"


def test_a_truncated_parquet_file_is_reported_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(LABELS), path)
    path.write_bytes(path.read_bytes()[:-20])
    asked = DataConfig(labels=Labels.llm, labels_from=str(tmp_path))
    with pytest.raises(UserError, match=r"labels.parquet: cannot be read as parquet \(.*\); write it again") as caught:
        relabelled(ROWS, asked, seed=1)
    assert "\n" not in str(caught.value)


def test_labels_are_read_as_text_and_errors_state_their_line(tmp_path: Path) -> None:
    texts = ["2024-01-15", "007", "null", "None", "a\u2028b"]
    labels = [{"index": i, "source": text, "prediction": text, "more": i or "x"} for i, text in enumerate(texts)]
    rows = [{"source": text, "target": "gold"} for text in texts]
    assert relabelled(rows, config(tmp_path, labels), seed=1) == [{"source": text, "target": text} for text in texts]
    for bad, said in (
        (labels[0] | {"prediction": 5}, "line 2, column 'prediction': expected text, found int 5"),
        (labels[0] | {"source": "\ud83d"}, "line 2, column 'source': half a character"),
        ("text", "line 2: expected a JSON object, found str"),
    ):
        with pytest.raises(UserError, match=said):
            relabelled(rows, config(tmp_path, [labels[1], bad]), seed=1)
    (tmp_path / "labels.jsonl").write_text('{"index": 0, "index": 1, "source": "a", "prediction": "b"}\n')
    with pytest.raises(UserError, match="line 1, column 'index': the key occurs twice"):
        relabelled(rows, DataConfig(labels=Labels.llm, labels_from=str(tmp_path)), seed=1)
    folder = tmp_path / "run[1]" / "x=1"
    folder.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(labels[1:]), folder / "labels.parquet")
    with pytest.raises(UserError, match=r"holds 4 labels, none of row 0"):
        relabelled(rows, DataConfig(labels=Labels.llm, labels_from=str(folder)), seed=1)
