"""`-m`: composes and checks the jobs of a sweep, runs those that are not complete, and writes their table.

The command is repeatable: a job that is done is skipped, an interrupted one resumes, a failed one is repeated.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from llm2slm.atomic import WriteLock, write_text
from llm2slm.child_processes import GRACE, POLL
from llm2slm.cli import hydra_internals
from llm2slm.cli.compose import Composer, quote
from llm2slm.cli.job import attempt, release, run, with_environment
from llm2slm.cli.launch import parsed
from llm2slm.commands.output_folder import check_folder, make_folder
from llm2slm.config import RunConfig, TrainerConfig
from llm2slm.sweeps.jobs import (
    SWEEP_FILE,
    Job,
    JobRecord,
    SweepCommand,
    assignments,
    commands_of,
    name_of,
    read_records,
    runs_now,
    sweep_of,
    to_complete,
)
from llm2slm.sweeps.progress import Reporter, shown
from llm2slm.sweeps.table import finish_sweep
from llm2slm.types import UserError

if TYPE_CHECKING:
    from llm2slm.cli.optuna_sweep import Space

OF_THE_SWEEP = ("hydra.mode", "hydra.run.", "hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher")
"""Overrides of Hydra that are not those of a job."""


def run_sweep(verb: str, composer: Composer, overrides: list[str], arguments: list[str]) -> int:
    """Runs the jobs of a sweep that are not complete. Returns the exit code: 1 if any job failed.

    Args:
        overrides: checked, in Hydra's syntax. arguments: after the verb, as the user gave them.
    """
    composed = composer.compose([*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
    HydraConfig.instance().set_config(composed)
    given = Path(str(composed.hydra.sweep.dir))  # resolved once: its name contains the time
    check_folder("hydra.sweep.dir", given.absolute())
    plan = Plan(verb, composer, composed, given.absolute(), arguments)
    kind = hydra_internals.kind_of_sweep(composed)
    if kind is None:
        from llm2slm.cli.hydra_sweep import run_by_hydra

        return run_by_hydra(verb, composer, overrides, plan.folder)
    space = None
    if kind == "optuna":
        from llm2slm.cli.optuna_sweep import Space

        space = Space(plan)
    else:
        plan.add(composer.jobs(composed))
    make_folder("hydra.sweep.dir", plan.folder)
    lock = WriteLock(plan.folder / SWEEP_FILE, "give another folder by hydra.sweep.dir=DIR")
    lock.acquire()
    try:
        plan.write()
        stopped = in_this_process(plan) if basic(composed) else in_processes(plan, space)
    except KeyboardInterrupt:
        plan.finish(given, stopped=True)
        raise
    else:
        complete = plan.finish(given, stopped=bool(stopped))
    finally:
        lock.release()
    return 128 + stopped if stopped else int(not complete)


def basic(composed: DictConfig) -> bool:
    """Whether the jobs run in this process."""
    return bool(composed.hydra.launcher.get("_target_") == hydra_internals.BASIC_LAUNCHER)


class Plan:
    """The jobs of a sweep, those of earlier commands in the same folder first.

    Attributes:
        jobs: those of this command. records: of all jobs in the folder, as found.
        earlier: commands with other jobs in the folder.
    """

    def __init__(
        self, verb: str, composer: Composer, composed: DictConfig, folder: Path, arguments: Sequence[str]
    ) -> None:
        self.verb, self.composer, self.composed, self.folder = verb, composer, composed, folder
        self.arguments = list(arguments)
        given = hydra_overrides(composed)
        self.of_sweep = [each for each in given if each.lstrip("+~").startswith("hydra.sweep.")]
        self.hydra = [each for each in given if not each.lstrip("+~").startswith(OF_THE_SWEEP)]
        self.records = read_records(folder) if folder.is_dir() else []
        self.earlier = commands_of(folder, self.records)
        self.jobs: list[Job] = []
        if (stored := sweep_of(folder)) is not None and stored["verb"] != verb:
            raise UserError(
                f"hydra.sweep.dir={folder}: contains a sweep of `llm2slm {stored['verb']}`; give another folder"
            )

    def add(self, overrides: Sequence[Sequence[str]]) -> None:
        """Adds the jobs of a command; those with equal overrides in the folder are the same jobs.

        Raises:
            UserError: the folder has other jobs only, two jobs have the same folder, or a job's configuration is
                invalid.
        """
        known = {tuple(sorted(record.overrides)): record for record in self.records}
        found = [known.get(tuple(sorted(each))) for each in overrides]
        if known and not any(found):
            stored = sweep_of(self.folder)
            of = f" (its command: {stored['command']})" if stored else ""
            raise UserError(
                f"hydra.sweep.dir={self.folder}: contains another sweep{of}, with no job of this one; give another "
                "folder"
            )
        for own, record in zip(overrides, found, strict=True):
            self.add_job(list(own), record)
        values = [assignments(job.overrides) for job in self.jobs]
        keys = dict.fromkeys(key for own in values for key in own)
        varied = tuple(key for key in keys if len({own.get(key) for own in values}) > 1)
        self.jobs = [replace(job, varied=varied) for job in self.jobs]

    def add_job(self, overrides: list[str], record: JobRecord | None = None, trial: int | None = None) -> Job:
        """Adds one job, whose configuration is checked."""
        number = self.records.index(record) if record is not None else self._next()
        composed = self.composer.compose([*self.hydra, *self.of_sweep, *overrides])
        config = self.composer.typed(composed)
        if basic(self.composed):
            check_processes(config)
        folder = self.folder / (record.folder if record is not None else self._subfolder(composed, number))
        if other := next((job for job in self.jobs if job.folder == folder), None):
            raise UserError(
                f"hydra.sweep.subdir: {' '.join(overrides)} and {' '.join(other.overrides)} have the same folder, "
                f"{folder}; name the folders by all swept keys, or leave hydra.sweep.subdir out"
            )
        named = [f"hydra.run.dir={quote(str(folder))}", f"hydra.job.num={number}"]
        arguments = [self.verb, *self._flags(), *overrides, *self.hydra, *named]
        job = Job(number, folder, overrides, arguments, trial=trial, **resources(self.verb, config))
        self.jobs.append(job)
        return job

    def _next(self) -> int:
        new = sum(job.number >= len(self.records) for job in self.jobs)
        return len(self.records) + new

    def _subfolder(self, composed: DictConfig, number: int) -> str:
        with open_dict(composed):
            composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        HydraConfig.instance().set_config(composed)
        name = str(OmegaConf.select(composed, "hydra.sweep.subdir"))
        if Path(name).name != name or name in (".", ".."):
            raise UserError(
                f"hydra.sweep.subdir={name}: must be the name of a folder, without '/'; exclude keys with paths by "
                "hydra.job.config.override_dirname.exclude_keys"
            )
        return name

    def _flags(self) -> list[str]:
        args = parsed(self.arguments)
        named = (
            ("--config-name", args.config_name),
            ("--config-path", args.config_path),
            ("--config-dir", args.config_dir),
        )
        found: list[str] = []
        for flag, value in named:
            if value:
                is_folder = flag != "--config-name"
                found += [flag, str(Path(value).expanduser().absolute()) if is_folder else value]
        return found

    def again(self, folder: Path) -> str:
        """The command that completes the sweep."""
        kept = [word for word in self.arguments if not word.startswith("hydra.sweep.dir=")]
        return shlex.join(["llm2slm", self.verb, *kept, f"hydra.sweep.dir={folder}"])

    def write(self) -> None:
        """Writes `sweep.json`, and the records of new jobs, which are pending."""
        for job in self.jobs:
            check_folder("hydra.sweep.dir", job.folder)
        self.write_commands()
        for job in self.jobs:
            self.write_pending(job)

    def write_commands(self) -> None:
        """Writes `sweep.json`, with the earlier commands that have jobs which this one has not."""
        own = SweepCommand(self.again(self.folder), [job.folder.name for job in self.jobs])
        self.earlier = [
            each for each in self.earlier if each.command != own.command and not set(each.jobs) <= set(own.jobs)
        ]
        values = {
            "verb": self.verb,
            "command": own.command,
            "name": name_of(self.folder),
            "commands": [asdict(each) for each in (*self.earlier, own)],
        }
        write_text(self.folder / SWEEP_FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    def write_pending(self, job: Job) -> None:
        """Writes the record of a new job."""
        make_folder("hydra.sweep.dir", job.folder)
        if not (job.folder / "job.json").is_file():
            job.record().write(job.folder)

    def finish(self, given: Path, *, stopped: bool) -> bool:
        """Writes and prints the table, then the commands that complete the sweep if it is not complete.

        Returns:
            Whether all jobs of this command are complete; the folder may have others.
        """
        self.write_commands()  # the jobs of a study were unknown before
        finish_sweep(self.folder)
        complete = all(job.record().complete for job in self.jobs)
        own = {job.folder.name for job in self.jobs}
        others = [record for record in read_records(self.folder) if record.folder not in own]
        for command in to_complete(self.earlier, others):
            print(f"to complete jobs of an earlier command: {command}")
        if stopped or not complete:
            print(f"to complete the sweep (jobs that are done are skipped): {self.again(given)}")
        return complete

    def left(self) -> list[Job]:
        """The jobs that are not complete; prints how many are."""
        left = [job for job in self.jobs if not job.record().complete]
        skipped = len(self.jobs) - len(left)
        if skipped:
            print(f"{skipped} of {len(self.jobs)} jobs are complete and skipped", flush=True)
        return left


def hydra_overrides(composed: DictConfig) -> list[str]:
    """The overrides of Hydra's keys, with their interpolations."""
    found = OmegaConf.to_container(composed.hydra.overrides.hydra, resolve=False)
    assert isinstance(found, list)
    return [str(each) for each in found]


