"""A file that is written line by line in batches: cut at any byte, it is completed as if undisturbed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llm2slm.resumable import ResumableLines
from llm2slm.types import UserError

LINES = ["one", "", "zwei \u00e4\u2028", '{"a": 1}', "five"]
SETTINGS = {"seed": 1, "name": "\u00e4"}


def write(path: Path, lines: list[str], batch: int) -> int:
    """A job that writes the missing lines; returns the number of lines that existed."""
    file = ResumableLines(path, SETTINGS, batch)
    found = file.done
    for start in range(found, len(lines), batch):
        file.append(lines[start : start + batch])
    file.finish()
    return found


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_file_cut_at_any_byte_is_completed(tmp_path: Path, batch: int) -> None:
    whole = tmp_path / "whole.txt"
    assert write(whole, LINES, batch) == 0
    expected = "".join(f"{line}\n" for line in LINES).encode()
    assert whole.read_bytes() == expected
    file = ResumableLines(tmp_path / "a.txt", SETTINGS, batch)
    head = len(file.partial.read_bytes())
    file.append(LINES)
    file.close()
    content = file.partial.read_bytes()
    assert content[head:] == expected
    seen = set()
    for end in range(len(content) + 1):
        file.partial.write_bytes(content[:end])
        found = write(tmp_path / "a.txt", LINES, batch)
        complete = content[head:end].count(b"\n") if end >= head else 0
        assert found == complete // batch * batch
        assert (tmp_path / "a.txt").read_bytes() == expected
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "whole.txt"]
        seen.add(found)
    assert len(seen) > 1


def test_another_jobs_file_is_not_changed(tmp_path: Path) -> None:
    file = ResumableLines(tmp_path / "a.txt", SETTINGS)
    file.append(LINES)
    file.close()
    before = file.partial.read_bytes()
    with pytest.raises(UserError, match=r"a.txt.part: was begun with other settings \(seed 1, now 2\).*remove it"):
        ResumableLines(tmp_path / "a.txt", SETTINGS | {"seed": 2})
    assert file.partial.read_bytes() == before
    for foreign in (b"somebody's own text\n", b"[1]\n", b"{}\nmore\n", b"no line end"):
        file.partial.write_bytes(foreign)
        with pytest.raises(UserError, match="not a file of an unfinished job"):
            ResumableLines(tmp_path / "a.txt", SETTINGS)
        assert file.partial.read_bytes() == foreign


def test_two_jobs_cannot_write_one_file(tmp_path: Path) -> None:
    first = ResumableLines(tmp_path / "a.txt", SETTINGS)
    first.append(LINES[:2])
    with pytest.raises(UserError, match=r"a.txt.part: another process is writing it"):
        ResumableLines(tmp_path / "a.txt", SETTINGS)
    first.close()
    second = ResumableLines(tmp_path / "a.txt", SETTINGS)
    assert second.done == 2
    second.append(LINES[2:])
    second.finish()
    assert (tmp_path / "a.txt").read_text("utf-8").split("\n") == [*LINES, ""]
    third = ResumableLines(tmp_path / "a.txt", SETTINGS)  # the lock was released with the partial file
    assert third.done == 0


@pytest.mark.parametrize("half", [b"", b"thr", b"three\nfo"])
def test_existing_lines_are_never_rewritten(tmp_path: Path, half: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ends while it resumes another one loses none of its lines."""
    file = ResumableLines(tmp_path / "a.txt", SETTINGS, 2)
    file.append(LINES[:2])
    file.close()
    before = file.partial.read_bytes()
    file.partial.write_bytes(before + half)
    seen: list[bytes] = []

    def looking(job: Any, content: bytes) -> None:
        seen.append(file.partial.read_bytes())
        write_on(job, content)

    write_on = ResumableLines._write
    monkeypatch.setattr(ResumableLines, "_write", looking)
    again = ResumableLines(tmp_path / "a.txt", SETTINGS, 2)
    assert again.done == 2 and again.partial.read_bytes() == before
    again.append(LINES[2:])
    assert all(content.startswith(before) for content in seen)


def test_a_file_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    to_disk, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: steps.append("fsync") or to_disk(handle))
    monkeypatch.setattr(Path, "replace", lambda *paths: steps.append("replace") or rename(*paths))
    file = ResumableLines(tmp_path / "a.txt", SETTINGS)
    file.append(LINES)
    steps.clear()
    file.finish()
    assert steps[:2] == ["fsync", "replace"]
    assert (tmp_path / "a.txt").read_text("utf-8").split("\n") == [*LINES, ""]
