"""Random states of all processes in checkpoints, so that dropout continues exactly after a resume.

Lightning writes the checkpoint of the first process only, so the states of all processes are gathered into it.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import torch
from lightning import Trainer

from llm2slm.types import UserError

STATES = "random_states"
"""Key of a checkpoint: a list with one entry per process, in rank order."""


def generator_states(device: torch.device) -> dict[str, Any]:
    """Generator states of this process as plain values: Python, NumPy, torch, and its device."""
    kind, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state().cpu()
    return states


def restore_states(states: dict[str, Any], device: torch.device) -> None:
    """Restores the generators of this process; a device state is ignored on the CPU."""
    if "python" in states:  # older checkpoints have those of torch only
        random.setstate(states["python"])
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"].cpu())


def gather(trainer: Trainer, state: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of all processes in rank order. Collective: every process must call it."""
    if trainer.world_size == 1:
        return [state]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states


def of_this_process(checkpoint: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """The entry of a checkpoint for this process.

    A checkpoint of an earlier version has the torch state of the first process only. With several processes this is
    reported, since the resumed training then differs from the uninterrupted one.

    Raises:
        UserError: the checkpoint has another number of processes.
    """
    states = checkpoint.get(STATES)
    if states is None:
        if trainer.world_size > 1 and trainer.is_global_zero:
            print(
                "llm2slm: this checkpoint has the random state of one process only: with dropout, the resumed training "
                "is not exactly the uninterrupted one",
                file=sys.stderr,
            )
        old = {"torch": checkpoint["rng"]}
        return old | ({"device": checkpoint["rng_cuda"]} if "rng_cuda" in checkpoint else {})
    if len(states) != trainer.world_size:
        raise UserError(
            f"the checkpoint is of {len(states)} processes, this run has {trainer.world_size}; to resume, use the "
            "same trainer.devices and trainer.num_nodes"
        )
    state: dict[str, Any] = states[trainer.global_rank]
    return state
