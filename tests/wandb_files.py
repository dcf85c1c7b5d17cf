"""Reads W&B's offline run files (`run-ID.wandb`), without W&B's code: a log of protocol buffers."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32 * 1024
HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)  # the file's first seven bytes: name, magic number, version


def records(data: bytes) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB; checksum, length, type; fragments).

    W&B uses the plain CRC-32 of type and data where LevelDB uses a masked CRC-32C.
    """
    assert data[:7] == HEADER
    position, whole = 7, b""
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left >= 7 and len(data) < position + 7:
            return  # the process that writes has not finished
        if left < 7:  # too short for a header: filled with zeros
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


def run_file(folder: Path, part: str = "offline-run-*") -> Path:
    """The single .wandb file of a run directory, or of one part of a resumed run."""
    (found,) = folder.glob(f"wandb/{part}/run-*.wandb")
    return found


def name_of(item: Any) -> str:
    """Key of a config, history or summary item."""
    return item.key or ".".join(item.nested_key)


def finished_records(path: Path) -> list[Any]:
    """All records of a finished run. W&B's service may write the last ones just after `finish` has returned."""
    for _ in range(600):
        found = list(records(path.read_bytes()))
        if any(record.WhichOneof("record_type") == "exit" for record in found):  # the following records are bookkeeping
            return found
        time.sleep(0.1)
    raise AssertionError(f"no exit record in {path}: the run was never finished")


def nested(items: Any) -> dict[str, Any]:
    """The values of items, with keys in parts as nested values."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inner = found
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = json.loads(item.value_json)
    return found


def read_run(folder: Path, part: str = "offline-run-*") -> dict[str, Any]:
    """Id, settings, config, history, summary and artifacts (kind -> names; paths: kind -> files) of a W&B run."""
    run: dict[str, Any] = {"history": [], "summary": {}, "config": {}, "exit": None, "artifacts": {}, "paths": {}}
    for record in finished_records(run_file(folder, part)):
        match record.WhichOneof("record_type"):
            case "run":
                run |= {"id": record.run.run_id, "project": record.run.project, "group": record.run.run_group}
                run |= {"name": record.run.display_name, "tags": list(record.run.tags)}
                run |= {"job_type": record.run.job_type}
                run["config"] |= {name_of(item): json.loads(item.value_json) for item in record.run.config.update}
            case "history":
                run["history"].append(nested(record.history.item))
            case "summary":
                run["summary"] |= nested(record.summary.update)
            case "artifact":
                contents = record.artifact.manifest.contents
                run["artifacts"][record.artifact.type] = [entry.path for entry in contents]
                run["paths"][record.artifact.type] = [entry.local_path for entry in contents]
            case "exit":
                run["exit"] = record.exit.exit_code
    return run


def table_of(folder: Path, run: dict[str, Any], name: str = "samples") -> dict[str, Any]:
    """The last table of a name: columns and data."""
    path = [row[name]["path"] for row in run["history"] if name in row][-1]
    (file,) = folder.glob(f"wandb/offline-run-*/files/{path}")
    return json.loads(file.read_text(encoding="utf-8"))
