"""TensorBoard and MLflow, read back by their libraries; several loggers at once."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import tiny_run

from llm2slm.commands.train import read_curve
from llm2slm.commands.train import run as train
from llm2slm.config import RunConfig
from llm2slm.runs import read_result
from llm2slm.tracking.mlflow_run import flat
from llm2slm.tracking.session import track
from llm2slm.tracking.tracker import Table
from llm2slm.types import UserError

TABLE = Table(["prompt", "slm"], [["<b>|x", None], ["y\nz", "1"]])


def texts(folder: Path, name: str) -> list[str]:
    """The texts of a name in event files."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{name}/text_summary")]


@pytest.mark.slow
def test_tensorboard_has_the_curves_and_the_summary_of_a_training(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    config.logger.name, config.logger.samples = "tensorboard", 1
    train(deepcopy(config), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    curve = read_curve(tmp_path / "run" / "metrics.csv")
    for name in ("train/loss", "val/loss", "train/grad_norm_slm"):
        expected = [(int(row["step"]), pytest.approx(row[name], rel=1e-6)) for row in curve if name in row]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected
    score = read_result(tmp_path / "run")["systems"][0]["quality"]["chrf"]["value"]
    assert events.Scalars("summary/quality/chrf")[-1].value == pytest.approx(score, rel=1e-6)
    assert "max_steps: 8" in texts(tmp_path / "run", "config")[0]
    assert texts(tmp_path / "run", "status") == ["finished"]
    assert len(texts(tmp_path / "run", "samples")) == len(events.Scalars("val/loss")) + 1


def test_a_table_in_tensorboard_shows_texts_verbatim(tmp_path: Path) -> None:
    config = RunConfig()
    config.logger.name = "tensorboard"
    with pytest.raises(ZeroDivisionError), track("label", config, tmp_path) as tracking:
        tracking.table("samples", TABLE)
        raise ZeroDivisionError
    [shown] = texts(tmp_path, "samples")
    assert shown.splitlines() == ["| prompt | slm |", "|---|---|", "| &lt;b&gt;&#124;x |  |", "| y z | 1 |"]
    assert texts(tmp_path, "status") == ["failed"]


@pytest.mark.slow
def test_mlflow_stores_a_run_in_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Created, failed, resumed: one run. Read by the mlflow client."""
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    config = RunConfig(seed=9)
    config.logger.name, config.logger.project = "mlflow", "exp"
    config.logger.artifacts = ["config"]
    config.systems = {"odd name!": {"a": 1}}
    with pytest.raises(ZeroDivisionError), track("train", config, tmp_path / "run") as tracking:
        tracking.metrics({"train/loss": 2.5, "val/bleu": 1.0}, 3)
        raise ZeroDivisionError
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("exp")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["verb"], run.info.run_name) == ("FAILED", "train", "train run")
    assert run.data.params["seed"] == "9" and run.data.params["systems.odd name_.a"] == "1"
    assert run.data.params["optim.name"] == "adamw" and len(run.data.params) > 100
    with track("train", config, tmp_path / "run", resumed=True) as tracking:
        tracking.metrics({"train/loss": 1.5}, 4)
        tracking.table("samples", TABLE)
        tracking.summary({"quality/bleu": 7.0, "device": "CPU"})
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.metrics["quality/bleu"], run.data.tags["device"]) == ("FINISHED", 7.0, "CPU")
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [(3, 2.5), (4, 1.5)]
    stored = Path(client.download_artifacts(run.info.run_id, "samples.json", str(tmp_path)))
    assert json.loads(stored.read_text()) == {"columns": TABLE.columns, "data": TABLE.rows}
    assert [item.path for item in client.list_artifacts(run.info.run_id, "config")] == ["config/config.yaml"]


def test_mlflow_stores_a_run_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig()
    config.logger.name, config.logger.uri = "mlflow+tensorboard", str(tmp_path / "store")
    with track("label", config, tmp_path / "run") as tracking:
        tracking.metrics({"train/loss": 2.5}, 3)
    [metric] = (tmp_path / "store").glob("*/*/metrics/train/loss")
    assert metric.read_text().split()[1:] == ["2.5", "3"]
    assert (tmp_path / "run" / "tensorboard").is_dir()


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_library_is_reported_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    config = RunConfig()
    config.logger.name = name
    with (
        pytest.raises(UserError, match=rf"{name} is not installed; pip install 'llm-to-slm\[loggers\]'"),
        track("train", config, tmp_path / "run"),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_an_unreachable_store_is_reported_on_one_line(tmp_path: Path) -> None:
    config = RunConfig()
    config.logger.name, config.logger.uri = "mlflow", "nonsense://there"
    with (
        pytest.raises(UserError, match=r"MLflow did not start \(.*\); check logger.uri=nonsense://there"),
        track("train", config, tmp_path),
    ):
        pass


def test_nested_keys_are_flattened() -> None:
    assert list(flat({"a": {"b": 1, "c": {}}, "d": [2]})) == [("a.b", 1), ("a.c", {}), ("d", [2])]
