"""A warning about the built-in LLM where it is used on texts that it was not trained on."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from llm2slm.config import DataConfig, RunConfig
from llm2slm.types import SystemKind

NAME = "builtin/llm"


def warn_builtin_llm(names: Iterable[str | None], data: DataConfig) -> None:
    """Says what the built-in LLM was trained on, where it is among the models that are used on another corpus.

    Args:
        names: of the models, as the configuration has them.
    """
    parts = data.parts if data.name == "mixture" else [data]
    others = list(dict.fromkeys(part.name for part in parts if part.name != "builtin"))
    if NAME in names and others:
        print(
            f"llm2slm: warning: {NAME} was trained on the built-in corpora alone (generated English-German sentences, "
            f"English reports with their summaries, and requests in English), and knows little of {', '.join(others)}; "
            "name another LLM by model.llm.name= or model/llm=",
            file=sys.stderr,
        )


def warn_builtin_encoder(config: RunConfig) -> None:
    """As `warn_builtin_llm`, of the LLM that a training reads with, learns from, or trains."""
    reads = config.model.kind is not SystemKind.slm or config.optim.distill > 0
    warn_builtin_llm([config.model.llm.name if reads else None], config.data)
