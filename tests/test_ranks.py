"""The rank of a process: a table of environments, as the launchers set them; the process group has precedence."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import pytest
from lightning.fabric.utilities.rank_zero import _get_rank
from package_sources import PACKAGE
from torch import distributed

from llm2slm.ranks import first_process, local_rank, rank

ENVIRONMENTS = [
    # variables, rank, rank on the node
    ("", 0, 0),
    ("RANK=0 LOCAL_RANK=0 GROUP_RANK=0 WORLD_SIZE=4", 0, 0),  # torchrun
    ("RANK=1 LOCAL_RANK=1 GROUP_RANK=0 WORLD_SIZE=4", 1, 1),
    ("RANK=2 LOCAL_RANK=0 GROUP_RANK=1 WORLD_SIZE=4", 2, 0),  # its second node
    ("RANK=3 LOCAL_RANK=1 GROUP_RANK=1 WORLD_SIZE=4", 3, 1),
    ("SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0", 0, 0),  # srun
    ("SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NODEID=0", 1, 1),
    ("SLURM_PROCID=2 SLURM_LOCALID=0 SLURM_NODEID=1", 2, 0),
    ("RANK=3 LOCAL_RANK=1 SLURM_PROCID=1 SLURM_LOCALID=0", 3, 1),  # torchrun in the only task of a node
    ("LOCAL_RANK=1 NODE_RANK=0 SLURM_PROCID=0 SLURM_LOCALID=0", 1, 1),  # Lightning in an interactive job
    ("LOCAL_RANK=0 NODE_RANK=0 WORLD_SIZE=2", 0, 0),  # Lightning, after it has started the others
    ("LOCAL_RANK=1 NODE_RANK=0 WORLD_SIZE=2", 1, 1),
    ("NODE_RANK=0", 0, 0),  # one command per node, before Lightning starts the others
    ("NODE_RANK=1", 1, 0),
    ("NODE_RANK=1 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", 3, 1),
    ("GROUP_RANK=1", 1, 0),
    ("NODE_RANK= RANK= LOCAL_RANK=", 0, 0),
    ("JSM_NAMESPACE_RANK=3 JSM_NAMESPACE_LOCAL_RANK=1", 3, 1),  # LSF
]


@pytest.fixture(autouse=True)
def without_variables_of_lightning(monkeypatch):
    """A training in this process leaves some of them set."""
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("variables", "number", "on_node"), ENVIRONMENTS)
def test_the_rank_by_the_variables_of_the_launcher(monkeypatch, variables, number, on_node):
    for name, value in (variable.split("=") for variable in variables.split()):
        monkeypatch.setenv(name, value)
    assert (rank(), local_rank(), first_process()) == (number, on_node, number == 0)


NUMBERED = [variables for variables, *_ in ENVIRONMENTS if not variables.startswith(("NODE_RANK", "GROUP_RANK"))]
"""Without the variables of the node, which Lightning reads only when it starts the processes."""


@pytest.mark.parametrize("variables", NUMBERED)
def test_the_rank_is_that_of_lightning(monkeypatch, variables):
    for name, value in (variable.split("=") for variable in variables.split()):
        monkeypatch.setenv(name, value)
    assert rank() == (_get_rank() or 0)


def connected(number, address, found):
    distributed.init_process_group("gloo", init_method=address, rank=number, world_size=2)
    found.put((number, rank()))
    distributed.barrier()
    distributed.destroy_process_group()
    if number:
        found.put((number, rank()))


def test_connected_processes_have_the_rank_of_their_group(tmp_path):
    """Two forks of this process with equal variables; disconnected, only the variables are left."""
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    started = [context.Process(target=connected, args=(n, f"file://{tmp_path}/group", found)) for n in (0, 1)]
    for each in started:
        each.start()
    assert sorted(found.get() for _ in range(3)) == [(0, 0), (1, 0), (1, 1)]
    for each in started:
        each.join()


def test_the_module_imports_no_torch():
    code = "import sys, llm2slm.ranks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)
