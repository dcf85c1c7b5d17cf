"""The built-in tokenizer with a vocabulary of any size, for benchmarks of shapes whose tokenizer is not at hand.

The surplus entries occur in no text. Token ids are valid for a model with a vocabulary of that size, and its output
layer has the size, and therefore the cost, of the published model's.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from llm2slm.data.tokenization.tokenizer import load_tokenizer, rebuilt

PREFIX = "filled:"
"""`filled:32128` names the tokenizer with 32128 entries."""


def filled_tokenizer(name: str) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a name as `filled:32128`; None for other names."""
    if not name.startswith(PREFIX) or not name.removeprefix(PREFIX).isdecimal():
        return None
    folder = Path(str(files("llm2slm") / "builtin" / "llm"))
    tokenizer = load_tokenizer(str(folder))
    rules = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = rules["model"]["vocab"]
    for token_id in range(len(tokenizer), int(name.removeprefix(PREFIX))):
        vocabulary[f"<unused_{token_id}>"] = token_id
    made = rebuilt(tokenizer, rules)
    made.name_or_path = name
    return made
