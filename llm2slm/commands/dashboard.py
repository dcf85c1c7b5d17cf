"""`llm2slm dashboard`: a workspace and a report of W&B for the runs of a project, as JSON files and at W&B."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llm2slm.atomic import write_text
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.output_folder import check_folder
from llm2slm.config import DashboardConfig, DataConfig, RunConfig, TaskConfig
from llm2slm.config.choices import LOGGER_MODES
from llm2slm.data.sources.sources import task_of
from llm2slm.evaluation.metrics.scores import check as check_metrics
from llm2slm.nearest_names import similar
from llm2slm.runs import plain
from llm2slm.tracking.mlflow_run import flat
from llm2slm.types import UserError


def run(config: DashboardConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Writes workspace.json, report.json and files for `wandb sweep` into `config.out`; online, creates workspace and
    report at W&B.

    Raises:
        UserError: unknown mode, metric or factor, or W&B refuses.
    """
    from llm2slm.tracking.dashboard import Dashboard, sweep_files

    online = check(config)
    entity = account() if online and config.entity is None else config.entity
    metric = config.metric or task_of(TaskConfig(), DataConfig()).metrics[0]
    made = Dashboard(config, metric, entity)
    show_held()
    specs = made.specs().items()
    texts = {f"{name}.json": f"{json.dumps(spec, indent=1, ensure_ascii=False)}\n" for name, spec in specs}
    for name, text in (texts | sweep_files(config)).items():
        print(write_text(Path(config.out) / name, text))
    if not online:
        print(
            "llm2slm: offline: workspace and report are files only; after `wandb login`, the same command creates them "
            "at W&B",
            file=sys.stderr,
        )
        return
    for address in made.publish():
        print(address)


def check(config: DashboardConfig) -> bool:
    """Checks the configuration; returns whether the dashboard is created at W&B."""
    from llm2slm.tracking.wandb_run import logged_in

    if config.mode not in LOGGER_MODES:
        raise UserError(f"mode={config.mode}: unknown; choose {', '.join(LOGGER_MODES)}")
    check_metrics([] if config.metric is None else [config.metric])
    known = [name for name, _ in flat(plain(RunConfig()))]
    for key in config.factors:
        if key not in known:
            near = similar(key, known)
            hint = f"did you mean {near}?" if near else "`llm2slm train --help` lists them"
            raise UserError(f"factors: {key} is no key of a run; {hint}")
    check_folder("out", Path(config.out))
    if config.mode == "online" and not logged_in():
        raise UserError("mode=online: not logged in to W&B; run `wandb login`, or set mode=offline")
    return config.mode == "online" or (config.mode == "auto" and logged_in())


def account() -> str:
    """The default entity of the account.

    Raises:
        UserError: W&B cannot be reached.
    """
    import wandb

    try:
        return str(wandb.Api().default_entity)
    except (wandb.Error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"W&B cannot be reached ({reason}); set entity=TEAM and try again, or mode=offline") from None
