"""`-m` and the repeated command, with stubs of the commands and the in-process launcher."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import mistake, replace_command
from test_sweep import selecting

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.cli import sweep as sweep_command
from llm2slm.commands import report as report_command
from llm2slm.sweeps import launchers
from llm2slm.sweeps.jobs import JobRecord, assignments, read_record, read_records, runs_now
from llm2slm.types import UserError

SWEEP = ["train", "-m", "launcher=basic", "hydra.sweep.dir=sweep"]


@pytest.fixture
def real_report(trains, monkeypatch):
    monkeypatch.setitem(sys.modules, report_command.__name__, report_command)


def statuses():
    return [record.status for record in read_records(Path("sweep"))]


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


@pytest.fixture
def trains(calls, monkeypatch):
    """A stub of `train` that writes a result, and fails for seeds in `wrong`. Returns the seeds that ran."""
    wrong, ran, result = set(), [], selecting({seed: float(seed) for seed in range(10)})

    def run(config, folder):
        ran.append(config.seed)
        if config.seed in wrong:
            raise UserError("a broken row")
        runs.write_config(folder, config)
        return result(config, folder)

    replace_command(monkeypatch, "train", run)
    return ran, wrong


def test_the_same_command_skips_complete_jobs_and_repeats_failed_ones(trains, capsys):
    ran, wrong = trains
    wrong.add(2)
    assert main([*SWEEP, "seed=1,2,3"]) == 1
    line = last_line(capsys)
    assert line.startswith("to complete the sweep (jobs that are done are skipped): llm2slm train -m ")
    before = (Path("sweep") / "0" / "result.json").stat().st_mtime_ns
    wrong.clear()
    ran.clear()
    assert main(shlex.split(line.partition(": llm2slm ")[2])) == 0
    assert ran == [2] and statuses() == ["done"] * 3
    shown = capsys.readouterr().out
    assert "2 of 3 jobs are complete and skipped" in shown and "to complete" not in shown
    assert (Path("sweep") / "0" / "result.json").stat().st_mtime_ns == before
    assert read_record(Path("sweep/1")).attempts == 2 and read_record(Path("sweep/1")).error == ""
    assert main([*SWEEP, "seed=1,2,3"]) == 0
    assert ran == [2]


@pytest.mark.slow
def test_further_values_are_added_and_another_sweep_is_refused(trains, capsys):
    ran, wrong = trains
    wrong.add(1)
    assert main([*SWEEP, "seed=1,2"]) == 1
    capsys.readouterr()
    assert main([*SWEEP, "seed=2,3,4"]) == 0  # its jobs are complete; job 0 belongs to the other command
    assert capsys.readouterr().out.count("to complete") == 1
    assert ran == [1, 2, 3, 4] and statuses() == ["failed", "done", "done", "done"]
    assert [r.overrides for r in read_records(Path("sweep"))] == [[f"seed={n}"] for n in (1, 2, 3, 4)]
    capsys.readouterr()
    assert main([*SWEEP, "optim.lr=0.1,0.2"]) == 2
    assert "sweep: contains another sweep (its command: llm2slm train -m launcher=basic seed=2,3,4 " in mistake(capsys)
    assert main(["evaluate", *SWEEP[1:], "seed=1,2"]) == 2
    assert "sweep: contains a sweep of `llm2slm train`; give another folder" in mistake(capsys)
    assert len(ran) == 4 and len(read_records(Path("sweep"))) == 4


def completing(capsys):
    """The printed commands that complete a sweep, as arguments."""
    lines = capsys.readouterr().out.splitlines()
    return [shlex.split(line.partition(": llm2slm ")[2]) for line in lines if line.startswith("to complete")]


def test_failed_jobs_of_an_earlier_command_are_completed_by_it(trains, capsys):
    """A narrower command does not replace the record of the wider one."""
    ran, wrong = trains
    wrong.add(1)
    assert main([*SWEEP, "seed=1,2,3"]) == 1
    assert main([*SWEEP, "seed=3,2"]) == 0
    given = f"hydra.sweep.dir={Path('sweep').absolute()}"
    wide, narrow = ([*SWEEP[:-1], f"seed={seeds}", given] for seeds in ("1,2,3", "3,2"))
    found = completing(capsys)
    assert found[1:] == [wide] and len(found) == 2
    stored = json.loads(Path("sweep/sweep.json").read_text())
    assert [shlex.split(each["command"])[1:] for each in stored["commands"]] == [wide, narrow]
    assert [each["jobs"] for each in stored["commands"]] == [["0", "1", "2"], ["2", "1"]]
    wrong.add(4)
    assert main([*SWEEP, "seed=3,4"]) == 1
    assert [each[3] for each in completing(capsys)] == ["seed=1,2,3", "seed=3,4"]
    wrong.clear()
    ran.clear()
    assert main(wide) == 0
    assert ran == [1] and [each[3] for each in completing(capsys)] == ["seed=3,4"]
    assert main([*SWEEP, "seed=range(1,5)"]) == 0
    assert ran == [1, 4] and not completing(capsys)
    assert len(json.loads(Path("sweep/sweep.json").read_text())["commands"]) == 1  # it has all jobs


def test_the_record_of_an_earlier_version_is_read(trains, capsys):
    """It has the last command only, without its jobs."""
    _, wrong = trains
    wrong.add(1)
    assert main([*SWEEP, "seed=1,2,3"]) == 1
    path = Path("sweep/sweep.json")
    stored = json.loads(path.read_text())
    del stored["commands"]
    path.write_text(json.dumps(stored))
    capsys.readouterr()
    assert main([*SWEEP, "seed=3,2"]) == 0
    assert [each[3] for each in completing(capsys)] == ["seed=1,2,3"]


@pytest.mark.slow
def test_lists_and_ranges_are_expanded(trains):
    ran, _ = trains
    assert main([*SWEEP, "seed=range(1,4)", "optim.lr=choice(0.1,0.2)"]) == 0
    assert ran == [1, 1, 2, 2, 3, 3]


def test_globs_of_experiments_are_expanded(trains, tmp_path):
    ran, _ = trains
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    for name, seed in (("my_a", 7), ("my_b", 8), ("other", 9)):
        (tmp_path / "mine" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\nseed: {seed}\n")
    assert main([*SWEEP, "--config-dir", "mine", "experiment=glob(my_*)"]) == 0
    assert ran == [7, 8]
    assert [r.overrides for r in read_records(Path("sweep"))] == [["experiment=my_a"], ["experiment=my_b"]]


def test_the_process_of_a_job_records_its_outcome(tmp_path, monkeypatch, capsys):
    """`llm2slm.cli.job` itself, with a verb that loads no model."""
    monkeypatch.chdir(tmp_path)
    words = ["runs=[nothing]", "title=a,'it\\'s b'", "launcher=local", "jobs=2", "hydra.sweep.dir=a sweep"]
    assert main(["report", "-m", *words]) == 1
    for number, title in enumerate(("a", "it's b")):
        record = read_record(Path("a sweep") / str(number))
        assert (record.status, record.error) == ("failed", "nothing: no such folder; give a run directory")
        assert (record.attempts, assignments(record.overrides)["title"]) == (1, title)
        assert f"llm2slm: error: {record.error}" in (Path("a sweep") / str(number) / "job.log").read_text()
    assert last_line(capsys).startswith("to complete the sweep (jobs that are done are skipped): llm2slm report -m ")


@pytest.mark.slow
def test_folders_are_named_by_their_overrides(trains, capsys):
    ran, _ = trains
    named = "hydra.sweep.subdir=${hydra.job.override_dirname}"
    assert main([*SWEEP, named, "seed=1,2"]) == 0
    assert {path.parent.name for path in Path("sweep").glob("*/job.json")} == {"seed=1", "seed=2"}
    assert main([*SWEEP, named, "seed=1,2"]) == 0
    assert ran == [1, 2]
    capsys.readouterr()
    assert main(["train", "-m", "launcher=basic", "hydra.sweep.dir=b", "hydra.sweep.subdir=one", "seed=1,2"]) == 2
    assert "hydra.sweep.subdir: seed=2 and seed=1 have the same folder, " in mistake(capsys)
    assert main(["train", "-m", "launcher=basic", "hydra.sweep.dir=b", "hydra.sweep.subdir=a/b", "seed=1,2"]) == 2
    assert "hydra.sweep.subdir=a/b: must be the name of a folder" in mistake(capsys)
    assert not Path("b").exists()


HOLD = """
import sys, time
from pathlib import Path
from llm2slm.atomic import WriteLock
lock = WriteLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sweep.json", "1/job.json"])
def test_a_sweep_or_a_job_that_another_process_runs_is_refused(trains, capsys, monkeypatch, name):
    assert main([*SWEEP, "seed=1"]) == 0
    Path("sweep/1").mkdir()
    JobRecord(["seed=2"], "running", host="node7:42").write(Path("sweep/1"))
    capsys.readouterr()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, f"sweep/{name}"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        monkeypatch.setattr(sweep_command.wait_for, "__defaults__", (0.0,))
        assert runs_now(Path("sweep/1")) == (name == "1/job.json")
        assert main([*SWEEP, "seed=1,2"]) == 2
        told = capsys.readouterr()
    finally:
        holder.kill()
        holder.wait()
    error = "another process is writing it" if name == "sweep.json" else "another process (node7:42) runs"
    assert error in told.err and told.err.count("\n") == 1
    waiting = "waiting for node7:42, which runs job 1 (at most 0 s) ..."
    assert (waiting in told.out.splitlines()) == (name == "1/job.json")
    assert main([*SWEEP, "seed=1,2"]) == 0  # its record belongs to a killed process
    assert statuses() == ["done", "done"]


