"""What `train` prints before its first step: one example as the models get it, and the table of the data."""

from __future__ import annotations

import sys

from llm2slm.commands.builtin_llm import warn_builtin_encoder
from llm2slm.commands.evaluate import warn_language
from llm2slm.commands.task_choice import tell_task, warn_task
from llm2slm.commands.tokens_report import check_lossy, warn_tokens
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.statistics import table
from llm2slm.data.tasks import Task

SHOWN = 300
"""Characters of an example text that are printed at most."""


def warn_warmup(config: RunConfig) -> None:
    """Warns where training ends before the warm-up does, or with it."""
    warmup, steps = config.optim.warmup_steps, config.trainer.max_steps
    if warmup >= steps:
        reached = "its peak at the last step only" if warmup == steps else f"{steps / warmup:.0%} of its peak"
        print(
            f"llm2slm: warning: optim.warmup_steps={warmup} is not less than trainer.max_steps={steps}: the learning "
            f"rate reaches {reached} and never decays; set optim.warmup_steps lower",
            file=sys.stderr,
        )


def example_lines(data: DataModule) -> list[str]:
    """What is put around each text, and the first training row as the models get it: the prompt of the SLM, that of the
    LLM where it is another, and the target."""
    task, collator = data.task, data.collator
    example = data.first_examples("train")[0]
    lines = [f"task {task.name}: {_around(task)}"]
    writer, reader = collator.slm_prompts, collator.llm_prompts
    read = {"prompt": writer.rendered(example.prompt)}
    if collator.llm_tokenizer is not None and (other := reader.rendered(example.prompt)) != read["prompt"]:
        read["the LLM's prompt"] = other
    shown = {**read, "target": example.target}
    width = max(map(len, shown))
    return lines + [f"  {name:{width}}  {visible(text)}" for name, text in shown.items()]


def _around(task: Task) -> str:
    """The prefix, the templates, and the parts of a mixture with theirs."""
    prefix = f"prefix {visible(task.prefix)}" if task.prefix else "no prefix"
    templates = [f"template {visible(template.text)}" for template in task.templates]
    parts = [f"{name}: {visible(text)}" for name, text in task.prefixes]
    return ", ".join([prefix, *templates]) + (f"; prefix by part: {', '.join(parts)}" if parts else "")


def visible(text: str, limit: int = SHOWN) -> str:
    """A text in quotes on one line: newlines and other characters that print as nothing are escaped as in Python, and
    of a long one the middle is left out, with the number of its characters in its place."""
    head = limit * 2 // 3
    tail = limit - head
    if len(text) <= limit:
        return repr(text)
    return f"{text[:head]!r} [... {len(text) - limit:,} characters ...] {text[-tail:]!r}"


def show_data(given: RunConfig, config: RunConfig, data: DataModule, final: str) -> None:
    """Prints the task, one example, the table of the data, and warnings: a task that is not the corpus' own, targets of
    `final` that the metrics cannot tokenize, prompts of `final` that are also training prompts, texts that a tokenizer
    loses.

    Args:
        given: the configuration before its task was named (`with_task`).

    Raises:
        UserError: as `check_lossy`.
    """
    from rich.console import Console

    tell_task(given.task, given.data)
    warn_task(config)
    warn_builtin_encoder(config)
    warn_warmup(config)
    warn_language(data.task, data.examples(final))
    data.compare()
    told = data.report()
    console = Console()
    for line in example_lines(data):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table(told))
    warn_tokens(config, data)
    check_lossy(config, data)
    if data.config.streaming and told["train"]["rows"] < data.config.buffer:
        print(
            f"llm2slm: warning: data.buffer={data.config.buffer} is more than the {told['train']['rows']} training "
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
    known, rows = told[final]["in_train"], told[final]["rows"] - told[final]["dropped"]
    if known:
        print(
            f"llm2slm: warning: {known:,} of {rows:,} prompts of the {final} split are in the training data too; its "
            "scores tell in part what was remembered",
            file=sys.stderr,
        )
