"""Sweeps (`-m`): every combination is a job, a failing job does not stop the others, and one table lists all.

The first tests replace the commands by stubs; the last ones train.
"""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
from command_line import replace_command, tiny_overrides
from sampling import representatives
from wandb_files import read_run

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.config import RunConfig
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.sweeps.jobs import JobRecord, read_record
from llm2slm.sweeps.table import best_job, show_table, table
from llm2slm.types import UserError

BASIC = "hydra/launcher=basic"
"""Runs the jobs in this process, with stubs of the commands."""


def fake_result(config, folder):
    quality = {"bleu": runs.Score(10.0 * config.seed, "stub", 4)}
    parameters = {"total": 3, "trainable": config.seed}
    system = runs.System("hybrid|<b>", "llm2slm", parameters, quality)
    result = runs.Result("train", config.seed, runs.config_hash(config), 1.0, [system])
    runs.write_config(folder, config)
    runs.write_result(folder, result)
    return result


def test_a_sweep_writes_one_table_and_continues_after_a_failing_job(calls, capsys, monkeypatch, tmp_path):
    def run(config, folder):
        calls.append((config, folder))
        if config.seed == 1:
            raise UserError("bad row") if config.model.conditioning == "add" else ValueError("boom\nmore")
        return fake_result(config, folder)

    replace_command(monkeypatch, "train", run)
    arguments = [
        "train",
        "-m",
        BASIC,
        "seed=1,2",
        "model.conditioning=add,memory",
        "trainer=cpu",
        "hydra.sweep.dir=sweep",
    ]
    assert main(arguments) == 1
    assert [(c.seed, c.model.conditioning) for c, _ in calls] == [
        (seed, mode) for seed in (1, 2) for mode in ("add", "memory")
    ]
    sweep = tmp_path / "sweep"
    assert [folder for _, folder in calls] == [sweep / str(number) for number in range(4)]
    with (sweep / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["job"], r["seed"], r["model.conditioning"], r["trainer"]) for r in rows] == [
        (str(i), str(1 + i // 2), ("add", "memory")[i % 2], "cpu") for i in range(4)
    ]
    assert [r["status"] for r in rows] == ["failed", "failed", "done", "done"]
    assert [r["bleu"] for r in rows] == ["", "", "20.0", "20.0"]
    assert [r["trainable_parameters"] for r in rows] == ["", "", "2", "2"]
    assert [r["error"] for r in rows] == ["bad row", "ValueError: boom", "", ""]
    markdown = (sweep / "sweep.md").read_text().splitlines()
    assert len(markdown) == 6
    assert "hybrid\\|&lt;b>" in markdown[4]
    assert json.loads((sweep / "0" / "job.json").read_text())["error"] == "bad row"
    assert "ValueError: boom" in (sweep / "1" / "error.txt").read_text()
    assert not (sweep / "0" / "error.txt").exists()
    page = (sweep / "report.html").read_text()
    assert "hybrid|&lt;b&gt;" in page
    assert not (sweep / "multirun.yaml").exists()
    shown = capsys.readouterr()
    assert "llm2slm: error: bad row" in shown.err
    assert "[1 of 4] job 0: seed=1 model.conditioning=add" in shown.out
    assert "sweep.csv" in shown.out
    assert {"job 0: bad row", "job 1: ValueError: boom"} <= set(shown.out.splitlines())


def test_the_table_of_a_sweep_breaks_no_word_on_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    rows = [
        {"job": str(n), "model.conditioning": "cross_attention", "status": "failed", "bleu": 1.5, "seconds": 2.0,
         "error": "model.conditioning=cross_attention: is for decoder-only SLMs"}
        for n in range(2)
    ]  # fmt: skip
    show_table(rows)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.split() == ["1", "cross_attention", "1.5", "2"] for line in lines) == 1
    assert lines[-1] == "job 1: model.conditioning=cross_attention: is for decoder-only SLMs"


@pytest.mark.slow
def test_the_table_of_a_sweep_fits_a_narrow_terminal(calls, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    replace_command(monkeypatch, "train", fake_result)
    keys = ["model.conditioning=add,replace", "optim.lr=0.001,0.002", "seed=1,2", "optim.label_smoothing=0.1"]
    assert main(["train", "-m", BASIC, *keys, "hydra.sweep.dir=sweep"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in shown if len(row) == 7 and row[0].isdigit()]
    assert [row[:-1] for row in rows] == [
        [str(i), ("add", "replace")[i // 4], ("0.001", "0.002")[i // 2 % 2], str(1 + i % 2), f"{10 + i % 2 * 10}",
         str(1 + i % 2)] for i in range(8)
    ]  # fmt: skip
    head = next(line.split() for line in Path("sweep/sweep.csv").read_text().splitlines()[:1])
    assert head[0].split(",")[1:4] == ["model.conditioning", "optim.lr", "seed"]  # unabbreviated


@pytest.mark.slow
def test_keys_with_the_same_last_part_have_distinct_names(calls, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "-m", BASIC, "optim.lr=0.001,0.002", "model.slm.revision=a,b", "model.llm.revision=a,b"]) == 0
    out = capsys.readouterr().out
    assert "model.slm.revision" in out and "model.llm.revision" in out


@pytest.mark.slow
def test_a_sweep_without_failures_succeeds(calls):
    assert main(["evaluate", "-m", BASIC, "seed=range(1,3)", "task.prefix=a: b"]) == 0
    assert [(c.seed, c.task.prefix) for c, _ in calls] == [(1, "a: b"), (2, "a: b")]
    first, second = (folder for _, folder in calls)
    assert first.parent == second.parent
    assert first.relative_to(Path.cwd()).parts[0] == "multirun"


def test_scores_with_different_signatures_are_in_separate_columns(tmp_path):
    """As in a sweep over task.language."""
    for n, (language, value, tokenizer) in enumerate([("zh", 98.5, "zh"), ("en", 2.25, "13a"), ("yue", 97.5, "zh")]):
        folder = tmp_path / str(n)
        folder.mkdir()
        JobRecord([f"task.language={language}"], "done").write(folder)
        quality = {"bleu": runs.Score(value, f"sacrebleu tok:{tokenizer}", 5), "chrf": runs.Score(50.0, "chrf", 5)}
        system = runs.System("llm2slm", "llm2slm", {"total": 1, "trainable": 1}, quality)
        runs.write_result(folder, runs.Result("train", 1, "0" * 12, 1.0, [system], device="a processor"))
    found = [(row.get("bleu"), row.get("bleu (2)"), row["chrf"]) for row in table(tmp_path)]
    assert found == [(98.5, None, 50.0), (None, 2.25, 50.0), (97.5, None, 50.0)]


@pytest.mark.parametrize(
    ("monitor", "mode", "best"),
    [
        ("val/loss", None, 1),
        ("val/bleu", None, 2),
        ("val/ter", None, 0),
        ("val/bleu", "min", 0),
        ("val/chrf", None, None),
    ],
)
@pytest.mark.parametrize("status", representatives(["pruned", "interrupted", "failed"], ["pruned"]))
def test_jobs_without_a_result_have_the_scores_of_their_best_validation(tmp_path, capsys, monitor, mode, best, status):
    """They are never marked as the best; a value that is not finite is not the best either."""
    folder = tmp_path / "0"
    config = RunConfig()
    config.callbacks.monitor, config.callbacks.mode = monitor, mode
    JobRecord(["seed=1"], status).write(folder)
    runs.write_config(folder, config)
    curve = [(0.5, 1.0, 3.0), (0.25, 2.0, 4.0), (0.75, 3.12345, 5.0), ("nan", "nan", "nan")]
    lines = [f"{10 * n + 9},{n},{loss},{bleu},{ter}\n" for n, (loss, bleu, ter) in enumerate(curve)]
    head = "step,train/loss,val/loss,val/bleu,val/ter\n"
    (folder / "metrics.csv").write_text(head + "1,2.5,,,\n" + "".join(lines) + "99,0.5,0.001")  # being written
    for seed, value in ((2, 7.0), (3, 8.0)):
        JobRecord([f"seed={seed}"], "done").write(tmp_path / str(seed - 1))
        quality, chosen = {"bleu": runs.Score(1.0, "b", 5)}, runs.Selection("val/bleu", "min", value, 10)
        system = runs.System("llm2slm", "llm2slm", {"total": 1, "trainable": 1}, quality)
        result = runs.Result("train", seed, "0" * 12, 1.0, [system], device="a processor", selection=chosen)
        runs.write_result(tmp_path / str(seed - 1), result)
    rows = table(tmp_path)
    scores = {name: value for name, value in rows[0].items() if name.startswith("val/")}
    names = ("val/loss", "val/bleu", "val/ter")
    assert scores == ({} if best is None else {n: round(v, 4) for n, v in zip(names, curve[best], strict=True)})
    assert [row["best"] for row in rows] == ["", "yes", ""]
    show_table(rows[:1] * 2)  # all of one status, which is shown: the scores are not final
    assert (status in capsys.readouterr().out) == (best is not None)


def selecting(values, mode="max", metric="val/bleu"):
    """A stub of `train` with these validation scores by seed; test scores are in the opposite order."""

    def run(config, folder):
        value = values[config.seed]
        system = runs.System(
            "llm2slm", "llm2slm", {"total": 1, "trainable": 1}, {"bleu": runs.Score(100 - value, "s", 4)}
        )
        system.validation = {"loss": 1.5, "bleu": value}
        result = runs.Result("train", config.seed, "0" * 12, 1.0, [system])
        result.selection = runs.Selection(metric, mode, value, 10 * config.seed)
        runs.write_result(folder, result)
        return result

    return run


@pytest.mark.parametrize(("mode", "best"), representatives([("max", 2), ("min", 3)], [("min", 3)]))
def test_the_best_job_is_chosen_by_validation(calls, capsys, monkeypatch, mode, best):
    values = {1: 20.0, 2: 30.0, 3: 10.0}
    replace_command(monkeypatch, "train", selecting(values, mode))
    assert main(["train", "-m", BASIC, "seed=1,2,3", "hydra.sweep.dir=sweep"]) == 0
    with Path("sweep/sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["val/loss"], r["val/bleu"], r["bleu"]) for r in rows] == [
        ("1.5", "20.0", "80.0"), ("1.5", "30.0", "70.0"), ("1.5", "10.0", "90.0"),
    ]  # fmt: skip
    assert [r["best"] for r in rows] == ["yes" if seed == best else "" for seed in (1, 2, 3)]
    out = capsys.readouterr().out.splitlines()
    assert f"best by validation: job {best - 1} (val/bleu {values[best]:.4g}, step {10 * best})" in out
    assert any("val/bleu" in line and "bleu" in line.replace("val/bleu", "") for line in out)
    page = Path("sweep/report.html").read_text("utf-8")
    assert f"Best by validation: seed={best} (BLEU {values[best]:.2f} at step {10 * best})." in page


def test_no_job_is_best_if_the_selections_are_not_comparable():
    def result(metric="val/loss", mode="min", value=1.0):
        selection = {"metric": metric, "mode": mode, "value": value, "step": 1, "split": "validation"}
        return {"selection": selection, "systems": [{"quality": {"bleu": {"value": 1.0, "signature": "s"}}}]}

    def best(*results):
        return best_job({str(number): each for number, each in enumerate(results)})

    assert best(result(), result(value=0.5)) == ("1", "best by validation: job 1 (val/loss 0.5, step 1)")
    metrics = "not ranked: the validation scores are of different metrics, loss (min), BLEU (max)"
    assert best(result(), result("val/bleu", "max")) == (None, metrics)
    unknown = (None, "not ranked: no validation score of job 1")
    assert best(result(), result(value=None), result(value=0.5)) == unknown
    assert best(result(), result() | {"selection": None}) == unknown  # a result of an earlier version
    assert best(result()) == (None, "")


@pytest.mark.slow
def test_a_sweep_without_validation_scores_prints_that_it_is_not_ranked(calls, capsys, monkeypatch):
    replace_command(monkeypatch, "evaluate", fake_result)
    assert main(["evaluate", "-m", BASIC, "seed=1,2", "hydra.sweep.dir=sweep"]) == 0
    assert "not ranked: no validation score of job 0, job 1" in capsys.readouterr().out.splitlines()
    with Path("sweep/sweep.csv").open(newline="") as file:
        assert "best" not in next(csv.reader(file))
    assert "Not ranked: no validation score of " in Path("sweep/report.html").read_text("utf-8")


@pytest.mark.slow
def test_a_sweeper_gets_the_validation_score(monkeypatch, calls):
    """The value in the record of a job: the validation score of train, the first score of other verbs."""
    replace_command(monkeypatch, "train", selecting({1: 20.0, 2: 30.0}))
    assert main(["train", "-m", BASIC, "seed=1,2", "hydra.sweep.dir=sweep"]) == 0
    assert [read_record(Path("sweep") / str(n)).value for n in (0, 1)] == [20.0, 30.0]
    replace_command(monkeypatch, "evaluate", fake_result)
    assert main(["evaluate", "-m", BASIC, "seed=1,2", "hydra.sweep.dir=other"]) == 0
    assert [read_record(Path("other") / str(n)).value for n in (0, 1)] == [10.0, 20.0]


@pytest.mark.slow
def test_an_interrupted_sweep_keeps_its_table(calls, capsys, monkeypatch):
    def run(config, folder):
        if config.seed == 2:
            raise KeyboardInterrupt
        return fake_result(config, folder)

    replace_command(monkeypatch, "train", run)
    assert main(["train", "-m", BASIC, "seed=1,2,3", "hydra.sweep.dir=sweep"]) == 130
    with Path("sweep/sweep.csv").open(newline="") as file:
        assert [r["status"] for r in csv.DictReader(file)] == ["done", "interrupted", "pending"]
    again = "llm2slm train -m hydra/launcher=basic seed=1,2,3 hydra.sweep.dir=sweep"
    assert capsys.readouterr().out.splitlines()[-1].endswith(f": {again}")
    calls.clear()
    replace_command(
        monkeypatch, "train", lambda config, folder: calls.append(config.seed) or fake_result(config, folder)
    )
    assert main(shlex.split(again)[1:]) == 0
    assert calls == [2, 3]
    with Path("sweep/sweep.csv").open(newline="") as file:
        assert [(r["status"], r["bleu"]) for r in csv.DictReader(file)] == [("done", f"{n}.0") for n in (10, 20, 30)]


@pytest.mark.slow
def test_sweeps_in_a_config_are_checked(calls, capsys, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      model.conditioning: add,memry\n"
    (tmp_path / "mine" / "experiment" / "grid.yaml").write_text(text)
    assert main(["train", "-m", BASIC, "--config-dir", "mine", "experiment=grid"]) == 2
    assert "model.conditioning=memry: expected one of" in capsys.readouterr().err
    assert main(["train", "-m", BASIC, "experiment=conditioning"]) == 0
    assert [c.model.conditioning for c, _ in calls] == ["add", "replace", "prepend", "memory"]


@pytest.mark.slow
def test_strategies_that_fork_processes_may_be_swept(calls):
    assert main(["train", "-m", BASIC, "seed=1,2", "trainer=ddp_cpu", "trainer.strategy=ddp_spawn"]) == 0
    assert len(calls) == 2


# Real trainings


def test_a_sweep_trains_each_job_and_lists_both_in_one_table(monkeypatch, tmp_path, tiny_llm):
    monkeypatch.chdir(tmp_path)
    swept = ["model.conditioning=add,replace", "logger=wandb", "hydra.sweep.dir=sweep"]
    assert main(["train", "-m", BASIC, *tiny_overrides(tiny_llm), *swept]) == 0
    sweep = tmp_path / "sweep"
    with (sweep / "sweep.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["model.conditioning"], row["status"]) for row in rows] == [
        ("0", "add", "done"),
        ("1", "replace", "done"),
    ]
    for row in rows:
        folder = sweep / row["job"]
        [system] = json.loads((folder / "result.json").read_text("utf-8"))["systems"]
        assert runs.read_config(folder)["model"]["conditioning"] == row["model.conditioning"]
        model = LLM2SLM.from_pretrained(folder / "model")
        assert model.conditioning == row["model.conditioning"]
        assert {name: float(row[name]) for name in ("bleu", "chrf")} == {
            name: round(score["value"], 4) for name, score in system["quality"].items()
        }
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert int(row["trainable_parameters"]) == trainable == system["parameters"]["trainable"]
        assert float(row["seconds"]) > 0
    markdown = (sweep / "sweep.md").read_text("utf-8").splitlines()
    assert [cell.strip() for cell in markdown[0].split("|")[1:-1]] == list(rows[0])
    for line, row in zip(markdown[2:], rows, strict=True):
        assert [cell.strip() for cell in line.split("|")[1:-1]] == list(row.values())
    page = (sweep / "report.html").read_text("utf-8")
    assert "Sweep sweep" in page
    for row in rows:
        assert f"{row['model.conditioning']}: val/loss" in page
    logged = [read_run(sweep / row["job"]) for row in rows]
    assert len({run["id"] for run in logged}) == 2
    for run, row in zip(logged, rows, strict=True):
        chosen = row["model.conditioning"]
        assert (run["name"], run["group"], run["job_type"], run["exit"]) == (
            f"conditioning={chosen} (sweep/{row['job']})", "sweep", "train", 0,
        )  # fmt: skip
        assert f"model.conditioning={chosen}" in run["tags"] and "trainer.max_steps=2" in run["tags"]
        assert run["config"]["model"]["conditioning"] == chosen
        assert run["summary"]["parameters/trainable"] == int(row["trainable_parameters"])
        assert round(run["summary"]["quality/chrf"], 4) == float(row["chrf"])
