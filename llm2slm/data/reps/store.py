"""RepsStore: precomputed representations of the frozen LLM, which replace the LLM in training.

A store is a folder, written by `data/reps/writer.py`:

    store.json               value encoding, the LLM and its settings (`identity`), the shapes of its encoder (`reader`)
    index.jsonl              a line per finished file (size, sha256) and per completed fill
    shard-00000.safetensors  concatenated prompts: values [tokens, E], scales [tokens, layers] (int8 only),
                             keys [prompts, 16], starts [prompts + 1]
    embeddings.safetensors   the LLM's embedding matrix (optional)

A prompt's key is a hash of its LLM token ids, which depend on text, tokenizer and frame. Equal prompts are stored once.
Files are memory-mapped: opening a store reads no values, and a batch reads only the rows that it needs.

Encoding       bytes per token       error of a value
float32        4 E                   0
bfloat16       2 E                   at most 1/256 of the value (8 significant bits)
int8           E + 4 layers          at most 1/253 of the largest magnitude in its token and layer

plus 24 bytes per prompt (E: total width of the stored layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import DownloadColumn, TransferSpeedColumn
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm2slm.data.collate import Encoded
from llm2slm.data.padding import padded
from llm2slm.data.reps.files import (
    EMBEDDINGS,
    INDEX,
    KEY_BYTES,
    check_equal,
    check_size,
    key_of,
    read_index,
    read_record,
    unpack,
)
from llm2slm.progress import progress_bar
from llm2slm.runs import plain
from llm2slm.types import Reps, StoreDtype, UserError

REFILL = "fill it from the same rows, with the same task prefix, frame and limits"
BLOCK = 1 << 20
"""Bytes per read of a checksum."""

Keys = np.ndarray[Any, np.dtype[np.bytes_]]


@dataclass(frozen=True)
class _Table:
    """Location of each prompt, sorted by key: index of the shard in `files`, first row in it, number of tokens."""

    files: list[str]
    keys: Keys
    shards: np.ndarray[Any, np.dtype[np.int32]]
    starts: np.ndarray[Any, np.dtype[np.int64]]
    lengths: np.ndarray[Any, np.dtype[np.int32]]


def llm_prompt(row: Encoded) -> list[int]:
    """The LLM's prompt token ids of a row."""
    return row.slm if row.llm is None else row.llm


