"""Loggers: `metrics.csv` row by row, and W&B runs read back from the records in their own files on disk."""

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
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from wandb.proto import wandb_internal_pb2

from llm2slm.config import RunConfig
from llm2slm.runs import plain
from llm2slm.training.loggers import MetricsFile, build_loggers, finish_loggers, log_quality, log_samples
from llm2slm.types import UserError

BLOCK = 32 * 1024
HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)  # the file's first seven bytes: name, magic number, version
SAMPLES = [
    {"source": "the cat", "target": "die Katze", "prediction": "der Katze"},
    {"source": "<b>two</b>", "target": "zwei Gänse\nund mehr", "prediction": ""},
]


def records(data: bytes) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB; checksum, length, type; fragments).

    W&B takes the plain CRC-32 of type and data where LevelDB takes a masked CRC-32C.
    """
    assert data[:7] == HEADER
    position, whole = 7, b""
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left >= 7 and len(data) < position + 7:
            return  # the writer is not done
        if left < 7:  # too little for a header: filled with zeros
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        body = data[position + 7 : position + 7 + length]
        if len(body) < length:
            return
        assert zlib.crc32(bytes([kind]) + body) == checksum, f"damaged record at byte {position}"
        position += 7 + length
        whole = whole + body if kind in (3, 4) else body  # 1 full, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


def run_file(folder: Path) -> Path:
    """The one .wandb file of a run directory."""
    (found,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return found


def name_of(item: Any) -> str:
    """Key of a config, history or summary item."""
    return item.key or ".".join(item.nested_key)


def finished_records(folder: Path) -> list[Any]:
    """All records of a finished run. W&B's helper process may write the last ones just after `finish` has returned."""
    for _ in range(600):
        found = list(records(run_file(folder).read_bytes()))
        if any(record.WhichOneof("record_type") == "exit" for record in found):  # what follows it is bookkeeping
            return found
        time.sleep(0.1)
    raise AssertionError(f"no exit record in {run_file(folder)}: the run was never finished")


def read_run(folder: Path) -> dict[str, Any]:
    """Id, settings, config, history and summary of the W&B run in a run directory."""
    run: dict[str, Any] = {"history": [], "summary": {}, "config": {}, "exit": None}
    for record in finished_records(folder):
        match record.WhichOneof("record_type"):
            case "run":
                run |= {"id": record.run.run_id, "project": record.run.project, "group": record.run.run_group}
                run |= {"name": record.run.display_name, "tags": list(record.run.tags)}
                run["config"] |= {name_of(item): json.loads(item.value_json) for item in record.run.config.update}
            case "history":
                run["history"].append({name_of(item): json.loads(item.value_json) for item in record.history.item})
            case "summary":
                run["summary"] |= {name_of(item): json.loads(item.value_json) for item in record.summary.update}
            case "exit":
                run["exit"] = record.exit.exit_code
    return run


def test_reader_joins_fragments_across_blocks_and_sees_damage() -> None:
    """The oracle itself: a record longer than a block, a block's unused tail, and one flipped bit."""
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
    """Bytes that a record takes beside a line of some twenty thousand characters."""
    record = wandb_internal_pb2.Record(num=8)
    record.output.line = "y" * 20_000
    return len(record.SerializeToString()) - 20_000


class Slope(LightningModule):
    """One weight; the loss is its distance from zero, so SGD moves it by exactly the learning rate each step."""

    def __init__(self, start: float, lr: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(start))
        self.lr = lr

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.log("train/loss", self.weight)
        self.log("lr/slm", self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.weight * 1.0

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/loss", self.weight)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step), "interval": "step"}
        ]


def wandb_config(seed: int) -> RunConfig:
    config = RunConfig(seed=seed)
    config.logger.name = "wandb"
    config.logger.project = "loggers-test"
    config.logger.group = "sweep"
    config.logger.tags = ["tiny", "two words"]
    return config


def fit(loggers: Any, start: float, lr: float, steps: int = 4) -> None:
    loader = DataLoader(torch.zeros(steps, 1), batch_size=1)
    trainer = Trainer(
        logger=loggers,
        max_steps=steps,
        val_check_interval=2,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Slope(start, lr), loader, DataLoader(torch.zeros(1, 1)))


def column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row.get(name) not in (None, "")]


