"""A workspace and a report of W&B for the runs of a project: quality against latency, factors, losses, samples.

Both are built by wandb-workspaces without a network; `publish` sends them to W&B. The files of W&B sweeps in
`conf/wandb_sweep/` use the overrides of this command line; `sweep_files` sets their project.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from llm2slm.config import DashboardConfig
from llm2slm.tracking.artifacts import conf_folder
from llm2slm.types import UserError

LOSSES = ("train/loss", "val/loss")
GRADIENTS = ("train/grad_norm_projector", "train/grad_norm_slm")
RATES = ("train/lr_projector", "train/lr_slm")
THROUGHPUT = ("train/tokens_per_s", "train/padding", "train/utilization")
STEP = "trainer/global_step"
OFFLINE_ENTITY = "ENTITY"
"""In place of the account, which is unknown offline."""


class Dashboard:
    """Workspace and report for one configuration.

    Attributes:
        workspace, report: objects of wandb-workspaces.
    """

    def __init__(self, config: DashboardConfig, metric: str, entity: str | None) -> None:
        workspaces, reports = _libraries()
        self._reports, self._config, self._metric = reports, config, metric
        owner = config.entity or entity or OFFLINE_ENTITY
        filters = f"Group = {json.dumps(config.group)}" if config.group is not None else ""
        sections = [
            workspaces.Section(name=name, panels=panels, is_open=True) for name, panels in self._panels().items()
        ]
        self.workspace = workspaces.Workspace(
            entity=owner,
            project=config.project,
            name=config.title,
            sections=sections,
            runset_settings=workspaces.RunsetSettings(filters=filters),
            settings=workspaces.WorkspaceSettings(x_axis=STEP),
        )
        blocks: list[Any] = [reports.P(text=self._introduction())]
        for name, panels in self._panels().items():
            blocks.append(reports.H1(text=name))
            blocks.append(reports.PanelGrid(runsets=[reports.Runset(name="runs", filters=filters)], panels=panels))
        self.report = reports.Report(
            entity=owner, project=config.project, title=config.title, width="fluid", blocks=blocks
        )

    def specs(self) -> dict[str, Any]:
        """Workspace and report as the JSON values that W&B stores."""
        return {
            "workspace": self.workspace._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True),
            "report": self.report._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        }

    def publish(self) -> list[str]:
        """Creates both at W&B; returns their addresses.

        Raises:
            UserError: W&B refuses, or cannot be reached.
        """
        import wandb

        try:
            self.workspace.save_as_new_view()
            self.report.save()
        except (wandb.Error, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"W&B did not store the dashboard ({reason}); check project={self._config.project} and entity, or set "
                "mode=offline"
            ) from None
        return [str(self.workspace.url), str(self.report.url)]

    def _introduction(self) -> str:
        runs = f"the runs of group {self._config.group}" if self._config.group else "all runs"
        return (
            f"{self._metric} and latency of {runs} of project {self._config.project}. Quality kept and speedup "
            "are relative to the LLM, timed in the same process."
        )

    def _panels(self) -> dict[str, list[Any]]:
        """Section -> its panels; new objects for each call, since a panel belongs to one place."""
        made, metric = self._reports, self._metric
        summary = made.SummaryMetric
        quality, kept = summary(f"quality/{metric}"), summary(f"quality_kept/{metric}")
        latency, speedup = summary("latency_ms"), summary("speedup")
        trade_off = [
            made.ScatterPlot(title=f"{metric} against latency (ms)", x=latency, y=quality),
            made.ScatterPlot(title=f"{metric} kept against speedup", x=speedup, y=kept),
            made.ScatterPlot(
                title=f"{metric} against trainable parameters", x=summary("parameters/trainable"), y=quality, log_x=True
            ),
            made.ParallelCoordinatesPlot(
                title="Factors, latency and quality",
                columns=[
                    *(made.ParallelCoordinatesPlotColumn(metric=self._factor(key)) for key in self._config.factors),
                    made.ParallelCoordinatesPlotColumn(metric=latency),
                    made.ParallelCoordinatesPlotColumn(metric=quality),
                ],
            ),
        ]
        factors = [
            made.BarPlot(
                title=f"{metric} kept by {key}",
                metrics=[kept],
                groupby=self._factor(key),
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            )
            for key in self._config.factors
        ]
        factors.append(made.ParameterImportancePlot(with_respect_to=f"quality/{metric}"))

        def lines(title: str, names: tuple[str, ...]) -> Any:
            return made.LinePlot(title=title, x=STEP, y=list(names))

        return {
            "Quality against latency": trade_off,
            "Quality kept by factor": factors,
            "Losses": [
                lines("Loss", LOSSES),
                lines(f"Validation {metric}", (f"val/{metric}",)),
                lines("Norms of gradients", GRADIENTS),
                lines("Learning rates", RATES),
                lines("Tokens per second, share of padding", THROUGHPUT),
            ],
            "Samples": [made.WeavePanelSummaryTable(table_name="samples", layout=made.Layout(w=24, h=16))],
        }

    def _factor(self, key: str) -> Any:
        """A key of the configuration, as the reports name it."""
        return self._reports.Config(key)


def sweep_files(config: DashboardConfig) -> dict[str, str]:
    """The files for `wandb sweep`, by name: the shipped ones with the project (and account) of the dashboard."""
    found = {}
    for path in sorted((conf_folder() / "wandb_sweep").glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8")) | {"project": config.project}
        if config.entity is not None:
            values["entity"] = config.entity
        comment = path.read_text(encoding="utf-8").partition("\n")[0]
        found[f"sweep_{path.name}"] = f"{comment}\n{yaml.safe_dump(values, sort_keys=False)}"
    return found


def _libraries() -> tuple[Any, Any]:
    """The modules for workspaces and reports.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        from wandb_workspaces import workspaces
    except ImportError:
        raise UserError("dashboard: wandb-workspaces is not installed; pip install 'llm-to-slm[dashboard]'") from None
    return workspaces, reports
