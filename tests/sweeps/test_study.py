"""Trials of an Optuna study as jobs: parallel, pruned, resumed, repeated. The jobs here write their files at once."""

from __future__ import annotations

import json
import math
import os
import signal

import optuna
import pytest
from sampling import representatives

from llm2slm.sweeps import run as run_module
from llm2slm.sweeps import study as study_module
from llm2slm.sweeps.jobs import Job, JobRecord, read_record, read_records
from llm2slm.sweeps.progress import Reporter
from llm2slm.sweeps.run import Supervisor
from llm2slm.sweeps.settings import LocalSettings, OptunaSettings
from llm2slm.sweeps.study import Axis, Trials, check_settings, open_study
from llm2slm.types import UserError

STATES = optuna.trial.TrialState
AXES = (Axis("optim.lr", low=1e-4, high=1.0, log=True), Axis("model.conditioning", ("add", "memory")))
STEPS = 5


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(run_module, "POLL", 0.0)
    monkeypatch.setattr(study_module, "READ", 0.0)


def loss(job, step):
    """The validation loss of a job: minimal at a learning rate of 0.01 with `memory`; it decreases with the steps."""
    given = dict(each.split("=") for each in job.overrides)
    return abs(math.log10(float(given["optim.lr"])) + 2) + (given["model.conditioning"] == "add") + 1 / (step + 1)


class InstantJob:
    """Logs a step at each poll; `fails` at its first attempt, and writes a test score that favours another trial."""

    def __init__(self, job, fails, signals_at):
        self.job, self.fails, self.signals_at, self.stop = job, fails, signals_at, False
        self.step = len((job.folder / "metrics.csv").read_text().splitlines()) - 1 if self.resumes() else 0
        record = job.record()
        record.status, record.attempts = "running", record.attempts + 1
        record.write(job.folder)

    def resumes(self):
        return (self.job.folder / "metrics.csv").exists()

    def ended(self):
        path = self.job.folder / "metrics.csv"
        record = read_record(self.job.folder)
        if self.stop or self.fails or self.step == STEPS:
            record.status = "interrupted" if self.stop else "failed" if self.fails else "done"
            record.error = "broken" if self.fails else ""
            record.write(self.job.folder)
            if record.status == "done":
                value = loss(self.job, STEPS - 1)
                selection = {"metric": "val/loss", "mode": "min", "value": value, "step": STEPS}
                system = {"name": "s", "kind": "llm2slm", "parameters": {}, "speed": []}
                system |= {"validation": {"loss": value, "bleu": 7.0}, "quality": {"bleu": {"value": -value}}}
                text = json.dumps({"schema": 1, "verb": "train", "selection": selection, "systems": [system]})
                (self.job.folder / "result.json").write_text(text)
            return True
        text = path.read_text() if path.exists() else "step,val/loss\n"
        path.write_text(f"{text}{self.step},{loss(self.job, self.step)}\n")
        self.step += 1
        if self.signals_at == (self.job.number, self.step):
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    def code(self):
        return 1

    def interrupt(self):
        self.stop = True

    kill = interrupt


class InstantLauncher:
    def __init__(self, at_once=3, fails=(), signals_at=None):
        self.at_once, self.fails, self.signals_at, self.most = at_once, fails, signals_at, 0

    def free(self, running, waiting):
        self.most = max(self.most, len(running))
        return self.at_once - len(running)

    def start(self, jobs):
        return [InstantJob(job, job.number in self.fails, self.signals_at) for job in jobs]

    def attach(self, job, record):
        return None

    def close(self):
        pass


