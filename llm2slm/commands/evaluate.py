"""`llm2slm evaluate run=DIR`: generates predictions for a split, scores them, writes predictions and result."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2slm import json_lines, runs
from llm2slm.commands.builtin_llm import warn_builtin_llm
from llm2slm.commands.cascade_rule import number_or_text
from llm2slm.commands.decoders import load_decoder
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.device import device_type, move_to_device
from llm2slm.commands.loaded_models import llm_note, load_system, parameters
from llm2slm.commands.quality_kept import read_baseline, set_quality_kept
from llm2slm.commands.task_choice import print_task, warn_task, with_task
from llm2slm.config import DataConfig, RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.data.tasks import Task
from llm2slm.decoding import choose
from llm2slm.decoding.cascade import CascadeDecoder
from llm2slm.decoding.choose import REDUCED
from llm2slm.decoding.decoder import Decoder, GenerateDecoder
from llm2slm.decoding.lossless import LosslessDecoder
from llm2slm.evaluation.decoder_changes import changes
from llm2slm.evaluation.decoder_changes import line as changes_line
from llm2slm.evaluation.decoding_settings import arguments_of, effective_settings, one_line, published_settings
from llm2slm.evaluation.metrics import scores as metrics
from llm2slm.evaluation.metrics.buckets import quality_by_length
from llm2slm.evaluation.metrics.language_warnings import advice
from llm2slm.evaluation.metrics.metric import Evaluated, Measured
from llm2slm.evaluation.predict import answer_batches, predict, prediction_rows
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.saving import own_fingerprint
from llm2slm.processes import Processes
from llm2slm.ranks import first_process
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.training.launch import check_parallel, in_processes, several
from llm2slm.types import Control, Example, UserError

SAMPLES = 32
"""Rows of predictions that a result carries for the report."""


def run(config: RunConfig, folder: Path) -> runs.Result | None:
    """Evaluates a trained system, or (`run=builtin/llm`, or any Hub id) a plain model, on `split`.

    With several processes (trainer.devices) each generates a share of the batches; the first one scores all answers.

    Returns:
        The result; None in a further process.
    """
    started = time.perf_counter()
    run = config.run
    if run is None:
        raise UserError("evaluate needs run=DIR: the run directory that `train` wrote, or a model's folder or id")
    given, config = config, with_task(config)
    task = task_of(config.task, config.data)
    check_metrics(task)
    runs.refuse_another(folder, "evaluate")
    trained = trained_result(run)
    device_type(config.trainer.accelerator)
    check_loggers(config.logger)
    check_parallel(config.trainer)
    baseline = read_baseline(config)
    loaded = load_system(run, config.llm, config.model, config.data)
    config, model = replace(config, model=loaded.config), loaded.model
    print_defaults(given)
    print_task(given.task, given.data)
    warn_task(config)
    warn_builtin_llm([config.run, (model.config.llm or {}).get("name")], config.data)
    move_to_device(model, config.trainer.accelerator)
    decoder = load_decoder(config.decoding, model, config.llm, config.data, num_beams=task.num_beams,
                           cascade=config.cascade)  # fmt: skip
    model = decoder.model
    data = DataModule(config.data, task, model.collator, config.seed)
    data.encoded(config.split)  # bad data is found before anything is written
    warn_language(task, data.examples(config.split))
    show_held()
    if not first_process():
        generated(decoder, data.examples(config.split), task, config)
        return None
    runs.write_config(folder, config)
    with track("evaluate", config, folder) as tracking:
        answers = generated(decoder, data.examples(config.split), task, config) if several(config.trainer) else None
        system = score_system(
            model, data, task, config=config, folder=folder, split=config.split, answers=answers, decoder=decoder
        )
        if config.decoding not in choose.EXACT:
            system.name = f"{loaded.model.label} ({config.decoding})"
        result = runs.Result("evaluate", config.seed, runs.config_hash(config), 0.0, [system])
        result.selection, system.validation = selection_of(trained, system.weights)
        set_quality_kept(result, baseline)
        result.device = runs.device_name(model.device.type)
        result.wall_seconds = time.perf_counter() - started
        runs.write_result(folder, result)
        tracking.result(result, folder)
    show_result(folder)
    return result


def trained_result(run: str) -> dict[str, Any]:
    """The `result.json` of a run directory; empty where there is none."""
    home = runs.home(run)
    return runs.read_result(home) if home is not None and (home / "result.json").exists() else {}


def selection_of(trained: Mapping[str, Any], weights: str | None) -> tuple[runs.Selection | None, dict[str, float]]:
    """How training chose the weights that are evaluated, with their validation scores; none where that is unknown.

    Args:
        trained: the result of the training.
    """
    chosen = trained.get("selection")
    system: dict[str, Any] = next(iter(trained.get("systems", [])), {})
    if not chosen or system.get("weights") != weights:
        return None, {}
    return runs.Selection(**chosen), dict(system["validation"])


def show_result(folder: Path) -> None:
    """Prints the table of a run directory's result.json, and its path."""
    from rich.console import Console

    from llm2slm.evaluation.report.report import terminal_table

    console = Console()
    console.print(terminal_table([runs.read_result(folder)]))
    print(folder / "result.json")


