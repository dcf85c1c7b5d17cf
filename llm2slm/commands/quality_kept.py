"""Quality kept by a system, relative to a result of its LLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.config import RunConfig
from llm2slm.evaluation.metrics.scores import computed_alike, lower_is_better
from llm2slm.types import SystemKind, UserError


def quality_kept(system: runs.System, baseline: runs.System) -> dict[str, float]:
    """Each metric over the baseline's, if higher is better and both have the same signature and number of rows."""
    return {
        metric: score.value / baseline.quality[metric].value
        for metric, score in system.quality.items()
        if metric in baseline.quality
        and not lower_is_better(metric)
        and baseline.quality[metric].value
        and baseline.quality[metric].n == score.n
        and computed_alike(baseline.quality[metric].signature, score.signature)
    }


def read_baseline(config: RunConfig) -> runs.System | None:
    """The LLM of the result that `benchmark.baseline` names; None without the key.

    Raises:
        UserError: no result, or none of an LLM.
    """
    path = config.benchmark.baseline
    if path is None:
        return None
    stored = runs.read_result(Path(path))
    found: dict[str, Any] | None = next((s for s in stored["systems"] if s["kind"] == SystemKind.llm.value), None)
    if found is None or not found["quality"]:
        raise UserError(
            f"benchmark.baseline={path}: has no scores of an LLM; give the run directory of "
            "`llm2slm evaluate run=LLM` on the same corpus"
        )
    quality = {name: runs.Score(**score) for name, score in found["quality"].items()}
    return runs.System(found["name"], found["kind"], found["parameters"], quality)


def set_quality_kept(result: runs.Result, baseline: runs.System | None) -> None:
    """Sets the quality kept of all systems of a result.

    Raises:
        UserError: no metric of the baseline is comparable (other rows, other signatures).
    """
    if baseline is None:
        return
    for system in result.systems:
        system.quality_kept = quality_kept(system, baseline)
        if not system.quality_kept:
            ours = ", ".join(f"{name} of {score.n} rows" for name, score in system.quality.items())
            theirs = ", ".join(f"{name} of {score.n} rows" for name, score in baseline.quality.items())
            raise UserError(
                f"benchmark.baseline: nothing to compare: the LLM has {theirs or 'no scores'}, this run {ours}; "
                "evaluate the LLM on the same split with the same task.metrics"
            )
    result.baseline = runs.Baseline(baseline.name, baseline.kind)
