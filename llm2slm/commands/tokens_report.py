"""Warnings about tokenizers before a training: texts that they lose part of, and texts that they cut too finely."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.statistics import USUAL_TOKENS_PER_BYTE
from llm2slm.data.tokenization.round_trip import LLM_PROMPT, PROMPT, RESPONSE, difference
from llm2slm.types import SystemKind, Tokenizers, UserError

TOO_FINE = 3.0
"""Times the usual tokens per byte from which on a tokenizer was not made for such text."""

SAID = {
    RESPONSE: "responses cannot be written in the {side}'s tokens, so that no answer can equal them",
    PROMPT: "prompts are not whole in the {side}'s tokens: it reads them without what is lost",
    LLM_PROMPT: "prompts are not whole in the LLM's tokens: it reads them without what is lost",
}


def warn_tokens(config: RunConfig, data: DataModule) -> None:
    """Warns of texts that a tokenizer loses part of, with an example, and of tokenizers that are not made for them."""
    told, side = data.report(), "LLM" if config.model.kind is SystemKind.llm else "SLM"
    for name, said in SAID.items():
        counts = {split: found.get(f"lost_{name}s", 0) for split, found in told.items()}
        if not any(counts.values()):
            continue
        shares = ", ".join(f"{split} {n:,} of {_kept(told[split]):,}" for split, n in counts.items() if n)
        remedy = f"; {_remedy(config)}" if name == RESPONSE else ""
        _warn(f"{said.format(side=side)} ({shares}); {_example(data, name)}{remedy}")
    for reader, found in _too_fine(data, told["train"]["tokens_per_byte"], side).items():
        _warn(
            f"the {reader} cuts this corpus into {found:.2f} tokens per byte (UTF-8), at least {TOO_FINE:.0f} times as "
            f"many as the {USUAL_TOKENS_PER_BYTE} that are usual for text that a tokenizer was made for: texts get "
            "long, and its model may know little of this language; choose another model, or another tokenizer "
            "(docs/data.md)"
        )


def check_lossy(config: RunConfig, data: DataModule) -> None:
    """Refuses a split of which more responses are lost than data.max_lossy_share allows.

    Raises:
        UserError: names the split, how many they are, and the first one.
    """
    for split, found in data.report().items():
        count, rows = found.get(f"lost_{RESPONSE}s", 0), _kept(found)
        if count > config.data.max_lossy_share * rows:
            raise UserError(
                f"data={config.data.name}, {split}: {count:,} of {rows:,} responses cannot be written in the writer's "
                f"tokens, more than data.max_lossy_share={config.data.max_lossy_share:g} allows; "
                f"{_example(data, RESPONSE, split)}; {_remedy(config)}, or raise data.max_lossy_share"
            )


def _kept(told: Mapping[str, Any]) -> int:
    return int(told["rows"]) - int(told["dropped"])


def _example(data: DataModule, name: str, split: str | None = None) -> str:
    """The first text that is lost: where it is, and where what is read back begins to differ."""
    split = next(s for s, first in data.lost.items() if name in first) if split is None else split
    index = data.lost[split][name]
    return f"{split} row {index} (from 0): {difference(data.collator, data.example(split, index), name)}"


def _remedy(config: RunConfig) -> str:
    side = "llm" if config.model.kind is SystemKind.llm else "slm"
    apart = config.model.kind is SystemKind.llm2slm and config.model.tokenizers is Tokenizers.shared
    keys = f"model.{side}.keep_whitespace=true model.{side}.keep_characters=256"
    return f"{keys}{' model.tokenizers=offsets' if apart else ''} add what is missing to the tokenizer"


def _too_fine(data: DataModule, found: Mapping[str, float], side: str) -> dict[str, float]:
    """The tokenizers that cut texts too finely, by what to call them, and the tokens per byte."""
    collator, limit = data.collator, TOO_FINE * USUAL_TOKENS_PER_BYTE
    readers = {
        "response": (f"{side}'s", collator.slm_tokenizer),
        "prompt": (f"{side}'s", collator.slm_prompts.tokenizer),
        "llm_prompt": ("LLM's", collator.llm_prompts.tokenizer),
    }
    named: dict[str, float] = {}
    for name, (whose, tokenizer) in readers.items():
        if found.get(name, 0.0) >= limit:
            both = whose if tokenizer is not collator.llm_tokenizer else "LLM's"
            named.setdefault(f"{both} tokenizer ({tokenizer.name_or_path})", found[name])
    return named


def _warn(line: str) -> None:
    print(f"llm2slm: warning: {line}", file=sys.stderr)
