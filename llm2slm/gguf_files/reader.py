"""A replacement of `gguf.GGUFReader` for transformers' older GGUF loader, restricted to the needed tensors.

`gguf.GGUFReader` parses the header value by value (seconds for a large vocabulary), and the loader dequantizes every
tensor of a `GGUFReader`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from llm2slm.gguf_files.header import ARRAY, FLOATS, NUMBERS, STRING, Tensor, Values, read_header

VOCABULARY = "tokenizer.ggml.tokens"
"""The array whose length transformers uses as vocabulary size."""


class PartReader:
    """The interface of `gguf.GGUFReader` that transformers' older loader uses, for a subset of the tensors.

    Attributes:
        fields: metadata in the layout of `gguf.GGUFReader`; the tokenizer's arrays are empty, except that the
            vocabulary has its length.
        tensors: the tensors for which `unread` is False, memory-mapped.
    """

    def __init__(self, path: str, *, unread: Callable[[str], bool]) -> None:
        header = read_header(Path(path))
        self.fields = {key: _field(key, found) for key, found in header.values.items()}
        data = np.memmap(path, mode="r", dtype=np.uint8)
        self.tensors = [_tensor(data, each) for each in header.tensors if not unread(each.name)]


def _field(key: str, found: Values) -> SimpleNamespace:
    name = np.frombuffer(key.encode(), np.uint8)
    before = [np.array([len(name)], np.uint64), name, np.array([ARRAY if found.array else found.kind], np.uint32)]
    types = [ARRAY, found.kind] if found.array else [found.kind]
    if found.array:
        before += [np.array([found.kind], np.uint32), np.array([found.size], np.uint64)]
    if found.values is None:
        size = found.size if key == VOCABULARY else 0
        return SimpleNamespace(name=key, parts=[*before, before[1]], types=types, data=[len(before)] * size)
    parts = [_part(found.kind, value) for value in found.values]
    if found.kind == STRING:
        parts = [np.array([len(parts[0])], np.uint64), parts[0]]
    first = len(before) + (found.kind == STRING)
    return SimpleNamespace(
        name=key, parts=[*before, *parts], types=types, data=list(range(first, first + len(found.values)))
    )


def _part(kind: int, value: Any) -> Any:
    return np.frombuffer(value.encode(), np.uint8) if kind == STRING else np.array([value], np.dtype(NUMBERS[kind]))


def _tensor(data: Any, found: Tensor) -> SimpleNamespace:
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    kind, raw = GGMLQuantizationType(found.kind), data[found.start : found.start + found.size]
    if FLOATS.get(found.kind) in ("float32", "float16"):
        values = raw.view(np.dtype(FLOATS[found.kind])).reshape(found.shape)
    else:
        values = raw.reshape(quant_shape_to_byte_shape(found.shape, kind))
    return SimpleNamespace(name=found.name, data=values, tensor_type=kind, shape=found.shape[::-1])


@contextmanager
def reading_part(unread: Callable[[str], bool]) -> Iterator[None]:
    """Within the block, transformers' older loader uses `PartReader`, shows no progress bar, and builds the table of
    tensor names once (instead of once per module).

    Args:
        unread: GGUF name of a tensor -> whether it is skipped.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    swapped = {
        (gguf, "GGUFReader"): partial(PartReader, unread=unread),
        (gguf, "get_tensor_name_map"): lru_cache(gguf.get_tensor_name_map),
        (loader, "tqdm"): lambda rows, **_: rows,
    }
    before = {target: getattr(*target) for target in swapped if hasattr(*target)}
    for (module, name), value in swapped.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)
