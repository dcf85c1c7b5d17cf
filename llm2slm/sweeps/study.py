"""`hydra/sweeper=optuna`: the jobs are trials of an Optuna study (its ask-and-report interface).

The study is stored, so that the same command continues it: interrupted trials resume, failed ones are repeated.
Validation scores are read from the `metrics.csv` of each job while it runs; a trial that the pruner rejects is stopped
and saves its state. Test scores are never read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import journal
from optuna.trial import TrialState

from llm2slm.evaluation.metrics.scores import lower_is_better
from llm2slm.runs import METRICS, curve
from llm2slm.sweeps.jobs import Job, JobRecord, result_of
from llm2slm.sweeps.settings import OptunaSettings
from llm2slm.types import UserError

STORAGE = "study.log"
"""File of the study in the folder of the sweep."""
READ = 1.0
"""Seconds between two readings of the validation scores of a running job."""
SAMPLERS = ("tpe", "random")
PRUNERS = ("none", "median", "percentile", "halving", "hyperband")


@dataclass(frozen=True)
class Axis:
    """A swept key.

    Attributes:
        key: as on the command line. choices: values as text; [] for a range of numbers from `low` to `high`, both
            included.
        step: between numbers; None: any. whole: integers.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False

    def distribution(self) -> BaseDistribution:
        """The distribution of Optuna.

        Raises:
            UserError: an empty range, or a logarithmic one that is not positive.
        """
        if self.choices:
            return CategoricalDistribution(self.choices)
        try:
            if self.whole:
                return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
            return FloatDistribution(self.low, self.high, log=self.log, step=self.step)
        except ValueError as error:
            raise UserError(f"{self.key}: {' '.join(str(error).split())}") from None

    def override(self, value: Any) -> str:
        """The override that sets a value."""
        return f"{self.key}={value}"

    def ends(self) -> tuple[str, str]:
        """The overrides of the first and the last value."""
        if self.choices:
            return self.override(self.choices[0]), self.override(self.choices[-1])
        low, high = (int(self.low), int(self.high)) if self.whole else (self.low, self.high)
        return self.override(low), self.override(high)


def check_settings(settings: OptunaSettings) -> None:
    """Refuses settings out of range.

    Raises:
        UserError: names the key.
    """
    for key, value, known in (("sampler", settings.sampler, SAMPLERS), ("pruner", settings.pruner, PRUNERS)):
        if value not in known:
            raise UserError(f"hydra.sweeper.{key}={value}: expected one of {', '.join(known)}")
    for key, number in (("trials", settings.trials), ("startup_trials", settings.startup_trials)):
        if number < 1:
            raise UserError(f"hydra.sweeper.{key}={number}: must be at least 1")
    for key, number in (("pruner_startup", settings.pruner_startup), ("pruner_warmup", settings.pruner_warmup)):
        if number < 0:
            raise UserError(f"hydra.sweeper.{key}={number}: must be at least 0")