def wait_for(job: Job, seconds: float = GRACE) -> None:
    """Waits until no process of an earlier command runs a job, and prints that it waits.

    Raises:
        UserError: it still runs after so many seconds.
    """
    deadline, shown = time.monotonic() + seconds, False
    while runs_now(job.folder):
        if not shown:
            print(f"waiting for {job.record().host}, which runs {job.name} (at most {seconds:g} s) ...", flush=True)
            shown = True
        if time.monotonic() > deadline:
            raise UserError(f"{job.folder}: another process ({job.record().host}) runs this job; wait, or stop it")
        time.sleep(POLL)


def in_this_process(plan: Plan) -> int:
    """Runs the jobs one after another in this process. Returns 0; a signal is raised."""
    for job in plan.left():
        wait_for(job)
        print(f"[{job.number + 1} of {len(plan.jobs)}] {job.name}: {shown(job)}", flush=True)
        with with_environment(job.environment()):
            try:
                attempt(job.folder, partial(run, job.command()))
            finally:
                release()
    return 0


def in_processes(plan: Plan, space: Space | None) -> int:
    """Runs the jobs by the chosen launcher. Returns the signal that stopped them, or 0.

    Args:
        space: the search space of an Optuna study; None: the jobs are those of the plan.
    """
    from llm2slm.sweeps.launchers import launcher_of
    from llm2slm.sweeps.run import Grid, Source, Supervisor

    settings = launcher_settings(plan.composed)
    left = plan.left() if space is None else []
    if not left and space is None:
        return 0
    launcher = launcher_of(settings, left if space is None else [space.template], plan.folder)
    source: Source = Grid(left) if space is None else space.trials(settings)
    total, complete = (len(plan.jobs), len(plan.jobs) - len(left)) if space is None else space.counts()
    attached = []
    for job in source.resumed():
        if (running := launcher.attach(job, job.record())) is not None:
            attached.append(running)
            source.attached(job)
        else:
            wait_for(job)
    return Supervisor(source, launcher, settings, Reporter(total, complete), attached=attached).run()


