"""Group, name and tags of a run, from its overrides and its sweep.

The command line sets the overrides; the process of a job of a sweep has two environment variables: `SWEEP_DIR`, the
folder of the sweep, and `SWEEP_VARIED`, the keys that differ between its jobs, separated by commas.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from llm2slm.redaction import redact, redact_text

SWEEP_DIR = "LLM2SLM_SWEEP_DIR"
SWEEP_VARIED = "LLM2SLM_SWEEP_VARIED"
LONGEST_NAME = 120
LONGEST_TAG = 64
"""Limits of W&B: 128 characters of a name, 64 of a tag."""
NOT_SHOWN = ("hydra.", "hydra/", "logger", "trainer.progress")
"""Beginnings of keys that say nothing about the run."""
TIME = re.compile(r"\d\d-\d\d-\d\d")

_overrides: list[str] = []


def set_overrides(overrides: Sequence[str]) -> None:
    """Sets the overrides of the command that this process runs."""
    _overrides[:] = overrides


def of_sweep(folder: Path, varied: Sequence[str]) -> dict[str, str]:
    """The environment variables of the jobs of a sweep."""
    return {SWEEP_DIR: str(folder), SWEEP_VARIED: ",".join(varied)}


def assignments() -> dict[str, str]:
    """The overrides of this process by key, without secrets; those in `NOT_SHOWN` are left out."""
    pairs = (override.lstrip("+~").partition("=") for override in _overrides)
    found = {key.partition("@")[0]: value for key, _, value in pairs if not key.startswith(NOT_SHOWN)}
    return {key: str(redact(value, key.rpartition(".")[2])) for key, value in found.items()}


def sweep_folder() -> Path | None:
    """The folder of the sweep that this process is a job of."""
    found = os.environ.get(SWEEP_DIR)
    return Path(found) if found else None


def group_of(given: str | None) -> str | None:
    """The group of a run: the given one, else the name of its sweep."""
    folder = sweep_folder()
    if given is not None or folder is None:
        return given
    return sweep_name(folder)


def sweep_name(folder: Path) -> str:
    """The name of a sweep: that of its folder, with the date before a time of day."""
    timed = TIME.fullmatch(folder.name) is not None
    return f"{folder.parent.name}/{folder.name}" if timed else folder.name


def name_of(verb: str, folder: Path) -> str:
    """The name of a run: in a sweep its varied keys and its job (`conditioning=add seed=1 (SWEEP/3)`), else the verb
    and its overrides; without overrides the verb and the folder."""
    found, sweep = assignments(), sweep_folder()
    varied = [key for key in os.environ.get(SWEEP_VARIED, "").split(",") if key in found]
    if sweep is not None and varied:
        found = {key: found[key] for key in varied}
    words = " ".join(f"{short_key(key, found)}={short_value(value)}" for key, value in found.items())
    if sweep is not None:
        return cut(words or verb, f" ({sweep_name(sweep)}/{folder.name})")
    return cut(f"{verb} {words or folder.name}", "")


def short_key(key: str, keys: Sequence[str] | dict[str, str]) -> str:
    """The last part of a key where no other key has the same, else the key."""
    last = key.replace("/", ".").rpartition(".")[2]
    return last if sum(each.replace("/", ".").rpartition(".")[2] == last for each in keys) == 1 else key


def short_value(value: str) -> str:
    """A value without quotes; of a path its last part."""
    value = value.strip("'\"")
    return value.rstrip("/").rpartition("/")[2] if value.startswith(("/", "./", "../", "~/")) else value


def cut(text: str, end: str) -> str:
    """A name of at most `LONGEST_NAME` characters; `end` is kept."""
    left = LONGEST_NAME - len(end)
    return (text if len(text) <= left else f"{text[: left - 1]}…") + end


def tags_of(given: Sequence[str]) -> list[str]:
    """The tags of a run: the given ones and one for each override."""
    found = [f"{key}={short_value(value)}" for key, value in assignments().items()]
    return list(dict.fromkeys(redact_text(tag)[:LONGEST_TAG] for tag in (*given, *found) if tag.strip()))
