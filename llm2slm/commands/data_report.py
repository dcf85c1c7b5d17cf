"""Output of `train` before its first step: one example as the models get it, and the table of the data."""

from __future__ import annotations

import sys

from llm2slm.commands.builtin_llm import warn_builtin_encoder
from llm2slm.commands.evaluate import warn_language
from llm2slm.commands.task_choice import print_task, warn_task
from llm2slm.commands.tokens_report import check_lossy, warn_tokens
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.statistics import table
from llm2slm.data.tasks import Task

SHOWN = 300
"""Maximum number of printed characters of an example text."""


def warn_warmup(config: RunConfig) -> None:
    """Warns if the warm-up is not shorter than training."""
    warmup, steps = config.optim.warmup_steps, config.trainer.max_steps
    if warmup >= steps:
        reached = "its peak at the last step only" if warmup == steps else f"{steps / warmup:.0%} of its peak"
        print(
            f"llm2slm: warning: optim.warmup_steps={warmup} is not less than trainer.max_steps={steps}: the learning "
            f"rate reaches {reached} and never decays; set optim.warmup_steps lower",
            file=sys.stderr,
        )


def warn_lost_llm(config: RunConfig) -> None:
    """Warns if the trained model cannot be loaded."""
    if config.model.loses_llm:
        print(
            "llm2slm: warning: the LLM has random weights, which are not saved: the trained model cannot be loaded; "
            "for benchmark, evaluate, generate and export, set model.llm.name to a pretrained LLM and leave "
            "model.llm.init out",
            file=sys.stderr,
        )


def warn_empty(data: DataModule, final: str) -> None:
    """Warns of empty prompts and responses, on one line with their numbers and the first row of each."""
    whole_text = any(task.text for task in (data.task, *(part for _, part in data.task.parts)))  # has no prompts
    kinds = {"responses": lambda example: example.target}
    kinds = kinds if whole_text else {"prompts": lambda example: example.source} | kinds
    found = []
    for kind, text_of in kinds.items():
        counts = []
        for split in dict.fromkeys(("train", "validation", final)):
            examples = data.first_examples(split)
            empty = [example.index for example in examples if not text_of(example)]
            if empty:
                counts.append(f"{len(empty):,} of {len(examples):,} {split} rows, the first is row {empty[0]} (from 0)")
        found += [f"empty {kind}: {', '.join(counts)}"] if counts else []
    if found:
        print(
            f"llm2slm: warning: {'; '.join(found)}; the rows are used as they are: complete or remove them",
            file=sys.stderr,
        )


def example_lines(data: DataModule) -> list[str]:
    """The frame of prompts, and the first training row as the models get it: the SLM's prompt, the LLM's prompt if it
    differs, and the target."""
    task, collator = data.task, data.collator
    example = data.first_examples("train")[0]
    lines = [f"task {task.name}: {_around(task)}"]
    slm, llm = collator.slm_prompts, collator.llm_prompts
    prompts = {"prompt": slm.rendered(example.prompt)}
    if collator.llm_tokenizer is not None and (other := llm.rendered(example.prompt)) != prompts["prompt"]:
        prompts["the LLM's prompt"] = other
    shown = {**prompts, "target": example.target}
    width = max(map(len, shown))
    return lines + [f"  {name:{width}}  {visible(text)}" for name, text in shown.items()]


def _around(task: Task) -> str:
    """Prefix and templates, and the prefixes of a mixture's parts."""
    prefix = f"prefix {visible(task.prefix)}" if task.prefix else "no prefix"
    templates = [f"template {visible(template.text)}" for template in task.templates]
    parts = [f"{name}: {visible(text)}" for name, text in task.prefixes]
    return ", ".join([prefix, *templates]) + (f"; prefix by part: {', '.join(parts)}" if parts else "")


def visible(text: str, limit: int = SHOWN) -> str:
    """A quoted text on one line. Unprintable characters are escaped as in Python; the middle of a long text is replaced
    by its number of characters."""
    head = limit * 2 // 3
    tail = limit - head
    if len(text) <= limit:
        return repr(text)
    return f"{text[:head]!r} [... {len(text) - limit:,} characters ...] {text[-tail:]!r}"


def show_data(given: RunConfig, config: RunConfig, data: DataModule, final: str) -> None:
    """Prints the task, one example, the table of the data, and warnings.

    Warnings: another task than that of the corpus, a model that cannot be loaded, targets of `final` that the metrics
    cannot tokenize, empty texts, prompts of `final` that are also training prompts, texts that a tokenizer cannot
    represent.

    Args:
        given: the configuration before `with_task`.

    Raises:
        UserError: as `check_lossy`.
    """
    from rich.console import Console

    print_task(given.task, given.data)
    warn_task(config)
    warn_builtin_encoder(config)
    warn_lost_llm(config)
    warn_warmup(config)
    warn_language(data.task, data.examples(final))
    data.compare()
    report = data.report()
    console = Console()
    for line in example_lines(data):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table(report))
    warn_empty(data, final)
    warn_tokens(config, data)
    check_lossy(config, data)
    if data.config.streaming and report["train"]["rows"] < data.config.buffer:
        print(
            f"llm2slm: warning: data.buffer={data.config.buffer} is more than the {report['train']['rows']} training "
            "rows, which are read and tokenized over and over to fill it; leave data.streaming out",
            file=sys.stderr,
        )
    rows = len(data.encoded("validation"))
    if data.val_rows is not None and data.val_rows < rows:
        print(
            f"llm2slm: val/loss is computed on {data.val_rows:,} of the {rows:,} validation rows, the same at each "
            "validation (trainer.val_rows; null: all)",
            file=sys.stderr,
        )
    known, rows = report[final]["in_train"], report[final]["rows"] - report[final]["dropped"]
    if known:
        print(
            f"llm2slm: warning: {known:,} of {rows:,} prompts of the {final} split are also in the training data; "
            "its scores partly measure memorization",
            file=sys.stderr,
        )
