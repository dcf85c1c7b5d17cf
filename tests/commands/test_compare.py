"""`llm2slm compare` on the command line: the files that it writes, refusals, and no change of other files."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
import subprocess
import sys

import pytest
import sacrebleu
from command_line import ROOT, files_of, mistake, tiny_overrides, without_next
from compared_runs import GOOD, POOR, SOURCES, TARGETS, write_demo, write_run
from sampling import representatives

from llm2slm import json_lines, runs
from llm2slm.cli import main

FEW = "resamples=100"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with a demo, and runs a and b over the same rows."""
    monkeypatch.chdir(tmp_path)
    write_demo(tmp_path / "demo", {"llm": TARGETS, "slm": POOR, "llm2slm": GOOD})
    write_run(tmp_path / "a", "slm", POOR)
    write_run(tmp_path / "b", "llm2slm", GOOD)
    return tmp_path


def written(workspace, out="out"):
    return json.loads((workspace / out / "compare.json").read_text("utf-8"))


def test_a_demo_is_compared_system_by_system(workspace, capsys):
    before = files_of(workspace)
    assert main(["compare", "runs=demo", "out=out", FEW]) == 0
    shown = capsys.readouterr().out
    assert "llm (baseline)" in shown
    assert "slm worse than llm, by BLEU of the row" in shown
    assert shown.endswith(
        "with whole texts, and those on which a system is better: out/compare_rows.csv\nout/compare.html\n"
    )
    found = written(workspace)
    assert [system["name"] for system in found["systems"]] == ["llm", "slm", "llm2slm"]
    assert [system["compared"]["bleu"]["difference"] is None for system in found["systems"]] == [True, False, False]
    assert list(found["systems"][0]["quality"]) == ["bleu", "chrf", "exact_match"]  # those of its result
    assert [system["speed"][0]["speedup"]["median"] for system in found["systems"]] == [1, 5, 4]
    assert sorted(path.name for path in (workspace / "out").iterdir()) == [
        "compare.csv", "compare.html", "compare.json", "compare_rows.csv", "plots"
    ]  # fmt: skip
    after = files_of(workspace)
    assert {name: after[name] for name in before} == before
    assert sorted(name for name in after.keys() - before.keys() if "plots" in name) == [
        f"out/plots/{metric}-difference-to-the-baseline.{form}"
        for metric in ("bleu", "chrf", "exact-match") for form in ("pdf", "svg")
    ]  # fmt: skip
    assert len(after) == len(before) + 4 + 6


def test_command_settings_and_versions_are_recorded(workspace, monkeypatch):
    arguments = ["compare", "runs=a,b", "out=out", FEW, "seed=7", "metrics=[chrf,exact_match]", "rows=1"]
    monkeypatch.setattr(sys, "argv", ["llm2slm", *arguments])
    assert main(arguments) == 0
    found = written(workspace)
    assert found["command"] == f"llm2slm {shlex.join(arguments)}"
    assert (found["seed"], found["resamples"], found["level"], found["verb"]) == (7, 100, 0.95, "compare")
    assert found["git_commit"] == runs.git_commit()
    assert {"python", "sacrebleu", "numpy", "rouge-score"} <= set(found["versions"])
    assert found["created"][:4].isdigit() and found["wall_seconds"] > 0 and len(found["config_hash"]) == 12
    for system in found["systems"]:
        assert list(system["quality"]) == list(system["compared"]) == ["chrf", "exact_match"]
        assert system["quality"]["chrf"]["signature"].startswith("sacrebleu nrefs:1|case:mixed|eff:yes")
    [part] = found["row_differences"]
    assert (part["metric"], len(part["better"])) == ("chrf", 1)
    rows = list(csv.DictReader((workspace / "out" / "compare.csv").open(encoding="utf-8", newline="")))
    assert [(row["system"], row["metric"]) for row in rows] == [
        (name, metric) for name in ("a", "b") for metric in ("chrf", "exact_match")
    ]


