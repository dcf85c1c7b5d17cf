"""Lower bounds of the time of an answer on a GPU, from the cost model only: nothing is run or measured.

    python experiments/real_path/gpu_bounds.py --llm DIR --slm DIR [--bandwidth 3350] [--tflops 990]

For each phase the maximum of reading its bytes (bfloat16 weights and cache) at the GPU's bandwidth (GB/s) and its
floating-point operations at its peak (dense bfloat16 TFLOP/s). The defaults are the figures that NVIDIA states for
an H100 SXM. Without CUDA graphs, a step also takes the launches of its kernels, which is more than either bound.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llm2slm.evaluation.benchmark.costs import Cost, generation_cost

PROMPT, RESPONSE = 128, 64


def bound(cost: Cost, bandwidth: float, tflops: float) -> tuple[float, float]:
    """Lower bounds in milliseconds of prefill and of each further token."""
    times = [
        1e3 * max(moved / (1e9 * bandwidth), done / (1e12 * tflops))
        for moved, done in (
            (cost.prefill_bytes, cost.prefill_flops),
            (cost.decode_bytes / (RESPONSE - 1), cost.decode_flops / (RESPONSE - 1)),
        )
    ]
    return times[0], times[1]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("--llm", "--slm"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--bandwidth", type=float, default=3350.0)
    parser.add_argument("--tflops", type=float, default=990.0)
    args = parser.parse_args()
    llm, slm = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (args.llm, args.slm))
    cut = slm | {"num_hidden_layers": 6, "vocab_size": 15_000}
    widths = llm["hidden_size"], slm["hidden_size"]
    projector = widths[0], widths[1], widths[1]
    half = llm["num_hidden_layers"] // 2
    guided = {"llm_config": llm, "llm_layers": half, "conditioning": "add", "projector_shape": projector}
    systems = {
        "LLM": generation_cost(llm, PROMPT, RESPONSE, bytes_per_weight=2),
        "hybrid, whole SLM": generation_cost(slm, PROMPT, RESPONSE, aligned=True, bytes_per_weight=2, **guided),
        "hybrid, SLM cut to 6 blocks": generation_cost(
            cut, PROMPT, RESPONSE, aligned=True, bytes_per_weight=2, **guided
        ),
        "SLM cut to 6 blocks": generation_cost(cut, PROMPT, RESPONSE, bytes_per_weight=2),
    }
    print(
        f"prompt {PROMPT}, response {RESPONSE}, {args.bandwidth:g} GB/s, {args.tflops:g} TFLOP/s, bfloat16, batch 1\n"
    )
    print("| system | prefill ms | ms a token | whole answer ms | of the LLM's |\n|---|---|---|---|---|")
    totals = {}
    for name, cost in systems.items():
        prefill, token = bound(cost, args.bandwidth, args.tflops)
        totals[name] = prefill + (RESPONSE - 1) * token
        share = totals[name] / totals["LLM"]
        print(f"| {name} | {prefill:.3f} | {token:.4f} | {totals[name]:.2f} | {share:.0%} |")


if __name__ == "__main__":
    main()
