"""Runs `plan.py`: each run is a `llm2slm` command in a separate process; complete runs are skipped.

    python experiments/real_pairs/run.py OUT --smol DIR --llm-a DIR --data DIR [--corpus samsum] [--jobs 1] [NAME ...]

OUT gets a folder and a log for each run. After an interruption at any moment (or after `--minutes`: a training then
saves itself), the same command resumes. NAMEs restrict it to some runs of the plan and their dependencies.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from plan import CORPORA, Corpus, Run, plan

ROWS = {
    "train": ("train", None),
    "train_all": ("train", 1_000_000),
    "validation": ("validation", 300),
    "test": ("test", 500),
}
"""Name of a file -> its split and the maximum number of rows; None: that of the corpus."""
ENCODED = "encoded"
"""File that this script writes when `encode` has succeeded; the other verbs end with a result.json."""


@dataclass(frozen=True)
class Job:
    """One command: its run, its folder, the arguments of llm2slm."""

    run: Run
    folder: Path
    arguments: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether its last file exists."""
        return (self.folder / (ENCODED if self.run.verb == "encode" else "result.json")).is_file()

    @property
    def log(self) -> Path:
        """File of its output."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def command(self) -> list[str]:
        """Its command line; a started training is resumed."""
        begun = self.run.verb == "train" and (self.folder / "config.yaml").is_file()
        resume = ("train", f"run={self.folder}")
        return [sys.executable, "-m", "llm2slm", *(resume if begun else self.arguments)]


def best_loss(folder: Path) -> float:
    """The lowest validation loss of a training."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return min(float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss"))


class Runs:
    """The complete runs of a plan in a folder.

    Args:
        corpus: corpus of the plan.
        out: folder of all runs.
        paths: name in braces -> path, for names that are not runs.
        common: overrides of every command except those that resume a run.
    """

    def __init__(self, corpus: Corpus, out: Path, paths: dict[str, str], common: tuple[str, ...] = ()) -> None:
        self.out, self.paths, self.common = out, paths, common
        self.runs = {run.name: run for run in plan(corpus)}

    def folders(self, run: Run) -> dict[float | None, Path]:
        """The folders of a run by learning rate."""
        return {rate: self.out / f"{run.name}-{rate:g}" for rate in run.rates} or {None: self.out / run.name}

    def complete(self, name: str) -> bool:
        """Whether a run is complete at each of its learning rates."""
        run = self.runs[name]
        return all(Job(run, folder, ()).done for folder in self.folders(run).values())

    def chosen(self, name: str) -> tuple[float | None, Path]:
        """Learning rate and folder of a complete run, by validation loss."""
        folders = self.folders(self.runs[name])
        return min(folders.items(), key=lambda item: best_loss(item[1]) if len(folders) > 1 else 0.0)

    def jobs(self, name: str) -> list[Job]:
        """The commands of a run that are not complete; all its dependencies are."""
        run = self.runs[name]
        paths = self.paths | {need: str(self.chosen(need)[1]) for need in run.needs}
        found = []
        for tried, folder in self.folders(run).items():
            rate = tried if run.rate_of is None else self.chosen(run.rate_of)[0]
            overrides = [o.format_map(paths) for o in run.overrides] + ([] if rate is None else [f"optim.lr={rate:g}"])
            found.append(Job(run, folder, (run.verb, *overrides, *self.common, f"hydra.run.dir={folder}")))
        return [job for job in found if not job.done]


def prepare(corpus: Corpus, data: Path, folder: Path) -> None:
    """Writes the short rows of a corpus, so that every tokenizer gets the same rows uncut."""
    folder.mkdir(parents=True, exist_ok=True)
    prompt, response = corpus.longest
    for name, (split, most) in ROWS.items():
        if (target := folder / f"{name}.jsonl").is_file():
            continue
        with gzip.open(data / corpus.name / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        short = [row for row in rows if len(row["source"]) <= prompt and 0 < len(row["target"]) <= response]
        lines = [json.dumps({k: row[k] for k in ("source", "target")}) for row in short[: most or corpus.train]]
        target.write_text("\n".join(lines) + "\n", "utf-8")


def carry_out(runs: Runs, wanted: set[str], at_once: int, threads: int, end: float) -> set[str]:
    """Starts each run as soon as its dependencies are complete, in the order of the plan. Returns names that failed."""
    running: dict[Path, tuple[Job, subprocess.Popen[bytes]]] = {}
    failed: set[str] = set()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    try:
        while True:
            for folder, (job, process) in list(running.items()):
                if process.poll() is not None:
                    del running[folder]
                    if job.run.verb == "encode" and process.returncode == 0:
                        (folder / ENCODED).touch()
                    print(f"{time.strftime('%H:%M:%S')} {folder.name}: {'done' if job.done else 'failed'}", flush=True)
                    failed |= set() if job.done else {job.run.name}
            ready = [
                job
                for name, run in runs.runs.items()
                if name in wanted - failed and not runs.complete(name) and all(map(runs.complete, run.needs))
                for job in runs.jobs(name)
                if job.folder not in running
            ]
            for job in ready[: at_once - len(running)]:
                with job.log.open("a") as log:
                    process = subprocess.Popen(job.command, stdout=log, stderr=log, env=environment)
                running[job.folder] = job, process
                print(f"{time.strftime('%H:%M:%S')} {job.folder.name}: started", flush=True)
            if time.monotonic() > end or not running:
                return failed
            time.sleep(1)
    finally:
        for _, process in running.values():
            process.send_signal(signal.SIGTERM)
        for _, process in running.values():
            process.wait()


def arguments() -> argparse.ArgumentParser:
    """The arguments of `run.py` and `table.py`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", choices=[corpus.name for corpus in CORPORA], default=CORPORA[0].name)
    return parser


def main() -> int:
    """Runs all incomplete runs, as many at once as requested; 1 if a run failed."""
    parser = arguments()
    parser.description = (__doc__ or "").partition("\n")[0]
    for name in ("--smol", "--llm-a", "--data"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("names", nargs="*")
    args = parser.parse_intermixed_args()
    corpus = next(corpus for corpus in CORPORA if corpus.name == args.corpus)
    out, rows = args.out.absolute(), args.out.absolute() / "rows"
    prepare(corpus, args.data, rows)
    paths = {"smol": args.smol, "llm_a_model": args.llm_a, "data": args.data, "rows": rows}
    runs = Runs(
        corpus,
        out,
        {name: str(path.absolute()) for name, path in paths.items()},
        (f"trainer.threads={args.threads}", f"seed={args.seed}"),
    )
    wanted = set(args.names) or set(runs.runs)
    if unknown := wanted - set(runs.runs):
        raise SystemExit(f"no such run in the plan: {', '.join(sorted(unknown))}")
    for name in reversed(runs.runs):
        wanted |= set(runs.runs[name].needs) if name in wanted else set()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that running commands stop and save
    try:
        failed = carry_out(runs, wanted, args.jobs, args.threads, time.monotonic() + 60 * args.minutes)
    except KeyboardInterrupt:
        return 130
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
