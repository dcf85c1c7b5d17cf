"""The systems of the test matrix: LLM family x SLM family x conditioning x tokenizers."""

from __future__ import annotations

import itertools
import os
import random

from llm2slm.models import conditioning
from llm2slm.types import Tokenizers

READERS = ("t5", "flan", "umt5", "bart", "t5gemma", "bert", "modernbert")
LLMS = (*READERS, "gpt2", "pythia", "llama", "qwen2", "gemma2", "opt")
ENCODER_DECODERS = ("t5", "mt5", "bart", "pegasus", "t5gemma")
DECODERS = ("gpt2", "pythia", "llama", "qwen2", "opt")
Cell = tuple[str, str, str, str]


def fits(llm: str, slm: str, mode: str, tokenizers: str) -> bool:
    if mode == "kv":
        return llm not in READERS and slm in DECODERS and tokenizers != "llm_tokens"
    if mode == "memory":
        return slm in (*ENCODER_DECODERS, "gpt2")
    return mode != "cross_attention" or slm in DECODERS


def all_cells() -> list[Cell]:
    modes = [mode for mode in conditioning.names() if mode != "none"]
    every = itertools.product(LLMS, ENCODER_DECODERS + DECODERS, modes, [t.value for t in Tokenizers])
    return [cell for cell in every if fits(*cell)]


def groups(cell: Cell, size: int) -> set[tuple[tuple[int, str], ...]]:
    """The values of a cell with their positions, `size` at a time."""
    return set(itertools.combinations(enumerate(cell), size))


def covering(cells: list[Cell], size: int = 2) -> list[Cell]:
    """A small set of cells that contains every group of `size` values of the cells: greedy set cover."""
    shuffled = list(cells)
    random.Random(0).shuffle(shuffled)
    missing, chosen = set().union(*(groups(cell, size) for cell in cells)), []
    while missing:
        best = max(shuffled, key=lambda cell: len(groups(cell, size) & missing))
        chosen.append(best)
        missing -= groups(best, size)
    return sorted(chosen)


CELLS = all_cells() if os.environ.get("LLM2SLM_MATRIX") else covering(all_cells())
FEW = covering(CELLS, size=1)
