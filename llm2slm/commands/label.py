"""`llm2slm label`: an LLM generates the answers of a split, for training with `data.labels=llm`.

Each batch of answers is flushed to disk. After an interruption, the same command with the same run directory continues;
the result is identical to that of an uninterrupted run. With several processes (trainer.devices) each generates a share
of the batches, and the first one writes them in order. With finished labels, the command changes nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.commands.builtin_llm import warn_builtin_llm
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.device import device_type, move_to_device
from llm2slm.commands.evaluate import (
    check_metrics,
    control_note,
    decoding_note,
    language_note,
    show_result,
    warn_language,
)
from llm2slm.commands.loaded_models import LoadedSystem, llm_note, load_system, parameters, plain_llm
from llm2slm.commands.task_choice import print_task, warn_task, with_task
from llm2slm.config import RunConfig
from llm2slm.config.choices import FORMATS
from llm2slm.config.ranges import check_ranges
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.labels import read_labels
from llm2slm.data.sources.sources import task_of
from llm2slm.data.tasks import Task
from llm2slm.evaluation.decoding_settings import arguments_of, effective_settings, sampling
from llm2slm.evaluation.metrics.scores import of_texts, score
from llm2slm.evaluation.predict import answer_batches
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.saving import own_fingerprint
from llm2slm.processes import Processes
from llm2slm.ranks import first_process
from llm2slm.resumable import ResumableLines, other_settings
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.training.launch import check_parallel, in_processes
from llm2slm.types import Example, Labels, UserError

SAMPLES = 32
SETTINGS = "settings"
"""Key in the notes of a result: the settings that determined the labels."""
SECTIONS = ("model", "data", "task", "label", "split", "seed", "run", "llm")
"""Sections of a configuration that can determine the labels."""


def run(config: RunConfig, folder: Path) -> runs.Result | None:
    """Labels `split` with `model.llm`, or with the trained system of `run=DIR`.

    Returns:
        The result; None if labels and result of the same command exist already.

    Raises:
        UserError: the folder holds labels made with other settings.
    """
    started = time.perf_counter()
    given = checked(config, folder)
    config = with_task(given)
    task = task_of(config.task, config.data)
    check_metrics(task)
    found = labelling_system(config)
    config, model = replace(config, model=found.config), move_to_device(found.model, config.trainer.accelerator)
    data = DataModule(config.data, task, model.collator, config.seed)
    examples = data.examples(config.split)
    print_task(given.task, given.data)
    if config.run is None:  # a run has its task
        warn_task(config)
        warn_builtin_llm([config.model.llm.name], config.data)
    warn_language(task, examples)
    decoding = decoding_of(config)
    decisive = settings(config, model, examples) | effective_settings(
        model.generation_config, arguments_of(task, decoding)
    )
    decisive = json.loads(json.dumps(decisive))  # as it is read again
    if not first_process():
        write_labels(None, model, examples, task, config)
        return None
    labels = folder / f"labels.{config.label.format}"
    check_finished(labels, config, decisive)
    file = None
    if not labels.is_file() or partial_of(folder).is_file():
        file = ResumableLines(folder / "labels.jsonl", decisive, config.data.eval_batch_size, len(examples))
    with nullcontext() if file is None else closing(file):  # releases its lock on errors too
        if labels.is_file() and (folder / "result.json").is_file():
            same = "labels exist already, made with the same settings"
            print(f"llm2slm: {labels}: all {len(examples)} {same}", file=sys.stderr)
            if file is not None:
                file.discard()
            return None
        show_held()
        with track("label", config, folder, resumed=file is None or file.done > 0) as tracking:
            if file is not None and not labels.is_file():
                runs.write_config(folder, config)
                write_labels(file, model, examples, task, config)
                put(file, labels, config)
            answers = answers_of(labels, examples)
            result = runs.Result("label", config.seed, runs.config_hash(config), time.perf_counter() - started, [])
            result.device = runs.device_name(model.device.type)
            result.systems = [evaluated(model, data, task, config, answers)]
            result.systems[0].notes[SETTINGS] = decisive
            runs.write_result(folder, result)
            tracking.result(result, folder)
        if file is not None:
            file.discard()
    show_result(folder)
    return result


def write_labels(
    file: ResumableLines | None, model: LLM2SLM, examples: list[Example], task: Task, config: RunConfig
) -> None:
    """Generates the missing labels and appends them batch by batch.

    Args:
        file: None in a further process, which generates a share of the batches for the first one.
    """
    size = config.data.eval_batch_size

    def work(group: Processes) -> None:
        done = group.from_first(0 if file is None else file.done)
        batches = answer_batches(
            model, examples, task, size, share=group.share, progress=config.trainer.progress and file is not None,
            done=done, decoding=decoding_of(config), seed=config.seed,
        )  # fmt: skip
        for positions, texts in group.in_order(batches, len(range(done, len(examples), size))):
            assert file is not None
            file.append(line(examples[i], text) for i, text in zip(positions, texts, strict=True))

    if file is not None and file.done:
        print(f"llm2slm: {file.partial} holds {file.done} of {len(examples)} labels: continuing", file=sys.stderr)
    try:
        in_processes(config.trainer, work)
    except (KeyboardInterrupt, UserError):
        if file is not None:
            print(f"llm2slm: {file.done} of {len(examples)} labels are in {file.partial}; run the same command with "
                  f"hydra.run.dir={file.path.parent} to continue", file=sys.stderr)  # fmt: skip
        raise


def checked(config: RunConfig, folder: Path) -> RunConfig:
    """Checks the configuration before the LLM is loaded; returns it with data.labels=gold."""
    device_type(config.trainer.accelerator)
    check_ranges(config)
    check_loggers(config.logger)
    check_parallel(config.trainer)
    other = next((path for kind in FORMATS if (path := folder / f"labels.{kind}").is_file()), None)
    if other is not None and other.suffix != f".{config.label.format}":
        raise UserError(
            f"{other}: is finished, but label.format={config.label.format} is given; train with "
            f"data.labels_from={folder}, or label into a new folder"
        )
    runs.refuse_another(folder, "label")
    return replace(config, data=replace(config.data, labels=Labels.gold))


def partial_of(folder: Path) -> Path:
    """The file of unfinished labels, for every format."""
    return folder / "labels.jsonl.part"


def check_finished(labels: Path, config: RunConfig, decisive: dict[str, Any]) -> None:
    """Refuses to replace finished labels by labels of other settings.

    The settings of finished labels are in result.json. If it is missing or has none (earlier versions), the command's
    configuration is compared with config.yaml.

    Raises:
        UserError: the settings differ; the message lists them.
    """
    if not labels.is_file() or partial_of(labels.parent).is_file():  # the partial file holds the settings too
        return
    known, given = None, decisive
    if (labels.parent / "result.json").is_file():
        known = runs.read_result(labels.parent)["systems"][0]["notes"].get(SETTINGS)
    if known is None:
        recorded = runs.read_config(labels.parent)
        plain = dict(flat(runs.plain(config)))
        known = {name: value for name, value in flat(recorded) if name.split(".")[0] in SECTIONS}
        given = {name: value for name, value in plain.items() if name in known}
    if other := other_settings(known, given):
        raise UserError(
            f"{labels}: is finished, with other settings ({other}); train with "
            f"data.labels_from={labels.parent}, or label into a new folder"
        )


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested sections with their dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def labelling_system(config: RunConfig) -> LoadedSystem:
    """The system that generates the labels."""
    if config.run is not None:
        return load_system(config.run, config.llm, config.model, config.data)
    return plain_llm(config.model.llm, config.data)


def decoding_of(config: RunConfig) -> dict[str, Any]:
    """Arguments of `generate` in addition to the task's."""
    sampled = sampling(config.label.temperature, config.label.top_p) if config.label.do_sample else {}
    return {"do_sample": config.label.do_sample, **sampled}


