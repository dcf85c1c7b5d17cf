"""A tiny run for tests: two tiny models, forty rows of words to reverse, a configuration that trains in a second."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from llm2slm.commands import label, train
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.tasks import resolve
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_model_config, write_tiny_t5
from llm2slm.training.distill import Teacher, build_teacher
from llm2slm.training.module import TrainingModule
from llm2slm.types import Batch, SystemKind

WORDS = ("the", "little", "dog", "sees", "old", "house", "two", "dogs", "see", "it")
SIZES = {"train": 40, "validation": 11, "test": 6}


def write_rows(folder: Path) -> None:
    """train, validation and test as .jsonl; rows of two to nine words, so that batches differ in size."""
    draw = random.Random(3)
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        rows = []
        for _ in range(size):
            words = draw.choices(WORDS, k=draw.randint(2, 9))
            rows.append({"source": " ".join(words), "target": " ".join(words[: draw.randint(1, 4)])})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tiny_run(
    folder: Path, kind: str = "llm2slm", slm: str = "t5", mode: str = "add", llm: str = "t5", **trainer: Any
) -> RunConfig:
    """A run on files below `folder` (written once). `trainer`: fields of TrainerConfig."""
    if not (folder / "rows").is_dir():
        write_rows(folder / "rows")
    config = RunConfig(seed=5)
    config.model = tiny_model_config(folder / "zoo", llm, slm, mode, kind=SystemKind(kind))
    config.data.name, config.data.source, config.data.target = "json", "source", "target"
    for split in SIZES:
        setattr(config.data, split, str(folder / "rows" / f"{split}.jsonl"))
    config.data.batch_tokens, config.data.eval_batch_size, config.data.max_response_tokens = 220, 4, 64
    config.task.name, config.task.metrics, config.task.max_new_tokens = "instruction", ["chrf", "exact_match"], 6
    config.optim.warmup_steps, config.optim.lr, config.optim.projector_lr = 2, 3e-3, 1e-2
    config.callbacks.generate_rows = 3
    values = {"accelerator": "cpu", "max_steps": 8, "val_every": 3, "log_every_n_steps": 1, "progress": False}
    for name, value in {**values, **trainer}.items():
        setattr(config.trainer, name, value)
    return config


def trained_run(root: Path, name: str, **trainer: Any) -> tuple[Path, RunConfig]:
    """Trains a tiny hybrid in a folder below `root`; returns the folder, and the configuration before training."""
    config = tiny_run(root, **trainer)
    train.run(deepcopy(config), root / name)
    return root / name, config


def two_processes(root: Path, config: RunConfig, folder: Path) -> list[str]:
    """Overrides of `train` that repeat models and rows of a `tiny_run` below `root`, on two processes, in `folder`."""
    return [
        "trainer=ddp_cpu", "trainer.log_every_n_steps=1", "trainer.progress=false",
        f"model.llm.name={config.model.llm.name}", f"model.slm.name={config.model.slm.name}",
        "model.slm.init=pretrained", "model.conditioning=add", "model.projector.start=random", "data=json",
        *(f"data.{split}={root}/rows/{split}.jsonl" for split in SIZES), "data.source=source", "data.target=target",
        "data.max_response_tokens=64", "task=instruction", f"hydra.run.dir={folder}",
    ]  # fmt: skip


def of_libraries(shown: str) -> list[str]:
    """The lines of an error stream that are warnings or messages of libraries."""
    marks = ("Warning", "site-packages", "Initializing distributed")
    return [line for line in shown.splitlines() if any(mark in line for mark in marks)]


def publish(cache: Path, name: str, commit: str, **sizes: int) -> None:
    """Adds a tiny T5 to a cache of the Hub, as the new commit of `main`."""
    place = cache / f"models--{name.replace('/', '--')}"
    write_tiny_t5(place / "snapshots" / commit, seed=1, width=24, **sizes)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)


def build(config: RunConfig) -> tuple[LLM2SLM, DataModule]:
    """Model (its projector seeded) and data of a run."""
    return taught(config)[:2]


def taught(config: RunConfig) -> tuple[LLM2SLM, DataModule, Teacher | None]:
    """Model and data with the teacher that `optim.distill` requires."""
    torch.manual_seed(config.seed)
    model = build_model(config.model, config.data)
    teacher = build_teacher(config, model.collator)
    prompts = None if teacher is None else teacher.collator
    return model, DataModule(config.data, resolve(config.task), model.collator, config.seed, prompts), teacher


def batch_of(data: DataModule, rows: list[int], split: str = "train") -> Batch:
    """Rows of a split as one batch."""
    encoded = data.encoded(split)
    return data.collator([encoded[i] for i in rows])


def module_of(config: RunConfig) -> tuple[TrainingModule, DataModule]:
    """The LightningModule of a run, and its data."""
    model, data, teacher = taught(config)
    return TrainingModule(model, config.optim, config.trainer.max_steps, teacher), data


def weights(model: LLM2SLM) -> dict[str, torch.Tensor]:
    """A copy of the trained weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Equal keys, and tensors equal bit for bit."""
    assert found.keys() == wanted.keys()
    different = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    assert not different


TIMED = ("train/tokens_per_s", "train/tflops", "train/utilization")


def curve(folder: Path) -> list[dict[str, str]]:
    """metrics.csv as text, without what depends on the clock."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


def checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, loaded with weights_only."""
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def label_in_parts(monkeypatch: pytest.MonkeyPatch, config: Callable[[], RunConfig], folder: Path) -> None:
    """Runs `label`, which stops at every fourth batch and is started again until it is complete."""
    whole, calls = label.answer_batches, []

    def ended(*arguments: Any, **more: Any) -> Iterator[Any]:
        for batch in whole(*arguments, **more):
            calls.append(1)
            if len(calls) % 4 == 0:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(label, "answer_batches", ended)
    for _ in range(20):
        try:
            label.run(config(), folder)
            break
        except KeyboardInterrupt:
            torch.rand(3)  # another process would have another random state
            torch.rand(3, device="cuda" if torch.cuda.is_available() else "cpu")
    assert len(calls) > 8
