"""The summary of a result, and its tables, against values written by hand."""

from __future__ import annotations

from typing import Any

from llm2slm import runs
from llm2slm.tracking.summary import numbers, of_result, sample_table, systems_table


def row(total: float, speedup: float | None) -> runs.SpeedRow:
    spread = [runs.Spread(value, value, value) for value in (3.0, 0.5, total, 99.0)]
    found = runs.SpeedRow(2, 7.0, 9.0, "test", "float32", 1, "greedy", 1, 3, *spread, peak_memory_mb=12.5, flops=None)
    found.speedup = None if speedup is None else runs.Spread(speedup, speedup, speedup)
    return found


def result() -> dict[str, Any]:
    llm = runs.System(
        "llm", "llm", {"total": 100, "trainable": 0}, {"bleu": runs.Score(40.0, "s", 5)}, [row(30.0, None)]
    )
    slm = runs.System("slm", "slm", {"total": 10, "trainable": 10}, {"bleu": runs.Score(20.0, "s", 5)}, [row(5.0, 6.0)])
    slm.quality_kept, slm.validation, slm.notes = (
        {"bleu": 0.5},
        {"loss": 2.5},
        {"training_seconds": 4.0, "split": "test"},
    )
    chosen = runs.Selection("val/loss", "min", 2.5, 30)
    found = runs.Result("demo", 7, "hash", 12.0, [llm, slm], chosen, device="CPU", baseline=runs.Baseline("llm", "llm"))
    plain: dict[str, Any] = runs.plain(found)
    return plain


def test_the_main_system_has_plain_names_and_each_system_prefixed_ones() -> None:
    found = of_result(result())
    own = {
        "parameters/total": 10,
        "parameters/trainable": 10,
        "quality/bleu": 20.0,
        "quality_kept/bleu": 0.5,
        "validation/loss": 2.5,
        "training_seconds": 4.0,
        "latency_ms": 5.0,
        "prefill_ms": 3.0,
        "ms_per_token": 0.5,
        "tokens_per_s": 99.0,
        "speedup": 6.0,
        "peak_memory_mb": 12.5,
        "batch": 2,
    }
    llm = {name: found.pop(name) for name in list(found) if name.startswith("llm/")}
    assert (llm["llm/quality/bleu"], llm["llm/latency_ms"], "llm/speedup" in llm) == (40.0, 30.0, False)
    assert found == own | {f"slm/{name}": value for name, value in own.items()} | {
        "wall_seconds": 12.0,
        "device": "CPU",
        "seed": 7,
        "selection/metric": "val/loss",
        "selection/value": 2.5,
        "selection/step": 30,
        "system": "slm",
        "kind": "slm",
    }


def test_the_table_has_a_row_for_each_system() -> None:
    table = systems_table(result())
    assert [dict(zip(table.columns, row, strict=True)) for row in table.rows] == [
        {
            "system": "llm", "kind": "llm", "total_parameters": 100, "trainable_parameters": 0, "latency_ms": 30.0,
            "ms_per_token": 0.5, "speedup": None, "quality/bleu": 40.0, "quality_kept/bleu": None,
        },
        {
            "system": "slm", "kind": "slm", "total_parameters": 10, "trainable_parameters": 10, "latency_ms": 5.0,
            "ms_per_token": 0.5, "speedup": 6.0, "quality/bleu": 20.0, "quality_kept/bleu": 0.5,
        },
    ]  # fmt: skip


def test_samples_are_matched_by_their_source() -> None:
    llm = [{"source": "a", "target": "A", "prediction": "1"}, {"source": "b", "target": "B", "prediction": "2"}]
    slm = [{"source": "b", "target": "B", "prediction": "3"}]
    table = sample_table({"llm": llm, "slm": slm}, 5)
    assert (table.columns, table.rows) == (
        ["prompt", "reference", "llm", "slm"], [["a", "A", "1", None], ["b", "B", "2", "3"]],
    )  # fmt: skip
    assert sample_table({"llm": llm}, 1).rows == [["a", "A", "1"]] and sample_table({}, 3).rows == []


def test_numbers_of_nested_values_are_collected() -> None:
    assert numbers({"a": 1, "b": {"c": 2.5, "d": "x", "e": [1], "f": None, "g": True}}) == {"a": 1, "b/c": 2.5}
