"""docs/bring-your-own-model.md and the Python of docs/generating.md run in order, unchanged except for sizes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import ROOT
from documented import calls as calls_of
from documented import fenced

from llm2slm.cli import main
from llm2slm.cli.schema import keys
from llm2slm.config import RunConfig
from llm2slm.models import conditioning
from llm2slm.testing import ARCHITECTURES, tiny_tokenizer, write_tiny
from llm2slm.types import Tokenizers

PAGES = [(ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("bring-your-own-model", "generating")]
PAGE, GENERATING = PAGES
CONDITIONING = (ROOT / "docs" / "conditioning.md").read_text(encoding="utf-8")
SMALLER = {
    "train": ["model.llm.dtype=float32", "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.progress=false",
              "optim.warmup_steps=1", "callbacks.generate_rows=1", "task.max_new_tokens=5"],
    "benchmark": ["benchmark.prompts=2", "benchmark.response_tokens=[4]", "benchmark.repeats=1", "benchmark.warmup=0",
                  "benchmark.memory=false", "trainer.progress=false"],
    "generate": ["max_new_tokens=4"],
    "export": ["with_llm=true"],
}  # fmt: skip


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny("t5", "google/flan-t5-base", seed=1)
    write_tiny("llama", "HuggingFaceTB/SmolLM2-135M", seed=2, vocabulary="slm")
    tiny_tokenizer("slm").save_pretrained("HuggingFaceTB/SmolLM2-135M")
    [row] = re.findall(r"^ {4}(\{.*\})$", PAGE, re.MULTILINE)
    for name in ("train", "dev"):
        rows = [json.loads(row) | {"question": f"{name} {i}: {json.loads(row)['question']}"} for i in range(4)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    calls = [call for call in calls_of(PAGE) if call[0] != "tokenizer"]  # test_docs_run.py runs that one
    assert [call[0] for call in calls] == ["train", "benchmark", "generate", "export"]
    for call in calls:
        assert main([*call, *SMALLER[call[0]]]) == 0, capsys.readouterr().err
    capsys.readouterr()
    card = Path("my-model/README.md").read_text()
    assert "(initialized from `SmolLM2-135M` (a local folder))" in card  # its weights, not only its shape
    assert "license: apache-2.0" in card and "## Quality" in card and "## Speed" in card

    names: dict[str, object] = {}
    blocks = fenced(GENERATING, "python")
    assert len(blocks) == 4
    for block in blocks:
        exec(block.replace("max_new_tokens=64", "max_new_tokens=4"), names)
    assert len(names["answers"]) == 1 and capsys.readouterr().out
    assert any(Path("trained").glob("checkpoint-2/model.safetensors"))
    assert Path("my-adapted-model/model.safetensors").is_file()


def test_every_key_and_mode_on_the_page_exists() -> None:
    known = set(keys(RunConfig))
    named = set(re.findall(r"`((?:model|data|task|trainer)(?:\.\w+)+)(?!\(|\w)", "".join([*PAGES, CONDITIONING])))
    assert len(named) > 10
    assert named <= known, named - known
    for member in [*conditioning.names(), *Tokenizers]:
        assert f"| `{member}`" in CONDITIONING or member == "none"
    assert "ARCHITECTURES" not in PAGE and len(ARCHITECTURES) >= 17  # families by their common names
