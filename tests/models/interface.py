"""Systems for the tests of the interface to transformers, peft and accelerate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_model_config, tiny_rows
from llm2slm.types import SystemKind, Tokenizers

TEXTS = [row["source"] for row in tiny_rows()]
TARGETS = [row["target"] for row in tiny_rows()]


@dataclass(frozen=True)
class System:
    """Kinds of LLM and SLM, conditioning and tokenizers; alone: the SLM without an LLM."""

    llm: str
    slm: str
    mode: str
    tokenizers: str
    alone: bool = False


HYBRIDS = [
    System("t5", "t5", "add", "shared"),
    System("t5", "gpt2", "add", "offsets"),
    System("gpt2", "t5", "memory", "offsets"),
    System("t5", "gpt2", "memory", "shared"),
    System("gpt2", "t5", "prepend", "shared"),
    System("t5", "llama", "prepend", "offsets"),
    System("t5", "llama", "cross_attention", "offsets"),
    System("llama", "llama", "kv", "shared"),
    System("llama", "llama", "kv", "offsets"),
]
ALONE = [System("t5", "t5", "add", "shared", alone=True), System("t5", "gpt2", "add", "shared", alone=True)]
SYSTEMS = HYBRIDS + ALONE


def named(system: System) -> str:
    """Name of a parametrized test."""
    return (
        f"{system.slm}-alone"
        if system.alone
        else "-".join(vars(system)[k] for k in ("llm", "slm", "mode", "tokenizers"))
    )


def built(folder: Path, system: System) -> LLM2SLM:
    """The seeded system, in eval mode."""
    set_seed(3)
    kind = SystemKind.slm if system.alone else SystemKind.llm2slm
    cfg = tiny_model_config(folder, system.llm, system.slm, system.mode, Tokenizers(system.tokenizers), kind=kind)
    model = build_model(cfg).eval()
    if model.crossing is not None or system.mode == "kv":
        with torch.no_grad():  # otherwise gates and maps are zero, and nothing depends on the LLM
            for name, parameter in model.named_parameters():
                if name.startswith("projector.weight") or name.endswith(".gate"):
                    parameter.add_(0.1 * torch.randn_like(parameter) + 0.3)
    return model


def batch_of(model: LLM2SLM, rows: list[int] | None = None) -> dict[str, Any]:
    """The processor's tensors of rows of the tiny task, with labels."""
    chosen = range(3) if rows is None else rows
    return dict(model.processor([TEXTS[n] for n in chosen], [TARGETS[n] for n in chosen]))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to rounding."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
