"""W&B runs, read back from their files on disk: of commands, sweeps, failures and resumed runs."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shlex
import struct
import subprocess
import sys
import threading
import time
import zlib
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from command_line import python
from stopped_runs import StopAt, interrupted
from tiny_runs import tiny_run
from wandb.proto import wandb_internal_pb2
from wandb_files import BLOCK, HEADER, read_run, records, table_of

from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.train import run as train
from llm2slm.config import RunConfig
from llm2slm.runs import plain, read_result
from llm2slm.tracking import wandb_run
from llm2slm.tracking.naming import SWEEP_DIR
from llm2slm.tracking.session import track
from llm2slm.tracking.tracker import Table
from llm2slm.types import UserError

SAMPLES = Table(
    ["prompt", "reference", "slm"], [["<b>two</b>", "zwei Gänse\nund mehr", ""], ["the cat", "die Katze", None]]
)


def test_the_parser_joins_fragments_across_blocks_and_detects_damage() -> None:
    """The oracle itself: a record longer than a block, the unused tail of a block, and one flipped bit."""
    data = bytearray(HEADER)

    def put(kind: int, body: bytes) -> None:
        data.extend(struct.pack("<IHB", zlib.crc32(bytes([kind]) + body), len(body), kind) + body)

    record = wandb_internal_pb2.Record(num=7)
    record.output.line = "x" * 40_000
    body = record.SerializeToString()
    first = BLOCK - 7 - 7
    put(2, body[:first])
    put(4, body[first:])
    filler = wandb_internal_pb2.Record(num=8)
    filler.output.line = "y" * (2 * BLOCK - len(data) - 7 - 3 - filler_overhead())
    put(1, filler.SerializeToString())
    assert BLOCK - len(data) % BLOCK == 3
    data.extend(bytes(3))
    put(1, wandb_internal_pb2.Record(num=9).SerializeToString())
    assert [(r.num, len(r.output.line)) for r in records(bytes(data))][::2] == [(7, 40_000), (9, 0)]

    data[100] ^= 1
    with pytest.raises(AssertionError, match="damaged"):
        list(records(bytes(data)))


def filler_overhead() -> int:
    """Bytes of a record in addition to a line of about twenty thousand characters."""
    record = wandb_internal_pb2.Record(num=8)
    record.output.line = "y" * 20_000
    return len(record.SerializeToString()) - 20_000


def wandb_config(seed: int) -> RunConfig:
    config = RunConfig(seed=seed)
    config.logger.name = "wandb"
    config.logger.project = "loggers-test"
    config.logger.tags = ["tiny", "two words"]
    config.logger.artifacts = []
    return config


def column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row.get(name) not in (None, "")]


def test_two_jobs_of_a_sweep_are_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job is a run with its values; the environment is restored."""
    monkeypatch.setenv("WANDB_NOTES", "of the user")
    monkeypatch.setenv(SWEEP_DIR, str(tmp_path / "rates"))
    jobs = [(tmp_path / "rates" / "0", 11, 8.0), (tmp_path / "rates" / "1", 12, 16.0)]
    for folder, seed, start in jobs:
        with track("train", wandb_config(seed), folder) as tracking:
            for step in (4, 9):
                tracking.metrics({"train/loss": start / step, "val/bleu": step}, step)
            tracking.table("samples", SAMPLES, step=9)
            tracking.summary({"quality/bleu": start + 0.25, "device": "CPU"})
        assert {name: value for name, value in os.environ.items() if name.startswith("WANDB_")} == {
            "WANDB_NOTES": "of the user"
        } | {name: value for name, value in os.environ.items() if name == "WANDB_SERVICE"}
    runs = [read_run(folder) for folder, *_ in jobs]
    assert runs[0]["id"] != runs[1]["id"] and runs[0]["name"] != runs[1]["name"]
    for run, (folder, seed, start) in zip(runs, jobs, strict=True):
        assert run["exit"] == 0
        assert (run["project"], run["group"], run["job_type"]) == ("loggers-test", "rates", "train")
        assert run["tags"] == ["tiny", "two words"]
        config = wandb_config(seed)
        assert {key: run["config"][key] for key in plain(config)} == plain(config)
        assert column(run["history"], "train/loss") == [start / 4, start / 9]
        assert [row["trainer/global_step"] for row in run["history"] if "train/loss" in row] == [4, 9]
        assert (run["summary"]["quality/bleu"], run["summary"]["device"]) == (start + 0.25, "CPU")
        shown = table_of(folder, run)
        assert (shown["columns"], shown["data"]) == (SAMPLES.columns, SAMPLES.rows)


