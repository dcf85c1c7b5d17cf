"""The end of one process of a distributed command ends the others, with one line that names it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import ROOT, python
from lightning.fabric.strategies.launchers import subprocess_script as of_fabric
from lightning.pytorch.strategies.launchers import subprocess_script as of_trainer
from tiny_runs import curve, of_libraries, tiny_run, two_processes

from llm2slm.cli.job import attempt
from llm2slm.commands.resume import naming_command
from llm2slm.processes import PeerEnded, is_lost_connection
from llm2slm.training.peers import watched
from llm2slm.types import UserError

LOST = [
    RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: reset by peer"),
    torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:1, ncclRemoteError: A call failed"),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    torch.distributed.DistBackendError("NCCL error: invalid usage, Duplicate GPU detected : rank 0 and rank 1"),
]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_killed_process_ends_the_training_with_one_line(tmp_path, rank):
    """The other process reports it. A resumed training has all steps."""
    config, folder = tiny_run(tmp_path), tmp_path / "run"
    words = [*two_processes(tmp_path, config, folder), "trainer.max_steps=2000", "trainer.val_every=2",
             "callbacks.generate_rows=2", "data.batch_tokens=220", "optim.warmup_steps=2"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llm2slm", "train", *words]
    with (tmp_path / "shown").open("wb") as shown:
        started = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=shown)
    while not (folder / "checkpoints" / "last.ckpt").is_file():
        assert started.poll() is None, (tmp_path / "shown").read_text()
        time.sleep(0.05)
    [child] = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    os.kill(int(child) if rank == 1 else started.pid, signal.SIGKILL)
    code = started.wait()
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split(")")[1]:
        time.sleep(0.05)
    said = (tmp_path / "shown").read_text()
    ours = [line for line in said.splitlines() if line.startswith("llm2slm: ")]
    assert "Traceback" not in said and "RuntimeError" not in said and not of_libraries(said), said
    ended = "process 1 was ended by signal 9, SIGKILL (often a lack of memory)" if rank else "another process has ended"
    assert ours == [f"llm2slm: error: {ended}; to resume from the last checkpoint: llm2slm train run={folder}"]
    assert code == (2 if rank else -signal.SIGKILL)
    before = [row["step"] for row in curve(folder) if row["train/loss"]]
    steps = int(before[-1]) + 3
    again = ["train", f"run={folder}", f"trainer.max_steps={steps}"]
    done = python("-m", "llm2slm", *again, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in curve(folder) if row["train/loss"]] == [str(step) for step in range(steps)]


WAITS = """
import subprocess, sys, time
from lightning.pytorch.strategies.launchers import subprocess_script
from llm2slm.training import peers
peers.WAITED = 0.3
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(3)"])
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
with peers.watched("training: {}".format):
    subprocess_script._launch_process_observer([other, child])
    print(other.pid, flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
def test_a_process_that_waits_without_an_error_is_ended_too():
    """As within NCCL: the main thread receives no exception."""
    done = python("-c", WAITS)
    assert (done.returncode, done.stderr) == (1, "llm2slm: error: training: process 2 has ended with exit code 3\n")
    other = Path(f"/proc/{done.stdout.strip()}")
    assert not other.exists() or "Z" in (other / "stat").read_text().split(")")[1]


def test_only_a_lost_connection_is_taken_for_the_end_of_a_process():
    assert all(is_lost_connection(error) for error in LOST)
    assert not any(is_lost_connection(error) for error in (*OTHERS, ValueError(str(LOST[0]))))
    observers = [module._launch_process_observer for module in (of_fabric, of_trainer)]
    for error in OTHERS:
        with pytest.raises(type(error), match=r"multiplied|Duplicate") as caught, watched():
            raise error
        assert caught.value is error
    for error in LOST:
        with pytest.raises(PeerEnded, match=r"^another process has ended$"), watched():
            raise error
    assert [module._launch_process_observer for module in (of_fabric, of_trainer)] == observers


@pytest.mark.parametrize(("error", "code"), [(PeerEnded("process 1"), 1), (UserError("wrong"), 2)])
def test_a_job_whose_process_ended_may_be_repeated(tmp_path, error, code):
    """Launchers repeat no job with exit code 2."""

    def work():
        raise error

    assert attempt(tmp_path, work) == code


@pytest.mark.parametrize("error", [UserError("diverged"), MemoryError(), ValueError("a defect"), KeyboardInterrupt()])
@pytest.mark.parametrize("saved", [True, False])
def test_every_failure_after_a_checkpoint_names_the_command(tmp_path, capsys, error, saved):
    (tmp_path / "checkpoints").mkdir()
    if saved:
        (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(type(error)), naming_command(tmp_path):
        raise error
    resume = f"llm2slm: to resume from the last checkpoint: llm2slm train run={tmp_path}\n"
    over = f"llm2slm: there is no checkpoint yet; to start over: llm2slm train run={tmp_path}\n"
    assert capsys.readouterr().err == (resume if saved else over if isinstance(error, KeyboardInterrupt) else "")
