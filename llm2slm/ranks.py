"""The rank of this process among those of a command, by the variables of its launcher; without torch.

torchrun sets RANK and LOCAL_RANK. srun sets SLURM_PROCID and SLURM_LOCALID. Lightning, which starts the further
processes of a node itself, sets LOCAL_RANK and NODE_RANK in them. A user who starts one command per node sets
NODE_RANK.
The order of the variables is Lightning's (`lightning.fabric.utilities.rank_zero`): SLURM_PROCID is also set where Slurm
has started one process, and this one the others.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def rank() -> int:
    """The rank of this process among those of all nodes. 0: it writes the files of the run, and prints.

    Exact as soon as the processes are connected, and before that if the launcher numbers them over all nodes. The
    processes that Lightning starts on a further node have a rank above 0, which may differ from the later one: the
    environment does not contain the number of processes of a node.
    """
    connected = _of_group()
    if connected is not None:
        return connected
    if (given := _number("RANK")) is not None:
        return given
    if _number("LOCAL_RANK") is None and (given := _number("SLURM_PROCID", "JSM_NAMESPACE_RANK")) is not None:
        return given
    node = _number("NODE_RANK", "GROUP_RANK") or 0
    return node * (_number("LOCAL_WORLD_SIZE") or 1) + local_rank()


def local_rank() -> int:
    """The rank of this process among those of its node."""
    return _number("LOCAL_RANK", "SLURM_LOCALID", "JSM_NAMESPACE_LOCAL_RANK") or 0


def first_process() -> bool:
    """Whether this process has rank 0 among the processes of all nodes."""
    return rank() == 0


def _of_group() -> int | None:
    """The rank in torch's process group; None: this process is not (or no longer) connected to others.

    Forked processes (`trainer.strategy=ddp_fork`) have the environment of the first one.
    """
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank())


def _number(*names: str) -> int | None:
    """The first of the variables that is set to a number; an empty one counts as not set."""
    values = (os.environ.get(name, "").strip() for name in names)
    return next((int(value) for value in values if value.isdecimal()), None)


def started_at_once() -> bool:
    """Whether a launcher has started the processes of all nodes (torchrun, srun), or the first one of each node.

    Otherwise this process is alone, or Lightning starts the others from the first one: when that one is prepared.
    """
    if _number("RANK") is not None:
        return (_number("WORLD_SIZE") or 1) > 1 and _number("MASTER_PORT") is not None
    if _number("LOCAL_RANK") is not None:
        return False
    if _number("SLURM_PROCID") is not None and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return (_number("SLURM_NTASKS") or 1) > 1
    return _number("NODE_RANK") is not None and _number("MASTER_PORT") is not None
