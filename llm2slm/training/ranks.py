"""The rank of this process in a distributed training."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only


def first_process() -> bool:
    """Whether this process has rank 0 among the processes of all nodes. It writes the files of the run and prints.

    The first process of each node is `commands.local_rank.first_local_process`.
    """
    return int(rank_zero_only.rank) == 0
