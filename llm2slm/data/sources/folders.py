"""The files of the splits of a data set in a local folder: by its README.md, else by the file names.

The rules are those that `datasets` documents for repositories of the Hub. They are applied to relative names: neither
the path of the folder nor the name of an existing file is interpreted as a pattern.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from datasets.data_files import (
    ALL_DEFAULT_PATTERNS,
    DEFAULT_SPLITS,
    FILES_TO_IGNORE,
    SPLIT_PATTERN_SHARDED,
    sanitize_patterns,
)
from datasets.load import infer_module_for_data_files
from datasets.utils.metadata import MetadataConfigs

from llm2slm.data.sources.rows import READERS, suffix_of
from llm2slm.nearest_names import nearest
from llm2slm.types import UserError

READABLE = {"csv": {".csv", ".tsv"}, "json": {".json", ".jsonl", ".ndjson"}, "parquet": {".parquet"}}
"""Builders of `datasets` whose files this project reads, and the suffixes of these files."""
IGNORED_KEYS = {"data_files", "data_dir", "default", "description", "version"}
"""Keys of a subset in README.md that have no effect on reading its files."""
OPTIONS = {"delimiter": "sep"}
"""Aliases of options."""


@dataclass(frozen=True)
class FolderFiles:
    """The files of a data set.

    Attributes:
        splits: by the name of a split, its files in reading order.
        kind: builder of `datasets`: csv, json, parquet, text, ...
        options: reader options from README.md or a suffix.
    """

    splits: dict[str, list[Path]]
    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def as_rows(self) -> bool:
        """Whether this project's readers can read the files."""
        return self.kind in READABLE and not self._unknown_files and not self._unknown_options

    @property
    def not_as_rows(self) -> str:
        """Why this project's readers cannot read files of a known kind, and what to do."""
        if self._unknown_files:
            return f"{self._unknown_files[0]}: cannot be read as text; unpack it, or compress it with gzip"
        option = self._unknown_options[0]
        return f"README.md sets {option} for these files, which is not supported; remove it, or write them without it"

    @property
    def _unknown_files(self) -> list[Path]:
        return [path for files in self.splits.values() for path in files if suffix_of(path) not in READERS]

    @property
    def _unknown_options(self) -> list[str]:
        plain = {"encoding": ("utf-8", "utf8")}
        return [
            name
            for name, value in self.options.items()
            if name != "sep" and str(value).lower() not in plain.get(name, ())
        ]


def subsets(folder: Path) -> dict[str, dict[str, Any]]:
    """The subsets in the folder's README.md, by name.

    Raises:
        UserError: the metadata is not YAML, or not a list of subsets.
    """
    described: dict[str, Any] = {}
    readme, separate = folder / "README.md", folder / ".huggingface.yaml"
    try:
        if readme.is_file():
            lines = readme.read_text(encoding="utf-8-sig").splitlines()
            if lines[:1] == ["---"] and "---" in lines[1:]:
                described |= yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)])) or {}
        if separate.is_file():
            described |= yaml.safe_load(separate.read_text(encoding="utf-8")) or {}
        return dict(MetadataConfigs.from_dataset_card_data(described))
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{readme}: its metadata cannot be read ({reason:.200})") from None


def find_files(folder: Path, subset: str | None, must: bool) -> FolderFiles:
    """The files of a data set, or of a subset: one in README.md, or the subfolder with its name.

    Args:
        must: the subset must exist, since the user gave it; else a folder without subsets is accepted.

    Raises:
        UserError: the subset does not exist, none of several subsets is chosen, or there are no files.
    """
    known = subsets(folder)
    if subset is not None and subset not in known:
        if (folder / subset).is_dir():
            return _files(folder / subset, {})
        if must:
            raise UserError(f"{folder}: no subset {subset!r}; {_subset_suggestion(subset, folder, known)}")
        subset = None
    if subset is None and known:
        subset = MetadataConfigs(known).get_default_config_name()
        if subset is None:
            raise UserError(f"{folder}: holds several subsets; choose one by data.subset=NAME: {', '.join(known)}")
    return _files(folder, known[subset] if subset is not None else {})


