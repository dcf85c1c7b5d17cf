"""`llm2slm benchmark run=DIR`: times a system, its LLM and any others, interleaved in one process."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.commands.cascade_rule import Calibrated, read_rule
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.device import device_type, move_to_device
from llm2slm.commands.evaluate import control_note, decoder_note, final_split, print_defaults
from llm2slm.commands.loaded_models import limited, limits, llm_note, load_system, parameters, recorded_llm
from llm2slm.commands.task_choice import print_task, with_task
from llm2slm.config import LanguageModelConfig, LLMConfig, ModelConfig, RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.data.tokenization.filled import PREFIX
from llm2slm.evaluation.benchmark import ceilings, contestants, targets
from llm2slm.evaluation.benchmark.contestants import Contestant
from llm2slm.evaluation.benchmark.peak_memory import folder_memory
from llm2slm.evaluation.benchmark.timing import Timings, time_systems
from llm2slm.models.build import build_llm, build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.llm import share_weights, use_weights
from llm2slm.models.loading.configs import locate, shipped
from llm2slm.models.saving import own_fingerprint
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.types import Decoding, Init, Overlong, SystemKind, Tokenizers, UserError

SYSTEM = "system"
"""Note of a system under another decoder than `generate`: its name under `generate`."""
Sources = dict[str, tuple[str | LLMConfig, str | None]]
"""System -> its folder (for an LLM that generates alone, its configuration), and the path of its LLM if that moved."""


def run(config: RunConfig, folder: Path) -> runs.Result:
    """Times systems on prompts of the test split and on the grid of `benchmark.*`; speedups are relative to the LLM.

    With `run=DIR`: the trained system and its LLM. Without: the configured model, untrained if its init=random (to time
    shapes), and its LLM. `systems.NAME=DIR` adds others.
    """
    from llm2slm.evaluation.report.report import write_report

    started = time.perf_counter()
    runs.refuse_another(folder, "benchmark")
    device_type(config.trainer.accelerator)
    check_loggers(config.logger)
    contestants.check(config.benchmark.decoders, config.benchmark.hybrid_decoders)
    calibrated(config)
    targets.check(config.benchmark.targets)
    for name, path in config.systems.items():
        if not isinstance(path, str):
            raise UserError(f"systems.{name}: give a run directory, a model folder or a Hub id, as systems.{name}=DIR")
    given, config = config, with_task(config)
    systems, llms, sources, config = loaded(given, config)
    targets.check_names(config.benchmark.targets, systems, contestants.KNOWN)
    llm_of = share_llms(systems)
    for each in systems.values():
        move_to_device(limited(each, config.data), config.trainer.accelerator)
    task = task_of(config.task, config.data)
    print_task(given.task, given.data)
    data = DataModule(config.data, task, next(iter(systems.values())).collator, config.seed)
    show_held()
    with track("benchmark", config, folder) as tracking:
        timed, baseline = benchmark_systems(systems, sources, data, config, llm_of)
        for system in timed:
            own = str(system.notes.get(SYSTEM, system.name))
            system.notes |= llm_note(systems[own], llms[own], system.weights)
        result = runs.Result("benchmark", config.seed, runs.config_hash(config), time.perf_counter() - started, timed)
        result.baseline = baseline
        rows = {system.name: system.speed for system in timed}
        result.targets = targets.compared(config.benchmark.targets, rows)
        for line in targets.missing(config.benchmark.targets, rows):
            print(f"llm2slm: warning: {line}", file=sys.stderr)
        result.device = runs.device_name(next(iter(systems.values())).device.type)
        runs.write_config(folder, config)
        runs.write_result(folder, result)
        tracking.result(result, folder)
        tracking.summary(recorded_quality(config.run, timed))
    written = runs.read_result(folder)
    show(written)
    print(write_report([written], folder, "Benchmark"))
    return result


def loaded(given: RunConfig, config: RunConfig) -> tuple[dict[str, LLM2SLM], dict[str, LLMConfig], Sources, RunConfig]:
    """The systems of a configuration, the LLM of each, their sources, and the configuration with the model of `run`.

    Args:
        given: as the command line configures it; config: with the task of the corpus.
    """
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
        config = replace(config, model=with_tokenizers(config.model))
        systems = configured(config)
        llms = dict.fromkeys(systems, config.model.llm)
    for name, path in config.systems.items():
        other = load_system(path, None, ModelConfig(), recorded=False)
        systems[name], llms[name] = other.model, other.config.llm
        sources[name] = (other.source, None)
    return systems, llms, sources, config


def show(written: dict[str, Any]) -> None:
    """Prints a table for each batch size, and that of the targets."""
    from rich.console import Console

    from llm2slm.evaluation.report.report import target_table, terminal_table

    for batch in sorted({row["batch"] for system in written["systems"] for row in system["speed"]}):
        Console().print(terminal_table([at_batch(written, batch)]))
    if written["targets"]:
        Console().print(target_table(written))


def recorded_quality(run: str | None, timed: Sequence[runs.System]) -> dict[str, float]:
    """The test scores that the run of a timed system recorded, for the loggers: one run has quality and latency."""
    home = None if run is None else runs.home(run)
    if home is None or not (home / "result.json").is_file():
        return {}
    weights = [system.weights for system in timed]
    found = [system for system in runs.read_result(home)["systems"] if system.get("weights") in weights]
    kept = {f"quality_kept/{name}": value for s in found[:1] for name, value in s["quality_kept"].items()}
    return kept | {f"quality/{name}": score["value"] for s in found[:1] for name, score in s["quality"].items()}


def share_llms(systems: Mapping[str, LLM2SLM]) -> dict[str, str]:
    """Makes each hybrid share the weights of its LLM if that is among the systems.

    Returns:
        name of a hybrid -> name of its LLM.
    """
    llms = {name: model for name, model in systems.items() if model.kind is SystemKind.llm}
    found = {}
    for name, model in systems.items():
        own = next((each for each, llm in llms.items() if share_weights(model, llm)), None)
        if own is not None:
            found[name] = own
    return found


def with_tokenizers(cfg: ModelConfig) -> ModelConfig:
    """The models of a configuration; published shapes with random weights, whose tokenizer is not on this machine, get
    the built-in tokenizer with as many entries as the vocabulary of the shape has."""
    guided = cfg.kind is SystemKind.llm2slm
    llm = _with_tokenizer(cfg.llm) if cfg.kind is not SystemKind.slm or cfg.tokenizers is Tokenizers.shared else cfg.llm
    slm = cfg.slm
    follows = cfg.tokenizers is Tokenizers.shared and slm.start is Init.random  # it gets the LLM's
    if cfg.kind is not SystemKind.llm and not (follows and (guided or llm.tokenizer or llm.source)):
        slm = _with_tokenizer(slm)
    return replace(cfg, llm=llm, slm=slm)


def _with_tokenizer(cfg: Any) -> Any:
    config = shipped(cfg) if isinstance(cfg, LanguageModelConfig) and cfg.tokenizer is None else None
    if config is None:
        return cfg
    size = config.get_text_config(decoder=True).vocab_size
    print(f"llm2slm: {cfg.name}: config from llm2slm, random weights, built-in tokenizer filled up to {size:,} entries",
          file=sys.stderr)  # fmt: skip
    return replace(cfg, tokenizer=f"{PREFIX}{size}")


def at_batch(result: dict[str, Any], batch: int) -> dict[str, Any]:
    """A result with the speeds at one batch size only."""
    systems = [
        system
        | {
            "speed": [row for row in system["speed"] if row["batch"] == batch],
            "failures": [failure for failure in system["failures"] if failure["batch"] == batch],
        }
        for system in result["systems"]
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
    if systems and config.model.llm.start is Init.random:  # both were drawn; the hybrid's LLM is the one that is timed
        use_weights(model, systems["llm"])
    return {**systems, model.label: model}


def benchmark_systems(
    systems: Mapping[str, LLM2SLM],
    sources: Sources,
    data: DataModule,
    config: RunConfig,
    llm_of: Mapping[str, str] | None = None,
) -> tuple[list[runs.System], runs.Baseline | None]:
    """Times systems under their decoders, on the test split (the validation split if the user's files have none).

    Args:
        sources: of each saved system, to measure its peak memory on a CPU.
        llm_of: as `share_llms` returns it, for decoders that use a hybrid's LLM.

    Returns:
        One system for each decoder, LLMs first, and the baseline of their speedups: the first LLM under the first
        decoder, which is `generate` if that is among `benchmark.decoders`; None without an LLM.
    """
    for model in systems.values():
        model.eval()
    cfg, llm_of = config.benchmark, llm_of or {}
    rule = calibrated(config)
    if rule is not None:
        for hybrid, llm in llm_of.items():
            rule.check(systems[hybrid], systems[llm])
    chosen = contestants.contestants(
        systems,
        cfg.decoders,
        llm_of,
        cfg.threads,
        of_hybrids=cfg.hybrid_decoders,
        rule=None if rule is None else rule.rule,
    )
    first = next((each for each in chosen if each.decoding == Decoding.generate), chosen[0])
    baseline = runs.Baseline(first.name, first.kind.value) if systems[first.system].kind is SystemKind.llm else None
    memory = folder_memory(
        {name: path if isinstance(path, LLMConfig) else locate(path) for name, (path, _) in sources.items()},
        {name: llm for name, (_, llm) in sources.items()},
        cfg.threads,
        limits(config.data),
    )
    with ExitStack() as stack:
        for each in chosen:
            if close := getattr(each.decoder, "close", None):  # it has a process
                stack.callback(close)
        timings = time_systems(
            {each.name: each.decoder for each in chosen},
            data.examples(final_split(config.data)),
            cfg,
            baseline=None if baseline is None else baseline.name,
            same=contestants.same_decoding(chosen, llm_of, None if baseline is None else first.system),
            seed=config.seed,
            memory=memory if systems[first.system].device.type == "cpu" else None,
            ceilings=cache(ceilings.measure) if cfg.ceilings else None,
            progress=config.trainer.progress,
        )
    weights = {name: own_fingerprint(model) for name, model in systems.items()}
    timed = [timed_system(each, systems[each.system], timings[each.name], data) for each in chosen]
    for each, system in zip(chosen, timed, strict=True):
        system.weights = weights[each.system]
    return timed, baseline


def calibrated(config: RunConfig) -> Calibrated | None:
    """The rule of a cascade, if one is timed.

    Raises:
        UserError: as `read_rule`.
    """
    timed = {*config.benchmark.decoders, *config.benchmark.hybrid_decoders}
    return read_rule(config.cascade) if Decoding.cascade in timed else None


def timed_system(each: Contestant, model: LLM2SLM, timings: Timings, data: DataModule) -> runs.System:
    """The entry of a result for a system under a decoder."""
    notes: dict[str, Any] = {"data": overlong(model, data)} | control_note(model)
    if each.name != each.system:
        notes[SYSTEM] = each.system
    notes |= decoder_note(each.decoder)  # its counts include the warm-up
    return runs.System(
        each.name,
        each.kind.value,
        parameters(model, each.decoder),
        speed=timings.rows,
        failures=timings.failures,
        notes=notes,
    )


def overlong(model: LLM2SLM, data: DataModule) -> dict[str, dict[str, Any]]:
    """Statistics of over-long rows. Each system truncates by its tokenizers and positions; rows are dropped for all."""
    if data.config.overlong is not Overlong.truncate:
        return data.report()
    of_system = DataModule(data.config, data.task, model.collator, data.seed)
    of_system.encoded(final_split(data.config))
    return of_system.report()
