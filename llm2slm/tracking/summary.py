"""The final values of a run, from its `result.json`: quality, quality kept, latency, speedup, parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm2slm.tracking.tracker import Table

SYSTEM_COLUMNS = (
    "system",
    "kind",
    "total_parameters",
    "trainable_parameters",
    "latency_ms",
    "ms_per_token",
    "speedup",
)


def of_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a result: values of its main system by plain names (`quality/bleu`, `latency_ms`), so that runs of
    a sweep can be plotted against each other; with several systems, values of each one as `SYSTEM/quality/bleu` too.

    The main system is the last one that is not the baseline: a hybrid follows its LLM and the SLM alone.
    """
    systems = list(result["systems"])
    baseline = (result.get("baseline") or {}).get("name")
    found: dict[str, Any] = {"wall_seconds": result["wall_seconds"], "device": result["device"], "seed": result["seed"]}
    chosen = result.get("selection")
    if chosen:
        found |= {f"selection/{name}": chosen[name] for name in ("metric", "value", "step")}
    if len(systems) > 1:
        for system in systems:
            found |= {f"{system['name']}/{name}": value for name, value in of_system(system).items()}
    others = [system for system in systems if system["name"] != baseline]
    if systems:
        main = (others or systems)[-1]
        found |= {"system": main["name"], "kind": main["kind"], **of_system(main)}
    return {name: value for name, value in found.items() if value is not None}


def of_system(system: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one system. Times are medians of the first row of speeds: of prompts of the split, at the first
    batch size."""
    found: dict[str, Any] = {f"parameters/{name}": count for name, count in system["parameters"].items()}
    found |= {f"quality/{name}": score["value"] for name, score in system["quality"].items()}
    found |= {f"quality_kept/{name}": value for name, value in (system.get("quality_kept") or {}).items()}
    found |= {f"validation/{name}": value for name, value in (system.get("validation") or {}).items()}
    notes = system.get("notes") or {}
    found |= {name: notes[name] for name in ("training_seconds", "optimizer_steps") if name in notes}
    for row in system["speed"][:1]:
        found |= {"latency_ms": row["total_ms"]["median"]}
        found |= {name: row[name]["median"] for name in ("prefill_ms", "ms_per_token", "tokens_per_s")}
        found |= {"speedup": row["speedup"]["median"] if row.get("speedup") else None}
        found |= {"peak_memory_mb": row["peak_memory_mb"], "flops": row["flops"], "batch": row["batch"]}
    return found


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, int | float]:
    """The numbers in nested values, by names joined with "/"; texts, lists and None are left out."""
    found: dict[str, int | float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
    return found


def systems_table(result: Mapping[str, Any]) -> Table:
    """A row for each system: kind, parameters, latency, speedup, quality and quality kept."""
    rows = [(system["name"], system["kind"], of_system(system)) for system in result["systems"]]
    names = dict.fromkeys(name for _, _, values in rows for name in values)
    scores = [name for name in names if name.startswith(("quality/", "quality_kept/"))]
    return Table(
        [*SYSTEM_COLUMNS, *scores],
        [
            [
                name,
                kind,
                values.get("parameters/total"),
                values.get("parameters/trainable"),
                *(values.get(column) for column in ("latency_ms", "ms_per_token", "speedup", *scores)),
            ]
            for name, kind, values in rows
        ],
    )


def sample_table(systems: Mapping[str, list[dict[str, str]]], rows: int) -> Table:
    """Prompt, reference and the prediction of each system, for the first rows (by system: its `samples`)."""
    first = next(iter(systems.values()), [])[:rows]
    answers = {name: {row["source"]: row["prediction"] for row in found} for name, found in systems.items()}
    return Table(
        ["prompt", "reference", *systems],
        [[row["source"], row["target"], *(found.get(row["source"]) for found in answers.values())] for row in first],
    )
