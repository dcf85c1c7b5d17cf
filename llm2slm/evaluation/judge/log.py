"""The judge log: all replies of a judge on disk, and the job that requests the missing ones.

A line of the log is one reply, with the hash of its question (`verdicts.key`) as key; the order of lines has no
meaning. A reply is flushed to disk before the next one is processed, so that an interrupted job loses only the replies
in flight, and the next job requests only what is missing. If a reply of an endpoint holds no verdict, a second one is
requested; after that the question stays without a verdict.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from llm2slm.atomic import WriteLock, writing
from llm2slm.evaluation.judge.client import JudgeClient, Refused, Reply, Stopped
from llm2slm.types import UserError

MAX_REFUSALS = 5
"""After this many refusals without any reply the job ends: the cause is common to all questions."""
ReplyParser = Callable[[str], object | None]
"""Reply text -> verdict; None if the text holds none."""


@dataclasses.dataclass(frozen=True)
class Record(Reply):
    """A reply on disk. place: location of the judge (a saved name). at: time of arrival, ISO 8601."""

    place: str = ""
    at: str = ""


class JudgeLog:
    """The file of replies, locked against other jobs while open: `with JudgeLog(path) as log`.

    Attributes:
        replies: the replies on disk by the key of their question, oldest first.

    Raises:
        UserError: the file cannot be opened, another job has it open, or a line is not a reply.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, list[Record]] = {}
        made = not path.parent.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); give another out") from None
        self._made_folder = made
        self._lock = WriteLock(path, "give another out")
        try:
            with suppress(OSError):  # a file system without locks
                self._lock.acquire()
            self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and releases the lock; removes a file without a reply, and its folder if it was created."""
        empty = os.fstat(self._file).st_size == 0
        os.close(self._file)
        if empty:
            self.path.unlink(missing_ok=True)
        self._lock.release()
        if empty and self._made_folder:
            with suppress(OSError):  # it has other files
                self.path.parent.rmdir()

    def append(self, key: str, reply: Reply, location: str) -> None:
        """Writes a reply to disk."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        record = Record(**{**dataclasses.asdict(reply), "seconds": round(reply.seconds, 3)}, place=location, at=at)
        line = json.dumps({"key": key, **dataclasses.asdict(record)}).encode() + b"\n"
        with writing(self.path):
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        self.replies.setdefault(key, []).append(record)

    def _load(self) -> None:
        """Reads the replies; removes an incomplete last line, which an interrupted job left."""
        content = self.path.read_bytes()
        kept = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(kept.split(b"\n")[:-1], 1):
            try:
                values = json.loads(line)
                key = values.pop("key")
                self.replies.setdefault(key, []).append(Record(**values))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise UserError(
                    f"{self.path}, line {number}: not a reply of a judge; remove the line, or the file"
                ) from None
        if kept != content:
            os.ftruncate(self._file, len(kept))


class Event(NamedTuple):
    """The result of a request: a reply, a refusal, an error that ends the job, or None: this worker has ended."""

    key: str
    result: Reply | Exception | None


def verdict(reply: Reply, parse: ReplyParser) -> object | None:
    """The verdict of a reply; None if it holds none."""
    return None if reply.text is None else parse(reply.text)


def missing_replies(
    prompts: Mapping[str, str], parse: ReplyParser, log: JudgeLog, attempts: int, again: bool
) -> dict[str, int]:
    """Questions without a verdict on disk, and the number of replies to request for each at most.

    Args:
        prompts: by key of the question.
        attempts: maximum number of replies for each question, those on disk included.
        again: request as many once more for questions that have reached the maximum.
    """
    missing = {}
    for key in prompts:
        known = log.replies.get(key, [])
        if not any(verdict(record, parse) is not None for record in known):
            left = attempts - len(known)
            missing[key] = attempts if left <= 0 and again else left
    return {key: left for key, left in missing.items() if left > 0}


def request_replies(
    judge: JudgeClient,
    prompts: Mapping[str, str],
    parse: ReplyParser,
    log: JudgeLog,
    *,
    workers: int = 0,
    again: bool = False,
    on_reply: Callable[[Reply, bool], None] | None = None,
) -> dict[str, str]:
    """Requests the missing replies. Returns the reason for each refused question, by key.

    Args:
        prompts: by key of the question.
        parse: reply text -> verdict.
        workers: number of concurrent requests, each in a thread. 0: sequential, in this thread.
        again: also request replies for questions whose replies so far hold no verdict.
        on_reply: called with each reply once it is on disk, and whether its question is finished.

    Raises:
        UserError: the judge fails, or refuses every question. Replies received before are on disk.
    """
    left = missing_replies(prompts, parse, log, judge.attempts, again)
    answered = any(key in log.replies for key in prompts)
    refused: dict[str, str] = {}
    failure: Exception | None = None
    job = _Requests(judge, prompts, parse)
    events = job.in_threads(left, workers) if workers else job.sequential(left)
    try:
        for key, result in events:
            if isinstance(result, Reply):
                answered = True
                log.append(key, result, judge.location)
                left[key] -= 1
                if on_reply is not None:
                    on_reply(result, left[key] == 0 or verdict(result, parse) is not None)
            elif isinstance(result, Refused):
                refused[key] = str(result)
                if not answered and failure is None and len(refused) >= min(MAX_REFUSALS, len(prompts)):
                    failure = UserError(f"{judge.location}: refuses every question: {result}")
                    job.stop.set()
            elif isinstance(result, Exception):
                failure = failure or result
                job.stop.set()  # replies in flight are paid for: they are awaited and logged
    finally:
        job.stop.set()
        events.close()
    if failure is not None:
        raise failure
    return refused


class _Requests:
    """Requests to a judge, until `stop` is set."""

    def __init__(self, judge: JudgeClient, prompts: Mapping[str, str], parse: ReplyParser) -> None:
        self.judge, self.prompts, self.parse = judge, prompts, parse
        self.stop = threading.Event()

    def sequential(self, left: Mapping[str, int]) -> Generator[Event]:
        """Events in the order of the questions."""
        for key, attempts in list(left.items()):
            yield from self.events_of(key, attempts)

    def in_threads(self, left: Mapping[str, int], workers: int) -> Generator[Event]:
        """Events of several workers, in order of arrival. A worker continues only after one more event was processed.
        The threads are daemons: an interrupted job waits for none."""
        waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        for item in left.items():
            waiting.put(item)
        arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()
        processed = threading.Semaphore(0)

        def work() -> None:
            while not self.stop.is_set():
                try:
                    key, attempts = waiting.get_nowait()
                except queue.Empty:
                    break
                for event in self.events_of(key, attempts):
                    arrived.put(event)
                    processed.acquire()
            arrived.put(Event("", None))

        running = started = min(workers, len(left))
        for _ in range(started):
            threading.Thread(target=work, daemon=True).start()
        try:
            while running:
                event = arrived.get()
                if event.result is None:
                    running -= 1
                else:
                    yield event
                    processed.release()
        finally:
            processed.release(max(started, 1))  # lets the remaining workers end

    def events_of(self, key: str, attempts: int) -> Iterator[Event]:
        """Requests replies to one question until one holds a verdict."""
        for _ in range(attempts):
            if self.stop.is_set():
                return
            try:
                reply = self.judge.complete(self.prompts[key], self.stop)
                done = verdict(reply, self.parse) is not None
            except Stopped:
                return
            except Exception as error:  # of any kind: raised again in the job's own thread
                yield Event(key, error)
                return
            yield Event(key, reply)
            if done:
                return
