"""The speed targets of a CPU: `python experiments/speed_cpu/run.py --demo outputs/demo/llm2slm`.

Runs `llm2slm benchmark` for each pair (`conf/experiment/speed_demo.yaml`, `speed_cpu.yaml`), and writes into this
folder, for each, its result as JSON and its plots, and one table of the targets of both pairs (table.md).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llm2slm import runs
from llm2slm.evaluation.report.report import write_report
from llm2slm.evaluation.report.tables import target_lines

HERE = Path(__file__).parent


def commands(asked: argparse.Namespace) -> dict[str, list[str]]:
    """Name of a pair -> arguments of `llm2slm benchmark`."""
    found = {}
    if asked.demo is not None:
        found["demo"] = ["experiment=speed_demo", f"run={asked.demo}"]
    if not asked.only_demo:
        decoders = ["benchmark.decoders=[generate,captured,ctranslate2]"] if asked.ctranslate2 else []
        found["t5"] = ["experiment=speed_cpu", *decoders]
    return found


def table(pair: str, result: dict[str, Any]) -> list[str]:
    """The targets of a pair as Markdown."""
    row = next(row for system in result["systems"] for row in system["speed"])
    noisy = [system["name"] for system in result["systems"] if any(row["noisy"] for row in system["speed"])]
    where = f"{result['device']}, {row['threads']} threads, {row['dtype']}, {row['repeats']} rounds"
    what = f"{result['created'][:10]}, commit {result['git_commit'] or 'unknown'}, {where}, seed {result['seed']}"
    note = f" Noisy (the rounds span more than a fifth of their median): {', '.join(noisy)}." if noisy else ""
    lines = [f"## {pair}", "", f"`{result['command']}`, {what}.{note}", ""]
    head, *rest = target_lines(result)
    return [*lines, *(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest]), ""]


def tables() -> str:
    """The targets of every pair that was timed, in this run or earlier, as Markdown."""
    text = ["# Speed targets on a CPU", ""]
    for pair in ("demo", "t5"):
        if (HERE / f"{pair}.json").is_file():
            text += table(pair, json.loads((HERE / f"{pair}.json").read_text(encoding="utf-8")))
    return "\n".join(text)


def main(asked: argparse.Namespace) -> None:
    """Times and writes the results."""
    for pair, given in commands(asked).items():
        with TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "llm2slm",
                "benchmark",
                *given,
                *asked.overrides,
                f"hydra.run.dir={folder}",
            ]
            subprocess.run(command, check=True)
            text = (Path(folder) / "result.json").read_text(encoding="utf-8")
            (HERE / f"{pair}.json").write_text(text.replace(f" hydra.run.dir={folder}", ""), encoding="utf-8")
            result = runs.read_result(Path(folder))
            write_report([result], Path(folder) / "report", pair, plots=True)
            shutil.copytree(Path(folder) / "report" / "plots", HERE / "plots" / pair, dirs_exist_ok=True)
    (HERE / "table.md").write_text(tables(), encoding="utf-8")
    print(HERE / "table.md")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--demo", help="run directory of the hybrid of `make demo`; without it only the T5 pair is timed"
    )
    parser.add_argument("--only-demo", action="store_true", help="leave the T5 pair out")
    parser.add_argument(
        "--ctranslate2", action="store_true", help="also time the LLM under CTranslate2 (extra ctranslate2)"
    )
    parser.add_argument("overrides", nargs="*", help="overrides of all benchmarks, as benchmark.repeats=5")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
