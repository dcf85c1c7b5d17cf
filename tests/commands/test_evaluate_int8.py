"""`evaluate decoding=int8` and `auto`: what is generated, and what the result records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import tiny_run
from torch import Tensor

from llm2slm.commands.evaluate import run as evaluate
from llm2slm.config import RunConfig
from llm2slm.decoding import auto, int8
from llm2slm.types import Decoding


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = tiny_run(tmp_path_factory.mktemp("int8"))
    config.data.eval_batch_size, config.task.max_new_tokens = 6, 4  # one batch
    config.run, config.task.metrics = config.model.llm.name, ["chrf", "length_ratio", "perplexity"]
    return config


def responses(folder: Path) -> list[str]:
    return [json.loads(line)["prediction"] for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_changes_by_int8_are_recorded(
    plain: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With scales of the wrong sign all responses change; the first rows are compared."""
    plain.decoding = Decoding.captured
    exact = evaluate(plain, tmp_path / "captured").systems[0]
    assert exact.notes["decoder"] == {"name": "captured"}
    quantized = int8.quantized

    def negated(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
        values, scales_N = quantized(weight_NK)
        return values, -scales_N

    monkeypatch.setattr(int8, "quantized", negated)
    plain.decoding, plain.exact_rows = Decoding.int8, 3
    found = evaluate(plain, tmp_path / "int8").systems[0]
    note = json.loads((tmp_path / "int8" / "result.json").read_text())["systems"][0]["notes"]["decoder"]
    assert note == found.notes["decoder"]
    changes = note["changes"]
    assert (note["name"], changes["against"], changes["rows"]) == ("int8", "captured", 3)
    ours, theirs = responses(tmp_path / "int8"), responses(tmp_path / "captured")
    assert ours != theirs
    differ = sum(a != b for a, b in zip(ours[:3], theirs[:3], strict=True)) / 3
    assert changes["responses"] == pytest.approx(differ) and changes["tokens"] > 0
    assert set(changes["metrics"]) == {"chrf", "length_ratio"}  # of texts alone
    assert "decoding=int8 against captured, 3 rows: " in capsys.readouterr().err
    plain.exact_rows = 10**6
    found = evaluate(plain, tmp_path / "whole").systems[0]
    for name, change in found.notes["decoder"]["changes"]["metrics"].items():
        assert change == pytest.approx(found.quality[name].value - exact.quality[name].value, abs=1e-5)
    assert any(found.notes["decoder"]["changes"]["metrics"].values())
    plain.exact_rows = 0
    assert evaluate(plain, tmp_path / "none").systems[0].notes["decoder"] == {"name": "int8"}


def test_auto_records_the_chosen_decoder(
    plain: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM2SLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto, "measure", lambda decoders, *_: {name: float(name != "eager") + 1 for name in decoders})
    plain.decoding = Decoding.auto
    assert evaluate(plain, tmp_path / "auto").systems[0].notes["decoder"] == {"name": "eager"}
    assert evaluate(plain, tmp_path / "again").systems[0].notes["decoder"] == {"name": "eager"}
    lines = [line for line in capsys.readouterr().err.splitlines() if "decoding=auto: eager" in line]
    assert ["measured now" in line for line in lines] == [True, False]
    monkeypatch.setattr(plain.task, "num_beams", 2)
    assert evaluate(plain, tmp_path / "beams").systems[0].notes["decoder"] == {"name": "eager"}
    assert "decoding=auto: eager (ms for 24 tokens with num_beams=2: " in capsys.readouterr().err


def test_beam_search_uses_the_configured_decoder(
    plain: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`task.num_beams` with captured steps gives the answers of `generate`; with int8, the changes are recorded."""
    monkeypatch.setattr(plain, "exact_rows", 4)
    notes = []
    for decoding, beams in ((Decoding.generate, 1), (Decoding.generate, 3), (Decoding.captured, 3), (Decoding.int8, 3)):
        monkeypatch.setattr(plain, "decoding", decoding)
        monkeypatch.setattr(plain.task, "num_beams", beams)
        notes.append(evaluate(plain, tmp_path / str(len(notes))).systems[0].notes)
    greedy, expected, found = (responses(tmp_path / name) for name in "012")
    assert found == expected != greedy
    assert notes[2]["decoder"] == {"name": "captured"} and notes[2]["decoding"]["num_beams"] == 3
    assert notes[3]["decoder"]["changes"]["rows"] == 4
