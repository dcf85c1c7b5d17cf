"""Draws docs/figures/quality.svg, the figure of the README, from committed raw results. This file contains no results.

    python experiments/figures/quality.py [OUT.svg]

Left: `experiments/captions_gpu` (scores.json, benchmark.json), quality against the time of an answer, by label set
"all". Right: `experiments/real_pairs/samsum.json`, quality with 95 % intervals.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

EXPERIMENTS = Path(__file__).resolve().parents[1]
OUT = EXPERIMENTS.parent / "docs" / "figures" / "quality.svg"
TEXT = "#7d838c"
"""Contrast of about 4 against white and against the dark page of GitHub, like the colours below."""
LLM, HYBRID, SLM, CONTROL = "#a371f7", "#2f81f7", "#c9761b", "#8b949e"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",  # text is not converted to paths
    "svg.hashsalt": "llm2slm",
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}


def load(name: str) -> Any:
    """A JSON file below `experiments/`."""
    return json.loads((EXPERIMENTS / name).read_text(encoding="utf-8"))


def total_ms(benchmark: dict[str, Any], name: str) -> float:
    """Median milliseconds of an answer at batch 1 and the lengths of the test split."""
    [system] = [system for system in benchmark["systems"] if system["name"] == name]
    [row] = [row for row in system["speed"] if (row["batch"], row["lengths"]) == (1, "test")]
    return float(row["total_ms"]["median"])


def draw_captions(axes: Axes) -> None:
    """BLEU against milliseconds. Filled: the learning rate with the lower validation loss; hollow: the other one."""
    scores, benchmark = load("captions_gpu/scores.json"), load("captions_gpu/benchmark.json")
    systems = [("LLM", "llm", ["llm"], LLM), ("SLM alone", "slm", ["all/slm_0.002", "all/slm_0.004"], SLM)]
    systems.append(("LLM-to-SLM", "llm2slm", ["all/memory_0.002", "all/memory_0.004"], HYBRID))
    for title, timed, names, colour in systems:
        ms, best = total_ms(benchmark, timed), min(names, key=lambda name: min(scores[name]["val_loss"]))
        for name in names:
            fill = colour if name == best else "none"
            axes.plot(ms, scores[name]["bleu"], "o", ms=9, mfc=fill, mec=colour, mew=1.6)
        label = f"{title}: {scores[best]['bleu']:.1f} BLEU, {ms:.0f} ms"
        side, shift = ("right", (5, 9)) if title == "LLM" else ("left", (-5, -17))
        point = (ms, scores[best]["bleu"])
        axes.annotate(label, point, shift, textcoords="offset points", ha=side, color=colour)
    axes.set(xlim=(0, 175), ylim=(0, 22), xlabel="milliseconds per answer, batch 1", ylabel="BLEU")
    axes.set_title(f"Captions en-de, {scores['llm']['device']}, from random weights", loc="left", size=10)


def draw_samsum(axes: Axes) -> None:
    """ROUGE-L of each system with its 95 % interval."""
    table = load("real_pairs/samsum.json")
    rows = table["rows"][::-1]
    for place, row in enumerate(rows):
        is_control = row["title"].startswith("control")
        kind = (
            CONTROL
            if is_control
            else LLM
            if row["run"].startswith("llm_")
            else HYBRID
            if "hybrid" in row["title"]
            else SLM
        )
        axes.plot([row["low"], row["high"]], [place, place], color=kind, lw=2.5, solid_capstyle="round")
        axes.plot(row["value"], place, "o", ms=7, color=kind)
        axes.text(row["high"] + 0.8, place, f"{row['value']:.1f}", va="center", color=kind)
    names = [row["title"].replace("`", "").partition(", tuned")[0].partition(", not tuned")[0] for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 43), xlabel="ROUGE-L, 95 % interval")
    axes.set_title("Dialogue summaries (samsum), pretrained models", loc="left", size=10)


def draw(path: Path) -> None:
    """Writes the figure."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1, 1.05))
        draw_captions(left)
        draw_samsum(right)
        figure.tight_layout(w_pad=2)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(path, format="svg", transparent=True, metadata=metadata)
        pyplot.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