def test_wandb_runs_of_two_sweep_jobs_hold_what_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_NOTES", "the user's own")
    jobs = [(tmp_path / "0", wandb_config(11), 8.0, 0.5), (tmp_path / "1", wandb_config(12), 16.0, 1.0)]
    for folder, config, start, lr in jobs:
        with finish_loggers():
            loggers = build_loggers(config.logger, folder, config)
            fit(loggers, start, lr)
            log_samples(loggers, SAMPLES)
            log_quality(loggers, {"bleu": start + 0.25, "chrf": 50.0})
        assert "WANDB_MODE" not in os.environ
        assert os.environ["WANDB_NOTES"] == "the user's own"

    runs = [read_run(folder) for folder, *_ in jobs]
    assert runs[0]["id"] != runs[1]["id"]
    for run, (folder, config, start, lr) in zip(runs, jobs, strict=True):
        assert run["exit"] == 0
        assert (run["project"], run["group"], run["tags"]) == ("loggers-test", "sweep", ["tiny", "two words"])
        assert run["name"] == f"llm2slm-{folder.name}"
        assert {key: run["config"][key] for key in plain(config)} == plain(config)

        rates = [lr, lr / 2, lr / 4, lr / 8]
        weights = [start, start - lr, start - 1.5 * lr, start - 1.75 * lr, start - 1.875 * lr]
        assert column(run["history"], "lr/slm") == rates
        assert column(run["history"], "train/loss") == weights[:4]
        assert column(run["history"], "val/loss") == [weights[2], weights[4]]
        steps = [row["trainer/global_step"] for row in run["history"] if "train/loss" in row]
        assert steps == sorted(set(steps))

        assert run["summary"]["quality/bleu"] == start + 0.25
        assert run["summary"]["quality/chrf"] == 50.0
        assert run["summary"]["val/loss"] == weights[4]

        (table,) = [row for row in run["history"] if "samples.path" in row]
        shown = json.loads((run_file(folder).parent / "files" / table["samples.path"]).read_text(encoding="utf-8"))
        assert shown["columns"] == ["source", "target", "prediction"]
        assert shown["data"] == [list(row.values()) for row in SAMPLES]

        # The same curves in metrics.csv, one row a step.
        rows = read_csv(folder)
        assert column(rows, "train/loss") == weights[:4]
        assert column(rows, "val/loss") == [weights[2], weights[4]]
        assert len({row["step"] for row in rows}) == len(rows)


@pytest.mark.parametrize("own", [None, "disabled"])
def test_failed_run_is_closed_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None) -> None:
    """Whatever WANDB_MODE the user has set: `logger.mode` decides, and the variable is as before afterwards."""
    if own is not None:
        monkeypatch.setenv("WANDB_MODE", own)
    config = wandb_config(1)
    with pytest.raises(RuntimeError, match="out of luck"), finish_loggers():
        build_loggers(config.logger, tmp_path / "a", config)
        os.environ["WANDB_MODE"] = "dryrun"  # as WandbLogger(offline=True) does
        raise RuntimeError("out of luck")
    assert read_run(tmp_path / "a")["exit"] == 1
    assert os.environ.get("WANDB_MODE") == own
    with finish_loggers():
        build_loggers(config.logger, tmp_path / "b", config)
    assert read_run(tmp_path / "b")["id"] != read_run(tmp_path / "a")["id"]


def test_resumed_run_keeps_its_id_and_a_new_one_does_not(tmp_path: Path) -> None:
    identities = []
    for resumed in (None, str(tmp_path), None):
        config = wandb_config(1)
        config.run = resumed
        with finish_loggers():
            identities.append(build_loggers(config.logger, tmp_path, config)[1].version)
    assert identities[0] == identities[1] != identities[2]


