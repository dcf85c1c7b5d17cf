"""`llm2slm judge`: with an endpoint that judges by a rule, killed at any moment, with mistakes; with a local model."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from chat_server import ChatServer, Step
from command_line import ROOT, files_of, mistake, without_next
from sampling import representatives

from llm2slm.cli import main
from llm2slm.commands.judge import endpoint_client, run
from llm2slm.commands.judge_rows import read_rows
from llm2slm.config import JudgeConfig
from llm2slm.evaluation.judge.verdicts import key, questions
from llm2slm.types import UserError

KEY = "sk-a-key-that-nobody-may-see"
SMALL = ["wait=0.01", "retries=2", "timeout=5"]


def write_run(folder: Path, answer: str, rows: int = 12, **more: str) -> Path:
    """A run directory with answers to the given number of questions."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"source": f"question {n}?", "target": f"right {n}" if n % 3 else " ", "prediction": f"{answer} {n}", **more}
        for n in range(rows)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty folder with two runs, A and B."""
    monkeypatch.chdir(tmp_path)
    for name in "AB":
        write_run(tmp_path / name, name)
    return tmp_path


@pytest.fixture
def judge(workspace, chat, capsys):
    """Runs the command; returns its exit code and output."""

    def called(*arguments):
        code = main(["judge", f"endpoint={chat.url}", "model=m", *SMALL, *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return called


def result(out="outputs/judge"):
    return json.loads((Path(out) / "judge.json").read_text("utf-8"))


def lines(name, out="outputs/judge"):
    return [json.loads(line) for line in (Path(out) / name).read_bytes().splitlines()]


# Files and results


def by_row(answers, n):
    """The verdict on a row by a rule of the tests, independent of the wording of the prompt."""
    return answers[n % len(answers)]


def number(prompt: str) -> int:
    [found] = set(re.findall(r"question (\d+)\?", prompt))
    return int(found)


def test_the_ratings_of_a_run_are_recorded(judge, chat):
    given = [7, 3, 10, 5]
    chat.say = lambda prompt: f"Well. Rating: [[{by_row(given, number(prompt))}]]"
    code, shown, _ = judge("runs=[A]", "price_in=1.5", "price_out=10")
    assert code == 0
    found = result()
    assert found["ratings"]["mean"]["value"] == pytest.approx(6.25)
    assert found["ratings"]["ratings"] == {"3": 3, "5": 3, "7": 3, "10": 3}
    assert (found["ratings"]["rows"], found["ratings"]["judged"]) == (12, 12)
    low, high = found["ratings"]["mean"]["low"], found["ratings"]["mean"]["high"]
    assert 3 < low < 6.25 < high < 10
    assert found["lost"] == [2, 6, 10, 4, 8, 12]  # rows from 1: those rated 3, then those rated 5
    verdicts = lines("verdicts.jsonl")
    assert [(v["row"], v["order"], v["verdict"]) for v in verdicts] == [
        (n + 1, "A", float(by_row(given, n))) for n in range(12)
    ]
    assert verdicts[1]["reply"] == "Well. Rating: [[3]]" and verdicts[1]["why"] is None
    lost = lines("lost.jsonl")
    assert [line["row"] for line in lost] == found["lost"]
    assert (lost[0]["source"], lost[0]["target"], lost[0]["predictions"]) == ("question 1?", "right 1", ["A 1"])
    assert lost[0]["verdicts"] == [{"order": "A", "verdict": 3.0, "reply": "Well. Rating: [[3]]"}]
    asked = found["asked"]
    assert {name: asked[name] for name in asked if "seconds" not in name} == {
        "questions": 12, "distinct": 12, "replies": 12, "requests": 12, "prompt_tokens": 1200, "reply_tokens": 120,
        "replies_without_usage": 0, "cost": pytest.approx((1200 * 1.5 + 120 * 10) / 1e6),
        "replies_without_verdict": 0, "parse_failures": 0, "refused": 0,
    }  # fmt: skip
    assert "6.25" in shown and "1,200" in shown and "row 2: question 1?" in shown
    assert shown.endswith("outputs/judge/judge.json\n")


def test_the_judge_is_prompted_with_the_question_and_its_prefix(judge, chat, workspace):
    asked = "<<< The question of the user >>>\n{}question 3?\n<<< End >>>"
    chat.say = lambda _: "Rating: [[5]]"
    assert judge("runs=[A]")[0] == 0
    assert any(asked.format("") in prompt for prompt in chat.prompts[:12])  # the run records no task
    task = {"name": "translation", "prefix": None}
    (workspace / "A" / "config.yaml").write_text(
        json.dumps({"task": task, "data": {"name": "multi30k", "target": "fr"}})
    )
    assert judge("runs=[A]", "out=told")[0] == 0
    assert any(asked.format("translate English to French: ") in prompt for prompt in chat.prompts[12:24])
    assert result("told")["prompts"]["instruction"] == "translate English to French: "
    assert judge("runs=[A]", "out=own", "instruction='Say it in French: '")[0] == 0
    assert any(asked.format("Say it in French: ") in prompt for prompt in chat.prompts[24:])
    assert len(chat.prompts) == 36


PAIR = {0: "AB", 1: "AB", 2: "BA", 3: "AA", 4: "CC", 5: "CA"}
"""Row modulo six -> verdicts with A shown first, and with B shown first."""


def pairwise(prompt):
    first = re.search(r"<<< The answer of assistant A >>>\n(\w)", prompt)[1]
    return f"So: [[{PAIR[number(prompt) % 6]['AB'.index(first)]}]]"


def test_two_runs_are_compared_in_both_orders(judge, chat):
    chat.say = pairwise
    code, shown, _ = judge("runs=A,B")
    assert code == 0
    pairs = result()["pairs"]
    assert [pairs[name]["count"] for name in ("wins", "ties", "losses")] == [4, 6, 2]
    assert pairs["wins"]["value"] == pytest.approx(1 / 3)
    assert pairs["wins"]["low"] < 1 / 3 < pairs["wins"]["high"]
    assert pairs["sign_test"] == {"p": pytest.approx(44 / 64), "decided": 6}  # 2 * (1 + 6 + 15) / 64
    assert pairs["inconsistent"] == {"count": 4, "share": pytest.approx(1 / 3), "first": 2, "second": 0, "half": 2}
    assert [pairs["position"][name]["count"] for name in ("first", "second", "tie")] == [12, 6, 6]
    assert result()["lost"] == [3, 9, 6, 12]
    verdicts = lines("verdicts.jsonl")
    assert [(v["row"], v["order"]) for v in verdicts] == [(n + 1, order) for n in range(12) for order in ("AB", "BA")]
    assert [v["verdict"] for v in verdicts[:12]] == ["A", "A", "A", "A", "B", "B", "A", "B", "tie", "tie", "tie", "B"]
    assert [line["row"] for line in lines("lost.jsonl")] == [3, 9, 6, 12]
    for words in ("A better", "33.3 %", "p = 0.688", "Inconsistent: 4 of 12", "50.0 % chose the answer shown first"):
        assert words in shown.replace("\u00a0", " ")
    with_reference = [prompt for prompt in chat.prompts if "The reference answer" in prompt]
    assert {number(prompt) % 3 for prompt in with_reference} == {1, 2}  # the other references are blank
    assert judge("runs=A,B", "reference=false", "out=plain")[0] == 0
    assert not [prompt for prompt in chat.prompts[24:] if "eference" in prompt]


def test_parameters_model_and_versions_are_recorded(judge, chat, monkeypatch):
    monkeypatch.setenv("A_KEY", KEY)
    given = ["runs=[A]", "key_env=A_KEY", "parameters={top_p: 0.5, max_tokens: null, max_completion_tokens: 50}"]
    assert judge(*given, "temperature=0.5")[0] == 0
    parameters = {"temperature": 0.5, "top_p": 0.5, "max_completion_tokens": 50}
    assert chat.bodies[0]["json"] == {"model": "m", "messages": chat.bodies[0]["json"]["messages"], **parameters}
    found = result()
    assert found["judge"]["parameters"] == parameters
    assert (found["judge"]["model"], found["judge"]["answered_by"]) == ("m", ["m-2026"])
    assert found["judge"]["endpoint"] == chat.url
    assert found["judge"]["first_reply"] <= found["judge"]["last_reply"] <= found["created"]
    assert found["prompts"]["version"] == 1 and found["prompts"]["kind"] == "rating"
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (
        found["git_commit"].removesuffix("+")
        == subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
    )
    assert found["schema"] == 1 and found["verb"] == "judge" and found["settings"]["seed"] == 1


@pytest.mark.slow
def test_results_keep_the_order_of_rows_if_replies_arrive_out_of_order(judge, chat):
    """Replies have random delays; several requests are open at once, never more than `workers`."""
    draw = random.Random(3)
    chat.say = lambda prompt: (time.sleep(draw.random() / 20), f"[[{number(prompt) % 10 + 1}]]")[1]
    write_run(Path("A"), "A", rows=40)
    assert judge("runs=[A]", "workers=8")[0] == 0
    assert [v["verdict"] for v in lines("verdicts.jsonl")] == [n % 10 + 1 for n in range(40)]
    assert 2 <= chat.most_at_once <= 8
    written = [r["text"] for r in lines("replies.jsonl")]
    assert sorted(written) == sorted(v["reply"] for v in lines("verdicts.jsonl"))
    assert written != [v["reply"] for v in lines("verdicts.jsonl")]
    chat.most_at_once = 0
    assert judge("runs=[A]", "workers=1", "out=one")[0] == 0
    assert chat.most_at_once == 1
    assert lines("verdicts.jsonl", "one") == lines("verdicts.jsonl")


def test_identical_rows_are_one_question(judge, chat):
    row = {"source": "q?", "target": "t", "prediction": "same"}
    for name in "AB":
        Path(name, "predictions.jsonl").write_text(3 * (json.dumps(row) + "\n"))
    assert judge("runs=A,B")[0] == 0
    assert len(chat.prompts) == 1
    assert (result()["asked"]["questions"], result()["asked"]["distinct"]) == (6, 1)
    assert len(lines("verdicts.jsonl")) == 6
    assert result()["pairs"]["ties"]["count"] == 3  # identical answers tie


# Errors of the endpoint


def test_replies_without_a_verdict_are_requested_once_more_and_counted(judge, chat):
    plans = {
        0: [Step("text", body="I would rather not."), Step()],
        1: [Step("body", body="<html>"), Step()],
        2: [Step("text", body="[[3]] or [[4]]"), Step("text", body="[[11]]")],
        3: [Step("body", body='{"choices": ['), Step("body", body='{"choices": []}')],
        4: [Step("status", 400, body='{"error": {"message": "too long"}}')],
        5: [Step("status", 500), Step("text", body="hm"), Step("status", 429, headers={"Retry-After": "0.01"}), Step()],
    }
    chat.plan = lambda prompt: plans.get(number(prompt), [])
    chat.say = lambda prompt: f"[[{number(prompt) % 10 + 1}]]"
    code, shown, _ = judge("runs=[A]")
    assert code == 0
    found = result()
    verdicts = [v["verdict"] for v in lines("verdicts.jsonl")]
    assert verdicts == [1, 2, None, None, None, 6, 7, 8, 9, 10, 1, 2]
    assert found["ratings"]["judged"] == 9
    assert found["ratings"]["mean"]["value"] == pytest.approx(46 / 9)
    why = [(v["reply"], v["why"]) for v in lines("verdicts.jsonl")[2:5]]
    assert why == [
        ("[[11]]", "no verdict in its reply"),
        (None, 'no choices: {"choices": []}'),
        (None, "HTTP 400: too long"),
    ]
    asked = found["asked"]
    assert asked["parse_failures"] == 2
    assert asked["refused"] == 1
    assert asked["replies"] == 6 + 2 + 2 + 2 + 2 + 2
    assert asked["replies_without_verdict"] == 7
    assert asked["requests"] == asked["replies"] + 2  # the two that failed
    assert len(chat.prompts) == asked["requests"] + 1  # and the one that was refused
    assert asked["replies_without_usage"] == 3
    assert "parse failures: 2, refused: 1 of 12 questions; 3 rows have no verdict" in shown
    assert "at least 1,300 of prompts" in shown
    chat.forget()
    chat.plan = lambda prompt: []
    assert judge("runs=[A]")[0] == 0
    assert [number(prompt) for prompt in chat.prompts] == [4]  # only the refused question
    assert judge("runs=[A]", "again=true")[0] == 0
    assert sorted(number(prompt) for prompt in chat.prompts) == [2, 3, 4]
    assert [v["verdict"] for v in lines("verdicts.jsonl")] == [n % 10 + 1 for n in range(12)]
    assert result()["asked"]["parse_failures"] == result()["asked"]["refused"] == 0
    assert result()["asked"]["requests"] == asked["requests"] + 3  # earlier requests stay counted


def test_a_pair_without_a_verdict_in_one_order_is_not_counted(judge, chat):
    chat.say = lambda prompt: "hm" if "assistant A >>>\nB 2\n" in prompt else pairwise(prompt)
    assert judge("runs=A,B")[0] == 0
    pairs = result()["pairs"]
    assert (pairs["rows"], pairs["judged"], pairs["losses"]["count"]) == (12, 11, 1)
    assert sum(pairs["position"][name]["count"] for name in ("first", "second", "tie")) == 22
    assert result()["lost"] == [9, 6, 12]


def test_replies_without_any_verdict_give_no_number(judge, chat):
    chat.always = Step("body", body="<html>")
    code, shown, told = judge("runs=A,B")
    assert code == 2
    assert "verdicts.jsonl: none of 24 questions has a verdict; the first: " in told
    assert result()["pairs"]["wins"]["value"] is None
    assert result()["asked"]["parse_failures"] == 24
    assert len(chat.prompts) == 48
    assert "–" in shown


def test_replies_are_kept_if_the_server_fails(judge, chat, workspace):
    calls = []

    def plan(prompt):
        calls.append(prompt)
        return [Step("status", 503)] * 9 if len(calls) > 5 else []

    chat.plan = plan
    code, _, err = judge("runs=[A]", "workers=1")
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(r"3 requests in a row failed, the last one with: HTTP 503; 5 of 12 questions are answered", err)
    assert not Path("outputs/judge/judge.json").exists()
    chat.forget()
    chat.plan = lambda prompt: []
    code, _, err = judge("runs=[A]", "workers=1")
    assert code == 0
    assert without_next(err) == "llm2slm: outputs/judge/replies.jsonl holds the replies to 5 of 12 questions\n"
    assert sorted(number(prompt) for prompt in chat.prompts) == list(range(5, 12))


# Recorded replies


def test_recorded_replies_are_not_requested_again_unless_the_question_changes(judge, chat, workspace):
    def new(*arguments):
        chat.forget()
        assert judge("runs=[A]", *arguments)[0] == 0
        return len(chat.prompts)

    assert new("rows=5") == 5
    assert new("rows=5") == 0
    assert new() == 7
    whole = files_of(workspace / "outputs")
    assert new("workers=1", "seed=2", "price_in=1", "price_out=1", "timeout=4", "out=outputs/judge") == 0
    for name in ("judge/verdicts.jsonl", "judge/replies.jsonl", "judge/lost.jsonl"):
        assert files_of(workspace / "outputs")[name] == whole[name]
    assert new("temperature=0.5") == 12
    assert new("max_tokens=5") == 12
    assert new("parameters.top_p=0.5") == 12
    assert new("reference=false") == 8  # a third of the rows has no reference
    assert new() == 0
    assert files_of(workspace / "outputs")["judge/verdicts.jsonl"] == whole["judge/verdicts.jsonl"]
    assert new("model=n", "out=other") == 12
    Path("A/predictions.jsonl").write_text(Path("A/predictions.jsonl").read_text().replace('"A 3"', '"A three"'))
    assert new() == 1


def test_recorded_replies_do_not_require_openai(judge, chat, monkeypatch):
    assert judge("runs=[A]", "rows=5")[0] == 0
    chat.forget()
    monkeypatch.setitem(sys.modules, "openai", None)
    assert judge("runs=[A]", "rows=5")[0] == 0
    assert judge("runs=[A]", "rows=6")[0] == 2
    assert len(chat.prompts) == 0


def test_replies_from_another_endpoint_are_reported(judge, chat, capsys):
    assert judge("runs=[A]", "rows=4")[0] == 0
    with ChatServer() as other:
        code, _, err = judge("runs=[A]", f"endpoint={other.url}")
        assert (code, len(other.prompts)) == (0, 8)
        assert f"holds the replies to 4 of 12 questions (some of them from {chat.url})" in err
        assert result()["judge"]["places"] == sorted([chat.url, other.url])
        assert result()["judge"]["endpoint"] == other.url


@pytest.mark.parametrize("arguments", representatives([["runs=[B]"], ["runs=A,B"], ["model=n"]], [["model=n"]]))
def test_verdicts_of_another_command_are_not_overwritten(judge, chat, workspace, arguments):
    assert judge("runs=[A]")[0] == 0
    before = files_of(workspace)
    chat.forget()
    code, _, err = judge("runs=[A]", *arguments)
    assert (code, err) == (2, "llm2slm: error: out=outputs/judge: holds the verdicts of m on A; give another out\n")
    assert (files_of(workspace), chat.prompts) == (before, [])


# Killed at any moment

CHILD = """
import json, sys
from omegaconf import OmegaConf
from llm2slm.commands.judge import run
from llm2slm.config import JudgeConfig
run(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(JudgeConfig), json.loads(sys.argv[1]))), None)
"""
ROWS, KILLS = 45, 20


def prompts_by_key(config):
    """The prompts of a job by key."""
    identity = endpoint_client(config)[1]
    return {key(identity, q.prompt): q.prompt for q in questions(read_rows(config))}


def on_disk(path):
    """Keys of the replies in the complete lines of a file whose last line may be partial."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1].splitlines()
    return [json.loads(line)["key"] for line in whole if json.loads(line)["text"] is not None]


