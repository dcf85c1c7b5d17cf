"""Compares systems over the same rows with a baseline: metrics, intervals, p-values, quality kept, differing rows.

Metrics are computed from the predictions; parameters, speedup and memory are read from the results. `Comparison.notes`
state how to interpret the figures, and are shown with every table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np

from llm2slm import runs
from llm2slm.evaluation.compare.significance import (
    TIE,
    Advance,
    Array,
    RowStatistics,
    bootstrap,
    bootstrap_p,
    holm,
    interval,
    randomization_p,
)
from llm2slm.evaluation.compare.systems import Answers, Timing
from llm2slm.evaluation.metrics.row_statistics import row_scores, row_statistics
from llm2slm.evaluation.metrics.scores import lower_is_better, ranked
from llm2slm.evaluation.metrics.tokenization import Languages
from llm2slm.evaluation.report.entries import KINDS, metric_name
from llm2slm.evaluation.report.tables import conditions

LEVEL = 0.95
"""Confidence level of every interval."""
PACKAGES = ("numpy", "rouge-score")
"""Packages that influence a comparison, in addition to those of every result."""


@dataclass
class Estimate:
    """A figure and its bootstrap interval; no interval where the figure is undefined on some resamples."""

    value: float
    low: float | None
    high: float | None


@dataclass
class Difference(Estimate):
    """A system's metric minus the baseline's, with the two-sided p-values of both tests, without and with Holm's
    correction."""

    p_bootstrap: float
    p_randomization: float
    p_bootstrap_holm: float = 1.0
    p_randomization_holm: float = 1.0


@dataclass
class Compared:
    """One metric of one system."""

    low: float
    high: float
    """The interval of the metric; its value is in the system's `quality`."""
    difference: Difference | None = None
    """None for the baseline."""
    kept: Estimate | None = None
    """The metric over the LLM's; None without such an LLM (`reference_llm`), or if the LLM's metric is 0."""


@dataclass
class ComparedSystem:
    """One system; the first fields are those of a system in result.json."""

    name: str
    kind: str
    parameters: dict[str, int]
    quality: dict[str, runs.Score]
    quality_kept: dict[str, float]
    speed: list[Mapping[str, Any]]
    """Its headline row, if the timing run has timed it; else empty."""
    run: str
    compared: dict[str, Compared]
    origin: dict[str, Any]
    """verb, command, created, git_commit, seed and device of its result."""


@dataclass
class RowDifference:
    """A row on which a system is better or worse than the baseline, with the difference of its row scores."""

    row: int
    """From 1."""
    source: str
    target: str
    baseline: str
    prediction: str
    baseline_score: float
    score: float
    difference: float


@dataclass
class RowDifferences:
    """The rows that differ most between a system and the baseline."""

    system: str
    metric: str
    worse: list[RowDifference]
    better: list[RowDifference]


