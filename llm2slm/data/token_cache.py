"""A cache of tokenized rows on disk: runs with the same texts and tokenizers tokenize a corpus once.

An entry is one file, named by a hash of all that determines its content: the texts, both tokenizers, the frame of the
prompts. Length limits are applied after reading and are not part of the key. An entry is written under a temporary name
and renamed, so that interrupted or concurrent processes leave no incomplete entry. Its checksum is verified when it is
read; a damaged entry is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from llm2slm.config import DataConfig
from llm2slm.data.collate import Collator, Encoded
from llm2slm.data.tokenization.align import Spans
from llm2slm.types import Example

VARIABLE = "LLM2SLM_CACHE"
"""Environment variable with the folder that replaces the default."""

FORMAT = b"llm2slm tokens 2 "
"""The start of an entry, before the checksum (of key and content) and a newline. The number is the format version."""

SUFFIX, PARTIAL = ".tokens", ".part"
DAY = 86_400
UNUSED = 90 * DAY
"""Seconds after the last use at which an entry is removed."""

FIELDS = ("start", "end", "special")
"""Fields of `Spans`, in the order of its arguments."""
TEACHER = "teacher."
"""Prefix of the names of arrays with a teacher's prompts."""

Arrays = dict[str, np.ndarray[Any, Any]]


class TokenCache:
    """A folder of entries. Failures of reading or writing are reported on stderr; the texts are then tokenized."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, config: DataConfig) -> TokenCache | None:
        """The cache of a configuration; None without a cache."""
        if config.cache is None:
            return None
        default = config.cache == DataConfig.cache
        return cls(Path(os.environ.get(VARIABLE) or config.cache if default else config.cache).expanduser())

    def load(self, key: str, examples: Sequence[Example]) -> list[Encoded] | None:
        """The rows of an entry, one for each example; None if it does not exist or is damaged."""
        path = self.folder / f"{key}{SUFFIX}"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _report(f"{path}: cannot be read ({error.strerror}): tokenizing again")
            return None
        head, _, body = content.partition(b"\n")
        if head == FORMAT + _digest(key, body):
            try:
                rows = unpacked(safetensors.numpy.load(body), examples)
                os.utime(path)  # used
                return rows
            except (safetensors.SafetensorError, KeyError, ValueError, OSError):
                pass  # reported below
        _report(f"{path}: is damaged: tokenizing again")
        return None

    def save(self, key: str, rows: Sequence[Encoded]) -> None:
        """Writes an entry atomically; removes entries that were not used for `UNUSED` seconds."""
        body = safetensors.numpy.save(packed(rows))
        partial = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._tidy()
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=key, suffix=PARTIAL, delete=False) as file:
                partial = Path(file.name)
                file.write(FORMAT + _digest(key, body) + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / f"{key}{SUFFIX}")
        except OSError as error:
            _report(f"data.cache={self.folder}: cannot be written ({error.strerror}): tokens are not kept")
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)  # exists only if the entry was not written

    def _tidy(self) -> None:
        now = time.time()
        for suffix, age in ((SUFFIX, UNUSED), (PARTIAL, DAY)):
            for path in self.folder.glob(f"*{suffix}"):
                try:
                    if now - path.stat().st_mtime > age:
                        path.unlink()
                except FileNotFoundError:  # another process was quicker
                    continue


def entry_key(collator: Collator, examples: Sequence[Example]) -> str | None:
    """The key of an entry; None if a tokenizer has no serialized form (a slow one)."""
    settings = collator.fingerprint()
    if settings is None:
        return None
    found = hashlib.sha256(FORMAT + json.dumps(settings, sort_keys=True).encode())
    for example in examples:
        for text in (example.prompt, example.target):
            encoded = text.encode("utf-8", "surrogatepass")
            found.update(len(encoded).to_bytes(8, "little") + encoded)
    return found.hexdigest()


def packed(rows: Sequence[Encoded]) -> Arrays:
    """Rows as flat arrays: for each kind of sequence, the lengths and the concatenated values."""
    arrays: Arrays = {"response": _flat([row.response for row in rows])}
    arrays["response.lengths"] = _lengths([row.response for row in rows])
    arrays["lost"] = np.fromiter((row.lost for row in rows), dtype=np.uint8)
    for side in ("slm", "llm"):
        ids, spans = [getattr(row, side) for row in rows], [getattr(row, f"{side}_spans") for row in rows]
        if any(part is None for part in ids):
            continue
        arrays[side], arrays[f"{side}.lengths"] = _flat(ids), _lengths(ids)
        if not any(part is None for part in spans):
            for field in FIELDS:
                kind = np.bool_ if field == "special" else np.int32
                arrays[f"{side}.{field}"] = _flat([getattr(part, field) for part in spans], kind)
    prompts = [row.teacher for row in rows if row.teacher is not None]
    return arrays | ({TEACHER + name: array for name, array in packed(prompts).items()} if prompts else {})


def unpacked(arrays: Arrays, examples: Sequence[Example]) -> list[Encoded]:
    """The rows of `packed` arrays, with the indices of the examples.

    Raises:
        KeyError, ValueError: the arrays do not match the number of examples.
    """
    responses = _parts(arrays, "response", "response", len(examples))
    sides: dict[str, tuple[list[Any], list[Any]]] = {}
    lost = arrays["lost"].tolist()
    for side in ("slm", "llm"):
        none: list[Any] = [None] * len(examples)
        ids = _parts(arrays, side, side, len(examples)) if side in arrays else none
        spans = none
        if f"{side}.start" in arrays:
            columns = [_parts(arrays, f"{side}.{field}", side, len(examples)) for field in FIELDS]
            spans = [Spans(*values) for values in zip(*columns, strict=True)]
        sides[side] = ids, spans
    of_teacher = {name.removeprefix(TEACHER): array for name, array in arrays.items() if name.startswith(TEACHER)}
    teachers = unpacked(of_teacher, examples) if of_teacher else [None] * len(examples)
    return [
        Encoded(example.index, slm, llm, response, slm_spans, llm_spans, teacher, bits)
        for example, response, slm, slm_spans, llm, llm_spans, teacher, bits in zip(
            examples, responses, *sides["slm"], *sides["llm"], teachers, lost, strict=True
        )
    ]


def _flat(parts: Sequence[Sequence[int]], kind: type = np.int32) -> np.ndarray[Any, Any]:
    return np.fromiter((value for part in parts for value in part), dtype=kind)


def _lengths(parts: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
    return np.fromiter(map(len, parts), dtype=np.int32)


def _parts(arrays: Arrays, name: str, lengths: str, rows: int) -> list[list[Any]]:
    """The sequences of an array, split by the lengths `lengths`.lengths."""
    values, ends = arrays[name].tolist(), np.cumsum(arrays[f"{lengths}.lengths"], dtype=np.int64).tolist()
    if len(ends) != rows or (ends[-1] if ends else 0) != len(values):
        raise ValueError(f"{name}: {len(ends)} rows of {len(values)} values")
    return [values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _digest(key: str, body: bytes) -> bytes:
    found = hashlib.sha256(key.encode())
    found.update(body)
    return found.hexdigest().encode()


def _report(line: str) -> None:
    print(f"llm2slm: {line}", file=sys.stderr)