class WandbServer(BaseHTTPRequestHandler):
    """As much of W&B's server as `wandb sync` needs for one run; keeps the rows of its history by their places."""

    history: ClassVar[dict[int, dict[str, Any]]] = {}

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        raw = gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw
        body = json.loads(raw) if raw[:1] == b"{" else {}  # the client's reports on itself are in another format
        for name, part in (body.get("files") or {}).items():
            if "history" in name:
                self.history.update(enumerate(map(json.loads, part["content"]), part["offset"]))
        answer = json.dumps(self.answer(body.get("query", ""), body.get("variables") or {})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """To a GraphQL query, or to lines of a file."""
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
    """`wandb sync` itself, against a server of this test: the second part's rows come behind those of the first."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for resumed, steps in ((None, (0, 1, 2)), (str(tmp_path), (3, 4))):
        config = wandb_config(1)
        config.run = resumed
        if resumed:
            time.sleep(1.1)  # a part is named by the second in which it began
        assert "wandb sync" not in capsys.readouterr().err
        with finish_loggers():
            logger = build_loggers(config.logger, tmp_path, config)[1]
            for step in steps:
                logger.log_metrics({"train/loss": step + 0.5}, step=step)
    said = capsys.readouterr().err
    (command,) = [line.partition("run: ")[2] for line in said.splitlines() if "wandb sync" in line]
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


def test_second_open_run_is_refused(tmp_path: Path) -> None:
    config = wandb_config(1)
    with finish_loggers():
        build_loggers(config.logger, tmp_path / "a", config)
        with pytest.raises(UserError, match=r"still open.*wandb\.finish"):
            build_loggers(config.logger, tmp_path / "b", config)


@pytest.mark.parametrize(("key", "value"), [("name", "tensorbord"), ("mode", "dryrun")])
def test_unknown_choice_is_a_user_error(tmp_path: Path, key: str, value: str) -> None:
    config = wandb_config(1)
    setattr(config.logger, key, value)
    with pytest.raises(UserError, match=rf"logger\.{key}={value}: expected one of"):
        build_loggers(config.logger, tmp_path, config)


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_metrics_file_has_one_row_a_step_on_disk_at_once(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path)
    log.log_metrics({"train/loss": torch.tensor(2.5), "epoch": 0}, step=10)
    assert read_csv(tmp_path) == [{"step": "10", "train/loss": "2.5", "epoch": "0"}]
    log.log_metrics({"train/loss": 2.0}, step=20)
    log.log_metrics({"val/loss": 1.5}, step=20)  # a new column, in a row that stands already
    log.log_metrics({"val/bleu": 7.0})  # no step: the last row's
    log.log_metrics({"train/loss": 1.0}, step=30)
    log.log_metrics({"train/loss": 0.5}, step=30)  # a known column: only the last row is written again
    log.log_metrics({"val/loss": 9.0}, step=20)  # late news of an earlier step
    log.log_metrics({"train/loss": 0.25}, step=40)
    empty = {"train/loss": "", "epoch": "", "val/loss": "", "val/bleu": ""}
    assert read_csv(tmp_path) == [
        empty | {"step": "10", "train/loss": "2.5", "epoch": "0"},
        empty | {"step": "20", "train/loss": "2.0", "val/loss": "9.0", "val/bleu": "7.0"},
        empty | {"step": "30", "train/loss": "0.5"},
        empty | {"step": "40", "train/loss": "0.25"},
    ]


def test_metrics_file_of_a_resumed_run_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    killed = MetricsFile(tmp_path)
    for step in (10, 20, 30):
        killed.log_metrics({"train/loss": step / 10, "lr/slm": 0.1}, step=step)
    with killed.path.open("a", encoding="utf-8") as file:
        file.write("4")  # died in the middle of the row of step 40
    before = killed.path.read_text(encoding="utf-8")

    resumed = MetricsFile(tmp_path)  # from the checkpoint of step 20; logs nothing yet
    resumed.save()
    resumed.finalize("success")
    assert killed.path.read_text(encoding="utf-8") == before
    resumed.log_metrics({"train/loss": 7.0, "val/loss": 5.0}, step=30)
    resumed.log_metrics({"train/loss": 6.0}, step=40)
    rows = read_csv(tmp_path)
    assert [(row["step"], row["train/loss"], row["lr/slm"], row["val/loss"]) for row in rows] == [
        ("10", "1.0", "0.1", ""),
        ("20", "2.0", "0.1", ""),
        ("30", "7.0", "", "5.0"),
        ("40", "6.0", "", ""),
    ]


def test_foreign_metrics_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(UserError, match=r"metrics\.csv: not a metrics file"):
        MetricsFile(tmp_path).log_metrics({"train/loss": 1.0}, step=1)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,loss\n1,2\n"
