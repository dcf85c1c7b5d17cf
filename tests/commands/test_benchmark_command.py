"""`benchmark`: which systems it times, against whom, and what it writes. (The timing itself: tests/evaluation.)"""

from __future__ import annotations

import json

import pytest
from tiny_runs import tiny_run

from llm2slm.commands.benchmark import run as benchmark
from llm2slm.commands.train import run as train
from llm2slm.testing import write_tiny_gpt2
from llm2slm.types import Init, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark")


def config_of(root):
    config = tiny_run(root, max_steps=1)
    config.callbacks.generate_rows = 0
    config.benchmark.repeats, config.benchmark.warmup, config.benchmark.prompts = 1, 0, 2
    config.benchmark.response_tokens, config.benchmark.memory = [4], False
    return config


def test_a_run_is_timed_with_its_llm_and_others(root):
    train(config_of(root), root / "run")
    config = config_of(root)
    config.run = str(root / "run")
    config.systems = {"other": str(write_tiny_gpt2(root / "other"))}
    result = benchmark(config, root / "timed")
    assert [(s.name, s.kind) for s in result.systems] == [("llm", "llm"), ("other", "llm"), ("llm2slm", "llm2slm")]
    stored = json.loads((root / "timed" / "result.json").read_text())
    assert stored["verb"] == "benchmark"
    llm = stored["systems"][0]["speed"]
    for system in stored["systems"]:
        for row, reference in zip(system["speed"], llm, strict=True):
            assert row["response_tokens"] == reference["response_tokens"]
            expected = reference["total_ms"]["median"] / row["total_ms"]["median"]  # one round: no median of ratios
            assert row["speedup"]["median"] == pytest.approx(expected)
            split = row["prefill_ms"]["median"] + row["ms_per_token"]["median"] * (row["response_tokens"] - 1)
            assert row["total_ms"]["median"] == pytest.approx(split, rel=0.05) or row["lengths"] == "test"
    assert (root / "timed" / "report.html").is_file()


def test_an_untrained_model_is_timed_from_its_configuration(root):
    config = config_of(root)
    config.model.slm.init = Init.random
    result = benchmark(config, root / "shapes")
    assert [s.name for s in result.systems] == ["llm", "llm2slm"]
    assert all(row.total_ms.median > 0 for s in result.systems for row in s.speed)


def test_a_system_that_is_no_folder_is_one_line(root):
    config = config_of(root)
    config.systems = {"other": {"model": {"kind": "slm"}}}
    with pytest.raises(UserError, match=r"systems\.other: give a run directory"):
        benchmark(config, root / "bad")
