"""The systems of one or several results as a flat list: label, colour, baseline, and headline speed row of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llm2slm.evaluation.metrics.scores import computed_alike, title
from llm2slm.types import UserError

KINDS = {"llm": "LLM", "slm": "SLM", "llm2slm": "LLM-to-SLM"}
SHADES = 5
ANOTHER = re.compile(r"(.+) \((\d+)\)")
"""Key of a metric whose signature is not the first one among the systems shown: `bleu (2)`."""
CONTROL = "model.control"
"""The override that a system's name states as well."""


@dataclass(frozen=True)
class Entry:
    """One system of one result, as shown in tables and plots.

    Attributes:
        label: its name; of several runs with what distinguishes its run.
        shade: distinguishes systems of one kind.
        run: position of its result.
        row: its headline speed row.
        baseline: name and kind of the system that its speedup and quality kept are relative to; "": none.
    """

    label: str
    kind: str
    shade: int
    run: int
    system: Mapping[str, Any]
    row: Mapping[str, Any] | None
    baseline: str = ""

    @property
    def style(self) -> str:
        """Class names of its colour; safe whatever the result holds."""
        return f"k-{self.kind if self.kind in KINDS else 'other'} s{self.shade}"


def metric_name(key: str) -> str:
    """The usual spelling of a metric; of a model's path in it the last part alone."""
    if (another := ANOTHER.fullmatch(key)) is not None:
        return f"{metric_name(another[1])} ({another[2]})"
    return title(key)


def headline_row(system: Mapping[str, Any], results_rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The headline speed row of a system: at the lengths of the test split if the result has such rows, otherwise at
    the longest responses; at the smallest batch."""
    if not results_rows:
        return None
    lengths = "test" if any(row["lengths"] == "test" for row in results_rows) else results_rows[0]["lengths"]
    rows = [row for row in results_rows if row["lengths"] == lengths]
    batch = min(row["batch"] for row in rows)
    own = [row for row in system.get("speed", []) if row["lengths"] == lengths and row["batch"] == batch]
    if lengths != "test":
        longest = max(row["response_tokens"] for row in rows if row["batch"] == batch)
        own = [row for row in own if row["response_tokens"] == longest]
    return own[0] if own else None


def _systems(result: Mapping[str, Any], run: int) -> list[dict[str, Any]]:
    systems = result.get("systems")
    if not isinstance(systems, list) or not all(isinstance(s, dict) and {"name", "kind"} <= s.keys() for s in systems):
        raise UserError(f"report: result {run + 1} has no list of systems with name and kind; write it again")
    return systems


def _run_labels(names: Sequence[Sequence[str]], overrides: Sequence[Mapping[str, str]] | None) -> list[str]:
    """What distinguishes each run: the overrides that differ between runs, otherwise its number; "" for a single run,
    or where the names of its systems distinguish it already.

    Args:
        names: of each run's systems.
    """
    if len(names) == 1:
        return [""]
    chosen = overrides or [{}] * len(names)
    keys = dict.fromkeys(key for own in chosen for key in own)
    differing = [key for key in keys if len({own.get(key) for own in chosen}) > 1]
    named = [_named_by(own.get(CONTROL), of_run) for own, of_run in zip(chosen, names, strict=True)]
    if CONTROL in differing and all(named):
        differing.remove(CONTROL)
        if not differing:
            return [""] * len(names)
    labels = []
    for run, own in enumerate(chosen):
        parts = [
            f"{key.rpartition('.')[2]}={own[key]}" if _bare(own[key]) else own[key] for key in differing if key in own
        ]
        labels.append(" · ".join(parts) or f"run {run + 1}")
    return labels


def _named_by(control: str | None, names: Sequence[str]) -> bool:
    """Whether the name of a system states the control that its run configured."""
    return (control or "none") in {name.partition(", ")[2] or "none" for name in names}


def _bare(value: str) -> bool:
    """Whether a value means nothing without its key: a number, true, false or null."""
    return value.lower() in ("true", "false", "null", "") or value.lstrip("+-.")[:1].isdigit()


def entries(results: Sequence[Mapping[str, Any]], overrides: Sequence[Mapping[str, str]] | None = None) -> list[Entry]:
    """Every system of every result, with distinct labels.

    Raises:
        UserError: nothing to report, or a result without readable systems.
    """
    if overrides is not None and len(overrides) != len(results):
        raise UserError(f"report: {len(results)} results, but overrides for {len(overrides)}; give one for each")
    found: list[Entry] = []
    named = [[str(system["name"]) for system in _systems(result, run)] for run, result in enumerate(results)]
    parts, names = _run_labels(named, overrides), {name for of_run in named for name in of_run}
    for run, result in enumerate(results):
        systems = _systems(result, run)
        rows = [row for system in systems for row in system.get("speed", [])]
        for system in systems:
            label, kind = str(system["name"]), str(system["kind"])
            if parts[run]:
                label = parts[run] if len(names) == 1 else f"{label}: {parts[run]}"
            shade = sum(entry.kind == kind for entry in found) % SHADES
            found.append(Entry(label, kind, shade, run, system, headline_row(system, rows), baseline_of(result)))
    if not found:
        raise UserError("report: nothing to report: no result has a system; evaluate or benchmark first")
    return [_separated(entry, signatures(found)) for entry in found]


def baseline_of(result: Mapping[str, Any]) -> str:
    """Name and kind of the baseline of a result's ratios, as `llm (LLM)`; "" without one.

    Results of earlier versions do not name it: it was their first LLM.
    """
    llms = (system for system in result.get("systems", []) if system["kind"] == "llm")
    named = result.get("baseline") if "baseline" in result else next(llms, None)
    if not isinstance(named, Mapping):
        return ""
    kind = KINDS.get(named["kind"], named["kind"])
    return str(named["name"]) if named["name"] == kind else f"{named['name']} ({kind})"


def signatures(found: Sequence[Entry]) -> dict[str, list[str]]:
    """Metric -> its incompatible signatures, in order of appearance."""
    known: dict[str, list[str]] = {}
    for entry in found:
        for key, score in (entry.system.get("quality") or {}).items():
            own, signature = known.setdefault(key, []), str(score.get("signature"))
            if not any(computed_alike(signature, other) for other in own):
                own.append(signature)
    return known


def _separated(entry: Entry, known: Mapping[str, Sequence[str]]) -> Entry:
    """The entry with a separate key for each metric whose signature is not the first one of that metric, so that
    incompatible scores are in different columns, plots and sentences."""
    names = {}
    for key, score in (entry.system.get("quality") or {}).items():
        number = [computed_alike(str(score.get("signature")), other) for other in known[key]].index(True)
        names[key] = key if number == 0 else f"{key} ({number + 1})"
    if all(key == name for key, name in names.items()):
        return entry

    def renamed(quality: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(key, key): value for key, value in quality.items()}

    buckets = [{**bucket, "quality": renamed(bucket["quality"])} for bucket in entry.system.get("buckets") or []]
    system = {**entry.system, "quality": renamed(entry.system["quality"]), "buckets": buckets}
    if validation := entry.system.get("validation"):
        system["validation"] = renamed(validation)
    return replace(entry, system=system)


def metric_keys(shown: Sequence[Entry]) -> list[str]:
    """The quality metrics of all entries, in order of appearance."""
    return list(dict.fromkeys(key for entry in shown for key in entry.system.get("quality", {})))


def validation_keys(shown: Sequence[Entry]) -> list[str]:
    """The metrics with validation scores of all entries, in order of appearance."""
    return list(dict.fromkeys(key for entry in shown for key in entry.system.get("validation") or {}))