def test_a_training_logs_its_curves_samples_summary_and_artifacts(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    config.logger.name = "wandb"
    config.logger.samples = 2
    config.logger.artifacts = ["config", "code", "results", "model"]
    other = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in (tmp_path / "rows" / "validation.jsonl").read_text().splitlines()]
    other.write_text("".join(json.dumps(row | {"prediction": row["source"].upper()}) + "\n" for row in rows))
    config.callbacks.predictions = {"llm": str(other)}
    train(deepcopy(config), tmp_path / "run")
    run = read_run(tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        curve = list(csv.DictReader(file))
    names = [name for name in curve[0] if name not in ("step", "epoch")]
    assert {"train/grad_norm_projector", "train/grad_norm_slm", "train/padding", "train/lr_slm", "val/chrf"} <= set(
        names
    )
    for name in names:
        assert column(run["history"], name) == column(curve, name), name

    steps = [int(row["step"]) + 1 for row in curve if row["val/loss"]]
    shown = table_of(tmp_path / "run", run)
    assert shown["columns"] == ["step", "split", "prompt", "reference", "llm", "llm2slm"]
    found = [(row[0], row[1], row[2], row[3], row[4]) for row in shown["data"]]
    tested = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert found[: 2 * len(steps)] == [
        (step, "validation", row["source"], row["target"], row["source"].upper()) for step in steps for row in rows[:2]
    ]
    assert [row[2:4] + row[5:] for row in shown["data"][2 * len(steps) :]] == [list(row.values()) for row in tested[:2]]
    sizes = [row["samples"]["nrows"] for row in run["history"] if "samples" in row]
    assert sizes == sorted(set(sizes)) and sizes[-1] == 2 * len(steps) + 2, "the table grows"

    [system] = read_result(tmp_path / "run")["systems"]
    expected = {f"parameters/{name}": count for name, count in system["parameters"].items()}
    expected |= {f"quality/{name}": score["value"] for name, score in system["quality"].items()}
    assert {name: run["summary"][name] for name in expected} == expected
    assert run["job_type"] == "train" and run["config"]["llm2slm"]["verb"] == "train"

    artifacts = run["artifacts"]
    assert set(artifacts) == {"config", "code", "results", "model"} | {"run_table"}
    assert artifacts["config"] == ["config.yaml"]
    assert {"llm2slm/training/fit.py", "conf/train.yaml"} <= set(artifacts["code"])
    assert {"result.json", "predictions.jsonl", "metrics.csv"} <= set(artifacts["results"])
    model = {path.name for path in (tmp_path / "run" / "model").iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors"} <= set(artifacts["model"]) == model
    size = (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    weights = sum(path.stat().st_size for path in Path(str(config.model.llm.name)).glob("*.safetensors"))
    assert weights > 0 and size < weights + size, "no weights of the LLM"


def test_another_verb_logs_its_scores_and_quality_kept(tmp_path: Path) -> None:
    """`evaluate`: of the LLM, then of a run relative to it, as one run with both."""
    config = tiny_run(tmp_path, max_steps=2, val_every=2)
    train(deepcopy(config), tmp_path / "run")
    llm = tiny_run(tmp_path, kind="llm", max_steps=2, val_every=2)
    train(deepcopy(llm), tmp_path / "llm")
    again = deepcopy(config)
    again.run, again.benchmark.baseline, again.logger.name = str(tmp_path / "run"), str(tmp_path / "llm"), "wandb"
    evaluate(again, tmp_path / "scores")
    run, result = read_run(tmp_path / "scores"), read_result(tmp_path / "scores")
    assert (run["job_type"], run["exit"]) == ("evaluate", 0)
    scores = {name: read_result(tmp_path / name)["systems"][0]["quality"]["chrf"]["value"] for name in ("run", "llm")}
    assert run["summary"]["quality/chrf"] == scores["run"]
    kept = scores["run"] / scores["llm"]
    assert run["summary"]["quality_kept/chrf"] == pytest.approx(kept) == result["systems"][0]["quality_kept"]["chrf"]
    assert result["baseline"] == {"name": "llm", "kind": "llm"}
    assert table_of(tmp_path / "scores", run)["columns"] == ["prompt", "reference", "llm2slm"]


def test_a_failed_run_is_closed_and_marked(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of luck"), track("train", wandb_config(1), tmp_path / "a"):
        raise RuntimeError("out of luck")
    assert read_run(tmp_path / "a")["exit"] == 1
    with track("train", wandb_config(1), tmp_path / "b"):
        pass
    assert read_run(tmp_path / "b")["exit"] == 0
    assert read_run(tmp_path / "b")["id"] != read_run(tmp_path / "a")["id"]


def test_a_resumed_run_keeps_its_id_and_a_new_one_does_not(tmp_path: Path) -> None:
    identities = []
    for resumed in (False, True, False):
        with track("label", wandb_config(1), tmp_path, resumed=resumed):
            identities.append((tmp_path / "wandb" / "run-id").read_text())
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.slow
def test_a_resumed_training_is_one_run_and_continues_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path)
    config.logger.name, config.logger.samples = "wandb", 2
    train(deepcopy(config), tmp_path / "whole")
    interrupted(deepcopy(config), tmp_path / "run", monkeypatch, StopAt(5))
    time.sleep(1.1)  # a part is named after the second of its start
    again = deepcopy(config)
    again.run = str(tmp_path / "run")
    train(again, tmp_path / "elsewhere")
    parts = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and len({part.name.rpartition("-")[2] for part in parts}) == 1
    found = [read_run(tmp_path / "run", part.name) for part in parts]
    assert [run["exit"] for run in found] == [1, 0]
    whole = read_run(tmp_path / "whole")
    losses = [value for run in found for value in column(run["history"], "train/loss")]
    assert losses == column(whole["history"], "train/loss")
    assert table_of(tmp_path / "run", found[1])["data"] == table_of(tmp_path / "whole", whole)["data"]


def test_modes_are_chosen_by_configuration_environment_and_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto`: the mode in W&B's variable, otherwise online with credentials; a configured mode has precedence."""
    modes = []
    monkeypatch.setattr(wandb_run.WandbRun, "_init", lambda self, mode, *_: modes.append(mode))
    monkeypatch.setattr(wandb_run.WandbRun, "_open", lambda self: self._init(self._mode()))
    cases: list[tuple[str, dict[str, str]]] = [
        ("auto", {}),
        ("auto", {"WANDB_API_KEY": "a" * 40}),
        ("auto", {"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}),
        ("auto", {"WANDB_MODE": "disabled"}),
        ("offline", {"WANDB_API_KEY": "a" * 40}),
        ("online", {"WANDB_MODE": "offline"}),
    ]
    for mode, variables in cases:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            config = wandb_config(1).logger
            config.mode = mode
            wandb_run.WandbRun(config, None)
    assert modes == ["offline", "online", "offline", "disabled", "offline", "online"]
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not wandb_run.logged_in()
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n login user\n password {'b' * 40}\n")
    assert wandb_run.logged_in()


@pytest.mark.slow
def test_an_unwritable_home_folder_has_no_effect(tmp_path: Path) -> None:
    """Including tables and artifacts, which W&B stages below the home folder."""
    code = (
        "import os\n"
        "os.environ.pop('WANDB_SERVICE', None)\n"  # that of this process, whose home folder is writable
        "from pathlib import Path\n"
        "from llm2slm.config import RunConfig\n"
        "from llm2slm.tracking.session import track\n"
        "from llm2slm.tracking.tracker import Table\n"
        "config = RunConfig()\n"
        "config.logger.name = 'wandb'\n"
        "with track('train', config, Path('run')) as tracking:\n"
        "    tracking.table('samples', Table(['prompt'], [['x']]))\n"
        "    assert tracking\n"
    )
    done = python("-c", code, cwd=tmp_path, HOME="/proc/nowhere")
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    run = read_run(tmp_path / "run")
    assert run["exit"] == 0 and table_of(tmp_path / "run", run)["data"] == [["x"]]
    staged = [entry for files in run["paths"].values() for entry in files]
    assert staged and all(Path(path).is_relative_to(tmp_path) and Path(path).is_file() for path in staged)


def test_no_secret_is_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the environment, on the command line, in a URL and in a value; its text is in no file of the run."""
    secret, password = "k3y-of-the-judge-42", "pa55-word-of-the-server"
    monkeypatch.setenv("JUDGE_API_KEY", secret)
    monkeypatch.setattr(sys, "argv", ["llm2slm", "judge", f"key={secret}", f"endpoint=http://me:{password}@host/v1"])
    config = wandb_config(1)
    config.logger.artifacts = ["config", "results"]
    config.data.path = f"https://me:{password}@host/data"
    config.systems = {"slm": {"api_key": "another-secret-text", "note": secret}}
    (tmp_path / "result.json").write_text(json.dumps({"command": f"judge key={secret}"}))
    with track("train", config, tmp_path) as tracking:
        tracking.summary({"note": f"used {secret}"})
        tracking.outputs(tmp_path)
    assert read_run(tmp_path)["config"]["systems"]["slm"]["api_key"] == "[redacted]"
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert len(files) > 3
    for text in (secret, password, "another-secret-text"):
        assert [path for path in files if text.encode() in path.read_bytes()] == []


def test_a_broken_logger_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with track("train", wandb_config(1), tmp_path) as tracking:
        tracking._trackers[0]._run.log = None
        tracking.metrics({"train/loss": 1.0}, 0)
        tracking.metrics({"train/loss": 1.0}, 1)
        assert not tracking
    shown = capsys.readouterr().err
    assert shown.count("logger wandb failed") == 1 and "continues without it" in shown
    assert read_run(tmp_path)["exit"] == 1, "closed all the same"


class WandbServer(BaseHTTPRequestHandler):
    """The part of W&B's server that `wandb sync` needs for one run; stores the rows of its history by index."""

    history: ClassVar[dict[int, dict[str, Any]]] = {}

    def log_message(self, *_: Any) -> None:
        """Suppresses the log."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        raw = gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw
        body = json.loads(raw) if raw[:1] == b"{" else {}  # the client's reports about itself have another format
        for name, part in (body.get("files") or {}).items():
            if "history" in name:
                self.history.update(enumerate(map(json.loads, part["content"]), part["offset"]))
        answer = json.dumps(self.answer(body.get("query", ""), body.get("variables") or {})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The response to a GraphQL query, or to lines of a file."""
        own = {"id": "b", "name": variables.get("name"), "displayName": "d", "config": "{}", "wandbConfig": "{}"}
        lines = {"historyLineCount": len(self.history), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": "[]", "eventsTail": "[]", "summaryMetrics": "{}", "tags": []}
        if "upsertBucket" in query:
            project = {"id": "p", "name": "loggers-test", "entity": {"id": "e", "name": "me"}}
            return {"data": {"upsertBucket": {"bucket": own | lines | {"project": project}, "inserted": True}}}
        if "query RunResumeStatus" in query:
            return {"data": {"model": {"id": "m", "bucket": (own | lines | tails) if self.history else None}}}
        viewer = {"id": "x", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer, "serverInfo": {"features": []}, "createRunFiles": {"files": []}}}


def test_the_printed_command_uploads_every_part_of_a_resumed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wandb sync` against a server of this test: the rows of the second part follow those of the first."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for resumed, steps in ((False, (0, 1, 2)), (True, (3, 4))):
        if resumed:
            time.sleep(1.1)  # a part is named after the second of its start
        capsys.readouterr()
        with track("train", wandb_config(1), tmp_path, resumed=resumed) as tracking:
            for step in steps:
                tracking.metrics({"train/loss": step + 0.5}, step=step)
    (command,) = [line.partition("it: ")[2] for line in capsys.readouterr().err.splitlines() if "wandb sync" in line]
    assert command.startswith("wandb sync ") and len(shlex.split(command)) == 4

    WandbServer.history.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), WandbServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        own = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "a" * 40, "WANDB_ERROR_REPORTING": "false"}
        own |= {f"WANDB_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "CACHE")}
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)], env=os.environ | own, capture_output=True, text=True,
            cwd=tmp_path, check=False,
        )  # fmt: skip
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    rows = [WandbServer.history[place] for place in sorted(WandbServer.history)]
    assert [(row["trainer/global_step"], row["train/loss"]) for row in rows] == [(n, n + 0.5) for n in range(5)]