def check_metrics(task: Task) -> None:
    """Refuses an unknown metric, or one whose model is missing, before anything is loaded or trained."""
    metrics.check(task.metrics)
    for name in task.metrics:
        if (metric := metrics.find(name)) is not None and metric.check is not None:
            metric.check(name)


def warn_language(task: Task, examples: Sequence[Example]) -> None:
    """Warns if the metrics may tokenize the targets wrongly."""
    references, languages = [example.target for example in examples], [example.language for example in examples]
    for line in advice(task.metrics, languages, references):
        print(f"llm2slm: warning: {line}", file=sys.stderr)


def language_note(task: Task) -> dict[str, str]:
    """The note about the language for which the metrics tokenize, if all rows have the same known one."""
    return {} if task.language is None else {"language": task.language}


def final_split(data: DataConfig) -> str:
    """The split for final scores and timing: test; validation for files without a test split."""
    sources = [data, *data.parts] if data.name == "mixture" else [data]
    return "validation" if any(each.name == "json" and each.test is None for each in sources) else "test"


def print_defaults(config: RunConfig) -> None:
    """Prints corpus and prefix if neither the model nor the user names them."""
    if config.run is None or runs.home(config.run) is not None:
        return
    data, default = config.data, RunConfig()
    named = (data.name, data.corpus, config.task.name, config.task.prefix)
    if named == (default.data.name, default.data.corpus, default.task.name, default.task.prefix):
        task = task_of(config.task, data)
        print(
            f"llm2slm: {config.run} records no corpus: using data={data.name} (data.corpus={data.corpus}) with "
            f"task.prefix={task.prefix!r}",
            file=sys.stderr,
        )


def score_system(
    model: LLM2SLM,
    data: DataModule,
    task: Task,
    *,
    config: RunConfig,
    folder: Path,
    split: str,
    answers: Sequence[str] | None = None,
    written: bool = False,
    decoder: Decoder | None = None,
) -> runs.System:
    """Generates predictions for a split, writes `predictions.jsonl`, and scores them.

    Rows dropped by the length limits (data.overlong=drop) are excluded; the system's notes have their number.

    Args:
        answers: this model's predictions; None: they are generated here.
        written: `predictions.jsonl` has these answers already.
        decoder: of the model; None: transformers' `generate`.
    """
    examples = data.examples(split)
    timed: dict[str, Any] = {}
    if answers is None:
        distinct, started = distinct_prompts(examples, task), time.perf_counter()
        size = config.data.eval_batch_size
        found = predict(model, distinct, task, size, decoder=decoder, progress=config.trainer.progress)
        if distinct:
            ms = 1000 * (time.perf_counter() - started) / len(distinct)
            timed = {"generation": {"ms_per_answer": round(ms, 3), "batch": size}}
        answers = for_all(found, examples)
    rows = prediction_rows(examples, answers)
    if not written:
        json_lines.write_jsonl(folder / "predictions.jsonl", rows)
    measured = measure(model, data, task, answers, config=config, split=split)
    quality = {name: found.score() for name, found in measured.items()}
    system = runs.System(model.label, model.kind.value, parameters(model, decoder), quality, samples=rows[:SAMPLES])
    system.weights = own_fingerprint(model)
    system.buckets = quality_by_length(examples, measured)
    notes = {"split": split, "data": data.report()} | language_note(task)
    system.notes = notes | decoding_note(model, task) | control_note(model)
    system.notes |= llm_note(model, config.model.llm, system.weights) | timed
    system.notes |= decoder_note(decoder, counted=bool(timed))  # else each process counts its share
    if timed and isinstance(decoder, CascadeDecoder | LosslessDecoder):
        print(f"llm2slm: decoding={decoder.name}: {decoder.counts.line()}", file=sys.stderr)
    if decoder is not None:
        system.notes.get("decoder", {}).update(changes_note(decoder, distinct_prompts(examples, task), task, config))
    return system


