"""`llm2slm report`: one page and one table from the results of several runs, without recomputation."""

from __future__ import annotations

import json
import shutil

import pytest
from command_line import files_of, mistake

from llm2slm.cli import main


@pytest.fixture
def two(trained, tmp_path, monkeypatch):
    """Two runs a and b with different BLEU."""
    monkeypatch.chdir(tmp_path)
    for name, bleu in (("a", 12.25), ("b", 87.5)):
        shutil.copytree(trained, tmp_path / name)
        path = tmp_path / name / "result.json"
        result = json.loads(path.read_text("utf-8"))
        result["systems"][0]["quality"]["bleu"]["value"] = bleu
        path.write_text(json.dumps(result), encoding="utf-8")
    return tmp_path


def test_two_runs_are_reported_side_by_side(two, capsys):
    before = files_of(two / "a"), files_of(two / "b")
    assert main(["report", "runs=a,b", "out=page", "title=Two runs <1>"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    head = next(line for line in lines if line[:1] == ["System"])
    assert "Speedup" not in head  # nothing was timed
    rows = [line for line in lines if line[:1] in (["a"], ["b"])]  # with the names that the user gave
    behind = head.index("BLEU") - len(head)
    assert [round(float(line[behind]), 1) for line in rows] == [12.2, 87.5]
    assert shown.endswith("page/report.html\n")
    page = (two / "page" / "report.html").read_text("utf-8")
    assert "Two runs &lt;1&gt;" in page
    assert "Two runs <1>" not in page
    assert page.count("87.5") >= 1
    assert "max_steps: 2" in page  # the configuration of the runs
    plots = {path.name for path in (two / "page" / "plots").iterdir()}
    assert {"training-loss.svg", "training-loss.pdf"} <= plots
    assert (files_of(two / "a"), files_of(two / "b")) == before


@pytest.mark.slow
def test_a_result_file_gives_the_same_report_as_its_folder(two):
    assert main(["report", "runs=a/result.json", "out=file"]) == 0
    assert main(["report", "runs=a", "out=folder"]) == 0
    assert (two / "file" / "report.html").read_text("utf-8") == (two / "folder" / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_quality_by_length_is_printed_on_request(two, capsys):
    """These runs have too few rows for it; figures that a result has are shown."""
    assert main(["report", "runs=a,b", "out=page", "buckets=true"]) == 0
    assert "No quality by length" in capsys.readouterr().out
    path = two / "a" / "result.json"
    result = json.loads(path.read_text("utf-8"))
    assert result["systems"][0]["buckets"] == []
    result["systems"][0]["buckets"] = [
        {"by": "response", "low": 3, "high": 8, "n": 21, "quality": {"bleu": 34.56}},
        {"by": "response", "low": 9, "high": 20, "n": 22, "quality": {"bleu": 23.45}},
    ]
    path.write_text(json.dumps(result), encoding="utf-8")
    assert main(["report", "runs=a,b", "out=page", "buckets=true"]) == 0
    lines = [line.split()[-5:] for line in capsys.readouterr().out.splitlines()]
    assert ["run=a", "response", "9–20", "22", "23.45"] in lines or ["a", "response", "9–20", "22", "23.45"] in lines
    assert "23.45" in (two / "page" / "report.html").read_text("utf-8")
    assert main(["report", "runs=a,b", "out=page"]) == 0
    assert "23.45" not in capsys.readouterr().out


def test_mistakes_are_reported_on_one_line(two, capsys):
    (two / "b" / "result.json").write_text('{"schema": 1,\n"systems": ')
    (two / "c").mkdir()
    wrong = {
        "runs=[]": "report needs runs: llm2slm report RUN RUN",
        "runs=a,nowhere": "nowhere: no such folder",
        "runs=a,c": "c/result.json: no such file",
        "runs=a,b": "b/result.json, line 2: not JSON",
    }
    wrong["runs=a,./a/result.json"] = "runs: a is given twice; give each run once"
    for argument, message in wrong.items():
        assert main(["report", argument, "out=page"]) == 2
        assert mistake(capsys).startswith(message)
    assert not (two / "page").exists()
