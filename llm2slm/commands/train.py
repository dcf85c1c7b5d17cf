"""`llm2slm train`: data, model, fit, test, result. The hybrid, the SLM alone and the LLM go the same way."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.commands.card import card_of_run
from llm2slm.commands.data_report import show_data
from llm2slm.commands.evaluate import check_metrics, final_split, judge_system, show_result
from llm2slm.commands.place import device_type, place
from llm2slm.commands.preflight import check_monitor, check_possible, check_room, read_data
from llm2slm.commands.task_choice import with_task
from llm2slm.commands.tokenizer import train_ordered
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources import task_of
from llm2slm.data.tasks import Task
from llm2slm.evaluation.metrics import of_texts, score
from llm2slm.evaluation.predict import answers
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.slm import begin_as_trained
from llm2slm.training.checkpoints import CHECKPOINTS, LAST
from llm2slm.training.distill import build_teacher
from llm2slm.training.fit import Fitted, first_process, fit, set_seed
from llm2slm.training.loggers import build_loggers, finish_loggers, log_quality, log_samples
from llm2slm.training.quality import Judge
from llm2slm.types import Example, UserError


def run(config: RunConfig, folder: Path) -> runs.Result:
    """Trains a system into `folder` and tests it.

    With `run=DIR` an interrupted training goes on in DIR from its last checkpoint, under the configuration recorded
    there; `trainer.*`, `logger.*` and `callbacks.*` given now take its place (say a larger trainer.max_steps).
    """
    started, resume = time.perf_counter(), None
    if config.run is not None:
        folder = Path(config.run)
        config, resume = resumed(config, folder)
    given, config = config, with_task(config)
    check_possible(config)
    set_seed(config.seed)
    task = task_of(config.task, config.data)
    check_metrics(task)
    device_type(config.trainer.accelerator)
    train_ordered(config.model, config.data, config.task, config.seed, folder)
    model = untrained(config, task)
    teacher = build_teacher(config, model.collator)
    data = DataModule(config.data, task, model.collator, config.seed, None if teacher is None else teacher.collator)
    final = final_split(config.data)
    read_data(model, data, ("train", "validation", final), config.trainer.progress)
    check_monitor(config, task)
    check_room(model, data, final)
    check_room(model, data, "validation", config.callbacks.generate_rows)
    if resume is None:
        refuse_used(folder)
    if first_process():
        show_data(given, config, data, final)
        runs.write_config(folder, replace(config, run=None))
    with finish_loggers():
        loggers = build_loggers(config.logger, folder, config)
        judge = validation_judge(task, config.data.eval_batch_size)
        try:
            fitted = fit(config, folder, model, data, loggers=loggers, judge=judge, resume=resume, teacher=teacher)
        except KeyboardInterrupt:
            if first_process() and (folder / CHECKPOINTS / LAST).is_file():
                print(f"llm2slm: to go on: llm2slm train run={folder}", file=sys.stderr)
            raise
        del teacher  # makes room for the test
        result = runs.Result("train", config.seed, runs.config_hash(config), 0.0, [])
        if fitted.first_process:
            model.save_pretrained(folder / "model")
            place(model, config.trainer.accelerator)  # Lightning leaves it on the processor
            result.device = runs.device_name(model.device.type)
            system = judge_system(model, data, task, config=config, folder=folder, split=final)
            system.curve = read_curve(folder / "metrics.csv")
            system.notes |= training_notes(config, fitted)
            result.systems = [system]
            log_samples(loggers, system.samples[: config.logger.samples])
            log_quality(loggers, {name: s.value for name, s in system.quality.items()})
            result.wall_seconds = time.perf_counter() - started
            runs.write_result(folder, result)
            card_of_run(folder / "model", folder.resolve().name, folder)
            show_result(folder)
    return result


def refuse_used(folder: Path) -> None:
    """Two runs in one folder would mix their curves, and leave one's model beside the other's configuration.

    Raises:
        UserError: the folder holds a run, or what another verb left.
    """
    if not first_process():
        return
    runs.refuse_another(folder, "train")
    used = [name for name in (CHECKPOINTS, "result.json", "metrics.csv") if (folder / name).exists()]
    if used:
        raise UserError(
            f"{folder}: holds a run already ({used[0]}); go on with it by run={folder}, or write to another folder by "
            "hydra.run.dir=DIR"
        )


def resumed(config: RunConfig, folder: Path) -> tuple[RunConfig, Path]:
    """The configuration of a run that goes on, and its last checkpoint.

    Args:
        config: nothing but `run`: the recorded one holds; or a whole configuration, which may train longer, log or stop
            otherwise than the recorded one, but not train something else.

    Raises:
        UserError: no checkpoint, or a configuration of another model, corpus, task, optimizer or seed.
    """
    from omegaconf import OmegaConf

    last = folder / CHECKPOINTS / LAST
    recorded = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), runs.read_config(folder)))
    assert isinstance(recorded, RunConfig)
    if not last.is_file():
        raise UserError(f"run={folder}: no {last.relative_to(folder)} to resume from; train without run= instead")
    if replace(config, run=None) == RunConfig():
        return replace(recorded, run=config.run), last
    settled = with_task(config)
    for section in ("model", "data", "task", "optim", "seed"):
        if runs.plain(getattr(settled, section)) != runs.plain(getattr(recorded, section)):
            raise UserError(
                f"run={folder} was begun with another {section}; a resumed run can change trainer, logger and "
                "callbacks only: leave the rest out, or train anew without run="
            )
    return config, last


def untrained(config: RunConfig, task: Task) -> LLM2SLM:
    """The model that is about to be trained; it remembers what the task puts around a text."""
    model = build_model(config.model, config.data)
    begin_as_trained(model.slm)
    model.config.prefix, model.config.suffix = task.around() or (None, "")
    return model


def validation_judge(task: Task, batch_size: int) -> Judge | None:
    """Scores generated answers during training, by the metrics of texts alone: others would load a model each time, and
    perplexity is exp(val/loss). None where the task has no such metric."""
    names = of_texts(task.metrics)

    def answer(model: LLM2SLM, examples: Sequence[Example], share: tuple[int, int]) -> dict[int, str]:
        return answers(model, examples, task, batch_size, share=share, progress=False)

    def judged(examples: Sequence[Example], texts: Sequence[str]) -> dict[str, float]:
        scores = score(names, texts, [example.target for example in examples])
        return {name: found.value for name, found in scores.items()}

    return Judge(answer, judged) if names else None


def read_curve(path: Path) -> list[dict[str, float]]:
    """`metrics.csv` as points of a curve, without the cells that were not logged."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def training_notes(config: RunConfig, fitted: Fitted) -> dict[str, Any]:
    """Facts about the training that a reader of the result wants beside the scores."""
    optim, llm = config.optim, config.model.llm.name
    distilled = {"teacher": llm, "weight": optim.distill, "temperature": optim.distill_temperature}
    return {
        "training_seconds": round(fitted.seconds, 1),
        "optimizer_steps": fitted.steps,
        "lr": optim.lr,
        "projector_lr": optim.projector_lr,
        "folders": [n for n in (llm, config.model.slm.name) if n is not None and Path(n).is_dir()],
    } | ({"distilled": distilled} if optim.distill else {})
