"""The file of replies and the job that fills it: cut at every byte, interrupted, refused, concurrent."""

from __future__ import annotations

import json
import threading
from collections import Counter

import pytest

from llm2slm.evaluation.judge.client import Refused, Reply, Stopped
from llm2slm.evaluation.judge.log import JudgeLog, missing_replies, request_replies
from llm2slm.evaluation.judge.verdicts import rating
from llm2slm.types import UserError

REPLIES = {
    "a": Reply("[[7]] \u00e4\u2028\n", prompt_tokens=3),
    "b": Reply(None, "not JSON"),
    "c": Reply("[[2]]", requests=4),
}


class TableClient:
    """A judge client with a table: for each prompt a list of replies or exceptions, in order."""

    location, attempts = "here", 2

    def __init__(self, table):
        self.table, self.asked, self.lock = table, Counter(), threading.Lock()

    def complete(self, prompt, stop):
        with self.lock:
            said = self.table[prompt][min(self.asked[prompt], len(self.table[prompt]) - 1)]
            self.asked[prompt] += 1
        if isinstance(said, Exception):
            raise said
        return Reply(said, requests=1)


def filled(path):
    with JudgeLog(path) as log:
        for key, reply in REPLIES.items():
            log.append(key, reply, "here")
    return path.read_bytes()


def held(path):
    with JudgeLog(path) as log:
        return {key: [(r.text, r.fault, r.prompt_tokens, r.requests, r.place) for r in found]
                for key, found in log.replies.items()}  # fmt: skip


WHOLE = {
    "a": [("[[7]] \u00e4\u2028\n", "", 3, 1, "here")],
    "b": [(None, "not JSON", None, 1, "here")],
    "c": [("[[2]]", "", None, 4, "here")],
}


def test_a_file_cut_at_any_byte_is_completed(tmp_path):
    path = tmp_path / "replies.jsonl"
    content = filled(path)
    assert content.count(b"\n") == 3
    assert held(path) == WHOLE
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        lines = content[:end].count(b"\n")
        wanted = dict(list(WHOLE.items())[:lines])
        with JudgeLog(path) as log:
            assert list(log.replies) == list(wanted)
            for key in list(REPLIES)[lines:]:
                log.append(key, REPLIES[key], "here")
        assert held(path) == WHOLE
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "line", ["half", "[1]", "{}", '{"key": "a"}', '{"key": "a", "text": "b", "more": 1}', "\udcff", ""]
)
def test_an_invalid_line_is_reported_and_kept(tmp_path, line):
    path = tmp_path / "replies.jsonl"
    content = filled(path).splitlines(keepends=True)
    content.insert(1, line.encode("utf-8", "surrogateescape") + b"\n")
    path.write_bytes(b"".join(content))
    with pytest.raises(UserError, match=r"replies.jsonl, line 2: not a reply of a judge; remove the line"):
        JudgeLog(path)
    assert path.read_bytes() == b"".join(content)


def test_a_second_concurrent_job_is_refused(tmp_path):
    path = tmp_path / "replies.jsonl"
    with JudgeLog(path) as log:
        log.append("a", REPLIES["a"], "here")
        with pytest.raises(UserError, match="another process is writing it; wait, or give another out"):
            JudgeLog(path)
        log.append("b", REPLIES["b"], "here")
    assert list(held(path)) == ["a", "b"]


