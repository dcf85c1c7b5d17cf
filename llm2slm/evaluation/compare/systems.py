"""The systems to compare, read from run directories: predictions, kind and parameters, and speeds of one timing run.

A run of one system has `result.json` and `predictions.jsonl` in one folder; a run of several systems (a demo) has
RUN/NAME/predictions.jsonl for each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm2slm import json_lines, runs
from llm2slm.data.languages import known
from llm2slm.evaluation.metrics.tokenization import of
from llm2slm.evaluation.report.entries import baseline_of, headline_row
from llm2slm.types import UserError

PREDICTIONS = "predictions.jsonl"
FIELDS = ("source", "target", "prediction")
PROMPTING = ("prefix", "chat", "quantization")
"""Keys of a result's note on an LLM (`commands.loaded_models.llm_note`) on how it is prompted."""


@dataclass
class Answers:
    """One system: its predictions for all rows, and its entry in its result."""

    folder: Path
    """Where its predictions.jsonl is."""
    run: Path
    """The run directory of its result.json."""
    result: Mapping[str, Any]
    system: Mapping[str, Any]
    """Its entry in `result`."""
    rows: list[tuple[str, str, str]]
    """Source, target and prediction."""
    languages: list[str | None]
    """Code of each target's language, if its predictions or its result record it."""
    label: str = ""
    """Its unique name."""
    short_path: str = ""
    """The part of the label that is from its folder."""
    row: Mapping[str, Any] | None = None
    """Its headline speed row, if it was timed in the timing run."""

    @property
    def kind(self) -> str:
        """llm, slm, llm2slm, or another kind that its result records."""
        return str(self.system["kind"])

    @property
    def control(self) -> str | None:
        """The control (`types.Control`) that a hybrid is; None: it is none."""
        found = (self.system.get("notes") or {}).get("control")
        return None if found is None else str(found)

    @property
    def decoding(self) -> Mapping[str, Any] | None:
        """Its decoding settings, if its result records them."""
        found = (self.system.get("notes") or {}).get("decoding")
        return found if isinstance(found, Mapping) else None

    @property
    def llm(self) -> Mapping[str, Any] | None:
        """How its LLM is prompted, if its result records it."""
        found = (self.system.get("notes") or {}).get("llm")
        return {key: found.get(key) for key in PROMPTING} if isinstance(found, Mapping) else None

    @property
    def predictions(self) -> list[str]:
        """Its predictions, in the order of the rows."""
        return [prediction for *_, prediction in self.rows]


@dataclass
class Timing:
    """The run of all speeds, the baseline of its speedups, and notes on systems that it has not timed."""

    run: Path | None = None
    notes: list[str] = field(default_factory=list)
    baseline: str = ""


def read_run(path: str) -> list[Answers]:
    """The systems of a run that have predictions; `path` is a run directory, or its result.json or predictions.jsonl.

    Raises:
        UserError: no result, no predictions, or a malformed line.
    """
    named = Path(path).parent if Path(path).name == PREDICTIONS else Path(path)
    result = runs.read_result(named)
    run = named if named.is_dir() else named.parent
    systems = result.get("systems")
    if not isinstance(systems, list) or not all(isinstance(s, dict) and {"name", "kind"} <= s.keys() for s in systems):
        raise UserError(f"{run / 'result.json'}: has no list of systems with name and kind; write it again")
    folders = [run] if len(systems) == 1 else [run / str(system["name"]) for system in systems]
    pairs = zip(folders, systems, strict=True)
    found = [(folder, system) for folder, system in pairs if (folder / PREDICTIONS).is_file()]
    if not found and result.get("verb") == "benchmark":
        raise UserError(f"{run}: is a benchmark, which has no predictions; pass it as benchmark={run}")
    if not found:
        missing = run / ("" if len(systems) == 1 else "NAME") / PREDICTIONS
        raise UserError(f"{missing}: no such file; compare reads the predictions that train, evaluate and demo write")
    return [_answers(folder, run, result, system) for folder, system in found]


def _answers(folder: Path, run: Path, result: Mapping[str, Any], system: Mapping[str, Any]) -> Answers:
    rows, languages = read_predictions(folder / PREDICTIONS)
    stated = (system.get("notes") or {}).get("language")
    stated = stated if isinstance(stated, str) else None
    return Answers(folder, run, result, system, rows, [stated if each is None else each for each in languages])


def read_predictions(path: Path) -> tuple[list[tuple[str, str, str]], list[str | None]]:
    """Source, target and prediction of each row, and the code of its target's language (None if not recorded).

    Raises:
        UserError: no rows, or a row without these texts; names file and line.
    """
    rows, languages = [], []
    for number, row in json_lines.read_jsonl(path):
        for name in FIELDS:
            if not isinstance(row.get(name), str):
                raise UserError(f"{path}, line {number}: no text in the field {name}; has: {', '.join(row)}")
        rows.append((row["source"], row["target"], row["prediction"]))
        language = row.get("language")
        languages.append(language if isinstance(language, str) else None)
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return rows, languages


