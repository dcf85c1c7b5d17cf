"""StoreWriter: writes a store of representations (`data/reps/store.py`), safe against interruption at any time.

Prompts are collected in a shard in memory. A full shard is written under a temporary name, synced, renamed, and then
entered in the index; files that are not in the index are removed and written again. A killed process loses only its
current shard. Resumed with the same sequence of prompts, it produces the same files as without interruption, since the
sequence alone determines the shards.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from safetensors.torch import save
from torch import Tensor

from llm2slm.atomic import WriteLock, to_disk
from llm2slm.data.reps.files import (
    EMBEDDINGS,
    FORMAT,
    INDEX,
    KEY_BYTES,
    PROMPT_BYTES,
    RECORD,
    Entry,
    check_equal,
    key_of,
    pack,
    read_record,
    token_bytes,
)
from llm2slm.data.reps.store import RepsStore
from llm2slm.runs import plain
from llm2slm.types import Reps, StoreDtype, UserError, reason_of

SHARD_BYTES = 64 * 2**20
"""Maximum size of a shard (unless a single prompt is larger). It bounds the loss at an interruption, and the memory
of a `StoreWriter` (about four times as much while it writes)."""
FILE_BYTES = 1024
"""Upper bound of the overhead of a file: its header and its index line."""
ENCODER_KEYS = ("layers", "width", "embedding_width")


class StoreWriter:
    """Creates a store, or continues one. A lock excludes other writing processes.

    Args:
        folder: folder of the store; created if missing.
        identity: identity of the representations, as plain values; equal for all writers of a store.
        encoder_facts: shapes of the LLM encoder: layers, width and embedding_width; further values are stored too.
        dtype: value encoding.
        shard_bytes: maximum size of a shard.

    Raises:
        UserError: the existing store has another identity, shape, dtype or shard size; the folder has other content;
            another process writes to it.
    """

    def __init__(
        self,
        folder: Path | str,
        identity: Mapping[str, Any],
        encoder_facts: Mapping[str, Any],
        dtype: StoreDtype = StoreDtype.float32,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if missing := [key for key in ENCODER_KEYS if key not in encoder_facts]:
            raise ValueError(f"encoder_facts lacks {', '.join(missing)}")
        self.folder, self.dtype, self.shard_bytes = Path(folder), StoreDtype(dtype), shard_bytes
        self._width, self._layers = int(encoder_facts["width"]), len(encoder_facts["layers"])
        self._lock = WriteLock(self.folder / INDEX, "give another folder")
        self._log = self._open()
        try:
            self._begin(
                {"identity": identity, "reader": encoder_facts, "kept_as": self.dtype.value, "shard_bytes": shard_bytes}
            )
        except OSError as error:
            self.close()
            raise UserError(
                f"{self.folder}: cannot be written to ({reason_of(error)}); free disk space, and continue"
            ) from None
        except BaseException:
            self.close()
            raise

    def _open(self) -> BinaryIO:
        """The index, opened for appending, and locked."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.folder.iterdir()}
            others = sorted(names - {f"{RECORD}.part", INDEX, f".{INDEX}.lock"})
            if RECORD not in names and others:
                raise UserError(f"{self.folder}: has content other than a store ({others[0]}); give another folder")
            log = (self.folder / INDEX).open("ab", buffering=0)  # a buffer would write a failed line again on close
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written to ({reason_of(error)}); give another folder") from None
        try:
            self._lock.acquire()
        except OSError as error:
            log.close()
            raise UserError(
                f"{self.folder}: cannot be locked against other writers ({reason_of(error)}); give one on another disk"
            ) from None
        except UserError:
            log.close()
            raise
        return log

    def _begin(self, expected: Mapping[str, Any]) -> None:
        """Writes or compares the record, removes remains of an interrupted writer, and reads the index."""
        path, expected = self.folder / RECORD, {"format": FORMAT} | plain(expected)
        if path.is_file():
            check_equal(self.folder, read_record(self.folder), expected)
        elif self._log.tell():
            raise UserError(f"{self.folder}: has an {INDEX} but no {RECORD}; restore it, or remove the folder")
        else:
            part = path.with_name(path.name + ".part")
            part.write_text(json.dumps(expected, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            self._rename(part, path)
        store = RepsStore(self.folder)
        index = store.index
        self._files = list(index.entries)
        self._remove_unindexed()
        if self._log.tell() != index.length:
            self._log.truncate(index.length)
        self.has_embeddings = store.has_embeddings
        self._completed = set(store.keys(0, index.completed))
        self._known = self._completed | set(store.keys(index.completed))
        self._marked = index.finished
        self._clear()

    def _remove_unindexed(self) -> None:
        """Removes partial files, and a finished file that an interrupted writer did not enter in the index.

        Raises:
            UserError: more files are missing from the index, so a part of the index is lost.
        """
        known = {entry.file for entry in self._files}
        unknown = {path.name for path in self.folder.glob("*.safetensors") if _is_store_file(path.name)} - known
        if lost := sorted(unknown - {EMBEDDINGS, self._next_shard()}):
            raise UserError(
                f"{self.folder}: {INDEX} has no entry of {lost[0]}, so a part of it is lost; restore it, or remove the "
                "folder and fill the store again"
            )
        for path in [path for path in self.folder.glob("*.part") if _is_store_file(path.name)]:
            path.unlink()
        for name in unknown:
            (self.folder / name).unlink()

    def _next_shard(self) -> str:
        return f"shard-{sum(entry.prompts > 0 for entry in self._files):05d}.safetensors"

    def _clear(self) -> None:
        """Starts an empty shard in memory."""
        self._parts: dict[str, list[Tensor]] = {}
        self._keys: list[bytes] = []
        self._starts, self._size = [0], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes without `finish`: after an error, an incomplete shard would change the shard boundaries."""
        self.close()

    def close(self) -> None:
        """Releases the lock. The shard in memory is lost unless `finish` was called."""
        self._log.close()
        self._lock.release()

    # Content

    def __len__(self) -> int:
        """Number of prompts, with the shard in memory."""
        return len(self._known)

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether a prompt (token ids) is in the store or in the shard in memory."""
        return key_of(ids) in self._known

    def prompts_to_fill(self, rows: Iterable[Sequence[int]]) -> list[Sequence[int]]:
        """The distinct prompts of this fill, in order, without those of earlier completed fills: the same list whether
        or not this fill was interrupted."""
        kept: dict[bytes, Sequence[int]] = {}
        for row in rows:
            key = key_of(row)
            if key not in self._completed:
                kept.setdefault(key, row)
        return list(kept.values())

    # Disk space

    def bytes_of(self, prompts: int, tokens: int) -> int:
        """A close upper bound of the disk space of new prompts, in bytes."""
        size = tokens * token_bytes(self.dtype, self._width, self._layers) + prompts * PROMPT_BYTES
        return size + (1 + 2 * size // self.shard_bytes) * FILE_BYTES

    def check_free_space(self, size: int) -> None:
        """Compares a size in bytes with the free disk space.

        Raises:
            UserError: the free space is too small; with both sizes.
        """
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise UserError(
                f"{self.folder}: {_amount(size)} are to be written (as {self.dtype}), {_amount(free)} are free on this "
                "disk; use a smaller encode.dtype (bfloat16, int8), fewer layers, or another folder"
            )

    # Writing

    def append(self, rows: Sequence[Sequence[int]], reps: Reps) -> int:
        """Adds the new prompts of a batch, in order.

        Args:
            rows: token ids of each prompt, without padding.
            reps: the LLM's representations of the prompts, padded on either side.

        Returns:
            The number of new prompts.

        Raises:
            UserError: a representation is infinite or NaN, or the disk is full.
        """
        reps_BPE, mask_BP = reps.reps_BPE.detach().cpu(), reps.mask_BP.bool().cpu()
        before = len(self._known)
        for row, reps_PE, mask_P in zip(rows, reps_BPE, mask_BP, strict=True):
            key = key_of(row)
            if key in self._known:
                continue
            reps_NE = reps_PE[mask_P]
            if reps_NE.shape != (len(row), self._width * self._layers):
                raise ValueError(f"{len(row)} tokens, but representations of shape {tuple(reps_NE.shape)}")
            if not torch.isfinite(reps_NE).all():
                raise UserError(
                    f"{self.folder}: the LLM's representations of a prompt of {len(row)} tokens are not finite; use "
                    "model.llm.dtype=bfloat16 or float32 (float16 overflows in many models)"
                )
            size = len(row) * token_bytes(self.dtype, self._width, self._layers) + PROMPT_BYTES
            if self._keys and self._size + size > self.shard_bytes:
                self._write_shard()
            for name, tensor in pack(reps_NE, self.dtype, self._layers).items():
                self._parts.setdefault(name, []).append(tensor)
            self._keys.append(key)
            self._starts.append(self._starts[-1] + len(row))
            self._size += size
            self._known.add(key)
        return len(self._known) - before

    def add_embeddings(self, embeddings_VE: Tensor) -> None:
        """Adds the LLM's embedding matrix, unless the store has it.

        Raises:
            UserError: the free disk space is too small.
        """
        if not self.has_embeddings:
            self.check_free_space(embeddings_VE.nbytes + FILE_BYTES)
            self._write(EMBEDDINGS, {"embeddings": embeddings_VE.detach().cpu().contiguous()})
            self.has_embeddings = True

    def finish(self) -> None:
        """Writes the last shard, and marks the fill as completed; idempotent. Call it only after all prompts of
        `prompts_to_fill` were appended."""
        if self._keys:
            self._write_shard()
        if not self._marked:
            self._enter({"finished": len(self._known)})
            self._completed |= self._known
            self._marked = True

    def _write_shard(self) -> None:
        tensors = {name: torch.cat(parts) for name, parts in self._parts.items()}
        keys = torch.frombuffer(bytearray(b"".join(self._keys)), dtype=torch.uint8).view(-1, KEY_BYTES)
        tensors |= {"keys": keys, "starts": torch.tensor(self._starts)}
        prompts, tokens = len(self._keys), self._starts[-1]
        self._clear()
        self._write(self._next_shard(), tensors, prompts, tokens)

    def _write(self, file: str, tensors: dict[str, Tensor], prompts: int = 0, tokens: int = 0) -> None:
        """Writes a file, and then its index line."""
        path = self.folder / file
        part = path.with_name(file + ".part")
        try:
            content = save(tensors)  # a killed `save_file` leaves files with random names
            part.write_bytes(content)
            self._rename(part, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({reason_of(error)}); free disk space, and continue") from error
        entry = Entry(file, prompts, tokens, len(content), sha256(content).hexdigest())
        self._enter(asdict(entry))
        self._files.append(entry)
        self._marked = self._marked and not prompts

    def _rename(self, part: Path, path: Path) -> None:
        """Renames a finished file; content and name are synced to disk."""
        to_disk(part)
        part.replace(path)
        to_disk(self.folder)

    def _enter(self, line: Mapping[str, Any]) -> None:
        try:
            content = json.dumps(line).encode() + b"\n"
            if self._log.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._log.fileno())
        except OSError as error:
            reason = reason_of(error)
            raise UserError(f"{self._log.name}: cannot be written ({reason}); free disk space, and continue") from None


def _is_store_file(name: str) -> bool:
    """Whether a file name is one that a writer uses."""
    name = name.removesuffix(".part")
    return name in (RECORD, INDEX, EMBEDDINGS) or (name.startswith("shard-") and name.endswith(".safetensors"))


def _amount(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 10**7 else f"{size:,} bytes"
