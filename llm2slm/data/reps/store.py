"""RepsStore: the frozen LLM's representations of a corpus, computed once, read back in place of the LLM.

A store is a folder that `data/reps/writer.py` writes:

    store.json               how values are kept, what the LLM is (`identity`), its shapes (`reader`)
    index.jsonl              a line for each finished file (size, sha256); a line for each finished filling
    shard-00000.safetensors  prompts one after the other: values [tokens, E], scales [tokens, layers] (int8 only),
                             keys [prompts, 16], starts [prompts + 1]
    embeddings.safetensors   the LLM's embedding matrix, if it was asked for

A prompt's key is a hash of the token ids that the LLM reads: text, tokenizer and frame are all in them. A prompt is
stored once, however often it occurs. Files are mapped into memory: opening reads no values, and reading a batch touches
the rows of that batch alone.

Kept as        bytes per token       each value, read back
float32        4 E                   the same
bfloat16       2 E                   rounded to 8 significant bits: off by at most its 256th part
int8           E + 4 layers          off by at most the 253rd part of the largest magnitude in its token and layer

and beside it 24 bytes per prompt (E: width of all layers that are read).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import (
    DownloadColumn,
    TransferSpeedColumn,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm2slm.data.collate import Encoded
from llm2slm.data.progress import progress_bar
from llm2slm.data.reps.files import (
    EMBEDDINGS,
    INDEX,
    KEY_BYTES,
    check_size,
    differ,
    key_of,
    plain,
    read_index,
    read_record,
    unpack,
)
from llm2slm.types import Reps, StoreDtype, UserError

REFILL = "fill it from the same rows, with the same task prefix, frame and limits"
BLOCK = 1 << 20
"""Bytes read at once for a checksum."""

Keys = np.ndarray[Any, np.dtype[np.bytes_]]


@dataclass(frozen=True)
class _Table:
    """Where each prompt is, sorted by key: number of the shard among `files`, first row in it, tokens."""

    files: list[str]
    keys: Keys
    shards: np.ndarray[Any, np.dtype[np.int32]]
    starts: np.ndarray[Any, np.dtype[np.int64]]
    lengths: np.ndarray[Any, np.dtype[np.int32]]


def llm_prompt(row: Encoded) -> list[int]:
    """The token ids that the LLM reads of a row."""
    return row.slm if row.llm is None else row.llm


class RepsStore:
    """Reads a store; takes the place of the LLM's `FrozenEncoder` in training.

    It can be handed to other processes, forked or spawned, and used by several threads: each process maps the files for
    itself when it first needs them, and nothing is ever changed.

    Args:
        folder: of the store.
        identity: what the representations must be of, as plain values. Keys that it leaves out are not compared (the
            fingerprint of an LLM that was not loaded).

    Attributes:
        identity, reader: what the writer recorded. dtype: how values are kept.
        layers: numbers of the layers that are read; width: that of one of them, E / len(layers).
        embedding_width: of the LLM's embedding matrix (`embed`).
        finished: the last filling came to its end.

    Raises:
        UserError: no store, one of another identity (names every difference), or a file of it is missing or cut short.
    """

    def __init__(self, folder: Path | str, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.record = read_record(self.folder)
        self.identity: dict[str, Any] = self.record["identity"]
        self.reader: dict[str, Any] = self.record["reader"]
        asked = plain(identity or {})
        differ(self.folder, {key: self.identity.get(key) for key in asked}, asked)
        self.dtype = StoreDtype(self.record["kept_as"])
        self.layers: list[int] = self.reader["layers"]
        self.width: int = self.reader["width"]
        self.embedding_width: int = self.reader["embedding_width"]
        self.index = read_index(self.folder)
        self.finished = self.index.finished and self.index.settled > 0
        for entry in self.index.entries:
            check_size(self.folder / entry.file, entry.bytes)
        self._mapped: dict[str, dict[str, Tensor]] = {}
        self._table: _Table | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}, "_table": None}  # another process maps the files for itself

    def __len__(self) -> int:
        """Prompts."""
        return sum(entry.prompts for entry in self.index.entries)

    @property
    def tokens(self) -> int:
        """Of all prompts."""
        return sum(entry.tokens for entry in self.index.entries)

    @property
    def nbytes(self) -> int:
        """On the disk."""
        return sum(entry.bytes for entry in self.index.entries)

    def keys(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """The keys of the prompts in the finished files numbered so, in order."""
        shards = [entry for entry in self.index.entries[start:stop] if entry.prompts]
        return [key for shard in shards for key in map(bytes, self._tensors(shard.file)["keys"].numpy())]

    def missing(self, rows: Iterable[Sequence[int]]) -> list[int]:
        """Positions of those prompts (token ids) that are not in the store."""
        table, keys = self._sorted(), _as_keys([key_of(row) for row in rows])
        return np.flatnonzero(~_found(table, keys)[1]).tolist()

    def check_rows(self, rows: Sequence[Encoded], place: str) -> None:
        """Sees to it that the prompts of rows are there.

        Args:
            place: what a complaint calls the rows, as "train".

        Raises:
            UserError: one is not; says how many, and names the first row.
        """
        if lacking := self.missing([llm_prompt(row) for row in rows]):
            raise UserError(
                f"{self.folder}: {len(lacking):,} of {len(rows):,} prompts of {place} are not in this store"
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
        """What `FrozenEncoder.forward` gives: the representations of a batch of prompts, padded on either side.

        Args:
            dtype: of the values that are given. indices: what a complaint calls the rows (`Batch.indices`).

        Returns:
            reps_BPE, zero at padding, on the device of the ids, and the mask.

        Raises:
            UserError: a prompt is not in the store; names the row.
        """
        ids, real = ids_BP.cpu().numpy(), mask_BP.bool().cpu()
        rows = [row[there] for row, there in zip(ids, real.numpy(), strict=True)]
        names = [f"row {index} (from 0)" for index in indices] or [f"row {b} of a batch" for b in range(len(rows))]
        parts = [unpack(values, scales, dtype) for values, scales in self._slices(rows, names)]
        reps_BPE = torch.zeros(*mask_BP.shape, self.width * len(self.layers), dtype=dtype)
        reps_BPE[real] = torch.cat(parts)
        return Reps(reps_BPE.to(ids_BP.device), mask_BP)

    def reps_of(self, rows: Sequence[Sequence[int]], *, dtype: torch.dtype = torch.float32) -> Reps:
        """The same of rows of token ids, padded on the right to the longest of them."""
        lengths = torch.tensor([len(row) for row in rows])
        mask_BP = (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long()
        ids_BP = torch.zeros_like(mask_BP)
        ids_BP[mask_BP.bool()] = torch.tensor([token for row in rows for token in row])
        return self.reps(ids_BP, mask_BP, dtype=dtype)

    def embed(self, ids_BP: Tensor) -> Tensor:
        """What `FrozenEncoder.embed` gives: rows of the LLM's embedding matrix, in the LLM's dtype.

        Raises:
            UserError: the store was written without it.
        """
        if not self.has_embeddings:
            raise UserError(
                f"{self.folder}: holds no embedding matrix of the LLM, which model.tokenizers=llm_tokens reads; fill "
                "it with that set"
            )
        matrix_VE = self._tensors(EMBEDDINGS)["embeddings"]
        return matrix_VE[ids_BP.cpu()].to(ids_BP.device)

    @property
    def _unfinished(self) -> str:
        return "" if self.finished else " (it was never finished: go on filling it)"

    @property
    def has_embeddings(self) -> bool:
        """Whether the LLM's embedding matrix is there."""
        return any(entry.file == EMBEDDINGS for entry in self.index.entries)

    def verify(self, progress: bool = True) -> None:
        """Reads every file and compares it with its checksum, under a progress bar.

        Raises:
            UserError: names the files that are not as they were written.
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
        """The tensors of a file, mapped. Two threads may both do it once; that does no harm."""
        known = self._mapped.get(file)
        if known is None:
            path = self.folder / file
            try:
                with safe_open(path, "pt") as opened:
                    known = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no dict
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
        """Values and scales of each prompt, as they are kept."""
        table = self._sorted()
        places, there = _found(table, _as_keys([key_of(row) for row in rows]))
        for row, name, place, known in zip(rows, names, places, there, strict=True):
            if not known or table.lengths[place] != len(row):
                raise UserError(self._stranger(name, len(row)))
            tensors, start = self._tensors(table.files[table.shards[place]]), int(table.starts[place])
            scales = tensors.get("scales")
            stop = start + len(row)
            yield tensors["values"][start:stop], None if scales is None else scales[start:stop]

    def _stranger(self, name: str, tokens: int) -> str:
        return (
            f"{self.folder}: the prompt of {name}, {tokens} tokens of the LLM, is not in this store{self._unfinished}; "
            f"{REFILL}"
        )


def _as_keys(keys: Sequence[bytes]) -> Keys:
    return np.array(keys, dtype=f"S{KEY_BYTES}")


def _found(table: _Table, keys: Keys) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """For each key its place in the table, and whether it is there at all."""
    places = np.searchsorted(table.keys, keys).clip(max=max(0, len(table.keys) - 1))
    return places, table.keys[places] == keys if len(table.keys) else np.zeros(len(keys), bool)


def checksum(path: Path, seen: Callable[[int], object]) -> str:
    """The sha256 of a file, read block by block (`seen` is told of the bytes of each)."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            seen(len(block))
    return digest.hexdigest()
