"""Precomputation of the LLM's representations of a corpus into a store; interruptible at any time and resumable."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import TextColumn

from llm2slm.data.collate import Encoded
from llm2slm.data.padding import padded
from llm2slm.data.reps.files import key_of
from llm2slm.data.reps.store import llm_prompt
from llm2slm.data.reps.writer import SHARD_BYTES, StoreWriter
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.stored_encoder import encoder_facts, identity
from llm2slm.out_of_memory import explained
from llm2slm.processes import Processes
from llm2slm.progress import Rate, progress_bar
from llm2slm.types import Reps, StoreDtype, UserError

EMBEDDED = 4096
"""Rows of the embedding matrix per forward pass."""
TOO_LARGE = "lower encode.batch_tokens"


@dataclass(frozen=True)
class Filled:
    """Statistics of `encode`: rows, distinct prompts, new prompts, tokens of new prompts, seconds."""

    rows: int
    prompts: int
    new: int
    new_tokens: int
    seconds: float


def encode(
    model: LLM2SLM,
    rows: Sequence[Encoded],
    store: StoreWriter,
    batch_tokens: int = 8192,
    progress: bool = True,
    *,
    processes: Processes | None = None,
) -> Filled:
    """Fills a store with the LLM's representations of all prompts of a split that it lacks.

    Batches are formed from all prompts of the split except those of earlier completed fills. A partly stored batch (a
    shard ended in it) is encoded again as a whole, so that the values are bit-identical to those of an uninterrupted
    fill with the same batch_tokens, device and number of threads.

    Args:
        rows: rows of a data module: `data.encoded("train")`.
        batch_tokens: maximum number of tokens of a batch, padding included.
        progress: show a progress bar with rate and remaining time on the error stream.
        processes: all processes that encode; this is the first one, and the others call `encode_share`.

    Raises:
        UserError: the disk space is too small, a representation is not finite, or the model has no LLM encoder.
    """
    prompts = [llm_prompt(row) for row in rows]
    plan = list(batches(store.prompts_to_fill(prompts), batch_tokens))
    missing = [[row for row in batch if not store.holds(row)] for batch in plan]
    new, tokens = sum(map(len, missing)), _tokens(missing)
    store.check_free_space(store.bytes_of(new, tokens))
    group = Processes() if processes is None else processes
    todo = group.from_first([(batch, lacking) for batch, lacking in zip(plan, missing, strict=True) if lacking])
    encoded = group.in_order(_encoded(model, [batch for batch, _ in todo], group), len(todo))
    started = time.perf_counter()
    done = TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens")
    with progress_bar(progress, done, Rate("tokens")) as bar:
        total = _tokens(plan)
        job = bar.add_task("encoding", total=total, completed=total - tokens, before=total - tokens)
        for (batch, lacking), reps in zip(todo, encoded, strict=True):
            store.append(batch, reps)
            bar.advance(job, _tokens([lacking]))
    if plan:  # else the store has all prompts, and an unfinished fill belongs to another split
        store.finish()
    return Filled(len(rows), len({key_of(row) for row in prompts}), new, tokens, time.perf_counter() - started)


def encode_share(model: LLM2SLM, processes: Processes) -> None:
    """The part of a further process in `encode`: encodes every size-th batch of the first process. Collective."""
    todo: list[tuple[list[Sequence[int]], list[Sequence[int]]]] = processes.from_first([])
    for _ in processes.in_order(_encoded(model, [batch for batch, _ in todo], processes), len(todo)):
        pass


def _encoded(model: LLM2SLM, plan: Sequence[Sequence[Sequence[int]]], processes: Processes) -> Iterator[Reps]:
    """The representations of the batches of this process, on the CPU."""
    encoder = _encoder(model)
    pad, device = model.collator.llm_prompts.pad_id, next(encoder.parameters()).device
    for batch in plan[processes.rank :: processes.size]:
        ids_BP, mask_BP = padded(batch, pad)
        with explained(f"a batch of {len(batch)} prompts of {ids_BP.shape[1]} tokens", TOO_LARGE):
            reps = encoder(ids_BP.to(device), mask_BP.to(device))
        yield Reps(reps.reps_BPE.cpu(), reps.mask_BP.cpu())


def batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[Sequence[int]]]:
    """Batches of prompts within a budget of padded tokens, longest first (so that out-of-memory errors come early)."""
    batch: list[Sequence[int]] = []
    for row in sorted(rows, key=len, reverse=True):  # stable for rows of equal length
        if batch and (len(batch) + 1) * len(batch[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def add_embeddings(model: LLM2SLM, store: StoreWriter) -> None:
    """Adds the LLM's embedding matrix to a store, for model.tokenizers=llm_tokens: `FrozenEncoder.embed` of each token
    (some models scale their embedding weights)."""
    if store.has_embeddings:
        return
    encoder = _encoder(model)
    table = encoder.body.get_input_embeddings()
    tokens, device = int(table.num_embeddings), next(encoder.parameters()).device
    parts = [
        encoder.embed(torch.arange(start, min(start + EMBEDDED, tokens), device=device).unsqueeze(0))[0].cpu()
        for start in range(0, tokens, EMBEDDED)
    ]
    store.add_embeddings(torch.cat(parts))


def open_writer(
    folder: Path | str,
    model: LLM2SLM,
    dtype: StoreDtype = StoreDtype.float32,
    shard_bytes: int = SHARD_BYTES,
) -> StoreWriter:
    """A new or continued store for the representations of a hybrid's LLM.

    Raises:
        UserError: as `StoreWriter`; the model has no LLM encoder.
    """
    encoder = _encoder(model)
    known = identity(model.config.llm or {}, encoder.layers, model.collator, keys_values=encoder.kv_blocks is not None)
    return StoreWriter(folder, known, encoder_facts(encoder), dtype, shard_bytes)


def _encoder(model: LLM2SLM) -> FrozenEncoder:
    if not isinstance(model.encoder, FrozenEncoder):
        raise UserError(f"a store is filled by the LLM encoder of a hybrid; this system ({model.kind}) has none")
    return model.encoder


def _tokens(plan: Sequence[Sequence[Sequence[int]]]) -> int:
    return sum(len(row) for batch in plan for row in batch)
