"""The dashboard, by the JSON that W&B stores; files for `wandb sweep`, by W&B's code that starts their jobs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import mistake
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from llm2slm.cli import main
from llm2slm.cli.compose import Composer
from llm2slm.tracking.artifacts import conf_folder


def panels(spec: dict[str, Any]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Section -> type and configuration of its panels in a workspace."""
    sections = spec["section"]["panelBankConfig"]["sections"]
    return {s["name"]: [(p["viewType"], p["config"]) for p in s["panels"]] for s in sections}


def made(folder: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    assert main(["dashboard", f"out={folder}", *arguments]) == 0
    workspace, report = (json.loads((folder / f"{name}.json").read_text()) for name in ("workspace", "report"))
    return workspace, report


def test_workspace_and_report_have_the_panels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace, report = made(tmp_path, "metric=chrf", "group=rates", "factors=[model.conditioning,optim.lr]")
    assert "offline" in capsys.readouterr().err
    found = panels(workspace)
    assert list(found) == ["Quality against latency", "Quality kept by factor", "Losses", "Samples"]
    scatter = [config for kind, config in found["Quality against latency"] if kind == "Scatter Plot"]
    axes = [(config["xAxis"], config["yAxis"]) for config in scatter]
    assert axes[:2] == [
        ("summary:latency_ms", "summary:quality/chrf"),
        ("summary:speedup", "summary:quality_kept/chrf"),
    ]
    bars = [config for kind, config in found["Quality kept by factor"] if kind == "Bar Chart"]
    assert [(config["metrics"], config["groupBy"]) for config in bars] == [
        (["summary_metrics.quality_kept/chrf"], "model.value.conditioning"),
        (["summary_metrics.quality_kept/chrf"], "optim.value.lr"),
    ]
    lines = [config for _, config in found["Losses"]]
    assert lines[0]["metrics"] == ["train/loss", "val/loss"] and lines[0]["xAxis"] == "trainer/global_step"
    assert "samples" in json.dumps(found["Samples"])

    grids = [block["metadata"] for block in report["blocks"] if block["type"] == "panel-grid"]
    titles = [block["children"][0]["text"] for block in report["blocks"] if block["type"] == "heading"]
    assert titles == list(found)
    for grid, name in zip(grids, titles, strict=True):
        inner = grid["panelBankSectionConfig"]["panels"]
        assert [(panel["viewType"], panel["config"]) for panel in inner] == found[name]
        [runs] = grid["runSets"]
        assert [(f["key"]["name"], f["op"], f["value"]) for f in runs["filters"]["filters"]] == [
            ("group", "=", "rates")
        ]
    assert '"rates"' in json.dumps(workspace["section"]["runSets"])


def test_without_a_group_all_runs_are_shown(tmp_path: Path) -> None:
    workspace, report = made(tmp_path)
    assert "quality/bleu" in json.dumps(workspace)
    grids = [block["metadata"] for block in report["blocks"] if block["type"] == "panel-grid"]
    assert [runs["filters"]["filters"] for grid in grids for runs in grid["runSets"]] == [[]] * len(grids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mode=online"], "mode=online: not logged in to W&B; run `wandb login`, or set mode=offline"),
        (["mode=sometimes"], "mode=sometimes: unknown; choose auto, online, offline"),
        (["factors=[model.conditionin]"], "factors: model.conditionin is no key of a run; did you mean"),
        (["metric=blue"], "blue"),
    ],
)
def test_mistakes_are_reported_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["dashboard", f"out={tmp_path / 'out'}", *arguments]) == 2
    assert message in mistake(capsys)
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_reported_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main(["dashboard", f"out={tmp_path / 'out'}"]) == 2
    assert mistake(capsys).endswith("pip install 'llm-to-slm[dashboard]'")


SWEEPS = sorted((conf_folder() / "wandb_sweep").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_jobs_of_a_sweep_file_are_valid_commands(path: Path, tmp_path: Path) -> None:
    """The command of a job as W&B's agent expands it, composed by the command line."""
    made(tmp_path, "project=mine", "entity=team")
    sweep = yaml.safe_load((tmp_path / f"sweep_{path.name}").read_text())
    assert (sweep["project"], sweep["entity"]) == ("mine", "team")
    values = {
        name: parameter["values"][-1] if "values" in parameter else parameter["max"]
        for name, parameter in sweep["parameters"].items()
    }
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    command: list[str] = []
    for word in create_sweep_command(list(sweep["command"])):
        command += arguments["args_no_hyphens"] if word == "${args_no_hyphens}" else [word]
    assert command[:3] == ["${env}", "llm2slm", "train"]
    composer = Composer("train")
    config = composer.typed(composer.compose([composer.prepare(word, sweeping=False) for word in command[3:]]))
    assert (config.logger.name, config.logger.mode) == ("wandb", "online")
    for name, value in values.items():
        found: Any = config
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value, name