def optimized(folder, launcher=None, objective="val/loss", axes=AXES, **settings):
    """One command: returns the study, and the signal that stopped it."""
    chosen = OptunaSettings(**{"trials": 12, "startup_trials": 4} | settings)
    check_settings(chosen)
    folder.mkdir(exist_ok=True)
    records, made = read_records(folder), []

    def make(swept, record, trial):
        number = records.index(record) if record else len(records) + sum(job.number >= len(records) for job in made)
        job = Job(number, folder / str(number), list(swept), ["train", *swept], steps=STEPS, trial=trial)
        job.folder.mkdir(exist_ok=True)
        if record is None:
            JobRecord(job.overrides, "pending").write(job.folder)
        made.append(job)
        return job

    study = open_study(chosen, folder, objective)
    template = Job(0, folder / "0", [], ["train"])
    trials = Trials(study, chosen, axes=axes, objective=objective, make=make, template=template, records=records,
                    folder=folder)  # fmt: skip
    reporter = Reporter(trials.total, trials.complete, terminal=False)
    found = Supervisor(trials, launcher or InstantLauncher(), LocalSettings(), reporter).run()
    return study, found


def states(study):
    return [trial.state for trial in study.trials]


@pytest.mark.parametrize("sampler", representatives(["tpe", "random"], ["tpe"]))
def test_trials_run_in_parallel_and_are_chosen_by_validation(tmp_path, sampler):
    launcher = InstantLauncher(3)
    study, stopped = optimized(tmp_path / "s", launcher, sampler=sampler)
    assert (stopped, states(study)) == (0, [STATES.COMPLETE] * 12)
    assert launcher.most == 3
    records = read_records(tmp_path / "s")
    assert sorted(record.trial for record in records) == list(range(12))
    jobs = {r.trial: Job(0, tmp_path, r.overrides, []) for r in records}
    assert {trial.number: trial.value for trial in study.trials} == {n: loss(job, 4) for n, job in jobs.items()}
    assert study.best_trial.value == min(loss(job, 4) for job in jobs.values())
    for trial in study.trials:
        assert trial.intermediate_values == {step + 1: loss(jobs[trial.number], step) for step in range(STEPS)}
        assert jobs[trial.number].overrides == [f"{key}={trial.params[key]}" for key in trial.params]
    assert len({tuple(r.overrides) for r in records}) == 12


def test_poor_trials_are_pruned_and_remain_pruned(tmp_path):
    options = {"pruner": "median", "pruner_startup": 2, "sampler": "random", "trials": 20}
    study, _ = optimized(tmp_path / "s", InstantLauncher(2), **options)
    assert set(states(study)) == {STATES.COMPLETE, STATES.PRUNED}
    pruned = [trial for trial in study.trials if trial.state == STATES.PRUNED]
    by_trial = {record.trial: record for record in read_records(tmp_path / "s")}
    assert all(by_trial[trial.number].status == "pruned" and by_trial[trial.number].complete for trial in pruned)
    assert all(len(trial.intermediate_values) < STEPS for trial in pruned)
    assert study.best_value <= min(trial.value for trial in study.trials if trial.value is not None)
    again, _ = optimized(tmp_path / "s", InstantLauncher(2), **options)
    assert len(again.trials) == 20  # nothing remains to be run


def test_an_interrupted_study_resumes_its_trials_with_their_values(tmp_path):
    study, stopped = optimized(tmp_path / "s", InstantLauncher(2, signals_at=(4, 2)))
    assert stopped == signal.SIGTERM
    open_ones = [trial for trial in study.trials if trial.state == STATES.RUNNING]
    assert len(open_ones) == 2
    before = {record.trial: record for record in read_records(tmp_path / "s")}
    assert {before[trial.number].status for trial in open_ones} == {"interrupted"}
    study, stopped = optimized(tmp_path / "s", InstantLauncher(2))
    assert (stopped, states(study)) == (0, [STATES.COMPLETE] * 12)
    after = {record.trial: record for record in read_records(tmp_path / "s")}
    for trial in open_ones:
        assert after[trial.number].overrides == before[trial.number].overrides
        assert (after[trial.number].status, after[trial.number].attempts) == ("done", 2)
    assert all(after[number] == record for number, record in before.items() if record.complete)
    larger, _ = optimized(tmp_path / "s", trials=15)
    assert states(larger) == [STATES.COMPLETE] * 15