@pytest.mark.slow
def test_without_a_server_a_run_is_offline_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `auto` and credentials; `online` ends with one line instead."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_run, "CONNECT_SECONDS", 2.0)
    config = wandb_config(1)
    with track("train", config, tmp_path / "a") as tracking:
        tracking.metrics({"train/loss": 1.5}, 3)
    shown = capsys.readouterr().err
    assert "W&B did not start online" in shown and "wandb sync" in shown and "a" * 40 not in shown
    assert column(read_run(tmp_path / "a")["history"], "train/loss") == [1.5]
    config.logger.mode = "online"
    with (
        pytest.raises(UserError, match=r"run `wandb login`, or set logger\.mode=offline"),
        track("train", config, tmp_path / "b"),
    ):
        pass


def test_a_run_of_an_agent_has_the_id_of_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SWEEP_ID": "s", "RUN_ID": "given", "PROJECT": "of-the-sweep", "MODE": "offline"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    config = wandb_config(1)
    config.logger.mode = "auto"
    with track("train", config, tmp_path):
        pass
    run = read_run(tmp_path)
    assert (run["id"], run["project"]) == ("given", "of-the-sweep")


def test_a_second_open_run_is_refused(tmp_path: Path) -> None:
    with (
        track("train", wandb_config(1), tmp_path / "a"),
        pytest.raises(UserError, match=r"still open.*wandb\.finish"),
        track("train", wandb_config(1), tmp_path / "b"),
    ):
        pass


@pytest.mark.parametrize(
    ("key", "value"), [("name", "tensorbord"), ("name", "wandb+"), ("mode", "dryrun"), ("artifacts", ["weights"])]
)
def test_an_unknown_choice_is_a_user_error(tmp_path: Path, key: str, value: Any) -> None:
    config = wandb_config(1)
    setattr(config.logger, key, value)
    with (
        pytest.raises(UserError, match=rf"logger\.{key}.*(unknown; choose|expected one of)"),
        track("train", config, tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
