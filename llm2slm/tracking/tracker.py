"""The interface of a logger, and the facts about a run that each logger records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm2slm.config import LoggerConfig


@dataclass(frozen=True)
class Facts:
    """What a logger records about a run before it starts. All texts are free of secrets.

    Attributes:
        verb: the job type.
        folder: where the logger writes; `kept`: whether it belongs to this run alone (a run directory).
        resumed: whether an interrupted run in the folder is continued, so that its ids are used again.
        name: of the run. group: runs of one sweep have the same.
        config: the configuration as nested plain values, and facts about the process under the key "llm2slm".
    """

    verb: str
    folder: Path
    kept: bool
    resumed: bool
    name: str
    group: str | None
    tags: list[str]
    config: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers; None: unknown. A table that grows is logged as a whole each time."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]] = field(default_factory=list)


class Tracker(ABC):
    """One run of a logger. Methods may raise any exception: the session then ends this logger; the run continues."""

    name: str

    def __init__(self, cfg: LoggerConfig, facts: Facts) -> None:
        self.cfg, self.facts = cfg, facts

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs values of a step (0-based optimizer step) as points of curves."""

    @abstractmethod
    def summary(self, values: Mapping[str, Any]) -> None:
        """Sets final values of the run: numbers and texts."""

    @abstractmethod
    def table(self, name: str, table: Table, step: int | None = None) -> None:
        """Logs a table, which replaces an earlier one of the same name."""

    @abstractmethod
    def files(self, name: str, kind: str, files: Mapping[str, Path | str]) -> None:
        """Logs an artifact of a kind (config, code, results, model).

        Args:
            files: name in the artifact -> path of the file, or its text.
        """

    @abstractmethod
    def close(self, *, failed: bool) -> list[str]:
        """Ends the run, as failed or finished. Returns lines to print: where the run is, how to upload it."""