def launcher_settings(composed: DictConfig) -> Any:
    """The settings of the launcher, with checked types."""
    settings: Any = OmegaConf.to_object(composed.hydra.launcher)
    if settings.on_failure not in ("continue", "stop"):
        raise UserError(f"hydra.launcher.on_failure={settings.on_failure}: expected continue or stop")
    if settings.retries < 0:
        raise UserError(f"hydra.launcher.retries={settings.retries}: must be at least 0")
    return settings


def resources(verb: str, config: Any) -> dict[str, Any]:
    """The devices, nodes and steps of a job, by its configuration; see `Job`."""
    if not isinstance(config, RunConfig):
        return {}
    trainer = config.trainer
    return {
        "devices": devices_of(trainer),
        "nodes": trainer.num_nodes,
        "on_gpu": trainer.accelerator != "cpu",
        "steps": trainer.max_steps if verb == "train" else 0,
    }


def devices_of(trainer: TrainerConfig) -> int:
    """The number of devices of a job on one node; `auto` is one.

    Raises:
        UserError: a list of certain devices, which a launcher assigns.
    """
    text = str(trainer.devices).strip("[] ")
    if text in ("auto", "-1"):
        return 1
    with suppress(ValueError):
        if "," not in text and not str(trainer.devices).startswith("["):
            return int(text)
        if [int(part) for part in text.split(",") if part.strip()] == list(range(len(text.split(",")))):
            return len(text.split(","))
    raise UserError(
        f"trainer.devices={trainer.devices}: the launcher of a sweep assigns the devices; give their number"
    )


def check_processes(config: Any) -> None:
    """Refuses distributed runs in this process: Lightning would start the other ranks with the arguments of the sweep.

    Raises:
        UserError: Lightning would start several processes for a job of this process.
    """
    if isinstance(config, RunConfig) and several_processes(config.trainer):
        raise UserError(
            f"-m hydra/launcher=basic with trainer.devices={config.trainer.devices} and "
            f"trainer.strategy={config.trainer.strategy}: such jobs need separate processes; leave "
            "hydra/launcher=basic out, or add trainer.devices=1 trainer.strategy=auto"
        )


def several_processes(trainer: TrainerConfig) -> bool:
    """Whether Lightning would start other processes that run this command again."""
    if any(word in trainer.strategy for word in ("spawn", "fork", "notebook")):
        return False
    single = trainer.strategy in ("auto", "single_device") and str(trainer.devices) == "auto"
    return trainer.num_nodes > 1 or not (str(trainer.devices) in ("1", "[0]", "0,") or single)
