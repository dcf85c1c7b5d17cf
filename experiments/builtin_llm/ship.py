"""Turns a trained run into the built-in LLM: 16-bit weights, tokenizer, and a README with provenance and scores.

    python experiments/builtin_llm/ship.py outputs/builtin_llm llm2slm/builtin/llm

The scores are those of the shipped files, loaded again, on the test splits of the three built-in corpora.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from llm2slm import runs
from llm2slm.commands import evaluate
from llm2slm.config import DataConfig, RunConfig, TaskConfig
from llm2slm.models.hybrid import LLM2SLM

CORPORA = ("translation", "summarization", "instruction")
LIMIT_MB = 12


def main(run: Path, target: Path) -> None:
    """Ships `run` into `target`."""
    model = LLM2SLM.from_pretrained(run / "model")
    model.slm.half()
    model.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)  # safetensors restricts the permissions to the owner
    (target / "generation_config.json").unlink(missing_ok=True)  # it contains nothing in addition to config.json
    size = (target / "model.safetensors").stat().st_size / 1e6
    if size > LIMIT_MB:
        raise SystemExit(f"{target}: {size:.1f} MB of weights, at most {LIMIT_MB} are shipped")
    (target / "README.md").write_text(readme(run, target, size), encoding="utf-8")


def readme(run: Path, target: Path, size: float) -> str:
    """Provenance from the run's result, scores from the shipped files."""
    trained, config = runs.read_result(run), runs.read_config(run)
    notes, parameters = trained["systems"][0]["notes"], trained["systems"][0]["parameters"]["total"]
    layers = config["model"]["llm"]["config"]
    lines = [
        "# The built-in LLM",
        "",
        f"A T5-style encoder-decoder ({layers['num_layers']} + {layers['num_decoder_layers']} layers, width "
        f"{layers['d_model']}), trained from random weights on",
        "this project's own generated corpora (English to German, summaries of short reports, instructions). It is",
        "here to show and test the method offline; it knows no other text. It is Apache-2.0 like the project: no",
        "third-party data went into it.",
        "",
        f"* {parameters:,} parameters, {size:.1f} MB in float16; loads with `AutoModelForSeq2SeqLM.from_pretrained`.",
        "* Prompts: `translate English to German: ...`, `summarize: ...`, or an instruction as it stands.",
        f"* Trained by `make builtin-llm`: {notes['optimizer_steps']} steps of "
        f"{config['data']['batch_tokens']} tokens on {config['data']['train_size']:,} rows,",
        f"  seed {trained['seed']}, {notes['training_seconds'] / 60:.0f} minutes on {trained['device']} "
        "(shared with other work).",
        f"* Commit {trained['git_commit'] or 'unknown'}, {trained['created'][:10]}, "
        + ", ".join(f"{name} {trained['versions'][name]}" for name in ("torch", "transformers", "lightning"))
        + ".",
        "",
        f"Scores of these files on the test splits (1,000 rows each, seed 1, greedy, {datetime.now(UTC):%Y-%m-%d}):",
        "",
        "| corpus | metric | value | signature |",
        "|---|---|---|---|",
    ]
    for corpus in CORPORA:
        cfg = RunConfig(
            run=str(target), data=DataConfig(corpus=corpus, eval_batch_size=64), task=TaskConfig(name=corpus)
        )
        system = evaluate.run(cfg, run / "scores" / corpus).systems[0]
        lines += [
            f"| {corpus} | {metric} | {score.value:.2f} | `{score.signature}` |"
            for metric, score in system.quality.items()
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
