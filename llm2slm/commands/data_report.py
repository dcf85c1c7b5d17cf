"""What `train` prints before its first step: the table of the data, and warnings about keys that it does not read."""

from __future__ import annotations

import sys

from llm2slm.commands.builtin_llm import warn_builtin_reader
from llm2slm.commands.evaluate import warn_language, warn_task
from llm2slm.commands.tokens_report import check_lossy, warn_tokens
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.statistics import table
from llm2slm.types import Labels, SystemKind


def warn_unread(config: RunConfig) -> None:
    """Tells of what is set, but not read by this training, and of a task that is not its corpus'."""
    data = config.data
    warn_task(config)
    warn_builtin_reader(config)
    warn_warmup(config)
    if data.labels is Labels.gold and data.labels_from is not None:
        print(
            f"llm2slm: warning: data.labels_from={data.labels_from} is not read, as data.labels=gold: the "
            "corpus' own answers are trained on; set data.labels=llm or mix",
            file=sys.stderr,
        )
    if data.reps is not None and config.model.kind is not SystemKind.llm2slm:
        print(
            f"llm2slm: warning: data.reps={data.reps} is not read: model.kind={config.model.kind} is told nothing by "
            "an LLM",
            file=sys.stderr,
        )


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


def show_data(config: RunConfig, data: DataModule, final: str) -> None:
    """Prints the table of the training data, and warnings: keys that are not read, targets of `final` that the metrics
    cannot tokenize, prompts of `final` that are also training prompts, texts that a tokenizer loses.

    Raises:
        UserError: as `check_lossy`.
    """
    from rich.console import Console

    warn_unread(config)
    warn_language(data.task, data.examples(final))
    data.compare()
    told = data.report()
    Console().print(table(told))
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