@pytest.mark.slow
def test_an_interrupted_training_is_resumed_with_the_arguments_in_its_folder(trains, calls, monkeypatch, capsys):
    """The arguments of the job's process; `test_jobs.py` resumes a real training."""
    given = []

    def stopped(config, folder):
        given.append(config)
        if config.run is None:
            runs.write_config(folder, config)
            raise KeyboardInterrupt
        return

    replace_command(monkeypatch, "train", stopped)
    assert main([*SWEEP, "seed=5,6"]) == 130
    assert statuses() == ["interrupted", "pending"]
    assert main([*SWEEP, "seed=5,6"]) == 130
    assert statuses() == ["done", "interrupted"]
    assert [config.run and Path(config.run).name for config in given] == [None, "0", None]


@pytest.mark.slow
def test_damaged_records_are_reported_on_one_line(trains, capsys):
    assert main([*SWEEP, "seed=1,2"]) == 0
    capsys.readouterr()
    Path("sweep/1/job.json").write_text('{"overrides": ')
    assert main([*SWEEP, "seed=1,2"]) == 2
    assert "1/job.json: no record of a job (" in mistake(capsys)
    Path("sweep/1/job.json").unlink()
    Path("sweep/sweep.json").write_text("[]")
    assert main([*SWEEP, "seed=1,2"]) == 2
    assert "sweep.json: no record of a sweep; remove it to use this folder" in mistake(capsys)


