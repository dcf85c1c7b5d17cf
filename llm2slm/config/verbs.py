"""Keys of the verbs that do not train or test a run: generate, export, judge, report, compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import field as new_field
from typing import Any

from llm2slm.config.model import PlainModelConfig
from llm2slm.types import Overlong


@dataclass
class GenerateConfig:
    """`generate`: answers for a prompt, for a file of prompts, or (with neither) for what is typed."""

    run: str | None = None
    """Run directory, model folder, GGUF file, or Hub id of the model that answers; `builtin/llm` is the built-in
    LLM."""
    llm: str | None = None
    """Where the LLM of `run` is now, if it has moved."""
    model: PlainModelConfig = new_field(default_factory=PlainModelConfig)
    """How `run` is loaded and asked, where it is an LLM that was not trained here. A trained model is used as it was
    trained, and refuses these keys."""
    prompt: str | None = None
    """One text to answer."""
    input: str | None = None
    """File of texts: what `data.train` takes (json, jsonl, csv, parquet, with the column `field`), else one a line."""
    field: str | None = None
    """The column of the texts where `input` has columns; a nested one has a dotted name. None: `source`, `prompt`, or
    the one that the run was trained on."""
    output: str | None = None
    """File for the answers to `input`, in its order: .jsonl (source, prediction) or one a line. None: the terminal."""
    prefix: str | None = None
    """Put in front of every text. None: what the run was trained with."""
    stream: bool = True
    """Show the answer while it is written (one text at a time, no beams)."""
    max_new_tokens: int | None = None
    """Response tokens at most. None: what the run was trained with, else 128."""
    num_beams: int = 1
    do_sample: bool = False
    """Sample with the temperature and top_p below; else take the likeliest token (or beam)."""
    temperature: float = 1.0
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    batch_size: int = 32
    """Texts of `input` answered at once."""
    overlong: Overlong | None = None
    """What to do with a text that is longer than the model takes: error | truncate. None: as the run was trained (drop
    counts as error)."""
    seed: int = 1


@dataclass
class ExportConfig:
    """`export`: a trained model as a folder of its own, or in a repository of the Hub."""

    run: str | None = None
    """Run directory, model folder, or Hub id of the model."""
    llm: str | None = None
    """Where the LLM of `run` is now, if it has moved."""
    out: str = "outputs/export"
    """Folder to write; new, or empty."""
    with_llm: bool = False
    """Write the part of the LLM that is used as well: the folder then needs nothing else."""
    dtype: str | None = None
    """float32 | bfloat16 | float16: what the weights of SLM and projector are stored in. None: as they were trained."""
    name: str | None = None
    """What the model card calls it. None: the folder's name, or that of the repository."""
    license: str | None = None
    """Licence of the model for its card, as the Hub names it (apache-2.0, cc-by-4.0)."""
    results: list[str] = field(default_factory=list)
    """Other results for the card, beside the run's own: run directories of a benchmark or an evaluation."""
    push: str | None = None
    """Repository of the Hub to put it into, as me/my-model; made if need be."""
    private: bool | None = None
    """Whether a repository that is made is for its owner alone. None: as the owner has it set."""


@dataclass
class ReportConfig:
    """`report`: one page from the results of several runs."""

    runs: list[str] = field(default_factory=list)
    """Run directories, or result.json files."""
    out: str = "outputs/report"
    """Folder that gets report.html."""
    title: str = "llm2slm report"
    buckets: bool = False
    """Also print quality by length of prompt and response (the page has it in any case)."""


@dataclass
class JudgeConfig:
    """`judge`: what another model thinks of a run's answers, or of those of two runs side by side."""

    runs: list[str] = field(default_factory=list)
    """Run directories (or predictions.jsonl files). One: each answer is rated from 1 to 10. Two: the answers to each
    question are compared, in both orders."""
    endpoint: str | None = None
    """Address of an OpenAI-compatible chat-completions endpoint, as http://localhost:8000/v1."""
    model: str | None = None
    """What the endpoint calls the judge."""
    key_env: str | None = None
    """Name of the environment variable that holds the endpoint's key; the key itself is never written anywhere."""
    local: str | None = None
    """In place of an endpoint: Hub id, folder or GGUF file of a model that judges on this machine, greedily."""
    revision: str | None = None
    """local: Hub branch, tag or commit."""
    dtype: str = "float32"
    """local: float32 | bfloat16 | float16: dtype in which its weights are held."""
    attn_implementation: str | None = None
    """local: eager | sdpa | flash_attention_2 | ...: what transformers offers for the model. None: its own choice."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """local: transformers' own quantization_config, as {quant_method: quanto, weights: int8}. Needs its library."""
    out: str = "outputs/judge"
    """Folder for judge.json and the verdicts. Replies that are there already are not asked for again."""
    rows: int | None = None
    """Rows that are judged: so many from the first. None: all."""
    instruction: str | None = None
    """Shown to the judge in front of each source, as 'Translate into German: '. None: the prefix of the task that the
    first run records."""
    reference: bool = True
    """Show the judge a row's target, where it has one, as an example of a good answer."""
    max_tokens: int = 1024
    """Tokens of a reply at most."""
    temperature: float = 0.0
    """endpoint: of sampling; 0 is greedy."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """endpoint: other fields of a request; null leaves one out, as {max_completion_tokens: 4000, max_tokens: null}."""
    workers: int = 4
    """endpoint: requests that are under way at once."""
    timeout: float = 120.0
    """endpoint: seconds that one request may take."""
    retries: int = 6
    """endpoint: further tries of a request that failed or came too early (408, 409, 425, 429, 5xx, no connection)."""
    wait: float = 1.0
    """endpoint: seconds before the first further try, doubled for each next one, a minute at most; longer where the
    endpoint says so."""
    again: bool = False
    """Ask again the questions whose replies on disk held no verdict."""
    price_in: float | None = None
    """Price of a million prompt tokens, for the cost in the report."""
    price_out: float | None = None
    """Price of a million tokens of replies."""
    seed: int = 1
    """Of the bootstrap."""


@dataclass
class CompareConfig:
    """`compare`: systems on the same rows, with intervals and tests of their differences to one of them."""

    runs: list[str] = field(default_factory=list)
    """Run directories with predictions.jsonl; one of several systems (a demo) stands for all of them."""
    out: str = "outputs/compare"
    """Folder that gets compare.json, compare.csv and compare.html."""
    baseline: str | None = None
    """Run (or name of a system in the table) that all are compared with. None: the first."""
    metrics: list[str] | None = None
    """Names of metrics; the first one orders the rows that differ. None: those of the runs' results."""
    language: str | None = None
    """Language of the targets, by which metrics tokenize (as task.language). None: the one that the results state."""
    benchmark: str | None = None
    """Run directory of a benchmark of these runs, for speedups and memory. None: what the runs' own results have."""
    resamples: int = 10_000
    """Of the bootstrap, and shuffles of the randomization test."""
    rows: int = 10
    """Rows shown on which a system is most worse than the baseline, and as many on which it is most better. 0: none."""
    seed: int = 1
