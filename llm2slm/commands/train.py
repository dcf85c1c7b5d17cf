"""`llm2slm train`: data, model, fit, test, result; the same for the hybrid, the SLM alone and the LLM."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.commands.card import card_in_run
from llm2slm.commands.data_report import show_data
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.device import device_type, move_to_device
from llm2slm.commands.evaluate import check_metrics, final_split, score_system, show_result
from llm2slm.commands.int8_encoding import check_layers, encoder_in_int8, int8_encoding
from llm2slm.commands.output_folder import removed_on_failure
from llm2slm.commands.preflight import check_context_length, check_monitor, check_possible, read_data
from llm2slm.commands.quality_kept import read_baseline, set_quality_kept
from llm2slm.commands.resume import (
    Begun,
    clear_leftovers,
    complete,
    kept_answers,
    naming_command,
    naming_rest,
    outdate,
    refuse_other,
    refuse_used,
    show_complete,
    start_over,
    warn_fewer_steps,
    with_command,
)
from llm2slm.commands.run_lock import RunLock
from llm2slm.commands.task_choice import with_task
from llm2slm.commands.timing_after_training import check_timing, set_speed
from llm2slm.commands.tokenizer import TOKENIZERS, train_ordered
from llm2slm.commands.utilization import training_work
from llm2slm.config import RunConfig, before_zero_start, other_rows
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.data.tasks import Task
from llm2slm.evaluation.metrics import tokenization
from llm2slm.evaluation.metrics.scores import lower_is_better, of_texts, score
from llm2slm.evaluation.predict import answer_batches
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.llm import share_weights
from llm2slm.models.slm import begin_as_trained
from llm2slm.ranks import first_process
from llm2slm.tracking.samples import SampleLog, predictions_of
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.training.checkpoint_io import CHECKPOINTS, newest_undamaged, read
from llm2slm.training.checkpoints import Limits, Progress
from llm2slm.training.distill import Teacher, build_teacher
from llm2slm.training.fit import Fitted, check_trainer, fit, load_fitted, set_seed
from llm2slm.training.frozen_weights import at_recorded_commits
from llm2slm.training.loggers import build_loggers
from llm2slm.training.peers import watched
from llm2slm.training.phases import check_trainable, projector_rate
from llm2slm.training.precision import AUTO, settled
from llm2slm.training.validation_scores import ValidationScorer
from llm2slm.types import Example, Start, SystemKind, UserError


def run(config: RunConfig, folder: Path, *, shown: bool = True) -> runs.Result:
    """Trains a system into `folder` and tests it.

    With `run=DIR` an interrupted training resumes in DIR from its last checkpoint, with the configuration recorded
    there; new values of `trainer.*`, `logger.*` and `callbacks.*` override it (as a larger trainer.max_steps). A
    finished training is not repeated: only its missing test, result and model card are made.

    Args:
        shown: show progress bars (where trainer.progress is true) and print the table of the result.
    """
    started = time.perf_counter()
    if config.run is not None:
        folder = Path(config.run)
    with RunLock(folder) as lock:
        return _locked(config, folder, lock, started, shown=shown)


def _locked(config: RunConfig, folder: Path, lock: RunLock, started: float, *, shown: bool) -> runs.Result:
    """`run`, within the lock of the run directory: at once for a run that exists, before the first file of a new one.

    Args:
        started: `time.perf_counter` at the start of the command.
    """
    begun, starts_over = None, False
    if config.run is not None:
        lock.acquire(unless_read_only=True)
        config, begun = resumed(config, folder)
        starts_over = begun is None
        if begun is not None and (stored := complete(folder, begun.progress)) is not None:
            if first_process():
                show_complete(folder, begun.progress, config.trainer.max_steps)
                show_result(folder)
            return stored
        warn_fewer_steps(folder, begun, config.trainer.max_steps)
    else:
        refuse_used(folder)  # before the data is prepared; repeated under the lock
    given, config = config, with_precision(with_task(config))
    with removed_on_failure(folder / TOKENIZERS):
        ready = prepare(config, folder, None if begun is None else begun.checkpoint)
    lock.acquire()
    if starts_over:
        start_over(folder)
    elif begun is None:
        refuse_used(folder)
    if first_process():
        show_start(given, config, ready)
        if begun is None:  # that of a resumed run is replaced after its first step: a failed resume leaves it
            record(config, folder, resumed=starts_over)
    result = runs.Result("train", config.seed, runs.config_hash(config), 0.0, [])
    with track("train", config, folder, resumed=begun is not None, active=first_process()) as tracking:
        config = replace(config, trainer=replace(config.trainer, progress=shown and config.trainer.progress))
        samples = SampleLog(tracking, folder, ready.model.kind.value, ready.samples)
        fitted, answers = trained(config, folder, ready, begun, samples)
        ready.model, ready.teacher = fitted.model, None  # frees the memory of the teacher for the test
        if fitted.first_process:
            with naming_rest(folder):
                if answers is None:
                    outdate(folder)
                    ready.model.save_pretrained(folder / "model")
                result.systems = [system := tested(config, folder, ready, fitted, answers)]
                result.selection = fitted.selection
                result.device = runs.device_name(ready.model.device.type)
                set_quality_kept(result, ready.baseline)
                set_speed(result, config, ready, folder)
                result.command = " && ".join(runs.recorded_commands(folder)) or result.command
                result.wall_seconds = time.perf_counter() - started
                runs.write_result(folder, result)
                card_in_run(folder)
                rows = ready.data.examples(ready.final)[: len(system.samples)]
                samples.add(fitted.steps, ready.final, rows, [row["prediction"] for row in system.samples])
                tracking.result(result, folder)
            if shown:
                show_result(folder)
    return result


def show_start(given: RunConfig, config: RunConfig, ready: Ready) -> None:
    """Prints data, choices made for the user, and held warnings. `config`: the configuration with these choices."""
    show_data(given, config, ready.data, ready.final)
    if given.trainer.precision == AUTO:
        print(f"llm2slm: trainer.precision={AUTO}: {config.trainer.precision} on this device", file=sys.stderr)
    show_held()


def with_precision(config: RunConfig) -> RunConfig:
    """The configuration with the precision that `trainer.precision=auto` stands for on this machine."""
    trainer = config.trainer
    if trainer.precision == AUTO:
        precision = settled(trainer.precision, device_type(trainer.accelerator))
        return replace(config, trainer=replace(trainer, precision=precision))
    return config


def record(config: RunConfig, folder: Path, *, resumed: bool) -> None:
    """Writes `config.yaml`, in which a resumed run looks like one that was never stopped.

    It names the command that started the run, and those that resumed it with other values.
    """
    config, commands = replace(config, run=None), [runs.command()]
    if resumed:
        known = runs.recorded_commands(folder)
        changed = runs.config_hash(runs.read_config(folder)) != runs.config_hash(config)
        commands = known + commands if known and changed else known
    runs.write_config(folder, config, commands)


@dataclass
class Ready:
    """Checked inputs of a training.

    Attributes:
        final: the split to test on.
        baseline: the LLM's scores (benchmark.baseline).
        samples: predictions of other systems by source text (callbacks.predictions).
        rebuild: builds the untrained model again.
    """

    model: LLM2SLM
    data: DataModule
    task: Task
    final: str
    teacher: Teacher | None
    baseline: runs.System | None
    samples: dict[str, dict[str, str]]
    rebuild: Callable[[], LLM2SLM]


def prepare(config: RunConfig, folder: Path, checkpoint: Path | None) -> Ready:
    """Builds the model and reads the data. Invalid input is refused before anything is written, except for tokenizers
    that the configuration trains (`TOKENIZERS` of the folder).

    Args:
        checkpoint: to resume from; Hub models are loaded at the commits recorded in it.
    """
    check_possible(config)
    check_loggers(config.logger)
    check_timing(config)
    baseline, samples = read_baseline(config), predictions_of(config.callbacks.predictions)
    set_seed(config.seed)
    task = task_of(config.task, config.data)
    check_metrics(task)
    device_type(config.trainer.accelerator)
    check_trainer(config.trainer, folder)
    train_ordered(config.model, config.data, config.task, config.seed, folder)
    at_first = config if checkpoint is None else at_recorded_commits(config, read(checkpoint))
    model = untrained(at_first, task)
    check_trainable(model, config)
    check_layers(model, config)
    teacher = build_teacher(at_first, model.collator)
    of_teacher = None if teacher is None else teacher.collator
    if teacher is not None and replicates(config.trainer.strategy):
        share_weights(model, teacher.model)
    data = DataModule(config.data, task, model.collator, config.seed, of_teacher, val_rows=config.trainer.val_rows)
    final = final_split(config.data)
    read_data(model, data, ("train", "validation", final), config.trainer.progress)
    check_monitor(config, task)
    check_context_length(model, data, final)
    check_context_length(model, data, "validation", config.callbacks.generate_rows)

    def rebuild() -> LLM2SLM:
        set_seed(config.seed)
        return untrained(at_first, task)

    return Ready(model, data, task, final, teacher, baseline, samples, rebuild)


def replicates(strategy: str) -> bool:
    """Whether each process has all weights: no strategy that divides (FSDP, DeepSpeed) or replaces them."""
    return strategy in ("auto", "single_device") or strategy.startswith("ddp")


def trained(
    config: RunConfig, folder: Path, ready: Ready, begun: Begun | None, samples: SampleLog
) -> tuple[Fitted, list[str] | None]:
    """Trains, or loads a finished training together with its test predictions, if these are complete."""
    if begun is not None and begun.progress.finished:
        answers = kept_answers(folder, ready.data.examples(ready.final))
        fitted = load_fitted(config, folder, ready.model, begun.progress, ready.teacher)
        if fitted.first_process:
            record(config, folder, resumed=True)
        return fitted, answers
    clear_leftovers(folder, from_start=begun is None)
    seen = language_seen(ready.data.examples(ready.final))
    scorer = validation_scorer(ready.task, config.data.eval_batch_size, seen)
    given: dict[str, Any] = {"loggers": build_loggers(folder, samples.tracking), "rebuild": ready.rebuild}
    given["keep_samples"] = lambda steps, rows, texts: samples.add(steps, "validation", rows, texts)
    if begun is not None:
        given |= {"resume": begun.checkpoint, "recorded": begun.recorded}
        given["begun"] = lambda: record(config, folder, resumed=True)
    model, data, teacher = ready.model, ready.data, ready.teacher
    int8 = encoder_in_int8(model, config) is not None
    given["work"] = training_work(model, config.trainer, teacher, int8_encoding=int8)
    with naming_command(folder), watched(partial(with_command, folder)), int8_encoding(model, config):
        fitted = fit(config, folder, model, data, scorer=scorer, teacher=teacher, **given)
    return fitted, None


def tested(config: RunConfig, folder: Path, ready: Ready, fitted: Fitted, answers: Sequence[str] | None) -> runs.System:
    """The trained system with its scores on the final split, its curve, and notes on its training."""
    move_to_device(ready.model, config.trainer.accelerator)  # Lightning leaves it on the processor
    system = score_system(
        ready.model,
        ready.data,
        ready.task,
        config=config,
        folder=folder,
        split=ready.final,
        answers=answers,
        written=answers is not None,
    )
    system.curve = read_curve(folder / runs.METRICS)
    system.validation = fitted.validation
    system.notes |= training_notes(config, fitted)
    return system


def resumed(config: RunConfig, folder: Path) -> tuple[RunConfig, Begun | None]:
    """The configuration of a resumed run, and the state of its last checkpoint (of the best if the last is damaged);
    None: it was stopped before its first checkpoint, and starts over.

    Args:
        config: `run` only: the recorded configuration is used; or a whole configuration, which may differ from the
            recorded one in trainer, logger and callbacks only.

    Raises:
        UserError: the record is no training, or is of another model, corpus, task, optimizer or seed.
    """
    from omegaconf import OmegaConf

    recorded = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), runs.read_config(folder)))
    assert isinstance(recorded, RunConfig)
    if recorded.run is not None:
        raise UserError(
            f"run={folder}: is no training, but made from run={recorded.run}; resume that one, or train without run="
        )
    if replace(config, run=None) == RunConfig():
        config = replace(recorded, run=config.run)
    elif before_zero_start(runs.recorded_config(folder)):
        config = as_before_zero_start(config)
    refuse_other(folder, recorded, with_task(config))
    newest = newest_undamaged(folder / CHECKPOINTS)
    if newest is None:
        return replace(config, run=None), None
    progress = Progress.of(newest, Limits.of(config.trainer, config.callbacks, lower_is_better))
    return config, Begun(newest, progress, None if other_rows(runs.recorded_config(folder)) else recorded)


def as_before_zero_start(config: RunConfig) -> RunConfig:
    """A configuration with the defaults of runs recorded before z could start at zero."""
    projector, optim = config.model.projector, config.optim
    start = Start.random if projector.start is None else projector.start
    gate = bool(projector.gate)
    rate = optim.lr if optim.projector_lr is None else optim.projector_lr
    model = replace(config.model, projector=replace(projector, start=start, gate=gate))
    return replace(config, model=model, optim=replace(optim, projector_lr=rate))


def untrained(config: RunConfig, task: Task) -> LLM2SLM:
    """The untrained model, with a record of its prompt frame and its number of trainable parameters."""
    model = build_model(config.model, config.data)
    begin_as_trained(model.slm, model.collator.slm_tokenizer.eos_token_id)
    model.config.prefix, model.config.suffix = task.around() or (None, "")
    model.config.trained = model.parameter_counts()["trainable"]
    return model


def language_seen(examples: Sequence[Example]) -> str:
    """The language code for tokenizing rows of unknown language."""
    return tokenization.detected([example.target for example in examples if example.language is None])


def validation_scorer(task: Task, batch_size: int, unknown: str | None = None) -> ValidationScorer | None:
    """Generates and scores predictions in validations, by metrics of texts only; None if the task has none.

    Metrics with a model would load it at each validation, and perplexity is exp(val/loss).

    Args:
        unknown: language code for rows of unknown language, so that they are tokenized as in the final test.
    """
    names = of_texts(task.metrics)

    def generate(
        model: LLM2SLM, examples: Sequence[Example], share: tuple[int, int], between: Callable[[], None]
    ) -> dict[int, str]:
        found: dict[int, str] = {}
        rounds = math.ceil(math.ceil(len(examples) / batch_size) / share[1])  # the last may be empty
        batches = answer_batches(model, examples, task, batch_size, share=share, progress=False)
        try:
            for _ in range(rounds):
                between()
                found |= zip(*next(batches, ([], [])), strict=True)
        finally:
            batches.close()
        return found

    def scored(examples: Sequence[Example], texts: Sequence[str]) -> dict[str, float]:
        languages = [unknown if example.language is None else example.language for example in examples]
        scores = score(names, texts, [example.target for example in examples], languages)
        return {name: found.value for name, found in scores.items()}

    return ValidationScorer(generate, scored, lower_is_better) if names else None


def read_curve(path: Path) -> list[dict[str, float]]:
    """`metrics.csv` as points of a curve, without empty cells."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def training_notes(config: RunConfig, fitted: Fitted) -> dict[str, Any]:
    """Facts about the training for `System.notes`."""
    hybrid = config.model.kind is SystemKind.llm2slm
    optim, llm = config.optim, config.model.llm.source
    distilled = {"teacher": llm, "weight": optim.distill, "temperature": optim.distill_temperature}
    return {
        "training_seconds": round(fitted.seconds, 1),
        "optimizer_steps": fitted.steps,
        "lr": optim.lr,
        "projector_lr": projector_rate(optim, config.model) if hybrid else optim.projector_lr,
        "folders": [n for n in (llm, config.model.slm.source) if n is not None and Path(n).exists()],
    } | ({"distilled": distilled} if optim.distill else {})
