"""Tokenized rows kept on disk, so that a corpus is tokenized once for all runs that read it alike.

An entry is one file, named by a hash of all that decides its content: the texts, both tokenizers, what stands around a
prompt. Limits on lengths are applied to what comes out of it and so need no entry of their own. It is written under
another name and renamed when whole: a process that is killed, or two at once, leave no half of one. Its checksum is
looked at when it is read; an entry that is damaged is made anew.
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
"""Environment variable that names the folder in place of the default."""

FORMAT = b"llm2slm tokens 2 "
"""What an entry begins with; then the checksum of its name and the rest, and a newline. The number changes with the
form."""

SUFFIX, PARTIAL = ".tokens", ".part"
DAY = 86_400
UNUSED = 90 * DAY
"""Seconds after which an entry that no run has read is removed."""

FIELDS = ("start", "end", "special")
"""Of spans, in the order of their arguments."""
TEACHER = "teacher."
"""In front of the names of the arrays that a teacher's prompts are kept in."""

Arrays = dict[str, np.ndarray[Any, Any]]


class TokenCache:
    """A folder of entries. What cannot be kept or read is told on stderr, and tokenized as if there were no cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, config: DataConfig) -> TokenCache | None:
        """The cache that a configuration names; None where it wants none."""
        if config.cache is None:
            return None
        default = config.cache == DataConfig.cache
        return cls(Path(os.environ.get(VARIABLE) or config.cache if default else config.cache).expanduser())

    def load(self, key: str, examples: Sequence[Example]) -> list[Encoded] | None:
        """The rows of an entry, one for each example; None where there is none, or a damaged one."""
        path = self.folder / f"{key}{SUFFIX}"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _tell(f"{path}: cannot be read ({error.strerror}): tokenizing anew")
            return None
        head, _, body = content.partition(b"\n")
        if head == FORMAT + _digest(key, body):
            try:
                rows = unpacked(safetensors.numpy.load(body), examples)
                os.utime(path)  # used
                return rows
            except (safetensors.SafetensorError, KeyError, ValueError, OSError):
                pass  # told below
        _tell(f"{path}: is damaged: tokenizing anew")
        return None

    def save(self, key: str, rows: Sequence[Encoded]) -> None:
        """Writes an entry, in one step; removes what no run has read for long."""
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
            _tell(f"data.cache={self.folder}: cannot be written ({error.strerror}): tokens are not kept")
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)  # there only where the entry is not

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
    """What an entry is called; None where a tokenizer does not tell what it does (a slow one)."""
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
    """Rows as flat arrays: of each sequence the lengths and, one behind the other, the values."""
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
    """The rows again, numbered as the examples are.

    Raises:
        KeyError, ValueError: the arrays are not those of so many rows.
    """
    responses = _parts(arrays, "response", "response", len(examples))
    sides: dict[str, tuple[list[Any], list[Any]]] = {}
    lost = arrays["lost"].tolist()
    for side in ("slm", "llm"):
        none: list[Any] = [None] * len(examples)
        ids = _parts(arrays, side, side, len(examples)) if side in arrays else none
        spans = none
        if f"{side}.start" in arrays:
            places = [_parts(arrays, f"{side}.{field}", side, len(examples)) for field in FIELDS]
            spans = [Spans(*place) for place in zip(*places, strict=True)]
        sides[side] = ids, spans
    theirs = {name.removeprefix(TEACHER): array for name, array in arrays.items() if name.startswith(TEACHER)}
    teachers = unpacked(theirs, examples) if theirs else [None] * len(examples)
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
    """The sequences of an array, cut by the lengths stored under another's name."""
    values, ends = arrays[name].tolist(), np.cumsum(arrays[f"{lengths}.lengths"], dtype=np.int64).tolist()
    if len(ends) != rows or (ends[-1] if ends else 0) != len(values):
        raise ValueError(f"{name}: {len(ends)} rows of {len(values)} values")
    return [values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _digest(key: str, body: bytes) -> bytes:
    found = hashlib.sha256(key.encode())
    found.update(body)
    return found.hexdigest().encode()


def _tell(line: str) -> None:
    print(f"llm2slm: {line}", file=sys.stderr)
