"""The processes of a data-parallel command: shares of a list of batches, and their results in the order of one process.

Each process works on every size-th batch. The first process gets the results of all of them, batch by batch, in the
order in which a single process would make them: so it writes the same files, and an interrupted command can be resumed
with any number of processes. `training.launch` starts the processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from llm2slm.types import UserError

ItemT = TypeVar("ItemT")


LOST = ("/gloo/transport/", "ncclRemoteError", "NCCL communicator was aborted")
"""Parts of torch's messages about a lost connection to another process, which are RuntimeErrors (those of NCCL
DistBackendErrors): gloo names the source file of its transport ("Connection reset by peer", "Connection closed by peer"
and others), NCCL its error code for a remote process that has ended. Errors of a wrong setup have none of them."""


class PeerEnded(UserError):
    """Another process of a distributed command has ended."""


def is_lost_connection(error: BaseException) -> bool:
    """Whether an exception is torch's report that another process has ended."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


@dataclass(frozen=True)
class Processes:
    """This process and the others of its command, connected by torch.distributed.

    Attributes:
        rank: of this process, from 0. size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def share(self) -> tuple[int, int]:
        """(rank, size): the share of this process."""
        return self.rank, self.size

    def from_first(self, value: ItemT) -> ItemT:
        """The value that the first process passes. Collective: every process must call it."""
        if self.size == 1:
            return value
        from torch import distributed

        values: list[Any] = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]

    def in_order(self, mine: Iterator[ItemT], total: int) -> Iterator[ItemT]:
        """The items of all processes in turn, by rank; only the first process gets any. Collective.

        Args:
            mine: the items of this process. total: number of items of all processes.

        Raises:
            UserError: another process has failed; with its message.
        """
        if self.size == 1:
            yield from mine
            return
        for start in range(0, total, self.size):
            item, failure = None, None
            try:
                item = next(mine, None)
            except Exception as error:
                failure = error
            found = self._gathered((item, _words(failure)))
            if failure is not None:
                raise failure
            for rank, (_, words) in enumerate(found):
                if words is not None:
                    raise UserError(f"process {rank} of {self.size} has failed: {words}")
            yield from (each for each, _ in found[: total - start])

    def _gathered(self, value: Any) -> list[Any]:
        """The values of all processes in the first one, an empty list in the others."""
        from torch import distributed

        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        try:
            distributed.gather_object(value, found, dst=0)
        except RuntimeError as error:
            raise UserError(f"the connection of the processes is lost: one of them was ended ({error})") from None
        return found or []


def _words(error: Exception | None) -> str | None:
    """An exception in words, as the first process reports it."""
    if error is None or isinstance(error, UserError):
        return None if error is None else str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]