def test_results_depend_on_the_seed_only(workspace):
    for out, seed in (("one", 1), ("two", 1), ("three", 2)):
        assert main(["compare", "runs=a,b", f"out={out}", "metrics=[bleu]", FEW, f"seed={seed}"]) == 0
    one, two, three = (written(workspace, out)["systems"] for out in ("one", "two", "three"))
    assert one == two != three
    assert written(workspace, "one")["baseline"] == "a"
    assert (workspace / "one" / "compare.csv").read_bytes() == (workspace / "two" / "compare.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "baseline", "names"),
    representatives(
        [
            (["runs=a,b"], "a", ["a", "b"]),
            (["runs=a,b", "baseline=b"], "b", ["a", "b"]),
            (["runs=demo", "baseline=slm"], "slm", ["llm", "slm", "llm2slm"]),
            (["runs=demo", "baseline=demo/llm2slm"], "llm2slm", ["llm", "slm", "llm2slm"]),
            (["runs=a", "baseline=b"], "b", ["b", "a"]),
            (["runs=b", "baseline=demo"], "demo/llm", ["demo/llm", "demo/slm", "demo/llm2slm", "b"]),
        ],
        lambda case: case[:2] == (["runs=a,b", "baseline=b"], "b"),  # the first: test_results_depend_on_the_seed_only
    ),
)
def test_the_baseline_is_the_first_or_the_named_run(workspace, arguments, baseline, names):
    assert main(["compare", *arguments, "out=out", FEW]) == 0
    found = written(workspace)
    assert (found["baseline"], [system["name"] for system in found["systems"]]) == (baseline, names)
    for system in found["systems"]:
        assert (system["compared"]["bleu"]["difference"] is None) == (system["name"] == baseline)


