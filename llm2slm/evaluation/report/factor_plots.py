"""The plots of a sweep: the validation score by each factor, and quality against latency with the Pareto front."""

from __future__ import annotations

from llm2slm.evaluation.metrics.scores import lower_is_better
from llm2slm.evaluation.report.drawing import INK, SOFT, Canvas, Plot, canvas, tick_texts, ticks
from llm2slm.evaluation.report.entries import metric_name
from llm2slm.evaluation.report.factors import Factor, FactorRun, Sweep, named, number_of, pareto, shorter
from llm2slm.evaluation.report.plots import enclosing
from llm2slm.evaluation.report.tables import number, score, shortened

MAX_FACTORS = 8
NAMED = 8
"""At most so many points of the Pareto front have a name in the plot."""
APART = 50
"""A numeric factor is drawn on a logarithmic scale if its largest value is so many times its smallest."""


def factor_plots(sweep: Sweep) -> list[Plot]:
    """The validation score of every run by each factor, with the mean of each level."""
    if not sweep.metric:
        return []
    drawn = [_factor_plot(sweep, factor) for factor in sweep.factors[:MAX_FACTORS]]
    return [plot for plot in drawn if plot is not None]


def _factor_plot(sweep: Sweep, factor: Factor) -> Plot | None:
    runs = [each for each in sweep.runs if each.validation is not None]
    if not runs:
        return None
    name, short = metric_name(sweep.metric.removeprefix("val/")), factor.key.rpartition(".")[2]
    with canvas(left=60, right=30) as plot:
        y_ticks = enclosing([each.validation or 0.0 for each in runs])
        plot.frame((factor.key, f"validation {name}"), y_ticks, "↓" if sweep.lower else "↑")
        at = _x_axis(plot, factor, runs)
        for each in runs:
            tip = f"{named(each.factors)}: {score(each.validation)}"
            plot.point(each.entry, at[factor_value(each, factor)], each.validation or 0.0, tip, size=8)
        for level in factor.levels:
            places = [at[factor_value(each, factor)] for each in level.runs if each.validation is not None]
            if level.validation is None:
                continue
            low, high = (min(places), max(places)) if factor.numeric and len(at) > len(factor.levels) else (
                places[0] - 0.3, places[0] + 0.3)  # fmt: skip
            plot.axes.hlines(level.validation.mean, low, high, INK, lw=2, alpha=0.55, clip_on=False, zorder=2)
            plot.facts.append(f"{level.name}: mean {score(level.validation.mean)} of {level.validation.n} runs")
        caption = "A point for each run; bars: mean of each value." if len(at) == len(factor.levels) else (
            "A point for each run; bars: mean of each quartile of the values.")  # fmt: skip
        if not factor.balanced:
            caption += " The values were not run with the same other factors, so part of a difference may be theirs."
        return plot.finish(f"Validation {name} by {short}", caption, f"Points of validation {name} by {factor.key}.")


def factor_value(run: FactorRun, factor: Factor) -> str:
    """The value of a factor in a run."""
    return run.factors[factor.key]


def _x_axis(plot: Canvas, factor: Factor, runs: list[FactorRun]) -> dict[str, float]:
    """Sets the axis; returns the position of each value: the number itself, or the position of its level."""
    values = list(dict.fromkeys(factor_value(each, factor) for each in runs))
    if factor.numeric and len(values) > len(factor.levels):
        at = {value: number_of(value) or 0.0 for value in values}
        low, high = min(at.values()), max(at.values())
        if low > 0 and high / low > APART:
            marks = [10.0**power for power in range(-12, 13) if low <= 10.0**power <= high] or [low, high]
            plot.x_axis(low, high, [(mark, f"{mark:g}") for mark in marks], log=True)
        else:
            marks = ticks(low, high)
            plot.x_axis(marks[0], marks[-1], list(zip(marks, tick_texts(marks), strict=True)))
        return at
    names = [level.name for level in factor.levels]
    marks_of = [(float(n), shortened(shorter(name), 16)) for n, name in enumerate(names)]
    plot.x_axis(-0.6, len(names) - 0.4, marks_of)
    return {name: float(n) for n, name in enumerate(names)}


def front_plot(sweep: Sweep) -> list[Plot]:
    """The first test metric that differs between runs against the latency of a whole answer, with the Pareto front; []
    below two points."""
    if not sweep.metrics:
        return []
    differing = (key for key in sweep.metrics if len({each.test.get(key) for each in sweep.runs}) > 1)
    metric = next(differing, sweep.metrics[0])
    runs = [each for each in sweep.runs if each.latency_ms is not None and metric in each.test]
    if len(runs) < 2:
        return []
    lower, name = lower_is_better(metric), metric_name(metric)
    points = [(each.latency_ms or 0.0, each.test[metric]) for each in runs]
    front = pareto(points, lower=lower)
    x_ticks = ticks(0, max(cost for cost, _ in points), 6)
    with canvas() as plot:
        plot.frame(
            ("time of an answer, ms", name), enclosing([quality for _, quality in points]), "↙" if lower else "↖"
        )
        plot.x_axis(x_ticks[0], x_ticks[-1], list(zip(x_ticks, tick_texts(x_ticks), strict=True)))
        line = [points[n] for n in front]
        plot.axes.step(*zip(*line, strict=True), where="post", color=SOFT, lw=1.5, clip_on=False, zorder=2)
        for n, (each, (cost, quality)) in enumerate(zip(runs, points, strict=True)):
            on = ", on the Pareto front" if n in front else ""
            tip = f"{named(each.factors)}: {name} {score(quality)}, {number(cost)} ms{on}"
            plot.point(each.entry, cost, quality, tip, size=10 if n in front else 7)
        if len(front) <= NAMED:
            plot.name_points([(shortened(named(runs[n].factors), 30), *points[n]) for n in front])
        timed = all(each.entry.row for each in runs)
        how = (
            "Median of the timings."
            if timed
            else "Mean over the test split while it was generated in batches; jobs that ran at the same time on one "
            "device slow each other down: for exact times use benchmark."
        )
        caption = f"Line: the Pareto front, the runs that no other run exceeds in both quality and speed. {how}"
        return [plot.finish("Quality against latency of the runs", caption, f"{name} against milliseconds.")]