def distinct_prompts(examples: list[Example], task: Task) -> list[Example]:
    """The examples to generate for: of a task without a source all prompts are equal."""
    return examples[:1] if task.text else examples


def for_all(answers: list[str], examples: Sequence[Example]) -> list[str]:
    """Answers to `distinct_prompts` as one per example."""
    return answers if len(answers) == len(examples) else answers * len(examples)


def generated(decoder: Decoder, examples: list[Example], task: Task, config: RunConfig) -> list[str]:
    """The answers to a split, by all processes; empty except in the first one."""
    distinct, size = distinct_prompts(examples, task), config.data.eval_batch_size

    def work(group: Processes) -> list[str]:
        progress = config.trainer.progress and group.rank == 0
        batches = answer_batches(
            decoder.model, distinct, task, size, share=group.share, decoder=decoder, progress=progress
        )
        found: dict[int, str] = {}
        for positions, texts in group.in_order(batches, len(range(0, len(distinct), size))):
            found |= zip(positions, texts, strict=True)
        return [found[i] for i in sorted(found)]

    return for_all(in_processes(config.trainer, work), examples)


def measure(
    model: LLM2SLM, data: DataModule, task: Task, answers: Sequence[str], *, config: RunConfig, split: str
) -> dict[str, Measured]:
    """Per-row statistics of every metric of a task, in the task's order."""
    examples = data.examples(split)
    references, languages = [example.target for example in examples], [example.language for example in examples]
    found = metrics.measure(metrics.of_texts(task.metrics), answers, references, languages)
    sizes = config.data.eval_batch_size, config.trainer.progress
    evaluated = Evaluated(model, lambda: data.encoded(split), answers, references, *sizes)
    for name in task.metrics:
        if (metric := metrics.find(name)) is not None and metric.with_model is not None:
            found[name] = metric.with_model(name, evaluated)
    return {name: found[name] for name in task.metrics}


def decoding_note(model: LLM2SLM, task: Task, decoding: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The note about decoding settings. Prints settings that the model's generation_config.json adds.

    Args:
        decoding: arguments of `generate` in addition to the task's.
    """
    arguments = arguments_of(task, decoding)
    published = published_settings(model.generation_config, arguments)
    if published:
        print(
            f"llm2slm: {model.label} also decodes with the settings of its generation_config.json: "
            f"{one_line(published)}",
            file=sys.stderr,
        )
    return {"decoding": effective_settings(model.generation_config, arguments)}


def decoder_note(decoder: Decoder | None, *, counted: bool = True) -> dict[str, Any]:
    """The note about a decoder other than transformers' `generate`.

    Args:
        counted: its counts are those of all responses.
    """
    if decoder is None or (isinstance(decoder, GenerateDecoder) and decoder.name == GenerateDecoder.name):
        return {}
    found: dict[str, Any] = {"name": decoder.name}
    if isinstance(decoder, CascadeDecoder):
        found |= {"threshold": number_or_text(decoder.rule.threshold), "confidence": decoder.rule.confidence.value}
    if isinstance(decoder, CascadeDecoder | LosslessDecoder) and counted:
        found |= {"counts": decoder.counts.summary()}
    return {"decoder": found}


def changes_note(decoder: Decoder, examples: list[Example], task: Task, config: RunConfig) -> dict[str, Any]:
    """What a decoder of reduced precision changes, for the note about it; prints it. Empty for other decoders."""
    exact = next((exact for name, exact in REDUCED.items() if name == decoder.name), None)
    if exact is None or not config.exact_rows or not examples:
        return {}
    rows = examples[: config.exact_rows]
    found = changes(decoder, choose.decoder(exact, decoder.model), rows, task, config.data.eval_batch_size)
    print(f"llm2slm: {changes_line(found, decoder.name)}", file=sys.stderr)
    return {"changes": found}


def control_note(model: LLM2SLM) -> dict[str, str]:
    """The note that marks a system as a control."""
    return {} if model.control is Control.none else {"control": model.control.value}