def _subset_suggestion(subset: str, folder: Path, known: Mapping[str, Any]) -> str:
    names = sorted(known) or sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        return "it holds none; leave data.subset out"
    return f"did you mean {nearest(subset, names)!r}? ({', '.join(names)})"


def _files(folder: Path, metadata: Mapping[str, Any]) -> FolderFiles:
    base = folder / metadata["data_dir"] if metadata.get("data_dir") else folder
    names = _names(base)
    named = metadata.get("data_files")
    patterns = _default_patterns(names) if named is None else sanitize_patterns(named)
    found = {split: _matching(base, names, patterns[split]) for split in patterns}
    found = {str(split): files for split, files in found.items() if files}
    if not found:
        raise UserError(f"{base}: does not contain any data files")
    try:
        kind, options = infer_module_for_data_files({split: list(map(str, files)) for split, files in found.items()})
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{base}: {str(error).partition(chr(10))[0]}") from None
    if kind in READABLE:  # ignores files of other kinds
        readable = {split: [path for path in files if _is_of(kind, path)] for split, files in found.items()}
        found = {split: readable[split] or found[split] for split in found}
    options = options | {OPTIONS.get(key, key): value for key, value in metadata.items() if key not in IGNORED_KEYS}
    return FolderFiles({split: [base / name for name in files] for split, files in found.items()}, kind, options)


def _is_of(kind: str, path: PurePosixPath) -> bool:
    return any(suffix.lower() in READABLE[kind] for suffix in path.suffixes)


def _names(folder: Path) -> list[PurePosixPath]:
    """All files below a folder, as relative paths."""
    found = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    relative = [PurePosixPath(path.relative_to(folder).as_posix()) for path in found if path.is_file()]
    return sorted(relative, key=str)


def _default_patterns(names: Sequence[PurePosixPath]) -> dict[str, list[str]]:
    """The patterns of the splits without metadata: those of the first layout that matches any file."""
    find = partial(_match, names)
    shard = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\..*")
    named = [shard.fullmatch(path.name) for path in find(SPLIT_PATTERN_SHARDED.format(split="*"))]
    if splits := {match[1] for match in named if match}:
        first = [str(split) for split in DEFAULT_SPLITS if split in splits]
        return {name: [SPLIT_PATTERN_SHARDED.format(split=name)] for name in [*first, *sorted(splits - set(first))]}
    for layout in ALL_DEFAULT_PATTERNS:
        found = {str(split): patterns for split, patterns in layout.items() if any(map(find, patterns))}
        if found:
            return found
    return {}


def _matching(folder: Path, names: Sequence[PurePosixPath], patterns: Sequence[str]) -> list[PurePosixPath]:
    """The files that match the patterns, each once, in the order of the patterns.

    Raises:
        UserError: a pattern without wildcards matches no file, or points outside the folder.
    """
    found: dict[PurePosixPath, None] = {}
    for pattern in patterns:
        given = PurePosixPath(pattern)
        if "://" in pattern or given.is_absolute() or ".." in given.parts:
            raise UserError(f"{folder}: README.md names files outside this folder ({pattern}); copy them into it")
        matches = [given] if given in names else _match(names, str(given))
        if not matches and not re.search(r"[*?[]", pattern):
            raise UserError(f"{folder / pattern}: no such file, but README.md names it")
        found |= dict.fromkeys(matches)
    return list(found)


def _match(names: Sequence[PurePosixPath], pattern: str) -> list[PurePosixPath]:
    """The files that match a pattern. Hidden files, and files in folders with a leading `.` or `__`, match only
    patterns with these prefixes."""
    parts = PurePosixPath(pattern).parts
    return [
        path
        for path in names
        if _fits(path.parts, parts)
        and _count(path.parts, ".") == _count(parts, ".")
        and _count(path.parts[:-1], "__") == _count(parts[:-1], "__")
        and (path.name not in FILES_TO_IGNORE or path.name == parts[-1])
    ]


def _count(parts: Sequence[str], start: str) -> int:
    return sum(part.startswith(start) for part in parts)


def _fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, both in parts; `**` matches any number of folders, at the end any files."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return bool(path) if len(pattern) == 1 else any(_fits(path[n:], pattern[1:]) for n in range(len(path)))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])
