"""`python experiments/controls/table.py`: one table of the comparisons of run.sh in outputs/controls."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

TASKS = {"translation": ("BLEU", "bleu"), "summarization": ("ROUGE-L", "rougeL"), "instruction": ("ROUGE-L", "rougeL")}
HEAD = "| system | {metric} (95 % interval) | to the SLM alone (interval) | p | kept | speedup | parameters |"
COMPARED = Path("outputs/controls")
TABLE = Path(__file__).with_name("table.md")


def main() -> None:
    """Writes table.md."""
    TABLE.write_text("\n".join(["# Baselines and controls on real data", *map(section, TASKS)]) + "\n", "utf-8")
    print(TABLE)


def section(task: str) -> str:
    """The lines of one task."""
    title, metric = TASKS[task]
    with (COMPARED / task / "compare" / "compare.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == metric]
    head = ["", f"## {task.capitalize()}", "", origin(COMPARED / task / "hybrid"), "", HEAD.format(metric=title)]
    return "\n".join([*head, "|" + "---|" * 7, *map(line, rows)])


def origin(run: Path) -> str:
    """The command of a run; the others of its task differ in one override (run.sh)."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    command = re.sub(r"data\.root=\S+", "data.root=DIR", result["command"])
    day = result["created"].partition("T")[0]
    return f"`{command}`, {day}, commit {result['git_commit']}, {result['device']}, seed {result['seed']}"


def line(row: dict[str, str]) -> str:
    """The row of one system."""
    score = interval(row, ("value", "low", "high"), ".1f")
    difference = p = ""
    if row["baseline"] != "True":
        difference = interval(row, ("difference", "difference_low", "difference_high"), "+.1f")
        p = f"{float(row['p_randomization_holm']):.3f}"
    kept = f"{float(row['kept']):.0%}" if row["kept"] else ""
    speedup = f"{float(row['speedup']):.2f}" if row["speedup"] else ""
    parameters = f"{int(row['parameters']) / 1e6:.2f} M"
    return f"| {Path(row['run']).name} | {score} | {difference} | {p} | {kept} | {speedup} | {parameters} |"


def interval(row: dict[str, str], keys: tuple[str, str, str], form: str) -> str:
    """A figure, and the limits of its interval."""
    value, low, high = (format(float(row[key]), form) for key in keys)
    return f"{value} ({low}, {high})"


if __name__ == "__main__":
    main()
