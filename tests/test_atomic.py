"""Atomic writes of files: the state on disk if the process is killed, or fails, at any point of the writing."""

from __future__ import annotations

import os
import re
import resource
import signal
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from llm2slm import json_lines, runs
from llm2slm.atomic import NotWritten, WriteLock, filling, replacing, write_text
from llm2slm.config import RunConfig
from llm2slm.evaluation.judge.client import Reply
from llm2slm.evaluation.judge.log import JudgeLog
from llm2slm.resumable import ResumableLines
from llm2slm.training.loggers import MetricsFile
from llm2slm.types import UserError


def killed(write) -> None:
    """Runs `write` in a fork that must kill itself."""
    child = os.fork()
    if child == 0:
        try:
            write()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_lock_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    path, other = write_text(tmp_path / "a", "text\n"), WriteLock(tmp_path / "a", "wait")
    lock = WriteLock(path, "give another out")
    lock.acquire()
    assert {p.name for p in tmp_path.iterdir()} == {"a", ".a.lock"}
    with pytest.raises(UserError, match=r"/a: another process is writing it; wait, or wait$"):
        other.acquire()
    other.release()  # it holds no lock: the lock remains
    with pytest.raises(UserError, match="another process is writing it"):
        other.acquire()
    lock.release()
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and path.read_text() == "text\n"
    other.acquire()
    with pytest.raises(UserError, match=r"wait, or give another out$"):
        lock.acquire()
    other.release()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    def write() -> None:
        WriteLock(tmp_path / "a").acquire()
        die()

    killed(write)
    assert [p.name for p in tmp_path.iterdir()] == [".a.lock"]
    lock = WriteLock(tmp_path / "a")
    lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_in_a_folder_without_write_permission_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".a.lock"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(NotWritten, match=r"/a: cannot be written \(Permission denied\)"):
            WriteLock(tmp_path / "a").acquire()


def test_a_kill_during_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "file.txt", "old\n")

    def write() -> None:
        with replacing(path) as file:
            file.write(b"n" * 100_000)
            file.flush()
            die()

    killed(write)
    assert path.read_text() == "old\n"
    assert {p.name for p in path.parent.iterdir()} == {"file.txt", ".file.txt.part"}
    write_text(path, "new\r\n\n")
    assert path.read_bytes() == b"new\r\n\n"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"], "what the killed process left is used up"


def test_an_error_leaves_the_old_file_and_no_other_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "file.txt", "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"new")
        1 / 0  # noqa: B018
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a pair: \ud800")
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"
    assert write_text(path, "half a pair: \ud800", errors="replace").read_text() == "half a pair: ?"


