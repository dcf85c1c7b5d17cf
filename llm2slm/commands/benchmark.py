"""`llm2slm benchmark run=DIR`: times a system, its LLM and any others, interleaved in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from llm2slm import runs
from llm2slm.commands.evaluate import model_place
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources import languages
from llm2slm.data.tasks import resolve
from llm2slm.evaluation.benchmark import time_systems
from llm2slm.evaluation.memory import folder_memory
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.pretrained import locate
from llm2slm.types import SystemKind, UserError


def run(config: RunConfig, folder: Path) -> runs.Result:
    """Times systems on prompts of the test split and on the grid of `benchmark.*`.

    With `run=DIR`: the trained system and the LLM that guides it. Without: the configured model, untrained if its
    init=random (for timing shapes), and its LLM. `systems.NAME=DIR` adds others.
    """
    from rich.console import Console

    from llm2slm.evaluation.report import terminal_table, write_report

    started = time.perf_counter()
    places: dict[str, tuple[str, str | None]] = {}
    if config.run is not None:
        model = LLM2SLM.from_pretrained(model_place(config.run), llm=config.llm)
        places[model.kind.value] = (model_place(config.run), config.llm)
        llm_name = config.llm or (model.config.llm or {}).get("name")
        systems = {model.kind.value: model}
        if llm_name is not None:
            systems = {"llm": LLM2SLM.from_pretrained(llm_name), **systems}
            places["llm"] = (llm_name, None)
    else:
        systems = configured(config)
    for name, place in config.systems.items():
        if not isinstance(place, str):
            raise UserError(f"systems.{name}: give a run directory or a model's folder or id, as systems.{name}=DIR")
        systems[name] = LLM2SLM.from_pretrained(model_place(place))
        places[name] = (model_place(place), None)
    task = resolve(config.task, languages(config.data))
    data = DataModule(config.data, task, next(iter(systems.values())).collator, config.seed)
    timed = benchmark_systems(systems, places, data, config)
    result = runs.Result("benchmark", config.seed, runs.config_hash(config), time.perf_counter() - started, timed)
    runs.write_config(folder, config)
    runs.write_result(folder, result)
    written = runs.read_result(folder)
    Console().print(terminal_table([written]))
    print(write_report([written], folder, "Benchmark"))
    return result


def configured(config: RunConfig) -> dict[str, LLM2SLM]:
    """The configured system, and before it its LLM writing alone."""
    kind = config.model.kind
    systems: dict[str, LLM2SLM] = {}
    if kind is SystemKind.llm2slm:
        alone = deepcopy(config.model)
        alone.kind = SystemKind.llm
        systems["llm"] = build_model(alone, config.data)
    systems[kind.value] = build_model(config.model, config.data)
    return systems


def benchmark_systems(
    systems: Mapping[str, LLM2SLM],
    places: Mapping[str, tuple[str, str | None]],
    data: DataModule,
    config: RunConfig,
) -> list[runs.System]:
    """Times systems, the LLM first, on the test split.

    Args:
        places: folder of each saved system and of its LLM where that has moved; peak memory on a CPU needs them.
    """
    ordered = sorted(systems, key=lambda name: systems[name].kind is not SystemKind.llm)
    memory = folder_memory(
        {name: locate(place) for name, (place, _) in places.items()},
        {name: llm for name, (_, llm) in places.items()},
        config.benchmark.threads,
    )
    rows = time_systems(
        {name: systems[name].eval() for name in ordered},
        data.examples("test"),
        config.benchmark,
        seed=config.seed,
        memory=memory,
        progress=config.trainer.progress,
    )
    return [
        runs.System(name, systems[name].kind.value, systems[name].parameter_counts(), speed=rows[name])
        for name in ordered
    ]
