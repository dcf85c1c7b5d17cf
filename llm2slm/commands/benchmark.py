"""`llm2slm benchmark run=DIR`: times a system, its LLM and any others, interleaved in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.device import device_type, place
from llm2slm.commands.evaluate import control_note, final_split, tell_defaults
from llm2slm.commands.loaded_models import limited, limits, llm_note, load_system, parameters, recorded_llm
from llm2slm.commands.task_choice import tell_task, with_task
from llm2slm.config import LLMConfig, ModelConfig, RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.evaluation.benchmark.peak_memory import folder_memory
from llm2slm.evaluation.benchmark.timing import time_systems
from llm2slm.models.build import build_llm, build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.loading.pretrained import locate
from llm2slm.models.saving import own_fingerprint
from llm2slm.types import Overlong, SystemKind, UserError

Places = dict[str, tuple[str | LLMConfig, str | None]]
"""By system: its folder and where its LLM has moved to; or for an LLM writing alone, its configuration."""


def run(config: RunConfig, folder: Path) -> runs.Result:
    """Times systems on prompts of the test split and on the grid of `benchmark.*`.

    With `run=DIR`: the trained system and the LLM that guides it. Without: the configured model, untrained if its
    init=random (for timing shapes), and its LLM. `systems.NAME=DIR` adds others.
    """
    from rich.console import Console

    from llm2slm.evaluation.report.report import terminal_table, write_report

    started = time.perf_counter()
    runs.refuse_another(folder, "benchmark")
    device_type(config.trainer.accelerator)
    for name, where in config.systems.items():
        if not isinstance(where, str):
            raise UserError(f"systems.{name}: give a run directory or a model's folder or id, as systems.{name}=DIR")
    given, config = config, with_task(config)
    places: Places = {}
    llms: dict[str, LLMConfig] = {}
    if config.run is not None:
        writer = load_system(config.run, config.llm, config.model, config.data, beside=True)
        asked, model = config.model.llm, writer.model
        config = replace(config, model=writer.config)
        tell_defaults(given)
        places[model.label] = (writer.place, config.llm if model.kind is SystemKind.llm2slm else None)
        systems, llms[model.label] = {model.label: model}, writer.config.llm
        reader = recorded_llm(model, config.llm, asked) if model.kind is not SystemKind.llm else None
        if reader is not None:
            systems, llms["llm"] = {"llm": build_llm(reader, config.data), **systems}, reader
            places["llm"] = (reader, None)
    else:
        systems = configured(config)
        llms = dict.fromkeys(systems, config.model.llm)
    for name, where in config.systems.items():
        other = load_system(where, None, ModelConfig(), recorded=False)
        systems[name], llms[name] = other.model, other.config.llm
        places[name] = (other.place, None)
    for system in systems.values():
        place(limited(system, config.data), config.trainer.accelerator)
    task = task_of(config.task, config.data)
    tell_task(given.task, given.data)
    data = DataModule(config.data, task, next(iter(systems.values())).collator, config.seed)
    show_held()
    timed = benchmark_systems(systems, places, data, config)
    for found in timed:
        found.notes |= llm_note(systems[found.name], llms[found.name], found.weights)
    result = runs.Result("benchmark", config.seed, runs.config_hash(config), time.perf_counter() - started, timed)
    result.device = runs.device_name(next(iter(systems.values())).device.type)
    runs.write_config(folder, config)
    runs.write_result(folder, result)
    written = runs.read_result(folder)
    for batch in config.benchmark.batch:
        Console().print(terminal_table([at_batch(written, batch)]))
    print(write_report([written], folder, "Benchmark"))
    return result


def at_batch(result: dict[str, Any], batch: int) -> dict[str, Any]:
    """A result with the speeds at one batch size only."""
    systems = [
        system | {"speed": [row for row in system["speed"] if row["batch"] == batch]} for system in result["systems"]
    ]
    return result | {"systems": systems}


def configured(config: RunConfig) -> dict[str, LLM2SLM]:
    """The configured system, and before it its LLM writing alone.

    Raises:
        UserError: a store in the LLM's place.
    """
    kind = config.model.kind
    if config.data.reps is not None:
        raise UserError(f"data.reps={config.data.reps}: the LLM's reading is a part of what is timed; leave it out")
    systems: dict[str, LLM2SLM] = {}
    if kind is SystemKind.llm2slm:
        systems["llm"] = build_llm(config.model.llm, config.data)
    model = build_model(config.model, config.data)
    return {**systems, model.label: model}


def benchmark_systems(
    systems: Mapping[str, LLM2SLM],
    places: Places,
    data: DataModule,
    config: RunConfig,
) -> list[runs.System]:
    """Times systems, the LLM first, on the test split (validation where a user's own files have none).

    Args:
        places: where each saved system comes from; peak memory on a CPU needs it.
    """
    ordered = sorted(systems, key=lambda name: systems[name].kind is not SystemKind.llm)
    memory = folder_memory(
        {name: where if isinstance(where, LLMConfig) else locate(where) for name, (where, _) in places.items()},
        {name: llm for name, (_, llm) in places.items()},
        config.benchmark.threads,
        limits(config.data),
    )
    rows = time_systems(
        {name: systems[name].eval() for name in ordered},
        data.examples(final_split(config.data)),
        config.benchmark,
        seed=config.seed,
        memory=memory if systems[ordered[0]].device.type == "cpu" else None,
        progress=config.trainer.progress,
    )
    return [
        runs.System(
            name,
            systems[name].kind.value,
            parameters(systems[name]),
            speed=rows[name],
            notes={"data": overlong(systems[name], data)} | control_note(systems[name]),
            weights=own_fingerprint(systems[name]),
        )
        for name in ordered
    ]


def overlong(model: LLM2SLM, data: DataModule) -> dict[str, dict[str, Any]]:
    """What became of over-long rows. Each system cuts by its own tokenizers and positions; rows are dropped for all."""
    if data.config.overlong is not Overlong.truncate:
        return data.report()
    own = DataModule(data.config, data.task, model.collator, data.seed)
    own.encoded(final_split(data.config))
    return own.report()
