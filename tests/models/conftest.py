"""All valid systems: LLM kind x SLM kind x conditioning x tokenizers, built from tiny real folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling import representatives

from llm2slm.config import ModelConfig
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import labelled, tiny_model_config
from llm2slm.types import Batch, Tokenizers

COMBINATIONS = [
    (llm, slm, mode, tokenizers)
    for llm in ("t5", "gpt2")
    for slm in ("t5", "gpt2")
    for mode in ("add", "replace", "prepend", "memory")
    for tokenizers in ("shared", "offsets")
]


@dataclass(frozen=True)
class System:
    """A built hybrid and its configuration. Tests share the model and must not change it."""

    llm: str
    slm: str
    cfg: ModelConfig
    model: LLM2SLM
    batch: Batch

    def build(self) -> LLM2SLM:
        """A new instance of the same model, which tests may change."""
        return lively(self.cfg)

    def alone(self, row: int) -> Batch:
        """The batch of a single row, without padding."""
        return labelled(self.model, [row])


def lively(cfg: ModelConfig) -> LLM2SLM:
    """The seeded model of a configuration; z is large enough for answers to depend on the prompt."""
    torch.manual_seed(7)
    model = build_model(cfg).eval()
    if model.projector is not None:
        model.projector.layers[-1].weight.data.mul_(4)
    return model


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny models, which are written once."""
    return tmp_path_factory.mktemp("zoo")


REPRESENTATIVES = [
    ("t5", "t5", "add", "shared"), ("gpt2", "gpt2", "replace", "shared"),
    ("t5", "gpt2", "prepend", "offsets"), ("gpt2", "t5", "memory", "offsets"),
]  # fmt: skip
"""Each conditioning once, and each LLM, each SLM and each tokenizer option twice."""


@pytest.fixture(scope="session", params=representatives(COMBINATIONS, REPRESENTATIVES, whole=True), ids="-".join)
def system(request: pytest.FixtureRequest, zoo: Path) -> System:
    llm, slm, mode, tokenizers = request.param
    cfg = tiny_model_config(zoo, llm, slm, mode, Tokenizers(tokenizers))
    model = lively(cfg)
    batch = labelled(model, [0, 1, 2])
    lengths = batch.slm_mask_BQ.sum(1).tolist()
    assert len(set(lengths)) == 3, "the rows must differ in length, else nothing is padded"
    return System(llm, slm, cfg, model, batch)


@pytest.fixture
def build(zoo: Path) -> Callable[..., LLM2SLM]:
    """Builds a seeded system from names: build("t5", "gpt2", "add", "shared", kind=..., gate=...)."""

    def built(llm: str = "t5", slm: str = "t5", mode: str = "add", tokenizers: str = "shared", **more: Any) -> LLM2SLM:
        return lively(tiny_model_config(zoo, llm, slm, mode, Tokenizers(tokenizers), **more))

    return built
