"""Targets of a benchmark: wanted speeds as data (`benchmark.targets`), compared with the rows of a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm2slm.config import TargetConfig
from llm2slm.evaluation.benchmark.contestants import named
from llm2slm.evaluation.benchmark.speed_rows import ratio
from llm2slm.nearest_names import nearest_hint
from llm2slm.runs import SpeedRow, Target
from llm2slm.types import UserError


def check(targets: Sequence[TargetConfig]) -> None:
    """Refuses incomplete targets.

    Raises:
        UserError: names the first one.
    """
    for number, target in enumerate(targets):
        key = f"benchmark.targets[{number}]"
        for name in ("name", "system"):
            if not getattr(target, name):
                raise UserError(f"{key}.{name} is not set; give it")
        if (target.at_least is None) == (target.at_most is None):
            raise UserError(f"{key} ({target.name}): set at_least or at_most, and not both")
        if target.against is not None and target.measure != TargetConfig.measure:
            raise UserError(f"{key} ({target.name}): against compares total times; leave measure out")


def check_names(targets: Sequence[TargetConfig], systems: Iterable[str], decoders: Sequence[str]) -> None:
    """Refuses targets that name a system that is not there. One under a decoder that is not timed is not measured.

    Args:
        systems: names without decoders. decoders: all that a benchmark knows.

    Raises:
        UserError: names the first one.
    """
    known = {name for system in systems for name in (system, *(named(system, decoder) for decoder in decoders))}
    for number, target in enumerate(targets):
        for field in ("system", "against"):
            given = getattr(target, field)
            if given is not None and given not in known:
                hint = nearest_hint(given, known)
                raise UserError(f"benchmark.targets[{number}].{field}={given}: no such system{hint}; give the name of "
                                "a timed system, with its decoder in brackets if it is not generate: "
                                f"{', '.join(systems)}")  # fmt: skip


def compared(targets: Sequence[TargetConfig], rows: Mapping[str, Sequence[SpeedRow]]) -> list[Target]:
    """Each target with what was measured.

    Args:
        rows: by name, of one run.
    """
    return [_compared(target, rows) for target in targets]


def missing(targets: Sequence[TargetConfig], rows: Mapping[str, Sequence[SpeedRow]]) -> list[str]:
    """For each target without a value the reason, on one line.

    Args:
        rows: by name, of one run.
    """
    lines = []
    for target in targets:
        if _value(target, rows) is not None:
            continue
        names = [name for name in (target.system, target.against) if name is not None]
        untimed = [name for name in names if not rows.get(name)]
        elsewhere = [name for name in names if rows.get(name) and _row(rows[name], target) is None]
        if untimed:
            reason = f"{untimed[0]} was not timed (benchmark.decoders, benchmark.hybrid_decoders)"
        elif elsewhere and target.response_tokens is None:
            reason = f"{elsewhere[0]} was not timed at batch {target.batch} of the test split (benchmark.test_batch)"
        elif elsewhere:
            reason = (f"{elsewhere[0]} was not timed at batch {target.batch} with {target.response_tokens} response "
                      "tokens (benchmark.batch, benchmark.response_tokens)")  # fmt: skip
        else:
            reason = f"{target.measure} of {target.system} is not known"
        lines.append(f"target {target.name!r} is not measured: {reason}")
    return lines


def _compared(target: TargetConfig, rows: Mapping[str, Sequence[SpeedRow]]) -> Target:
    least, most = target.at_least, target.at_most
    wanted = f"at most {most:g}" if least is None else f"at least {least:g}"
    value = _value(target, rows)
    if value is None:
        return Target(target.name, wanted, None, None)
    met = value >= least if least is not None else value <= (most or 0)
    return Target(target.name, wanted, value, met)


def _value(target: TargetConfig, rows: Mapping[str, Sequence[SpeedRow]]) -> float | None:
    """The median of a ratio over the rounds, or a figure; None: a row is missing, or the figure is not known."""
    own = _row(rows.get(target.system, ()), target)
    if own is None:
        return None
    if target.against is not None:
        other = _row(rows.get(target.against, ()), target)
        paired = None if other is None else ratio(other.rounds_ms, own.rounds_ms)
        return None if paired is None else paired.median
    found: Any = getattr(own, target.measure)
    return found if found is None or isinstance(found, float) else float(found.median)


def _row(rows: Sequence[SpeedRow], target: TargetConfig) -> SpeedRow | None:
    """The first row with the batch and the response length of a target."""
    for row in rows:
        at_length = row.lengths == "test" if target.response_tokens is None else row.lengths == "grid"
        at_length = at_length and target.response_tokens in (None, row.response_tokens)
        if at_length and row.batch == target.batch:
            return row
    return None
