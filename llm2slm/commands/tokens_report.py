"""Warnings about tokenizers before training: lost text, and too many tokens per byte."""

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
"""Multiple of the usual tokens per byte that shows that a tokenizer was not trained on this kind of text."""

LOST = {
    RESPONSE: "responses cannot be represented by the {side}'s tokens, so no prediction can equal them",
    PROMPT: "prompts lose text in the {side}'s tokens",
    LLM_PROMPT: "prompts lose text in the LLM's tokens",
}


def warn_tokens(config: RunConfig, data: DataModule) -> None:
    """Warns of text that a tokenizer loses, with an example, and of tokenizers that do not suit the corpus."""
    report, side = data.report(), "LLM" if config.model.kind is SystemKind.llm else "SLM"
    for name, message in LOST.items():
        counts = {split: found.get(f"lost_{name}s", 0) for split, found in report.items()}
        if not any(counts.values()):
            continue
        shares = ", ".join(f"{split} {n:,} of {_kept(report[split]):,}" for split, n in counts.items() if n)
        remedy = f"; {_remedy(config)}" if name == RESPONSE else ""
        _warn(f"{message.format(side=side)} ({shares}); {_example(data, name)}{remedy}")
    for tokenizer, found in _too_fine(data, report["train"]["tokens_per_byte"], side).items():
        _warn(
            f"the {tokenizer} encodes this corpus with {found:.2f} tokens per byte (UTF-8), at least {TOO_FINE:.0f} "
            f"times the usual {USUAL_TOKENS_PER_BYTE}: sequences get long, and the model may know little of this "
            "language; choose another model, or another tokenizer (docs/data.md)"
        )


def check_lossy(config: RunConfig, data: DataModule) -> None:
    """Checks the share of lost responses of each split against data.max_lossy_share.

    Raises:
        UserError: the share is larger; with the split, the number of lost responses and the first one.
    """
    for split, found in data.report().items():
        count, rows = found.get(f"lost_{RESPONSE}s", 0), _kept(found)
        if count > config.data.max_lossy_share * rows:
            raise UserError(
                f"data={config.data.name}, {split}: {count:,} of {rows:,} responses cannot be represented by the SLM's "
                f"tokens, more than data.max_lossy_share={config.data.max_lossy_share:g} allows; "
                f"{_example(data, RESPONSE, split)}; {_remedy(config)}, or raise data.max_lossy_share"
            )


def _kept(report: Mapping[str, Any]) -> int:
    return int(report["rows"]) - int(report["dropped"])


def _example(data: DataModule, name: str, split: str | None = None) -> str:
    """The first lost text: its row, and its first difference from the decoded text."""
    split = next(s for s, first in data.lost.items() if name in first) if split is None else split
    index = data.lost[split][name]
    return f"{split} row {index} (from 0): {difference(data.collator, data.example(split, index), name)}"


def _remedy(config: RunConfig) -> str:
    side = "llm" if config.model.kind is SystemKind.llm else "slm"
    apart = config.model.kind is SystemKind.llm2slm and config.model.tokenizers is Tokenizers.shared
    keys = f"model.{side}.keep_whitespace=true model.{side}.keep_characters=256"
    return f"{keys}{' model.tokenizers=offsets' if apart else ''} add the missing tokens to the tokenizer"


def _too_fine(data: DataModule, found: Mapping[str, float], side: str) -> dict[str, float]:
    """Description of each tokenizer with too many tokens per byte -> tokens per byte."""
    collator, limit = data.collator, TOO_FINE * USUAL_TOKENS_PER_BYTE
    tokenizers = {
        "response": (f"{side}'s", collator.slm_tokenizer),
        "prompt": (f"{side}'s", collator.slm_prompts.tokenizer),
        "llm_prompt": ("LLM's", collator.llm_prompts.tokenizer),
    }
    named: dict[str, float] = {}
    for name, (whose, tokenizer) in tokenizers.items():
        if found.get(name, 0.0) >= limit:
            owner = whose if tokenizer is not collator.llm_tokenizer else "LLM's"
            named.setdefault(f"{owner} tokenizer ({tokenizer.name_or_path})", found[name])
    return named


def _warn(line: str) -> None:
    print(f"llm2slm: warning: {line}", file=sys.stderr)