def test_a_path_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"replies.jsonl: cannot be written \(.*\); give another out"):
        JudgeLog(tmp_path / "file" / "replies.jsonl")
    (tmp_path / "replies.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        JudgeLog(tmp_path / "replies.jsonl")


WORKERS = pytest.mark.parametrize("workers", [0, 1, 3, 50])
TABLE = {
    "good": ["[[7]]"],
    "late": ["well", "[[3]]"],
    "never": ["well", None],
    "more": ["[[1]] or [[2]]", "[[11]]", "[[9]]"],
    **{f"p{n}": [f"[[{n % 10 + 1}]]"] for n in range(20)},
}
QUESTIONS = {f"k-{prompt}": prompt for prompt in TABLE}


@WORKERS
def test_a_reply_without_verdict_is_requested_once_more_and_then_left_open(tmp_path, workers):
    judge, seen = TableClient(TABLE), []
    with JudgeLog(tmp_path / "r") as log:
        refused = request_replies(
            judge, QUESTIONS, rating, log, workers=workers, on_reply=lambda r, done: seen.append(done)
        )
        assert refused == {}
        assert {key: [r.text for r in found] for key, found in log.replies.items()} == {
            f"k-{prompt}": said[:2] for prompt, said in TABLE.items()
        }
        assert judge.asked == {prompt: len(said[:2]) for prompt, said in TABLE.items()}
        assert (seen.count(True), seen.count(False)) == (24, 3)
        assert missing_replies(QUESTIONS, rating, log, 2, again=False) == {}
        request_replies(judge, QUESTIONS, rating, log, workers=workers)
        assert sum(judge.asked.values()) == 27  # no repeated request
        assert missing_replies(QUESTIONS, rating, log, 2, again=True) == {"k-never": 2, "k-more": 2}
        request_replies(judge, QUESTIONS, rating, log, workers=workers, again=True)
        assert (judge.asked["never"], judge.asked["more"], sum(judge.asked.values())) == (4, 3, 30)
    assert len((tmp_path / "r").read_text().splitlines()) == 30


def test_after_an_interruption_only_the_second_reply_is_requested(tmp_path):
    judge = TableClient(TABLE)
    with JudgeLog(tmp_path / "r") as log:
        log.append("k-never", Reply("well"), "here")
        request_replies(judge, {"k-never": "never"}, rating, log)
    assert judge.asked == {"never": 1}


@WORKERS
def test_a_failure_ends_the_job_and_loses_no_reply(tmp_path, workers):
    table = TABLE | {"p7": [UserError("the server has gone")]}
    judge = TableClient(table)
    with JudgeLog(tmp_path / "r") as log:
        with pytest.raises(UserError, match="the server has gone"):
            request_replies(judge, QUESTIONS, rating, log, workers=workers)
        kept = {key: len(found) for key, found in log.replies.items()}
        assert {f"k-{prompt}": count for prompt, count in judge.asked.items() if prompt != "p7"} == kept
        mended = TableClient(TABLE)
        request_replies(mended, QUESTIONS, rating, log, workers=workers)
        assert mended.asked.keys().isdisjoint(
            prompt for prompt in judge.asked if prompt not in ("p7", "late", "never", "more")
        )
        assert len(log.replies) == 24


@WORKERS
def test_an_internal_error_is_raised_unchanged(tmp_path, workers):
    with JudgeLog(tmp_path / "r") as log, pytest.raises(ZeroDivisionError):
        request_replies(TableClient({"a": [ZeroDivisionError()]}), {"a": "a"}, rating, log, workers=workers)
    with JudgeLog(tmp_path / "r") as log, pytest.raises(ZeroDivisionError):
        request_replies(TableClient({"a": ["x"]}), {"a": "a"}, lambda text: 1 / 0, log, workers=workers)


@WORKERS
def test_single_refused_questions_are_returned(tmp_path, workers):
    table = TABLE | {"p3": [Refused("too long")], "p4": [Refused("too long, too")]}
    judge = TableClient(table)
    with JudgeLog(tmp_path / "r") as log:
        assert request_replies(judge, QUESTIONS, rating, log, workers=workers) == {
            "k-p3": "too long",
            "k-p4": "too long, too",
        }
        assert len(log.replies) == 22
        again = request_replies(judge, {"k-p3": "p3", "k-good": "good"}, rating, log, workers=workers)
        assert again == {"k-p3": "too long"}  # the judge is known to accept other questions


@WORKERS
def test_a_judge_that_refuses_all_questions_ends_the_job(tmp_path, workers):
    judge = TableClient({f"p{n}": [Refused("HTTP 400: no such parameter")] for n in range(1000)})
    with JudgeLog(tmp_path / "r") as log, pytest.raises(UserError, match=r"^here: refuses every question: HTTP 400"):
        request_replies(judge, {prompt: prompt for prompt in judge.table}, rating, log, workers=workers)
    assert 5 <= len(judge.asked) < 1000
    few = TableClient({"a": [Refused("no")], "b": [Refused("no")]})
    with JudgeLog(tmp_path / "r") as log, pytest.raises(UserError, match="refuses every question"):
        request_replies(few, {"a": "a", "b": "b"}, rating, log, workers=workers)


def test_a_stopped_worker_reports_nothing(tmp_path):
    with JudgeLog(tmp_path / "r") as log:
        assert request_replies(TableClient({"a": [Stopped()]}), {"a": "a"}, rating, log, workers=1) == {}
        assert log.replies == {}


def test_a_reply_is_on_disk_before_the_next_one_is_handled(tmp_path):
    seen = []

    def look(reply, done):
        lines = (tmp_path / "r").read_bytes().splitlines()
        seen.append((len(lines), json.loads(lines[-1])["text"] == reply.text))

    with JudgeLog(tmp_path / "r") as log:
        request_replies(TableClient(TABLE), QUESTIONS, rating, log, workers=3, on_reply=look)
    assert seen == [(n, True) for n in range(1, 28)]
