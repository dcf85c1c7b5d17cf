"""Generates an answer for every example of a split, in batches of similar length, and gives them back in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llm2slm.evaluation.decoding_settings import asked
from llm2slm.types import Example

if TYPE_CHECKING:
    from llm2slm.data.tasks import Task
    from llm2slm.models.hybrid import LLM2SLM


def predict(
    model: LLM2SLM,
    examples: Sequence[Example],
    task: Task,
    batch_size: int,
    *,
    progress: bool = True,
    on_text: Callable[[Example, str], None] | None = None,
) -> list[str]:
    """Answers every example, in order; arguments are those of `answers`."""
    found = answers(model, examples, task, batch_size, progress=progress, on_text=on_text)
    return [found[i] for i in range(len(examples))]


def answers(
    model: LLM2SLM,
    examples: Sequence[Example],
    task: Task,
    batch_size: int,
    *,
    share: tuple[int, int] = (0, 1),
    progress: bool = True,
    on_text: Callable[[Example, str], None] | None = None,
) -> dict[int, str]:
    """Answers examples with the task's decoding defaults; by the examples' positions.

    Args:
        examples: rows to answer.
        share: as `answer_batches`.
        on_text: called with each example and its answer as soon as it is there (order of generation).
    """
    predictions: dict[int, str] = {}
    for positions, texts in answer_batches(model, examples, task, batch_size, share=share, progress=progress):
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
    decoding: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Generator[tuple[list[int], list[str]]]:
    """Answers batch by batch: positions of rows, and their texts.

    Args:
        model: any system; it is put into eval mode while this goes on.
        task: gives `max_new_tokens` and `num_beams`.
        batch_size: rows generated at once. Rows of similar length go together, longest first, so that a batch too
            large for the device fails at once.
        share: (this one, how many): which part is answered here. Parts are made of whole batches, the same ones for any
            number of parts: so an answer does not depend on who gives it, not even by the rounding of other padding.
        progress: show a bar with rows and tokens per second and the time left, on the error stream.
        done: rows that are answered already, in this very order: a multiple of the batch size.
        decoding: more arguments of `generate`.
        seed: torch is seeded anew for each batch, by this and its place: sampling does not depend on what came before.
    """
    import torch

    by_length = sorted(range(len(examples)), key=lambda i: (-len(examples[i].prompt), i))
    part, parts = share
    starts = range(done, len(by_length), batch_size)[part::parts]
    total = done + sum(len(by_length[start : start + batch_size]) for start in starts)
    arguments = asked(task, decoding)
    answered, tokens, started, was_training = done, 0, time.perf_counter(), model.training
    model.eval()
    try:
        with progress_bar(progress) as bar:
            job = bar.add_task("generating", total=total, completed=done, speed="")
            for start in starts:
                positions = by_length[start : start + batch_size]
                if seed is not None:
                    torch.manual_seed(seed + start)
                texts, new_tokens = _answer(model, [examples[i].prompt for i in positions], arguments)
                answered, tokens = answered + len(positions), tokens + new_tokens
                seconds = max(time.perf_counter() - started, 1e-9)
                speed = f"{(answered - done) / seconds:.1f} rows/s, {tokens / seconds:.0f} tokens/s"
                bar.update(job, advance=len(positions), speed=speed)
                yield positions, texts
    finally:
        model.train(was_training)


def prediction_rows(examples: Sequence[Example], predictions: Sequence[str]) -> list[dict[str, str]]:
    """Rows of `predictions.jsonl`: source (the text without the task's prefix), target, prediction; and the target's
    language, where rows differ in it (a mixture)."""
    several = len({example.language for example in examples}) > 1
    return [
        {"source": example.source, "target": example.target, "prediction": prediction}
        | ({"language": example.language} if several and example.language is not None else {})
        for example, prediction in zip(examples, predictions, strict=True)
    ]


def _answer(model: LLM2SLM, prompts: list[str], arguments: Mapping[str, Any]) -> tuple[list[str], int]:
    """Answers of one batch, and how many tokens were generated (padding after an answer's end not counted)."""
    import torch

    from llm2slm.models.slm import end_tokens

    with torch.inference_mode():
        batch = model.collator.batch_of_texts(prompts).to(model.device)
        ids_BT = model.generate(batch, **arguments)
    ends = end_tokens(model.generation_config)
    return model.collator.decode(ids_BT), sum(_length(row, ends) for row in ids_BT.tolist())


def _length(ids: list[int], ends: Container[int]) -> int:
    """Tokens up to and with the first end token."""
    return next((number for number, token in enumerate(ids, 1) if token in ends), len(ids))


def progress_bar(shown: bool, transient: bool = False) -> Progress:
    """Rows done, the task's field `speed` and the time left, on the error stream.

    Args:
        transient: it is taken away at the end.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    console = Console(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown, transient=transient)
