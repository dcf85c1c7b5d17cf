"""`llm2slm demo`: trains the SLM alone and the hybrid, and compares the quality and speed of both with the LLM's.

The systems are trained at the same time, each in a process with one thread (`side_by_side`). A repeated command starts
over; a training that was stopped is resumed by `llm2slm train run=DIR/SYSTEM`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm2slm import runs
from llm2slm.commands.benchmark import Sources, benchmark_systems, calibrated, share_llms
from llm2slm.commands.card import card_of_run
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.device import device_type, move_to_device
from llm2slm.commands.evaluate import check_metrics, final_split, score_system
from llm2slm.commands.loaded_models import limited
from llm2slm.commands.quality_kept import quality_kept
from llm2slm.commands.resume import refuse_used
from llm2slm.commands.side_by_side import train_side_by_side
from llm2slm.commands.task_choice import print_task, with_task
from llm2slm.config import RunConfig
from llm2slm.config.ranges import check_ranges
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.decoding import choose
from llm2slm.evaluation.benchmark import contestants
from llm2slm.evaluation.benchmark.contestants import named
from llm2slm.models.ablation import check_control
from llm2slm.models.build import build_llm
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.tracking.naming import group_of
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.types import Decoding, Init, Overlong, SystemKind, UserError

if TYPE_CHECKING:
    from rich.console import Console

LLM = "llm"
PURPOSE = {
    SystemKind.llm: "another LLM, trained on the same data",
    SystemKind.slm: "the SLM alone, which shows what a small model reaches without the LLM",
    SystemKind.llm2slm: "the SLM with the LLM's representations of the prompt, which shows what the LLM adds",
}
"""The reason for training a system of each kind."""


def run(config: RunConfig, folder: Path) -> runs.Result:
    """Trains every system of `config.systems`, each into its subfolder, then scores and times them and the LLM.

    An entry of `config.systems` holds the overrides of a system; the systems differ in nothing else.
    """
    from rich.console import Console

    from llm2slm.evaluation.report.report import terminal_table, write_report

    started, console = time.perf_counter(), Console()
    given, config = config, with_task(config)
    configs = {name: as_job(each, folder) for name, each in check(config).items()}
    show_held()
    print_task(given.task, given.data)
    clear(folder, configs)
    for name in configs:
        refuse_used(folder / name)
    runs.write_config(folder, config)
    with track("demo", config, folder) as tracking:
        explain_training(config, configs, console)
        at_once, threads = processes(config)
        trained = train_side_by_side(configs, folder, console, at_once=at_once, threads=threads)
        for name, system in trained.items():
            system.name = name
        explain(console, 2, "Evaluating the LLM and faster decoders on the test split",
                "the scores of the LLM are the reference for those of the others")  # fmt: skip
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        systems = {LLM: build_llm(config.model.llm, config.data)}
        systems |= {name: limited(LLM2SLM.from_pretrained(folder / name / "model"), config.data) for name in configs}
        llm_of = share_llms(systems)
        for model in systems.values():
            move_to_device(model, config.trainer.accelerator)
        data = DataModule(config.data, task_of(config.task, config.data), systems[LLM].collator, config.seed)
        scored = {LLM: score_system(systems[LLM], data, data.task, config=config, folder=folder / LLM, split="test")}
        scored |= trained
        scored |= decoded(systems, llm_of, data, config, folder)
        explain(console, 3, "Timing all systems in turn", "only times of one process, round by round, can be compared")
        sources: Sources = {LLM: (config.model.llm, None)}
        sources |= {name: (str(folder / name / "model"), None) for name in configs}
        timed, baseline = benchmark_systems(systems, sources, data, config, llm_of)
        for system in timed:  # under a decoder of `benchmark.decoders` other than `generate`: without scores
            scored.setdefault(system.name, system).speed = system.speed
        for system in scored.values():
            system.quality_kept = quality_kept(system, scored[LLM])
        result = runs.Result("demo", config.seed, runs.config_hash(config), 0.0, list(scored.values()))
        result.baseline = baseline
        result.device = runs.device_name(systems[LLM].device.type)
        result.wall_seconds = time.perf_counter() - started
        runs.write_result(folder, result)
        tracking.result(result, folder)
    written = runs.read_result(folder)
    for name in configs:
        source = f"{folder.name}/{name}/model"
        card_of_run(folder / name / "model", f"{folder.name}-{name}", source, folder / name, [written])
    configuration = yaml.safe_dump(runs.plain(config), sort_keys=False, allow_unicode=True)
    page = write_report([written], folder, "llm2slm demo: the LLM encodes, the SLM generates", configs=[configuration])
    console.print(terminal_table([written]))
    console.print(f"{page} ({result.wall_seconds:.0f} s in all)")
    return result


def decoded(
    systems: Mapping[str, LLM2SLM], llm_of: Mapping[str, str], data: DataModule, config: RunConfig, folder: Path
) -> dict[str, runs.System]:
    """The scores of each hybrid under the further decoders for hybrids, by the names of the benchmark."""
    found: dict[str, runs.System] = {}
    rule = calibrated(config)
    for hybrid, llm in llm_of.items():
        for name in config.benchmark.hybrid_decoders:
            decoder = choose.decoder(
                Decoding(name), systems[hybrid].eval(), systems[llm].eval(), None if rule is None else rule.rule
            )
            system = score_system(
                decoder.model,
                data,
                data.task,
                config=config,
                folder=folder / f"{hybrid}-{name}",
                split="test",
                decoder=decoder,
            )
            system.name = named(hybrid, name)
            found[system.name] = system
    return found


def as_job(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration of a system's training: its loggers group it with the demo, which times all systems."""
    logger, timing = config.logger, replace(config.benchmark, after_training=False)
    if logger.name != "csv":
        logger = replace(logger, group=group_of(logger.group) or folder.resolve().name)
    return replace(config, logger=logger, benchmark=timing)