@pytest.mark.slow
def test_a_judge_killed_at_any_moment_resumes_with_the_same_results(tmp_path, monkeypatch, chat, capsys):
    """Twenty times kill -9, at random moments; the results equal those of an undisturbed job."""
    monkeypatch.chdir(tmp_path)
    for name in "AB":
        write_run(tmp_path / name, name, rows=ROWS)
    config = JudgeConfig(runs=["A", "B"], endpoint=chat.url, model="m", out="peace", wait=0.01)
    chat.plan = lambda prompt: [Step("body", body="{")] if number(prompt) % 7 == 3 else []  # some are requested twice
    run(config, tmp_path)
    asked_in_peace = Counter(chat.prompts)
    assert sum(asked_in_peace.values()) > 2 * ROWS
    prompts = prompts_by_key(config)
    draw, kills, job = random.Random(11), 0, 0
    chat.delay = 0.01
    while kills < KILLS:
        job += 1
        assert job < 12, "most were done before they could be killed"
        config = dataclasses.replace(config, out=f"killed{job}")
        replies = tmp_path / config.out / "replies.jsonl"
        chat.asked.clear()
        for _ in range(5):
            known = set(on_disk(replies))
            chat.prompts = []
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, json.dumps(dataclasses.asdict(config))],
                env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            enough = draw.randint(1, 8)
            while len(chat.prompts) < enough and child.poll() is None:
                time.sleep(0.001)
            time.sleep(draw.random() / 50)
            child.send_signal(signal.SIGKILL)
            assert child.wait() in (0, -signal.SIGKILL), "it failed"
            kills += child.returncode == -signal.SIGKILL
            while chat.under_way:
                time.sleep(0.001)
            assert not {prompts[name] for name in known} & set(chat.prompts)
        chat.prompts, known = [], set(on_disk(replies))
        run(config, tmp_path)
        assert not {prompts[name] for name in known} & set(chat.prompts)
        for name in ("verdicts.jsonl", "lost.jsonl"):
            assert (tmp_path / config.out / name).read_bytes() == (tmp_path / "peace" / name).read_bytes()
        assert Counter(on_disk(replies)) == Counter(prompts.keys())  # each once
        same = ("pairs", "lost", "prompts", "runs")
        assert {name: result(config.out)[name] for name in same} == {name: result("peace")[name] for name in same}
    assert job >= 4