def test_a_killed_command_loses_no_outcome(tmp_path):
    """A job ended, but the command was killed before it reported it; another trial has no job yet."""
    study, _ = optimized(tmp_path / "s", trials=3)
    storage = study._storage
    trial = study.ask({axis.key: axis.distribution() for axis in AXES})
    record = JobRecord([f"{key}={value}" for key, value in trial.params.items()], "pending", trial=trial.number)
    (tmp_path / "s" / "3").mkdir()
    record.write(tmp_path / "s" / "3")
    job = InstantJob(Job(3, tmp_path / "s" / "3", record.overrides, []), False, None)
    while not job.ended():
        pass
    study.ask({axis.key: axis.distribution() for axis in AXES})
    del storage
    study, _ = optimized(tmp_path / "s", trials=4)
    assert states(study) == [STATES.COMPLETE] * 4 + [STATES.FAIL]
    assert study.trials[3].value == loss(job.job, 4)


def test_failed_trials_are_named_and_repeated_with_their_values(tmp_path):
    study, _ = optimized(tmp_path / "s", InstantLauncher(2, fails=(1, 3)), trials=6)
    assert states(study).count(STATES.FAIL) == 2 and len(study.trials) == 6
    failed = {record.folder: record for record in read_records(tmp_path / "s") if record.status == "failed"}
    assert set(failed) == {"1", "3"} and {record.error for record in failed.values()} == {"broken"}
    study, _ = optimized(tmp_path / "s", trials=6)
    assert states(study).count(STATES.COMPLETE) == 6
    after = {record.folder: record for record in read_records(tmp_path / "s")}
    assert len(after) == 6
    assert {name: after[name].overrides for name in failed} == {name: r.overrides for name, r in failed.items()}
    assert {after[name].status for name in failed} == {"done"}


def test_another_objective_or_search_space_is_refused(tmp_path):
    optimized(tmp_path / "s", trials=2)
    with pytest.raises(UserError, match=r"^hydra.sweeper.objective=val/bleu: the study in .* optimizes val/loss; "):
        optimized(tmp_path / "s", objective="val/bleu")
    other = (AXES[0], Axis("model.conditioning", ("add", "kv")))
    with pytest.raises(UserError, match=r"^the study is of another search space \("):
        optimized(tmp_path / "s", axes=other, trials=4)


def test_the_direction_of_the_study_is_that_of_the_metric(tmp_path):
    wanted = {"val/loss": "MINIMIZE", "val/bleu": "MAXIMIZE", "val/ter": "MINIMIZE", "val/rougeL": "MAXIMIZE"}
    found = {name: open_study(OptunaSettings(study=name), tmp_path, name).direction.name for name in wanted}
    assert found == wanted


WRONG = {
    "hydra.sweeper.sampler=best: expected one of tpe": {"sampler": "best"},
    "hydra.sweeper.pruner=hard: expected one of none": {"pruner": "hard"},
    "hydra.sweeper.trials=0: must be at least 1": {"trials": 0},
    "hydra.sweeper.pruner_warmup=-1: must be at least 0": {"pruner_warmup": -1},
    "hydra.sweeper.storage=nothing://x: the study cannot be opened": {"storage": "nothing://x"},
}


@pytest.mark.parametrize(("message", "settings"), WRONG.items(), ids=list(WRONG))
def test_mistakes_are_reported_on_one_line(tmp_path, message, settings):
    with pytest.raises(UserError) as error:
        optimized(tmp_path / "s", **settings)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("pruner", representatives(["percentile", "halving", "hyperband"], ["halving"]))
def test_each_pruner_runs(tmp_path, pruner):
    study, _ = optimized(tmp_path / "s", pruner=pruner, pruner_startup=1, pruner_warmup=1, trials=6)
    assert set(states(study)) <= {STATES.COMPLETE, STATES.PRUNED} and len(study.trials) == 6
