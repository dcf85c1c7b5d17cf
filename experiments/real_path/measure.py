"""Time and peak memory of each verb with a pretrained LLM and SLM, as a user runs them one after the other.

    python experiments/real_path/measure.py OUT --llm DIR --slm DIR --data DIR [--threads 2] [NAME ...]

OUT gets a folder and a log for each command, `result.json` and `table.md`. Each command is a separate process: seconds
are from its start to its end, memory is the largest resident set. NAMEs restrict it to some commands, which use the
output of the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llm2slm.runs import device_name

HERE = Path(__file__).parent
SHORT = (
    *("data=samsum", "task=summarization", "data.overlong=drop", "data.max_prompt_tokens=256"),
    *("data.max_response_tokens=96", "task.max_new_tokens=48"),
)
CHAT = ("model.llm.chat=true", "model.llm.dtype=bfloat16")
LLM = ("model.llm.name={llm}", *CHAT)
PAIR = (*LLM, "model.slm.name={slm}", "model.tokenizers=offsets")
FIT = (
    "data.batch_tokens=2048",
    "trainer.max_steps=5",
    "trainer.val_every=5",
    "trainer.log_every_n_steps=5",
    "callbacks.generate_rows=0",
)
ROWS = ("data.train_size=300", "data.validation_size=40", "data.test_size=40")
COMMANDS: dict[str, tuple[str, ...]] = {
    "encode": ("encode", *PAIR, *SHORT, *ROWS, "encode.dtype=bfloat16"),
    "label": ("label", *LLM, *SHORT, "data.train_size=50"),
    "train_store": ("train", *PAIR, *SHORT, *ROWS, *FIT, "data.reps={out}/encode/reps"),
    "train_store_small": (
        *("train", *PAIR, *SHORT, *ROWS, *FIT, "data.reps={out}/encode/reps"),
        *("data.batch_tokens=512", "trainer.precision=bf16-mixed"),
    ),
    "train_live": ("train", *PAIR, *SHORT, *ROWS, *FIT),
    "train_live_again": ("train", *PAIR, *SHORT, *ROWS, *FIT),
    "train_slm": ("train", "model=slm", "model.slm.name={slm}", *SHORT, *ROWS, *FIT),
    "evaluate_hybrid": ("evaluate", "run={out}/train_store", "split=test"),
    "evaluate_llm": ("evaluate", "run={llm}", *CHAT, *SHORT, *ROWS, "split=test"),
    "generate": (
        "generate",
        "run={out}/train_store",
        "prompt='Ann: My train is late. Ben: Then I wait at the station.'",
    ),
    "compare": ("compare", "{out}/train_store", "{out}/train_slm", "out={out}/compare"),
    "benchmark": (
        *("benchmark", "run={out}/train_store", "systems.slm={out}/train_slm", "benchmark.prompts=8"),
        *("benchmark.response_tokens=[32]", "benchmark.repeats=3"),
    ),
    "export": ("export", "run={out}/train_store", "out={out}/exported", "with_llm=true"),
}
IN_PLACE = ("compare", "generate", "export")
"""Verbs without a run directory and a trainer."""


def measure(name: str, args: argparse.Namespace) -> dict[str, object]:
    """Runs one command. Returns seconds, peak memory in MB, exit status, and tokens per second of a training."""
    paths = {"llm": args.llm.absolute(), "slm": args.slm.absolute(), "out": args.out.absolute()}
    verb, *overrides = (word.format_map(paths) for word in COMMANDS[name])
    if verb not in IN_PLACE:
        overrides += [f"hydra.run.dir={args.out.absolute() / name}", f"trainer.threads={args.threads}"]
        overrides += [f"data.root={args.data.absolute()}"] if any("data=" in word for word in overrides) else []
    log = args.out / f"{name}.log"
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "llm2slm", verb, *overrides], stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    command = " ".join(["llm2slm", verb, *overrides])
    for key, path in (("OUT", args.out), ("QWEN", args.llm), ("SMOLLM2", args.slm), ("DATA", args.data)):
        command = command.replace(str(path.absolute()), key)
    rate = None
    if (curve := args.out / name / "metrics.csv").is_file():
        found = re.findall(r"^4,.*?,([\d.]+),\d+,?$", curve.read_text(), re.MULTILINE)
        rate = float(found[0]) if found else None
    return {
        "command": command,
        "seconds": round(seconds, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "train_tokens_per_s": rate,
        "status": os.waitstatus_to_exitcode(status),
    }


def table(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    head = f"commit {result['commit']}, {result['date']}, {result['machine']}, {result['threads']} threads\n\n"
    lines = ["| command | seconds | peak MB | training tokens a second |", "|---|---|---|---|"]
    for name, found in result["commands"].items():
        rate = found["train_tokens_per_s"]
        lines.append(
            f"| {name} | {found['seconds']:.0f} | {found['peak_mb']:,} | {'' if rate is None else f'{rate:.0f}'} |"
        )
    return head + "\n".join(lines) + "\n"


def main() -> int:
    """Measures all commands, or the given ones; 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    for name in ("--llm", "--slm", "--data"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("names", nargs="*")
    args = parser.parse_intermixed_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "result.json"
    result = json.loads(kept.read_text()) if kept.is_file() else {"commands": {}}
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    for name in args.names or COMMANDS:
        found = measure(name, args)
        result["commands"][name] = found
        print(f"{name}: {found['seconds']} s, {found['peak_mb']} MB, status {found['status']}", flush=True)
        result |= {
            "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": device_name("cpu"),
            "threads": args.threads,
        }
        kept.write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "table.md").write_text(table(result))
    return int(any(found["status"] for found in result["commands"].values()))


if __name__ == "__main__":
    sys.exit(main())
