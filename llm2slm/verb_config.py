"""The typed keys of the verbs that are no runs: generate, export, report. Part of `config.py`, which names them too."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm2slm.types import Overlong


@dataclass
class GenerateConfig:
    """`generate`: answers for a prompt, for a file of prompts, or (with neither) for what is typed."""

    run: str | None = None
    """Run directory, model folder, or Hub id of the model that answers; `builtin/llm` is the built-in LLM."""
    llm: str | None = None
    """Where the LLM of `run` is now, if it has moved."""
    prompt: str | None = None
    """One text to answer."""
    input: str | None = None
    """File of texts: one a line, or .jsonl rows with a field of text."""
    field: str | None = None
    """The field of .jsonl rows. None: `source`, `prompt`, or the one that the run was trained on."""
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
