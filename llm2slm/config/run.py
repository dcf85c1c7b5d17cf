"""`RunConfig`, the keys of the verbs that work on a run, and the sections that single verbs read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llm2slm.config.data import DataConfig, TaskConfig
from llm2slm.config.model import ModelConfig
from llm2slm.config.training import CallbacksConfig, LoggerConfig, OptimConfig, TrainerConfig
from llm2slm.types import StoreDtype


@dataclass
class BenchmarkConfig:
    """The grid of an interleaved timing run."""

    batch: list[int] = field(default_factory=lambda: [1])
    prompt_tokens: list[int] = field(default_factory=list)
    """Prompt lengths, in LLM tokens. Empty: prompts of the test split, each with its reference's own length."""
    response_tokens: list[int] = field(default_factory=lambda: [8, 16, 32, 64])
    """Response lengths, in tokens, forced on every system, for the prompt lengths above (where there are none, for
    prompts of median length). The rows that are timed at the test's own lengths do not depend on it."""
    prompts: int = 32
    """Prompts of the test split (validation where there is none) that are timed at their own lengths."""
    repeats: int = 5
    """Timed rounds; each round runs every system once, in a rotated order."""
    warmup: int = 2
    """Rounds that are not counted."""
    threads: int | None = None
    memory: bool = True
    """Also measure each system's peak memory (on CPU in a process of its own)."""


@dataclass
class LabelConfig:
    """How the LLM writes labels, beside `task.max_new_tokens` and `task.num_beams`."""

    do_sample: bool = False
    """Sample with the temperature and top_p below; else take the likeliest token (or beam)."""
    temperature: float = 1.0
    top_p: float = 1.0
    format: str = "jsonl"
    """jsonl | parquet."""


@dataclass
class EncodeConfig:
    """How the LLM's representations are kept."""

    dtype: StoreDtype = StoreDtype.bfloat16
    """float32 (nothing is rounded) | bfloat16 | int8 (with a scale for each token)."""
    batch_tokens: int = 8192
    """Padded prompt tokens that the LLM reads at once."""


@dataclass
class RunConfig:
    """One run of `train`, `evaluate`, `label`, `benchmark` or `demo`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    seed: int = 1
    """Of the initial weights, of the order of the training rows, and of the training rows of data=builtin. Validation
    and test rows are the same for every seed."""
    run: str | None = None
    """Run directory that evaluate, generate, label and benchmark read; for train: a directory to resume."""
    llm: str | None = None
    """evaluate, generate, benchmark: where the LLM of `run` is now, if it has moved."""
    split: str = "test"
    """evaluate, label: train | validation | test."""
    systems: dict[str, Any] = field(default_factory=dict)
    """demo: name of a system -> overrides of this config for it; benchmark: name -> folder of another system."""


@dataclass
class TokenizerConfig:
    """`tokenizer`: a tokenizer trained on the train split of a corpus."""

    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    """Its prefix is part of the prompts that the tokenizer is to cut well."""
    vocab_size: int = 4000
    """Entries of the vocabulary at most, special tokens included."""
    out: str = "outputs/tokenizer"
    """Folder for it; name it in model.llm.tokenizer or model.slm.tokenizer."""
    seed: int = 1
