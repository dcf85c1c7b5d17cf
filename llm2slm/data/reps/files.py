"""File format of a store of representations: record, index, prompt keys and value encoding.

`data/reps/store.py` documents and reads the files; `data/reps/writer.py` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm2slm.types import StoreDtype, UserError

FORMAT = 2
RECORD, INDEX, EMBEDDINGS = "store.json", "index.jsonl", "embeddings.safetensors"
KEY_BYTES = 16
PROMPT_BYTES = KEY_BYTES + 8
"""Bytes per prompt in addition to its tokens: key and start offset."""
INT8_ERROR = 1 / 253
"""Bound of int8's error relative to the largest magnitude: 1 / 254 from rounding, the rest from float32 arithmetic."""
SET_BY = {key: f"model.llm.{key}" for key in ("name", "revision", "config", "init", "dtype", "quantization")}
"""Identity key -> configuration key that sets it. (`dtype` is the LLM's, not the stored `encode.dtype`.)"""
SET_BY["layers"] = "model.llm.layer"
INT8_FLOOR = 1e-30
"""Smallest scale, above float32's subnormal range; smaller values become zeros."""


@dataclass(frozen=True)
class Entry:
    """Index entry of a finished file (the embedding matrix has 0 prompts and tokens)."""

    file: str
    prompts: int
    tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """Entries in order; their number at the end of the last completed fill; length of the complete lines in bytes."""

    entries: list[Entry]
    completed: int
    length: int

    @property
    def finished(self) -> bool:
        """Whether all prompts belong to completed fills."""
        return not any(entry.prompts for entry in self.entries[self.completed :])


# Prompts and values


def key_of(ids: Sequence[int] | np.ndarray[Any, Any]) -> bytes:
    """The key (16 bytes) of a prompt's token ids without padding."""
    return blake2b(np.asarray(ids, dtype="<i8").tobytes(), digest_size=KEY_BYTES).digest()


def token_bytes(dtype: StoreDtype, width: int, layers: int) -> int:
    """Bytes per token; `width` is that of one layer."""
    each = {StoreDtype.float32: 4, StoreDtype.bfloat16: 2, StoreDtype.int8: 1}[dtype]
    return each * width * layers + (4 * layers if dtype is StoreDtype.int8 else 0)


def pack(reps_NE: Tensor, dtype: StoreDtype, layers: int) -> dict[str, Tensor]:
    """The stored form of a prompt's representations: `values`, and for int8 `scales` per token and layer (layers are
    concatenated in E, and their scales differ by orders of magnitude)."""
    if dtype is not StoreDtype.int8:
        return {"values": reps_NE.to(getattr(torch, dtype.value)).contiguous()}
    parts_NLW = reps_NE.float().unflatten(1, (layers, -1))
    scales_NL = (parts_NLW.abs().amax(-1) / 127).clamp(min=INT8_FLOOR)
    values_NLW = torch.round(parts_NLW / scales_NL.unsqueeze(-1)).clamp(-127, 127)
    return {"values": values_NLW.to(torch.int8).flatten(1), "scales": scales_NL}


def unpack(values_NE: Tensor, scales_NL: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The inverse of `pack`, up to its rounding error."""
    if scales_NL is None:
        return values_NE.to(dtype)
    parts_NLW = values_NE.unflatten(1, (scales_NL.shape[1], -1)).float()
    reps_NE: Tensor = (parts_NLW * scales_NL.unsqueeze(-1)).flatten(1).to(dtype)
    return reps_NE


# Record and index


def check_equal(folder: Path, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares two records of plain values recursively.

    Raises:
        UserError: with each differing key and both values.
    """
    found = list(_differences(stored, expected))
    if found:
        raise UserError(
            f"{folder}: is a store with other settings: {'; '.join(found)}; use the same settings, or another folder"
        )


def _differences(stored: Any, expected: Any, path: str = "") -> Iterable[str]:
    if isinstance(stored, Mapping) and isinstance(expected, Mapping):
        for key in {**stored, **expected}:
            yield from _differences(stored.get(key), expected.get(key), f"{path}.{key}" if path else key)
    elif stored != expected:
        first, dot, rest = path.removeprefix("identity.").partition(".")
        yield f"{SET_BY.get(first, first)}{dot}{rest} is {stored!r} in the store, {expected!r} is required"


def read_record(folder: Path) -> dict[str, Any]:
    """The content of `store.json`.

    Raises:
        UserError: the file is missing, damaged, or of another format version.
    """
    path = folder / RECORD
    if not path.is_file():
        inside = next((path.parent for path in sorted(folder.glob(f"*/{RECORD}"))), None)  # in a run directory
        given = "give the folder of one, or fill it" if inside is None else f"give the one in it, {inside}"
        raise UserError(f"{folder}: is no store of representations (no {RECORD}); {given}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = record["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the folder and fill the store again") from None
    if known != FORMAT:
        raise UserError(f"{path}: has format {known}, this version reads {FORMAT}; fill the store again")
    return dict(record)


def read_index(folder: Path) -> Index:
    """The index, without an incomplete last line.

    Raises:
        UserError: another line is damaged.
    """
    path = folder / INDEX
    content = path.read_bytes() if path.is_file() else b""
    entries: list[Entry] = []
    length, completed = content.rfind(b"\n") + 1, 0
    for number, line in enumerate(content[:length].splitlines(), 1):
        try:
            found = json.loads(line)
            if "finished" in found:
                completed = len(entries)
            else:
                entry = Entry(**{field.name: found[field.name] for field in fields(Entry)})
                if Path(entry.file).name != entry.file:
                    raise UserError(f"{path}, line {number}: names a file outside of the store ({entry.file})")
                entries.append(entry)
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}, line {number}: is damaged; remove the folder and fill the store again") from None
    return Index(entries, completed, length)


def check_size(path: Path, size: int) -> None:
    """Checks that a file has its recorded size.

    Raises:
        UserError: the file is missing, or has another size.
    """
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        reason = "is missing" if found is None else f"has {found} bytes, {size} were written"
        raise UserError(f"{path}: {reason}; remove the folder and fill the store again, or fetch the file anew")
