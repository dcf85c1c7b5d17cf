"""The cost of each conditioning and each kind of tokenizers: `python experiments/mode_costs/measure.py`.

Random weights: speed does not depend on them. For each of two SLMs, the SLM alone and every mode it fits are timed by
`llm2slm.evaluation.benchmark.timing`, interleaved in rotated order, in this one process. Writes result.json, table.md.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from llm2slm import runs
from llm2slm.config import BenchmarkConfig, LLMConfig, ModelConfig, RunConfig, SLMConfig
from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.decoding.decoder import GenerateDecoder
from llm2slm.evaluation.benchmark.timing import time_systems
from llm2slm.evaluation.benchmark.workload import plan
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import Example, Init, SystemKind, Tokenizers

PROMPT_TOKENS, RESPONSE_TOKENS, VOCABULARY = 128, 32, 8000
LLM = {"model_type": "t5", "d_model": 512, "d_kv": 64, "num_heads": 8, "d_ff": 2048, "num_layers": 6}
SLMS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 1024},
    "t5": {
        "model_type": "t5", "d_model": 256, "d_kv": 64, "num_heads": 4, "d_ff": 1024, "num_layers": 4,
        "num_decoder_layers": 4,
    },
}  # fmt: skip
TITLES = {
    "gpt2": "Decoder-only SLM (GPT-2, width 256, 4 layers)",
    "t5": "Encoder-decoder SLM (T5, width 256, 4 + 4 layers)",
}
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "add": ("add", {}),
    "replace": ("replace", {}),
    "prepend": ("prepend", {}),
    "prepend, pool=16": ("prepend", {"pool": 16}),
    "memory": ("memory", {}),
    "cross_attention, every block": ("cross_attention", {"cross_every": 1}),
    "cross_attention, every 2nd block": ("cross_attention", {"cross_every": 2}),
}
ALONE = "SLM alone"


def words(rng: random.Random, count: int) -> list[str]:
    """Made-up words, enough to train a vocabulary of any size on texts of them."""
    syllables = [first + vowel for first in "bdfgklmnprstvw" for vowel in "aeiou"]
    return ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(count)]


def write_tokenizers(folder: Path, rng: random.Random) -> dict[str, str]:
    """Two tokenizers of equal size, trained on different words, so that they split a text differently."""
    places = {}
    for name in ("llm", "slm"):
        tokenizer = train_tokenizer([" ".join(words(rng, 30000))], VOCABULARY)
        if len(tokenizer) != VOCABULARY:
            raise SystemExit(f"tokenizer {name}: {len(tokenizer)} entries instead of {VOCABULARY}; give it more words")
        tokenizer.save_pretrained(folder / name)
        places[name] = str(folder / name)
    return places


def cells(slm: str) -> list[tuple[str, Tokenizers]]:
    """The modes of an SLM. With `memory` it has no prompt, so that its tokenizers have no effect."""
    kinds = {"memory": [Tokenizers.shared]}
    every = [Tokenizers.shared, Tokenizers.offsets, Tokenizers.llm_tokens]
    fitting = [name for name in MODES if slm == "gpt2" or not name.startswith("cross_attention")]
    return [(name, kind) for name in fitting for kind in kinds.get(name, every)]


def build(slm: str, places: dict[str, str], seed: int) -> dict[str, LLM2SLM]:
    """The SLM alone, and one hybrid for each of its modes."""
    alone = SLMConfig(init=Init.random, config=SLMS[slm], tokenizer=places["llm"])
    torch.manual_seed(seed)
    systems = {ALONE: build_model(ModelConfig(kind=SystemKind.slm, slm=alone))}
    systems[ALONE].kind = SystemKind.llm  # the baseline of `time_systems` in each round
    encoder = None
    for mode, kind in track(cells(slm), f"building around {slm}", console=Console(stderr=True)):
        conditioning, changes = MODES[mode]
        own = places["llm" if kind is Tokenizers.shared else "slm"]
        cfg = ModelConfig(
            llm=LLMConfig(init=Init.random, config=LLM, tokenizer=places["llm"]),
            slm=SLMConfig(init=Init.random, config=SLMS[slm], tokenizer=own),
            conditioning=conditioning,
            tokenizers=kind,
            **changes,
        )
        torch.manual_seed(seed)
        model = build_model(cfg)
        encoder = model.encoder = encoder or model.encoder  # one LLM for all: 19 more would take 1.7 GB
        systems[f"{mode} | {kind.value}"] = model
    return systems


def measured(slm: str, systems: dict[str, LLM2SLM], prompt: str, cfg: BenchmarkConfig, seed: int) -> list[runs.System]:
    """Every system with its single speed row; `notes` state its kind and the token counts of its models."""
    examples = [Example(0, prompt, prompt, prompt)]
    (condition,) = plan(systems[ALONE], examples, cfg)
    decoders = {name: GenerateDecoder(model) for name, model in systems.items()}
    rows = time_systems(decoders, examples, cfg, baseline=None, seed=seed)
    found = []
    for name, model in systems.items():
        (row,) = rows[name].rows
        mode, _, kind = name.partition(" | ")
        batch = model.collator.batch_of_texts(list(condition.requests[0].prompts))
        notes = {"slm": slm, "mode": mode, "tokenizers": kind, "slm_prompt_tokens": int(batch.slm_mask_BQ.sum())}
        which = SystemKind.slm if name == ALONE else SystemKind.llm2slm
        found.append(runs.System(f"{slm} | {name}", which.value, model.parameter_counts(), speed=[row], notes=notes))
    return found


def table(result: dict[str, Any]) -> str:
    """result.json as Markdown: one table for each SLM."""
    systems, first = result["systems"], result["systems"][0]["speed"][0]
    own = sorted({s["notes"]["slm_prompt_tokens"] for s in systems if s["notes"]["tokenizers"] == "offsets"})
    lines = [
        f"`{result['command']}`, {result['created'][:10]}, commit {result['git_commit'] or 'unknown'}, "
        f"{result['device']}, {first['threads']} threads, seed {result['seed']}, {result['wall_seconds']:.0f} s; "
        f"torch {result['versions']['torch']}, transformers {result['versions']['transformers']}, {first['dtype']}.",
        "",
        f"Batch {first['batch']}, {first['prompt_tokens']:.0f} prompt tokens of the LLM's tokenizer "
        f"({', '.join(map(str, own))} of the SLM's own, which `offsets` uses), {first['response_tokens']:.0f} forced "
        f"response tokens, greedy. Milliseconds: median (min-max) of {first['repeats']} rounds after "
        f"{first['warmup']} for warming up.",
        "After the comma: times the SLM alone's; of total ms paired within rounds, median (min-max), else of medians.",
    ]
    for slm, title in TITLES.items():
        rows = [system for system in systems if system["notes"]["slm"] == slm]
        alone = next(system for system in rows if system["kind"] == SystemKind.slm.value)
        lines += ["", f"## {title}", ""]
        lines += [
            "| mode | tokenizers | trained M | prefill ms | ms per token | total ms | GFLOP |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [line(system, alone) for system in rows]
    return "\n".join(lines) + "\n"


def line(system: dict[str, Any], alone: dict[str, Any]) -> str:
    """The row of one system, each figure with its multiple of that of the SLM alone."""
    own, base = system["speed"][0], alone["speed"][0]

    def against(value: float, other: float) -> str:
        return f"{value / other:.2f}x"

    def spread(key: str, digits: int) -> str:
        median, low, high = (f"{own[key][name]:.{digits}f}" for name in ("median", "min", "max"))
        return f"{median} ({low}-{high})"

    def medians(key: str) -> str:
        return against(own[key]["median"], base[key]["median"])

    trained, before = (s["parameters"]["trainable"] / 1e6 for s in (system, alone))
    faster = own["speedup"]  # the SLM alone's total over this one's: the smallest ratio is the largest of the inverse
    total = f"{1 / faster['median']:.2f}x ({1 / faster['max']:.2f}-{1 / faster['min']:.2f})"
    row = [
        system["notes"]["mode"],
        system["notes"]["tokenizers"] or "-",
        f"{trained:.2f}, {against(trained, before)}",
        f"{spread('prefill_ms', 1)}, {medians('prefill_ms')}",
        f"{spread('ms_per_token', 2)}, {medians('ms_per_token')}",
        f"{spread('total_ms', 1)}, {total}",
        f"{own['flops'] / 1e9:.3f}, {against(own['flops'], base['flops'])}",
    ]
    return f"| {' | '.join(row)} |"


def arguments() -> argparse.Namespace:
    """The command line; the defaults are the study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--repeats", type=int, default=25, help="timed rounds (odd, so that a median is a round's own)")
    parser.add_argument("--warmup", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--threads", type=int, default=cores, help="of torch; default: the cores of this process")
    parser.add_argument("--seed", type=int, default=1, help="of weights, texts and the order of systems")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for result.json and table.md")
    return parser.parse_args()


def main(asked: argparse.Namespace) -> None:
    """Builds, times and writes the results."""
    started, rng = time.perf_counter(), random.Random(asked.seed)
    cfg = BenchmarkConfig(
        prompts=0, prompt_tokens=[PROMPT_TOKENS], response_tokens=[RESPONSE_TOKENS], repeats=asked.repeats,
        warmup=asked.warmup, threads=asked.threads, memory=False,
    )  # fmt: skip
    systems: list[runs.System] = []
    with TemporaryDirectory() as folder:
        places = write_tokenizers(Path(folder), rng)
        prompt = " ".join(words(rng, PROMPT_TOKENS))
        for slm in SLMS:
            systems += measured(slm, build(slm, places, asked.seed), prompt, cfg, asked.seed)
    result = runs.Result(
        "mode_costs", asked.seed, runs.config_hash(RunConfig(benchmark=cfg, seed=asked.seed)),
        time.perf_counter() - started, systems, command=" ".join(["python", *sys.argv]),
    )  # fmt: skip
    runs.write_result(asked.out, result)
    (asked.out / "table.md").write_text(table(runs.read_result(asked.out)), encoding="utf-8")
    print(asked.out / "table.md")


if __name__ == "__main__":
    main(arguments())
