"""Streaming of training rows: endless passes over a corpus in chunks, each shuffled and batched separately.

A chunk is the next `buffer` rows of the corpus, and a few more until the number of processes divides it. Its batches
depend only on these rows, the seed and the position. Every process therefore makes the same batches and takes its
share, and a training resumes exactly from a few numbers: the position of its chunk, and its number of finished batches.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from typing import Any

from llm2slm.data.batches import shared_batches
from llm2slm.data.collate import Collator, Encoded
from llm2slm.data.tasks import Task
from llm2slm.types import Batch, Example, Overlong, UserError

Read = Callable[[int], Iterator[dict[str, str]]]
"""Number of a row -> the rows of one pass from this row on."""


@dataclass(frozen=True)
class Position:
    """A position in a corpus: number of complete passes, and number of rows in the current pass."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True)
class Chunk:
    """Rows that are shuffled together: first position, tokenized rows, and examples (including over-long ones)."""

    position: Position
    rows: list[Encoded]
    examples: list[Example]


class RowStream:
    """An endless corpus in chunks.

    Args:
        read: starts a pass over the corpus.
        task, collator: make prompts and targets of rows, and tokenize them.
        buffer: number of rows of a chunk.
        world_size: number of processes; divides the number of rows of a chunk.
        label: name of the corpus in messages.

    Attributes:
        counts: numbers of rows read, dropped rows, over-long prompts and over-long responses so far.
    """

    def __init__(
        self, read: Read, task: Task, collator: Collator, *, buffer: int, world_size: int = 1, label: str = ""
    ) -> None:
        if collator.overlong is Overlong.error:
            raise UserError(
                "data.streaming=true: an over-long row would end the training when it is read; set "
                "data.overlong=truncate or drop"
            )
        self._read, self._task, self._collator = read, task, collator
        self._buffer, self._world, self._label = buffer, world_size, label
        self.counts: Counter[str] = Counter()

    def chunks(self, start: Position) -> Iterator[Chunk]:
        """The chunks from a position on at which a chunk began or ended.

        Raises:
            UserError: an invalid row, when it is read; or the corpus has no usable row.
        """
        position, rows = start, self._read(start.row)
        while True:
            chunk = Chunk(position, [], [])
            while not chunk.rows or len(chunk.rows) % self._world or len(chunk.examples) < self._buffer:
                wanted = self._buffer - len(chunk.examples)
                if wanted <= 0:
                    wanted = self._world - len(chunk.rows) % self._world if chunk.rows else self._buffer
                part = [self._task.example(row, n) for n, row in enumerate(islice(rows, wanted), position.row)]
                position = Position(position.epoch, position.row + len(part))
                self._add(chunk, part)
                if len(part) < wanted:  # the end of the corpus
                    self._check_pass(position, chunk)
                    position = Position(position.epoch + 1)
                    rows = self._read(0)
            yield chunk

    def first_rows(self) -> Chunk:
        """The part of the first chunk in the first pass: no row occurs twice. `counts` are of these rows."""
        chunk = next(self.chunks(Position()))
        rows = enumerate(pairwise(chunk.examples), 1)
        end = next((n for n, (one, after) in rows if after.index <= one.index), None)
        if end is None:
            return chunk
        first = Chunk(chunk.position, [], [])
        self.counts.clear()
        self._add(first, chunk.examples[:end])
        return first

    def report(self) -> dict[str, Any]:
        """The counts so far, in the form of `TokenizedCorpus.report`."""
        over = {f"overlong_{kind}s": self.counts[kind] for kind in ("prompt", "response")}
        read = {"rows": self.counts["rows"], "dropped": self.counts["dropped"]}
        return read | over | {"overlong": str(self._collator.overlong), "streamed": True}

    def _add(self, chunk: Chunk, part: list[Example]) -> None:
        before = Counter(self._collator.counts)
        kept = self._collator.encode(part, self._label)
        over, used = self._collator.counts - before, {row.index for row in kept}
        self.counts.update(
            rows=len(part), dropped=len(part) - len(used), prompt=over["prompt"], response=over["response"]
        )
        chunk.rows.extend(kept)
        chunk.examples.extend(part)

    def _check_pass(self, position: Position, chunk: Chunk) -> None:
        if position.row == 0:
            raise UserError(f"{self._label}holds no rows")
        if not chunk.rows and len(chunk.examples) >= position.row:
            raise UserError(
                f"{self._label}no row is left of {position.row}, all were over-long and dropped; raise "
                "data.max_prompt_tokens or data.max_response_tokens"
            )


class StreamLoader:
    """Endless batches for this process: each `iter` continues after the last batch.

    Args:
        make: rows, and positions of the rows of each batch -> an iterable of `Batch`.
        stream: the rows.
        batch_tokens: maximum number of tokens in a batch, padding included.
        seed: of the shuffles. rank, world_size: number of this process, and number of processes.
        done: number of batches trained on. Default: the number of batches delivered, which includes one in progress.
    """

    def __init__(
        self,
        make: Callable[[Sequence[Encoded], list[list[int]]], Any],
        stream: RowStream,
        batch_tokens: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        done: Callable[[], int] | None = None,
    ) -> None:
        self._make, self._stream, self._batch_tokens, self._seed = make, stream, batch_tokens, seed
        self._rank, self._world, self._done = rank, world_size, done
        self.delivered = 0
        # (number of the first batch, position) of each chunk that may have unfinished batches
        self._begun: deque[tuple[int, Position]] = deque([(0, Position())])

    def __iter__(self) -> Iterator[Batch]:
        first, position = self._chunk_of(self.delivered)
        self._begun = deque([(first, position)])
        for chunk in self._stream.chunks(position):
            if chunk.position != position:
                self._begun.append((first, chunk.position))
            lengths = [(row.prompt_tokens, len(row.response)) for row in chunk.rows]
            seed = (self._seed, chunk.position.epoch, chunk.position.row)
            mine = shared_batches(lengths, self._batch_tokens, seed, self._world)[self._rank :: self._world]
            for batch in self._make(chunk.rows, mine[self.delivered - first :]):
                self.delivered += 1  # before the batch is used: a checkpoint written after it must not repeat it
                yield batch
            first += len(mine)

    def _chunk_of(self, number: int) -> tuple[int, Position]:
        """Number of the first batch, and position, of the chunk that holds a batch."""
        return [begun for begun in self._begun if begun[0] <= number][-1]

    def state_dict(self) -> dict[str, int]:
        """The position as plain numbers, for a checkpoint."""
        done = self.delivered if self._done is None else self._done()
        first, position = self._chunk_of(done)
        while self._begun[0][0] < first:
            self._begun.popleft()
        return {"batches_done": done, "chunk_began": first, **asdict(position), "processes": self._world}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the position.

        Raises:
            UserError: the state belongs to a training without streaming, or with another number of processes.
        """
        if "chunk_began" not in state:
            raise UserError(
                "the checkpoint is of a training without data.streaming; to resume, set data.streaming=false"
            )
        if state["processes"] != self._world:
            raise UserError(
                f"the checkpoint is of {state['processes']} processes, this run has {self._world}; to resume, use the "
                "same trainer.devices"
            )
        self.delivered = state["batches_done"]
        self._begun = deque([(state["chunk_began"], Position(state["epoch"], state["row"]))])
