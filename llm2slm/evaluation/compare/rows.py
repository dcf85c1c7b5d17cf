"""The rows on which systems differ most from the baseline: for the page, as CSV, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm2slm.evaluation.report import tables
from llm2slm.evaluation.report.entries import Entry, metric_name
from llm2slm.evaluation.report.page import clean
from llm2slm.evaluation.report.tables import one_line, shortened
from llm2slm.shown_text import cell

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

DIRECTIONS = ("worse", "better")
IN_TERMINAL = 6
"""Maximum number of rows in the terminal, but at least one for each system."""
LENGTH = 200
"""Maximum number of characters of a text in the terminal."""
KEYS = ("system", "baseline", "direction", "metric")
FIELDS = ("row", "source", "target", "baseline_output", "system_output", "baseline_score", "score", "difference")


def page_parts(comparison: Mapping[str, Any], shown: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """The rows for the page: for each system and direction the predictions of both systems in pieces."""
    found = []
    for differing, direction, rows in _parts(comparison):
        pair = [shown[comparison["baseline"]], shown[differing["system"]]]
        texts = [
            {
                "source": row["source"],
                "target": row["target"],
                "remark": f"row {row['row']:,}",
                "outputs": [tables.differences(row["target"], row[key]) for key in ("baseline", "prediction")],
                "remarks": [tables.score(row["baseline_score"]), _scored(row)],
            }
            for row in rows
        ]
        found.append({"direction": direction, "systems": pair, "metric": differing["metric"], "rows": texts})
    return found


def rows_csv(comparison: Mapping[str, Any]) -> str:
    """The rows as CSV, one line for each system and row, largest difference first, with whole texts."""
    found = []
    for differing, direction, rows in _parts(comparison):
        values = differing["system"], comparison["baseline"], direction, differing["metric"]
        head = dict(zip(KEYS, values, strict=True))
        for row in rows:
            found.append(row | head | {"baseline_output": row["baseline"], "system_output": row["prediction"]})
    return as_csv([*KEYS, *FIELDS], found)


def as_csv(fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header; floats in Python's notation, None as an empty field, texts as `shown_text.cell`."""
    import pyarrow as pa
    from pyarrow.csv import write_csv

    def column(field: str) -> list[str | None]:
        return [None if row[field] is None else cell(row[field]) for row in rows]

    table = pa.table({field: pa.array(column(field), pa.string()) for field in fields})
    sink = pa.BufferOutputStream()
    write_csv(table, sink)
    text: str = sink.getvalue().to_pybytes().decode("utf-8")
    return text


def terminal_rows(comparison: Mapping[str, Any]) -> Group:
    """The first rows on which each system is worse than the baseline, with shortened texts; no table without rows."""
    from rich.console import Group

    comparison = clean(comparison)
    differing = comparison["row_differences"]
    most = max(1, IN_TERMINAL // max(1, len(differing)))
    return Group(*(_table(comparison["baseline"], each, most) for each in differing if each["worse"]))


def _table(baseline: str, differing: Mapping[str, Any], most: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    system = one_line(differing["system"])
    table = Table(
        title=Text(f"{system} worse than {one_line(baseline)}, by {metric_name(differing['metric'])} of the row"),
        title_justify="left", box=SIMPLE_HEAD, show_lines=True,
    )  # fmt: skip
    for heading in ("Row", "Source", "Reference", one_line(baseline), system):
        table.add_column(Text(heading), overflow="fold", justify="right" if heading == "Row" else "left")
    for row in differing["worse"][:most]:
        texts = [Text(shortened(one_line(row[key]), LENGTH)) for key in ("source", "target", "baseline", "prediction")]
        for text, score in zip(texts[2:], (tables.score(row["baseline_score"]), _scored(row)), strict=True):
            text.append(f"\n{score}", style="dim")
        table.add_row(Text(f"{row['row']:,}"), *texts)
    return table


def _parts(comparison: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, list[dict[str, Any]]]]:
    """Each compared system, with each direction and its rows."""
    for differing in comparison["row_differences"]:
        for direction in DIRECTIONS:
            yield differing, direction, differing[direction]


def _scored(row: Mapping[str, Any]) -> str:
    return f"{tables.score(row['score'])} ({row['difference']:+.2f})".replace("-", "−")
