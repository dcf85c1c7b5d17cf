"""The text of the report: figures as text, columns and cells, the verdict, samples side by side.

Every figure shown is a field of a result.json; nothing is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from llm2slm.evaluation.metrics.words import with_spaces
from llm2slm.evaluation.report.entries import Entry, metric_keys, metric_name
from llm2slm.evaluation.report.selection import best_by_validation, metric_title
from llm2slm.shown_text import counted

MISSING = "–"
MAX_SAMPLES = 12
OPTIONAL = ("speedup_same_decoding", "share_of_bandwidth")
"""Columns that the page has only if a system has the figure."""
NOISY = "\u00a0~"
"""Mark of a time that varies by more than a fifth of its median."""
DATA = "data"
"""The note of a system that holds the statistics of its data, by split."""


@dataclass(frozen=True)
class Cell:
    """One figure: as text, as a number (None where missing), and a remark in small type."""

    key: str
    text: str
    value: float | str | None = None
    remark: str = ""


def number(value: float | None, digits: int = 3) -> str:
    """A number with at least `digits` significant digits and all integer digits; an en dash for None."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))) if value else 0
    return f"{value:,.{max(0, digits - 1 - size) if value else 0}f}"


def length(value: float) -> str:
    """A count of rows or tokens: one decimal if it is a mean, none if it is an integer."""
    return f"{value:,.1f}".removesuffix(".0")


def score(value: float | None) -> str:
    """A quality metric: two decimals, three below 1."""
    if value is None:
        return MISSING
    return f"{value:,.{2 if abs(value) >= 1 or value == 0 else 3}f}"


def percent(ratio: float | None) -> str:
    """A ratio as a percentage."""
    return MISSING if ratio is None else f"{100 * ratio:.1f}\u00a0%"


def times(ratio: float | None) -> str:
    """A ratio as a factor."""
    return MISSING if ratio is None else f"{ratio:.2f}×"


def count(value: int | None) -> str:
    """A number of parameters in k, M or B."""
    if value is None:
        return MISSING
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{number(value / size)}\u00a0{unit}"
    return str(value)


def seconds(value: float | None) -> str:
    """A duration in s, min or h."""
    if value is None or not math.isfinite(value) or value < 60:
        return MISSING if value is None else f"{number(value)}\u00a0s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60:02d}\u00a0min"