class RepsStore:
    """Reads a store; replaces the LLM's `FrozenEncoder` in training.

    Read-only; safe for threads and for forked or spawned processes, each of which maps the files on first use.

    Args:
        folder: folder of the store.
        identity: required identity of the representations, as plain values; missing keys are not compared (the
            fingerprint of an LLM that is not loaded).

    Attributes:
        identity: recorded by `StoreWriter`.
        encoder_facts: shapes of the LLM encoder, recorded by `StoreWriter`.
        dtype: value encoding.
        layers: numbers of the stored layers.
        width: width of one layer, E / len(layers).
        embedding_width: width of the LLM's embedding matrix (`embed`).
        finished: the last fill was completed.

    Raises:
        UserError: the folder is no store, its identity differs (with every difference), or a file is missing or
            truncated.
    """

    def __init__(self, folder: Path | str, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.record = read_record(self.folder)
        self.identity: dict[str, Any] = self.record["identity"]
        self.encoder_facts: dict[str, Any] = self.record["reader"]
        expected = plain(dict(identity or {}))
        check_equal(self.folder, {key: self.identity.get(key) for key in expected}, expected)
        self.dtype = StoreDtype(self.record["kept_as"])
        self.layers: list[int] = self.encoder_facts["layers"]
        self.width: int = self.encoder_facts["width"]
        self.embedding_width: int = self.encoder_facts["embedding_width"]
        self.index = read_index(self.folder)
        self.finished = self.index.finished and self.index.completed > 0
        for entry in self.index.entries:
            check_size(self.folder / entry.file, entry.bytes)
        self._mapped: dict[str, dict[str, Tensor]] = {}
        self._table: _Table | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}, "_table": None}  # each process maps the files

    def __len__(self) -> int:
        """Number of prompts."""
        return sum(entry.prompts for entry in self.index.entries)

    @property
    def tokens(self) -> int:
        """Number of tokens of all prompts."""
        return sum(entry.tokens for entry in self.index.entries)

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return sum(entry.bytes for entry in self.index.entries)

    def keys(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """The keys of the prompts in the files `start` to `stop` of the index, in order."""
        shards = [entry for entry in self.index.entries[start:stop] if entry.prompts]
        return [key for shard in shards for key in map(bytes, self._tensors(shard.file)["keys"].numpy())]

    def missing(self, rows: Iterable[Sequence[int]]) -> list[int]:
        """Indices of the prompts (token ids) that are not in the store."""
        table, keys = self._sorted(), _as_keys([key_of(row) for row in rows])
        return np.flatnonzero(~_found(table, keys)[1]).tolist()

    def check_rows(self, rows: Sequence[Encoded], name: str) -> None:
        """Checks that the store has the prompts of all rows.

        Args:
            name: name of the rows in an error message, as "train".

        Raises:
            UserError: prompts are missing; with their number and the first row.
        """
        if lacking := self.missing([llm_prompt(row) for row in rows]):
            raise UserError(
                f"{self.folder}: {len(lacking):,} of {len(rows):,} prompts of {name} are not in this store"
                f"{self._unfinished}, the first is that of row {rows[lacking[0]].index} (from 0); {REFILL}"
            )

    def reps(
        self,
        ids_BP: Tensor,
        mask_BP: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        indices: Sequence[int] = (),
    ) -> Reps:
        """The representations of a batch of prompts, padded on either side, like `FrozenEncoder.forward`.

        Args:
            dtype: dtype of the result.
            indices: row numbers for an error message (`Batch.indices`).

        Returns:
            reps_BPE, zero at padding, on the device of the ids, and the mask.

        Raises:
            UserError: a prompt is not in the store; with its row.
        """
        ids, real = ids_BP.cpu().numpy(), mask_BP.bool().cpu()
        rows = [row[there] for row, there in zip(ids, real.numpy(), strict=True)]
        names = [f"row {index} (from 0)" for index in indices] or [f"row {b} of a batch" for b in range(len(rows))]
        parts = [unpack(values, scales, dtype) for values, scales in self._slices(rows, names)]
        reps_BPE = torch.zeros(*mask_BP.shape, self.width * len(self.layers), dtype=dtype)
        reps_BPE[real] = torch.cat(parts)
        return Reps(reps_BPE.to(ids_BP.device), mask_BP)

    def reps_of(self, rows: Sequence[Sequence[int]], *, dtype: torch.dtype = torch.float32) -> Reps:
        """The representations of rows of token ids, padded on the right."""
        return self.reps(*padded(rows, 0), dtype=dtype)

    def embed(self, ids_BP: Tensor) -> Tensor:
        """Rows of the LLM's embedding matrix, in the LLM's dtype, like `FrozenEncoder.embed`.

        Raises:
            UserError: the store has no embedding matrix.
        """
        if not self.has_embeddings:
            raise UserError(
                f"{self.folder}: has no embedding matrix of the LLM, which model.tokenizers=llm_tokens needs; fill the "
                "store with this setting"
            )
        matrix_VE = self._tensors(EMBEDDINGS)["embeddings"]
        return matrix_VE[ids_BP.cpu()].to(ids_BP.device)

    @property
    def _unfinished(self) -> str:
        return "" if self.finished else " (the store is incomplete: continue to fill it)"

    @property
    def has_embeddings(self) -> bool:
        """Whether the store has the LLM's embedding matrix."""
        return any(entry.file == EMBEDDINGS for entry in self.index.entries)

    def verify(self, progress: bool = True) -> None:
        """Compares every file with its checksum.

        Args:
            progress: show a progress bar.

        Raises:
            UserError: files were changed; with their names.
        """
        bad = []
        with progress_bar(progress, DownloadColumn(), TransferSpeedColumn()) as bar:
            job = bar.add_task("verifying", total=self.nbytes)
            for entry in self.index.entries:
                check_size(self.folder / entry.file, entry.bytes)
                if checksum(self.folder / entry.file, lambda read: bar.advance(job, read)) != entry.sha256:
                    bad.append(entry.file)
        if bad:
            raise UserError(
                f"{self.folder}: {', '.join(bad)} {'is' if len(bad) == 1 else 'are'} not as written (sha256 differs "
                f"from {INDEX}); remove the folder and fill the store again, or fetch the files anew"
            )

    def _tensors(self, file: str) -> dict[str, Tensor]:
        """The memory-mapped tensors of a file. (Two threads may map a file twice, which is harmless.)"""
        known = self._mapped.get(file)
        if known is None:
            path = self.folder / file
            try:
                with safe_open(path, "pt") as opened:
                    known = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: cannot be read ({error}); check the store with verify()") from None
            self._mapped[file] = known
        return known

    def _sorted(self) -> _Table:
        if self._table is None:
            shards = [entry.file for entry in self.index.entries if entry.prompts]
            starts = [self._tensors(shard)["starts"].numpy() for shard in shards]
            keys = [self._tensors(shard)["keys"].numpy().reshape(-1).view(f"S{KEY_BYTES}") for shard in shards]
            joined = np.concatenate([_as_keys([]), *keys])
            order = np.argsort(joined, kind="stable")
            empty = np.zeros(0, np.int64)
            self._table = _Table(
                shards,
                joined[order],
                np.repeat(np.arange(len(shards), dtype=np.int32), [len(part) for part in keys])[order],
                np.concatenate([empty, *(part[:-1] for part in starts)])[order],
                np.concatenate([empty, *(np.diff(part) for part in starts)]).astype(np.int32)[order],
            )
        return self._table

    def _slices(
        self, rows: Sequence[np.ndarray[Any, Any]], names: Sequence[str]
    ) -> Iterable[tuple[Tensor, Tensor | None]]:
        """Stored values and scales of each prompt."""
        table = self._sorted()
        positions, there = _found(table, _as_keys([key_of(row) for row in rows]))
        for row, name, at, known in zip(rows, names, positions, there, strict=True):
            if not known or table.lengths[at] != len(row):
                raise UserError(
                    f"{self.folder}: the prompt of {name}, {len(row)} tokens of the LLM, is not in this store"
                    f"{self._unfinished}; {REFILL}"
                )
            tensors, start = self._tensors(table.files[table.shards[at]]), int(table.starts[at])
            scales = tensors.get("scales")
            stop = start + len(row)
            yield tensors["values"][start:stop], None if scales is None else scales[start:stop]


def _as_keys(keys: Sequence[bytes]) -> Keys:
    return np.array(keys, dtype=f"S{KEY_BYTES}")


def _found(table: _Table, keys: Keys) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The position of each key in the table, and whether the table has it."""
    at = np.searchsorted(table.keys, keys).clip(max=max(0, len(table.keys) - 1))
    return at, table.keys[at] == keys if len(table.keys) else np.zeros(len(keys), bool)


def checksum(path: Path, seen: Callable[[int], object]) -> str:
    """The sha256 of a file, read in blocks; `seen` is called with the number of bytes of each."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            seen(len(block))
    return digest.hexdigest()