def test_an_interrupted_judge_states_how_to_continue(judge, chat, monkeypatch):
    from llm2slm.evaluation.judge.log import JudgeLog

    append, written = JudgeLog.append, []

    def interrupted(self, *arguments):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(append(self, *arguments))
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(JudgeLog, "append", interrupted)
        code, out, err = judge("runs=[A]")
    assert (code, out) == (130, "")
    assert "4 of 12 questions are answered in outputs/judge/replies.jsonl; run the same command to continue" in err
    kept = {r["text"] for r in lines("replies.jsonl")}
    assert len(lines("replies.jsonl")) == 4
    assert judge("runs=[A]")[0] == 0
    assert kept <= {v["reply"] for v in lines("verdicts.jsonl")}
    assert len(lines("replies.jsonl")) == 12


# The API key


def test_the_key_is_sent_and_never_written(judge, chat, workspace, monkeypatch):
    """Even if the server repeats it in every field."""
    monkeypatch.setenv("A_KEY", KEY)
    echo = json.dumps({"model": KEY, "choices": [{"message": {"content": f"{KEY} [[7]]"}}]})
    plans = [[Step("body", body=echo)], [Step("status", 400, body=KEY)], [Step("body", body=KEY)],
             [Step("status", 500, body=KEY), Step("text", body=KEY)]]  # fmt: skip
    chat.plan = lambda prompt: plans[number(prompt) % 5] if number(prompt) % 5 < 4 else []
    code, out, err = judge("runs=[A]", "key_env=A_KEY")
    assert code == 0
    assert {body["headers"]["Authorization"] for body in chat.bodies} == {f"Bearer {KEY}"}
    content = files_of(workspace)
    assert content.keys() >= {f"outputs/judge/{name}" for name in ("judge.json", "replies.jsonl", "verdicts.jsonl")}
    assert "***" in content["outputs/judge/replies.jsonl"].decode()
    assert not [name for name, text in content.items() if KEY.encode() in text]
    assert KEY not in out + err
    chat.always = Step("status", 401, body=KEY)
    code, out, err = judge("runs=[A]", "key_env=A_KEY", "out=refused")
    assert (code, err.count("\n")) == (2, 1)
    assert "HTTP 401: ***; check key_env" in err
    assert not [name for name, text in files_of(workspace).items() if KEY.encode() in text]


