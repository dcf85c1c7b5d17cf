"""`llm2slm encode`: stores the LLM's representations of a corpus for training (`data.reps=DIR`).

They replace the representations that a hybrid with the same LLM, layer, tokenizers and frame computes in every epoch.
After an interruption, the same command with the same run directory continues. Streamed training rows are encoded in
chunks. With several processes (trainer.devices) each encodes a share of the batches, and the first one writes.
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
from llm2slm.commands.device import device_type, move_to_device
from llm2slm.commands.evaluate import final_split
from llm2slm.commands.output_folder import removed_on_failure
from llm2slm.commands.task_choice import print_task, warn_task, with_task
from llm2slm.commands.tokenizer import TOKENIZERS, train_ordered
from llm2slm.config import RunConfig
from llm2slm.data.collate import Encoded
from llm2slm.data.datamodule import DataModule
from llm2slm.data.reps.writer import StoreWriter
from llm2slm.data.sources.sources import task_of
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.offline import Filled, add_embeddings, encode, encode_share, open_writer
from llm2slm.processes import Processes
from llm2slm.ranks import first_process
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.training.launch import check_parallel, in_processes
from llm2slm.types import Init, Overlong, SystemKind, Tokenizers, UserError

STORE = "reps"


def run(config: RunConfig, folder: Path) -> None:
    """Fills a store with the train, validation and test split, so that training and its test need no LLM.

    Raises:
        UserError: as `check_config`; the folder has other content.
    """
    check_config(config, folder)
    given, config = config, with_task(config)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    task = task_of(config.task, config.data)
    splits = list(dict.fromkeys(("train", "validation", final_split(config.data))))
    with removed_on_failure(folder / TOKENIZERS):
        train_ordered(config.model, config.data, config.task, config.seed, folder)
        model = move_to_device(
            build_model(config.model, replace(config.data, reps=None)), config.trainer.accelerator
        ).eval()
        data = DataModule(config.data, task, model.collator, config.seed)
        for split in splits:  # finds errors in the data before anything is written
            data.prepare(split)
    print_task(given.task, given.data)
    warn_task(config)
    warn_builtin_encoder(config)
    if not first_process():
        in_processes(config.trainer, lambda group: share(model, group))
        return
    resumed = (folder / STORE).is_dir()
    with (
        open_writer(folder / STORE, model, config.encode.dtype) as store,
        track("encode", config, folder, resumed=resumed) as tracking,
    ):
        show_held()
        runs.write_config(folder, config)
        try:
            if config.model.tokenizers is Tokenizers.llm_tokens:  # first, so that a lack of disk space shows early
                add_embeddings(model, store)
            filled = in_processes(
                config.trainer, lambda group: fill(model, row_chunks(data, splits), store, config, group)
            )
        except KeyboardInterrupt:
            print(f"llm2slm: to continue, run the same command with hydra.run.dir={folder}", file=sys.stderr)
            raise
        prompts = len(store)
        size = sum(path.stat().st_size for path in (folder / STORE).rglob("*") if path.is_file()) / 1e6
        rows, new, seconds = (sum(getattr(f, name) for f in filled) for name in ("rows", "new", "seconds"))
        tokens_per_s = sum(f.new_tokens for f in filled) / max(seconds, 1e-9)
        values = {"prompts": prompts, "new_prompts": new, "rows": rows, "store_mb": size, "seconds": seconds}
        tracking.summary(values | {"tokens_per_s": tokens_per_s})
    if new:
        found = f"{prompts} prompts, {size:.1f} MB; {new} of them new, of {rows} rows, in {seconds:.1f} s"
    else:
        found = f"{prompts} prompts, {size:.1f} MB; the store already had all prompts of {rows} rows"
    print(f"{folder / STORE}: {found}; train with data.reps={folder / STORE}")


def fill(
    model: LLM2SLM, chunks: Iterator[list[Encoded]], store: StoreWriter, config: RunConfig, group: Processes
) -> list[Filled]:
    """Fills the store chunk by chunk, together with the other processes (`share`)."""
    filled = []
    for rows in chunks:
        group.from_first(True)  # another chunk follows
        sizes = config.encode.batch_tokens, config.trainer.progress
        filled.append(encode(model, rows, store, *sizes, processes=group))
    group.from_first(False)
    return filled


def share(model: LLM2SLM, group: Processes) -> None:
    """The part of a further process: encodes its share of each chunk."""
    while group.from_first(False):
        encode_share(model, group)


def check_config(config: RunConfig, folder: Path) -> None:
    """Checks the configuration and the folder before the LLM is loaded.

    Raises:
        UserError: the model is no hybrid, its LLM has random weights, or a setting does not apply to `encode`.
    """
    if config.model.kind is not SystemKind.llm2slm:
        raise UserError(f"encode needs a hybrid; model.kind={config.model.kind}: use llm2slm")
    if config.model.llm.start is Init.random:
        raise UserError("model.llm has random weights, which are saved nowhere; name a pretrained LLM")
    if (folder / "config.yaml").exists() and not (folder / STORE).is_dir():
        raise UserError(f"{folder}: holds a run already; write the store to another folder with hydra.run.dir=DIR")
    if config.data.overlong is Overlong.split and config.data.streaming:
        raise UserError("data.overlong=split: encode does not split streamed texts; use truncate or drop")
    if config.split != RunConfig().split:
        raise UserError(f"split={config.split}: encode stores all splits; leave it out")
    device_type(config.trainer.accelerator)
    check_loggers(config.logger)
    check_parallel(config.trainer)


def row_chunks(data: DataModule, splits: list[str]) -> Iterator[list[Encoded]]:
    """The rows of all splits in one list, so that batches may mix splits; streamed rows in chunks."""
    if data.config.streaming:
        yield from chain.from_iterable(map(data.one_pass, splits))
    else:
        yield [row for split in splits for row in data.encoded(split)]
