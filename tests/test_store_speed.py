"""experiments/store_speed at toy size: equal losses, and a table of the raw rounds."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "store_speed" / "measure.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("store_speed", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["store_speed"] = module  # its dataclass looks up its module there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(study: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    out, before = tmp_path_factory.mktemp("study"), torch.get_num_threads()
    asked = ["--small", "--device", "cpu", "--threads", "1", "--rounds", "3", "--steps", "2", "--rows", "24"]
    try:
        study.main(study.arguments([*asked, "--out", str(out)]))
    finally:
        torch.set_num_threads(before)
    return json.loads((out / "result.json").read_text()), (out / "table.md").read_text()


def trained(result: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    notes = [system["notes"] for system in result["systems"] if "rounds" in system["notes"]]
    return {(note["conditioning"], note["reads"]): note["rounds"] for note in notes}


def losses(rounds: list[dict[str, Any]]) -> list[float]:
    return [loss for one in rounds for loss in one["losses"]]


@pytest.mark.slow
def test_all_systems_run_the_same_training(result: tuple[dict[str, Any], str]) -> None:
    found = trained(result[0])
    assert len(found) == 8
    for (conditioning, reads), rounds in found.items():
        live = found[conditioning, "live"]
        for key in ("rows", "tokens"):
            assert [one[key] for one in rounds] == [one[key] for one in live]
        assert [len(one["losses"]) for one in rounds] == [2, 2, 2, 2]
        near = 1e-6 if reads == "float32" else 1e-3
        assert losses(rounds) == pytest.approx(losses(live), rel=near)
        assert (losses(rounds) != losses(live)) or reads in ("live", "float32")  # otherwise nothing was rounded
    assert losses(found["memory", "live"]) != losses(found["add", "live"])
    one = losses(found["add", "live"])
    assert len(set(one)) == len(one)  # the weights differ at each step


@pytest.mark.slow
def test_the_table_is_computed_from_the_raw_rounds(study: ModuleType, result: tuple[dict[str, Any], str]) -> None:
    """By hand: medians without the warm-up round, ratios paired within rounds, the payback time of encoding."""
    raw, told = result
    assert study.table(raw) == told
    raw = deepcopy(raw)
    for system in raw["systems"]:
        notes = system["notes"]
        if "rounds" not in notes:
            notes["stores"]["float32"] |= {"encode_seconds": 30.0, "bytes": 5_000_000, "prompt_tokens": 1000}
            continue
        for number, one in enumerate(notes["rounds"]):
            one["seconds"] = (99.0, 2.0, 4.0, 5.0)[number] * (2 if notes["reads"] == "live" else 1)
            one |= {"rows": 10, "tokens": 100, "losses": [2.0, 2.0 if notes["reads"] != "int8" else 2.5]}
        notes["epoch_tokens"] = 300
    lines = study.table(raw).splitlines()
    live = "| live | 1.25 (1.00-2.50) | 12 (10-25) | 1.00 (1.00-1.00) | - | - | - | - |"
    kept = "| float32 | 2.50 (2.00-5.00) | 25 (20-50) | 2.00 (2.00-2.00) | 2.5 | 0.0e+00 | 0.0e+00 | 8 of 8 |"
    rounded = "| int8 | 2.50 (2.00-5.00) | 25 (20-50) | 2.00 (2.00-2.00) | 2.5 | 0.0e+00 | 2.5e-01 | 4 of 8 |"
    assert [lines.count(line) for line in (live, kept, rounded)] == [2, 2, 2]
    assert statistics.median([2.0, 4.0, 5.0]) / 100 * 300 * 2.5 == 30.0  # seconds saved per epoch, times epochs
    assert "| float32 | 5.0 | 5000.0 |" in lines
    assert "in 30.0 s (33 tokens/s)" in told.replace(told, "\n".join(lines))


def test_the_path_of_the_corpus_is_removed(study: ModuleType) -> None:
    given = ["--data=/some/where/", "--rounds", "3"]
    asked = study.arguments(given)
    assert (asked.corpus, asked.task, str(asked.data)) == ("samsum", "summarization", "/some/where")
    assert study.command(["measure.py", *given], asked.data) == "python measure.py --data=DIR/ --rounds 3"
    assert study.command(["measure.py", "--small"], None) == "python measure.py --small"
