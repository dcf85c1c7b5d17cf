"""The jobs of a sweep: a folder each, with `job.json`, from which a later command sees what is left to do.

A job is pending, running, done, pruned, failed or interrupted. The process of a running job holds a lock on its
`job.json`; a record that is `running` without that lock is of a process that was killed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.atomic import WriteLock, write_text
from llm2slm.tracking.naming import of_sweep
from llm2slm.types import UserError

JOB_FILE = "job.json"
LOG = "job.log"
SWEEP_FILE = "sweep.json"
JOB_FOLDER = "LLM2SLM_JOB"
"""Environment variable of the processes of a job: its folder, which has `job.json`."""
COMPLETE = ("done", "pruned")
"""States that the same command does not run again."""


@dataclass
class JobRecord:
    """The state of one job: `job.json` in its folder."""

    overrides: list[str]
    status: str
    """pending | running | done | pruned | failed | interrupted."""
    error: str = ""
    seconds: float = 0.0
    """Of all attempts."""
    attempts: int = 0
    value: float | None = None
    """What the verb returned to the sweeper: of `train` the best validation score by `callbacks.monitor`."""
    trial: int | None = None
    """Number of its trial in an Optuna study."""
    host: str = ""
    folder: str = field(default="", compare=False)
    """Name of the job's folder within the sweep's; filled when read."""

    def write(self, folder: Path) -> None:
        """Writes the record into the job's folder."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if k != "folder"}
        write_text(folder / JOB_FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in COMPLETE


def read_record(folder: Path) -> JobRecord | None:
    """The record of a job; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / JOB_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
        known = {each.name for each in dataclasses.fields(JobRecord)}
        return JobRecord(**{k: v for k, v in values.items() if k in known} | {"folder": folder.name})
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: no record of a job ({reason}); remove this folder to run the job again") from None


def read_records(folder: Path) -> list[JobRecord]:
    """The records of a sweep in the order of its jobs."""
    found = [record for path in folder.glob(f"*/{JOB_FILE}") if (record := read_record(path.parent)) is not None]
    return sorted(found, key=lambda r: (not r.folder.isdigit(), int(r.folder) if r.folder.isdigit() else 0, r.folder))


def assignments(overrides: Sequence[str]) -> dict[str, str]:
    """Values of overrides by key, without those of Hydra itself."""
    pairs = (o.lstrip("+").partition("=") for o in overrides)
    return {key: unquoted(value) for key, _, value in pairs if not key.startswith(("hydra.", "hydra/"))}


def unquoted(value: str) -> str:
    """A value without Hydra's quotes or escapes."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace(f"\\{value[0]}", value[0])
    return "".join(_unescaped(value))


def _unescaped(value: str) -> list[str]:
    found, escaped = [], False
    for character in value:
        if character == "\\" and not escaped:
            escaped = True
            continue
        found.append(character)
        escaped = False
    return found


@dataclass
class Job:
    """One job of a sweep, as it will run.

    Attributes:
        number: its position in the sweep, from 0.
        folder: its run directory.
        overrides: those of the task.
        arguments: of the command that runs it from its beginning, verb included.
        devices: number of devices of one node; processes: on one node (of a GPU job: one for each device).
        nodes: number of nodes. on_gpu: False: trainer.accelerator=cpu.
        steps: optimizer steps; 0 for other verbs than train. varied: keys that differ between the jobs of the sweep.
    """

    number: int
    folder: Path
    overrides: list[str]
    arguments: list[str]
    devices: int = 1
    nodes: int = 1
    on_gpu: bool = True
    steps: int = 0
    trial: int | None = None
    varied: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """The variables of its processes."""
        return of_sweep(self.folder.parent, self.varied) | {JOB_FOLDER: str(self.folder)}

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"job {self.folder.name}"

    def record(self) -> JobRecord:
        """Its record as stored; a pending one where there is none."""
        return read_record(self.folder) or JobRecord(self.overrides, "pending", trial=self.trial)

    def command(self) -> list[str]:
        """The arguments that run the job, or resume a training that was begun; verb included."""
        if self.arguments[0] == "train" and (self.folder / "config.yaml").is_file():
            return ["train", f"run={quoted(str(self.folder))}"]
        return self.arguments


def quoted(value: str) -> str:
    """A text in Hydra's single quotes."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'") if value.endswith("\\") else value.replace("'", "\\'")
    return f"'{escaped}'"


class Attempt:
    """One attempt at a job, by the process that runs it: the record is `running` within the block, under a lock.

    The caller sets `status` and `error` of `record`; an exception that leaves the block is an interruption.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = WriteLock(folder / JOB_FILE, "stop that process")
        self.record = JobRecord([], "interrupted")

    def begin(self) -> None:
        """Takes the lock, and records that the job runs.

        Raises:
            UserError: another process runs the job.
        """
        self.lock.acquire()
        found = read_record(self.folder)
        if found is not None:
            self.record = found
        self.record.status, self.record.error, self.record.host = "running", "", f"{socket.gethostname()}:{os.getpid()}"
        self.record.attempts += 1
        self.record.write(self.folder)
        self.record.status = "interrupted"

    def end(self, seconds: float) -> None:
        """Records the outcome, and releases the lock."""
        self.record.seconds = round(self.record.seconds + seconds, 1)
        try:
            self.record.write(self.folder)
        finally:
            self.lock.release()


def runs_now(folder: Path) -> bool:
    """Whether a process runs the job of a folder."""
    lock = WriteLock(folder / JOB_FILE)
    try:
        lock.acquire()
    except UserError as error:
        return "another process" in str(error)
    lock.release()
    return False


def job_overrides() -> list[str] | None:
    """The overrides of the job that this process runs, also where it resumes by `run=DIR`; None: it runs no job."""
    record = read_record(Path(os.environ[JOB_FOLDER])) if os.environ.get(JOB_FOLDER) else None
    return None if record is None else record.overrides


@dataclass(frozen=True)
class SweepCommand:
    """A command of a sweep, and the folders of its jobs (names)."""

    command: str
    jobs: list[str]


def sweep_of(folder: Path) -> dict[str, Any] | None:
    """The contents of `sweep.json`: verb, the last command, name; None for a folder without it.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        return {"verb": str(found["verb"]), "command": str(found["command"]), "name": str(found["name"])}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: no record of a sweep; remove it to use this folder") from None


def commands_of(folder: Path, records: Sequence[JobRecord]) -> list[SweepCommand]:
    """The commands of a sweep, the oldest first. (Earlier versions recorded the last one only, without its jobs; all
    jobs are then attributed to it.)

    Raises:
        UserError: `sweep.json` is damaged.
    """
    last = sweep_of(folder)
    if last is None:
        return []
    stored = json.loads((folder / SWEEP_FILE).read_text("utf-8")).get("commands")
    try:
        if stored is not None:
            return [SweepCommand(str(each["command"]), [str(name) for name in each["jobs"]]) for each in stored]
    except (TypeError, KeyError):
        raise UserError(f"{folder / SWEEP_FILE}: no record of a sweep; remove it to use this folder") from None
    return [SweepCommand(last["command"], [record.folder for record in records])]


def to_complete(commands: Sequence[SweepCommand], records: Sequence[JobRecord]) -> list[str]:
    """The commands, the newest first, that complete the jobs of a sweep which are not complete."""
    left = {record.folder for record in records if not record.complete}
    found: list[str] = []
    for each in reversed(commands):
        if left & set(each.jobs):
            found.append(each.command)
            left -= set(each.jobs)
    return found


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep, also of an earlier version."""
    return folder.is_dir() and ((folder / SWEEP_FILE).is_file() or any(folder.glob(f"*/{JOB_FILE}")))


def name_of(folder: Path) -> str:
    """A name for a sweep: that of its folder, with the date if the name is a time of day."""
    time_alone = folder.name.replace("-", "").isdigit()
    return f"{folder.parent.name}_{folder.name}" if time_alone else folder.name


def has_result(folder: Path) -> bool:
    """Whether a job has left a result."""
    return (folder / "result.json").is_file()


def result_of(folder: Path) -> dict[str, Any] | None:
    """The result of a job; None where there is none, or where it cannot be read."""
    try:
        return runs.read_result(folder) if has_result(folder) else None
    except UserError:
        return None
