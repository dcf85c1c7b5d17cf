"""The rank of this process on its node."""

from __future__ import annotations

import os


def first_local_process() -> bool:
    """Whether this process is the first one of its node (`training.ranks.first_process`: of all nodes).

    It prints, and writes the files that all processes of the node read, before Lightning starts the others.
    """
    return os.environ.get("LOCAL_RANK", "0") == "0"
