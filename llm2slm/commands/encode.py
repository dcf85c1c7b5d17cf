"""`llm2slm encode`: the LLM reads a corpus once, and its representations are kept for training (`data.reps=DIR`).

They are what a hybrid with the same LLM, layer, tokenizers and frame would compute anew in every epoch. Ended at any
moment, the same command with the same run directory goes on. Training rows that are streamed are encoded as they are
read, a chunk after the other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from llm2slm import runs
from llm2slm.commands.builtin_llm import warn_builtin_encoder
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.device import device_type, place
from llm2slm.commands.evaluate import final_split
from llm2slm.commands.task_choice import tell_task, warn_task, with_task
from llm2slm.commands.tokenizer import train_ordered
from llm2slm.config import RunConfig
from llm2slm.data.collate import Encoded
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.models.build import build_model
from llm2slm.offline import encode, open_writer, put_embeddings
from llm2slm.types import Init, Overlong, SystemKind, Tokenizers, UserError

STORE = "reps"


def run(config: RunConfig, folder: Path) -> None:
    """Fills a store with the train, validation and test split (so that training, and its test, need no LLM).

    Raises:
        UserError: no hybrid, an LLM of random weights, or the folder holds something else.
    """
    checked(config, folder)
    given, config = config, with_task(config)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    task = task_of(config.task, config.data)
    train_ordered(config.model, config.data, config.task, config.seed, folder)
    model = place(build_model(config.model, replace(config.data, reps=None)), config.trainer.accelerator).eval()
    data = DataModule(config.data, task, model.collator, config.seed)
    splits = list(dict.fromkeys(("train", "validation", final_split(config.data))))
    for split in splits:  # bad data is found before anything is written
        data.prepare(split)
    tell_task(given.task, given.data)
    warn_task(config)
    warn_builtin_encoder(config)
    with open_writer(folder / STORE, model, config.encode.dtype) as store:
        show_held()
        runs.write_config(folder, config)
        try:
            if config.model.tokenizers is Tokenizers.llm_tokens:  # first: else its lack of room shows after hours
                put_embeddings(model, store)
            filled = [
                encode(model, rows, store, config.encode.batch_tokens, config.trainer.progress)
                for rows in fillings(data, splits)
            ]
        except KeyboardInterrupt:
            print(f"llm2slm: to go on, give the same command with hydra.run.dir={folder}", file=sys.stderr)
            raise
        prompts = len(store)
    size = sum(path.stat().st_size for path in (folder / STORE).rglob("*") if path.is_file()) / 1e6
    rows, new, seconds = (sum(getattr(f, name) for f in filled) for name in ("rows", "new", "seconds"))
    if new:
        found = f"{prompts} prompts, {size:.1f} MB; {new} of them new, of {rows} rows, in {seconds:.1f} s"
    else:
        found = f"{prompts} prompts, {size:.1f} MB; all prompts of {rows} rows were there already"
    print(f"{folder / STORE}: {found}; train with data.reps={folder / STORE}")


def checked(config: RunConfig, folder: Path) -> None:
    """What is wrong is said before the LLM is loaded."""
    if config.model.kind is not SystemKind.llm2slm:
        raise UserError(f"encode keeps what an LLM says beside an SLM; model.kind={config.model.kind}: use llm2slm")
    if config.model.llm.start is Init.random:
        raise UserError(
            "model.llm has random weights, which no file holds: nobody could ask it again; name a trained one"
        )
    if (folder / "config.yaml").exists() and not (folder / STORE).is_dir():
        raise UserError(f"{folder}: holds a run already; keep the store in another folder by hydra.run.dir=DIR")
    if config.data.overlong is Overlong.split and config.data.streaming:
        raise UserError("data.overlong=split: streamed texts are not encoded in pieces; use truncate or drop")
    if config.split != RunConfig().split:
        raise UserError(f"split={config.split}: encode keeps what the LLM says of all splits; leave it out")
    device_type(config.trainer.accelerator)


def fillings(data: DataModule, splits: list[str]) -> Iterator[list[Encoded]]:
    """The rows of all splits at once, so that batches are made of all of them; streamed ones by the chunk."""
    if data.config.streaming:
        yield from chain.from_iterable(map(data.once, splits))
    else:
        yield [row for split in splits for row in data.encoded(split)]