WRONG = {
    "hydra/launcher=slurm: is read with -m alone": ["hydra/launcher=slurm"],
    "hydra.launcher.jobs=2: is read with -m alone": ["jobs=2"],
    "Could not override 'hydra.launcher.jbs'": ["-m", "seed=1,2", "hydra.launcher.jbs=2"],
    "hydra.launcher.jobs=0: must be at least 1": ["-m", "seed=1,2", "jobs=0"],
    "hydra.launcher.on_failure=maybe: expected continue or stop": ["-m", "seed=1,2", "hydra.launcher.on_failure=maybe"],
    "hydra.launcher.retries=-1: must be at least 0": ["-m", "seed=1,2", "hydra.launcher.retries=-1"],
    "trainer.devices=2,3: the launcher of a sweep assigns the devices": ["-m", "seed=1,2", "trainer.devices='2,3'"],
    "has trainer.num_nodes=2; a job runs on this machine alone": ["-m", "seed=1,2", "trainer.num_nodes=2"],
    "hydra/sweeper=optuna: hydra/launcher=basic cannot": ["-m", "sweeper=optuna", "launcher=basic", "seed=1,2"],
    "hydra/sweeper=optuna: no key has several values": ["-m", "sweeper=optuna", "seed=1"],
    "a study optimizes a validation metric, never a test score; give val/bleu": [
        "-m", "sweeper=optuna", "seed=1,2", "hydra.sweeper.objective=bleu"],
    "hydra.sweeper.objective=val/rougeL: this run never logs it; it logs val/loss": [
        "-m", "sweeper=optuna", "seed=1,2", "hydra.sweeper.objective=val/rougeL"],
    "optim.lr: `low <= high` must hold": ["-m", "sweeper=optuna", "optim.lr=interval(2,1)"],
    "trainer.max_steps=interval(1.5,3): trainer.max_steps is an integer": [
        "-m", "sweeper=optuna", "trainer.max_steps=interval(1.5,3)"],
    "optim.lr=-1": ["-m", "sweeper=optuna", "optim.lr=interval(-1,3)"],
}  # fmt: skip


@pytest.mark.parametrize(("message", "arguments"), WRONG.items(), ids=list(WRONG))
def test_mistakes_are_reported_on_one_line_and_start_no_jobs(calls, capsys, message, arguments):
    assert main(["train", *arguments, "hydra.sweep.dir=sweep"]) == 2
    told = mistake(capsys)
    assert message in told, told
    assert not calls and not list(Path().glob("sweep/*/error.txt"))
    assert all(record.status == "pending" for record in read_records(Path("sweep")))


