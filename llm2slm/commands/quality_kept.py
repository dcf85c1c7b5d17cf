"""Quality kept and speedup of a trained system: relative to a result of its LLM, and to timings of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.config import LLMConfig, RunConfig
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


def set_speed(result: runs.Result, config: RunConfig, ready: Any, folder: Path) -> None:
    """Times the trained system and its LLM in interleaved rounds, as `llm2slm benchmark run=RUN`, if
    `benchmark.after_training` is set; the result has the speed of the trained system.

    Args:
        ready: the inputs of the training, with `model` and `data`.
    """
    if not config.benchmark.after_training:
        return
    from llm2slm.commands.benchmark import Sources, benchmark_systems, share_llms
    from llm2slm.commands.device import move_to_device
    from llm2slm.models.build import build_llm
    from llm2slm.models.hybrid import LLM2SLM

    model: LLM2SLM = ready.model
    systems, sources = {model.label: model}, Sources({model.label: (str(folder / "model"), None)})
    if model.kind is SystemKind.llm2slm:
        llm: LLMConfig = config.model.llm
        systems, sources["llm"] = {"llm": build_llm(llm, config.data), **systems}, (llm, None)
        share_llms(systems)
    for each in systems.values():
        move_to_device(each, config.trainer.accelerator)
    timed, baseline = benchmark_systems(systems, sources, ready.data, replace(config, run=str(folder)))
    result.systems[0].speed = next(system.speed for system in timed if system.name == model.label)
    if result.baseline is None and model.kind is SystemKind.llm2slm:
        result.baseline = baseline


def check_timing(config: RunConfig) -> None:
    """Refuses `benchmark.after_training` where the LLM cannot be timed.

    Raises:
        UserError: stored representations replace the LLM.
    """
    if config.benchmark.after_training and config.data.reps is not None:
        raise UserError(
            f"benchmark.after_training=true with data.reps={config.data.reps}: timing needs the LLM; time the run "
            "later by `llm2slm benchmark run=RUN`"
        )
