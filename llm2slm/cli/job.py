"""Runs one job of a sweep, and records its state in `job.json`.

`python -m llm2slm.cli.job VERB ...` is the process of a job: the same as `llm2slm VERB ...` with overrides in Hydra's
syntax, started by a launcher of `sweeps`. Lightning starts the other processes of a distributed training by the same
command; these do not record anything.
"""

from __future__ import annotations

import gc
import os
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from llm2slm import stops
from llm2slm.atomic import write_text
from llm2slm.child_processes import INTERRUPTED, stop_with_parent
from llm2slm.cli.compose import Composer
from llm2slm.cli.failures import of_machine
from llm2slm.cli.launch import parsed, run_prepared
from llm2slm.processes import PeerEnded
from llm2slm.ranks import first_process
from llm2slm.sweeps.jobs import JOB_FOLDER, Attempt
from llm2slm.types import UserError


def main() -> int:
    """Runs the command of the arguments as the job of the folder in the environment. Returns the exit code."""
    if hasattr(signal, "SIGUSR2"):  # Slurm sends it to all processes of a job; submitit's process handles it
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    arguments = sys.argv[1:]
    if not first_process():
        return without_record(arguments)
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        stop_with_parent(signal.SIGTERM)
    with stops.raised():
        return attempt(Path(os.environ[JOB_FOLDER]), lambda: run(arguments))


def without_record(arguments: list[str]) -> int:
    """Runs the command as another rank. Returns the exit code."""
    try:
        with stops.raised():
            run(arguments)
    except UserError as error:  # rank 0 reports the same one
        print(f"llm2slm: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: list[str]) -> float | None:
    """Runs a command whose overrides are checked. Returns what an optimizing sweeper reads."""
    verb, args = arguments[0], parsed(arguments[1:])
    try:
        composer = Composer(verb, args.config_name, args.config_path, args.config_dir)
        return run_prepared(verb, composer, list(args.overrides))
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


def attempt(folder: Path, work: Callable[[], float | None]) -> int:
    """Runs a job, and records its outcome in any case. Returns the exit code; an interruption is recorded and raised.

    Raises:
        UserError: another process runs the job.
    """
    own, started, code = Attempt(folder), time.monotonic(), 1
    own.begin()
    record = own.record
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        record.value = work()
        record.status, code = "done", 0
    except UserError as error:
        # the end of another process (a lack of memory) may not recur, so a launcher may repeat the job
        record.status, record.error, code = "failed", str(error), 1 if isinstance(error, PeerEnded) else 2
        print(f"llm2slm: error: {error}", file=sys.stderr)
    except SystemExit as error:
        if error.code not in INTERRUPTED:
            record.status, record.error = "failed", f"the command ended with exit code {error.code}"
        raise
    except Exception as error:
        known = of_machine(error)
        record.status, record.error = "failed", known or f"{type(error).__name__}: {error}".splitlines()[0]
        write_text(folder / "error.txt", traceback.format_exc())
        traceback.print_exc()
    finally:
        own.end(time.monotonic() - started)
    return code


@contextmanager
def with_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The environment of a job that runs in this process; afterwards it is as before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def release() -> None:
    """Frees the memory of a job that has ended in this process."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt as error:
        sys.exit(stops.exit_code(error))
