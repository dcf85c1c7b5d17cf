"""`llm2slm tokenizer`: trains a tokenizer on the prompts (with prefix) and targets of a corpus' training split.

`model.slm.tokenizer=train:8000` does the same as the first step of `train`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from llm2slm.atomic import filling
from llm2slm.commands.output_folder import check_folder
from llm2slm.config import DataConfig, LanguageModelConfig, ModelConfig, TaskConfig, TokenizerConfig
from llm2slm.config.ranges import RANGES
from llm2slm.ranks import first_process, started_at_once
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.types import Example, Init, Labels, UserError

TOKENIZERS = "tokenizers"
"""Folder of the tokenizers that a run trains or changes, in its run directory."""
TRAIN = "train:"
"""Prefix of a tokenizer setting that requests training, followed by the vocabulary size."""

STREAMED = 200_000
"""Number of leading rows of a streamed corpus that a tokenizer is trained on."""


def run(config: TokenizerConfig, folder: Path) -> None:  # noqa: ARG001 - all verbs have the same signature
    """Trains the tokenizer and saves it to `config.out`.

    Raises:
        UserError: `out` is not a folder, the corpus cannot be read, or the vocabulary is too small.
    """
    from llm2slm.commands.task_choice import print_task

    check_folder("out", Path(config.out))
    check_loggers(config.logger)
    with track("tokenizer", config, None) as tracking:
        report = train(config.data, config.task, config.seed, config.vocab_size, Path(config.out))
        tracking.summary({"tokenizer": report})
    print_task(config.task, config.data)
    print(report)


def train(data: DataConfig, task: TaskConfig, seed: int, vocab_size: int, out: Path) -> str:
    """Trains a tokenizer on prompts and targets, saves it, and returns a one-line report."""
    from llm2slm.data.tokenization.tokenizer import train_tokenizer

    examples = training_examples(replace(data, labels=Labels.gold), task, seed)
    texts = [text for example in examples for text in (example.prompt, example.target)]
    tokenizer = train_tokenizer(texts, vocab_size, progress=True)
    with filling(out, last="tokenizer.json") as stage:
        tokenizer.save_pretrained(stage)
    count = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    length = sum(map(len, texts)) / max(1, count)
    return f"{out}: {len(tokenizer)} entries from {len(examples)} rows; {length:.2f} characters a token"


def training_examples(data: DataConfig, task: TaskConfig, seed: int) -> list[Example]:
    """The examples of the training split; of streamed rows the first `STREAMED`."""
    from llm2slm.data.sources.labels import relabelled
    from llm2slm.data.sources.sources import read_split, stream_rows, task_of

    known = task_of(task, data)
    rows = (
        list(islice(stream_rows(data, known), STREAMED))
        if data.streaming
        else relabelled(read_split(data, known, "train", seed)[0], data, seed)
    )
    return [known.example(row, index) for index, row in enumerate(rows)]


def train_ordered(model: ModelConfig, data: DataConfig, task: TaskConfig, seed: int, folder: Path) -> None:
    """Trains the tokenizers that the model's configuration requests (`train:8000`), and sets them there.

    Then adds tokens to the generating model's tokenizer, and cuts its vocabulary (`keep_ordered`).

    Raises:
        UserError: `train:` is not followed by a number, or the model has pretrained weights; as `keep_ordered`.
    """
    from llm2slm.commands.kept_tokenizer import check_keeping, keep_ordered

    check_keeping(model, data)
    sides: dict[str, LanguageModelConfig] = {"llm": model.llm, "slm": model.slm}
    for side, language_model in sides.items():
        order = language_model.tokenizer
        if order is None or not order.startswith(TRAIN):
            continue
        size = order.removeprefix(TRAIN)
        if not (size.isascii() and size.isdigit()):
            raise UserError(f"model.{side}.tokenizer={order}: give the number of entries, as {TRAIN}8000")
        if not (legal := RANGES[TokenizerConfig]["vocab_size"]).holds(int(size)):
            raise UserError(f"model.{side}.tokenizer={order}: must be {legal.words(int(size))}")
        if language_model.start is Init.pretrained:
            raise UserError(
                f"model.{side}.tokenizer={order}: the pretrained weights of {language_model.source} belong to its "
                f"tokenizer; set model.{side}.tokenizer=null, or model.{side}.init=random"
            )
        out = folder / TOKENIZERS / side
        made = partial(_made, data, task, seed, int(size), out)
        language_model.tokenizer = by_first(f"tokenizer {side}", made) or str(out.resolve())
    keep_ordered(model, data, task, seed, folder)


def _made(data: DataConfig, task: TaskConfig, seed: int, size: int, out: Path) -> str:
    """Trains a tokenizer, prints its report, and returns its folder."""
    print(train(data, task, seed, size, out))
    return str(out.resolve())


def by_first(name: str, work: Callable[[], str]) -> str | None:
    """The result of a function in the first process, for all processes of the command.

    Returns:
        None in a process that Lightning has started from the first one: what that one has made exists already.

    Raises:
        UserError, SystemExit: as `training.first_result.from_first`.
    """
    if started_at_once():
        from llm2slm.training.first_result import from_first

        return from_first(name, work)
    return work() if first_process() else None
