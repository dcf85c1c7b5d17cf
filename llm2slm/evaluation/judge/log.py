"""Questions to a judge and its replies: asked side by side, on disk one by one, never asked again once they are there.

Replies arrive in no order, so their file has none: each line is one reply, named by the hash of its question
(`judge.key`), and is on disk before the next is waited for. Whoever ends a job at any moment loses the replies that
were on their way; a job that is begun again asks for what is missing. An endpoint is asked a second time where its
reply holds no verdict, and then not any more: the verdict stays open.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from llm2slm.atomic import writing
from llm2slm.evaluation.judge.client import Judge, Refused, Reply, Stopped
from llm2slm.types import UserError

try:
    import fcntl
except ImportError:  # not Unix: two jobs in one folder are the user's own affair
    fcntl = None  # type: ignore[assignment]

ENOUGH_REFUSALS = 5
"""So many questions refused and none answered: the fault is in what all of them have in common."""
ReplyParser = Callable[[str], object | None]
"""What a reply says, None for no verdict."""


@dataclasses.dataclass(frozen=True)
class Record(Reply):
    """A reply on disk: when it came, and from where."""

    place: str = ""
    at: str = ""


class ReplyLog:
    """The file of replies, open for one job: `with ReplyLog(path) as log`.

    Attributes:
        replies: those on disk, by the key of their question, oldest first.

    Raises:
        UserError: it cannot be opened, another job has it open, or a line is no reply.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, list[Record]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); give another out") from None
        try:
            self._lock()
            self._load()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)  # and with it the lock

    def append(self, key: str, reply: Reply, place: str) -> Record:
        """Puts a reply on the disk."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        record = Record(**{**dataclasses.asdict(reply), "seconds": round(reply.seconds, 3)}, place=place, at=at)
        line = json.dumps({"key": key, **dataclasses.asdict(record)}).encode() + b"\n"
        with writing(self.path):
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        self.replies.setdefault(key, []).append(record)
        return record

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: another judge is writing there; wait for it, or give another out"
                ) from None
            except OSError:  # a file system without locks
                return

    def _load(self) -> None:
        """Reads what is there, and takes off the half of a line that a job left which was ended while it wrote."""
        content = self.path.read_bytes()
        kept = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(kept.split(b"\n")[:-1], 1):
            try:
                values = json.loads(line)
                key = values.pop("key")
                self.replies.setdefault(key, []).append(Record(**values))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise UserError(
                    f"{self.path}, line {number}: no reply of a judge; remove the line, or the file"
                ) from None
        if kept != content:
            os.ftruncate(self._file, len(kept))


class Event(NamedTuple):
    """What happened to a question: a reply, a refusal, a failure of the job, or (None) no more of a worker's."""

    key: str
    what: Reply | Exception | None


def verdict(reply: Reply, read: ReplyParser) -> object | None:
    """What a reply says, None where it says nothing that can be read."""
    return None if reply.text is None else read(reply.text)


def open_questions(
    questions: Mapping[str, str], read: ReplyParser, log: ReplyLog, tries: int, again: bool
) -> dict[str, int]:
    """Questions without a verdict on disk, and how often each is to be asked at most.

    Args:
        questions: prompts by key.
        tries: replies to each, those on disk included.
        again: as many once more to those that have had theirs.
    """
    found = {}
    for key in questions:
        known = log.replies.get(key, [])
        if not any(verdict(record, read) is not None for record in known):
            left = tries - len(known)
            found[key] = tries if left <= 0 and again else left
    return {key: left for key, left in found.items() if left > 0}


def ask_all(
    judge: Judge,
    questions: Mapping[str, str],
    read: ReplyParser,
    log: ReplyLog,
    *,
    workers: int = 0,
    again: bool = False,
    on_reply: Callable[[Reply, bool], None] | None = None,
) -> dict[str, str]:
    """Asks what is not answered yet. Returns why the questions that the judge refused were refused, by key.

    Args:
        questions: prompts by key.
        read: what a reply says.
        workers: questions under way at once, each in a thread. 0: one after the other, in this one.
        again: also ask those whose replies so far held no verdict.
        on_reply: called with each reply once it is on disk, and whether its question is done with.

    Raises:
        UserError: the judge cannot be asked any more, or refuses every question. What came until then is on disk.
    """
    left = open_questions(questions, read, log, judge.tries, again)
    answered = any(key in log.replies for key in questions)
    refused: dict[str, str] = {}
    failure: Exception | None = None
    job = _Asking(judge, questions, read)
    events = job.in_threads(left, workers) if workers else job.one_by_one(left)
    try:
        for key, what in events:
            if isinstance(what, Reply):
                answered = True
                log.append(key, what, judge.place)
                left[key] -= 1
                if on_reply is not None:
                    on_reply(what, left[key] == 0 or verdict(what, read) is not None)
            elif isinstance(what, Refused):
                refused[key] = str(what)
                if not answered and failure is None and len(refused) >= min(ENOUGH_REFUSALS, len(questions)):
                    failure = UserError(f"{judge.place}: refuses every question: {what}")
                    job.stop.set()
            elif isinstance(what, Exception):
                failure = failure or what
                job.stop.set()  # replies under way are paid for: they are waited for
    finally:
        job.stop.set()
        events.close()
    if failure is not None:
        raise failure
    return refused


class _Asking:
    """Questions on their way to a judge, until `stop` is set."""

    def __init__(self, judge: Judge, questions: Mapping[str, str], read: ReplyParser) -> None:
        self.judge, self.questions, self.read = judge, questions, read
        self.stop = threading.Event()

    def one_by_one(self, left: Mapping[str, int]) -> Generator[Event]:
        """Events in the order of the questions."""
        for key, tries in list(left.items()):
            yield from self.asked(key, tries)

    def in_threads(self, left: Mapping[str, int], workers: int) -> Generator[Event]:
        """Events of several workers, as they come: none of them goes on before one more event has been dealt with. The
        threads end with the process: an interrupted job waits for none."""
        waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        for item in left.items():
            waiting.put(item)
        happened: queue.SimpleQueue[Event] = queue.SimpleQueue()
        dealt_with = threading.Semaphore(0)

        def work() -> None:
            while not self.stop.is_set():
                try:
                    key, tries = waiting.get_nowait()
                except queue.Empty:
                    break
                for event in self.asked(key, tries):
                    happened.put(event)
                    dealt_with.acquire()
            happened.put(Event("", None))

        running = started = min(workers, len(left))
        for _ in range(started):
            threading.Thread(target=work, daemon=True).start()
        try:
            while running:
                event = happened.get()
                if event.what is None:
                    running -= 1
                else:
                    yield event
                    dealt_with.release()
        finally:
            dealt_with.release(max(started, 1))  # whoever is left may end

    def asked(self, key: str, tries: int) -> Iterator[Event]:
        """One question, until there is a verdict."""
        for _ in range(tries):
            if self.stop.is_set():
                return
            try:
                reply = self.judge.ask(self.questions[key], self.stop)
                done = verdict(reply, self.read) is not None
            except Stopped:
                return
            except Exception as error:  # of whatever kind: the job's own thread raises it again
                yield Event(key, error)
                return
            yield Event(key, reply)
            if done:
                return
