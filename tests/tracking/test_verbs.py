"""Every verb logs a W&B run with its name as job type, its configuration and its results."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from command_line import tiny_overrides
from documented import BENCHMARK, write_inputs
from sampling import representatives
from tiny_runs import tiny_run
from wandb_files import read_run, table_of

from llm2slm.cli import main
from llm2slm.cli.schema import SCHEMAS
from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.resume import stored_result
from llm2slm.commands.train import run as train
from llm2slm.runs import read_result
from llm2slm.types import UserError

COMMANDS: dict[str, list[str]] = {
    "generate": ["run=RUN", "input=texts.txt", "output=answers.jsonl", "max_new_tokens=4"],
    "evaluate": ["run=RUN", "data.test_size=4", "task.max_new_tokens=4", "hydra.run.dir=out"],
    "calibrate": [
        *("run=RUN", "data.validation_size=4", "task.max_new_tokens=4", "calibrate.metric=chrf"),
        *("calibrate.resamples=100", "hydra.run.dir=out"),
    ],
    "label": ["data.test_size=4", "hydra.run.dir=out"],
    "encode": ["hydra.run.dir=out"],
    "benchmark": ["run=RUN", *BENCHMARK, "hydra.run.dir=out"],
    "judge": ["RUN1", "RUN2", "model=judge", "rows=2", "out=out"],
    "export": ["run=RUN", "out=out"],
    "report": ["RUN1", "RUN2", "out=out"],
    "compare": ["RUN1", "RUN2", "resamples=100", "out=out"],
    "tokenizer": ["data.train_size=50", "out=out"],
    "demo": [*BENCHMARK, "hydra.run.dir=out"],
    "costs": ["model/llm=t5_large", "model/slm=t5_small", "hydra.run.dir=out"],
}
SUMMARY = {
    "generate": {"answers"},
    "evaluate": {"quality/bleu", "parameters/total", "wall_seconds"},
    "calibrate": {"quality/chrf", "quality_kept/chrf", "llm/quality/chrf"},
    "label": {"quality/bleu"},
    "encode": {"prompts", "tokens_per_s", "store_mb"},
    "benchmark": {"latency_ms", "speedup", "quality/bleu", "parameters/trainable", "llm/latency_ms"},
    "judge": {"asked/questions", "asked/requests"},
    "export": {"megabytes", "quality/bleu"},
    "tokenizer": {"tokenizer"},
    "demo": {"latency_ms", "speedup", "quality/bleu", "slm/latency_ms", "llm/quality/bleu"},
}
TABLES = {
    "generate": {"samples": ["prompt", "prediction"]},
    "evaluate": {"samples": ["prompt", "reference", "llm2slm"]},
    "label": {"samples": ["prompt", "reference", "llm"]},
    "report": {"samples": ["prompt", "reference", "RUN1: llm2slm", "RUN2: llm2slm"]},
    "export": {"samples": ["prompt", "reference", "llm2slm"]},
    "demo": {"samples": ["prompt", "reference", "llm", "slm", "llm2slm"]},
}


@pytest.mark.parametrize("verb", representatives(list(COMMANDS), ["generate"]))
def test_a_verb_logs_a_run(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path, tiny_llm: Path, request: Any
) -> None:
    write_inputs(tmp_path, trained, tiny_llm)
    monkeypatch.chdir(tmp_path)
    given = list(COMMANDS[verb])
    if verb in ("label", "encode", "demo"):
        given = [*tiny_overrides(tiny_llm), *given]
    if verb == "judge":
        given.append(f"endpoint={request.getfixturevalue('chat').url}")
    assert main([verb, *given, "logger=wandb", "logger.project=mine"]) == 0
    folder = Path("out" if "hydra.run.dir=out" in given else ".")
    run = read_run(folder)
    assert (run["job_type"], run["project"], run["exit"]) == (verb, "mine", 0)
    assert run["name"].startswith(verb) and set(run["artifacts"]) >= {"config", "code"}
    assert run["config"]["logger"]["name"] == "wandb" and run["config"]["llm2slm"]["verb"] == verb
    assert SUMMARY.get(verb, set()) <= set(run["summary"])
    for name, columns in TABLES.get(verb, {}).items():
        assert table_of(folder, run, name)["columns"] == columns
    if verb == "demo":
        for name in ("slm", "llm2slm"):
            inner = read_run(folder / name)
            assert (inner["job_type"], inner["group"], inner["exit"]) == ("train", "out", 0)
    if verb == "generate":
        answers = [json.loads(line)["prediction"] for line in Path("answers.jsonl").read_text().splitlines()]
        assert [row[1] for row in table_of(folder, run)["data"]] == answers


def test_every_verb_is_tested() -> None:
    assert set(COMMANDS) == set(SCHEMAS) - {"train", "dashboard"}  # test_wandb.py, test_dashboard.py


@pytest.mark.slow
def test_one_result_has_quality_kept_latency_and_speedup(tmp_path: Path) -> None:
    """`benchmark.after_training` with `benchmark.baseline`; a second command finds the result complete."""
    config = tiny_run(tmp_path, max_steps=2, val_every=2)
    config.logger.name = "wandb"
    llm = deepcopy(config)
    llm.run, llm.logger.name = str(config.model.llm.name), "csv"
    evaluate(deepcopy(llm), tmp_path / "llm")
    config.benchmark.after_training, config.benchmark.baseline = True, str(tmp_path / "llm")
    config.benchmark.response_tokens, config.benchmark.prompts, config.benchmark.repeats = [4], 2, 1
    config.benchmark.memory = False
    train(deepcopy(config), tmp_path / "run")
    result, run = read_result(tmp_path / "run"), read_run(tmp_path / "run")
    [system] = result["systems"]
    assert result["baseline"] == {"name": "llm", "kind": "llm"}
    quality = read_result(tmp_path / "llm")["systems"][0]["quality"]["chrf"]["value"]
    assert system["quality_kept"]["chrf"] == pytest.approx(system["quality"]["chrf"]["value"] / quality)
    expected = {
        "quality_kept/chrf": system["quality_kept"]["chrf"],
        "latency_ms": system["speed"][0]["total_ms"]["median"],
        "speedup": system["speed"][0]["speedup"]["median"],
    }
    assert {name: run["summary"][name] for name in expected} == expected
    again = deepcopy(config)
    again.run = str(tmp_path / "run")
    assert (
        train(again, tmp_path / "elsewhere").systems[0].speed[0].speedup
        == stored_result(tmp_path / "run").systems[0].speed[0].speedup
    )
    config.data.reps = str(tmp_path / "reps")
    with pytest.raises(UserError, match="timing needs the LLM"):
        train(deepcopy(config), tmp_path / "with-reps")
    config.data.reps, config.benchmark.baseline = None, str(tmp_path / "run")
    with pytest.raises(UserError, match="has no scores of an LLM"):
        train(deepcopy(config), tmp_path / "no-llm")
