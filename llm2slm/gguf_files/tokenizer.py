"""Loading of the tokenizer and chat template from a GGUF file."""

from __future__ import annotations

import json
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm2slm.gguf_files.header import once_per_file, read_header
from llm2slm.gguf_files.names import neutral_folder
from llm2slm.gguf_files.reader import reading_part
from llm2slm.types import UserError, reason_of

REMEDY = "name the folder or Hub id of its tokenizer by model.slm.tokenizer= (model.llm.tokenizer= for the LLM)"
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
"""Special token -> its name in the keys of the header."""


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file; cached until the file changes.

    Raises:
        UserError: as `read_header`; the file has no tokenizer, or one that transformers does not support.
    """
    return deepcopy(_tokenizer(path))


@once_per_file
def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    header = read_header(path)
    if "tokenizer.ggml.tokens" not in header.values:
        raise UserError(f"tokenizer {path}: the file has no vocabulary; {REMEDY}")
    # older versions of transformers read the vocabulary with `GGUFReader`, and `PartReader` has none
    with reading_part(lambda name: True) if _reads_vocabulary_itself() else nullcontext():  # noqa: ARG005
        try:
            tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
                neutral_folder(), gguf_file=str(path), trust_remote_code=False
            )
        except Exception as error:  # of many types, depending on the file
            raise UserError(
                f"tokenizer {path}: transformers cannot read the tokenizer of a GGUF file of architecture "
                f"{header.architecture!r} ({reason_of(error)}); {REMEDY}"
            ) from error
    tokenizer.name_or_path = str(path)
    _drop_beyond(tokenizer, header.values["tokenizer.ggml.tokens"].size)
    for name, key in SPECIAL.items():  # transformers 5.17 and older use the defaults of the tokenizer class
        number = header.one(f"tokenizer.ggml.{key}_token_id")
        setattr(tokenizer, f"{name}_token", None if number is None else tokenizer.convert_ids_to_tokens(number))
    return tokenizer


def _drop_beyond(tokenizer: PreTrainedTokenizerFast, size: int) -> None:
    """Removes tokens from `size` on: transformers adds defaults of the tokenizer class, without embeddings."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    own = [token for token in state["added_tokens"] if token["id"] < size]
    if len(own) < len(state["added_tokens"]):
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state | {"added_tokens": own}))


def _reads_vocabulary_itself() -> bool:
    """Whether this version of transformers reads GGUF tokenizers of all architectures without `GGUFReader`."""
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as newer
    except ImportError:
        return False
    return not hasattr(newer, "GGUF_TOKENIZER_ARCHS")
