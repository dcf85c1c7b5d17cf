"""A job of a sweep without torch: the process that launchers start in tests instead of `llm2slm.cli.job`.

The argument `act=` sets its behaviour: `done`, `crash` (exit code 3), `die` (SIGKILL to itself), `error` (a user
error), `once` (crashes at the first attempt), `long` (works until it is stopped; the next attempt succeeds). Before
that it writes a line with the variables of the launcher to `seen.jsonl` in its folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from llm2slm.child_processes import stop_with_parent
from llm2slm.sweeps.jobs import JOB_FOLDER, Attempt

SEEN = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LLM2SLM_SWEEP_DIR", "LLM2SLM_SWEEP_VARIED")


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    stop_with_parent(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopped)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    folder = Path(os.environ[JOB_FOLDER])
    act = next((word.removeprefix("act=") for word in sys.argv if word.startswith("act=")), "done")
    own = Attempt(folder)
    own.begin()
    with (folder / "seen.jsonl").open("a") as file:
        seen = {name: os.environ.get(name) for name in SEEN} | {
            "start": time.time(),
            "pid": os.getpid(),
            "parent": os.getppid(),
        }
        file.write(json.dumps(seen | {"arguments": sys.argv[1:]}) + "\n")
    first = own.record.attempts == 1
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "crash" or (act == "once" and first):
        print("no memory left")
        os._exit(3)
    try:
        deadline = time.monotonic() + (100 if act == "long" and first else 0.05)
        while time.monotonic() < deadline:
            time.sleep(0.01)
        own.record.status = "done"
        if act == "error":
            own.record.status, own.record.error = "failed", "a mistake"
        else:
            (folder / "result.json").write_text("{}")
    except KeyboardInterrupt:
        (folder / "saved").write_text(str(os.getpid()))
        return 143
    finally:
        own.end(0.5)
    return 2 if act == "error" else 0


if __name__ == "__main__":
    sys.exit(main())
