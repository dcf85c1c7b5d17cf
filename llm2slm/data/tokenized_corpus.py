"""A corpus with one task and one collator, tokenized split by split, with a report on each split."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from rich.progress import MofNCompleteColumn

from llm2slm.config import DataConfig
from llm2slm.data import statistics
from llm2slm.data.collate import FOR_ROWS, Collator, Encoded
from llm2slm.data.sources.labels import relabelled
from llm2slm.data.sources.sources import read_split, stream_rows
from llm2slm.data.streaming import Position, RowStream
from llm2slm.data.tasks import Task
from llm2slm.data.token_cache import TokenCache, entry_key
from llm2slm.data.tokenization import round_trip
from llm2slm.progress import Rate, progress_bar
from llm2slm.types import Example, Overlong, UserError

FIRST_ROWS = "train, first rows"
"""Key of the first chunk of a streamed training split, which stands for the split before training."""
LONG = 5_000
"""Number of rows from which on tokenization shows a progress bar."""
PART = 1_000
"""Rows tokenized in one call: enough to use every core, few enough to update the progress bar."""


class OverlongRows(UserError):
    """Rows of a split exceed the length limits with data.overlong=error.

    Attributes:
        first: description of the first one. counted: the numbers of such prompts and responses, in words.
    """

    def __init__(self, first: str, counted: str) -> None:
        super().__init__(f"{first}; too long {counted}; {FOR_ROWS}")
        self.first, self.counted = first, counted


class TokenizedCorpus:
    """The splits of a corpus as examples and token ids; each is read and tokenized once.

    Args:
        config: corpus, sizes, limits.
        task: makes prompts and targets of rows.
        collator: tokenizes them.
        seed: of the built-in corpora's training rows.
        teacher: tokenizes the prompts of training rows for a teacher, too (`Collator.with_teacher`).

    Attributes:
        lost: by split, for each kind of text (`round_trip.TEXTS`), the index of the first row whose text is not
            recovered from its tokens.
    """

    def __init__(
        self, config: DataConfig, task: Task, collator: Collator, seed: int, teacher: Collator | None = None
    ) -> None:
        self.config, self.task, self.seed = config, task, seed
        self._eval_collator, self.collator = collator, collator if teacher is None else collator.with_teacher(teacher)
        self._examples: dict[str, list[Example]] = {}
        self._encoded: dict[str, list[Encoded]] = {}
        self._counts: dict[str, dict[str, Any]] = {}
        self.lost: dict[str, dict[str, int]] = {}
        self._stream: RowStream | None = None

    def prepare(self, split: str) -> None:
        """Reads and tokenizes a split; of a streamed training split the first chunk (at most one pass).

        Raises:
            UserError: as `encoded`.
        """
        if self._known_rows(split) != FIRST_ROWS:
            self.encoded(split)
        elif self._stream is None:
            begun = time.perf_counter()
            self._stream = self._row_stream()
            first = self._stream.first_rows()
            self._examples[FIRST_ROWS], self._encoded[FIRST_ROWS] = first.examples, first.rows
            whole = round_trip.marked(self.collator, self.collator.tokenized(first.examples), first.examples)
            found = statistics.of_tokens(whole, first.examples, self.collator)
            kept = {row.index for row in first.rows}
            found |= self._count_lost("train", [row for row in whole if row.index in kept])
            self._counts["train"] = {"seconds": round(time.perf_counter() - begun, 2)} | found

    def encoded(self, split: str) -> list[Encoded]:
        """The tokenized split without dropped rows.

        Raises:
            OverlongRows: a row exceeds a limit with data.overlong=error; raised after all rows are counted.
            UserError: invalid data, or no row is left.
        """
        if split in self._encoded:
            return self._encoded[split]
        begun = time.perf_counter()
        read, parts = read_split(self.config, self.task, split, self.seed)
        if split == "train":
            read = relabelled(read, self.config, self.seed)
        examples = [self.task.example(row, index) for index, row in enumerate(read)]
        collator = self.collator if split == "train" else self._eval_collator
        before = Counter(collator.counts)
        whole = self._tokenized(split, examples, collator)
        label, message = f"data={self.config.name}, {split}, ", None
        if collator.overlong is Overlong.error:
            encoded, message = whole, collator.too_long(whole, label)
        else:
            encoded = collator.fitted(whole, label)
        over = collator.counts - before
        self._counts[split] = {
            "rows": len(examples),
            "dropped": len(examples) - len({row.index for row in encoded}),
            "overlong_prompts": over["prompt"],
            "overlong_responses": over["response"],
            "overlong": str(self.collator.overlong),
            "seconds": round(time.perf_counter() - begun, 2),
            **statistics.of_tokens(whole, examples, collator),
            **self._count_lost(split, encoded),
            **({"pieces": len(encoded)} if collator.overlong is Overlong.split else {}),
            **({"parts": parts} if parts else {}),
        }
        if message is not None:
            raise OverlongRows(
                message,
                f"in {split}: {over['prompt']:,} of {len(examples):,} prompts, {over['response']:,} of "
                f"{len(examples):,} responses",
            )
        if not encoded:
            raise UserError(
                f"data={self.config.name}, {split}: no row is left of {len(examples)}, all were over-long and dropped; "
                "raise data.max_prompt_tokens or data.max_response_tokens"
            )
        self._examples[split], self._encoded[split] = examples, encoded
        return encoded

    def examples(self, split: str) -> list[Example]:
        """The examples of a split without dropped rows: the same rows as in `encoded` and `report`."""
        kept = {row.index for row in self.encoded(split)}
        return [example for example in self._examples[split] if example.index in kept]

    def example(self, split: str, index: int) -> Example:
        """An example of a split that has been read, by its index."""
        return next(example for example in self._examples[self._known_rows(split)] if example.index == index)

    def first_rows(self, split: str) -> list[Encoded]:
        """The rows of a split that are known before training: all (`encoded`), or the first chunk of a stream."""
        self.prepare(split)
        return self._encoded[self._known_rows(split)]

    def first_examples(self, split: str) -> list[Example]:
        """The examples of `first_rows`, including dropped ones."""
        self.prepare(split)
        return self._examples[self._known_rows(split)]

    def one_pass(self, split: str) -> Iterator[list[Encoded]]:
        """All rows of a split in order, in parts that fit into memory: one part, or the chunks of streamed rows.

        Raises:
            UserError: as `encoded`.
        """
        if split != "train" or not self.config.streaming:
            yield self.encoded(split)
            return
        last = -1
        for chunk in self._row_stream().chunks(Position()):  # endless: the first row follows the last one
            numbers = [last, *(row.index for row in chunk.rows)]
            end = next((n for n, (one, after) in enumerate(pairwise(numbers)) if after <= one), None)
            if rows := chunk.rows[:end]:
                yield rows
            if end is not None:
                return
            last = numbers[-1]

    def compare(self) -> None:
        """Adds to the report: empty responses, repeated training rows, and rows of other splits whose prompt is among
        the training prompts. Dropped rows do not count; of a streamed training split only the first chunk counts.
        """
        training = self._examples[FIRST_ROWS] if self.config.streaming else self.examples("train")
        self._counts["train"] |= {"repeated": statistics.repeated(training), "empty": statistics.empty(training)}
        for split in self._counts.keys() - {"train"}:
            examples = self.examples(split)
            self._counts[split] |= {
                "in_train": statistics.seen(examples, training),
                "empty": statistics.empty(examples),
            }

    def report(self) -> dict[str, dict[str, Any]]:
        """By split: number of rows, dropped rows, over-long prompts and responses, their treatment, seconds, lengths
        in tokens before truncation; the parts of a mixture; the results of `compare`, once it was called.
        """
        streamed = {} if self._stream is None else {"train": self._stream.report()}
        return {split: streamed.get(split, {}) | counts for split, counts in self._counts.items()}

    def _known_rows(self, split: str) -> str:
        """Key of the rows that stand for a split before training."""
        return FIRST_ROWS if split == "train" and self.config.streaming else split

    def _row_stream(self, world_size: int = 1) -> RowStream:
        return RowStream(
            lambda skip: stream_rows(self.config, self.task, skip),
            self.task,
            self.collator,
            buffer=self.config.buffer,
            world_size=world_size,
            label=f"data={self.config.name}, train, ",
        )

    def _tokenized(self, split: str, examples: list[Example], collator: Collator) -> list[Encoded]:
        """One row for each example, of any length; read from the token cache, or tokenized and added to it."""
        cache = TokenCache.of(self.config)
        key = None if cache is None else entry_key(collator, examples)
        cached = cache.load(key, examples) if cache is not None and key is not None else None
        if cached is not None:
            return cached
        rows: list[Encoded] = []
        for part in _in_parts(examples, split):
            rows += round_trip.marked(collator, collator.tokenized(part), part)
        if cache is not None and key is not None:
            cache.save(key, rows)
        return rows

    def _count_lost(self, split: str, rows: Sequence[Encoded]) -> dict[str, int]:
        """Counts the texts that are not recovered from their tokens; stores the first row of each kind in `lost`."""
        found = {name: round_trip.first_lost(rows, name) for name in round_trip.TEXTS}
        self.lost[split] = {name: index for name, index in found.items() if index is not None}
        return {f"lost_{name}s": count for name, count in round_trip.counts(rows).items()}


def _in_parts(examples: list[Example], split: str) -> Iterator[list[Example]]:
    """The examples in parts of `PART`; for a long list with a progress bar."""
    with progress_bar(len(examples) >= LONG, MofNCompleteColumn(), Rate("rows"), transient=True) as bar:
        job = bar.add_task(f"tokenizing {split}", total=len(examples))
        for start in range(0, len(examples), PART):
            part = examples[start : start + PART]
            yield part
            bar.advance(job, len(part))
