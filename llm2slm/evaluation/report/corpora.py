"""The corpus and the split of a run's scores: scores on different rows do not compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llm2slm.types import UserError

CORPUS = "corpus"
"""Key of a result, and heading of a column, where the runs of a table are of several corpora."""


def corpus_of(config_text: str, scored: str | None = None) -> str:
    """A name for the rows that a run was tested on, as `multi30k en→de`; "" if its configuration is unknown.

    Args:
        scored: the split of its scores; None: the configured one. (`calibrate` scores the validation split, whatever
            is configured; so does `train` where the files of a corpus have no test split.)
    """
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError:
        return ""
    data = config.get("data") if isinstance(config, Mapping) else None
    if not isinstance(data, Mapping) or not data.get("name"):
        return ""
    split = scored or str(config.get("split") or "test")
    found = _name(data, split)
    return found if split == "test" else f"{found} ({split})"


def _name(data: Mapping[str, Any], split: str) -> str:
    """The name of a corpus: what identifies its rows, without the folder that it is stored in."""
    name = str(data["name"])
    if name == "mixture":
        parts = data.get("parts") or []
        return " + ".join(_name(part, split) for part in parts if isinstance(part, Mapping) and part.get("name"))
    details = [data.get("path"), data.get("subset")]
    if name == "builtin":
        details = [data.get("corpus")]
    elif name == "json":
        file = data.get(split) or data.get("validation")
        details = [file]
    source, target = data.get("source"), data.get("target")
    fields = f"{source}→{target}" if source and target else (source or target)
    return " ".join(str(each) for each in (name, *details, fields) if each)


def _scored_split(result: Mapping[str, Any]) -> str | None:
    """The split of a result's scores; None if it has no scores or does not record it."""
    for system in result.get("systems") or []:
        notes = system.get("notes") if isinstance(system, Mapping) and system.get("quality") else None
        if isinstance(notes, Mapping) and notes.get("split"):
            return str(notes["split"])
    return None


def with_corpora(
    results: Sequence[Mapping[str, Any]], configs: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """The results, with the key `corpus` if they are of several corpora; and the runs of each known corpus."""
    names = [corpus_of(text, _scored_split(result)) for result, text in zip(results, configs, strict=True)]
    found: dict[str, list[int]] = {}
    for run, name in enumerate(names):
        if name:
            found.setdefault(name, []).append(run)
    if len(found) < 2:
        return [dict(result) for result in results], found
    return [{**result, CORPUS: name} for result, name in zip(results, names, strict=True)], found


def refuse_mixed(found: Mapping[str, Sequence[int]], names: Sequence[str]) -> None:
    """Refuses runs of several corpora, or with scores of several splits.

    Raises:
        UserError: names the corpora, with the split where it is not the test split, and a run of each.
    """
    if len(found) > 1:
        listed = "; ".join(f"{corpus}: {names[runs[0]]}" for corpus, runs in found.items())
        raise UserError(
            f"runs: of {len(found)} corpora ({listed}), whose scores do not compare; give runs of one corpus, or set "
            "mixed=true for one table with a column for the corpus, without a best run"
        )
