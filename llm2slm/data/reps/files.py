"""What a store of representations consists of: its record and index, the keys of prompts, and how values are kept.

`data/reps/store.py` says what the files hold; it reads them, `data/reps/writer.py` writes them.
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
"""What a prompt takes beside its tokens: its key, and where it starts."""
INT8_ERROR = 1 / 253
"""Bound of int8's error: 1 / 254 of the largest magnitude by rounding, the rest for float32's own."""
SET_BY = {key: f"model.llm.{key}" for key in ("name", "revision", "config", "init", "dtype", "quantization")}
"""Keys of an identity that a key of the configuration sets. (`dtype` is the LLM's, not what `encode.dtype` keeps.)"""
SET_BY["layers"] = "model.llm.layer"
INT8_FLOOR = 1e-30
"""No scale is below it (float32 would lose its digits there): smaller values are read back as zeros."""


@dataclass(frozen=True)
class Entry:
    """A finished file, as the index knows it (no prompts and tokens: the embedding matrix)."""

    file: str
    prompts: int
    tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """Finished files in order; how many of them were there when a filling last finished; the length of whole lines."""

    entries: list[Entry]
    settled: int
    length: int

    @property
    def finished(self) -> bool:
        """Whether every prompt is of a filling that came to its end."""
        return not any(entry.prompts for entry in self.entries[self.settled :])


# Prompts and values


def key_of(ids: Sequence[int] | np.ndarray[Any, Any]) -> bytes:
    """The key of a prompt's token ids (without padding)."""
    return blake2b(np.asarray(ids, dtype="<i8").tobytes(), digest_size=KEY_BYTES).digest()


def token_bytes(dtype: StoreDtype, width: int, layers: int) -> int:
    """What a token takes. width: of one layer."""
    each = {StoreDtype.float32: 4, StoreDtype.bfloat16: 2, StoreDtype.int8: 1}[dtype]
    return each * width * layers + (4 * layers if dtype is StoreDtype.int8 else 0)


def pack(reps_NE: Tensor, dtype: StoreDtype, layers: int) -> dict[str, Tensor]:
    """A prompt's representations as they are kept: `values`, and `scales` for int8, one for each token and layer
    (layers stand side by side in E and differ in scale by orders of magnitude)."""
    if dtype is not StoreDtype.int8:
        return {"values": reps_NE.to(getattr(torch, dtype.value)).contiguous()}
    parts_NLW = reps_NE.float().unflatten(1, (layers, -1))
    scales_NL = (parts_NLW.abs().amax(-1) / 127).clamp(min=INT8_FLOOR)
    values_NLW = torch.round(parts_NLW / scales_NL.unsqueeze(-1)).clamp(-127, 127)
    return {"values": values_NLW.to(torch.int8).flatten(1), "scales": scales_NL}


def unpack(values_NE: Tensor, scales_NL: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What `pack` was given, but for its error."""
    if scales_NL is None:
        return values_NE.to(dtype)
    parts_NLW = values_NE.unflatten(1, (scales_NL.shape[1], -1)).float()
    reps_NE: Tensor = (parts_NLW * scales_NL.unsqueeze(-1)).flatten(1).to(dtype)
    return reps_NE


# What the folder says of itself


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they are once written to a file and read again."""
    return dict(json.loads(json.dumps(dict(values), ensure_ascii=False)))


def differ(folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Compares two plain records, into nested ones.

    Raises:
        UserError: names each key that differs, with both values.
    """
    found = list(_differences(stored, asked))
    if found:
        raise UserError(
            f"{folder}: is a store of something else: {'; '.join(found)}; use the same settings, or another folder"
        )


def _differences(stored: Any, asked: Any, path: str = "") -> Iterable[str]:
    if isinstance(stored, Mapping) and isinstance(asked, Mapping):
        for key in {**stored, **asked}:
            yield from _differences(stored.get(key), asked.get(key), f"{path}.{key}" if path else key)
    elif stored != asked:
        first, dot, rest = path.removeprefix("identity.").partition(".")
        yield f"{SET_BY.get(first, first)}{dot}{rest} is {stored!r} in the store, {asked!r} is asked for"


def read_record(folder: Path) -> dict[str, Any]:
    """`store.json`.

    Raises:
        UserError: none, or not of this format.
    """
    path = folder / RECORD
    if not path.is_file():
        inside = next((path.parent for path in sorted(folder.glob(f"*/{RECORD}"))), None)  # of a run directory
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
    """The index, without a last line that is half of one.

    Raises:
        UserError: another line makes no sense.
    """
    path = folder / INDEX
    content = path.read_bytes() if path.is_file() else b""
    entries: list[Entry] = []
    length, settled = content.rfind(b"\n") + 1, 0
    for number, line in enumerate(content[:length].splitlines(), 1):
        try:
            found = json.loads(line)
            if "finished" in found:
                settled = len(entries)
            else:
                entries.append(Entry(**{field.name: found[field.name] for field in fields(Entry)}))
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}, line {number}: is damaged; remove the folder and fill the store again") from None
    return Index(entries, settled, length)


def check_size(path: Path, size: int) -> None:
    """Sees to it that a file has its recorded size.

    Raises:
        UserError: it does not, or is not there.
    """
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        said = "is missing" if found is None else f"has {found} bytes, {size} were written"
        raise UserError(f"{path}: {said}; remove the folder and fill the store again, or fetch the file anew")
