"""What each process of a training draws from, kept in checkpoints: with it, dropout continues exactly after a resume.

Lightning writes the checkpoint of the first process. The others have other states, so they are gathered into it.
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
"""Key of a checkpoint: a list, one entry a process in the order of their ranks."""


def own_states(device: torch.device) -> dict[str, Any]:
    """The generators of this process, as plain values: Python's, NumPy's, torch's, and that of its device."""
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
    """Sets the generators of this process back. A state of a device is left out where there is none of its kind."""
    if "python" in states:  # older checkpoints have those of torch only
        random.setstate(states["python"])
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"].cpu())


def gather(trainer: Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    """One value a process, in the order of ranks, in every process. All have to call it."""
    if trainer.world_size == 1:
        return [own]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, own)
    return everyone


def of_this_process(checkpoint: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """The entry of a checkpoint for this process.

    An older checkpoint has the torch states of the first process only: with several processes that is reported, since
    the resumed training then is not exactly the uninterrupted one.

    Raises:
        UserError: the checkpoint is of another number of processes.
    """
    everyone = checkpoint.get(STATES)
    if everyone is None:
        if trainer.world_size > 1 and trainer.is_global_zero:
            print(
                "llm2slm: this checkpoint has the random state of one process only: with dropout, the resumed training "
                "is not exactly the uninterrupted one",
                file=sys.stderr,
            )
        old = {"torch": checkpoint["rng"]}
        return old | ({"device": checkpoint["rng_cuda"]} if "rng_cuda" in checkpoint else {})
    if len(everyone) != trainer.world_size:
        raise UserError(
            f"the checkpoint is of {len(everyone)} processes, this run has {trainer.world_size}; to resume, use the "
            "same trainer.devices and trainer.num_nodes"
        )
    own: dict[str, Any] = everyone[trainer.global_rank]
    return own