def agreed_languages(systems: Sequence[Answers], given: str | None) -> list[str | None]:
    """The language of each row's target, for the tokenization of all systems' predictions.

    Args:
        given: of all rows; overrides the results.

    Raises:
        UserError: an unknown language, or results with languages that are tokenized differently.
    """
    if given is not None:
        return [known(given, "language")] * len(systems[0].rows)
    found: list[str | None] = [None] * len(systems[0].rows)
    stated_by: list[Answers | None] = [None] * len(found)
    for system in systems:
        for row, code in enumerate(system.languages):
            if code is None:
                continue
            first, before = stated_by[row], found[row]
            if first is None or before is None:
                found[row], stated_by[row] = code, system
            elif of(before) != of(code):
                raise UserError(
                    f"{first.folder} was scored as {before} and {system.folder} as {code}, which metrics tokenize "
                    f"differently; give language={before} or language={code}"
                )
    return found


def label_systems(systems: Sequence[Answers]) -> None:
    """Labels each system by its folder relative to the common parent, and by its control if it is one.

    Raises:
        UserError: a system is given twice.
    """
    folders = [os.path.abspath(system.folder) for system in systems]  # noqa: PTH100  resolve() would follow links
    common = os.path.commonpath([os.path.dirname(folder) for folder in folders])  # noqa: PTH120
    for system, folder in zip(systems, folders, strict=True):
        system.short_path = os.path.relpath(folder, common)
        stated = system.control is None or system.control in re.findall("[a-z]+", system.short_path)
        system.label = system.short_path if stated else f"{system.short_path}, {system.control}"
        if folders.count(folder) > 1:
            raise UserError(f"{system.folder}: named twice; give each run once")


def find(systems: Sequence[Answers], name: str) -> int | None:
    """Index of the system with this label or folder, or of the first one of this run directory; None: not found."""
    folder = Path(name).resolve()
    tests = (
        lambda s: name in (s.label, s.short_path),
        lambda s: s.folder.resolve() == folder,
        lambda s: s.run.resolve() == folder or s.run.resolve() / "result.json" == folder,
    )
    for test in tests:
        for index, system in enumerate(systems):
            if test(system):
                return index
    return None


def set_speeds(systems: Sequence[Answers], baseline: Answers, benchmark: str | None) -> Timing:
    """Sets the speed row of each system, all from one interleaved timing run.

    That run is `benchmark` if given, otherwise that of the baseline if timed, otherwise that of the first timed system.
    Systems timed in other runs get no row: speeds of different runs are not comparable.

    Raises:
        UserError: `benchmark` is no timing run, or has timed none of the systems.
    """
    if benchmark is not None:
        return _from_benchmark(systems, benchmark)
    timed = [system for system in (baseline, *systems) if _headline(system.result, system.system) is not None]
    if not timed:
        return Timing()
    chosen = Timing(timed[0].run, baseline=baseline_of(timed[0].result))
    for system in systems:
        row = _headline(system.result, system.system)
        if system.run == chosen.run:
            system.row = row
        elif row is not None:
            chosen.notes.append(f"{system.label} was timed in another run: its speed is left out.")
    return chosen


def _headline(result: Mapping[str, Any], system: Mapping[str, Any]) -> Mapping[str, Any] | None:
    rows = [row for each in result["systems"] for row in each.get("speed") or []]
    return headline_row(system, rows)


def _from_benchmark(systems: Sequence[Answers], benchmark: str) -> Timing:
    """Sets speeds from a benchmark; systems and timed models are matched by model folder or id."""
    result = runs.read_result(Path(benchmark))
    run = Path(benchmark) if Path(benchmark).is_dir() else Path(benchmark).parent
    models = {_model(path): system for path, system in _timed(run, result)}
    if all(_headline(result, system) is None for system in result["systems"]):
        raise UserError(f"benchmark={benchmark}: holds no timing; give the run of `llm2slm benchmark` or of a demo")
    chosen, untimed = Timing(run, baseline=baseline_of(result)), []
    for answers in systems:
        timed = models.get(_model(_model_of(answers)))
        answers.row = None if timed is None else _headline(result, timed)
        if answers.row is None:
            untimed.append(answers.label)
    if untimed:
        chosen.notes.append(f"Not timed in {benchmark}: {', '.join(untimed)}.")
    if all(answers.row is None for answers in systems):
        raise UserError(f"benchmark={benchmark}: timed {', '.join(models)}, but none of the compared systems")
    return chosen


def _timed(run: Path, result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The systems of a timing run, each with its model's folder or id."""
    config, demo = runs.read_config(run), result.get("verb") == "demo"
    paths = {str(name): str(run / name if demo else path) for name, path in (config.get("systems") or {}).items()}
    llm = str(((config.get("model") or {}).get("llm") or {}).get("name"))
    for system in result["systems"]:
        name = str(system["name"])
        yield paths.get(name, llm if system["kind"] == "llm" else str(config.get("run"))), system


def _model_of(answers: Answers) -> str:
    """Folder or id of the model of the predictions: recorded by `evaluate`; of `train` and `demo` their folder."""
    if not (answers.folder / "config.yaml").is_file():  # the LLM of a demo
        config = runs.read_config(answers.run)
        return str(config["model"]["llm"]["name"])
    config = runs.read_config(answers.folder)
    return str(config["run"]) if answers.result.get("verb") == "evaluate" else str(answers.folder)


def _model(path: str) -> str:
    """A canonical form of a model's path, equal for RUN and RUN/model; an id stays unchanged."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    folder = folder.resolve()
    return str(folder.parent if folder.name == "model" else folder)
