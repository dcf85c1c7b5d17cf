"""Keys of the verbs without a `RunConfig`: generate, export, judge, report, compare, costs, dashboard."""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import field as new_field
from typing import Any

from llm2slm.config.model import ModelConfig, PlainModelConfig
from llm2slm.config.training import LoggerConfig
from llm2slm.types import Decoding, Overlong


@dataclass
class GenerateConfig:
    """`generate`: answers to a prompt, to a file of prompts, or (with neither) to typed prompts."""

    run: str | None = None
    """Run directory, model folder, GGUF file or Hub id of the model; `builtin/llm` is the built-in LLM."""
    llm: str | None = None
    """Hub id or folder of the LLM of `run`, if it has moved."""
    model: PlainModelConfig = new_field(default_factory=PlainModelConfig)
    """Loading and prompting of `run` if it is an LLM that llm2slm did not train. A trained model uses its recorded
    settings and refuses these keys."""
    prompt: str | None = None
    """One prompt."""
    input: str | None = None
    """File of prompts: in a format of `data.train` (json, jsonl, csv, parquet; column `field`), else one per line."""
    field: str | None = None
    """Column of the prompts if `input` has columns; a nested column has a dotted name. None: the source column of the
    run, `source` or `prompt`."""
    output: str | None = None
    """File of the answers to `input`, in order: .jsonl (source, prediction), or one answer per line. None: standard
    output."""
    prefix: str | None = None
    """Text before every prompt. None: the prefix of the run."""
    stream: bool = True
    """Print tokens as they are generated (one prompt at a time, num_beams=1)."""
    decoding: Decoding = Decoding.generate
    """generate (transformers) | eager | captured | compiled (the same responses, faster) | auto (the fastest of the
    first three) | int8 | compiled_int8 (weights of 8 bits) | lossless | compiled_lossless (those of the LLM, drafted by
    the hybrid `run`) | cascade (those of the hybrid, or where its confidence is low the LLM's): how responses are
    generated."""
    cascade: str | None = None
    """decoding=cascade: folder that `calibrate` wrote, or the threshold of the mean log-probability, as -0.35: the LLM
    writes the answers below it (-inf: none, inf: all)."""
    prompt_cache: int = 64
    """Number of prompts, those used last, whose LLM representations are kept in memory, so that a repeated prompt is
    not encoded again. 0: none."""
    max_new_tokens: int | None = None
    """Maximum response length in tokens. None: that of the run, else 128."""
    num_beams: int = 1
    """Number of beams of beam search; 1: greedy, or sampling with do_sample."""
    do_sample: bool = False
    """Sample with the temperature and top_p below; else greedy or beam search."""
    temperature: float = 1.0
    """Softmax temperature of sampling."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the most probable tokens whose total probability is top_p."""
    batch_size: int = 32
    """Prompts of `input` per batch."""
    overlong: Overlong | None = None
    """Treatment of prompts longer than the model supports: error | truncate. None: that of the run (drop becomes
    error)."""
    seed: int = 1
    """Seed of sampling."""
    logger: LoggerConfig = new_field(default_factory=LoggerConfig)


@dataclass
class ExportConfig:
    """`export`: a trained model in a new folder, or in a repository of the Hub."""

    run: str | None = None
    """Run directory, model folder, or Hub id of the model."""
    llm: str | None = None
    """Hub id or folder of the LLM of `run`, if it has moved."""
    out: str = "outputs/export"
    """Output folder; must be new or empty."""
    with_llm: bool = False
    """Include the part of the LLM that the model uses; the folder is then self-contained."""
    dtype: str | None = None
    """float32 | bfloat16 | float16: dtype of the stored weights of SLM and projector. None: that of training."""
    name: str | None = None
    """Name in the model card. None: the name of the folder or of the repository."""
    license: str | None = None
    """License in the model card, as the Hub names it (apache-2.0, cc-by-4.0)."""
    results: list[str] = field(default_factory=list)
    """Further results for the card: run directories of `benchmark` or `evaluate`."""
    push: str | None = None
    """Hub repository to push to, as me/my-model; created if it does not exist."""
    private: bool | None = None
    """Whether a created repository is private. None: the default of its owner."""
    logger: LoggerConfig = new_field(default_factory=LoggerConfig)