@pytest.mark.parametrize(
    ("arguments", "held", "message"),
    representatives(
        [
            (["key_env=A_KEY"], None, "key_env=A_KEY: this environment variable is not set"),
            (["key_env=A_KEY"], " ", "key_env=A_KEY: this environment variable is not set"),
            (["key_env=A_KEY"], "sk\nX-Other: 1", "key_env=A_KEY: its value is no key"),
            (["key_env=A_KEY"], "sk-ä", "key_env=A_KEY: its value is no key"),
            ([f"key_env={KEY}"], None, "key_env: contains an API key, which files would record"),
            (["endpoint=http://me:sk-secret@127.0.0.1/v1"], None, "endpoint: contains a password in a URL"),
            (["endpoint=http://127.0.0.1/v1?key=sk-secret"], None, "endpoint: contains a key in a URL"),
        ],
        lambda case: case[1] in (None, "sk-ä") and case[0] != [f"key_env={KEY}"],
    ),
)
def test_an_invalid_or_misplaced_key_is_not_printed(judge, workspace, chat, monkeypatch, arguments, held, message):
    if held is not None:
        monkeypatch.setenv("A_KEY", held)
    before = files_of(workspace)
    code, out, err = judge("runs=[A]", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"llm2slm: error: {message}")
    assert "sk-" not in err and "X-Other" not in err
    assert (files_of(workspace), chat.bodies) == (before, [])


