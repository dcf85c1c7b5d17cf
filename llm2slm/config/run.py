"""`RunConfig`, the keys of the verbs that train or test a model, and `TokenizerConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llm2slm.config.data import DataConfig, TaskConfig
from llm2slm.config.model import ModelConfig
from llm2slm.config.training import CallbacksConfig, LoggerConfig, OptimConfig, TrainerConfig
from llm2slm.types import Confidence, Decoding, StoreDtype


@dataclass
class TargetConfig:
    """A speed that a benchmark is compared with: a ratio of two systems of the run, or a figure of one."""

    name: str = ""
    """The target in words, as the table shows it."""
    system: str = ""
    """Name of a row: that of a system, with its decoder in parentheses, as "llm2slm (captured)"."""
    against: str | None = None
    """Another row: the value is its total time over that of `system`. None: the figure `measure` of `system`."""
    measure: str = "total_ms"
    """total_ms | prefill_ms | ms_per_token | tokens_per_s | share_of_bandwidth: figure, where `against` is null."""
    at_least: float | None = None
    """The target is met by this value or a larger one."""
    at_most: float | None = None
    """The target is met by this value or a smaller one."""
    batch: int = 1
    """Batch size of the rows."""
    response_tokens: int | None = None
    """Response length of the rows. None: the lengths of the test split."""


@dataclass
class BenchmarkConfig:
    """Conditions of the timings, which run all systems in interleaved rounds."""

    batch: list[int] = field(default_factory=lambda: [1])
    """Batch sizes."""
    prompt_tokens: list[int] = field(default_factory=list)
    """Prompt lengths, in LLM tokens. Empty: prompts of the test split, with the lengths of their references."""
    response_tokens: list[int] = field(default_factory=lambda: [8, 16, 32, 64])
    """Response lengths in tokens, forced on every system, for the prompt lengths above (if empty, for prompts of median
    length). Timings at the lengths of the test split do not depend on them."""
    prompts: int = 32
    """Prompts of the test split (of validation if there is no test split) timed at the lengths of the split."""
    test_batch: list[int] = field(default_factory=lambda: [1])
    """Batch sizes at the lengths of the test split. A batch holds prompts whose references have similar lengths, and
    every row generates as many tokens as their mean."""
    decoders: list[str] = field(default_factory=lambda: ["generate"])
    """generate | eager | captured | compiled | int8 | compiled_int8 | auto | lossless | compiled_lossless | cascade (as
    `decoding` of evaluate) | assisted | prompt_lookup (transformers' speculative decoding of the LLM) | ctranslate2
    (the LLM in int8): decoders; each system is timed under each that fits it."""
    hybrid_decoders: list[str] = field(default_factory=list)
    """Further decoders for hybrids alone."""
    repeats: int = 5
    """Timed rounds; each round runs every system once, in a rotated order."""
    warmup: int = 2
    """Untimed rounds at the beginning, at least; they are repeated until the last two rounds of each system differ by
    less than 10 %. 0: none."""
    max_warmup: int = 6
    """Untimed rounds, at most."""
    threads: int | None = None
    """CPU threads of torch. None: torch's default."""
    memory: bool = True
    """Also measure the peak memory of each system (on CPU in a separate process)."""
    ceilings: bool = True
    """Also measure the memory bandwidth and the rate of matrix products of this machine (a second), and state the share
    of them that each system reaches."""
    targets: list[TargetConfig] = field(default_factory=list)
    """Speeds to compare the measured ones with, in a table. A target that is not met does not change the exit code."""
    after_training: bool = False
    """train: time the trained model and its LLM after the test, so that one result has quality, latency and speedup."""
    baseline: str | None = None
    """train, evaluate: run directory of an evaluation of the LLM on the same rows; quality kept is relative to it."""


@dataclass
class LabelConfig:
    """Generation of labels; `task.max_new_tokens` and `task.num_beams` apply too."""

    do_sample: bool = False
    """Sample with the temperature and top_p below; else greedy or beam search."""
    temperature: float = 1.0
    """Softmax temperature of sampling."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the most probable tokens whose total probability is top_p."""
    format: str = "jsonl"
    """jsonl | parquet: format of the file of labels."""


@dataclass
class EncodeConfig:
    """Storage of LLM representations."""

    dtype: StoreDtype = StoreDtype.bfloat16
    """float32 (exact) | bfloat16 | int8 (with one scale per token and layer): dtype of the stored values."""
    batch_tokens: int = 8192
    """Maximum number of prompt tokens per LLM batch, padding included."""


@dataclass
class CalibrateConfig:
    """How the threshold of a cascade is found; `quality_kept` is the quality to keep."""

    confidence: Confidence = Confidence.mean
    """mean | min: of the log-probabilities of an answer's tokens: the measure of the hybrid's confidence."""
    metric: str | None = None
    """Metric whose quality is kept. None: the first of `task.metrics` that is computed from texts and whose higher
    values are better."""
    resamples: int = 1000
    """Resamples of the bootstrap."""


@dataclass
class RunConfig:
    """One run of `train`, `evaluate`, `calibrate`, `label`, `benchmark` or `demo`."""

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
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    seed: int = 1
    """Seed of the initial weights, of the order of training rows and of the training rows of data=builtin. Validation
    and test rows are the same for every seed."""
    run: str | None = None
    """evaluate, calibrate, label, benchmark: run directory of the model; train: run directory to resume."""
    llm: str | None = None
    """evaluate, calibrate, label, benchmark: Hub id or folder of the LLM of `run`, if it has moved."""
    decoding: Decoding = Decoding.generate
    """evaluate: generate (transformers) | eager | captured | compiled (the same responses, faster) | auto (the fastest
    of the first three) | int8 | compiled_int8 (weights of 8 bits) | lossless | compiled_lossless (those of the LLM,
    drafted by the hybrid `run`) | cascade (those of the hybrid, or where its confidence is low the LLM's): how
    responses are generated."""
    exact_rows: int = 64
    """evaluate, decoding=int8 or compiled_int8: number of rows, from the first, that are also generated with the
    model's weights as they are, to report the changes. 0: no such report."""
    cascade: str | None = None
    """decoding=cascade: folder that `calibrate` wrote, or the threshold of the mean log-probability, as -0.35: the LLM
    writes the answers below it (-inf: none, inf: all)."""
    quality_kept: float = 0.99
    """calibrate: the metric of the cascade over that of the LLM, which the threshold keeps with as few answers of the
    LLM as possible."""
    split: str = "test"
    """evaluate, label: train | validation | test: split to generate for."""
    systems: dict[str, Any] = field(default_factory=dict)
    """demo: name of a system -> overrides for it; benchmark: name of a further system -> its folder or Hub id."""


@dataclass
class TokenizerConfig:
    """`tokenizer`: a tokenizer trained on the train split of a corpus."""

    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    """Prefix and template determine the prompts that the tokenizer is trained on."""
    vocab_size: int = 4000
    """Maximum size of the vocabulary, special tokens included."""
    out: str = "outputs/tokenizer"
    """Folder of the tokenizer, for model.llm.tokenizer or model.slm.tokenizer."""
    seed: int = 1
    """Seed of the training rows of data=builtin."""
    logger: LoggerConfig = field(default_factory=LoggerConfig)
