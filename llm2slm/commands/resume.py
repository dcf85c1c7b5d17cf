"""States of a run directory: empty, training to resume, finished training without its test, complete run.

Training is finished once its last validation is in `last.ckpt`. Then these are written, each atomically and in this
order: `model/`, `predictions.jsonl`, `result.json`, the model card. Files of an earlier end of the training (before
it was extended) are removed before the new model is saved, so that all files present are consistent.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm2slm import json_lines, runs
from llm2slm.atomic import NotWritten, writing
from llm2slm.commands.card import card_in_run
from llm2slm.commands.deferred_warnings import hold_warning
from llm2slm.config import RunConfig
from llm2slm.models.saving import CARD
from llm2slm.processes import PeerEnded
from llm2slm.ranks import first_process
from llm2slm.tracking.samples import FILE as SAMPLES
from llm2slm.training.checkpoint_io import CHECKPOINTS
from llm2slm.training.checkpoints import Progress
from llm2slm.types import Example, UserError

FIXED = ("model", "data", "task", "optim", "seed")
"""What a resumed run cannot change."""
SHOWN = 3
"""Differing keys in a message."""
PREDICTIONS, RESULT = "predictions.jsonl", "result.json"


@dataclass(frozen=True)
class Begun:
    """A training with a checkpoint.

    Attributes:
        checkpoint: to resume from. progress: of that checkpoint.
        recorded: the configuration of its validations; None: an earlier version validated on other rows.
    """

    checkpoint: Path
    progress: Progress
    recorded: RunConfig | None


def command(folder: Path) -> str:
    """The command line that resumes or completes the run of a folder."""
    return f"llm2slm train run={shlex.quote(str(folder))}"


def refuse_used(folder: Path) -> None:
    """Refuses a folder with a run, since two runs would mix their curves, models and configurations.

    Raises:
        UserError: the folder has a run, or files of another verb.
    """
    if not first_process():
        return
    runs.refuse_another(folder, "train")
    used = [name for name in (CHECKPOINTS, RESULT, runs.METRICS) if (folder / name).exists()]
    if used:
        raise UserError(
            f"{folder}: holds a run already ({used[0]}); resume or complete it by `{command(folder)}`, or write to "
            "another folder by hydra.run.dir=DIR"
        )


def refuse_other(folder: Path, recorded: RunConfig, given: RunConfig) -> None:
    """Refuses to resume a run with another model, corpus, task, optimizer or seed.

    Raises:
        UserError: names the keys, each with the recorded and the given value.
    """
    started, other = ({name: runs.plain(getattr(each, name)) for name in FIXED} for each in (recorded, given))
    found = list(_changes(started, other, ""))
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise UserError(
            f"run={folder} was started with {'; '.join([*found[:SHOWN], *more])}; a resumed run can change trainer, "
            "logger and callbacks only: leave the rest out, or train anew without run="
        )


def _changes(recorded: Mapping[str, Any], given: Mapping[str, Any], section: str) -> Iterator[str]:
    for name in dict.fromkeys([*recorded, *given]):
        one, other, key = recorded.get(name), given.get(name), f"{section}{name}"
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _changes(one, other, f"{key}.")
        elif one != other:
            yield f"{key}={_typed(one)}, not {_typed(other)}"


def _typed(value: Any) -> str:
    """A value as on the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def show_complete(folder: Path, progress: Progress, max_steps: int) -> None:
    """Prints that nothing is left to do, and that a smaller `max_steps` changes nothing."""
    fewer = ""
    if progress.steps > max_steps:
        fewer = f"; it is at step {progress.steps} already, so trainer.max_steps={max_steps} has no effect"
    print(f"llm2slm: {folder}: trained and tested already; nothing is missing{fewer}", file=sys.stderr)


def warn_fewer_steps(folder: Path, begun: Begun | None, max_steps: int) -> None:
    """Warns that a training is beyond `max_steps` already."""
    if begun is not None and begun.progress.steps > max_steps:
        steps = begun.progress.steps
        hold_warning(
            f"{folder}: it is at step {steps} already, so with trainer.max_steps={max_steps} it is not trained further"
        )


def start_over(folder: Path) -> None:
    """Reports that a training that was stopped before its first checkpoint starts over.

    Raises:
        UserError: the folder has files of another verb.
    """
    if not first_process():
        return
    runs.refuse_another(folder, "train")
    print(f"llm2slm: {folder}: the training was stopped before its first checkpoint; it starts over", file=sys.stderr)


def clear_leftovers(folder: Path, *, from_start: bool) -> None:
    """Before training: removes the curve of a training that starts over, and predictions of a test without a result."""
    if not first_process():
        return
    if from_start:
        (folder / runs.METRICS).unlink(missing_ok=True)
        (folder / SAMPLES).unlink(missing_ok=True)
    if not (folder / RESULT).exists():
        (folder / PREDICTIONS).unlink(missing_ok=True)


