"""Tiny systems of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm2slm.models.build import build_llm, build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.llm import share_weights
from llm2slm.testing import tiny_model_config
from llm2slm.types import Tokenizers

Make = Callable[..., LLM2SLM]
Pair = tuple[LLM2SLM, LLM2SLM]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the tiny models are written once."""
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="session")
def make(zoo: Path) -> Make:
    """Builds a system whose responses depend on the prompt, in eval mode."""

    def build(llm: str, slm: str, mode: str, tokenizers: str = "shared", **changes: object) -> LLM2SLM:
        torch.manual_seed(7)
        config = tiny_model_config(zoo, llm, slm, mode, Tokenizers(tokenizers))
        for name, value in changes.items():
            setattr(config.slm, name, value)
        model = build_model(config).eval()
        for layer in model.crossing.layers if model.crossing is not None else ():
            layer.gate.data.fill_(1.0)
        with torch.no_grad():
            for parameter in model.slm.parameters():  # else one token is repeated
                parameter.mul_(1.5)
        return model

    return build


@pytest.fixture(scope="session")
def pair(zoo: Path) -> Callable[..., Pair]:
    """A hybrid and its LLM, which generates varied responses."""

    def build(
        llm: str, slm: str, mode: str, tokenizers: str = "shared", layer: Any = None, shared: bool = True
    ) -> Pair:
        torch.manual_seed(7)
        config = tiny_model_config(zoo, llm, slm, mode, Tokenizers(tokenizers))
        config.llm.layer = layer
        hybrid, whole = build_model(config).eval(), build_llm(config.llm)
        if shared:
            assert share_weights(hybrid, whole)
        with torch.no_grad():
            for parameter in {*whole.slm.parameters(), *hybrid.slm.parameters()}:
                parameter.mul_(1.5)
        whole.generation_config.no_repeat_ngram_size = 2  # else the tiny models repeat one token
        return hybrid, whole

    return build
