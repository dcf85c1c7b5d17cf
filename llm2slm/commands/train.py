"""`llm2slm train`: data, model, fit, test, result. The hybrid, the SLM alone and the LLM go the same way."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llm2slm import runs
from llm2slm.commands.card import card_of_run
from llm2slm.commands.evaluate import check_metrics, final_split, judge_system, show_result, warn_task
from llm2slm.commands.place import device_type, place
from llm2slm.commands.tokenizer import train_ordered
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources import task_of
from llm2slm.data.statistics import table
from llm2slm.data.tasks import Task
from llm2slm.evaluation.metrics import of_texts, score
from llm2slm.evaluation.predict import answers
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.slm import begin_as_trained
from llm2slm.models.stored import StoredReader
from llm2slm.models.virtual import taken
from llm2slm.training.checkpoints import CHECKPOINTS, LAST
from llm2slm.training.distill import build_teacher, check_distill
from llm2slm.training.fit import Fitted, first_process, fit, set_seed
from llm2slm.training.loggers import build_loggers, finish_loggers, log_quality, log_samples
from llm2slm.training.optim import check_optimizer
from llm2slm.training.quality import Judge
from llm2slm.types import Conditioning, Control, Example, Labels, SystemKind, UserError


def run(config: RunConfig, folder: Path) -> runs.Result:
    """Trains a system into `folder` and tests it.

    With `run=DIR` an interrupted training goes on in DIR from its last checkpoint, under the configuration recorded
    there; `trainer.*`, `logger.*` and `callbacks.*` given now take its place (say a larger trainer.max_steps).
    """
    started, resume = time.perf_counter(), None
    if config.run is not None:
        folder = Path(config.run)
        config, resume = resumed(config, folder)
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
        show_data(config, data, final)
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


def check_possible(config: RunConfig) -> None:
    """Refuses, before anything is loaded, what cannot be trained."""
    if config.model.kind is SystemKind.llm and config.model.llm.quantization:
        raise UserError("model.llm.quantization: a quantized LLM is not trained; leave it out for model=llm")
    check_distill(config)
    check_optimizer(config.optim)


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
    for section in ("model", "data", "task", "optim", "seed"):
        if runs.plain(getattr(config, section)) != runs.plain(getattr(recorded, section)):
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


def warn_unread(config: RunConfig) -> None:
    """Tells of what is set, but not read by this training, and of a task that is not its corpus'."""
    data = config.data
    warn_task(config)
    if data.labels is Labels.gold and data.labels_from is not None:
        print(
            f"llm2slm: warning: data.labels_from={data.labels_from} is not read, as data.labels=gold: the "
            "corpus' own answers are trained on; set data.labels=llm or mix",
            file=sys.stderr,
        )
    if data.reps is not None and config.model.kind is not SystemKind.llm2slm:
        print(
            f"llm2slm: warning: data.reps={data.reps} is not read: model.kind={config.model.kind} is told nothing by "
            "an LLM",
            file=sys.stderr,
        )


def show_data(config: RunConfig, data: DataModule, final: str) -> None:
    """Shows what is about to be trained on, and warns of what is not read of it, and of prompts of `final` among it."""
    from rich.console import Console

    warn_unread(config)
    data.compare()
    told = data.report()
    Console().print(table(told))
    if data.config.streaming and told["train"]["rows"] < data.config.buffer:
        print(
            f"llm2slm: warning: data.buffer={data.config.buffer} is more than the {told['train']['rows']} training "
            "rows, which are read and tokenized over and over to fill it; leave data.streaming out",
            file=sys.stderr,
        )
    known, rows = told[final]["in_train"], told[final]["rows"] - told[final]["dropped"]
    if known:
        print(
            f"llm2slm: warning: {known:,} of {rows:,} prompts of the {final} split are in the training data too; its "
            "scores tell in part what was remembered",
            file=sys.stderr,
        )


def read_data(model: LLM2SLM, data: DataModule, splits: Sequence[str], progress: bool) -> None:
    """Reads all that is needed: bad data is found before anything is written. So is a store of representations that
    is damaged, or lacks what these splits ask of it (of streamed rows the first ones are looked at).

    Raises:
        UserError: as `DataModule.encoded`; as `RepsStore.check_rows`, `embed` and `verify`.
    """
    for split in splits:
        data.prepare(split)
    if model.projector is None or not isinstance(model.encoder, StoredReader):
        return
    store = model.encoder.store
    if first_process():  # first of all: what is damaged may look as if it were missing
        store.verify(progress)
    for split in splits:
        store.check_rows(data.first_rows(split), split)
    if model.projector.tokens is not None:
        store.embed(torch.zeros(1, 1, dtype=torch.long))


def check_monitor(config: RunConfig, task: Task) -> None:
    """Refuses a monitor that this run would never log, before anything is trained."""
    metrics = of_texts(task.metrics) if config.callbacks.generate_rows else ()
    known = ["val/loss", *(f"val/{metric}" for metric in metrics)]
    if config.callbacks.monitor not in known:
        raise UserError(
            f"callbacks.monitor={config.callbacks.monitor}: this run never logs it; it logs {', '.join(known)}"
        )


def check_room(model: LLM2SLM, data: DataModule, split: str, rows: int | None = None) -> None:
    """Refuses answers that would run past the SLM's position embeddings, before anything is trained.

    Args:
        split: what will be answered; rows: how many of it, from the first; None: all.

    Raises:
        UserError: names the row whose answer has no room.
    """
    positions = getattr(model.slm.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return
    _, before_response = taken(model.slm)
    answered = data.encoded(split)[:rows]
    told = [len(row.slm if row.llm is None else row.llm) for row in answered]
    if model.control is Control.shuffled:  # any of them may be told of the longest
        told = [max(told, default=0)] * len(told)
    for row, before in zip(answered, told, strict=True):
        read = before_response + (len(row.slm) if model.pads_left else 0)
        if model.pads_left and model.conditioning is Conditioning.prepend:
            read += before
        if read + data.task.max_new_tokens > positions:
            raise UserError(
                f"task.max_new_tokens={data.task.max_new_tokens} behind the prompt of {split} row {row.index} "
                f"({read} tokens) exceeds the SLM's {positions} positions; at most {max(positions - read, 0)} fit"
            )


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
