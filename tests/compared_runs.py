"""Run directories as `train`, `evaluate` and `demo` write them, with given answers, for the tests of `compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llm2slm import json_lines, runs
from llm2slm.config import RunConfig
from llm2slm.evaluation.metrics.scores import score
from llm2slm.runs import SpeedRow, Spread, System

METRICS = ("bleu", "chrf", "exact_match")
SOURCES = [
    "der Hund schläft",
    "die Katze <b>frisst</b> & trinkt",
    "zwei kleine Vögel singen",
    "das Haus ist alt",
    "ich lese ein Buch",
    "wir gehen nach Hause",
    "sie sieht den Fluss",
    "er gibt ihr Brot",
]
TARGETS = [
    "the dog sleeps now",
    "the cat <b>eats</b> & drinks",
    "two small birds are singing",
    "the house is old",
    "I am reading a book",
    "we are going home",
    "she sees the river there",
    "he gives her some bread",
]
GOOD = [*TARGETS[:6], "she sees a river there", "he gives her bread"]
POOR = ["the dog", "<script>alert(1)</script>", "two birds sing", *TARGETS[3:5], "we go home", "she sees", ""]


def speed(total_ms: float, speedup: float | None, batch: int = 1) -> SpeedRow:
    """A row of timings at test lengths."""

    def spread(value: float) -> Spread:
        return Spread(value, value * 0.9, value * 1.1)

    return SpeedRow(
        batch, 12.5, 8.0, "test", "float32", 2, "greedy", 1, 3, spread(total_ms / 4), spread(total_ms / 10),
        spread(total_ms), spread(8000 / total_ms), 40.5 + total_ms, 1e6, None if speedup is None else spread(speedup),
    )  # fmt: skip


def system(
    name: str, kind: str, predictions: Sequence[str], targets: Sequence[str] = TARGETS, row: SpeedRow | None = None
) -> System:
    """A system as recorded in its result."""
    sizes = {"llm": 5_000_000, "slm": 700_000}
    parameters = {"total": sizes.get(kind, 2_500_000), "trainable": 0 if kind == "llm" else 700_000}
    quality = score(METRICS, predictions, targets) if any(target.strip() for target in targets) else {}
    return System(name, kind, parameters, quality, speed=[] if row is None else [row])


def write_answers(
    folder: Path, predictions: Sequence[str], sources: Sequence[str] = SOURCES, targets: Sequence[str] = TARGETS
) -> None:
    """predictions.jsonl."""
    texts = zip(sources, targets, predictions, strict=True)
    json_lines.write_jsonl(
        folder / "predictions.jsonl", [{"source": s, "target": t, "prediction": p} for s, t, p in texts]
    )


def write_run(
    folder: Path,
    kind: str,
    predictions: Sequence[str],
    *,
    sources: Sequence[str] = SOURCES,
    targets: Sequence[str] = TARGETS,
    verb: str = "train",
    row: SpeedRow | None = None,
    config: RunConfig | None = None,
) -> Path:
    """A run of one system."""
    result = runs.Result(verb, 1, "0" * 12, 1.0, [system(kind, kind, predictions, targets, row)], device="a processor")
    runs.write_result(folder, result)
    runs.write_config(folder, config or RunConfig())
    write_answers(folder, predictions, sources, targets)
    return folder


def write_demo(folder: Path, answers: Mapping[str, Sequence[str]], timed: bool = True) -> Path:
    """A run of several systems, each with its answers in a folder of its name."""
    totals = {"llm": 100.0, "slm": 20.0}
    systems = []
    for name, predictions in answers.items():
        total = totals.get(name, 25.0)
        systems.append(system(name, name, predictions, row=speed(total, 100 / total) if timed else None))
        write_answers(folder / name, predictions)
        if name != "llm":
            runs.write_config(folder / name, RunConfig())
    baseline = runs.Baseline("llm", "llm") if timed and "llm" in answers else None
    result = runs.Result("demo", 1, "0" * 12, 9.0, systems, device="a processor", baseline=baseline)
    runs.write_result(folder, result)
    runs.write_config(folder, RunConfig())
    return folder