@dataclass
class Comparison:
    """The content of compare.json; fields of the same name as in result.json have the same meaning."""

    seed: int
    baseline: str
    llm: str | None
    """The system that quality kept is relative to."""
    rows: int
    resamples: int
    systems: list[ComparedSystem]
    row_differences: list[RowDifferences]
    timed_in: str | None
    """The run of all speedups and memory figures."""
    conditions: str
    """Conditions of these timings."""
    notes: list[str]
    level: float = LEVEL
    config_hash: str = ""
    wall_seconds: float = 0.0
    verb: str = "compare"
    schema: int = runs.SCHEMA
    created: str = field(default_factory=runs.now)
    command: str = field(default_factory=runs.command)
    git_commit: str = field(default_factory=runs.git_commit)
    versions: dict[str, str] = field(
        default_factory=lambda: runs.versions() | {name: metadata.version(name) for name in PACKAGES}
    )
    device: str = field(default_factory=runs.device_name)


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison."""

    metrics: Sequence[str]
    resamples: int
    seed: int
    rows: int
    """Number of rows shown on which a system is worse, and on which it is better."""
    languages: Languages = None
    """Of the targets, as `metrics.measure` takes them."""
    named: bool = False
    """Whether the user named the baseline."""


Progress = Callable[[str, int], Advance]
"""(name, length) -> a function that advances a new progress bar."""


def compare(
    systems: Sequence[Answers], baseline: int, settings: Settings, timing: Timing, progress: Progress
) -> Comparison:
    """Compares all systems with the baseline.

    Args:
        systems: two or more, over the same rows.
        baseline: index of the system that the others are compared with.
    """
    llm = reference_llm(systems, baseline, settings.named)
    scored = _score(systems, settings, progress("scoring", len(systems) * len(settings.metrics)))
    statistics = {metric: [found for _, found in own] for metric, own in scored.items()}
    tests = len(settings.metrics) * len(systems)  # one bootstrap for each system, one randomization for each but one
    advance = progress("resampling", settings.resamples * tests)
    compared: list[dict[str, Compared]] = [{} for _ in systems]
    for metric, own in statistics.items():
        kept_of = None if lower_is_better(metric) else llm
        for found, figures in zip(compared, _compare_metric(own, baseline, kept_of, settings, advance), strict=True):
            found[metric] = figures
    shown = [
        _system(answers, {metric: own[index][0] for metric, own in scored.items()}, compared[index])
        for index, answers in enumerate(systems)
    ]
    notes = [*_notes(systems, settings, llm), *_different(systems), *_speed_notes(systems, timing)]
    notes += _changed(systems, shown)
    row = next((answers.row for answers in systems if answers.row is not None), None)
    return Comparison(
        seed=settings.seed,
        baseline=systems[baseline].label,
        llm=None if llm is None else systems[llm].label,
        rows=len(systems[0].rows),
        resamples=settings.resamples,
        systems=shown,
        row_differences=_row_differences(systems, baseline, statistics, settings.rows),
        timed_in=None if timing.run is None else str(timing.run),
        conditions="" if row is None else conditions(row),
        notes=notes,
    )


def reference_llm(systems: Sequence[Answers], baseline: int, named: bool) -> int | None:
    """Index of the system that quality kept is relative to: the only LLM, or a named baseline that is an LLM."""
    llms = [index for index, system in enumerate(systems) if system.kind == "llm"]
    if named and baseline in llms:
        return baseline
    return llms[0] if len(llms) == 1 else None


def _score(
    systems: Sequence[Answers], settings: Settings, advance: Advance
) -> dict[str, list[tuple[runs.Score, RowStatistics]]]:
    """Metric -> score and row statistics of each system."""
    targets = [target for _, target, _ in systems[0].rows]
    found: dict[str, list[tuple[runs.Score, RowStatistics]]] = {}
    for metric in settings.metrics:
        for answers in systems:
            scored = row_statistics(metric, answers.predictions, targets, settings.languages)
            found.setdefault(metric, []).append(scored)
            advance(1)
    return found


def _compare_metric(
    statistics: Sequence[RowStatistics], baseline: int, llm: int | None, settings: Settings, advance: Advance
) -> list[Compared]:
    """The figures of one metric for each system; `llm`: index of the system that quality kept is relative to."""
    resampled = bootstrap(statistics, settings.resamples, settings.seed, advance)
    found = []
    for index, own in enumerate(statistics):
        figures = Compared(*interval(resampled[index], LEVEL))
        if llm is not None and statistics[llm].corpus:
            ratio = own.corpus / statistics[llm].corpus
            figures.kept = Estimate(ratio, *_ratio_interval(resampled[index], resampled[llm]))
        if index != baseline:
            differences_R = resampled[index] - resampled[baseline]
            figures.difference = Difference(
                own.corpus - statistics[baseline].corpus,
                *interval(differences_R, LEVEL),
                bootstrap_p(differences_R),
                randomization_p(own, statistics[baseline], settings.resamples, settings.seed, advance),
            )
        found.append(figures)
    others = [figures.difference for figures in found if figures.difference is not None]
    for difference, adjusted in zip(others, holm([d.p_bootstrap for d in others]), strict=True):
        difference.p_bootstrap_holm = adjusted
    for difference, adjusted in zip(others, holm([d.p_randomization for d in others]), strict=True):
        difference.p_randomization_holm = adjusted
    return found


def _ratio_interval(values_R: Array, llm_R: Array) -> tuple[float | None, float | None]:
    if not (np.isfinite(llm_R) & (llm_R != 0)).all():
        return None, None
    return interval(values_R / llm_R, LEVEL)


def _system(answers: Answers, quality: dict[str, runs.Score], compared: dict[str, Compared]) -> ComparedSystem:
    origin = ("verb", "command", "created", "git_commit", "seed", "device")
    return ComparedSystem(
        name=answers.label,
        kind=answers.kind,
        parameters=dict(answers.system.get("parameters") or {}),
        quality=quality,
        quality_kept={metric: own.kept.value for metric, own in compared.items() if own.kept is not None},
        speed=[] if answers.row is None else [answers.row],
        run=str(answers.folder),
        compared=compared,
        origin={key: answers.result.get(key) for key in origin},
    )


def _row_differences(
    systems: Sequence[Answers], baseline: int, statistics: Mapping[str, list[RowStatistics]], limit: int
) -> list[RowDifferences]:
    """For each system the rows on which it is worse and better than the baseline, by the first metric that ranks."""
    metric = next((metric for metric in statistics if ranked(metric)), None)
    if metric is None or limit == 0:
        return []
    scores = [row_scores(metric, own) for own in statistics[metric]]
    sign = -1 if lower_is_better(metric) else 1
    found = []
    for index, answers in enumerate(systems):
        if index == baseline:
            continue
        gained = sign * (scores[index] - scores[baseline])
        worse, better = (
            [_row(n, answers, systems[baseline], scores[index][n], scores[baseline][n]) for n in _most(lead)[:limit]]
            for lead in (-gained, gained)
        )
        found.append(RowDifferences(answers.label, metric, worse, better))
    return found


def _most(lead: Array) -> list[int]:
    """Indices of the positive values, largest first."""
    return [index for index in np.argsort(-lead, kind="stable").tolist() if lead[index] > TIE]


def _row(index: int, answers: Answers, baseline: Answers, score: float, reference: float) -> RowDifference:
    source, target, prediction = answers.rows[index]
    before = baseline.rows[index][2]
    return RowDifference(
        index + 1, source, target, before, prediction, float(reference), float(score), float(score - reference)
    )


def _notes(systems: Sequence[Answers], settings: Settings, llm: int | None) -> list[str]:
    """How the figures were computed, and their limits."""
    others = len(systems) - 1
    corrected = (
        f"after Holm’s correction over the {others} systems compared with the baseline, for each metric and test alone"
        if others > 1
        else "of one system compared with the baseline, so no correction is needed"
    )
    notes = [
        f"Brackets: {100 * LEVEL:g} % intervals, percentiles of {settings.resamples:,} bootstrap resamples of the "
        f"{len(systems[0].rows):,} rows, the same for all systems (seed {settings.seed}).",
        f"p: two-sided, by paired bootstrap (Koehn 2004) and by approximate randomization (Riezler and Maxwell 2005) "
        f"with as many resamples, {corrected}.",
        "Both measure the uncertainty due to the choice of rows, not due to the training seed.",
    ]
    if llm is not None:
        kind = KINDS.get(systems[llm].kind, systems[llm].kind)
        notes.append(f"Kept: the metric over that of {systems[llm].label} ({kind}).")
    elif several := [system.label for system in systems if system.kind == "llm"]:
        notes.append(
            f"Quality kept is left out, since there are several LLMs ({', '.join(several)}): name one by baseline=LLM."
        )
    return notes


def _different(systems: Sequence[Answers]) -> list[str]:
    """Differences in decoding and in how LLMs were prompted, among the systems whose results record them."""
    decoding = {answers.label: answers.decoding for answers in systems if answers.decoding is not None}
    prompting = {answers.label: answers.llm for answers in systems if answers.llm is not None}
    return [
        *(f"Decoded differently: {each}." for each in _differing(decoding)),
        *(f"LLMs prompted differently: {each}." for each in _differing(prompting)),
    ]


def _differing(recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Settings with different values among the systems, with the systems of each value."""
    differing = []
    for name in dict.fromkeys(name for settings in recorded.values() for name in settings):
        by_value: dict[str, list[str]] = {}
        for label, settings in recorded.items():
            value = f"{name}={settings[name]}" if name in settings else f"no {name}"
            by_value.setdefault(value, []).append(label)
        if len(by_value) > 1:
            differing.append("; ".join(f"{value} of {', '.join(labels)}" for value, labels in by_value.items()))
    return differing


def _speed_notes(systems: Sequence[Answers], timing: Timing) -> list[str]:
    row = next((answers.row for answers in systems if answers.row is not None), None)
    if row is None:
        return []
    over = timing.baseline or "the LLM"
    source = f"Speedup over {over} and peak memory are from one interleaved run, {timing.run}: {conditions(row)}."
    return [source, *timing.notes]


def _changed(systems: Sequence[Answers], shown: Sequence[ComparedSystem]) -> list[str]:
    """Metrics whose value in the result differs from that of the predictions, at the same signature."""
    notes = []
    for answers, system in zip(systems, shown, strict=True):
        for metric, score in system.quality.items():
            stated = (answers.system.get("quality") or {}).get(metric)
            if stated is None or stated["signature"] != score.signature:
                continue
            if stated["n"] != score.n or abs(stated["value"] - score.value) > 1e-6 * max(1.0, abs(score.value)):
                notes.append(
                    f"{answers.label}: {metric_name(metric)} is {stated['value']:.4f} over {stated['n']} rows in its "
                    f"result, {score.value:.4f} over {score.n} from its predictions; the latter is used."
                )
    return notes
