"""Checks that all systems of a comparison have the same rows; if not, finds the row and the settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm2slm import runs
from llm2slm.evaluation.report.tables import shortened
from llm2slm.types import UserError

if TYPE_CHECKING:
    from llm2slm.evaluation.compare.systems import Answers

ADVICE = "compare runs over the same rows"
DECISIVE = ("name", "corpus", "root", "path", "subset", "revision", "source", "target", "parts", "overlong")
"""Keys of `data` that determine the rows of every split; those of the split (test, test_size) are added."""
LIMITS = ("max_prompt_tokens", "max_response_tokens")
"""Further keys of `data` that determine the rows where over-long rows are truncated or dropped."""


def check_aligned(systems: Sequence[Answers]) -> None:
    """Sources and targets must be equal in all systems, in order.

    Raises:
        UserError: names the first row that differs, the two files, and the settings in which the two runs differ.
    """
    first = systems[0]
    for other in systems[1:]:
        files = f"{first.folder / 'predictions.jsonl'} and {other.folder / 'predictions.jsonl'}"
        for number, (one, two) in enumerate(zip(first.rows, other.rows, strict=False), 1):
            for field, name in enumerate(("source", "target")):
                if one[field] != two[field]:
                    texts = _where_they_differ(one[field], two[field])
                    reason = _reason(first, other)
                    raise UserError(f"{files}: row {number} differs in its {name}, {texts}{reason}; {ADVICE}")
        if len(first.rows) != len(other.rows):
            counts = f"{len(first.rows)} and {len(other.rows)} rows"
            number = min(len(first.rows), len(other.rows)) + 1
            reason = _reason(first, other)
            raise UserError(f"{files}: {counts}, so row {number} is in only one of them{reason}; {ADVICE}")


def _where_they_differ(one: str, two: str) -> str:
    """The two texts around their first difference."""
    alike = next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    start = max(0, alike - 20)
    parts = [("…" if start else "") + shortened(text[start:], 60) for text in (one, two)]
    return " and ".join(repr(part) for part in parts)


def _reason(first: Answers, other: Answers) -> str:
    """The settings that explain different rows; "" if the configurations do not explain them."""
    one, two = (dict(_settings(system)) for system in (first, other))
    keys = [key for key in one | two if one.get(key) != two.get(key)]
    settings = ", ".join(f"{key} ({_shown(one.get(key))} and {_shown(two.get(key))})" for key in keys if key != "seed")
    if settings:
        return f"; the two runs differ in {settings}"
    if keys and one.get("data.name") == two.get("data.name") == "builtin":
        # only the seeds differ, on which the rows no longer depend
        seeds = f"{one['seed']} and {two['seed']}"
        return (
            f"; the runs have seeds {seeds}, by which an earlier version drew the evaluation rows of data=builtin: "
            "evaluate both again (llm2slm evaluate run=RUN)"
        )
    return ""


def _settings(system: Answers) -> Iterator[tuple[str, Any]]:
    """The settings that determine the rows of a system, by key; and the seed."""
    folders = [folder for folder in (system.folder, system.run) if (folder / "config.yaml").is_file()]
    if not folders:
        return
    config = runs.read_config(folders[0])
    split = str(config.get("split") or "test")
    data, task = (_section(config, name) for name in ("data", "task"))
    limits = () if data.get("overlong") == "error" else LIMITS
    for key in (*DECISIVE, *limits, split, f"{split}_size"):
        yield f"data.{key}", data.get(key)
    yield "task.template", task.get("template")
    yield "split", split
    yield "seed", config.get("seed")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _shown(value: Any) -> str:
    return "none" if value is None else shortened(str(value), 60)
