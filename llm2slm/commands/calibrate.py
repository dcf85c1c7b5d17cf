"""`llm2slm calibrate run=DIR quality_kept=0.99`: the threshold of a cascade, found on validation, with uncertainty."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm2slm import json_lines, runs
from llm2slm.atomic import write_text
from llm2slm.commands.builtin_llm import warn_builtin_llm
from llm2slm.commands.cascade_rule import FILE, as_json, number_or_text
from llm2slm.commands.decoders import load_decoder
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.device import device_type, move_to_device
from llm2slm.commands.evaluate import SAMPLES, check_metrics, language_note, warn_language
from llm2slm.commands.loaded_models import load_system, parameters
from llm2slm.commands.quality_kept import quality_kept
from llm2slm.commands.task_choice import print_task, warn_task, with_task
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.data.tasks import Task
from llm2slm.decoding.cascade import CascadeDecoder
from llm2slm.evaluation.calibration import Calibration, Costs, Scored, calibrated
from llm2slm.evaluation.decoding_settings import arguments_of
from llm2slm.evaluation.metrics import scores as metrics
from llm2slm.evaluation.metrics.row_statistics import row_statistics
from llm2slm.evaluation.predict import by_length, prediction_rows
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.saving import own_fingerprint
from llm2slm.out_of_memory import explained
from llm2slm.progress import progress_bar
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.types import Decoding, Example, SystemKind, UserError

SPLIT = "validation"
SHORT = {"LLM's share": "LLM's\nshare", "Probability": "Proba-\nbility"}
"""Headings of the terminal's table on two lines."""
LEFT_OUT = "ms per answer"
"""Column of the page that the terminal's table does not have."""
TIMED = 8
"""Batches that are timed, after all of them were generated once."""


@dataclass
class Answers:
    """The answers of both systems to all rows, and the hybrid's confidence in its own."""

    hybrid: list[str]
    llm: list[str]
    confidence: list[float]

    def cascade(self, threshold: float) -> list[str]:
        """The answers of the cascade."""
        rows = zip(self.hybrid, self.llm, self.confidence, strict=True)
        return [llm if confidence < threshold else hybrid for hybrid, llm, confidence in rows]


