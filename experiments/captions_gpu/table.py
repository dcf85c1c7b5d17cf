"""`python experiments/captions_gpu/table.py`: the results of run.sh in outputs/captions, as scores.json and table.md.

Compares the systems first, within each set of labels, by `llm2slm compare`. No row of the corpus is kept.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path
from typing import Any

RUNS = Path("outputs/captions")
HERE = Path(__file__).parent
SETS = {
    "all": ("29,000 labelled rows", "slm_0.002", ["slm_0.004", "memory_0.002", "memory_0.004"]),
    "few": (
        "5,000 labelled rows",
        "add_none",
        ["add_constant", "add_shuffled", "add_zero", "slm_0.002", "slm_0.004", "memory_0.002", "memory_0.004"],
    ),
    "labels": ("29,000 rows, labelled by the LLM", "slm", ["memory"]),
}


def main() -> None:
    """Compares, and writes both files."""
    scores = {name: facts(RUNS / name) for name in ("llm", "labels")}
    llm = scores["llm"]
    lines = [f"LLM: {llm['bleu']:.2f} BLEU, {llm['chrf']:.2f} chrF on {llm['n']:,} rows of test_2016_flickr."]
    for kind, (title, baseline, others) in SETS.items():
        out, runs = RUNS / f"compare_{kind}", [RUNS / "llm", *(RUNS / kind / name for name in (baseline, *others))]
        given = [f"runs=[{','.join(map(str, runs))}]", f"baseline={RUNS / kind / baseline}", f"out={out}"]
        subprocess.run(["llm2slm", "compare", *given], check=True, stdout=subprocess.DEVNULL)
        with (out / "compare.csv").open(encoding="utf-8", newline="") as file:
            rows = {Path(row["run"]).name: row for row in csv.DictReader(file) if row["metric"] == "bleu"}
        lines += ["", f"## {title}", "", f"| system | val/loss | BLEU (95 % interval) | to {baseline} | p | kept |"]
        lines += ["|---|---|---|---|---|---|"]
        for name in (baseline, *others):
            scores[f"{kind}/{name}"] = facts(RUNS / kind / name)
            lines.append(line(name, rows[name], scores[f"{kind}/{name}"]))
    (HERE / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    (HERE / "table.md").write_text("# Captions on a GPU\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    print(HERE / "table.md")


def facts(run: Path) -> dict[str, Any]:
    """The facts of one run, without its samples."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    system = result["systems"][0]
    found = {name: score["value"] for name, score in system["quality"].items()}
    found |= {"signature": system["quality"]["bleu"]["signature"], "n": system["quality"]["bleu"]["n"]}
    found |= {key: result[key] for key in ("created", "device", "seed", "versions")}
    found |= {"command": re.sub(r"data\.root=\S+", "data.root=DIR", result["command"])}
    found |= {"parameters": system["parameters"]}
    if (run / "metrics.csv").exists():
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            found["val_loss"] = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
        found |= {key: system["notes"][key] for key in ("training_seconds", "optimizer_steps", "lr")}
    return found


def line(name: str, row: dict[str, str], known: dict[str, Any]) -> str:
    """The row of one system."""
    cells = [name, f"{min(known['val_loss']):.3f}", interval(row, ("value", "low", "high"), ".2f")]
    if row["baseline"] == "True":
        cells += ["", ""]
    else:
        cells += [interval(row, ("difference", "difference_low", "difference_high"), "+.2f")]
        cells += [f"{float(row['p_randomization_holm']):.4f}"]
    cells.append(f"{float(row['kept']):.0%}" if row["kept"] else "")
    return f"| {' | '.join(cells)} |"


def interval(row: dict[str, str], keys: tuple[str, str, str], form: str) -> str:
    """A figure, and the limits of its interval."""
    value, low, high = (format(float(row[key]), form) for key in keys)
    return f"{value} ({low}, {high})"


if __name__ == "__main__":
    main()
