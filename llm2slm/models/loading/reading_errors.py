"""Damaged and unsafe files of a model, as one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from llm2slm.types import UserError, reason_of

OUT_OF_MEMORY = "can't allocate memory"
"""In the message of torch's allocator on the CPU."""


@contextmanager
def load_errors(name: str) -> Iterator[None]:
    """Converts errors of reading a model's files to a `UserError`: missing or damaged files, invalid configs, missing
    libraries. Only calls of transformers and safetensors belong in the block.

    Raises:
        UserError: with the model, and the library's reason.
        torch.OutOfMemoryError, MemoryError: unchanged; the files are not at fault.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except (OSError, ValueError, ImportError, StrictDataclassError) as error:
        raise UserError(f"model {name!r} cannot be read: {reason_of(error)}") from error
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(
            f"model {name!r} cannot be read: a file of weights is damaged ({reason_of(error)}); copy or download the "
            "model again"
        ) from error
    except Exception as error:  # transformers reads config.json without checking its types
        if OUT_OF_MEMORY in str(error):
            raise
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(f"model {name!r} cannot be read: its config.json or weights are invalid ({reason})") from error


def check_shards(folder: Path) -> None:
    """Refuses an index of weight files that names files outside of the folder.

    Raises:
        UserError: the index is damaged, or names such a file.
    """
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: cannot be read ({reason_of(error)}); copy or download the model again") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f"{index}: names a file outside of its folder ({name}); such a model is not loaded")
