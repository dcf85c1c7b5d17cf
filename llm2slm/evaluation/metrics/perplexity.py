"""Perplexity of the references under the model that is judged: how little it is surprised by the right answers.

Teacher-forced: each token is predicted from the prompt and the reference before it. Per token of the writer's own
tokenizer, the eos that ends every response included, and the mean is taken over all tokens of all rows, not over the
rows' means. Models with different tokenizers cut a text into different tokens: their perplexities do not compare.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from llm2slm.evaluation.metrics.scores import Measured
from llm2slm.evaluation.predict import progress_bar
from llm2slm.types import IGNORE_INDEX, Overlong

if TYPE_CHECKING:
    from llm2slm.data.collate import Encoded
    from llm2slm.models.hybrid import LLM2SLM

LARGEST = 700.0
"""Nats per token from which on the perplexity is called infinite (a float ends at exp(709))."""


def perplexity(model: LLM2SLM, rows: Sequence[Encoded], batch_size: int, *, progress: bool = False) -> Measured:
    """exp of the mean cross-entropy of the references' tokens; lower is better, 1 the least.

    Args:
        model: any system; it is put into eval mode for the time of the call.
        rows: tokenized by the model's own collator, cut as it cuts (the signature says to what).
        batch_size: rows read at once; rows of similar length go together.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].response), -rows[i].prompt_tokens))
    counts: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    was_training = model.training
    model.eval()
    try:
        with progress_bar(progress) as bar, torch.inference_mode():
            job = bar.add_task("perplexity", total=len(rows), speed="")
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                for row, nats in zip(chosen, _nats(model, [rows[i] for i in chosen]), strict=True):
                    counts[row] = (nats, len(rows[row].response))
                bar.update(job, advance=len(chosen))
    finally:
        model.train(was_training)
    by_row: dict[int, tuple[float, int]] = {}
    for piece, (nats, tokens) in zip(rows, counts, strict=True):  # pieces of one text (data.overlong=split) are one row
        before = by_row.get(piece.index, (0.0, 0))
        by_row[piece.index] = before[0] + nats, before[1] + tokens
    return Measured(list(by_row.values()), _value, _signature(model))


def _nats(model: LLM2SLM, rows: Sequence[Encoded]) -> list[float]:
    """Cross-entropy of each row's response, summed over its tokens in double precision."""
    batch = model.collator(rows).to(model.device)
    assert batch.labels_BT is not None
    logits_BTV = model.logits(batch).float()
    nats_BT = cross_entropy(
        logits_BTV.flatten(0, 1), batch.labels_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    ).view_as(batch.labels_BT)
    return nats_BT.double().sum(1).tolist()


def _value(sums: list[float]) -> float:
    nats = sums[0] / sums[1]
    return math.inf if nats >= LARGEST else math.exp(nats)  # NaN stays NaN


def _signature(model: LLM2SLM) -> str:
    collator = model.collator
    tokenizer: Any = collator.slm_tokenizer
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    name = f"{type(tokenizer).__name__} of {len(tokenizer)} entries"
    digits = hashlib.sha256(vocabulary.encode()).hexdigest()[:12]
    done = {Overlong.truncate: "cut to", Overlong.split: "split into pieces of"}.get(collator.overlong)
    cut = f", {done} {collator.max_response_tokens} tokens" if done else ""
    return (
        f"exp of the mean cross-entropy of a reference token, eos included{cut}, teacher-forced, "
        f"tokenizer {name} ({digits}), weights {str(model.slm.dtype).removeprefix('torch.')}"
    )
