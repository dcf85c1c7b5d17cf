"""`llm2slm export`: the exported model loads, gives the same answers and describes its run; errors are one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from command_line import files_of, mistake, without_next
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_runs import tiny_run

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands.train import run as train
from llm2slm.models.hybrid import LLM2SLM

TEXTS = ["The old teacher reads a book.", "two dogs"]
FIVE = {"max_new_tokens": 5, "min_new_tokens": 5}


def answers(folder: Path) -> list[str]:
    return LLM2SLM.from_pretrained(folder).generate_text(TEXTS, **FIVE)


def loaded_in(model: Path) -> str:
    """What the code example of a model's card loads."""
    [found] = re.findall(r"from_pretrained\('(.*?)'\)", (model / "README.md").read_text("utf-8"))
    return str(found)


def test_training_writes_a_model_card(trained: Path) -> None:
    card = ModelCard.load(trained / "model" / "README.md")
    quality = runs.read_result(trained)["systems"][0]["quality"]
    assert {e.metric_type: e.metric_value for e in card.data.eval_results} == {
        key: pytest.approx(score["value"], abs=1e-4) for key, score in quality.items()
    }
    assert "translate English to German: " in card.text
    assert loaded_in(trained / "model") == f"{trained.name}/model"
    LLM2SLM.from_pretrained(trained.parent / loaded_in(trained / "model"))


def test_the_card_of_a_shared_cache_names_its_blocks(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, llm="llama", slm="llama", mode="kv", max_steps=1)
    config.model.kv_blocks = [1, 1, 2, 3]
    config.callbacks.generate_rows = 0
    train(config, tmp_path / "run")
    card = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    assert "keys and values of its blocks 1, 1, 2, 3 are, without a projector, the cache of the prompt of a" in card
    assert ", layer" not in card


def test_an_exported_folder_generates_like_its_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before = files_of(run)
    out = tmp_path / "to" / "give"
    assert main(["export", f"run={run}", f"out={out}", "with_llm=true", "license=mit", "name=Tiny"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    assert files_of(run) == before
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "mit" and "# Tiny\n" in card.text and "'Tiny'" not in card.text
    assert loaded_in(out) == "give"
    assert answers(out) == answers(run / "model")
    # a folder without its run records the prefix
    typed = ["generate", f"prompt={TEXTS[0]}", "max_new_tokens=5", "stream=false"]
    said = []
    for place in (run, out):
        assert main([*typed, f"run={place}"]) == 0
        shown = capsys.readouterr()
        assert not without_next(shown.err)
        said.append(shown.out)
    assert said[0] == said[1]


@pytest.mark.slow
def test_the_same_command_again_changes_nothing_and_another_one_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", f"run={trained}", f"out={tmp_path / 'out'}", "with_llm=true"]

    def ended(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llm2slm.commands.export.card_of_run", ended)
        assert main(arguments) == 130
    assert not list(tmp_path.iterdir())  # no partial files
    (tmp_path / ".out.llm2slm-export").mkdir()  # left by an export that was killed
    (tmp_path / ".out.llm2slm-export" / "half").write_text("x")
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith(" MB, unchanged\n")
    assert main([*arguments, "dtype=bfloat16"]) == 2
    assert "out: holds another model or other files (model.safetensors differs); give a folder" in mistake(capsys)
    assert main(arguments[:-1]) == 2
    assert "out: holds another model or other files (README.md differs); give a folder" in capsys.readouterr().err
    (tmp_path / "out" / "thesis.txt").write_text("x")
    assert main(arguments) == 2
    assert "out: holds another model or other files (thesis.txt is no part of this model); give" in mistake(capsys)
    (tmp_path / "out" / "thesis.txt").unlink()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_are_stored_in_the_given_dtype_and_loaded_in_float32(trained: Path, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    (whole / ".part" / "llm").mkdir(parents=True)  # left by an export that was killed
    assert main(["export", f"run={trained}", f"out={whole}"]) == 0
    assert not (whole / ".part").exists()
    assert main(["export", f"run={trained}/model", f"out={half}", "dtype=bfloat16"]) == 0
    wide, narrow = (load_file(folder / "model.safetensors") for folder in (whole, half))
    assert wide.keys() == narrow.keys()
    for name, tensor in wide.items():
        assert torch.equal(tensor.to(torch.bfloat16), narrow[name]) and narrow[name].dtype == torch.bfloat16
    model = LLM2SLM.from_pretrained(half)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_other_results_are_part_of_the_card(trained: Path, tmp_path: Path) -> None:
    timed = tmp_path / "timed"
    grid = ["benchmark.prompts=2", "benchmark.response_tokens=[4]", "benchmark.repeats=2", "benchmark.memory=false"]
    assert main(["benchmark", f"run={trained}", *grid, "trainer.progress=false", f"hydra.run.dir={timed}"]) == 0
    assert main(["export", f"run={trained}", f"out={tmp_path / 'out'}", f"results=[{timed}]"]) == 0
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    row = next(s for s in runs.read_result(timed)["systems"] if s["kind"] == "llm2slm")["speed"][0]
    assert "## Speed" in text and f"{row['speedup']['median']:.2f}×" in text and "medians of 2 rounds" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "export needs run=DIR"),
        (["run=RUN", "dtype=int8"], "dtype=int8: expected one of float32, bfloat16, float16"),
        (["run=RUN", "out=full"], "out=full: is not empty"),
        (["run=RUN", "push=a/b/c"], "push=a/b/c: give a repository of the Hub"),
        (["run=RUN", "results=[nowhere]"], "nowhere: no such folder"),
        (["run=alone", "name=mine"], "run=alone: records no configuration to write a model card from"),
        (["run=RUN", "out=full/file/more"], "out=full/file/more: "),
        (["run=RUN", "results=[other]"], "results=other: measured other models, none with the weights of this one"),
        (["run=nowhere"], "model 'nowhere' cannot be read"),
        (["run=alone", "license=mit"], "run=alone: records no configuration to write a model card from"),
        (["run=RUN", "push=me/model"], "me/model: not pushed: its LLM is the folder"),
    ],
)
def test_mistakes_are_reported_on_one_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    shutil.copytree(trained / "model", tmp_path / "alone")
    other = json.loads((trained / "result.json").read_text("utf-8"))
    other["systems"][0]["weights"] = "0" * 12
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text(json.dumps(other))
    assert main(["export", *(a.replace("RUN", str(trained)) for a in arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("llm2slm: error: ") and shown.err.count("\n") == 1
    assert said in shown.err
