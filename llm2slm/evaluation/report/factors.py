"""A sweep's runs by their factors (varied keys): effect of each factor, groups of seeds, Pareto front.

Runs are ranked by the validation score that chose their checkpoint. Test scores are shown, and choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, quantiles, stdev
from typing import Any

from llm2slm.evaluation.report.entries import Entry, metric_keys
from llm2slm.evaluation.report.selection import comparable_selections

SEED = "seed"
MANY = 6
"""A numeric factor with more distinct values is cut into quartiles."""


@dataclass(frozen=True)
class FactorRun:
    """One run of a sweep.

    Attributes:
        factors: values of the varied keys. validation: the score that chose its checkpoint; None: unknown, or its
            training diverged. test: scores of its main system by metric. latency_ms: of a whole answer.
    """

    entry: Entry
    factors: Mapping[str, str]
    validation: float | None
    test: Mapping[str, float]
    latency_ms: float | None


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (None for a single value) of n values."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Level:
    """The runs with one value of a factor (or with values in a range)."""

    name: str
    runs: Sequence[FactorRun]
    validation: Summary | None
    best: float | None
    test: Mapping[str, Summary] = field(default_factory=dict)
    latency_ms: Summary | None = None


@dataclass(frozen=True)
class Factor:
    """A varied key, and its levels in the order of the runs (of numbers, ascending).

    Attributes:
        numeric: whether all values are numbers. balanced: every level was run with the same values of the other
            factors, so that the difference of two levels is due to this factor alone.
    """

    key: str
    levels: Sequence[Level]
    numeric: bool
    balanced: bool


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep.

    Attributes:
        metric: the validation metric, as val/loss; "": the runs have none in common. lower: its direction.
        ranked: the runs with a validation score, the best first. groups: runs that differ in the seed alone, where
            there are several.
    """

    runs: Sequence[FactorRun]
    metric: str
    lower: bool
    ranked: Sequence[FactorRun]
    factors: Sequence[Factor]
    groups: Sequence[Level]
    metrics: Sequence[str]


def sweep_of(
    shown: Sequence[Entry], results: Sequence[Mapping[str, Any]], overrides: Sequence[Mapping[str, str]] | None
) -> Sweep | None:
    """The sweep of several results; None where no key varies."""
    if overrides is None or len(results) < 2:
        return None
    keys = list(dict.fromkeys(key for own in overrides for key in own))
    varied = [key for key in keys if key != "run" and len({own.get(key) for own in overrides}) > 1]
    if not varied:
        return None
    selections, _ = comparable_selections(results, [str(run) for run in range(len(results))])
    metric = str(selections[0]["metric"]) if selections else ""
    runs = []
    for run, own in enumerate(overrides):
        entry = main_entry([each for each in shown if each.run == run])
        if entry is not None:
            value = selections[run]["value"] if selections else None
            values = {key: own.get(key, "") for key in varied}
            runs.append(FactorRun(entry, values, _finite(value), _test(entry), latency_ms(entry)))
    lower = not selections or selections[0]["mode"] == "min"
    scored = [each for each in runs if each.validation is not None]
    ranked = sorted(scored, key=lambda each: (each.validation or 0.0) * (1 if lower else -1))
    factors = [factor for key in varied if key != SEED or len(varied) == 1 for factor in [_factor(key, runs, lower)]]
    return Sweep(runs, metric, lower, ranked, factors, seed_groups(runs, lower), metric_keys(shown))


def main_entry(own: Sequence[Entry]) -> Entry | None:
    """The system that a run is about: the last one that is not its baseline."""
    others = [each for each in own if not each.baseline or not each.baseline.startswith(str(each.system["name"]))]
    return next(reversed(others or list(own)), None)


def latency_ms(entry: Entry) -> float | None:
    """Milliseconds of a whole answer: of the timings, else of the generation for the test; None where unknown."""
    if entry.row is not None:
        return _finite(entry.row["total_ms"]["median"])
    generation = (entry.system.get("notes") or {}).get("generation") or {}
    return _finite(generation.get("ms_per_answer")) if isinstance(generation, Mapping) else None


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _test(entry: Entry) -> dict[str, float]:
    quality = entry.system.get("quality") or {}
    return {key: value for key, score in quality.items() if (value := _finite(score.get("value"))) is not None}


