"""`llm2slm benchmark run=DIR`: times a system, its LLM and any others, interleaved in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.device import device_type, move_to_device
from llm2slm.commands.evaluate import control_note, final_split, print_defaults
from llm2slm.commands.loaded_models import limited, limits, llm_note, load_system, parameters, recorded_llm
from llm2slm.commands.task_choice import print_task, with_task
from llm2slm.config import LLMConfig, ModelConfig, RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.evaluation.benchmark.peak_memory import folder_memory
from llm2slm.evaluation.benchmark.timing import time_systems
from llm2slm.models.build import build_llm, build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.llm import share_weights
from llm2slm.models.loading.configs import locate
from llm2slm.models.saving import own_fingerprint
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.types import Overlong, SystemKind, UserError

Sources = dict[str, tuple[str | LLMConfig, str | None]]
"""System -> its folder (for an LLM that generates alone, its configuration), and the path of its LLM if that moved."""


def run(config: RunConfig, folder: Path) -> runs.Result:
    """Times systems on prompts of the test split and on the grid of `benchmark.*`; speedups are relative to the LLM.

    With `run=DIR`: the trained system and its LLM. Without: the configured model, untrained if its init=random (to time
    shapes), and its LLM. `systems.NAME=DIR` adds others.
    """
    from rich.console import Console

    from llm2slm.evaluation.report.report import terminal_table, write_report

    started = time.perf_counter()
    runs.refuse_another(folder, "benchmark")
    device_type(config.trainer.accelerator)
    check_loggers(config.logger)
    for name, path in config.systems.items():
        if not isinstance(path, str):
            raise UserError(f"systems.{name}: give a run directory, a model folder or a Hub id, as systems.{name}=DIR")
    given, config = config, with_task(config)
    sources: Sources = {}
    llms: dict[str, LLMConfig] = {}
    if config.run is not None:
        loaded = load_system(config.run, config.llm, config.model, config.data, comparable=True)
        given_llm, model = config.model.llm, loaded.model
        config = replace(config, model=loaded.config)
        print_defaults(given)
        sources[model.label] = (loaded.source, config.llm if model.kind is SystemKind.llm2slm else None)
        systems, llms[model.label] = {model.label: model}, loaded.config.llm
        llm = recorded_llm(model, config.llm, given_llm) if model.kind is not SystemKind.llm else None
        if llm is not None:
            systems, llms["llm"] = {"llm": build_llm(llm, config.data), **systems}, llm
            sources["llm"] = (llm, None)
    else:
        systems = configured(config)
        llms = dict.fromkeys(systems, config.model.llm)
    for name, path in config.systems.items():
        other = load_system(path, None, ModelConfig(), recorded=False)
        systems[name], llms[name] = other.model, other.config.llm
        sources[name] = (other.source, None)
    share_llms(systems)
    for each in systems.values():
        move_to_device(limited(each, config.data), config.trainer.accelerator)
    task = task_of(config.task, config.data)
    print_task(given.task, given.data)
    data = DataModule(config.data, task, next(iter(systems.values())).collator, config.seed)
    show_held()
    with track("benchmark", config, folder) as tracking:
        timed, baseline = benchmark_systems(systems, sources, data, config)
        for system in timed:
            system.notes |= llm_note(systems[system.name], llms[system.name], system.weights)
        result = runs.Result("benchmark", config.seed, runs.config_hash(config), time.perf_counter() - started, timed)
        result.baseline = baseline
        result.device = runs.device_name(next(iter(systems.values())).device.type)
        runs.write_config(folder, config)
        runs.write_result(folder, result)
        tracking.result(result, folder)
        tracking.summary(recorded_quality(config.run, timed))
    written = runs.read_result(folder)
    for batch in config.benchmark.batch:
        Console().print(terminal_table([at_batch(written, batch)]))
    print(write_report([written], folder, "Benchmark"))
    return result


def recorded_quality(run: str | None, timed: Sequence[runs.System]) -> dict[str, float]:
    """The test scores that the run of a timed system recorded, for the loggers: one run has quality and latency."""
    home = None if run is None else runs.home(run)
    if home is None or not (home / "result.json").is_file():
        return {}
    weights = [system.weights for system in timed]
    found = [system for system in runs.read_result(home)["systems"] if system.get("weights") in weights]
    kept = {f"quality_kept/{name}": value for s in found[:1] for name, value in s["quality_kept"].items()}
    return kept | {f"quality/{name}": score["value"] for s in found[:1] for name, score in s["quality"].items()}


def share_llms(systems: Mapping[str, LLM2SLM]) -> None:
    """Makes each hybrid share the weights of its LLM if that is among the systems."""
    llms = [model for model in systems.values() if model.kind is SystemKind.llm]
    for model in systems.values():
        any(share_weights(model, llm) for llm in llms)


def at_batch(result: dict[str, Any], batch: int) -> dict[str, Any]:
    """A result with the speeds at one batch size only."""
    systems = [
        system | {"speed": [row for row in system["speed"] if row["batch"] == batch]} for system in result["systems"]
    ]
    return result | {"systems": systems}


def configured(config: RunConfig) -> dict[str, LLM2SLM]:
    """The configured system, preceded by its LLM as a system that generates alone.

    Raises:
        UserError: stored representations are configured instead of the LLM.
    """
    kind = config.model.kind
    if config.data.reps is not None:
        raise UserError(f"data.reps={config.data.reps}: benchmark times the LLM's encoder too; remove the key")
    systems: dict[str, LLM2SLM] = {}
    if kind is SystemKind.llm2slm:
        systems["llm"] = build_llm(config.model.llm, config.data)
    model = build_model(config.model, config.data)
    return {**systems, model.label: model}


def benchmark_systems(
    systems: Mapping[str, LLM2SLM],
    sources: Sources,
    data: DataModule,
    config: RunConfig,
) -> tuple[list[runs.System], runs.Baseline | None]:
    """Times systems on the test split (the validation split if the user's files have no test split).

    Args:
        sources: of each saved system, to measure its peak memory on a CPU.

    Returns:
        The systems, LLMs first, and the baseline of their speedups: the first LLM; None without one.
    """
    ordered = sorted(systems, key=lambda name: systems[name].kind is not SystemKind.llm)
    memory = folder_memory(
        {name: path if isinstance(path, LLMConfig) else locate(path) for name, (path, _) in sources.items()},
        {name: llm for name, (_, llm) in sources.items()},
        config.benchmark.threads,
        limits(config.data),
    )
    first = systems[ordered[0]]
    baseline = runs.Baseline(ordered[0], first.kind.value) if first.kind is SystemKind.llm else None
    rows = time_systems(
        {name: systems[name].eval() for name in ordered},
        data.examples(final_split(config.data)),
        config.benchmark,
        baseline=None if baseline is None else baseline.name,
        seed=config.seed,
        memory=memory if first.device.type == "cpu" else None,
        progress=config.trainer.progress,
    )
    timed = [
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
    return timed, baseline


def overlong(model: LLM2SLM, data: DataModule) -> dict[str, dict[str, Any]]:
    """Statistics of over-long rows. Each system truncates by its tokenizers and positions; rows are dropped for all."""
    if data.config.overlong is not Overlong.truncate:
        return data.report()
    of_system = DataModule(data.config, data.task, model.collator, data.seed)
    of_system.encoded(final_split(data.config))
    return of_system.report()
