"""The command that usually follows a verb, printed at its end."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm2slm.config import RunConfig
from llm2slm.config.verbs import CostsConfig, GenerateConfig, JudgeConfig, ReportConfig
from llm2slm.types import UserError

KEPT = ("llm", "decoding", "cascade", "num_beams", "do_sample", "temperature", "top_p", "max_new_tokens", "prefix")
"""Keys of `generate` that the command for a file repeats."""


def next_command(verb: str, config: Any, folder: Path) -> str | None:
    """The command line that follows; None if there is none.

    Args:
        config: the configuration of the verb.
        folder: the run directory of a verb with one.
    """
    arguments = _arguments(verb, config, str(folder))
    return None if arguments is None else f"llm2slm {shlex.join(arguments)}"


def _arguments(verb: str, config: Any, folder: str) -> list[str] | None:
    if isinstance(config, RunConfig):
        return _of_run(verb, config, folder)
    match verb:
        case "generate":
            return _file_of_prompts(config) if config.prompt else None
        case "export":
            return ["generate", f"run={config.out}", "prompt=TEXT"]
        case "judge" | "report":
            return _comparison(config)
        case "compare":
            return ["judge", *config.runs[:2], "endpoint=URL", "model=NAME"]
        case "costs":
            return _of_costs(config)
        case "tokenizer":
            return ["train", f"model.slm.tokenizer={config.out}"]
    return None


def _file_of_prompts(config: GenerateConfig) -> list[str]:
    """The same generation for the prompts of a file."""
    default = GenerateConfig()
    changed = {name: getattr(config, name) for name in KEPT if getattr(config, name) != getattr(default, name)}
    kept = [f"{name}={value}" for name, value in changed.items()]
    return ["generate", f"run={config.run}", "input=FILE", "output=answers.jsonl", *kept]


def _of_run(verb: str, config: RunConfig, folder: str) -> list[str] | None:
    match verb:
        case "train":
            return ["benchmark", f"run={config.run or folder}"]
        case "evaluate":
            found = _comparable([str(config.run), folder])
            return ["compare", *found] if len(found) == 2 else ["report", folder]
        case "calibrate":
            return ["evaluate", f"run={config.run}", "decoding=cascade", f"cascade={folder}"]
        case "benchmark":
            return ["report", folder] if config.run is None else ["report", str(config.run), folder]
        case "label":
            return ["train", *_corpus(config), "data.labels=llm", f"data.labels_from={folder}"]
        case "encode":
            return ["train", *_corpus(config), f"data.reps={folder}/reps"]
        case "demo":
            return ["generate", f"run={folder}/{next(reversed(config.systems), '')}", "prompt=TEXT"]
    return None


def _of_costs(config: CostsConfig) -> list[str]:
    if config.run is not None:
        return ["benchmark", f"run={config.run}"]
    sides = {"llm": config.model.llm.name, "slm": config.model.slm.name}
    return ["train", *(f"model.{side}.name={name}" for side, name in sides.items() if name is not None)]


def _comparison(config: JudgeConfig | ReportConfig) -> list[str] | None:
    """The comparison of the runs that were judged or reported."""
    found = config.runs
    if isinstance(config, ReportConfig):
        found = [] if config.mixed else _comparable(found)
    return ["compare", *found, *["RUN"] * (len(found) == 1)] if found else None


def _comparable(given: Sequence[str]) -> list[str]:
    """Those of the given runs that have predictions; none if these are not for the same rows."""
    found = {run: rows for run in given if (rows := _rows(run)) is not None}
    first = next(iter(found.values()), [])
    return list(found) if first and all(rows == first for rows in found.values()) else []


def _rows(run: str) -> list[tuple[str, str]] | None:
    """Sources and targets of a run's predictions; None without predictions, [] if they are damaged."""
    from llm2slm.evaluation.compare.systems import PREDICTIONS, read_predictions  # after the verb, not at its start

    path = Path(run) / PREDICTIONS
    if not path.is_file():
        return None
    try:
        return [(source, target) for source, target, _ in read_predictions(path)[0]]
    except UserError:
        return []


def _corpus(config: RunConfig) -> list[str]:
    """The keys that name the corpus, where it is not the default."""
    data, default = config.data, RunConfig().data
    found = [f"data={data.name}"] if data.name != default.name else []
    return found + ([f"data.root={data.root}"] if data.root is not None else [])
