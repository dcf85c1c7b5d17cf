"""The LightningDataModule: rows -> examples -> token ids once, then batches whose order can be resumed exactly.

Training batches hold rows of like length, as many as fit the token budget. A batch's shape plan is the same in every
epoch; which rows of one length class fill it, and the order of the batches, are drawn anew from (seed, epoch) alone.
Each of several processes takes every world-size-th batch of that order.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Job
from rich.text import Text
from torch.utils.data import DataLoader, Dataset

from llm2slm.config import DataConfig
from llm2slm.data import statistics
from llm2slm.data.batches import BatchPlan, drawn
from llm2slm.data.collate import FOR_ROWS, Collator, Encoded
from llm2slm.data.sources.labels import relabelled
from llm2slm.data.sources.sources import read_split, stream_rows
from llm2slm.data.streaming import Place, RowStream, StreamLoader
from llm2slm.data.tasks import Task
from llm2slm.data.token_cache import TokenCache, entry_key
from llm2slm.data.tokenization import round_trip
from llm2slm.types import Batch, Example, Overlong, UserError

FIRST_ROWS = "train, first rows"
"""What stands for the training split where it is streamed: the rows that were looked at before training."""
LONG = 5_000
"""Rows from which on tokenizing shows a progress bar."""
PART = 1_000
"""Rows tokenized at once: enough to keep every core busy, few enough for the progress bar to move."""


class OverlongRows(UserError):
    """Rows of a split are too long, and data.overlong=error.

    Attributes:
        first: what is wrong with the first of them. counted: how many there are, in words.
    """

    def __init__(self, first: str, counted: str) -> None:
        super().__init__(f"{first}; too long {counted}; {FOR_ROWS}")
        self.first, self.counted = first, counted


class TrainLoader:
    """Endless in effect: each `iter` goes on where the last one stopped, from any epoch and any batch in it.

    Its whole state is the number of batches done since training began.

    Args:
        make: row positions of the batches to come -> an iterable of `Batch`.
        plan: the batches of each epoch.
        done: how many were trained on, if that is better known elsewhere (a batch in work is delivered, not done).
    """

    def __init__(
        self, make: Callable[[list[list[int]]], Any], plan: BatchPlan, done: Callable[[], int] | None = None
    ) -> None:
        self._make, self._plan, self._done = make, plan, done
        self.delivered = 0

    def __len__(self) -> int:
        return self._plan.batches

    def __iter__(self) -> Iterator[Batch]:
        epoch, position = divmod(self.delivered, len(self))
        for batch in self._make(self._plan.epoch(epoch)[position:]):
            self.delivered += 1  # before the batch is used: a checkpoint written after it must not repeat it
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Plain numbers, for a checkpoint."""
        done = self.delivered if self._done is None else self._done()
        return {"batches_done": done, "batches_per_epoch": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from that state.

        Raises:
            UserError: it comes from other data, another batch size or another number of processes.
        """
        if "batches_per_epoch" not in state:
            raise UserError("the checkpoint is of a training with data.streaming; to resume, set data.streaming=true")
        if state["batches_per_epoch"] != len(self):
            raise UserError(
                f"the checkpoint's epochs have {state['batches_per_epoch']} batches, this run's {len(self)}; to "
                "resume, use the same data, data.batch_tokens and trainer.devices"
            )
        self.delivered = state["batches_done"]


class _Rows(Dataset[Encoded]):
    def __init__(self, rows: Sequence[Encoded]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Encoded:
        return self._rows[position]


class DataModule(LightningDataModule):
    """Train, validation and test loaders of one corpus under one task and one pair of tokenizers.

    Args:
        config: corpus, sizes, limits.
        task: makes prompts and targets of rows.
        collator: makes batches of them.
        seed: of the built-in corpora's training rows and of the training order.
        teacher: its prompts stand beside those of the training rows (`Collator.taught_by`).
        val_rows: rows of the validation split at most in `val_dataloader`. None: all.

    Attributes:
        lost: by split, of each kind of text (`round_trip.TEXTS`) the first row that is not read back from its tokens.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # a process may have no row of a small split

    def __init__(
        self,
        config: DataConfig,
        task: Task,
        collator: Collator,
        seed: int,
        teacher: Collator | None = None,
        *,
        val_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.val_rows = val_rows
        self.config, self.task, self.seed = config, task, seed
        self._untaught, self.collator = collator, collator if teacher is None else collator.taught_by(teacher)
        self._examples: dict[str, list[Example]] = {}
        self._encoded: dict[str, list[Encoded]] = {}
        self._counts: dict[str, dict[str, Any]] = {}
        self.lost: dict[str, dict[str, int]] = {}
        self._loader: TrainLoader | StreamLoader | None = None
        self._stream: RowStream | None = None
        self._state: dict[str, int] = {}

    def setup(self, stage: str) -> None:
        """Reads and tokenizes what a stage (fit, validate, test) needs, once."""
        for split in {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",)):
            self.prepare(split)

    def prepare(self, split: str) -> None:
        """Reads and tokenizes a split; of training rows that are streamed the first chunk (one pass
        at most).

        Raises:
            UserError: as `encoded`.
        """
        if split != "train" or not self.config.streaming:
            self.encoded(split)
        elif self._stream is None:
            begun = time.perf_counter()
            self._stream = self._row_stream()
            first = self._stream.first_rows()
            self._examples[FIRST_ROWS], self._encoded[FIRST_ROWS] = first.examples, first.rows
            whole = round_trip.marked(self.collator, self.collator.tokenized(first.examples), first.examples)
            found = statistics.of_tokens(whole, first.examples, self.collator)
            kept = {row.index for row in first.rows}
            found |= self._losses("train", [row for row in whole if row.index in kept])
            self._counts["train"] = {"seconds": round(time.perf_counter() - begun, 2)} | found

    def _row_stream(self, world_size: int = 1) -> RowStream:
        return RowStream(
            lambda skip: stream_rows(self.config, self.task, skip),
            self.task,
            self.collator,
            buffer=self.config.buffer,
            world_size=world_size,
            label=f"data={self.config.name}, train, ",
        )

    def examples(self, split: str) -> list[Example]:
        """The split as the task sees it, without dropped rows (so that what is measured is what `report` counts)."""
        kept = {row.index for row in self.encoded(split)}
        return [example for example in self._examples[split] if example.index in kept]

    def encoded(self, split: str) -> list[Encoded]:
        """The split tokenized, without dropped rows.

        Raises:
            OverlongRows: a row is too long, and that is an error; all rows are counted first.
            UserError: bad data, or no row is left.
        """
        if split in self._encoded:
            return self._encoded[split]
        begun = time.perf_counter()
        read, parts = read_split(self.config, self.task, split, self.seed)
        if split == "train":
            read = relabelled(read, self.config, self.seed)
        examples = [self.task.example(row, index) for index, row in enumerate(read)]
        collator = self.collator if split == "train" else self._untaught
        before = Counter(collator.counts)
        whole = self._tokenized(split, examples, collator)
        place, complaint = f"data={self.config.name}, {split}, ", None
        if collator.overlong is Overlong.error:
            encoded, complaint = whole, collator.too_long(whole, place)
        else:
            encoded = collator.fitted(whole, place)
        over = collator.counts - before
        self._counts[split] = {
            "rows": len(examples),
            "dropped": len(examples) - len({row.index for row in encoded}),
            "overlong_prompts": over["prompt"],
            "overlong_responses": over["response"],
            "overlong": str(self.collator.overlong),
            "seconds": round(time.perf_counter() - begun, 2),
            **statistics.of_tokens(whole, examples, collator),
            **self._losses(split, encoded),
            **({"pieces": len(encoded)} if collator.overlong is Overlong.split else {}),
        }
        if parts:
            self._counts[split]["parts"] = parts
        if complaint is not None:
            raise OverlongRows(
                complaint,
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

    def first_rows(self, split: str) -> list[Encoded]:
        """What is known of a split before training: all of it (`encoded`), or the first chunk of streamed rows."""
        self.prepare(split)
        return self._encoded[FIRST_ROWS if split == "train" and self.config.streaming else split]

    def first_examples(self, split: str) -> list[Example]:
        """The rows of `first_rows` as the task sees them, dropped ones too."""
        self.prepare(split)
        return self._examples[FIRST_ROWS if split == "train" and self.config.streaming else split]

    def once(self, split: str) -> Iterator[list[Encoded]]:
        """A split from its first row to its last, in parts that fit into memory; whole, where it is not streamed.

        Raises:
            UserError: as `encoded`.
        """
        if split != "train" or not self.config.streaming:
            yield self.encoded(split)
            return
        last = -1
        for chunk in self._row_stream().chunks(Place()):  # endless: after the last row comes the first
            numbers = [last, *(row.index for row in chunk.rows)]
            ended = next((n for n, (one, next_one) in enumerate(pairwise(numbers)) if next_one <= one), None)
            if rows := chunk.rows[:ended]:
                yield rows
            if ended is not None:
                return
            last = numbers[-1]

    def _tokenized(self, split: str, examples: list[Example], collator: Collator) -> list[Encoded]:
        """A row for each example, of whatever length; from the cache where they are in it, else into it."""
        cache = TokenCache.of(self.config)
        key = None if cache is None else entry_key(collator, examples)
        kept = cache.load(key, examples) if cache is not None and key is not None else None
        if kept is not None:
            return kept
        made: list[Encoded] = []
        for part in _in_parts(examples, split):
            made += round_trip.marked(collator, collator.tokenized(part), part)
        if cache is not None and key is not None:
            cache.save(key, made)
        return made

    def _losses(self, split: str, rows: Sequence[Encoded]) -> dict[str, int]:
        """Counts the texts that are not read back from their tokens, for `report`; keeps the first one of each kind."""
        found = {name: round_trip.first_lost(rows, name) for name in round_trip.TEXTS}
        self.lost[split] = {name: index for name, index in found.items() if index is not None}
        return {f"lost_{name}s": count for name, count in round_trip.counts(rows).items()}

    def example(self, split: str, index: int) -> Example:
        """An example of a split that was read, by its index."""
        examples = self._examples[FIRST_ROWS if split == "train" and self.config.streaming else split]
        return next(example for example in examples if example.index == index)

    def compare(self) -> None:
        """Counts, for `report`, empty responses, training rows that are there twice, and those of the other splits that
        were read whose prompt is trained on. Rows that were dropped do not count. Of streamed rows the first chunk is
        looked at.
        """
        training = self._examples[FIRST_ROWS] if self.config.streaming else self.examples("train")
        self._counts["train"] |= {"repeated": statistics.repeated(training), "empty": statistics.empty(training)}
        for split in self._counts.keys() - {"train"}:
            examples = self.examples(split)
            told = {"in_train": statistics.seen(examples, training), "empty": statistics.empty(examples)}
            self._counts[split] |= told

    def report(self) -> dict[str, dict[str, Any]]:
        """By split: rows, dropped rows, over-long prompts and responses, what was done with them, seconds it took,
        lengths in tokens before anything was cut; what parts of a mixture gave; what `compare` found, once called.
        """
        streamed = {} if self._stream is None else {"train": self._stream.told()}
        return {split: streamed.get(split, {}) | counts for split, counts in self._counts.items()}

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        """Batches by token budget, in seeded order; resumed where a loaded checkpoint stopped."""
        trainer = self.trainer
        done = None if trainer is None else lambda: int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)
        overfit = 0 if trainer is None else int(trainer.overfit_batches)
        self._loader = self._stream_loader(overfit, done) if self.config.streaming else self._plan_loader(overfit, done)
        if self._state:
            self._loader.load_state_dict(self._state)
            self._state = {}
        return self._loader

    def _stream_loader(self, overfit: int, done: Callable[[], int] | None) -> StreamLoader:
        if overfit:
            raise UserError(f"trainer.overfit_batches={overfit}: not with data.streaming; set data.streaming=false")
        rank, world = self._process()
        self._stream = self._row_stream(world)
        return StreamLoader(
            self._batches, self._stream, self.config.batch_tokens, self.seed, rank=rank, world_size=world, done=done
        )

    def _plan_loader(self, overfit: int, done: Callable[[], int] | None) -> TrainLoader:
        rows = self.encoded("train")
        rank, world = self._process()
        plan = BatchPlan(
            [(row.prompt_tokens, len(row.response)) for row in rows],
            self.config.batch_tokens,
            self.seed,
            rank=rank,
            world_size=world,
            limit=overfit or None,
        )
        return TrainLoader(lambda batches: self._batches(rows, batches), plan, done)

    def val_dataloader(self) -> DataLoader[Encoded]:
        """The validation split, or `val_rows` of it, in its own order; each process has rows of its own."""
        return self.eval_loader("validation", self.val_rows)

    def test_dataloader(self) -> DataLoader[Encoded]:
        """The test split in its own order; each process has rows of its own."""
        return self.eval_loader("test")

    def eval_loader(self, split: str, limit: int | None = None) -> DataLoader[Encoded]:
        """A split, or `limit` rows `drawn` from it, `eval_batch_size` rows a batch; this process' share of it."""
        rows = drawn(self.encoded(split), limit)
        rank, world = self._process()
        mine, size = list(range(rank, len(rows), world)), self.config.eval_batch_size
        return self._batches(rows, [mine[i : i + size] for i in range(0, len(mine), size)])

    def state_dict(self) -> dict[str, int]:
        """How far training has read (Lightning keeps a loader's own state only within an epoch)."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Taken up by the next `train_dataloader`."""
        self._state = dict(state_dict)

    def _process(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _batches(self, rows: Sequence[Encoded], batches: list[list[int]]) -> DataLoader[Encoded]:
        return DataLoader(
            _Rows(rows),
            batch_sampler=batches,
            collate_fn=self.collator,
            num_workers=self.config.workers,
            # of its own: each iterator draws a number, which would shift the dropout of a resumed run
            generator=torch.Generator().manual_seed(self.seed),
        )


class _Rate(ProgressColumn):
    def render(self, task: Job) -> Text:
        return Text(f"{task.speed or 0:,.0f} rows/s")


def _in_parts(examples: list[Example], split: str) -> Iterator[list[Example]]:
    """The examples by `PART`; a long list under a progress bar with rate and time left (on a terminal)."""
    console = Console(stderr=True)
    quiet = len(examples) < LONG or not console.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:
        shown = bar.add_task(f"tokenizing {split}", total=len(examples))
        for start in range(0, len(examples), PART):
            part = examples[start : start + PART]
            yield part
            bar.advance(shown, len(part))