# Mistakes of the user

REMOTE = {"endpoint": "http://h/v1", "model": "m"}
LOCAL = {"local": "x"}
A, AT = ["A"], {"runs": ["A"], **REMOTE}
WRONG = {
    "no runs": (REMOTE, "judge needs one run (ratings) or two (comparison): llm2slm judge RUN RUN ..."),
    "three runs": ({"runs": ["A", "B", "A"], **REMOTE}, "judge needs one run (ratings)"),
    "no judge": ({"runs": A}, "judge needs endpoint=http://HOST:PORT/v1 model=NAME, or local=FOLDER_OR_ID: one of the"),
    "two judges": (
        AT | LOCAL,
        "judge needs endpoint=http://HOST:PORT/v1 model=NAME, or local=FOLDER_OR_ID: one of the",
    ),
    "no model": ({"runs": A, "endpoint": "http://h/v1"}, "endpoint needs model=NAME"),
    "no address": (AT | {"endpoint": "h"}, "endpoint: not an HTTP address; give http://HOST:PORT/v1"),
    "no run": ({"runs": ["C"], **LOCAL}, "C: no such file; `llm2slm evaluate run=RUN` writes one"),
    "no answers": ({"runs": ["empty"], **LOCAL}, "empty/predictions.jsonl: no such file"),
    "no rows": ({"runs": ["none.jsonl"], **LOCAL}, "none.jsonl: holds no rows"),
    "no JSON": ({"runs": ["bad.jsonl"], **LOCAL}, "bad.jsonl, line 2: not JSON ("),
    "no prediction": (
        {"runs": ["field.jsonl"], **LOCAL},
        "field.jsonl, line 1: no text in the field prediction; has: source",
    ),
    "no text": (
        {"runs": ["number.jsonl"], **LOCAL},
        "number.jsonl, line 1: no text in the field target; has: source, ",
    ),
    "other rows": (
        {"runs": ["A", "short.jsonl"], **LOCAL},
        "A/predictions.jsonl holds 12 rows, short.jsonl holds 1: not the same questions",
    ),
    "other questions": (
        {"runs": ["A", "other.jsonl"], **LOCAL},
        "A/predictions.jsonl, line 12 and other.jsonl, line 12: the sources differ; compare runs that answer",
    ),
    "model of local": ({"runs": A, **LOCAL, "model": "m"}, "model is for endpoint=...; leave it out"),
    "workers of local": ({"runs": A, **LOCAL, "workers": 2}, "workers is for endpoint=...; leave it out"),
    "revision": (AT | {"revision": "x"}, "revision is for local=...; leave it out"),
    "dtype": ({"runs": A, **LOCAL, "dtype": "int8"}, "dtype=int8: expected one of float32, bfloat16, float16"),
    "workers": (AT | {"workers": 0}, "workers=0: must be between 1 and 512"),
    "rows": (AT | {"rows": 0}, "rows=0: must be at least 1"),
    "retries": (AT | {"retries": -1}, "retries=-1: must be between 0 and 1000"),
    "wait": (AT | {"wait": float("nan")}, "wait=nan: must be between 0 and 86400"),
    "timeout": (AT | {"timeout": 0.0}, "timeout=0.0: must be above 0 and at most 86400"),
    "infinite timeout": (AT | {"timeout": float("inf")}, "timeout=inf: must be above 0 and at most 86400"),
    "one price": (AT | {"price_in": 1.0}, "price_in and price_out: give both, or neither"),
    "negative price": (AT | {"price_in": 1.0, "price_out": -1.0}, "price_out=-1.0: must be at least 0"),
    "stream": (AT | {"parameters": {"stream": True}}, "parameters.stream: cannot be set; leave it out"),
    "out": (AT | {"out": "none.jsonl"}, "out=none.jsonl: none.jsonl is a file; give a folder"),
    "foreign output": (AT | {"out": "strange"}, "strange/judge.json: not written by llm2slm judge; give another out"),
    "no such model": ({"runs": A, "local": "./nowhere"}, "model './nowhere': no such folder"),
}