def processes(config: RunConfig) -> tuple[int, int | None]:
    """How many systems are trained at the same time, and with how many threads each (None: torch's default).

    On a CPU one process per core, with one thread each, so that the results do not depend on the number of cores. On a
    GPU one after the other, since each may need all of its memory.
    """
    return (runs.usable_cores(), 1) if device_type(config.trainer.accelerator) == "cpu" else (1, None)


def explain(console: Console, step: int, action: str, reason: str) -> None:
    """Prints the heading of one of the three steps."""
    console.print(f"\n[bold]{step}/3 {action}[/bold]: {reason}", highlight=False)


def explain_training(config: RunConfig, configs: Mapping[str, RunConfig], console: Console) -> None:
    """Prints the systems, why each is trained, and how."""
    names, together = " and ".join(configs), processes(config)[0] > 1 and len(configs) > 1
    order = "at the same time, each in a process on one core" if together else "one after the other"
    explain(console, 1, f"Training {names} {order}", "the systems do not depend on each other")
    lines = [f"{LLM}: {config.model.llm.source}, which is trained already"]
    lines += [
        f"{name}: {PURPOSE[each.model.kind]}; {each.trainer.max_steps:,} steps at learning rate {each.optim.lr:g}"
        for name, each in configs.items()
    ]
    for line in lines:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def check(config: RunConfig) -> dict[str, RunConfig]:
    """Refuses configurations that cannot be compared, before any training. Returns the configuration of each system.

    Raises:
        UserError: names the key.
    """
    if config.model.llm.name is None:
        raise UserError("demo compares with the LLM: set model.llm.name")
    if config.model.llm.start is not Init.pretrained:
        raise UserError(f"demo compares with a trained LLM; model.llm.init={config.model.llm.start}: use pretrained")
    if LLM in config.systems:
        raise UserError(f"systems.{LLM}: this name is reserved for the LLM; choose another")
    for name in config.systems:
        if Path(name).name != name or name.startswith("."):
            raise UserError(f"systems.{name}: is the name of a folder in the output folder; use letters and digits")
    if str(config.trainer.devices) != "1" or config.trainer.num_nodes != 1:
        raise UserError(f"demo compares on one device; trainer.devices={config.trainer.devices}: use 1")
    device_type(config.trainer.accelerator)
    check_loggers(config.logger)
    contestants.check(config.benchmark.decoders, config.benchmark.hybrid_decoders)
    calibrated(config)
    configs = {name: system_config(config, name) for name in config.systems}
    for each in (config, *configs.values()):
        if each.data.overlong is Overlong.drop:
            raise UserError(
                "demo compares on the same rows; with data.overlong=drop tokenizers may drop different ones: "
                "use data.overlong=truncate"
            )
        if final_split(each.data) != "test":
            raise UserError("demo compares on the test split: set data.test")
        check_metrics(task_of(each.task, each.data))
    for name, each in configs.items():
        try:
            check_ranges(each)
            check_control(each.model)
            if each.model.loses_llm:
                raise UserError(
                    "the LLM has random weights, which are not saved, and demo loads the trained model; leave "
                    "model.llm.init=random out"
                )
        except UserError as error:
            raise UserError(f"systems.{name}: {error}") from None
    return configs


def clear(folder: Path, names: Iterable[str]) -> None:
    """Removes the systems of an earlier demo. A folder that holds no demo stays unchanged (and `train` refuses it)."""
    if (folder / "config.yaml").is_file() and set(runs.read_config(folder).get("systems") or ()) >= set(names):
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)


def system_config(config: RunConfig, name: str) -> RunConfig:
    """The configuration of one system: the common one with the system's overrides."""
    overrides = config.systems[name]
    if not isinstance(overrides, dict):
        raise UserError(f"systems.{name}: expected overrides of the configuration, as {{model: {{kind: slm}}}}")
    base = OmegaConf.merge(OmegaConf.structured(RunConfig), runs.plain(config) | {"systems": {}})
    for side in ("llm", "slm"):
        if ((overrides.get("model") or {}).get(side) or {}).get("name") is not None:
            base.model[side].config = {}  # it belongs to the model that this system replaces
    try:
        merged = OmegaConf.to_object(OmegaConf.merge(base, overrides))
    except OmegaConfBaseException as error:
        raise UserError(f"systems.{name}: {str(error).splitlines()[0]}") from None
    assert isinstance(merged, RunConfig)
    return merged