@pytest.mark.slow
def test_the_report_reads_a_comparison(workspace, capsys):
    """compare.json has the fields of a result.json."""
    assert main(["compare", "runs=demo", "out=out", FEW]) == 0
    assert main(["report", "runs=out/compare.json", "out=page"]) == 0
    assert "4.00×" in capsys.readouterr().out
    assert "</html>" in (workspace / "page" / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_metrics_that_cannot_be_resampled_are_left_out_and_reported(workspace):
    result = runs.read_result(workspace / "a")
    quality = result["systems"][0]["quality"]
    result["systems"][0]["quality"] = {"perplexity": {"value": 3.5, "signature": "s", "n": 8}, "chrf": quality["chrf"]}
    (workspace / "a" / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert main(["compare", "runs=a,b", "out=out", FEW]) == 0
    found = written(workspace)
    assert list(found["systems"][1]["quality"]) == ["chrf", "bleu", "exact_match"]
    assert "perplexity is left out: it cannot be resampled." in found["notes"]


@pytest.mark.slow
def test_a_character_missing_in_the_terminal_encoding_is_escaped(workspace, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert main(["compare", "runs=demo", "out=out", FEW]) == 0
    sys.stdout.flush()
    assert b"\\u2212" in printed.getvalue()


@pytest.mark.slow
def test_rows_are_left_out_if_none_are_requested(workspace, capsys):
    assert main(["compare", "runs=demo", "out=out", "rows=0", FEW]) == 0
    shown = capsys.readouterr().out
    assert "worse than" not in shown
    assert "compare_rows.csv" not in shown


@pytest.mark.slow
def test_a_lone_surrogate_is_accepted(workspace):
    answers = workspace / "b" / "predictions.jsonl"
    answers.write_text(answers.read_text("utf-8").replace('the dog sleeps now"}', 'the \\ud83d \\u0007"}'), "utf-8")
    assert main(["compare", "runs=a,b", "out=out", FEW]) == 0
    assert "␇" in (workspace / "out" / "compare.html").read_text("utf-8")


def test_mistakes_are_reported_on_one_line_and_nothing_is_written(workspace, capsys):
    write_run(workspace / "other", "slm", GOOD, sources=[*SOURCES[:3], "x", *SOURCES[4:]])
    write_run(workspace / "blank", "slm", ["x"], sources=["s"], targets=[" "])
    write_run(workspace / "blank2", "slm", ["y"], sources=["s"], targets=[" "])
    shutil.copytree(workspace / "a", workspace / "bare")
    (workspace / "bare" / "predictions.jsonl").unlink()
    shutil.copytree(workspace / "a", workspace / "none")
    result = runs.read_result(workspace / "none")
    result["systems"][0]["quality"] = {}
    (workspace / "none" / "result.json").write_text(json.dumps(result), encoding="utf-8")
    shutil.copytree(workspace / "bare", workspace / "timed")
    result = runs.read_result(workspace / "timed") | {"verb": "benchmark"}
    (workspace / "timed" / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (workspace / "file").write_text("")
    before = files_of(workspace)
    wrong = {
        "runs=[]": "compare needs runs: llm2slm compare RUN RUN ...",
        "runs=a": "runs=[a]: holds one system; compare needs two or more",
        "runs=a,a": "a: named twice",
        "runs=a,nowhere": "nowhere: no such folder",
        "runs=a,bare": "bare/predictions.jsonl: no such file; compare reads the predictions",
        "runs=a,timed": "timed: is a benchmark, which has no predictions; pass it as benchmark=timed",
        "runs=a,other": "a/predictions.jsonl and other/predictions.jsonl: row 4 differs in its source, "
        "'das Haus ist alt' and 'x'; compare runs over the same rows",
        "runs=blank,blank2": "nothing to score against: all 1 references are empty",
        "runs=a,b baseline=c": "baseline=c: no such run; compared systems: a, b",
        "runs=a,b baseline=bare": "bare/predictions.jsonl: no such file",
        "runs=a,b baseline=other": "other/predictions.jsonl and a/predictions.jsonl: row 4 differs",
        "runs=a,b metrics=[blue]": "metric 'blue' is unknown; did you mean 'bleu'?",
        "runs=a,b metrics=[]": "metrics=[]: name one or more",
        "runs=a,b metrics=[perplexity]": "metrics: perplexity cannot be resampled; use bleu",
        "runs=a,b benchmark=nowhere": "nowhere: no such folder",
        "runs=a,b benchmark=demo": "benchmark=demo: timed ",
        "runs=a,b resamples=99": "resamples=99: must be at least 100",
        "runs=a,b rows=-1": "rows=-1: must be at least 0",
        "runs=a,b seed=-1": "seed=-1: must be between 0 and 4294967295",
        "runs=a,b language=jp": "language=jp: unknown language; did you mean ja (Japanese)?",
        "runs=a,b rows=few": "rows=few: expected an integer",
        "runs=a,b out=file": "out=file: file is a file; give a folder",
        "runs=a,b base=a": "unknown key 'base'; did you mean baseline?",
    }
    for arguments, message in wrong.items():
        assert main(["compare", "out=out", *arguments.split()]) == 2, arguments
        assert mistake(capsys).startswith(message)
    assert main(["compare", "runs=none,none2", "out=out"]) == 2
    mistake(capsys)
    shutil.copytree(workspace / "none", workspace / "none2")
    assert main(["compare", "runs=none,none2", "out=out"]) == 2
    assert mistake(capsys).startswith("the results name no metric that can be resampled; give metrics=[bleu]")
    assert {name: data for name, data in files_of(workspace).items() if not name.startswith("none2")} == before


CHINESE = ["我们在北京的餐馆里吃了晚饭。", "他每天早上去公园跑步。", "老师在教室里读一本旧书。"]
ANSWERS = [CHINESE[0], CHINESE[1].replace("早上", "晚上"), CHINESE[2].replace("旧", "新")]


def write_chinese(folder, predictions, language=None, rows=()):
    """A run over Chinese rows; the result or the rows may state a language."""
    write_run(folder, "slm", predictions, sources=["a", "b", "c"], targets=CHINESE)
    if language is not None:
        result = runs.read_result(folder)
        result["systems"][0]["notes"] = {"language": language}
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    if rows:
        texts = zip("abc", CHINESE, predictions, rows, strict=True)
        lines = [{"source": s, "target": t, "prediction": p, "language": code} for s, t, p, code in texts]
        json_lines.write_jsonl(folder / "predictions.jsonl", lines)


@pytest.mark.parametrize(
    ("stated", "given", "tokenizer", "warned"),
    representatives(
        [
            ("zh", [], "zh", []),
            ("zh", ["language=th"], "char", ["is th (Thai), by language or by the corpus, but they are in Han script"]),
            (None, [], "zh", ["language is not set, and the references are in Han script: tokenized as zh"]),
            (None, ["language=zh-CN"], "zh", []),
        ],
        lambda case: case[2] == "zh" and case[3],
    ),
)
def test_answers_are_scored_in_the_language_that_the_results_state(workspace, capsys, stated, given, tokenizer, warned):
    write_chinese(workspace / "one", [*CHINESE[:2], ""], stated)
    write_chinese(workspace / "two", ANSWERS)
    assert main(["compare", "one", "two", "out=out", "metrics=[bleu]", FEW, *given]) == 0
    shown = [line for line in without_next(capsys.readouterr().err).splitlines() if line.strip()]
    assert len(shown) == len(warned)
    assert all("llm2slm: warning: " in line and text in line for line, text in zip(shown, warned, strict=True))
    for system, predictions in zip(written(workspace)["systems"], ([*CHINESE[:2], ""], ANSWERS), strict=True):
        wanted = sacrebleu.corpus_bleu(predictions, [CHINESE], tokenize=tokenizer).score
        assert system["quality"]["bleu"]["value"] == pytest.approx(wanted)
        assert f"|tok:{tokenizer}|" in system["quality"]["bleu"]["signature"]
        assert system["compared"]["bleu"]["low"] <= wanted <= system["compared"]["bleu"]["high"]


def test_each_row_of_a_mixture_is_scored_in_its_language(workspace):
    write_chinese(workspace / "one", CHINESE, rows=["zh", "zh", "de"])
    write_chinese(workspace / "two", ANSWERS)
    assert main(["compare", "one", "two", "out=out", "metrics=[length_ratio]", FEW]) == 0
    for system in written(workspace)["systems"]:
        assert system["quality"]["length_ratio"]["signature"].startswith("de: predictions over references, 13a words")
        assert (
            "; zh: predictions over references, words between spaces" in system["quality"]["length_ratio"]["signature"]
        )


@pytest.mark.slow
def test_results_in_different_languages_require_a_language(workspace, capsys):
    write_chinese(workspace / "one", CHINESE, "zh")
    write_chinese(workspace / "two", ANSWERS, "ja")
    assert main(["compare", "one", "two", "out=out", FEW]) == 2
    assert mistake(capsys) == (
        "one was scored as zh and two as ja, which metrics tokenize differently; give language=zh or language=ja"
    )
    assert main(["compare", "one", "two", "out=out", FEW, "language=zh"]) == 0


@pytest.mark.slow
def test_torch_and_transformers_are_not_imported(workspace):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from llm2slm.cli import main\n"
        f"assert main(['compare', 'runs=demo', 'out=out', 'resamples=100']) == 0\n"
        f"print([name for name in ('torch', 'transformers', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=workspace)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_quality_kept_with_several_llms_requires_a_baseline(workspace, capsys):
    write_run(workspace / "other", "llm", GOOD)
    assert main(["compare", "demo", "other", "out=out", FEW]) == 0
    line = "Quality kept is left out, since there are several LLMs (demo/llm, other): name one by baseline=LLM."
    assert line in " ".join(capsys.readouterr().out.split())
    assert {len(system["quality_kept"]) for system in written(workspace)["systems"]} == {0}
    assert main(["compare", "demo", "other", "baseline=other", "out=out", FEW]) == 0
    found = written(workspace)
    assert (found["baseline"], found["llm"]) == ("other", "other")
    value = {system["name"]: system["quality"]["bleu"]["value"] for system in found["systems"]}
    for system in found["systems"]:
        assert system["quality_kept"]["bleu"] == pytest.approx(value[system["name"]] / value["other"])


@pytest.mark.slow
def test_runs_of_two_seeds_have_the_same_test_rows(workspace, tiny_llm, capsys):
    """Trained on different rows of the built-in corpus, evaluated on the same ones."""
    for seed in (1, 2):
        assert main(["train", *tiny_overrides(tiny_llm), "model=slm", f"seed={seed}", f"hydra.run.dir=s{seed}"]) == 0
    answers = [
        [row for _, row in json_lines.read_jsonl(workspace / f"s{seed}" / "predictions.jsonl")] for seed in (1, 2)
    ]
    assert [row["source"] for row in answers[0]] == [row["source"] for row in answers[1]]
    capsys.readouterr()
    assert main(["compare", "s1", "s2", "out=out", FEW]) == 0
    found = written(workspace)
    assert [system["name"] for system in found["systems"]] == ["s1", "s2"]
    assert {system["quality"]["bleu"]["n"] for system in found["systems"]} == {4}