@pytest.fixture
def bad(workspace):
    """Invalid files in addition to the runs."""
    good = json.dumps({"source": "question 0?", "target": "t", "prediction": "p"}) + "\n"
    (workspace / "empty").mkdir()
    (workspace / "strange").mkdir()
    (workspace / "strange" / "judge.json").write_text("[]")
    (workspace / "none.jsonl").write_text("")
    (workspace / "bad.jsonl").write_text(good + "{\n")
    (workspace / "field.jsonl").write_text('{"source": "a"}\n')
    (workspace / "number.jsonl").write_text('{"source": "a", "target": 5, "prediction": "b"}\n')
    (workspace / "short.jsonl").write_text(good)
    (workspace / "other.jsonl").write_text(
        (workspace / "B" / "predictions.jsonl").read_text().replace("question 11?", "what?")
    )
    return workspace


@pytest.mark.parametrize(("values", "message"), WRONG.values(), ids=list(WRONG))
def test_mistakes_are_reported_before_anything_is_requested_or_written(bad, values, message):
    before = files_of(bad)
    with pytest.raises(UserError) as caught:
        run(JudgeConfig(**values), bad)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert files_of(bad) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "judge needs one run"),
        (["runs=[bad.jsonl]", "local=x"], "bad.jsonl, line 2: not JSON ("),
        (["runs=[A,./A]", "local=x"], "runs=[A,./A]: the same run twice; give two, or one to have it rated"),
        (["runs=[A]", "modle=m"], "unknown key 'modle'; did you mean model"),
        (["runs=[A]", "model/llm=t5_base"], "unknown key 'model/llm'"),
        (["runs=[A]", "rows=few"], "rows=few: expected an integer or null"),
        (["runs=[A]", "endpoint=http://127.0.0.1:9/v1", "model=m"], "http://127.0.0.1:9/v1: cannot be reached ("),
    ],
)
def test_mistakes_are_reported_on_one_line(bad, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("no_proxy", "*")
    assert main(["judge", *arguments]) == 2
    assert mistake(capsys).startswith(message)


def test_a_hybrid_is_refused_as_a_judge(bad, trained, capsys):
    """So is a run directory, with the path of its model."""
    assert main(["judge", "runs=[A]", f"local={trained}"]) == 2
    assert mistake(capsys).endswith(f"is a run directory; give its model, {trained / 'model'}")
    assert main(["judge", "runs=[A]", f"local={trained / 'model'}"]) == 2
    assert mistake(capsys).startswith(f"local={trained / 'model'}: is a hybrid or has soft prompts; give a plain")


def test_answers_of_generate_are_judged_without_a_reference(judge, chat, workspace):
    rows = [{"source": f"question {n}?", "prediction": f"x {n}"} for n in range(3)]
    (workspace / "answers.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    assert judge("runs=[answers.jsonl]")[0] == 0
    assert not [prompt for prompt in chat.prompts if "eference" in prompt]
    assert [v["row"] for v in lines("verdicts.jsonl")] == [1, 3, 5]  # lines of the file
    assert judge("runs=A,answers.jsonl", "rows=3", "out=both")[0] == 2


def test_hostile_text_is_recorded_and_escaped_in_the_terminal(judge, chat, workspace):
    """In answers and in replies: terminal markup, braces, brackets, lone surrogates, other line ends."""
    text = "[bold]{x}[/bold] [[A]] \u2028 \ud83d \x1b[31m"
    row = {"source": text, "target": text, "prediction": text}
    (workspace / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"source": "question 1?"}) + "\n")
    chat.say = lambda prompt: "\u2028[bold] [[2]]" if "question 1?" in prompt else "[/bold]\u2029 [[7]]"
    code, shown, _ = judge("runs=[a.jsonl]")
    assert code == 0
    assert [v["verdict"] for v in lines("verdicts.jsonl")] == [7, 2]
    assert [v["reply"] for v in lines("verdicts.jsonl")] == ["[/bold]\u2029 [[7]]", "\u2028[bold] [[2]]"]
    assert "\x1b[31m" not in shown
    assert judge("runs=[a.jsonl]")[0] == 0
    assert chat.asked.total() == 2


