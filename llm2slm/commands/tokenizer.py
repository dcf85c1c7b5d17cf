"""`llm2slm tokenizer`: a tokenizer trained on the train split of a corpus: prompts, prefix included, and targets.

`model.slm.tokenizer=train:8000` does the same as the first step of `train`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

from llm2slm.atomic import filling
from llm2slm.commands.output_folder import check_folder
from llm2slm.config import DataConfig, LanguageModelConfig, ModelConfig, TaskConfig, TokenizerConfig
from llm2slm.types import Example, Labels, UserError

TRAIN = "train:"
"""Prefix of a tokenizer that is no name but an order: train one with so many entries."""


STREAMED = 200_000
"""Rows of a streamed corpus that a tokenizer is trained on, from the first."""


def run(config: TokenizerConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Trains the tokenizer and writes it to `config.out`.

    Raises:
        UserError: `out` is no folder, the corpus cannot be read, or the vocabulary is too small.
    """
    from llm2slm.commands.task_choice import tell_task

    check_folder("out", Path(config.out))
    told = train(config.data, config.task, config.seed, config.vocab_size, Path(config.out))
    tell_task(config.task, config.data)
    print(told)


def train(data: DataConfig, task: TaskConfig, seed: int, vocab_size: int, out: Path) -> str:
    """Trains a tokenizer on what the models will read and write, saves it, and says in a line how it cuts."""
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
    """What the models will read and write of the training split; of streamed rows the first ones."""
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
    """Trains the tokenizers that the model's configuration orders (`train:8000`) and names them in their place.

    Then adds what the model that writes is to keep, and cuts its vocabulary (`keep_ordered`).

    Raises:
        UserError: what follows `train:` is no number; as `keep_ordered`.
    """
    from llm2slm.commands.kept_tokenizer import check_keeping, keep_ordered

    check_keeping(model, data)
    sides: dict[str, LanguageModelConfig] = {"llm": model.llm, "slm": model.slm}
    for side, language_model in sides.items():
        order = language_model.tokenizer
        if order is None or not order.startswith(TRAIN):
            continue
        size = order.removeprefix(TRAIN)
        if not size.isdigit():
            raise UserError(f"model.{side}.tokenizer={order}: give the number of entries, as {TRAIN}8000")
        out = folder / "tokenizers" / side
        if os.environ.get("LOCAL_RANK", "0") == "0":  # Lightning starts the other processes after the first got here
            print(train(data, task, seed, int(size), out))
        language_model.tokenizer = str(out.resolve())
    keep_ordered(model, data, task, seed, folder)
