"""Builds the table of a corpus from the raw results of `run.py`: quality with intervals, significance, speed.

    python experiments/real_pairs/table.py OUT [--corpus samsum]

Compares the complete runs twice by `llm2slm compare`: with the SLM alone, and with the hybrid of the lowest validation
loss. Writes OUT/table.md and OUT/table.json.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from plan import CORPORA, Run
from run import Runs, arguments, best_loss

METRIC = "rougeL"
HEAD = (
    "| system | parameters used, of these trained | val/loss | ROUGE-L (95 %) | to the SLM alone, p | "
    "to the best hybrid, p | kept of B |"
)


def compared(runs: Runs, names: list[str], baseline: str) -> dict[str, dict[str, str]]:
    """Name of a run -> its row of `llm2slm compare`."""
    folders = {name: runs.chosen(name)[1] for name in names}
    out = runs.out / f"compare_{baseline}"
    chosen = f"baseline={folders[baseline]}"
    command = [sys.executable, "-m", "llm2slm", "compare", *map(str, folders.values()), chosen, f"out={out}"]
    subprocess.run([*command, f"metrics=[{METRIC}]"], check=True, stdout=subprocess.DEVNULL)
    with (out / "compare.csv").open(encoding="utf-8", newline="") as file:
        rows = {Path(row["run"]).name: row for row in csv.DictReader(file)}
    return {name: rows[folder.name] for name, folder in folders.items()}


def row(runs: Runs, run: Run, alone: dict[str, str], hybrid: dict[str, str], of_b: float | None) -> dict[str, Any]:
    """The values of one system in the table."""
    rate, folder = runs.chosen(run.name)
    found = {
        "title": run.title,
        "run": folder.name,
        "rate": rate,
        "validation_loss": best_loss(folder) if run.verb == "train" else None,
        "parameters": int(alone["parameters"]),
        "trained": int(alone["trainable"]) if run.verb == "train" else 0,
    }
    found |= {key: float(alone[key]) for key in ("value", "low", "high")}
    for name, values in (("slm", alone), ("hybrid", hybrid)):
        keys = ("difference", "difference_low", "difference_high", "p_randomization_holm")
        found[f"to_{name}"] = {key: float(values[key]) for key in keys if values[key]}
    return found | {"kept_of_b": None if of_b is None else found["value"] / of_b}


def line(found: dict[str, Any]) -> str:
    """The row of one system."""
    loss = "" if found["validation_loss"] is None else f"{found['validation_loss']:.3f}"
    kept = "" if found["kept_of_b"] is None else f"{found['kept_of_b']:.1%}"
    cells = [found["title"], f"{found['parameters'] / 1e6:.1f} M, {found['trained'] / 1e6:.1f} M", loss]
    cells.append(f"{found['value']:.2f} ({found['low']:.2f}, {found['high']:.2f})")
    for name in ("to_slm", "to_hybrid"):
        to = found[name]
        cells.append(f"{to['difference']:+.2f}, {to['p_randomization_holm']:.3f}" if to else "")
    return "| " + " | ".join([*cells, kept]) + " |"


def speed(folder: Path) -> list[str]:
    """The lines of the interleaved timing."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    lines = ["", f"Speed, one interleaved run ({result['device']}, {result['created'].partition('T')[0]}):", ""]
    lines += ["| system | batch | prompt, response tokens | prefill ms | ms a token | whole answer ms | speedup |"]
    lines.append("|" + "---|" * 7)
    for system in result["systems"]:
        for timed in system["speed"]:
            spread = [timed[key]["median"] for key in ("prefill_ms", "ms_per_token", "total_ms")]
            ratio = timed["speedup"]
            gain = "" if ratio is None else f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
            lengths = f"{timed['prompt_tokens']:.0f}, {timed['response_tokens']:.0f} ({timed['lengths']})"
            cells = [system["name"], str(timed["batch"]), lengths, *(f"{value:.1f}" for value in spread), gain]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Writes table.md and table.json."""
    args = arguments().parse_args()
    corpus = next(corpus for corpus in CORPORA if corpus.name == args.corpus)
    runs = Runs(corpus, args.out.absolute(), {})
    shown = [run for run in runs.runs.values() if run.title and runs.complete(run.name)]
    shown.sort(key=lambda run: not run.name.startswith("llm_"))
    hybrids = [
        run.name
        for run in shown
        if "model=llm2slm" in run.overrides and not any("control" in override for override in run.overrides)
    ]
    best = min(hybrids, key=lambda name: best_loss(runs.chosen(name)[1]))
    names = [run.name for run in shown]
    alone, hybrid = compared(runs, names, "slm"), compared(runs, names, best)
    of_b = float(alone["llm_b"]["value"]) if "llm_b" in alone else None
    rows = [row(runs, run, alone[run.name], hybrid[run.name], of_b) for run in shown]
    result = json.loads((runs.chosen("slm")[1] / "result.json").read_text(encoding="utf-8"))
    day = result["created"].partition("T")[0]
    origin = f"commit {result['git_commit']}, {day}, {result['device']}, seed {result['seed']}"
    lines = [
        f"# {corpus.name}: {alone['slm']['rows']} test rows ({origin})",
        "",
        HEAD,
        "|" + "---|" * HEAD.count(" | ") + "---|",
    ]
    lines += map(line, rows)
    lines += speed(runs.out / "speed") if runs.complete("speed") else []
    (runs.out / "table.json").write_text(
        json.dumps({"best_hybrid": best, "origin": origin, "rows": rows}, indent=1) + "\n"
    )
    (runs.out / "table.md").write_text("\n".join(lines) + "\n", "utf-8")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