def settings(config: RunConfig, model: LLM2SLM, examples: list[Example]) -> dict[str, Any]:
    """The settings that determine the labels; unfinished labels are continued only with the same ones."""
    return {
        "model": config.run or config.model.llm.source,
        "weights": own_fingerprint(model),
        "dtype": str(model.slm.dtype).removeprefix("torch."),  # the weights may be equal in both
        "quantization": dict(config.model.llm.quantization),
        "frame": model.config.llm_frame,
        "split": config.split,
        "rows": runs.text_hash(example.prompt for example in examples),
        "batch_size": config.data.eval_batch_size,
        "max_prompt_tokens": model.collator.max_prompt_tokens,
        "seed": config.seed,
    }


def line(example: Example, text: str) -> str:
    """A label as a line of the file."""
    return json.dumps({"index": example.index, "source": example.source, "prediction": text}, ensure_ascii=False)


def evaluated(model: LLM2SLM, data: DataModule, task: Task, config: RunConfig, answers: list[str]) -> runs.System:
    """The labelling system with the scores of its labels against the corpus' targets."""
    examples = data.examples(config.split)
    targets, languages = [example.target for example in examples], [example.language for example in examples]
    quality = score(of_texts(task.metrics), answers, targets, languages)
    rows = [{"source": e.source, "target": e.target, "prediction": a} for e, a in zip(examples, answers, strict=True)]
    system = runs.System(model.label, model.kind.value, parameters(model), quality, samples=rows[:SAMPLES])
    notes = {"split": config.split, "data": data.report(), "labels": runs.plain(config.label)}
    system.notes = notes | language_note(task) | decoding_note(model, task, decoding_of(config)) | control_note(model)
    system.notes |= llm_note(model, config.model.llm)
    return system


def answers_of(labels: Path, examples: list[Example]) -> list[str]:
    """The labels of a finished file, in the order of the examples.

    Raises:
        UserError: the file lacks a label, or holds the label of another text under an example's index.
    """
    found = read_labels(labels)
    for example in examples:
        row = found.get(example.index)
        if row is None or row["source"] != example.source:
            raise UserError(
                f"{labels}: holds no label of row {example.index} (from 0), {example.source[:40]!r}; it belongs to "
                "other rows; label into a new folder"
            )
    return [str(found[example.index]["prediction"]) for example in examples]


def put(file: ResumableLines, path: Path, config: RunConfig) -> None:
    """Writes the finished file of labels, in the order of the split; parquet metadata has their origin."""
    rows = sorted((json.loads(text) for text in file.lines()), key=lambda row: row["index"])
    if path.suffix == ".jsonl":
        file.put(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        return
    import pyarrow
    from pyarrow import parquet

    origin = {"created": runs.now(), "command": runs.command(), "git_commit": runs.git_commit()}
    origin |= {"model": str(config.run or config.model.llm.source), "versions": json.dumps(runs.versions())}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({f"llm2slm.{k}": v for k, v in origin.items()})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    file.put(path, sink.getvalue().to_pybytes())
