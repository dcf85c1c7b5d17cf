"""Times training steps of the demo's systems on a CPU: float32, bf16-mixed, bf16-mixed with float32 attention.

    python experiments/cpu_precision/measure.py OUT [--rounds 12]

One process, one thread, initial weights; in each round every precision runs a forward and backward pass of the same
batch, in rotated order. CPU time of the thread, so that other processes have little effect. Writes OUT/result.json
(every round) and OUT/table.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from llm2slm import runs
from llm2slm.cli.compose import Composer
from llm2slm.commands.demo import system_config
from llm2slm.commands.task_choice import with_task
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.training.fit import set_seed
from llm2slm.training.objectives import token_cross_entropy
from llm2slm.training.precision import Float32Attention
from llm2slm.types import Batch

PRECISIONS = ("32-true", "bf16-mixed, attention in bfloat16", "bf16-mixed")
WARMUP = 3


def step(model: LLM2SLM, batch: Batch, precision: str) -> float:
    """CPU milliseconds of a forward and a backward pass."""
    attention: AbstractContextManager[Any] = Float32Attention() if precision == "bf16-mixed" else nullcontext()
    begun = time.thread_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"), attention:
        logits_BTV = model.logits(batch)
        assert batch.labels_BT is not None
        loss, _ = token_cross_entropy(logits_BTV, batch.labels_BT)
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return 1e3 * (time.thread_time() - begun)


def main() -> None:
    """Measures, and writes both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    composer = Composer("demo")
    words = [composer.prepare(word, sweeping=False) for word in ("data.train_size=2000", "data.test_size=20")]
    demo = composer.typed(composer.compose(words))
    found: dict[str, dict[str, list[float]]] = {}
    for name in demo.systems:
        config = with_task(system_config(demo, name))
        set_seed(config.seed)
        model = build_model(config.model, config.data).train()
        task = task_of(config.task, config.data)
        data = DataModule(config.data, task, model.collator, config.seed)
        data.setup("fit")
        batches = iter(data.train_dataloader())
        times: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        for number in range(-WARMUP, args.rounds):
            batch = next(batches)
            for i in range(len(PRECISIONS)):
                precision = PRECISIONS[(number + i) % len(PRECISIONS)]
                took = step(model, batch, precision)
                times[precision] += [took] * (number >= 0)
        found[name] = times
    lines = [
        "| system | precision | CPU ms of a forward and backward pass (range) | speedup, paired |",
        "|---|---|---|---|",
    ]
    for name, times in found.items():
        for precision, took in times.items():
            ratios = [a / b for a, b in zip(times["32-true"], took, strict=True)]
            median, ratio = statistics.median(took), statistics.median(ratios)
            spread = f"{median:.1f} ({min(took):.1f}-{max(took):.1f})"
            lines.append(f"| {name} | {precision} | {spread} | {ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |")
    args.out.mkdir(parents=True, exist_ok=True)
    origin = {"commit": runs.git_commit(), "device": runs.device_name("cpu"), "torch": torch.__version__, "seed": 1}
    (args.out / "result.json").write_text(json.dumps(origin | {"systems": found}, indent=1) + "\n", "utf-8")
    (args.out / "table.md").write_text("\n".join(lines) + "\n", "utf-8")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
