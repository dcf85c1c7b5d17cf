"""The loggers of one command: opened when its work starts, closed at its end, also after an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from llm2slm import runs
from llm2slm.config import LoggerConfig
from llm2slm.config.choices import LOGGER_MODES, check_choice
from llm2slm.ranks import first_process
from llm2slm.redaction import redact, redact_text
from llm2slm.tracking import artifacts, naming, summary
from llm2slm.tracking.tracker import Facts, Table, Tracker
from llm2slm.types import UserError

NAMES = ("csv", "wandb", "tensorboard", "mlflow")


class Tracking:
    """All loggers of a command. If one fails, a warning is printed, and the command continues without it."""

    def __init__(self, trackers: Sequence[Tracker], cfg: LoggerConfig, facts: Facts | None = None) -> None:
        self._trackers, self.cfg, self.facts = list(trackers), cfg, facts
        self._failed: list[Tracker] = []

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs values of an optimizer step (0-based)."""
        self._each(lambda tracker: tracker.metrics(values, step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Sets final values of the run."""
        self._each(lambda tracker: tracker.summary(redact(values)))

    def table(self, name: str, table: Table, step: int | None = None) -> None:
        """Logs a table, which replaces an earlier one of the same name; nothing without rows."""
        if table.rows:
            self._each(lambda tracker: tracker.table(name, table, step))

    def result(self, result: runs.Result, folder: Path) -> None:
        """Logs a result: its summary, the table of several systems, samples, and the artifacts of the run directory."""
        values = runs.plain(result)
        self.summary(summary.of_result(values))
        if len(values["systems"]) > 1:
            self.table("systems", summary.systems_table(values))
        samples = {system["name"]: system["samples"] for system in values["systems"] if system.get("samples")}
        if result.verb != "train":  # its samples grow during training
            self.table("samples", summary.sample_table(samples, self.cfg.samples))
        self.outputs(folder)

    def outputs(self, folder: Path) -> None:
        """Logs the artifacts `results` and `model` of a folder, as `logger.artifacts` lists them."""
        if "results" in self.cfg.artifacts:
            self.files("results", artifacts.results(folder))
        if "model" in self.cfg.artifacts and (folder / "model").is_dir():
            self.files("model", artifacts.model(folder))

    def inputs(self) -> None:
        """Logs the artifacts `config` and `code`, as `logger.artifacts` lists them."""
        if self.facts is None:
            return
        if "config" in self.cfg.artifacts:
            text = yaml.safe_dump(self.facts.config, sort_keys=False, allow_unicode=True)
            self.files("config", {"config.yaml": text})
        if "code" in self.cfg.artifacts:
            self.files("code", artifacts.code())

    def close(self, *, failed: bool) -> None:
        """Closes all loggers, and prints where the run is."""
        lines: list[str] = []
        self._each(lambda tracker: lines.extend(tracker.close(failed=failed)))
        for tracker in self._failed:
            self._guarded(tracker, lambda each: each.close(failed=True))
        for line in lines:
            print(f"llm2slm: {line}", file=sys.stderr, flush=True)

    def files(self, kind: str, files: Mapping[str, Path | str]) -> None:
        """Logs files (name in the artifact -> path or text) as the artifact of a kind of this run."""
        if files and self.facts is not None:
            name = "llm2slm" if kind == "code" else f"{self.facts.verb}-{self.facts.folder.resolve().name}"
            self._each(lambda tracker: tracker.files(name, kind, files))

    def _each(self, call: Callable[[Tracker], object]) -> None:
        for tracker in list(self._trackers):
            if not self._guarded(tracker, call):
                self._trackers.remove(tracker)
                self._failed.append(tracker)

    def _guarded(self, tracker: Tracker, call: Callable[[Tracker], object]) -> bool:
        """Calls a logger; False, with a printed reason, if it fails."""
        try:
            call(tracker)
        except Exception as error:
            reason = redact_text(" ".join(str(error).split())[:300]) or type(error).__name__
            print(
                f"llm2slm: warning: logger {tracker.name} failed ({reason}); the run continues without it",
                file=sys.stderr,
                flush=True,
            )
            return False
        return True


@contextmanager
def track(
    verb: str,
    config: Any,
    folder: Path | None,
    *,
    resumed: bool = False,
    active: bool | None = None,
) -> Iterator[Tracking]:
    """The loggers of a command, closed when the block ends; as failed, if it ends with an error.

    Args:
        config: the configuration of the verb, with its section `logger`.
        folder: the run directory; None: the verb has none, so loggers write into the working directory.
        resumed: the run in the folder is continued.
        active: whether this process logs; None: the first process of all.

    Raises:
        UserError: unknown logger, mode or artifact, or a logger refuses to start.
    """
    cfg: LoggerConfig = config.logger
    names = check(cfg)
    tracking = Tracking([], cfg)
    if names and (first_process() if active is None else active):
        facts = facts_of(verb, config, folder, resumed=resumed)
        tracking = Tracking(_opened(names, cfg, facts), cfg, facts)
    failed = True
    try:
        tracking.inputs()
        yield tracking
        failed = False
    finally:
        tracking.close(failed=failed)


def check(cfg: LoggerConfig) -> list[str]:
    """The names of the loggers, without `csv`.

    Raises:
        UserError: unknown logger, mode or artifact.
    """
    names = list(dict.fromkeys(name.strip() for name in cfg.name.split("+")))
    for name in names:
        if name not in NAMES:
            raise UserError(
                f"logger.name={cfg.name}: {name or 'an empty name'} is unknown; choose {', '.join(NAMES)}, or several "
                "joined by +"
            )
    check_choice("logger.mode", cfg.mode, LOGGER_MODES)
    artifacts.check(cfg.artifacts)
    return [name for name in names if name != "csv"]


def facts_of(verb: str, config: Any, folder: Path | None, *, resumed: bool) -> Facts:
    """The facts about the run of this process."""
    cfg: LoggerConfig = config.logger
    place = Path.cwd() if folder is None else folder
    process = {
        "verb": verb,
        "overrides": naming.assignments(),
        "git_commit": runs.git_commit(),
        "versions": runs.versions(),
        "processor": runs.device_name(),
    }
    values = redact(runs.plain(config) | {"llm2slm": process})
    values["llm2slm"]["command"] = runs.command(redact_text)  # before an argument is quoted, which changes its text
    return Facts(
        verb,
        place,
        folder is not None,
        resumed,
        naming.name_of(verb, place),
        naming.group_of(cfg.group),
        naming.tags_of(cfg.tags),
        values,
    )


def _opened(names: Sequence[str], cfg: LoggerConfig, facts: Facts) -> list[Tracker]:
    found: list[Tracker] = []
    try:
        for name in names:
            found.append(_tracker(name)(cfg, facts))
    except BaseException:
        for tracker in found:
            tracker.close(failed=True)
        raise
    return found


def _tracker(name: str) -> type[Tracker]:
    """The class of a logger; its library is imported when it is used."""
    if name == "wandb":
        from llm2slm.tracking.wandb_run import WandbRun

        return WandbRun
    if name == "tensorboard":
        from llm2slm.tracking.tensorboard_run import TensorBoardRun

        return TensorBoardRun
    from llm2slm.tracking.mlflow_run import MLflowRun

    return MLflowRun
