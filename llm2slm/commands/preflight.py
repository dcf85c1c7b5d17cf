"""Checks of `train` before its first step: settings, data, and the length of responses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console

from llm2slm.commands.int8_encoding import check_int8_encoding
from llm2slm.config import RunConfig
from llm2slm.config.ranges import check_ranges
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.labels import labels_file
from llm2slm.data.statistics import table
from llm2slm.data.tasks import Task
from llm2slm.data.tokenized_corpus import OverlongRows
from llm2slm.evaluation.metrics.scores import of_texts
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.projector import Projector
from llm2slm.models.soft_prompts import taken
from llm2slm.models.stored_encoder import StoredEncoder
from llm2slm.ranks import first_process
from llm2slm.training.checkpoints import direction
from llm2slm.training.distill import check_distill
from llm2slm.training.micro_batches import check_micro_batch
from llm2slm.training.optim import check_optimizer
from llm2slm.training.phases import check_phases
from llm2slm.training.sharding import check_sharding
from llm2slm.types import Control, Labels, SystemKind, UserError


def check_possible(config: RunConfig) -> None:
    """Refuses impossible settings before anything is loaded."""
    if config.model.kind is SystemKind.llm and config.model.llm.quantization:
        raise UserError("model.llm.quantization: a quantized LLM is not trained; leave it out for model=llm")
    check_ranges(config)
    check_distill(config)
    check_optimizer(config.optim)
    check_phases(config)
    check_micro_batch(config)
    check_int8_encoding(config)
    check_sharding(config)
    if config.data.labels is not Labels.gold and not config.data.streaming:
        labels_file(config.data)


def read_data(model: LLM2SLM, data: DataModule, splits: Sequence[str], progress: bool) -> None:
    """Reads all splits, so that bad data is found before anything is written; also a store of representations that is
    damaged or lacks rows of these splits (of streamed rows the first ones are checked).

    Raises:
        OverlongRows: as `DataModule.encoded`, with the counts of all splits, and after the table that shows them.
        UserError: as `DataModule.encoded`; as `RepsStore.check_rows`, `embed` and `verify`.
    """
    overlong: list[OverlongRows] = []
    for split in splits:
        try:
            data.prepare(split)
        except OverlongRows as error:  # errors of the other splits are reported together
            overlong.append(error)
    if overlong:
        if first_process():
            Console().print(table(data.report()))
        raise OverlongRows(overlong[0].first, "; ".join(error.counted for error in overlong))
    if model.projector is None or not isinstance(model.encoder, StoredEncoder):
        return
    store = model.encoder.store
    if first_process():  # first, since damaged rows may look like missing ones
        store.verify(progress)
    for split in splits:
        store.check_rows(data.first_rows(split), split)
    if isinstance(model.projector, Projector) and model.projector.tokens is not None:
        store.embed(torch.zeros(1, 1, dtype=torch.long))


def check_monitor(config: RunConfig, task: Task) -> None:
    """Refuses a monitor that this run would never log, or that would select the worst checkpoint."""
    metrics = of_texts(task.metrics) if config.callbacks.generate_rows else ()
    known = ["val/loss", *(f"val/{metric}" for metric in metrics)]
    if config.callbacks.monitor not in known:
        raise UserError(
            f"callbacks.monitor={config.callbacks.monitor}: this run never logs it; it logs {', '.join(known)}"
        )
    direction(config.callbacks)


def check_context_length(model: LLM2SLM, data: DataModule, split: str, rows: int | None = None) -> None:
    """Refuses responses that would exceed the SLM's position embeddings.

    Args:
        split: the split to generate for; rows: its number of rows, from the first; None: all.

    Raises:
        UserError: names the row whose response does not fit.
    """
    positions = getattr(model.slm.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return
    _, before_response = taken(model.slm)
    generated = data.encoded(split)[:rows]
    lengths = [len(row.slm if row.llm is None else row.llm) for row in generated]
    if model.control is Control.shuffled:  # any row may get the longest prompt
        lengths = [max(lengths, default=0)] * len(lengths)
    for row, before in zip(generated, lengths, strict=True):
        used = before_response + (model.mode.positions(model.config, len(row.slm), before) if model.pads_left else 0)
        if used + data.task.max_new_tokens > positions:
            raise UserError(
                f"task.max_new_tokens={data.task.max_new_tokens} after the prompt of {split} row {row.index} "
                f"({used} tokens) exceeds the SLM's {positions} positions; at most {max(positions - used, 0)} fit"
            )