@dataclass
class ReportConfig:
    """`report`: one page of the results of several runs."""

    runs: list[str] = field(default_factory=list)
    """Run directories, result.json files, or folders of sweeps (all their jobs with a result)."""
    mixed: bool = False
    """Allow runs of several corpora: their table has a column for the corpus, and no best run."""
    out: str = "outputs/report"
    """Folder of report.html."""
    title: str = "llm2slm report"
    """Title of the page."""
    buckets: bool = False
    """Also print quality by length of prompt and response (the page always contains it)."""
    logger: LoggerConfig = new_field(default_factory=LoggerConfig)


@dataclass
class JudgeConfig:
    """`judge`: ratings of the answers of a run, or comparisons of the answers of two runs, by another model."""

    runs: list[str] = field(default_factory=list)
    """Run directories (or predictions.jsonl files). One: each answer is rated from 1 to 10. Two: both answers to each
    prompt are compared, in both orders."""
    endpoint: str | None = None
    """URL of an OpenAI-compatible chat-completions endpoint, as http://localhost:8000/v1."""
    model: str | None = None
    """Name of the judge at the endpoint."""
    key_env: str | None = None
    """Environment variable with the API key of the endpoint; the key is never written to a file."""
    local: str | None = None
    """Instead of an endpoint: Hub id, folder or GGUF file of a judge that runs here, with greedy decoding."""
    revision: str | None = None
    """local: Hub branch, tag or commit."""
    dtype: str = "float32"
    """local: float32 | bfloat16 | float16: dtype of its weights."""
    attn_implementation: str | None = None
    """local: eager | sdpa | flash_attention_2 | ...: attention implementation of transformers. None: its default."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """local: quantization_config of transformers, as {quant_method: quanto, weights: int8}. Requires its library."""
    out: str = "outputs/judge"
    """Folder of judge.json and the verdicts. Replies in the folder are reused."""
    rows: int | None = None
    """Number of judged rows, from the first one. None: all."""
    instruction: str | None = None
    """Text before each source in the judge's prompt, as 'Translate into German: '. None: the task prefix of the first
    run."""
    reference: bool = True
    """Include the target of a row, if it has one, in the judge's prompt as an example of a good answer."""
    max_tokens: int = 1024
    """Maximum length of a reply in tokens."""
    temperature: float = 0.0
    """endpoint: sampling temperature; 0 is greedy."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """endpoint: further fields of a request; null removes one, as {max_completion_tokens: 4000, max_tokens: null}."""
    workers: int = 4
    """endpoint: number of concurrent requests."""
    timeout: float = 120.0
    """endpoint: timeout of one request in seconds."""
    retries: int = 6
    """endpoint: retries of a failed request (HTTP 408, 409, 425, 429, 5xx, or no connection)."""
    wait: float = 1.0
    """endpoint: seconds before the first retry, doubled for each further retry up to one minute; longer if the endpoint
    requests it."""
    again: bool = False
    """Repeat requests whose stored replies contain no verdict."""
    price_in: float | None = None
    """Price per million prompt tokens, for the cost in the report."""
    price_out: float | None = None
    """Price per million reply tokens."""
    seed: int = 1
    """Seed of the bootstrap."""
    logger: LoggerConfig = new_field(default_factory=LoggerConfig)


@dataclass
class CompareConfig:
    """`compare`: systems on the same rows, with confidence intervals and tests of their differences to a baseline."""

    runs: list[str] = field(default_factory=list)
    """Run directories with predictions.jsonl; a directory with several systems (a demo) contributes all of them."""
    out: str = "outputs/compare"
    """Folder of compare.json, compare.csv and compare.html."""
    baseline: str | None = None
    """Run, or name of a system in the table, that all others are compared with. None: the first. Of several LLMs,
    quality kept is relative to the one named here."""
    metrics: list[str] | None = None
    """The first one orders the rows that differ. None: those in the results of the runs. Computed from texts:"""
    language: str | None = None
    """Language of the targets, as task.language. None: that of the results."""
    benchmark: str | None = None
    """Run directory of a benchmark of these runs, for speedups and memory. None: the results of the runs."""
    resamples: int = 10_000
    """Resamples of the bootstrap, and permutations of the randomization test."""
    rows: int = 10
    """Number of rows shown with the largest losses against the baseline, and with the largest gains. 0: none."""
    seed: int = 1
    """Seed of the bootstrap and of the randomization test."""
    logger: LoggerConfig = new_field(default_factory=LoggerConfig)


@dataclass
class CostsConfig:
    """`costs`: predictions for a pair of models from their configs; no weights are read."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """LLM, SLM and conditioning. Of a model only the config is read: of its folder, the Hub's cache, or (for published
    models that are known) a copy in this package; else of the Hub."""
    run: str | None = None
    """Run directory, model folder or Hub id of a saved model, in place of `model`."""
    llm: str | None = None
    """Hub id or folder of the LLM of `run`, if it has moved."""
    slm_vocab: int | None = None
    """Size of the SLM's vocabulary, as after model.slm.vocab=corpus. None: that of its config."""
    slm_tokens: float = 1.0
    """Tokens of the SLM per token of the LLM in the same text, if the tokenizers differ."""
    device: str = "h100"
    """a100 | h100 | h200 | rtx4090 | cpu-2-cores | measure (this machine, in a second): device of the times."""
    bandwidth: float | None = None
    """Memory bandwidth of the device in GB/s. None: that of `device`."""
    tflops: float | None = None
    """Rate of matrix products of the device in TFLOP/s, for `dtype`. None: that of `device`."""
    overhead: float | None = None
    """Microseconds per block of a forward pass in addition, as for launches of kernels without CUDA graphs. None: 0."""
    dtype: str = "bfloat16"
    """float32 | bfloat16 | float16 | int8 (weights; cache and products in bfloat16): dtype of all models."""
    batch: list[int] = field(default_factory=lambda: [1])
    """Batch sizes."""
    prompt_tokens: list[int] = field(default_factory=lambda: [128])
    """Prompt lengths in LLM tokens."""
    response_tokens: list[int] = field(default_factory=lambda: [64])
    """Response lengths in LLM tokens."""
    draft_tokens: int = 8
    """Lossless: tokens that the hybrid drafts for each verification by the LLM."""
    accepted_tokens: float = 6.0
    """Lossless: mean number of drafted tokens that a verification accepts. The LLM adds one token to them."""
    rewritten: float = 0.1
    """Cascade: share of the responses that the LLM generates anew."""
    shared_encoding: bool = True
    """Lossless, cascade: the LLM does not repeat what it computed as the hybrid's encoder."""
    logger: LoggerConfig = new_field(default_factory=LoggerConfig)


@dataclass
class DashboardConfig:
    """`dashboard`: a workspace and a report of W&B for the runs of a project."""

    project: str = "llm2slm"
    """Project of the runs, as logger.project."""
    entity: str | None = None
    """User or team of the project. None: the default of the account."""
    group: str | None = None
    """Only runs of this group (the name of a sweep). None: all runs."""
    metric: str | None = None
    """Metric of the plots of quality. None: the first one of the default task."""
    factors: list[str] = new_field(default_factory=lambda: ["model.conditioning"])
    """Keys of the configuration whose effects on the quality are plotted."""
    title: str = "Quality and latency"
    """Title of workspace and report."""
    mode: str = "auto"
    """auto (online if logged in, else offline) | online | offline (write their JSON files only)."""
    out: str = "outputs/dashboard"
    """Folder of workspace.json, report.json and files for `wandb sweep`."""
