"""`llm2slm benchmark run=DIR`: times a system, its LLM and any others, interleaved in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.commands.evaluate import (
    as_it_is,
    control_note,
    final_split,
    limited,
    limits,
    model_place,
    saved,
    tell_defaults,
)
from llm2slm.commands.place import device_type, place
from llm2slm.config import LLMConfig, ModelConfig, RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources import task_of
from llm2slm.evaluation.benchmark import time_systems
from llm2slm.evaluation.memory import folder_memory
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.pretrained import locate
from llm2slm.models.saving import own_fingerprint
from llm2slm.types import Init, Overlong, SystemKind, UserError

Places = dict[str, tuple[str | LLMConfig, str | None]]
"""By system: its folder and where its LLM has moved to; or for an LLM writing alone, its configuration."""


def run(config: RunConfig, folder: Path) -> runs.Result:
    """Times systems on prompts of the test split and on the grid of `benchmark.*`.

    With `run=DIR`: the trained system and the LLM that guides it. Without: the configured model, untrained if its
    init=random (for timing shapes), and its LLM. `systems.NAME=DIR` adds others.
    """
    from rich.console import Console

    from llm2slm.evaluation.report import terminal_table, write_report

    started = time.perf_counter()
    runs.refuse_another(folder, "benchmark")
    device_type(config.trainer.accelerator)
    for name, where in config.systems.items():
        if not isinstance(where, str):
            raise UserError(f"systems.{name}: give a run directory or a model's folder or id, as systems.{name}=DIR")
    places: Places = {}
    if config.run is not None:
        model = saved(config.run, config.llm)
        tell_defaults(config)
        places[model.label] = (model_place(config.run), config.llm)
        systems = {model.label: model}
        reader = recorded_llm(model, config.llm)
        if reader is not None:
            llm = build_model(ModelConfig(kind=SystemKind.llm, llm=reader), config.data)
            systems = {"llm": as_it_is(llm), **systems}
            places["llm"] = (reader, None)
    else:
        systems = configured(config)
    for name, where in config.systems.items():
        systems[name] = saved(where)
        places[name] = (model_place(where), None)
    for system in systems.values():
        place(limited(system, config.data), config.trainer.accelerator)
    task = task_of(config.task, config.data)
    data = DataModule(config.data, task, next(iter(systems.values())).collator, config.seed)
    timed = benchmark_systems(systems, places, data, config)
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
        systems["llm"] = llm_alone(config)
    model = build_model(config.model, config.data)
    return {**systems, model.label: model}


def llm_alone(config: RunConfig) -> LLM2SLM:
    """The configured LLM as it is, writing alone."""
    return as_it_is(build_model(config.model.llm_alone(), config.data))


def recorded_llm(model: LLM2SLM, moved: str | None) -> LLMConfig | None:
    """The LLM that a saved hybrid reads with: the same revision, dtype and changes; None without guidance.

    Args:
        moved: where it is now, if not where the hybrid says.
    """
    record = model.config.llm
    if record is None:
        return None if moved is None else LLMConfig(name=moved)
    return LLMConfig(
        name=moved or record["name"],
        revision=record.get("revision") if moved in (None, record["name"]) else None,  # a commit is of one place
        init=Init(record.get("init", Init.pretrained.value)),
        config=dict(record.get("config") or {}),
        dtype=record["dtype"],
        attn_implementation=record.get("attn_implementation"),
        quantization=dict(record.get("quantization") or {}),
        prefix=record.get("prefix", ""),
        chat=record.get("chat", False),
    )


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
            systems[name].parameter_counts(),
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
