"""The rank of this process in a distributed training."""

from __future__ import annotations

import os

from lightning.pytorch.utilities import rank_zero_only


def first_process() -> bool:
    """Whether this process has rank 0 among the processes of all nodes. It writes the files of the run and prints.

    The first process of each node is `commands.local_rank.first_local_process`.
    """
    first_node = int(os.environ.get("NODE_RANK") or 0) == 0  # until Lightning knows the rank among all nodes
    return int(rank_zero_only.rank) == 0 and first_node
