"""Training rows that are read while training: chunk after chunk, each shuffled and batched by itself, without an end.

A chunk is the next `buffer` rows of the corpus, read over and over, and a few more where the number of processes does
not divide it. What becomes of it depends on those rows, the seed and the place alone. So every process makes the same
batches and takes its share of them; and a training goes on exactly where it stopped from a handful of numbers: where
its chunk begins, and how many batches of it are done.
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
"""The rows of a pass from the row of that number on."""


@dataclass(frozen=True)
class Place:
    """How far a corpus was read: whole passes, and rows of the one that is under way."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True)
class Chunk:
    """Rows that are shuffled together, tokenized; where they begin; the same as examples, over-long ones among them."""

    place: Place
    rows: list[Encoded]
    examples: list[Example]


class RowStream:
    """An endless corpus in chunks.

    Args:
        read: gives a pass over the corpus.
        task, collator: make prompts and targets of rows, and token ids of those.
        buffer: rows of a chunk.
        world_size: processes; divides the rows of a chunk.
        label: names the corpus in a complaint.

    Attributes:
        counts: rows read, dropped, over-long prompts and over-long responses, since it was made.
    """

    def __init__(
        self, read: Read, task: Task, collator: Collator, *, buffer: int, world_size: int = 1, label: str = ""
    ) -> None:
        if collator.overlong is Overlong.error:
            raise UserError(
                "data.streaming=true: a row that is too long would end the training when it is reached; say what "
                "becomes of such rows: data.overlong=truncate or drop"
            )
        self._read, self._task, self._collator = read, task, collator
        self._buffer, self._world, self._label = buffer, world_size, label
        self.counts: Counter[str] = Counter()

    def chunks(self, start: Place) -> Iterator[Chunk]:
        """The chunks from a place on, at which an earlier one began or ended.

        Raises:
            UserError: a bad row, when it is reached; or a corpus without a row that can be used.
        """
        place, rows = start, self._read(start.row)
        while True:
            chunk = Chunk(place, [], [])
            while not chunk.rows or len(chunk.rows) % self._world or len(chunk.examples) < self._buffer:
                wanted = self._buffer - len(chunk.examples)
                if wanted <= 0:
                    wanted = self._world - len(chunk.rows) % self._world if chunk.rows else self._buffer
                part = [self._task.example(row, n) for n, row in enumerate(islice(rows, wanted), place.row)]
                place = Place(place.epoch, place.row + len(part))
                self._add(chunk, part)
                if len(part) < wanted:  # the end of the corpus
                    self._check_pass(place, chunk)
                    place = Place(place.epoch + 1)
                    rows = self._read(0)
            yield chunk

    def first_rows(self) -> Chunk:
        """The first chunk as far as it is of the first pass: rows that it holds again are not there twice. `counts`
        are of these rows."""
        chunk = next(self.chunks(Place()))
        rows = enumerate(pairwise(chunk.examples), 1)
        end = next((n for n, (one, after) in rows if after.index <= one.index), None)
        if end is None:
            return chunk
        first = Chunk(chunk.place, [], [])
        self.counts.clear()
        self._add(first, chunk.examples[:end])
        return first

    def report(self) -> dict[str, Any]:
        """What was read so far, as a data module reports it."""
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

    def _check_pass(self, place: Place, chunk: Chunk) -> None:
        if place.row == 0:
            raise UserError(f"{self._label}holds no rows")
        if not chunk.rows and len(chunk.examples) >= place.row:
            raise UserError(
                f"{self._label}no row is left of {place.row}, all were over-long and dropped; raise "
                "data.max_prompt_tokens or data.max_response_tokens"
            )


class StreamLoader:
    """Batches of this process without an end: each `iter` goes on where the last one stopped.

    Args:
        make: rows and the batches to make of them, as positions -> an iterable of `Batch`.
        stream: the rows.
        batch_tokens: padded tokens in a batch at most.
        seed: of the shuffles. rank, world_size: this process, and how many there are.
        done: batches trained on, if that is better known elsewhere (a batch in work is delivered, not done).
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
        # where the chunks begin of which batches may not be done yet: number of the first batch, and place
        self._begun: deque[tuple[int, Place]] = deque([(0, Place())])

    def __iter__(self) -> Iterator[Batch]:
        first, place = self._chunk_of(self.delivered)
        self._begun = deque([(first, place)])
        for chunk in self._stream.chunks(place):
            if chunk.place != place:
                self._begun.append((first, chunk.place))
            lengths = [(row.prompt_tokens, len(row.response)) for row in chunk.rows]
            seed = (self._seed, chunk.place.epoch, chunk.place.row)
            mine = shared_batches(lengths, self._batch_tokens, seed, self._world)[self._rank :: self._world]
            for batch in self._make(chunk.rows, mine[self.delivered - first :]):
                self.delivered += 1  # before the batch is used: a checkpoint written after it must not repeat it
                yield batch
            first += len(mine)

    def _chunk_of(self, number: int) -> tuple[int, Place]:
        """Where the chunk begins that holds a batch."""
        return [begun for begun in self._begun if begun[0] <= number][-1]

    def state_dict(self) -> dict[str, int]:
        """Plain numbers, for a checkpoint."""
        done = self.delivered if self._done is None else self._done()
        first, place = self._chunk_of(done)
        while self._begun[0][0] < first:
            self._begun.popleft()
        return {"batches_done": done, "chunk_began": first, **asdict(place), "processes": self._world}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from that state.

        Raises:
            UserError: it comes from a training that did not stream, or from another number of processes.
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
        self._begun = deque([(state["chunk_began"], Place(state["epoch"], state["row"]))])
