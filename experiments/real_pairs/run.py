"""Carries out `plan.py`: each run is a `llm2slm` command in a separate process; complete runs are skipped.

    python experiments/real_pairs/run.py OUT --smol DIR --llm-a DIR --data DIR [--jobs 1] [--minutes M] [NAME ...]

OUT gets a folder and a log for each run. Interrupted at any moment (or after M minutes: a run that trains then saves
itself), the same command continues. NAMEs restrict it to some runs of the plan and to what these need.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from plan import PLAN

TRAINING = "train"


@dataclass(frozen=True)
class Job:
    """One command: its folder, the folders that must be complete before, the arguments of llm2slm."""

    folder: Path
    needs: tuple[Path, ...]
    arguments: tuple[str, ...]
    verb: str

    @property
    def done(self) -> bool:
        """Whether its last file is there."""
        if self.verb == "encode":
            return "to go on" not in _log(self.folder) and "train with data.reps=" in _log(self.folder)
        return (self.folder / "result.json").is_file()


def _log(folder: Path) -> str:
    path = folder.with_suffix(".log")
    return path.read_text(errors="replace") if path.is_file() else ""


def jobs(args: argparse.Namespace) -> list[Job]:
    """The commands of the plan in its order."""
    wanted = set(args.names) or {run.name for run in PLAN}
    for run in reversed(PLAN):
        wanted |= set(run.needs) if run.name in wanted else set()
    if unknown := wanted - {run.name for run in PLAN}:
        raise SystemExit(f"no such run in the plan: {', '.join(sorted(unknown))}")
    paths = {"smol": str(args.smol), "llm_a_model": str(args.llm_a)} | {
        run.name: str(args.out / run.name) for run in PLAN
    }
    found = []
    for run in (run for run in PLAN if run.name in wanted):
        for rate in run.rates or (None,):
            folder = args.out / (run.name if rate is None else f"{run.name}-{rate:g}")
            own = [o.format_map(paths) for o in run.overrides] + ([] if rate is None else [f"optim.lr={rate:g}"])
            fixed = [f"data.root={args.data}", f"trainer.threads={args.threads}", f"seed={args.seed}"]
            needs = tuple(args.out / name for name in run.needs)
            found.append(Job(folder, needs, (run.verb, *own, *fixed, f"hydra.run.dir={folder}"), run.verb))
    return found


def command(job: Job) -> list[str]:
    """The job's command line: a training that has begun is resumed."""
    begun = job.verb == TRAINING and (job.folder / "config.yaml").is_file()
    return [sys.executable, "-m", "llm2slm", *(("train", f"run={job.folder}") if begun else job.arguments)]


def main() -> int:
    """Runs what is not complete, as many at once as asked for; 1 where a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    for name in ("--smol", "--llm-a", "--data"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("names", nargs="*")
    args = parser.parse_intermixed_args()
    args.out.mkdir(parents=True, exist_ok=True)
    end, waiting, running, failed = time.monotonic() + 60 * args.minutes, jobs(args), {}, set()
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    try:
        while waiting or running:
            for folder, (job, process) in list(running.items()):
                if process.poll() is not None:
                    del running[folder]
                    print(f"{time.strftime('%H:%M:%S')} {folder.name}: {'done' if job.done else 'failed'}", flush=True)
                    failed |= set() if job.done else {folder}
            waiting = [job for job in waiting if not job.done and not failed & {*job.needs, job.folder}]
            complete = {job.folder for job in jobs(args) if job.done}
            ready = [job for job in waiting if complete >= set(job.needs) and job.folder not in running]
            for job in ready[: args.jobs - len(running)]:
                with job.folder.with_suffix(".log").open("a") as log:
                    process = subprocess.Popen(command(job), stdout=log, stderr=log, env=environment)
                running[job.folder] = job, process
                print(f"{time.strftime('%H:%M:%S')} {job.folder.name}: started", flush=True)
            if time.monotonic() > end or (not running and not ready):
                break
            time.sleep(1)
    finally:
        for _, process in running.values():
            process.send_signal(signal.SIGTERM)
        for _, process in running.values():
            process.wait()
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
