"""A warning about the built-in LLM on corpora outside of its training data."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from llm2slm.config import DataConfig, RunConfig
from llm2slm.types import SystemKind

NAME = "builtin/llm"


def warn_builtin_llm(names: Iterable[str | None], data: DataConfig) -> None:
    """Warns if the built-in LLM is among the models and the corpus is not a built-in one.

    Args:
        names: names of the models in the configuration.
    """
    parts = data.parts if data.name == "mixture" else [data]
    others = list(dict.fromkeys(part.name for part in parts if part.name != "builtin"))
    if NAME in names and others:
        print(
            f"llm2slm: warning: {NAME} was trained only on the built-in corpora (generated English-German sentences, "
            f"English reports with their summaries, and requests in English), and does not suit {', '.join(others)}; "
            "choose another LLM with model.llm.name= or model/llm=",
            file=sys.stderr,
        )


def warn_builtin_encoder(config: RunConfig) -> None:
    """`warn_builtin_llm` for the LLM of a training: encoder, teacher or trained model."""
    used = config.model.kind is not SystemKind.slm or config.optim.distill > 0
    warn_builtin_llm([config.model.llm.name if used else None], config.data)
