"""Timing of a trained system and its LLM at the end of `train` (`benchmark.after_training`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.commands.benchmark import Sources, benchmark_systems, share_llms
from llm2slm.commands.device import move_to_device
from llm2slm.config import LLMConfig, RunConfig
from llm2slm.models.build import build_llm
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import SystemKind, UserError


def set_speed(result: runs.Result, config: RunConfig, ready: Any, folder: Path) -> None:
    """Times the trained system and its LLM in interleaved rounds, as `llm2slm benchmark run=RUN`, if
    `benchmark.after_training` is set; the result has the speed of the trained system.

    Args:
        ready: the inputs of the training, with `model` and `data`.
    """
    if not config.benchmark.after_training:
        return
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