@contextmanager
def naming_command(folder: Path) -> Iterator[None]:
    """Prints the command that resumes on any failure of a training with a checkpoint, Ctrl-C included.

    Without a checkpoint, the command that starts over is printed on Ctrl-C, and if a file cannot be written: other
    failures would be repeated.
    """
    try:
        yield
    except PeerEnded:  # the line of this error contains the command: see `with_command`
        raise
    except BaseException as error:
        if first_process() and (has_checkpoint(folder) or isinstance(error, KeyboardInterrupt | NotWritten)):
            print(f"llm2slm: {to_continue(folder)}", file=sys.stderr)
        raise


def with_command(folder: Path, reason: str) -> str:
    """The reason for the end of a training, and the command that resumes it or starts it over."""
    return f"{reason}; {to_continue(folder)}"


def to_continue(folder: Path) -> str:
    """The command that resumes a training or starts it over, in words."""
    saved = has_checkpoint(folder)
    to = "to resume from the last checkpoint" if saved else "there is no checkpoint yet; to start over"
    return f"{to}: {command(folder)}"


def has_checkpoint(folder: Path) -> bool:
    """Whether a training has written a checkpoint."""
    return any((folder / CHECKPOINTS).glob("*.ckpt"))


@contextmanager
def naming_rest(folder: Path) -> Iterator[None]:
    """Prints the command for the remaining work on any failure after training, Ctrl-C included."""
    try:
        yield
    except BaseException:
        kept = f"training is finished and saved in {folder / CHECKPOINTS}"
        print(f"llm2slm: {kept}; to do only what is missing: {command(folder)}", file=sys.stderr)
        raise


def outdate(folder: Path) -> None:
    """Removes the files that describe the model to be replaced."""
    for name in (RESULT, PREDICTIONS, f"model/{CARD}"):
        with writing(folder / name):
            (folder / name).unlink(missing_ok=True)


def kept_answers(folder: Path, examples: Sequence[Example]) -> list[str] | None:
    """Predictions of a test that ended before its result, from `predictions.jsonl`; None: there are none.

    Also None, with a printed reason, if the file is damaged or belongs to other rows.
    """
    path = folder / PREDICTIONS
    if not path.is_file() or (folder / RESULT).exists():
        return None
    try:
        rows = list(json_lines.read_jsonl(path))
        wrong = next((number for number, row in rows if not isinstance(row.get("prediction"), str)), None)
        if wrong is not None:
            raise UserError(f"{path}, line {wrong}: its prediction is not a text")
        if [(row.get("source"), row.get("target")) for _, row in rows] != [(e.source, e.target) for e in examples]:
            raise UserError(f"{path}: belongs to other rows")
    except UserError as error:
        if first_process():
            print(f"llm2slm: {error}; its predictions are generated again", file=sys.stderr)
        return None
    return [row["prediction"] for _, row in rows]


def complete(folder: Path, progress: Progress) -> runs.Result | None:
    """The result of a complete run (a missing model card is written); None: the run is incomplete.

    Raises:
        UserError: the folder has another verb's result.
    """
    runs.refuse_another(folder, "train")
    if not progress.finished or not (folder / RESULT).is_file() or not (folder / "model").is_dir():
        return None
    stored = stored_result(folder)
    if not stored.systems or stored.systems[0].notes.get("optimizer_steps") != progress.steps:
        return None  # of an earlier end
    if first_process() and not (folder / "model" / CARD).is_file():
        card_in_run(folder)
    return stored


def stored_result(folder: Path) -> runs.Result:
    """The result of `train` in a run directory."""
    stored = runs.read_result(folder)
    systems = [_system(values) for values in stored.pop("systems")]
    chosen, baseline = stored.pop("selection", None), stored.pop("baseline", None)
    targets = [runs.Target(**target) for target in stored.pop("targets", [])]
    return runs.Result(
        targets=targets,
        systems=systems,
        selection=runs.Selection(**chosen) if chosen else None,
        baseline=runs.Baseline(**baseline) if baseline else None,
        **stored,
    )


def _system(stored: dict[str, Any]) -> runs.System:
    """A system of a stored result of `train`."""
    quality = {name: runs.Score(**score) for name, score in stored["quality"].items()}
    buckets = [runs.Bucket(**bucket) for bucket in stored["buckets"]]
    speed = [_speed_row(row) for row in stored["speed"]]
    failures = [runs.Failure(**failure) for failure in stored.get("failures", [])]
    return runs.System(**stored | {"quality": quality, "buckets": buckets, "speed": speed, "failures": failures})


def _speed_row(stored: dict[str, Any]) -> runs.SpeedRow:
    """A row of timings (benchmark.after_training)."""
    values: dict[str, Any] = {name: runs.Spread(**v) if isinstance(v, dict) else v for name, v in stored.items()}
    return runs.SpeedRow(**values)
