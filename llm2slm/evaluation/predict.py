"""Generation for all examples of a split, in batches of similar length; the results are in the order of the split."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm2slm.evaluation.decoding_settings import arguments_of
from llm2slm.out_of_memory import explained
from llm2slm.progress import progress_bar
from llm2slm.types import Example

if TYPE_CHECKING:
    from llm2slm.data.tasks import Task
    from llm2slm.decoding.decoder import Decoder
    from llm2slm.models.hybrid import LLM2SLM


def predict(
    model: LLM2SLM,
    examples: Sequence[Example],
    task: Task,
    batch_size: int,
    *,
    decoder: Decoder | None = None,
    progress: bool = True,
    on_text: Callable[[Example, str], None] | None = None,
) -> list[str]:
    """Predictions for all examples, in order; arguments are those of `answers`."""
    found = answers(model, examples, task, batch_size, decoder=decoder, progress=progress, on_text=on_text)
    return [found[i] for i in range(len(examples))]


def answers(
    model: LLM2SLM,
    examples: Sequence[Example],
    task: Task,
    batch_size: int,
    *,
    share: tuple[int, int] = (0, 1),
    decoder: Decoder | None = None,
    progress: bool = True,
    on_text: Callable[[Example, str], None] | None = None,
) -> dict[int, str]:
    """Predictions for the examples of a share, by position, with the task's decoding defaults.

    Args:
        share, decoder: as `answer_batches`.
        on_text: called with each example and its prediction, in the order of generation.
    """
    predictions: dict[int, str] = {}
    batches = answer_batches(model, examples, task, batch_size, share=share, decoder=decoder, progress=progress)
    for positions, texts in batches:
        for position, text in zip(positions, texts, strict=True):
            predictions[position] = text
            if on_text is not None:
                on_text(examples[position], text)
    return predictions


def answer_batches(
    model: LLM2SLM,
    examples: Sequence[Example],
    task: Task,
    batch_size: int,
    *,
    share: tuple[int, int] = (0, 1),
    progress: bool = True,
    done: int = 0,
    decoder: Decoder | None = None,
    decoding: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Generator[tuple[list[int], list[str]]]:
    """Yields batches of predictions: row positions and texts.

    Args:
        model: any system; in eval mode during generation.
        task: gives `max_new_tokens` and `num_beams`.
        batch_size: rows per batch. Batches hold rows of similar length, longest first, so that a batch too large for
            the device fails at the start.
        share: (rank, number of shares). Shares consist of whole batches, which are the same for any number of shares:
            predictions do not depend on the number of processes, not even by rounding from different padding.
        progress: show a bar with rows and tokens per second and the time left, on stderr.
        done: number of rows generated earlier, in this order; a multiple of the batch size.
        decoder: of `model`; None: transformers' `generate`.
        decoding: further arguments of `generate`.
        seed: each batch is seeded by this and its position, so that sampling does not depend on earlier batches.
    """
    import torch

    from llm2slm.decoding.decoder import GenerateDecoder

    decoder = GenerateDecoder(model) if decoder is None else decoder
    order = by_length(examples)
    part, parts = share
    starts = range(done, len(order), batch_size)[part::parts]
    total = done + sum(len(order[start : start + batch_size]) for start in starts)
    arguments = arguments_of(task, decoding)
    answered, tokens, started, was_training = done, 0, time.perf_counter(), model.training
    model.eval()
    try:
        with progress_bar(progress) as bar:
            job = bar.add_task("generating", total=total, completed=done, speed="")
            for start in starts:
                positions = order[start : start + batch_size]
                if seed is not None:
                    torch.manual_seed(seed + start)
                with explained(f"a batch of {len(positions)} answers", "lower data.eval_batch_size"):
                    texts, new_tokens = _answer(decoder, [examples[i].prompt for i in positions], arguments)
                answered, tokens = answered + len(positions), tokens + new_tokens
                seconds = max(time.perf_counter() - started, 1e-9)
                speed = f"{(answered - done) / seconds:.1f} rows/s, {tokens / seconds:.0f} tokens/s"
                bar.update(job, advance=len(positions), speed=speed)
                yield positions, texts
    finally:
        model.train(was_training)


def by_length(examples: Sequence[Example]) -> list[int]:
    """Positions of the examples in the order of generation, longest prompt first."""
    return sorted(range(len(examples)), key=lambda i: (-len(examples[i].prompt), i))


def prediction_rows(examples: Sequence[Example], predictions: Sequence[str]) -> list[dict[str, str]]:
    """Rows of `predictions.jsonl`: source (without the task's prefix), target, prediction; and the target's language if
    it differs between rows (a mixture)."""
    several = len({example.language for example in examples}) > 1
    return [
        {"source": example.source, "target": example.target, "prediction": prediction}
        | ({"language": example.language} if several and example.language is not None else {})
        for example, prediction in zip(examples, predictions, strict=True)
    ]


def _answer(decoder: Decoder, prompts: list[str], arguments: Mapping[str, Any]) -> tuple[list[str], int]:
    """Predictions of one batch, and the number of generated tokens without padding."""
    import torch

    with torch.inference_mode():
        ids_BT = decoder.generate(decoder.batch(prompts), **arguments)
    ends = decoder.ends
    return decoder.decode(ids_BT), sum(_length(row, ends) for row in ids_BT.tolist())


def _length(ids: list[int], ends: Container[int]) -> int:
    """Number of tokens up to the first end token, included."""
    return next((number for number, token in enumerate(ids, 1) if token in ends), len(ids))
