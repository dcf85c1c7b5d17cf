"""MLflow: one run per command, by mlflow's client (mlflow-skinny suffices), in a database or on a server."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from llm2slm.atomic import write_text
from llm2slm.config import LoggerConfig
from llm2slm.tracking.tracker import Facts, Table, Tracker
from llm2slm.types import UserError

DATABASE = "mlflow.db"
"""The default store, as of `mlflow server`: a SQLite file in the working directory."""
LONGEST = 6000
"""Characters of a parameter that MLflow stores."""
MOST_PARAMETERS = 100
"""Parameters of one request."""
NOT_ALLOWED = re.compile(r"[^\w\-. :/]")
"""Characters that names of parameters cannot have."""


class MLflowRun(Tracker):
    """An MLflow run in the experiment `logger.project`. Opening it raises UserError if the store cannot be used."""

    name = "mlflow"

    def __init__(self, cfg: LoggerConfig, facts: Facts) -> None:
        super().__init__(cfg, facts)
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise UserError("logger.name=mlflow: mlflow is not installed; pip install 'llm-to-slm[loggers]'") from None
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.uri = cfg.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / DATABASE}"
        if self.uri.startswith("file:") or "://" not in self.uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # the user chose the folder
        try:
            self._client, self._id = self._open(MlflowClient)
        except (MlflowException, ImportError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"MLflow did not start ({reason}); check logger.uri={self.uri}") from None
        self._step = 0

    def _open(self, client_of: Any) -> tuple[Any, str]:
        """The client and the id of the run: a new one, or the previous one when resuming."""
        path, file = self.facts.folder / "mlflow-run-id", self.uri.removeprefix("sqlite:///")
        with nullcontext() if file == self.uri else FileLock(f"{file}.lock"):
            client = client_of(self.uri)  # creates the tables of a new database, in one process at a time
            found = client.get_experiment_by_name(self.cfg.project)
            experiment = found.experiment_id if found else client.create_experiment(self.cfg.project)
        if self.facts.kept and self.facts.resumed and path.is_file():
            identity = path.read_text(encoding="utf-8").strip()
            client.update_run(identity, status="RUNNING")
            return client, identity
        tags = {"verb": self.facts.verb, "group": self.facts.group or "", "tags": ", ".join(self.facts.tags)}
        run = client.create_run(experiment, run_name=self.facts.name, tags=tags)
        identity = str(run.info.run_id)
        from mlflow.entities import Param

        values = [Param(NOT_ALLOWED.sub("_", name), str(value)[:LONGEST]) for name, value in flat(self.facts.config)]
        for start in range(0, len(values), MOST_PARAMETERS):
            client.log_batch(identity, params=values[start : start + MOST_PARAMETERS])
        if self.facts.kept:
            write_text(path, identity)
        return client, identity

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        self._step, now = step, int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def summary(self, values: Mapping[str, Any]) -> None:
        self.metrics({name: value for name, value in values.items() if isinstance(value, int | float)}, self._step)
        for name, value in values.items():
            if not isinstance(value, int | float):
                self._client.set_tag(self._id, name.replace("/", "."), str(value))

    def table(self, name: str, table: Table, step: int | None = None) -> None:
        del step  # the file has all rows
        content = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
        self._client.log_text(self._id, json.dumps(content, ensure_ascii=False), f"{name}.json")

    def files(self, name: str, kind: str, files: Mapping[str, Path | str]) -> None:
        del name  # artifacts belong to the run
        for inner, content in files.items():
            path = Path(kind) / inner
            if isinstance(content, Path):
                self._client.log_artifact(self._id, str(content), path.parent.as_posix())
            else:
                self._client.log_text(self._id, content, path.as_posix())

    def close(self, *, failed: bool) -> list[str]:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
        return [f"MLflow: mlflow server --backend-store-uri {shlex.quote(self.uri)}"]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
