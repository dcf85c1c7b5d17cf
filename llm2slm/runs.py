"""The run directory: its files, and the schema of `result.json`, which every verb writes.

DIR/
  config.yaml         the resolved configuration
  model/              what `LLM2SLM.from_pretrained` reads
  checkpoints/        last.ckpt and the best one; trainable weights only
  metrics.csv         curves
  predictions.jsonl   source, target, prediction
  result.json         schema, verb, environment, systems (quality and speed)
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from llm2slm.atomic import write_text
from llm2slm.config import RunConfig, upgraded
from llm2slm.speeds import Failure, SpeedRow, Spread, Target
from llm2slm.typed_command import command
from llm2slm.types import UserError

__all__ = [
    "NEEDED",
    "PACKAGES",
    "SCHEMA",
    "Baseline",
    "Bucket",
    "Failure",
    "Result",
    "Score",
    "Selection",
    "SpeedRow",
    "Spread",
    "System",
    "Target",
    "command",
    "config_hash",
    "curve",
    "device_name",
    "git_commit",
    "home",
    "now",
    "plain",
    "read_config",
    "read_result",
    "recorded_commands",
    "recorded_config",
    "refuse_another",
    "text_hash",
    "usable_cores",
    "versions",
    "write_config",
    "write_result",
]

METRICS = "metrics.csv"
"""The curves of a training, in its run directory."""

SCHEMA = 1
"""Version of result.json; raised when a field changes its meaning."""

NEEDED = frozenset({"name", "kind", "parameters", "quality", "speed"})
"""Keys of every system in a `result.json`, also of earlier versions."""

PACKAGES = (
    "torch",
    "transformers",
    "lightning",
    "datasets",
    "tokenizers",
    "hydra-core",
    "torchmetrics",
    "sacrebleu",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def now() -> str:
    """Date and time in the format of results."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def device_name(device_type: str = "cpu") -> str:
    """The name of the device: GPU, or processor with the number of usable cores.

    Args:
        device_type: cuda, mps or cpu.
    """
    if device_type == "cuda":
        import torch  # already loaded if a model is on a GPU

        return str(torch.cuda.get_device_name())
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:  # not Linux: keep the platform module's name
        pass
    return f"{model}, {usable_cores()} cores" if device_type == "cpu" else f"{model}, {device_type}"


def usable_cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit() -> str:
    """Commit of the checkout this package runs from, with "+" if changed since; "" for an installed wheel."""
    home = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(home), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != home.parent:
            return ""
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


@dataclass
class Score:
    """One quality metric: its value, the signature of its computation, and the number of rows."""

    value: float
    signature: str
    n: int


@dataclass
class Bucket:
    """Quality on rows of similar length (evaluation/metrics/buckets.py); lengths in words, both ends included."""

    by: str
    """Text whose words are counted: prompt (without the task's prefix) or response (the reference)."""
    low: int
    high: int
    n: int
    quality: dict[str, float]
    """Metric -> value, as in the system's `quality`, whose signatures hold here too."""


@dataclass
class System:
    """One system of a result: an LLM, an SLM, a hybrid."""

    name: str
    kind: str
    parameters: dict[str, int]
    """total and trainable."""
    quality: dict[str, Score] = field(default_factory=dict)
    speed: list[SpeedRow] = field(default_factory=list)
    quality_kept: dict[str, float] = field(default_factory=dict)
    """Metric over the baseline's, where the result has a baseline."""
    samples: list[dict[str, str]] = field(default_factory=list)
    """A few rows of predictions: source, target, prediction."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Points of the training curve: step, train/loss, val/loss, ..."""
    validation: dict[str, float] = field(default_factory=dict)
    """Validation scores of the checkpoint that was tested: loss (on trainer.val_rows rows) and metrics (on the first
    callbacks.generate_rows rows)."""
    buckets: list[Bucket] = field(default_factory=list)
    """Quality by length of prompt and response; empty for a small split."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Facts of the run: training seconds, steps, learning rates, truncated rows."""
    weights: str | None = None
    """Fingerprint of the weights of SLM and projector, or of a whole plain model."""
    failures: list[Failure] = field(default_factory=list)
    """Conditions of a benchmark under which the system could not be timed; they have no row in `speed`."""


@dataclass
class Baseline:
    """The system that ratios are relative to."""

    name: str
    kind: str


@dataclass
class Selection:
    """How the tested checkpoint was chosen: the best of all validations by one metric."""

    metric: str
    """callbacks.monitor: val/loss or val/<metric>."""
    mode: str
    """min | max: the direction of the metric."""
    value: float | None
    """The metric at that checkpoint; None: the best checkpoint was lost, and the last one was tested."""
    step: int
    """Optimizer steps of that checkpoint."""
    split: str = "validation"