def test_the_content_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut could leave an empty file under the new name."""
    seen = []

    def fsync(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        seen.append((kind, os.fstat(handle).st_size if kind == "file" else sorted(p.name for p in tmp_path.iterdir())))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "file.txt", "12345")
    assert seen == [("file", 5), ("folder", ["file.txt"])]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_is_replaced_file_by_file_with_the_decisive_file_last(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("config.json", "b/weights", "other"):
        write_text(folder / name, "old")

    def write() -> None:
        moved = []
        rename = Path.replace

        def replace(path: Path, to: Path) -> Path:
            if path.name == "config.json":
                assert sorted(moved) == ["weights", "z"], moved
                die()
            moved.append(path.name)
            return rename(path, to)

        Path.replace = replace
        fill()

    def fill() -> None:
        with filling(folder, last="config.json") as stage:
            assert not list(stage.iterdir()), "what a killed process left is removed"
            for name in ("config.json", "b/weights", "z"):
                (stage / name).parent.mkdir(exist_ok=True)
                (stage / name).write_text("new")

    killed(write)
    assert {n: (folder / n).read_text() for n in ("config.json", "b/weights")} == {
        "config.json": "old", "b/weights": "new"
    }  # fmt: skip
    fill()
    found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
    assert found == {"config.json": "new", "b/weights": "new", "z": "new", "other": "old"}
    assert sorted(p.name for p in folder.iterdir()) == ["b", "config.json", "other", "z"]


def test_an_error_leaves_the_folder_unchanged(tmp_path: Path) -> None:
    write_text(tmp_path / "config.json", "old")
    with pytest.raises(ZeroDivisionError), filling(tmp_path, last="config.json") as stage:
        (stage / "config.json").write_text("new")
        1 / 0  # noqa: B018
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"config.json": "old"}


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "predictions.jsonl"])
def test_the_files_of_a_run_are_replaced_atomically_in_the_same_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just before the rename, each file has its old content; the temporary directory does not exist."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    folder = tmp_path / "run"
    write = {
        "config.yaml": lambda: runs.write_config(folder, RunConfig()),
        "result.json": lambda: runs.write_result(folder, runs.Result("train", 0, "0", 0.0, [])),
        "predictions.jsonl": lambda: json_lines.write_jsonl(folder / name, [{"prediction": "ü"}]),
    }[name]
    write_text(folder / name, "old")

    def dying() -> None:
        Path.replace = die
        write()

    killed(dying)
    assert (folder / name).read_text() == "old"
    write()
    assert [p.name for p in folder.iterdir()] == [name]
    assert (folder / name).read_text() not in ("old", "")


# Errors of the disk

LIMIT = 20_000
"""Limit on the bytes of a file in these tests: it fails the same system call as a full disk."""


def write_torch(folder: Path) -> None:
    with replacing(folder / "a") as file:
        torch.save({"a": torch.zeros(LIMIT)}, file)


def fill_weights(folder: Path) -> None:
    with filling(folder / "a", last="w") as stage:
        save_file({"a": torch.zeros(LIMIT)}, stage / "w")


def fill_tokenizer(folder: Path) -> None:
    with filling(folder / "a", last="t") as stage:
        Tokenizer(WordLevel({str(n): n for n in range(LIMIT)}, unk_token="0")).save(str(stage / "t"))


def fill_text(folder: Path) -> None:
    with filling(folder / "a", last="t") as stage:
        (stage / "t").write_text("x" * 2 * LIMIT)


def fill_nested(folder: Path) -> None:
    """Like a processor, which fills its folder within that of its model."""
    with filling(folder / "a", last="t") as stage, filling(stage, last="t") as inner:
        (inner / "t").write_text("x" * 2 * LIMIT)


def add_lines(folder: Path) -> None:
    file = ResumableLines(folder / "a", {})
    try:
        file.append(["x" * 2 * LIMIT])
    finally:
        file.close()


def add_reply(folder: Path) -> None:
    with JudgeLog(folder / "a") as log:
        log.append("key", Reply("x" * 2 * LIMIT), "here")


def add_metrics(folder: Path) -> None:
    for step in range(LIMIT):
        MetricsFile.log_metrics(metrics[0], {"loss": 0.5}, step)


metrics: list[MetricsFile] = []

WRITES = {
    "text": (lambda folder: write_text(folder / "a", "x" * 2 * LIMIT), "a"),
    "torch": (write_torch, "a"),
    "weights": (fill_weights, "a"),
    "tokenizer": (fill_tokenizer, "a"),
    "a file in a folder": (fill_text, "a"),
    "a folder in a folder": (fill_nested, "a"),
    "lines": (add_lines, "a.part"),
    "reply": (add_reply, "a"),
    "metrics": (add_metrics, "metrics.csv"),
}


@pytest.mark.parametrize("kind", WRITES)
def test_an_error_of_the_disk_is_reported_on_one_line_by_every_writer(tmp_path: Path, kind: str) -> None:
    write, name = WRITES[kind]
    folder, told = tmp_path / "run", tmp_path / "told"
    folder.mkdir()
    metrics[:] = [MetricsFile(folder)]
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
            write(folder)
        except BaseException as error:
            told.write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert told.read_text() == (
        f"NotWritten: {folder / name}: cannot be written (File too large); free space on this disk"
    )
    left = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert left <= {"a", "a.part", "metrics.csv"}, "nothing that is half written stays in another's way"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file/a", "Not a directory|File exists"), ("folder", "Is a directory"), ("n" * 300, "too long")],
)
def test_a_path_that_cannot_be_written_is_reported_on_one_line(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("old")
    write_text(tmp_path / "folder" / "inside", "old")
    for write in (lambda path: write_text(path, "new"), lambda path: json_lines.write_jsonl(path, [])):
        with pytest.raises(
            NotWritten, match=rf"^{re.escape(str(tmp_path / name))}: cannot be written \(.*({reason}).*\)"
        ):
            write(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "inside").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_other_errors_are_not_reported_as_errors_of_the_disk(tmp_path: Path) -> None:
    """A missing input file, a lost connection, other exceptions."""
    other = [
        (tmp_path / "missing").read_text,
        lambda: (_ for _ in ()).throw(ConnectionResetError(104, "Connection reset by peer")),
        lambda: (_ for _ in ()).throw(OSError("cannot load the model")),
        lambda: (_ for _ in ()).throw(RuntimeError("shapes differ")),
        lambda: (_ for _ in ()).throw(UserError("with_llm: no")),
    ]
    for fail in other:
        with pytest.raises(Exception) as alone:
            fail()
        for block in (replacing(tmp_path / "a"), filling(tmp_path / "b", last="c")):
            with pytest.raises(type(alone.value)) as caught, block:
                fail()
            assert str(caught.value) == str(alone.value) and not isinstance(caught.value, NotWritten)
