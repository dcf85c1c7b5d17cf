"""The command that usually follows a verb, printed at its end."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.config import ModelConfig, RunConfig
from llm2slm.config.verbs import CostsConfig, JudgeConfig, ReportConfig
from llm2slm.types import UserError

OF_GENERATE = ("llm", "decoding", "cascade", "num_beams", "do_sample", "temperature", "top_p", "max_new_tokens",
               "prefix", "model")  # fmt: skip
"""Keys and sections of `generate` that the command for a file repeats."""
OF_TRAIN = ("data", "task", "model", "experiment")
"""Keys and sections of `label`, `encode` and `costs` that the training repeats."""
SET_ANEW = ("data.labels", "data.labels_from", "data.reps")
"""Keys that the command itself sets."""


def next_command(verb: str, config: Any, folder: Path, overrides: Sequence[str] = ()) -> str | None:
    """The command line that follows; None if there is none.

    Args:
        config: the configuration of the verb.
        folder: the run directory of a verb with one.
        overrides: those of its command line. The command repeats those of the same model, data and decoding.
    """
    arguments = _arguments(verb, config, str(folder), overrides)
    return None if arguments is None else f"llm2slm {shlex.join(arguments)}"


def _arguments(verb: str, config: Any, folder: str, overrides: Sequence[str]) -> list[str] | None:
    if isinstance(config, RunConfig):
        return _of_run(verb, config, folder, overrides)
    match verb:
        case "generate":
            start = ["generate", f"run={config.run}", "input=FILE", "output=answers.jsonl"]
            return [*start, *_repeated(overrides, OF_GENERATE)] if config.prompt else None
        case "export":
            return ["generate", f"run={config.out}", "prompt=TEXT"]
        case "judge" | "report":
            return _comparison(config)
        case "compare":
            return ["judge", *config.runs[:2], "endpoint=URL", "model=NAME"]
        case "costs":
            return _of_costs(config, overrides)
        case "tokenizer":
            return ["train", f"model.slm.tokenizer={config.out}"]
    return None


def _repeated(overrides: Sequence[str], names: Sequence[str]) -> list[str]:
    """The overrides of keys, or of keys of sections."""
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    found = zip(keys, overrides, strict=True)
    return [
        override.lstrip("+")
        for key, override in found
        if key not in SET_ANEW and key.replace("/", ".").partition(".")[0] in names
    ]


def _of_run(verb: str, config: RunConfig, folder: str, overrides: Sequence[str]) -> list[str] | None:
    match verb:
        case "train":
            return None if _model(config).loses_llm else ["benchmark", f"run={config.run or folder}"]
        case "evaluate":
            found = _comparable([str(config.run), folder])
            return ["compare", *found] if len(found) == 2 else ["report", folder]
        case "calibrate":
            return ["evaluate", f"run={config.run}", "decoding=cascade", f"cascade={folder}"]
        case "benchmark":
            return ["report", folder] if config.run is None else ["report", str(config.run), folder]
        case "label":
            return ["train", *_repeated(overrides, OF_TRAIN), "data.labels=llm", f"data.labels_from={folder}"]
        case "encode":
            return ["train", *_repeated(overrides, OF_TRAIN), f"data.reps={folder}/reps"]
        case "demo":
            return ["generate", f"run={folder}/{next(reversed(config.systems), '')}", "prompt=TEXT"]
    return None


def _model(config: RunConfig) -> ModelConfig:
    """The model of a training; that of a resumed one is in its record."""
    home = None if config.run is None else runs.home(config.run)
    if home is None:
        return config.model
    from omegaconf import OmegaConf

    recorded = OmegaConf.merge(OmegaConf.structured(ModelConfig), runs.read_config(home).get("model") or {})
    found = OmegaConf.to_object(recorded)
    assert isinstance(found, ModelConfig)
    return found


def _of_costs(config: CostsConfig, overrides: Sequence[str]) -> list[str]:
    return ["train", *_repeated(overrides, OF_TRAIN)] if config.run is None else ["benchmark", f"run={config.run}"]


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
