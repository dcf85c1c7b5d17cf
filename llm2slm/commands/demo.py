"""`llm2slm demo`: trains the SLM alone and the hybrid, and compares both with the LLM on quality and speed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm2slm import runs
from llm2slm.commands import train
from llm2slm.commands.benchmark import Places, benchmark_systems
from llm2slm.commands.card import card_of_run
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.device import device_type, place
from llm2slm.commands.evaluate import check_metrics, final_split, score_system
from llm2slm.commands.loaded_models import limited
from llm2slm.commands.task_choice import tell_task, with_task
from llm2slm.config import RunConfig
from llm2slm.config.ranges import check_ranges
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.evaluation.metrics.scores import computed_alike
from llm2slm.models.ablation import check_control
from llm2slm.models.build import build_llm
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import Init, Overlong, UserError

LLM = "llm"


def run(config: RunConfig, folder: Path) -> runs.Result:
    """Trains every system of `config.systems` into a folder of its own, then judges and times all, and the LLM.

    Each entry of `config.systems` holds the overrides that make it: the systems differ in those and in nothing else.
    """
    from rich.console import Console

    from llm2slm.evaluation.report.report import terminal_table, write_report

    started, console = time.perf_counter(), Console()
    given, config = config, with_task(config)
    own = check(config)
    show_held()
    tell_task(given.task, given.data)
    clear(folder, own)
    runs.write_config(folder, config)
    judged: dict[str, runs.System] = {}
    places: Places = {}
    for number, name in enumerate(config.systems, 1):
        console.print(f"\n[bold]{number}/{len(config.systems) + 2} Training {name}[/bold]")
        judged[name] = train.run(own[name], folder / name).systems[0]
        judged[name].name = name
        places[name] = (str(folder / name / "model"), None)
    console.print(f"\n[bold]{len(config.systems) + 1}/{len(config.systems) + 2} Evaluating the LLM[/bold]")
    systems = {LLM: build_llm(config.model.llm, config.data)}
    systems |= {name: limited(LLM2SLM.from_pretrained(folder / name / "model"), config.data) for name in own}
    for system in systems.values():
        place(system, config.trainer.accelerator)
    places[LLM] = (config.model.llm, None)
    data = DataModule(config.data, task_of(config.task, config.data), systems[LLM].collator, config.seed)
    judged = {
        LLM: score_system(systems[LLM], data, data.task, config=config, folder=folder / LLM, split="test"),
        **judged,
    }
    console.print(f"\n[bold]{len(config.systems) + 2}/{len(config.systems) + 2} Timing all, interleaved[/bold]")
    for timed in benchmark_systems(systems, places, data, config):
        judged[timed.name].speed = timed.speed
    for trained in judged.values():
        trained.quality_kept = quality_kept(trained, judged[LLM])
    result = runs.Result("demo", config.seed, runs.config_hash(config), 0.0, list(judged.values()))
    result.device = runs.device_name(systems[LLM].device.type)
    result.wall_seconds = time.perf_counter() - started
    runs.write_result(folder, result)
    written = runs.read_result(folder)
    for name in own:
        card_of_run(folder / name / "model", f"{folder.name}-{name}", folder / name, [written])
    configuration = yaml.safe_dump(runs.plain(config), sort_keys=False, allow_unicode=True)
    page = write_report([written], folder, "llm2slm demo: the LLM reads, the SLM writes", configs=[configuration])
    console.print(terminal_table([written]))
    console.print(f"{page} ({result.wall_seconds:.0f} s in all)")
    return result


def check(config: RunConfig) -> dict[str, RunConfig]:
    """What cannot be compared is refused before the first system is trained. Returns each system's configuration.

    Raises:
        UserError: names the key.
    """
    if config.model.llm.name is None:
        raise UserError("demo compares with the LLM: set model.llm.name")
    if config.model.llm.start is not Init.pretrained:
        raise UserError(f"demo compares with a trained LLM; model.llm.init={config.model.llm.start}: use pretrained")
    if LLM in config.systems:
        raise UserError(f"systems.{LLM}: the LLM itself goes by that name; give this system another")
    if str(config.trainer.devices) != "1" or config.trainer.num_nodes != 1:
        raise UserError(f"demo compares on one device; trainer.devices={config.trainer.devices}: use 1")
    device_type(config.trainer.accelerator)
    own = {name: system_config(config, name) for name in config.systems}
    for each in (config, *own.values()):
        if each.data.overlong is Overlong.drop:
            raise UserError(
                "demo compares on the same rows; with data.overlong=drop tokenizers may drop different ones: "
                "use data.overlong=truncate"
            )
        if final_split(each.data) != "test":
            raise UserError("demo compares on the test split: set data.test")
        check_metrics(task_of(each.task, each.data))
    for name, each in own.items():
        try:
            check_ranges(each)
            check_control(each.model)
        except UserError as error:
            raise UserError(f"systems.{name}: {error}") from None
    return own


def clear(folder: Path, names: Iterable[str]) -> None:
    """Takes an earlier demo's systems away. In a folder that is no demo's nothing is touched (and `train` refuses)."""
    if (folder / "config.yaml").is_file() and set(runs.read_config(folder).get("systems") or ()) >= set(names):
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)


def system_config(config: RunConfig, name: str) -> RunConfig:
    """The configuration of one system: the common one, changed by its own overrides."""
    overrides = config.systems[name]
    if not isinstance(overrides, dict):
        raise UserError(f"systems.{name}: expected overrides of the configuration, as {{model: {{kind: slm}}}}")
    base = OmegaConf.merge(OmegaConf.structured(RunConfig), runs.plain(config) | {"systems": {}})
    for side in ("llm", "slm"):
        if ((overrides.get("model") or {}).get(side) or {}).get("name") is not None:
            base.model[side].config = {}  # of the model that this system names another in place of
    try:
        own = OmegaConf.to_object(OmegaConf.merge(base, overrides))
    except OmegaConfBaseException as error:
        raise UserError(f"systems.{name}: {str(error).splitlines()[0]}") from None
    assert isinstance(own, RunConfig)
    return own


def quality_kept(system: runs.System, llm: runs.System) -> dict[str, float]:
    """Each metric of which more is better over the LLM's, where both were computed alike over as many rows."""
    return {
        metric: score.value / llm.quality[metric].value
        for metric, score in system.quality.items()
        if metric in llm.quality.keys() - runs.LOWER_IS_BETTER
        and llm.quality[metric].value
        and llm.quality[metric].n == score.n
        and computed_alike(llm.quality[metric].signature, score.signature)
    }