@pytest.mark.slow
def test_optuna_is_for_train_only_and_missing_packages_are_named(calls, capsys, monkeypatch):
    assert main(["evaluate", "-m", "sweeper=optuna", "seed=1,2"]) == 2
    assert "evaluate has no validation score; it optimizes train alone" in mistake(capsys)
    monkeypatch.setattr(launchers, "find_spec", lambda _: None)
    for given, extra in (("sweeper=optuna", "sweep"), ("launcher=slurm", "sweep"), ("launcher=ray", "ray")):
        assert main(["train", "-m", given, "seed=1,2", f"hydra.sweep.dir={extra}"]) == 2
        assert mistake(capsys).endswith(f"pip install 'llm-to-slm[{extra}]'")


@pytest.mark.slow
def test_the_report_covers_sweeps_and_runs(trains, real_report, capsys, monkeypatch):
    _, wrong = trains
    wrong.add(3)
    assert main([*SWEEP, "seed=1,2,3", "optim.lr=0.1,0.2"]) == 1
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["report", "sweep", "out=page"]) == 0
    shown = capsys.readouterr()
    assert (
        "llm2slm: sweep: no result of job 4 (failed), 5 (failed); to complete the sweep: llm2slm train -m" in shown.err
    )
    rows = [line.split() for line in shown.out.splitlines() if line.strip().startswith("lr=")]
    seeds = [row for row in rows if row[1] == "2"]  # seeds 1 and 2: validation BLEU 1 and 2, test BLEU 99 and 98
    assert [row[2:] for row in seeds] == [["1.50", "±", "0.707", "98.50", "±", "0.707"]] * 2
    page = Path("page/report.html").read_text("utf-8")
    assert "Sweep sweep" in page and "Effect of each factor" in page
    assert main([*["train", "-m", "launcher=basic", "hydra.sweep.dir=second"], "seed=4,5"]) == 0
    assert main(["report", "sweep", "second", "sweep/0", "out=both"]) == 2
    assert "sweep/0 is given twice" in capsys.readouterr().err
    assert main(["report", "sweep", "second", "out=both"]) == 0
    assert "second" in Path("both/report.html").read_text("utf-8")
    wrong.add(1)
    assert main(["train", "-m", "launcher=basic", "hydra.sweep.dir=none", "seed=1"]) == 1
    assert main(["report", "none", "out=no"]) == 2
    assert "none: no job of this sweep has a result yet" in capsys.readouterr().err


def test_several_corpora_in_one_table_are_refused_or_stated(trains, real_report, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    assert main([*SWEEP, "data.corpus=translation,summarization"]) == 0
    shown = capsys.readouterr().out
    corpora = "builtin translation, builtin summarization"
    assert f"not ranked: the runs are of different corpora, {corpora}" in shown
    with Path("sweep/sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["corpus"] for row in rows] == ["builtin translation", "builtin summarization"]
    assert "best" not in rows[0]
    assert main(["report", "sweep", "out=page"]) == 2
    told = capsys.readouterr().err
    assert "runs: of 2 corpora (builtin translation: sweep/0; builtin summarization: sweep/1)" in told
    assert not Path("page").exists()
    assert main(["report", "sweep", "out=page", "mixed=true"]) == 0
    assert "runs are of different corpora" in " ".join(capsys.readouterr().out.split())
    assert "Not ranked: the runs are of different corpora" in Path("page/report.html").read_text("utf-8")


def test_the_sweep_is_in_the_environment_of_its_jobs(calls, monkeypatch):
    seen = []
    names = ("LLM2SLM_SWEEP_DIR", "LLM2SLM_SWEEP_VARIED", "LLM2SLM_JOB")
    replace_command(monkeypatch, "train", lambda config, folder: seen.append([os.environ.get(n) for n in names]))
    assert main([*SWEEP, "seed=1,2", "optim.lr=0.1"]) == 0
    here = str(Path("sweep").absolute())
    assert seen == [[here, "seed", f"{here}/{n}"] for n in (0, 1)]
    assert not any(name in os.environ for name in names)


@pytest.mark.slow
def test_a_sweep_of_an_earlier_version_is_completed(trains):
    """Its records have fewer fields, and there is no sweep.json."""
    for number, status in enumerate(("done", "failed")):
        folder = Path("sweep") / str(number)
        folder.mkdir(parents=True)
        values = {"overrides": [f"seed={number}"], "status": status, "error": "", "seconds": 1.0}
        (folder / "job.json").write_text(json.dumps(values))
    assert main([*SWEEP, "seed=0,1"]) == 0
    assert trains[0] == [1] and statuses() == ["done", "done"]
