"""Controls in the commands: trained, resumed, tested, timed, compared like any hybrid, and distinguished by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import mistake, tiny_overrides
from safetensors.torch import load_file
from sampling import representatives
from tiny_runs import assert_same, build, tiny_run

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands.benchmark import run as benchmark
from llm2slm.commands.compare import run as compare
from llm2slm.commands.encode import run as encode
from llm2slm.commands.label import labelling_system
from llm2slm.commands.preflight import check_context_length
from llm2slm.commands.train import run as train
from llm2slm.config import CompareConfig, RunConfig
from llm2slm.data.collate import Encoded
from llm2slm.models import families
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import Control, StoreDtype, UserError

CONTROLS = ("constant", "shuffled", "zero")
WARNINGS = {
    "constant": "it gets the same constant representation for every prompt",
    "shuffled": "it gets the LLM's representation of another prompt",
    "zero": "it gets zeros in place of the LLM's representations",
}


def controlled(root: Path, control: str, **more: Any) -> RunConfig:
    config = tiny_run(root, **more)
    config.model.control = Control(control)
    return config


def losses(folder: Path) -> list[dict[str, float]]:
    rows = (folder / "metrics.csv").read_text().splitlines()
    found = [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]
    names = ("train/loss", "val/loss")  # not both in every row
    return [{name: float(row[name]) for name in names if row[name]} for row in found]


def close(rows: list[dict[str, float]]) -> list[Any]:
    """Equal up to rounding: the order of a summation may depend on addresses in memory."""
    return [pytest.approx(row, rel=1e-5) for row in rows]


@pytest.mark.parametrize("control", representatives(CONTROLS, ["shuffled"]))
def test_a_control_is_trained_tested_saved_and_resumed(
    control: str, tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, again = tmp_path / "run", tmp_path / "again"
    assert main(["train", *tiny_overrides(tiny_llm), f"model.control={control}", f"hydra.run.dir={folder}"]) == 0
    assert runs.read_config(folder)["model"]["control"] == control
    [system] = runs.read_result(folder)["systems"]
    assert (system["name"], system["kind"]) == (f"llm2slm, {control}", "llm2slm")
    assert system["notes"]["control"] == control
    assert LLM2SLM.from_pretrained(folder / "model").control is Control(control)
    card = (folder / "model" / "README.md").read_text()
    assert f"**A control (`model.control={control}`) for comparison, not for use" in card
    capsys.readouterr()
    assert main(["generate", f"run={folder}", "prompt=a dog", "max_new_tokens=2"]) == 0
    assert f"llm2slm: warning: {folder} is a control: {WARNINGS[control]}" in capsys.readouterr().err
    assert main(["evaluate", f"run={folder}", f"hydra.run.dir={again}"]) == 0
    [judged] = runs.read_result(again)["systems"]
    assert (judged["name"], judged["quality"]) == (system["name"], system["quality"])
    assert main(["label", f"run={folder}", "split=validation", f"hydra.run.dir={tmp_path / 'labels'}"]) == 0
    [wrote] = runs.read_result(tmp_path / "labels")["systems"]
    assert (wrote["name"], wrote["notes"]["control"]) == (system["name"], control)
    assert (again / "predictions.jsonl").read_text() == (folder / "predictions.jsonl").read_text()
    assert main(["train", f"run={folder}", *tiny_overrides(tiny_llm), f"model.control={control}",
                 "trainer.max_steps=3"]) == 0  # fmt: skip
    assert runs.read_result(folder)["systems"][0]["notes"]["optimizer_steps"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("control", representatives(CONTROLS, ["shuffled"]))
def test_a_resumed_control_equals_an_uninterrupted_one(control: str, tmp_path: Path) -> None:
    def config(steps: int) -> RunConfig:
        made = controlled(tmp_path, control, mode="memory", max_steps=steps, val_every=2)
        made.optim.schedule, made.callbacks.generate_rows = "constant", 0
        return made

    train(config(4), tmp_path / "whole")
    train(config(2), tmp_path / "half")
    longer = config(4)
    longer.run = str(tmp_path / "half")
    train(longer, tmp_path / "half")
    whole, half = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "half"))
    assert_same(half, whole)


@pytest.mark.slow
@pytest.mark.parametrize("control", representatives(CONTROLS, ["shuffled"]))
def test_a_control_is_trained_identically_from_a_store(control: str, tmp_path: Path) -> None:
    plain = tiny_run(tmp_path, slm="gpt2")
    plain.encode.dtype = StoreDtype.float32
    encode(plain, tmp_path / "kept")
    live = train(controlled(tmp_path, control, slm="gpt2"), tmp_path / "live")
    stored = controlled(tmp_path, control, slm="gpt2")
    stored.data.reps = str(tmp_path / "kept" / "reps")
    found = train(stored, tmp_path / "stored")
    assert losses(tmp_path / "stored") == close(losses(tmp_path / "live"))
    assert found.systems[0].quality == live.systems[0].quality
    train(plain, tmp_path / "plain")
    assert losses(tmp_path / "live") != close(losses(tmp_path / "plain"))


@pytest.mark.slow
def test_a_sweep_over_controls_is_composed(calls: list[tuple[Any, Path]]) -> None:
    assert main(["train", "-m", "hydra/launcher=basic", "model.control=none,constant,shuffled,zero"]) == 0
    assert [config.model.control.value for config, _ in calls] == ["none", *CONTROLS]


@pytest.mark.parametrize("kind", ["slm", "llm"])
def test_a_system_without_an_encoding_llm_is_refused(kind: str, tiny_llm: Path, tmp_path: Path, capsys: Any) -> None:
    wrong = [f"model={kind}", "model.control=shuffled", f"hydra.run.dir={tmp_path / 'never'}"]
    assert main(["train", *tiny_overrides(tiny_llm), *wrong]) != 0
    said = mistake(capsys)
    assert said.startswith("model.control=shuffled: ") and f"model.kind={kind}" in said
    assert said.endswith("use model.control=none")
    assert main(["train", "model.control=shufled"]) != 0
    assert "model.control=shufled: expected one of none, constant, shuffled, zero" in mistake(capsys)


@pytest.mark.slow
def test_the_llm_labels_and_is_timed_independently_of_the_control(tmp_path: Path) -> None:
    config = controlled(tmp_path, "constant")
    assert labelling_system(config).model.label == "llm"
    config.benchmark.repeats, config.benchmark.warmup, config.benchmark.prompts = 1, 0, 0
    config.benchmark.prompt_tokens, config.benchmark.response_tokens, config.benchmark.memory = [9], [4], False
    llm, control = benchmark(config, tmp_path / "constant").systems
    assert ([llm.name, control.name], control.notes["control"]) == (["llm", "llm2slm, constant"], "constant")
    assert "control" not in llm.notes
    config.model.control = Control.shuffled
    _, shuffled = benchmark(config, tmp_path / "shuffled").systems
    config.model.control = Control.none
    _, plain = benchmark(config, tmp_path / "none").systems
    assert plain.name == "llm2slm"
    assert shuffled.speed[0].flops == plain.speed[0].flops
    reads = families.encoder_stack(build_model(config.model).encoder.body.config.to_dict()).flops(9, 9)
    assert plain.speed[0].flops - control.speed[0].flops == pytest.approx(reads)  # it does not run the LLM


@pytest.mark.slow
def test_saved_controls_are_timed_under_their_names(tmp_path: Path) -> None:
    config = controlled(tmp_path, "zero")
    build_model(config.model).save_pretrained(tmp_path / "saved")
    config.benchmark.repeats, config.benchmark.warmup, config.benchmark.prompts = 1, 0, 1
    config.benchmark.response_tokens, config.benchmark.memory = [], True
    config.run, config.model = str(tmp_path / "saved"), RunConfig().model
    systems = benchmark(config, tmp_path / "out").systems
    assert [system.name for system in systems] == ["llm", "llm2slm, zero"]
    assert all(system.speed[0].peak_memory_mb > 0 for system in systems)


@pytest.mark.slow
def test_a_comparison_marks_the_control(tmp_path: Path) -> None:
    """By its label, unless the folder's name contains it."""
    for name, control in (("a", "none"), ("b", "shuffled")):
        train(controlled(tmp_path, control, max_steps=2), tmp_path / name)
    shutil.copytree(tmp_path / "b", tmp_path / "shuffled-2")
    places = [str(tmp_path / name) for name in ("a", "b", "shuffled-2")]
    for baseline in (None, "b", "b, shuffled"):
        compare(CompareConfig(runs=places, baseline=baseline, resamples=100, out=str(tmp_path / "out")), tmp_path)
        found = json.loads((tmp_path / "out" / "compare.json").read_text())
        assert [system["name"] for system in found["systems"]] == ["a", "b, shuffled", "shuffled-2"]
        assert found["baseline"] == ("a" if baseline is None else "b, shuffled")


def test_the_context_length_covers_the_longest_prompt_that_a_control_may_assign(
    tmp_path: Path, monkeypatch: Any
) -> None:
    rows = [Encoded(0, [7] * 10, [7] * 2, [1]), Encoded(1, [7] * 3, [7] * 9, [1])]
    for control, read in (("none", 12), ("shuffled", 19)):
        model, data = build(controlled(tmp_path, control, slm="gpt2", mode="prepend"))
        monkeypatch.setattr(data, "encoded", lambda split: rows)
        room = model.slm.config.max_position_embeddings - read
        data.task = replace(data.task, max_new_tokens=room)
        check_context_length(model, data, "test")
        data.task = replace(data.task, max_new_tokens=room + 1)
        with pytest.raises(UserError, match=rf"test row 0 \({read} tokens\) exceeds"):
            check_context_length(model, data, "test")
