"""Processes that a launcher starts at once: the others wait for the run directory and the tokenizers of the first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest
from command_line import ROOT, python
from sampling import representatives
from test_processes import free_port
from tiny_runs import curve, tiny_run, two_processes

from llm2slm.commands import kept_tokenizer
from llm2slm.data.tokenization.tokenizer import load_tokenizer
from llm2slm.ranks import started_at_once
from llm2slm.types import Vocab

STARTED = [
    ("", False),
    ("RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_PORT=5", True),  # torchrun
    ("RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 MASTER_PORT=5", True),
    ("RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_PORT=5", False),
    ("SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_JOB_NAME=job", True),  # srun
    ("SLURM_PROCID=0 SLURM_NTASKS=1", False),
    ("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_NAME=interactive", False),
    ("LOCAL_RANK=1 NODE_RANK=0 WORLD_SIZE=2 MASTER_PORT=5", False),  # by Lightning
    ("LOCAL_RANK=1 NODE_RANK=0 WORLD_SIZE=2 MASTER_PORT=5 SLURM_PROCID=0 SLURM_NTASKS=2", False),
    ("NODE_RANK=1 MASTER_PORT=5", True),  # one command per node
    ("NODE_RANK=0", False),
]


@pytest.mark.parametrize(("variables", "at_once"), STARTED)
def test_processes_that_a_launcher_started(monkeypatch, variables, at_once):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT"):  # Lightning sets them in this process
        monkeypatch.delenv(name, raising=False)
    for name, value in (variable.split("=") for variable in variables.split()):
        monkeypatch.setenv(name, value)
    assert started_at_once() == at_once


WAITING = """
import os, sys, time
from llm2slm.ranks import rank
from llm2slm.training import first_result
from llm2slm.types import UserError
from torch import distributed

first_result.GRACE, first_result.START = 0.0, float(sys.argv[2])
def work():
    assert rank() == 0
    if sys.argv[1] == "fails":
        raise UserError("no corpus")
    if sys.argv[1] == "dies":
        os._exit(9)
    return "made here"

try:
    if sys.argv[1] != "whole":  # all are connected before the first one fails
        first_result.from_first("begin", str)
        [store] = first_result._CONNECTED
        store.add("begun", 1)
        while rank() == 0 and store.add("begun", 0) < 3:
            time.sleep(0.1)
    print(first_result.from_first("part", work))
    print([first_result.from_first("part", lambda: f"second {rank()}"), first_result.from_first("other", str)])
    distributed.init_process_group("gloo", rank=rank(), world_size=int(os.environ["WORLD_SIZE"]))
    total = [None] * distributed.get_world_size()
    distributed.all_gather_object(total, rank())
    print(total)
    distributed.destroy_process_group()
except UserError as error:
    print(error)
    sys.exit(3)
"""


def waiting(kind, ranks, *, patience=300):
    """Exit code and standard output of each process, of which rank 0 starts last."""
    port = str(free_port())
    started = {}
    for rank in sorted(ranks, reverse=True):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": "3"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        time.sleep(0.5)
        started[rank] = subprocess.Popen(
            [sys.executable, "-c", WAITING, kind, str(patience)], env=env, stdout=subprocess.PIPE, text=True
        )
    shown = {rank: started[rank].communicate()[0].splitlines() for rank in sorted(ranks)}
    return [(started[rank].returncode, shown[rank]) for rank in sorted(ranks)]


@pytest.mark.slow
def test_the_others_get_each_result_of_the_first_and_connect_at_the_same_address():
    lines = ["made here", "['second 0', '']", "[0, 1, 2]"]
    assert waiting("whole", (0, 1, 2)) == [(0, lines)] * 3


@pytest.mark.slow
def test_only_the_first_process_reports_its_error():
    assert waiting("fails", (0, 1, 2)) == [(3, ["no corpus"]), (2, []), (2, [])]


@pytest.mark.slow
def test_the_others_end_if_the_first_is_killed():
    line = "part: the first process has ended before it was complete; see its messages"
    assert waiting("dies", (0, 1, 2)) == [(9, []), (3, [line]), (3, [line])]


@pytest.mark.slow
def test_a_process_that_is_started_alone_does_not_wait_for_ever():
    [(code, [line])] = waiting("whole", (1,), patience=1)
    assert code == 3 and line.startswith("the first process does not answer at 127.0.0.1:")


@pytest.mark.parametrize("decided", ["", "/elsewhere/slm_kept"])
def test_the_others_use_what_the_first_decided_and_not_a_folder_of_an_earlier_attempt(tmp_path, monkeypatch, decided):
    config = tiny_run(tmp_path, kind="slm", slm="gpt2", mode="none")
    config.model.slm.vocab, before = Vocab.corpus, config.model.slm.tokenizer
    (tmp_path / "run" / "tokenizers" / "slm_kept").mkdir(parents=True)
    monkeypatch.setattr(kept_tokenizer, "by_first", lambda *_: decided)
    kept_tokenizer.keep_ordered(config.model, config.data, config.task, 5, tmp_path / "run")
    assert config.model.slm.tokenizer == (decided or before)


def by_torchrun(words, folder):
    """Runs a command in two processes of torchrun; its exit code, outputs and errors."""
    launcher = ["-m", "torch.distributed.run", f"--master-port={free_port()}", "--nproc-per-node=2", "-m", "llm2slm"]
    done = python(*launcher, *words, cwd=folder, OMP_NUM_THREADS="1")
    return done.returncode, done.stdout, done.stderr


def by_slurm(words, folder):
    """Runs a command in two processes with the variables that srun sets."""
    port, started = str(free_port()), []
    for rank in ("0", "1"):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_PORT": port}
        env |= {"SLURM_JOB_ID": "4321", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
        env |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "job"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-m", "llm2slm", *words], cwd=folder, env=env, **pipes))
        time.sleep(1.1)  # the default run directories of the two would differ
    shown = [each.communicate() for each in started]
    return max(each.returncode for each in started), *("".join(parts) for parts in zip(*shown, strict=True))


LAUNCHERS = {"torchrun": by_torchrun, "slurm": by_slurm}
TRAINED = ("slm", ["model.slm.init=random", "model.slm.tokenizer=train:300"], r"(\d+) entries from 40 rows")
CUT = ("slm_kept", ["model.slm.vocab=corpus"], r"model\.slm\.vocab: (\d+) of \d+ ")


@pytest.mark.parametrize(
    ("launcher", "kind"),
    representatives(
        [("torchrun", TRAINED), ("torchrun", CUT), ("slurm", TRAINED), ("slurm", CUT)],
        [("torchrun", CUT)],
    ),
)
def test_both_processes_read_the_tokenizer_of_the_first(tmp_path, launcher, kind):
    """In a run directory that is named by the time."""
    name, more, line = kind
    words = two_processes(tmp_path, tiny_run(tmp_path), tmp_path)[:-1]
    words += [*more, "model.tokenizers=offsets", "trainer.max_steps=2", "optim.warmup_steps=1"]
    code, out, err = LAUNCHERS[launcher](["train", *words, "callbacks.generate_rows=2"], tmp_path)
    assert code == 0, err[-4000:]
    (run,) = (tmp_path / "outputs" / "train").glob("*/*")
    assert len(curve(run)) == 2 and (run / "result.json").is_file()
    sizes = re.findall(line, out + err)  # printed once
    assert sizes == [str(len(load_tokenizer(str(run / "tokenizers" / name))))], out + err
    assert [out.count("/result.json"), err.count("llm2slm: next: ")] == [1, 1], out + err
    assert "GLOBAL_RANK" not in err and "sync_dist" not in err, err