def summary(values: Sequence[float]) -> Summary | None:
    """Mean and spread; None without values."""
    if not values:
        return None
    return Summary(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def _level(name: str, runs: Sequence[FactorRun], lower: bool) -> Level:
    values = [each.validation for each in runs if each.validation is not None]
    metrics = dict.fromkeys(key for each in runs for key in each.test)
    test = {key: found for key in metrics if (found := summary([e.test[key] for e in runs if key in e.test]))}
    times = summary([each.latency_ms for each in runs if each.latency_ms is not None])
    best = (min(values) if lower else max(values)) if values else None
    return Level(name, runs, summary(values), best, test, times)


def number_of(value: str) -> float | None:
    """A factor's value as a number; None if it is none."""
    try:
        return _finite(float(value))
    except ValueError:
        return None


def _factor(key: str, runs: Sequence[FactorRun], lower: bool) -> Factor:
    values = list(dict.fromkeys(each.factors[key] for each in runs))
    numbers = [number for value in values if (number := number_of(value)) is not None]
    numeric = len(numbers) == len(values)
    if numeric and len(values) > MANY:
        levels = _quartiles(key, runs, lower)
    else:
        ordered = sorted(values, key=lambda value: number_of(value) or 0.0) if numeric else values
        levels = [_level(value, [each for each in runs if each.factors[key] == value], lower) for value in ordered]
    others = [sorted(_others(each, key) for each in level.runs) for level in levels]
    return Factor(key, levels, numeric, all(each == others[0] for each in others))


def _others(run: FactorRun, key: str) -> tuple[str, ...]:
    return tuple(value for name, value in run.factors.items() if name != key)


def _quartiles(key: str, runs: Sequence[FactorRun], lower: bool) -> list[Level]:
    """Levels of a numeric factor with many values: its quartiles."""
    pairs = sorted(((number_of(each.factors[key]) or 0.0, n) for n, each in enumerate(runs)))
    cuts = quantiles([value for value, _ in pairs], n=4, method="inclusive")
    found: list[list[tuple[float, int]]] = [[] for _ in range(4)]
    for value, n in pairs:
        found[sum(value > cut for cut in cuts)].append((value, n))
    return [
        _level(f"{part[0][0]:.3g} – {part[-1][0]:.3g}", [runs[n] for _, n in part], lower) for part in found if part
    ]


def seed_groups(runs: Sequence[FactorRun], lower: bool) -> list[Level]:
    """Runs that differ in the seed alone, as one level each; [] unless a group has several runs."""
    groups: dict[tuple[tuple[str, str], ...], list[FactorRun]] = {}
    for each in runs:
        key = tuple((name, value) for name, value in each.factors.items() if name != SEED)
        groups.setdefault(key, []).append(each)
    if not any(SEED in each.factors for each in runs) or all(len(group) < 2 for group in groups.values()):
        return []
    found = [_level(named(dict(key)) or "all runs", group, lower) for key, group in groups.items()]
    known = [each for each in found if each.validation is not None]
    sign = 1 if lower else -1
    return sorted(known, key=lambda each: sign * each.validation.mean if each.validation else 0.0) + [
        each for each in found if each.validation is None
    ]


def named(factors: Mapping[str, str]) -> str:
    """Factors as text, each key by its last part where that is unique."""
    last = [key.rpartition(".")[2] for key in factors]
    keys = [short if last.count(short) == 1 else key for key, short in zip(factors, last, strict=True)]
    return " · ".join(f"{key}={shorter(value)}" for key, value in zip(keys, factors.values(), strict=True))


def shorter(value: str) -> str:
    """A value with at most four significant digits if it is a number with more."""
    number = number_of(value)
    return f"{number:.4g}" if number is not None and len(value) > 8 else value


def pareto(points: Sequence[tuple[float, float]], *, lower: bool) -> list[int]:
    """Indices of the points (cost, quality) that no other point dominates, by ascending cost.

    A point dominates another if it is at least as good in both and better in one. Equal points do not dominate each
    other.

    Args:
        lower: whether a lower quality value is better.
    """
    sign = 1.0 if lower else -1.0
    order = sorted(range(len(points)), key=lambda n: (points[n][0], sign * points[n][1]))
    front: list[int] = []
    for n in order:
        cost, quality = points[n]
        last = points[front[-1]] if front else None
        if last is None or sign * quality < sign * last[1] or (cost, quality) == last:
            front.append(n)
    return front