@dataclass
class Result:
    """The contents of `result.json`."""

    verb: str
    seed: int
    config_hash: str
    wall_seconds: float
    systems: list[System]
    selection: Selection | None = None
    """None: no checkpoint was chosen (verbs other than train and evaluate, results of earlier versions)."""
    schema: int = SCHEMA
    created: str = field(default_factory=now)
    command: str = field(default_factory=command)
    git_commit: str = field(default_factory=git_commit)
    versions: dict[str, str] = field(default_factory=versions)
    device: str = field(default_factory=device_name)
    """`device_name` of the models' device type; default: the processor."""
    baseline: Baseline | None = None
    """The system that every `speedup` and `quality_kept` is relative to; None without such a system."""
    calibration: dict[str, Any] | None = None
    """calibrate: the content of calibration.json (`evaluation.calibration.Calibration`)."""
    targets: list[Target] = field(default_factory=list)
    """Targets of a benchmark (`benchmark.targets`)."""


def plain(value: Any) -> Any:
    """Converts dataclasses, enums, paths and tuples to types that JSON, YAML and `weights_only` checkpoints support."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def config_hash(config: object) -> str:
    """Hash of a configuration as twelve hex digits, independent of folders and loggers."""
    values = {k: v for k, v in plain(config).items() if k not in ("run", "llm", "logger")}
    if "data" in values:
        del values["data"]["cache"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def text_hash(texts: Iterable[str]) -> str:
    """Hash of texts in their order as twelve hex digits."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)} {text}".encode())
    return digest.hexdigest()[:12]


def write_config(folder: Path, config: RunConfig, commands: Sequence[str] = ()) -> None:
    """Writes the resolved configuration to `config.yaml`, after `commands` as comments, if it differs from the file."""
    path, text = folder / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    text = "".join(f"# {each}\n" for each in commands) + text
    if not (path.is_file() and path.read_bytes() == text.encode()):
        write_text(path, text)


def recorded_commands(folder: Path) -> list[str]:
    """The `commands` of `write_config`; [] in a run of an earlier version."""
    lines = (folder / "config.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in takewhile(lambda line: f"{line} ".startswith("# llm2slm "), lines)]


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run as plain containers; that of an earlier version is converted.

    Raises:
        UserError: as `recorded_config`.
    """
    return upgraded(recorded_config(folder))


def recorded_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run as it was recorded, as plain containers.

    Raises:
        UserError: the folder is no run directory, or its configuration cannot be read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: not a run directory (no config.yaml); give the folder that `train` wrote")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        location = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        raise UserError(f"{location}: not YAML ({problem or str(error).splitlines()[0]})") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a configuration; expected keys and values")
    return loaded


def curve(path: Path) -> dict[int, dict[str, float]]:
    """The rows of a `metrics.csv` by step, also of one that is being written; {} for a file that cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(line for line in file if line.endswith("\n")))
        return {int(row["step"]): {k: float(v) for k, v in row.items() if k and v and k != "step"} for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def home(run: str) -> Path | None:
    """The run directory of a model: `run` itself, for RUN/model the RUN; None where no configuration is recorded."""
    folder = Path(run)
    if (folder / "config.yaml").is_file():
        return folder
    above = folder.resolve().parent
    return above if folder.resolve().name == "model" and (above / "config.yaml").is_file() else None


def refuse_another(folder: Path, verb: str) -> None:
    """Refuses a folder with files of another verb, so that they are not overwritten.

    Raises:
        UserError: the folder has files of another verb.
    """
    markers = {"checkpoints": "train", METRICS: "train", "reps": "encode", "labels.jsonl.part": "label"}
    found = {markers[name] for name in markers if (folder / name).exists()}
    if (folder / "result.json").exists():
        found.add(str(read_result(folder).get("verb")))
    if others := sorted(found - {verb}):
        raise UserError(
            f"{folder}: contains files of `llm2slm {others[0]}`, which {verb} would overwrite; write to another folder "
            "by hydra.run.dir=DIR"
        )


def write_result(folder: Path, result: Result) -> Path:
    """Writes `result.json` atomically."""
    text = json.dumps(plain(result), indent=1, ensure_ascii=False) + "\n"
    return write_text(folder / "result.json", text)


def read_result(path: Path) -> dict[str, Any]:
    """A `result.json` as plain containers; `path` is the file or its folder.

    Raises:
        UserError: missing, no JSON, or another schema.
    """
    if path.is_dir():
        path = path / "result.json"
    if path.is_dir():
        raise UserError(f"{path}: is a folder, and should be a file of results; remove it, or give another run")
    if not path.is_file() and not path.suffix:
        raise UserError(f"{path}: no such folder; give a run directory")
    if not path.is_file():
        raise UserError(f"{path}: no such file; every llm2slm verb that measures writes one into its run directory")
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise UserError(f"{path}: not a result (its JSON is nested too deeply)") from None
    if not isinstance(loaded, dict) or loaded.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a result of schema {SCHEMA}; write it again with this version of llm2slm")
    if not isinstance(loaded.get("verb"), str):
        raise UserError(f"{path}: not a result of llm2slm (no verb); write it again")
    systems = loaded.get("systems")
    whole = isinstance(systems, list) and all(isinstance(each, dict) and each.keys() >= NEEDED for each in systems)
    if not whole:
        raise UserError(f"{path}: not a result of llm2slm (a system lacks one of {', '.join(sorted(NEEDED))})")
    return loaded
