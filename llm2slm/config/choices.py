"""Values of text keys with a fixed set of values, as `CHOICES`.

`ranges.check_ranges` refuses other values, and help and completion list these. A test compares them with the help text.
"""

from __future__ import annotations

from collections.abc import Iterable

from llm2slm.config.model import LanguageModelConfig, LLMConfig, PlainLLMConfig, SLMConfig
from llm2slm.config.run import LabelConfig, RunConfig, TargetConfig
from llm2slm.config.training import CallbacksConfig, LoggerConfig, OptimConfig, TrainerConfig
from llm2slm.config.verbs import ExportConfig, JudgeConfig
from llm2slm.types import UserError

DTYPES = ("float32", "bfloat16", "float16")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "linear", "constant")
ACCELERATORS = ("auto", "gpu", "cuda", "mps", "cpu")
MATMUL_PRECISIONS = ("highest", "high", "medium")
DIRECTIONS = ("min", "max")
FORMATS = ("jsonl", "parquet")
"""Formats of a file of labels."""
LOGGER_MODES = ("auto", "online", "offline")
MEASURES = ("total_ms", "prefill_ms", "ms_per_token", "tokens_per_s", "share_of_bandwidth")
"""Figures of a row of speeds that a target may state."""
SPLITS = ("train", "validation", "test")

_WITH_DTYPE = (LanguageModelConfig, LLMConfig, SLMConfig, PlainLLMConfig, ExportConfig, JudgeConfig)
CHOICES: dict[type, dict[str, tuple[str, ...]]] = {
    **{section: {"dtype": DTYPES} for section in _WITH_DTYPE},
    OptimConfig: {"name": OPTIMIZERS, "schedule": SCHEDULES},
    TrainerConfig: {
        "accelerator": ACCELERATORS,
        "matmul_precision": MATMUL_PRECISIONS,
        "profiler": ("simple", "advanced", "pytorch"),
    },
    LoggerConfig: {"mode": LOGGER_MODES},
    CallbacksConfig: {"mode": DIRECTIONS},
    LabelConfig: {"format": FORMATS},
    TargetConfig: {"measure": MEASURES},
    RunConfig: {"split": SPLITS},
}
"""Section -> field -> values. None is legal for fields that allow it."""


def check_choice(key: str, value: str | None, known: Iterable[str]) -> None:
    """Refuses a text that is none of the known values; None is accepted.

    Raises:
        UserError: names key, value and the known values.
    """
    if value is not None and value not in known:
        raise UserError(f"{key}={value}: expected one of {', '.join(known)}")
