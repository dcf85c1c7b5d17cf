"""StoreWriter: writes a store of representations (`data/reps/store.py`) so that it can be ended at any moment.

Prompts go into the shard that is being gathered in memory; a full one is written under another name, brought to the
disk, renamed, and then entered in the index. What the index does not know is not there: it is removed and written anew.
So a process that is killed loses the shard it was gathering, and one that goes on with the same sequence of prompts
ends with the very files of one that was never disturbed: that sequence alone decides which prompts share a shard.
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
    differ,
    key_of,
    pack,
    plain,
    read_record,
    token_bytes,
)
from llm2slm.data.reps.store import RepsStore
from llm2slm.types import Reps, StoreDtype, UserError, reason_of

SHARD_BYTES = 64 * 2**20
"""Of one file, at most (unless a single prompt is larger). It bounds what an interruption loses, and what the writer
holds in memory (about four times as much, while it writes)."""
FILE_BYTES = 1024
"""What a file takes beside its prompts, at most: its header, its line in the index."""
READER_KEYS = ("layers", "width", "embedding_width")


class StoreWriter:
    """Begins a store, or goes on with one. Only one process at a time can.

    Args:
        folder: of the store; made if it is not there.
        identity: what the representations are of, as plain values; the same whenever the store is written.
        reader: the LLM's shapes as a reader: layers, width and embedding_width, and whatever else training will ask.
        dtype: how values are kept. shard_bytes: size of a file at most.

    Raises:
        UserError: the store there has another identity, shape, dtype or size of files; the folder holds something
            else; another process writes to it.
    """

    def __init__(
        self,
        folder: Path | str,
        identity: Mapping[str, Any],
        reader: Mapping[str, Any],
        dtype: StoreDtype = StoreDtype.float32,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if missing := [key for key in READER_KEYS if key not in reader]:
            raise ValueError(f"reader lacks {', '.join(missing)}")
        self.folder, self.dtype, self.shard_bytes = Path(folder), StoreDtype(dtype), shard_bytes
        self._width, self._layers = int(reader["width"]), len(reader["layers"])
        self._lock = WriteLock(self.folder / INDEX, "give another folder")
        self._log = self._open()
        try:
            self._begin(
                {"identity": identity, "reader": reader, "kept_as": self.dtype.value, "shard_bytes": shard_bytes}
            )
        except OSError as error:
            self.close()
            raise UserError(f"{self.folder}: cannot be written to ({reason_of(error)}); make room, and go on") from None
        except BaseException:
            self.close()
            raise

    def _open(self) -> BinaryIO:
        """The index, opened to append, and locked."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.folder.iterdir()}
            others = sorted(names - {f"{RECORD}.part", INDEX, f".{INDEX}.lock"})
            if RECORD not in names and others:
                raise UserError(f"{self.folder}: holds something that is no store ({others[0]}); give another folder")
            log = (self.folder / INDEX).open("ab", buffering=0)  # else closing would try a failed line once more
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

    def _begin(self, asked: Mapping[str, Any]) -> None:
        """Writes the record, or compares it; clears away what an interrupted writer left; reads what is there."""
        path, asked = self.folder / RECORD, {"format": FORMAT} | plain(asked)
        if path.is_file():
            differ(self.folder, read_record(self.folder), asked)
        elif self._log.tell():
            raise UserError(f"{self.folder}: has an {INDEX} but no {RECORD}; bring it back, or remove the folder")
        else:
            part = path.with_name(path.name + ".part")
            part.write_text(json.dumps(asked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            self._place(part, path)
        store = RepsStore(self.folder)
        index = store.index
        self._files = list(index.entries)
        self._clear_away()
        if self._log.tell() != index.length:
            self._log.truncate(index.length)
        self.has_embeddings = store.has_embeddings
        self._settled = set(store.keys(0, index.settled))
        self._known = self._settled | set(store.keys(index.settled))
        self._marked = index.finished
        self._clear()

    def _clear_away(self) -> None:
        """Removes half a file, and one that an interrupted writer had no time to enter in the index.

        Raises:
            UserError: the index does not know of more files than that: a part of it is lost.
        """
        known = {entry.file for entry in self._files}
        unknown = {path.name for path in self.folder.glob("*.safetensors") if _ours(path.name)} - known
        if lost := sorted(unknown - {EMBEDDINGS, self._next_shard()}):
            raise UserError(
                f"{self.folder}: {INDEX} does not know of {lost[0]}, so a part of it is lost; bring it back, or remove "
                "the folder and fill the store again"
            )
        for path in [path for path in self.folder.glob("*.part") if _ours(path.name)]:
            path.unlink()
        for name in unknown:
            (self.folder / name).unlink()

    def _next_shard(self) -> str:
        return f"shard-{sum(entry.prompts > 0 for entry in self._files):05d}.safetensors"

    def _clear(self) -> None:
        """Begins a new shard in memory."""
        self._parts: dict[str, list[Tensor]] = {}
        self._keys: list[bytes] = []
        self._starts, self._size = [0], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes, and does not finish: after an error, half a shard would end where an undisturbed one goes on."""
        self.close()

    def close(self) -> None:
        """Lets others write. The shard that is being gathered is lost, unless `finish` was called."""
        self._log.close()
        self._lock.release()

    # What is there

    def __len__(self) -> int:
        """Prompts."""
        return len(self._known)

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether a prompt (token ids) is there, or in the shard that is being gathered."""
        return key_of(ids) in self._known

    def unsettled(self, rows: Iterable[Sequence[int]]) -> list[Sequence[int]]:
        """Each different prompt once, in order, but for those of fillings that were finished before: all that this
        filling has to do with, the same whether it was interrupted meanwhile or not."""
        kept: dict[bytes, Sequence[int]] = {}
        for row in rows:
            key = key_of(row)
            if key not in self._settled:
                kept.setdefault(key, row)
        return list(kept.values())

    # Room

    def bytes_of(self, prompts: int, tokens: int) -> int:
        """What so many prompts take on the disk at most (hardly less)."""
        size = tokens * token_bytes(self.dtype, self._width, self._layers) + prompts * PROMPT_BYTES
        return size + (1 + 2 * size // self.shard_bytes) * FILE_BYTES

    def check_room(self, size: int) -> None:
        """Compares what is to be written with the free space of the disk.

        Raises:
            UserError: it is too little; says both.
        """
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise UserError(
                f"{self.folder}: {_amount(size)} are to be written (as {self.dtype}), {_amount(free)} are free on this "
                "disk; keep values in fewer bytes (bfloat16, int8), read fewer layers, or give another folder"
            )

    # Writing

    def append(self, rows: Sequence[Sequence[int]], reps: Reps) -> int:
        """Adds a batch of prompts, in order; those that are there already are passed over.

        Args:
            rows: token ids of each prompt, without padding.
            reps: what the LLM says of them, padded on either side.

        Returns:
            How many were new.

        Raises:
            UserError: a representation is infinite or no number, or the disk is full.
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

    def put_embeddings(self, embeddings_VE: Tensor) -> None:
        """Adds the LLM's embedding matrix, if it is not there.

        Raises:
            UserError: no room for it.
        """
        if not self.has_embeddings:
            self.check_room(embeddings_VE.nbytes + FILE_BYTES)
            self._write(EMBEDDINGS, {"embeddings": embeddings_VE.detach().cpu().contiguous()})
            self.has_embeddings = True

    def finish(self) -> None:
        """Writes the last shard, and marks the filling as finished: to be called only by the one whose prompts they
        are (`unsettled`), lest another's half be taken for a whole. Done twice, it does nothing more."""
        if self._keys:
            self._write_shard()
        if not self._marked:
            self._enter({"finished": len(self._known)})
            self._settled |= self._known
            self._marked = True

    def _write_shard(self) -> None:
        tensors = {name: torch.cat(parts) for name, parts in self._parts.items()}
        keys = torch.frombuffer(bytearray(b"".join(self._keys)), dtype=torch.uint8).view(-1, KEY_BYTES)
        tensors |= {"keys": keys, "starts": torch.tensor(self._starts)}
        prompts, tokens = len(self._keys), self._starts[-1]
        self._clear()
        self._write(self._next_shard(), tensors, prompts, tokens)

    def _write(self, file: str, tensors: dict[str, Tensor], prompts: int = 0, tokens: int = 0) -> None:
        """A file, and then its line in the index."""
        path = self.folder / file
        part = path.with_name(file + ".part")
        try:
            content = save(tensors)  # its own `save_file` would leave files of random names behind when it is killed
            part.write_bytes(content)
            self._place(part, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({reason_of(error)}); make room, and go on") from error
        entry = Entry(file, prompts, tokens, len(content), sha256(content).hexdigest())
        self._enter(asdict(entry))
        self._files.append(entry)
        self._marked = self._marked and not prompts

    def _place(self, part: Path, path: Path) -> None:
        """Gives a finished file its name; afterwards both are on the disk."""
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
            raise UserError(f"{self._log.name}: cannot be written ({reason_of(error)}); make room, and go on") from None


def _ours(name: str) -> bool:
    """Whether a file may be a writer's."""
    name = name.removesuffix(".part")
    return name in (RECORD, INDEX, EMBEDDINGS) or (name.startswith("shard-") and name.endswith(".safetensors"))


def _amount(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 10**7 else f"{size:,} bytes"
