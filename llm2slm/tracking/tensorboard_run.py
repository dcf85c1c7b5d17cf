"""TensorBoard: event files in the folder `tensorboard` of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llm2slm.atomic import writing
from llm2slm.config import LoggerConfig
from llm2slm.tracking.tracker import Facts, Table, Tracker
from llm2slm.types import UserError


class TensorBoardRun(Tracker):
    """Event files of one run. Files are not part of them: artifacts stay where they are."""

    name = "tensorboard"

    def __init__(self, cfg: LoggerConfig, facts: Facts) -> None:
        super().__init__(cfg, facts)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "logger.name=tensorboard: tensorboard is not installed; pip install 'llm-to-slm[loggers]'"
            ) from None
        self.folder = facts.folder / "tensorboard"
        if not facts.kept:
            self.folder /= facts.name.replace("/", "-")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(self.folder))
        self._step = 0
        self._writer.add_text("config", _preformatted(yaml.safe_dump(facts.config, sort_keys=False)))
        tags = ", ".join(facts.tags)
        self._writer.add_text("run", f"{facts.name} ({facts.verb}); group: {facts.group}; tags: {tags}")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"summary/{name}", value, self._step)
            else:
                self._writer.add_text(f"summary/{name}", _preformatted(str(value)), self._step)

    def table(self, name: str, table: Table, step: int | None = None) -> None:
        lines = [_row(table.columns), "|" + "---|" * len(table.columns), *map(_row, table.rows)]
        self._writer.add_text(name, "\n".join(lines), self._step if step is None else step)

    def files(self, name: str, kind: str, files: Mapping[str, Path | str]) -> None:
        """Nothing: TensorBoard has no artifacts."""

    def close(self, *, failed: bool) -> list[str]:
        self._writer.add_text("status", "failed" if failed else "finished", self._step)
        self._writer.close()
        return [f"TensorBoard: tensorboard --logdir {self.folder}"]


def _row(cells: Any) -> str:
    """A row of a Markdown table; texts are escaped, so that they are shown as they are."""
    return f"| {' | '.join('' if cell is None else _escaped(str(cell)) for cell in cells)} |"


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("|", "&#124;").replace("`", "&#96;").replace("\n", " ")


def _preformatted(text: str) -> str:
    """A text as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