def open_study(settings: OptunaSettings, folder: Path, objective: str) -> optuna.Study:
    """The stored study; created if it does not exist.

    Raises:
        UserError: the storage cannot be used, or the study is of another objective.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    where = settings.storage or str(folder / STORAGE)
    try:
        storage: Any = settings.storage or journal.JournalStorage(
            journal.JournalFileBackend(where, lock_obj=journal.JournalFileOpenLock(where))
        )
        study = optuna.create_study(
            storage=storage,
            study_name=settings.study or folder.name,
            direction="minimize" if lower_is_better(objective.removeprefix("val/")) else "maximize",
            load_if_exists=True,
        )
        before = study.user_attrs.get("objective")
        if before is None:
            study.set_user_attr("objective", before := objective)
    except Exception as error:  # of any storage: a database, a file
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"hydra.sweeper.storage={where}: the study cannot be opened ({reason})") from error
    if before != objective:
        raise UserError(
            f"hydra.sweeper.objective={objective}: the study in {where} optimizes {before}; give another "
            "hydra.sweep.dir or hydra.sweeper.study"
        )
    known = len(study.get_trials(deepcopy=False))
    study.sampler, study.pruner = sampler(settings, known), pruner(settings)
    return study


def sampler(settings: OptunaSettings, known: int) -> optuna.samplers.BaseSampler:
    """The sampler; its seed depends on the number of known trials, so that a continued study draws new values."""
    seed = None if settings.seed is None else settings.seed + known
    if settings.sampler == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=settings.startup_trials, constant_liar=True, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def pruner(settings: OptunaSettings) -> optuna.pruners.BasePruner:
    """The pruner; its steps are optimizer steps."""
    startup, warmup = settings.pruner_startup, settings.pruner_warmup
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(startup, warmup)
    if settings.pruner == "percentile":
        return optuna.pruners.PercentilePruner(25.0, startup, warmup)
    if settings.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, warmup) if warmup else "auto")
    if settings.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, warmup))
    return optuna.pruners.NopPruner()


class Trials:
    """The trials of a study as jobs.

    Attributes:
        total: number of trials to reach. complete: of these, finished or pruned by earlier commands.

    Args:
        make: creates the job of overrides; of the record of an earlier attempt where there is one.
        template: a job with the resources of any trial.
        records: the jobs of the folder.
    """

    def __init__(
        self,
        study: optuna.Study,
        settings: OptunaSettings,
        *,
        axes: Sequence[Axis],
        objective: str,
        make: Callable[[Sequence[str], JobRecord | None, int], Job],
        template: Job,
        records: Sequence[JobRecord],
        folder: Path,
    ) -> None:
        self.study, self.settings, self.objective, self.make = study, settings, objective, make
        self.axes = {axis.key: axis for axis in axes}
        self.distributions = {axis.key: axis.distribution() for axis in axes}
        self.template, self.total = template, settings.trials
        self.begun: dict[int, optuna.Trial] = {}
        self._reported: dict[int, set[int]] = {}
        self._read: dict[int, float] = {}
        self._waiting: list[Job] = []
        self._recover(records, folder)
        finished = (TrialState.COMPLETE, TrialState.PRUNED)
        self.complete = len(study.get_trials(deepcopy=False, states=finished))
        self.new = max(0, self.total - self.complete - len(self._waiting))

    def resumed(self) -> list[Job]:
        """The jobs of earlier commands that are not complete."""
        return list(self._waiting)

    def waiting(self, most: int) -> Sequence[Job]:
        """Jobs to resume, then as many templates as new trials are left."""
        return [*self._waiting, *[self.template] * self.new][:most]

    def take(self, number: int) -> list[Job]:
        """Takes jobs to resume, then new trials of the study."""
        taken, self._waiting = self._waiting[:number], self._waiting[number:]
        for _ in range(number - len(taken)):
            self.new -= 1
            taken.append(self._ask(None))
        return taken

    def again(self, job: Job) -> None:
        """Puts a job back, as the next one."""
        self._waiting.insert(0, job)

    def attached(self, job: Job) -> None:
        """Removes a job that runs already."""
        self._waiting.remove(job)

    def prunes(self, job: Job) -> bool:
        """Reports new validation scores of a job to the study; whether its pruner rejects the trial."""
        now, trial = time.monotonic(), self.begun[job.number]
        if now - self._read.get(job.number, -math.inf) < READ:
            return False
        self._read[job.number] = now
        reported = self._reported.setdefault(job.number, set(self._frozen(trial).intermediate_values))
        for step, row in curve(job.folder / METRICS).items():
            if self.objective in row and step + 1 not in reported and math.isfinite(row[self.objective]):
                reported.add(step + 1)
                trial.report(row[self.objective], step + 1)
        return bool(reported) and trial.should_prune()

    def ended(self, job: Job, record: JobRecord) -> None:
        """Reports the objective of a job to the study; an interrupted one stays open."""
        self._tell(self.begun[job.number], record, job.folder)

    def _tell(self, trial: optuna.Trial, record: JobRecord, folder: Path) -> None:
        if record.status == "done" and (value := self.value(folder)) is not None:
            self.study.tell(trial, value)
        elif record.status == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
        elif record.status in ("done", "failed"):
            if record.status == "done":
                record.status, record.error = "failed", f"no finite {self.objective} in its result"
                record.write(folder)
            self.study.tell(trial, state=TrialState.FAIL)

    def value(self, folder: Path) -> float | None:
        """The objective of a finished job, at the checkpoint that its validations chose; None where it has none."""
        result = result_of(folder) or {}
        selection = result.get("selection") or {}
        value = selection.get("value") if selection.get("metric") == self.objective else None
        if value is None:
            systems = result.get("systems") or [{}]
            value = (systems[0].get("validation") or {}).get(self.objective.removeprefix("val/"))
        return float(value) if value is not None and math.isfinite(value) else None

    def _frozen(self, trial: optuna.Trial) -> optuna.trial.FrozenTrial:
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _ask(self, record: JobRecord | None) -> Job:
        try:
            trial = self.study.ask(self.distributions)
        except ValueError as error:  # other choices than in the stored study
            raise UserError(f"the study is of another search space ({' '.join(str(error).split())})") from None
        overrides = [axis.override(trial.params[axis.key]) for axis in self.axes.values()]
        job = self.make(overrides, record, trial.number)
        found = job.record()
        found.trial = trial.number
        found.write(job.folder)
        self.begun[job.number] = trial
        return job

    def _recover(self, records: Sequence[JobRecord], folder: Path) -> None:
        """Settles the trials of earlier commands: outcomes are reported, interrupted trials resume, failed ones are
        repeated with the same values, and those without a job are marked as failed."""
        frozen = self.study.get_trials(deepcopy=False)
        known = {record.trial: record for record in records if record.trial is not None}
        for each in frozen:
            record = known.get(each.number)
            if each.state == TrialState.RUNNING:
                trial = optuna.Trial(self.study, each._trial_id)
                if record is None:
                    self.study.tell(trial, state=TrialState.FAIL)
                elif record.complete:
                    self._tell(trial, record, folder / record.folder)
                else:
                    job = self.make(
                        [self.axes[key].override(each.params[key]) for key in self.axes], record, each.number
                    )
                    self.begun[job.number] = trial
                    self._waiting.append(job)
            elif each.state == TrialState.FAIL and record is not None:
                self.study.enqueue_trial(each.params)
                self._waiting.append(self._ask(record))