# A local model


def test_replies_of_a_local_model_are_recorded(workspace, capsys, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llm2slm.evaluation.judge.local import LocalClient
    from llm2slm.testing import write_tiny_gpt2

    folder = write_tiny_gpt2(workspace / "tiny", seed=4, positions=2048)
    given = ["judge", "runs=A,B", f"local={folder}", "max_tokens=6", "rows=2"]
    assert main(given) == 2
    assert "none of 4 questions has a verdict; the first: no verdict in its reply" in capsys.readouterr().err
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = questions(read_rows(JudgeConfig(runs=["A", "B"], rows=2)))
    for question, line in zip(asked, lines("verdicts.jsonl"), strict=True):
        ids = tokenizer(question.prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        said = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert (line["row"], line["order"]) == (question.row, question.order)
        assert line["reply"] == tokenizer.decode(said, skip_special_tokens=True)
        assert (line["verdict"], line["why"]) == (None, "no verdict in its reply")  # its weights are random
    found = result()
    assert found["judge"]["local"] == str(folder) and "endpoint" not in found["judge"]
    assert (found["asked"]["parse_failures"], found["asked"]["replies"]) == (4, 4)  # greedy: no question is repeated
    assert found["asked"]["reply_tokens"] <= 24 and found["asked"]["prompt_tokens"] > 400
    with monkeypatch.context() as patch:
        patch.setattr(LocalClient, "complete", None)
        assert main(given) == 2  # all replies are recorded
    (workspace / "tiny" / "config.json").touch()  # rewritten: possibly another model
    assert main(given) == 2
    assert len(lines("replies.jsonl")) == 8


def test_verdicts_of_a_local_model_are_counted(workspace, monkeypatch, capsys):
    """With the reply that a trained model would give."""
    from transformers import PreTrainedTokenizerBase

    from llm2slm.testing import write_tiny_gpt2

    folder = write_tiny_gpt2(workspace / "tiny", seed=4, positions=2048)
    monkeypatch.setattr(PreTrainedTokenizerBase, "decode", lambda *_, **__: "It is. Rating: [[8]]")
    assert main(["judge", "runs=[A]", f"local={folder}", "max_tokens=2", "rows=3"]) == 0
    assert result()["ratings"]["ratings"] == {"8": 3}
    shown = capsys.readouterr()
    assert "8.00" in shown.out


def test_a_local_model_with_too_short_a_context_is_refused(workspace, capsys):
    from llm2slm.testing import write_tiny_gpt2

    folder = write_tiny_gpt2(workspace / "tiny", seed=4, positions=64)
    assert main(["judge", "runs=[A]", f"local={folder}", "max_tokens=6"]) == 2
    assert re.match(r".*tiny: refuses every question: \d+ prompt tokens and up to 6 reply tokens", mistake(capsys))