def columns(metrics: Sequence[str], validation: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Key and heading of each column of figures; `validation`: metrics with validation scores."""
    return [
        ("total", "Parameters"),
        ("trainable", "Trainable"),
        *((f"validation/{key}", f"Validation {metric_name(key)}") for key in validation),
        *((f"quality/{key}", metric_name(key)) for key in metrics),
        *([("quality_kept", f"{metric_name(metrics[0])} kept")] if metrics else []),
        ("prefill_ms", "Prefill ms"),
        ("ms_per_token", "ms per token"),
        ("total_ms", "Total ms"),
        ("speedup", "Speedup"),
        ("speedup_same_decoding", "Same decoder"),
        ("share_of_bandwidth", "Bandwidth"),
        ("peak_memory_mb", "Peak MB"),
    ]


def spread(value: Mapping[str, float] | None, write: Any = number) -> str:
    """The range of a repeated measurement."""
    return "" if value is None else f"{write(value['min'])}–{write(value['max'])}"


def cells(entry: Entry, metrics: Sequence[str], validation: Sequence[str] = ()) -> list[Cell]:
    """The figures of one system, in the order of `columns`."""
    system, row = entry.system, entry.row or {}
    parameters, quality, kept = (system.get(key) or {} for key in ("parameters", "quality", "quality_kept"))
    shown = [Cell(key, count(parameters.get(key)), parameters.get(key)) for key in ("total", "trainable")]
    for key in validation:
        value = (system.get("validation") or {}).get(key)
        shown.append(Cell(f"validation/{key}", score(value), value))
    for key in metrics:
        value = quality.get(key, {}).get("value")
        shown.append(Cell(f"quality/{key}", score(value), value))
    if metrics:
        shown.append(Cell("quality_kept", percent(kept.get(metrics[0])), kept.get(metrics[0])))
    for key in ("prefill_ms", "ms_per_token", "total_ms"):
        value = row.get(key)
        mark = NOISY if row.get("noisy") and key == "total_ms" else ""
        shown.append(Cell(key, number(value and value["median"]) + mark, value and value["median"], spread(value)))
    for key in ("speedup", "speedup_same_decoding"):
        value = row.get(key)
        remark = spread(value, "{:.2f}".format)
        shown.append(Cell(key, times(value and value["median"]), value and value["median"], remark))
    share = row.get("share_of_bandwidth")
    shown.append(Cell("share_of_bandwidth", percent(share), share))
    peak = row.get("peak_memory_mb")
    shown.append(Cell("peak_memory_mb", number(peak), peak))
    return shown


def bucket_rows(shown: Sequence[Entry]) -> tuple[list[str], list[tuple[Entry, Mapping[str, Any]]]]:
    """Quality by length: all metrics of the buckets, and every bucket with its system."""
    rows = [(entry, bucket) for entry in shown for bucket in entry.system.get("buckets") or []]
    return list(dict.fromkeys(key for _, bucket in rows for key in bucket["quality"])), rows


def bucket_cells(bucket: Mapping[str, Any], metrics: Sequence[str]) -> list[Cell]:
    """Length in words (sorted by its lower end), rows, and each metric of one bucket."""
    low, high = bucket["low"], bucket["high"]
    shown = [Cell("words", str(low) if low == high else f"{low}–{high}", low)]
    shown.append(Cell("n", length(bucket["n"]), bucket["n"]))
    return shown + [
        Cell(f"quality/{key}", score(bucket["quality"].get(key)), bucket["quality"].get(key)) for key in metrics
    ]


def one_line(text: str) -> str:
    """`text` with every run of white space as one space."""
    return " ".join(text.split())


def shortened(text: str, limit: int) -> str:
    """`text` cut to `limit` characters, with an ellipsis where it was cut."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def sentence(text: str) -> str:
    """`text` with a capital letter in front and a full stop behind; "" stays empty."""
    return text and f"{text[0].upper()}{text[1:]}."


def shared_conditions(shown: Sequence[Entry]) -> str:
    """`conditions` of the first headline row, without the decoding if the rows differ in it; "" without rows."""
    rows = [entry.row for entry in shown if entry.row]
    if not rows:
        return ""
    several = len({row["decoding"] for row in rows if row["batch"] == rows[0]["batch"]}) > 1
    return conditions({key: value for key, value in rows[0].items() if not (several and key == "decoding")})


def conditions(row: Mapping[str, Any]) -> str:
    """The conditions of a speed row as text."""
    prompt, response = length(row["prompt_tokens"]), length(row["response_tokens"])
    lengths = (
        f"the texts' own lengths (on average {prompt} prompt and {response} response tokens)"
        if row["lengths"] == "test"
        else f"{prompt} prompt and {response} response tokens"
    )
    threads = counted(row["threads"], "thread")
    rounds = f"median of {row['repeats']} rounds after {row['warmup']} of warm-up"
    shared = [f"{row['decoding']} decoding"] if "decoding" in row else []
    return ", ".join([f"batch {row['batch']}", lengths, *shared, row["dtype"], threads, rounds])


def remarks(shown: Sequence[Entry]) -> list[str]:
    """Sentences on the timings: noisy rows, systems that could not be timed, the meaning of the columns."""
    rows = [entry.row for entry in shown if entry.row]
    found = []
    if any(row.get("noisy") for row in rows):
        found.append("~: the rounds span more than a fifth of their median.")
    if any(row.get("speedup_same_decoding") for row in rows):
        found.append("Same decoder: speedup relative to the LLM under the same decoder (of lossless: captured).")
    if any(row.get("share_of_bandwidth") for row in rows):
        found.append("Bandwidth: share of the measured memory bandwidth that decoding steps reach.")
    return found + [f"{entry.label}: {failed(failure)}." for entry in shown for failure in failures(entry)]


def failures(entry: Entry) -> list[Mapping[str, Any]]:
    """Conditions under which a system could not be timed."""
    return list(entry.system.get("failures") or [])


def failed(failure: Mapping[str, Any]) -> str:
    """A condition that could not be timed, and why, as text."""
    prompt, response = length(failure["prompt_tokens"]), length(failure["response_tokens"])
    return f"{failure['note']} (batch {failure['batch']}, {prompt} prompt and {response} response tokens)"


def target_lines(result: Mapping[str, Any]) -> list[list[str]]:
    """The targets of a benchmark with a head: target, wanted, measured, met or not met; [] without targets."""
    targets = result.get("targets") or []
    states = {True: "met", False: "not met", None: "not measured"}
    lines = [[each["name"], each["wanted"], number(each["value"]), states[each["met"]]] for each in targets]
    return [["Target", "Wanted", "Measured", "Result"], *lines] if lines else []


def best(shown: Sequence[Entry], results: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: the run with the best validation score, or why the runs are not ranked; "" for a single result."""
    first = {entry.run: entry.label for entry in reversed(shown)}
    labels = [first.get(run, f"run {run + 1}") for run in range(len(results))]
    chosen, reason = best_by_validation(results, labels)
    if chosen is None:
        return reason
    selection = results[chosen]["selection"]
    value, step = score(selection["value"]), f"{selection['step']:,}"
    return f"Best by validation: {labels[chosen]} ({metric_title(selection)} {value} at step {step})."


def verdict(shown: Sequence[Entry]) -> str:
    """One sentence: the quality that each hybrid keeps and its speedup, then those of the other systems."""
    metrics = metric_keys(shown)
    order = {"llm2slm": 0, "slm": 1}
    clauses = []
    for entry in sorted((e for e in shown if e.kind != "llm"), key=lambda e: order.get(e.kind, 2))[:4]:
        kept = (entry.system.get("quality_kept") or {}).get(metrics[0]) if metrics else None
        speedup = ((entry.row or {}).get("speedup") or {}).get("median")
        facts = []
        if kept is not None:
            facts.append(f"keeps {percent(kept)} of the {metric_name(metrics[0])} of {entry.baseline}")
        elif metrics and metrics[0] in entry.system.get("quality", {}):
            value = entry.system["quality"][metrics[0]]["value"]
            facts.append(f"reaches {score(value)} {metric_name(metrics[0])}")
        if speedup is not None:
            facts.append(f"generates {times(speedup)} as fast" + (f" as {entry.baseline}" if kept is None else ""))
        if facts:
            clauses.append(f"{entry.label} {' and '.join(facts)}")
    return "; ".join(clauses) + "." if clauses else ""


def baselines(shown: Sequence[Entry]) -> str:
    """One sentence: what speedups and quality kept are relative to; "" where there are none."""
    having = [e for e in shown if e.system.get("quality_kept") or (e.row or {}).get("speedup")]
    names = dict.fromkeys(entry.baseline for entry in having if entry.baseline)
    if not names:
        return ""
    each = "" if len({entry.run for entry in having}) == 1 else " of the same run"
    return f"Speedup and quality kept are relative to {', '.join(names)}{each}."


def differences(reference: str, prediction: str) -> list[tuple[str, str]]:
    """A prediction as (state, words): `same` as in the reference, `other`, or `gap` for missing words of the reference.

    Words keep their leading space; scripts without spaces are compared character by character.
    """
    old, new = with_spaces(reference), with_spaces(prediction)
    pieces: list[tuple[str, str]] = []
    words = [word for _, word in old], [word for _, word in new]
    for change, i1, i2, j1, j2 in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        state, part = ("gap", old[i1:i2]) if change == "delete" else ("other", new[j1:j2])
        text = "".join(space + word for space, word in part)
        if pieces and j1 == 0 and state == "other" and i1 < len(old):
            text = old[i1][0] + text  # behind words that are left out at the beginning
        pieces.append(("same" if change == "equal" else state, text))
    return pieces


def data_statistics(shown: Sequence[Entry]) -> tuple[list[tuple[Entry, str]], list[tuple[str, list[Any]]]]:
    """The columns (a system and a split) and the rows (name and a value for each column) of the data statistics."""
    found = {
        (n, split): dict(_leaves(facts))
        for n, entry in enumerate(shown)
        for split, facts in ((entry.system.get("notes") or {}).get(DATA) or {}).items()
    }
    return [(shown[n], split) for n, split in found], _rows(list(found.values()))


def facts(shown: Sequence[Entry]) -> tuple[list[Entry], list[tuple[str, list[Any]]]]:
    """The systems with notes, and the rows (name and a value for each system) of all notes but the data statistics."""
    having = [entry for entry in shown if entry.system.get("notes")]
    found = [{key: note for key, note in entry.system["notes"].items() if key != DATA} for entry in having]
    return having, _rows([dict(_leaves(notes)) for notes in found])


def _rows(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Every name in order of appearance, with its value in each column; None where missing."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name) for column in columns]) for name in names]


def _leaves(facts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, each named by its path."""
    for key, value in facts.items():
        name, nested = f"{above}, {key}" if above else key.replace("_", " "), _nested(value)
        if nested is None:
            yield name, value
        else:
            yield from _leaves(nested, name)


def _nested(value: Any) -> Mapping[str, Any] | None:
    """A mapping as it is, a list of mappings (the parts of a mixture) by their names; None for other values."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(item, Mapping) for item in value):
        return None
    names = [str(item.get("name", number)) for number, item in enumerate(value, 1)]
    return {name: {k: v for k, v in item.items() if k != "name"} for name, item in zip(names, value, strict=True)}


def samples(shown: Sequence[Entry]) -> tuple[list[Entry], list[dict[str, Any]]]:
    """The systems with sample outputs, and their rows: source, target and each system's prediction in pieces (None
    where it has none)."""
    having = [entry for entry in shown if entry.system.get("samples")]
    keys = dict.fromkeys((row["source"], row["target"]) for entry in having for row in entry.system["samples"])
    answers = [{(row["source"], row["target"]): row["prediction"] for row in e.system["samples"]} for e in having]
    rows = []
    for key in list(keys)[:MAX_SAMPLES]:
        outputs = [differences(key[1], answer[key]) if key in answer else None for answer in answers]
        rows.append({"source": key[0], "target": key[1], "outputs": outputs})
    return having, rows
