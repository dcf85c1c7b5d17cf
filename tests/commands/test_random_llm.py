"""A hybrid of an LLM with random weights cannot be loaded: this is said before training, and no command is advised."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import tiny_overrides
from tiny_runs import tiny_run

from llm2slm.cli import main
from llm2slm.commands.demo import check
from llm2slm.types import UserError

LOST = "the LLM has random weights, which are not saved: the trained model cannot be loaded"


@pytest.mark.parametrize(
    "given", [["model.llm.init=random"], ["model.llm.name=null", "model.llm.tokenizer=LLM", "model.llm.config=CONFIG"]]
)
def test_a_hybrid_of_a_random_llm_is_announced_and_not_advised(
    tiny_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    folder = tmp_path / "run"
    config = "{model_type: t5, d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}"
    given = [each.replace("LLM", str(tiny_llm)).replace("CONFIG", config) for each in given]
    assert main(["train", *tiny_overrides(tiny_llm), *given, f"hydra.run.dir={folder}"]) == 0
    shown = capsys.readouterr().err
    assert shown.count(LOST) == 1 and f"llm2slm: warning: {LOST}; " in shown
    assert "next:" not in shown
    card = (folder / "model" / "README.md").read_text("utf-8")
    assert "cannot be loaded: its LLM has random weights" in card and "from_pretrained" not in card
    assert main(["train", f"run={folder}", "trainer.max_steps=3"]) == 0
    shown = capsys.readouterr().err
    assert shown.count(LOST) == 1 and "next:" not in shown
    assert main(["evaluate", f"run={folder}"]) == 2
    assert re.search(r"LLM with random weights, which no file holds; it cannot be loaded", capsys.readouterr().err)


@pytest.mark.parametrize("given", [[], ["model=llm", "model.llm.init=random"], ["model=slm", "model.slm.init=random"]])
def test_other_models_are_loaded_and_benchmarked(
    tiny_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", *tiny_overrides(tiny_llm), *given, f"hydra.run.dir={folder}"]) == 0
    shown = capsys.readouterr().err
    assert "random weights" not in shown and f"next: llm2slm benchmark run={folder}\n" in shown


def test_demo_refuses_a_system_that_it_cannot_load(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    config.systems = {"guided": {"model": {"llm": {"init": "random"}}}}
    with pytest.raises(UserError, match=r"^systems\.guided: the LLM has random weights, which are not saved"):
        check(config)
    config.systems = {"guided": {"model": {"kind": "llm", "conditioning": "none", "llm": {"init": "random"}}}}
    check(config)
