"""What the LLM does once for a whole corpus, before training: it fills a store of its representations.

Every loop here can be ended at any moment, and goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import TextColumn

from llm2slm.data.collate import Encoded, padded
from llm2slm.data.progress import Rate, progress_bar
from llm2slm.data.reps.files import key_of
from llm2slm.data.reps.store import llm_prompt
from llm2slm.data.reps.writer import SHARD_BYTES, StoreWriter
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.stored_encoder import encoder_facts, identity
from llm2slm.types import StoreDtype, UserError

EMBEDDED = 4096
"""Rows of the embedding matrix read at once."""


@dataclass(frozen=True)
class Filled:
    """What `encode` did: rows asked for, different prompts among them, those that were new, their tokens, seconds."""

    rows: int
    prompts: int
    new: int
    new_tokens: int
    seconds: float


def encode(
    model: LLM2SLM, rows: Sequence[Encoded], store: StoreWriter, batch_tokens: int = 8192, progress: bool = True
) -> Filled:
    """Fills a store from a split: every prompt that is not there yet is read by the LLM, and kept.

    Batches are made of all prompts of the split, less those of earlier, finished fillings. One that is partly there (a
    shard ended in it) is read once more as a whole: so its values are the same to the last bit as without the
    interruption, given the same batch_tokens, device and number of threads.

    Args:
        rows: of a data module: `data.encoded("train")`.
        batch_tokens: padded tokens read at once.
        progress: show a bar with the rate and the time left, on the error stream.

    Raises:
        UserError: too little room on the disk, a representation that is not finite, or a model without an LLM.
    """
    encoder = _encoder(model)
    prompts = [llm_prompt(row) for row in rows]
    plan = list(batches(store.unsettled(prompts), batch_tokens))
    missing = [[row for row in batch if not store.holds(row)] for batch in plan]
    new, tokens = sum(map(len, missing)), _tokens(missing)
    store.check_room(store.bytes_of(new, tokens))
    pad, device = model.collator.llm_prompts.pad_id, next(encoder.parameters()).device
    started = time.perf_counter()
    done = TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens")
    with progress_bar(progress, done, Rate("tokens")) as bar:
        total = _tokens(plan)
        job = bar.add_task("encoding", total=total, completed=total - tokens)
        for batch, lacking in zip(plan, missing, strict=True):
            if lacking:
                store.append(batch, encoder(*(ids.to(device) for ids in padded(batch, pad))))
                bar.advance(job, _tokens([lacking]))
    if plan:  # else all of it was finished before, and what is not is another split's
        store.finish()
    return Filled(len(rows), len({key_of(row) for row in prompts}), new, tokens, time.perf_counter() - started)


def batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[Sequence[int]]]:
    """Prompts by length, longest first (too large a batch fails at once), as many together as the budget allows."""
    batch: list[Sequence[int]] = []
    for row in sorted(rows, key=len, reverse=True):  # rows of one length stay in order
        if batch and (len(batch) + 1) * len(batch[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def put_embeddings(model: LLM2SLM, store: StoreWriter) -> None:
    """Adds the LLM's embedding matrix to a store, for model.tokenizers=llm_tokens: what `FrozenEncoder.embed` gives of
    each token (which is not always the bare matrix: some models scale it)."""
    if store.has_embeddings:
        return
    encoder = _encoder(model)
    table = encoder.body.get_input_embeddings()
    tokens, device = int(table.num_embeddings), next(encoder.parameters()).device
    parts = [
        encoder.embed(torch.arange(start, min(start + EMBEDDED, tokens), device=device).unsqueeze(0))[0].cpu()
        for start in range(0, tokens, EMBEDDED)
    ]
    store.put_embeddings(torch.cat(parts))


def open_writer(
    folder: Path | str,
    model: LLM2SLM,
    dtype: StoreDtype = StoreDtype.float32,
    shard_bytes: int = SHARD_BYTES,
) -> StoreWriter:
    """A store of what a hybrid's LLM says of prompts, begun or gone on with.

    Raises:
        UserError: as `StoreWriter`; a model without an LLM.
    """
    encoder = _encoder(model)
    known = identity(model.config.llm or {}, encoder.layers, model.collator, keys_values=encoder.kv_blocks is not None)
    return StoreWriter(folder, known, encoder_facts(encoder), dtype, shard_bytes)


def _encoder(model: LLM2SLM) -> FrozenEncoder:
    if not isinstance(model.encoder, FrozenEncoder):
        raise UserError(f"a store is filled by an LLM that reads beside an SLM; this system ({model.kind}) has none")
    return model.encoder


def _tokens(plan: Sequence[Sequence[Sequence[int]]]) -> int:
    return sum(len(row) for batch in plan for row in batch)