def run(config: RunConfig, folder: Path) -> runs.Result:
    """Generates with hybrid and LLM for the validation split, finds the threshold, and writes `calibration.json`,
    `result.json`, `answers.jsonl` (both answers to each row, with the confidence) and `report.html`.

    Raises:
        UserError: `run` is no hybrid, its whole LLM cannot be loaded, no metric fits, or the LLM's metric is 0.
    """
    started = time.perf_counter()
    name = config.run
    if name is None:
        raise UserError("calibrate needs run=DIR: the run directory of a hybrid, that `train` wrote")
    given, config = config, with_task(config)
    task = task_of(config.task, config.data)
    check_metrics(task)
    if task.text:
        raise UserError(f"calibrate: task={task.name} has no prompts, so all answers are equal; use another task")
    metric = metric_of(config, task)
    runs.refuse_another(folder, "calibrate")
    device_type(config.trainer.accelerator)
    check_loggers(config.logger)
    loaded = load_system(name, config.llm, config.model, config.data)
    config, model = replace(config, model=loaded.config), loaded.model
    if model.kind is not SystemKind.llm2slm:
        raise UserError(f"calibrate needs a hybrid: run={name} is {model.kind.value}; give the run of a hybrid")
    print_task(given.task, given.data)
    warn_task(config)
    warn_builtin_llm([(model.config.llm or {}).get("name")], config.data)
    move_to_device(model, config.trainer.accelerator)
    decoder = load_decoder(
        Decoding.cascade, model, config.llm, config.data, num_beams=task.num_beams, cascade="-inf"
    )  # fmt: skip
    assert isinstance(decoder, CascadeDecoder)
    data = DataModule(config.data, task, model.collator, config.seed)
    data.encoded(SPLIT)  # bad data is found before anything is written
    examples = data.examples(SPLIT)
    warn_language(task, examples)
    show_held()
    runs.write_config(folder, config)
    with track("calibrate", config, folder) as tracking:
        answers, costs = answered(decoder, examples, task, config)
        found = calibration_of(answers, examples, metric, costs, config)
        found.weights = {"hybrid": own_fingerprint(model), "llm": own_fingerprint(decoder.llm)}
        stored = as_json(runs.plain(found))
        systems = systems_of(found, answers, decoder, data, task)
        result = runs.Result("calibrate", config.seed, runs.config_hash(config), 0.0, systems)
        result.baseline = runs.Baseline(systems[-1].name, systems[-1].kind)
        result.device = runs.device_name(model.device.type)
        result.calibration = stored
        result.wall_seconds = time.perf_counter() - started
        rows = zip(examples, answers.hybrid, answers.llm, answers.confidence, strict=True)
        json_lines.write_jsonl(folder / "answers.jsonl", [
            {"source": each.source, "target": each.target, "hybrid": hybrid, "llm": llm,
             "confidence": number_or_text(confidence)} for each, hybrid, llm, confidence in rows
        ])  # fmt: skip
        runs.write_result(folder, result)
        path = write_text(folder / FILE, json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
        write_page(folder, config)
        tracking.result(result, folder)
    show(stored, path)
    return result


def metric_of(config: RunConfig, task: Task) -> str:
    """The metric whose quality is kept.

    Raises:
        UserError: the given one, or all of the task, need a model or are better if lower.
    """
    given = config.calibrate.metric
    candidates = task.metrics if given is None else [given]
    metrics.check(candidates)
    for name in metrics.of_texts(candidates):
        if metrics.ranked(name) and not metrics.lower_is_better(name):
            return name
    key = f"task.metrics=[{','.join(candidates)}]" if given is None else f"calibrate.metric={given}"
    raise UserError(f"{key}: quality kept needs a metric of texts whose higher values are better; "
                    f"choose one by calibrate.metric=NAME ({', '.join(_fitting())})")  # fmt: skip


def _fitting() -> list[str]:
    names = metrics.of_texts(metrics.METRICS)
    return [name for name in names if metrics.ranked(name) and not metrics.lower_is_better(name)]


def answered(
    decoder: CascadeDecoder, examples: Sequence[Example], task: Task, config: RunConfig
) -> tuple[Answers, Costs]:
    """The answers of both systems to all examples, and their times per answer on some of the batches.

    The times are those of second passes, with the systems in turn; the LLM encodes its prompts itself.
    """
    size, arguments = config.data.eval_batch_size, arguments_of(task)
    order = by_length(examples)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    timed = sorted({round(at) for at in np.linspace(0, len(parts) - 1, min(TIMED, len(parts)))})
    found: dict[int, tuple[str, str, float]] = {}
    seconds, rows = {"hybrid": 0.0, "llm": 0.0}, 0
    with torch.inference_mode(), progress_bar(config.trainer.progress) as bar:
        job = bar.add_task("generating with hybrid and LLM", total=len(examples), speed="")
        for number, positions in enumerate(parts):
            with explained(f"a batch of {len(positions)} answers", "lower data.eval_batch_size"):
                batch = decoder.batch([examples[i].prompt for i in positions])
                hybrid = decoder.answer(batch, **arguments)
                every_R = torch.arange(len(positions))
                llm_ids = decoder.rewrite(batch, every_R, hybrid.reps, **arguments)
                texts = decoder.model.collator.decode(hybrid.ids_RT), decoder.llm.collator.decode(llm_ids)
                confidence = hybrid.scores.confidence(config.calibrate.confidence).tolist()
                found |= dict(zip(positions, zip(*texts, confidence, strict=True), strict=True))
                if number in timed:
                    rows += len(positions)
                    for name in sorted(seconds, reverse=timed.index(number) % 2 == 0):
                        began = time.perf_counter()
                        if name == "hybrid":
                            decoder.model.collator.decode(decoder.answer(batch, **arguments).ids_RT)
                        else:
                            decoder.llm.collator.decode(decoder.rewrite(batch, every_R, **arguments))
                        seconds[name] += time.perf_counter() - began
            bar.update(job, advance=len(positions), speed="")
    columns = zip(*(found[i] for i in range(len(examples))), strict=True)
    ms = {name: round(1000 * spent / rows, 4) for name, spent in seconds.items()}
    return Answers(*map(list, columns)), Costs(ms["hybrid"], ms["llm"], size, rows)


def calibration_of(
    answers: Answers, examples: Sequence[Example], metric: str, costs: Costs, config: RunConfig
) -> Calibration:
    """The calibration from both systems' answers.

    Raises:
        UserError: the LLM's metric is 0.
    """
    references, languages = [example.target for example in examples], [example.language for example in examples]
    _, hybrid = row_statistics(metric, answers.hybrid, references, languages)
    llm_score, llm = row_statistics(metric, answers.llm, references, languages)
    names = config.calibrate.confidence.value, metric, llm_score.signature
    if not llm_score.value > 0:
        raise UserError(f"{metric} of the LLM on validation is {llm_score.value:g}: quality kept is not defined; "
                        "choose another metric by calibrate.metric=NAME")  # fmt: skip
    settings: dict[str, Any] = {"resamples": config.calibrate.resamples, "seed": config.seed}
    with progress_bar(config.trainer.progress, transient=True) as bar:
        job = bar.add_task("resampling", total=config.calibrate.resamples, speed="")
        settings["advance"] = lambda done: bar.update(job, advance=done)
        scored = Scored(hybrid, llm, np.array(answers.confidence, dtype=np.float64))
        return calibrated(scored, config.quality_kept, costs, names=names, **settings)


def systems_of(
    found: Calibration, answers: Answers, decoder: CascadeDecoder, data: DataModule, task: Task
) -> list[runs.System]:
    """The cascade with the chosen threshold, the hybrid and the LLM, with their scores on validation."""
    examples = data.examples(SPLIT)
    references, languages = [example.target for example in examples], [example.language for example in examples]
    names = list(dict.fromkeys([found.metric, *metrics.of_texts(task.metrics)]))
    notes = {"split": SPLIT, "data": data.report()} | language_note(task)
    rule = {"threshold": number_or_text(found.threshold), "confidence": found.confidence,
            "share_rewritten": found.chosen.share}  # fmt: skip
    costs = found.costs

    def system(name: str, of: LLM2SLM, texts: list[str], ms: float, **more: Any) -> runs.System:
        quality = metrics.score(names, texts, references, languages)
        one = runs.System(name, of.kind.value, parameters(of, decoder if name == "cascade" else None), quality)
        one.samples = prediction_rows(examples, texts)[:SAMPLES]
        one.weights = own_fingerprint(of)
        one.notes = notes | {"generation": {"ms_per_answer": round(ms, 3), "batch": costs.batch}} | more
        return one

    llm = system("llm", decoder.llm, answers.llm, costs.llm_ms)
    hybrid = system(decoder.model.label, decoder.model, answers.hybrid, costs.hybrid_ms)
    mixed = answers.cascade(found.threshold)
    cascade = system("cascade", decoder.model, mixed, found.chosen.ms_per_answer, decoder={"name": "cascade"} | rule)
    for each in (hybrid, cascade):
        each.quality_kept = quality_kept(each, llm)
    return [cascade, hybrid, llm]


def write_page(folder: Path, config: RunConfig) -> None:
    """Writes report.html, with the curve."""
    from llm2slm.evaluation.report.report import write_report

    text = (folder / "config.yaml").read_text(encoding="utf-8")
    write_report([runs.read_result(folder)], folder, f"Cascade of {config.run}", configs=[text])


def show(stored: dict[str, Any], path: Path) -> None:
    """Prints some points of the curve, what was chosen, and the path of the calibration."""
    from rich.console import Console

    from llm2slm.evaluation.report import cascade
    from llm2slm.evaluation.report.report import fitted

    head = cascade.head(stored)
    shown = [n for n, heading in enumerate(head) if heading != LEFT_OUT]
    head = [SHORT.get(heading, heading.replace(" interval", "\ninterval")) for heading in head]
    lines = [[line[n] for n in shown] for line in (head, *cascade.lines(stored, cascade.selected(stored)))]
    Console().print(fitted(lines, cascade.conditions(stored), turn=False))
    print(cascade.verdict(stored))
    if stored["threshold"] == "inf":
        print("llm2slm: warning: no threshold keeps this quality with answers of the hybrid; the LLM writes all",
              file=sys.stderr)  # fmt: skip
    print(path)
