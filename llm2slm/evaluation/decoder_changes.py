"""What a decoder of lower precision changes: its responses and scores against those of an exact decoder."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from llm2slm.evaluation.decoding_settings import arguments_of
from llm2slm.evaluation.metrics import scores
from llm2slm.models.slm import end_tokens

if TYPE_CHECKING:
    from llm2slm.data.tasks import Task
    from llm2slm.decoding.decoder import Decoder
    from llm2slm.types import Example


def changes(
    decoder: Decoder, exact: Decoder, examples: Sequence[Example], task: Task, batch_size: int
) -> dict[str, Any]:
    """Changes from `exact` to `decoder`, over responses that both generate here.

    Args:
        examples: at least one.

    Returns:
        against: name of the exact decoder. rows.
        responses: share of responses that differ in at least one token.
        tokens: share of token positions that differ, of those of the longer one of both responses. After its first
            changed token a response continues differently, so its later tokens count too, though they may be due to
            that first change.
        metrics: of each metric of texts, the score of `decoder` minus that of `exact`, over these rows.
    """
    ids = [_responses(each, examples, task, batch_size) for each in (decoder, exact)]
    found = changed(*ids)
    references, languages = [example.target for example in examples], [example.language for example in examples]
    names = scores.of_texts(task.metrics)
    new, old = (scores.measure(names, exact.model.collator.decode(rows), references, languages) for rows in ids)
    differences = {name: round(new[name].score().value - old[name].score().value, 6) for name in names}
    return {"against": exact.name, "rows": len(examples)} | found | {"metrics": differences}


def changed(found: Sequence[Sequence[int]], exact: Sequence[Sequence[int]]) -> dict[str, float]:
    """Shares of changed `responses` and `tokens`, see `changes`.

    Args:
        found, exact: token ids of each response.
    """
    rows = tokens = positions = 0
    for new, old in zip(found, exact, strict=True):
        same = sum(a == b for a, b in zip(new, old, strict=False))
        longest = max(len(new), len(old))
        rows, tokens, positions = rows + (same != longest), tokens + longest - same, positions + longest
    return {"responses": rows / max(len(exact), 1), "tokens": tokens / max(positions, 1)}


def line(found: dict[str, Any], name: str) -> str:
    """The changes in one line.

    Args:
        name: of the decoder.
    """
    metrics = ", ".join(f"{scores.title(metric)} {value:+.2f}" for metric, value in found["metrics"].items())
    return (
        f"decoding={name} against {found['against']}, {found['rows']} rows: {found['tokens']:.2%} of the tokens and "
        f"{found['responses']:.2%} of the responses changed" + (f"; {metrics}" if metrics else "")
    )


def _responses(decoder: Decoder, examples: Sequence[Example], task: Task, batch_size: int) -> list[list[int]]:
    """Token ids of every response, up to its end token."""
    import torch

    ends, arguments = end_tokens(decoder.model.generation_config), arguments_of(task)
    found: list[list[int]] = []
    with torch.inference_mode():
        for start in range(0, len(examples), batch_size):
            texts = [example.prompt for example in examples[start : start + batch_size]]
            found += [_cut(row, ends) for row in decoder.generate(decoder.batch(texts), **arguments).tolist()]
    return found


def _cut(ids: list[int], ends: Container[int]) -> list[int]:
    """Tokens up to the first end token, included."""
    return ids[: next((number for number, token in enumerate(ids, 1) if token in ends), len(ids))]
