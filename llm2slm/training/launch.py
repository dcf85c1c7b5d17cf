"""Starts the processes of a data-parallel command (label, encode, evaluate) as `train` starts those of DDP.

Without a cluster environment (torchrun, Slurm) each further process runs the command line of this one again, up to
the same call of `in_processes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lightning import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import distributed

from llm2slm.config import TrainerConfig
from llm2slm.processes import Processes
from llm2slm.training.peers import watched
from llm2slm.types import UserError

ResultT = TypeVar("ResultT")
STRATEGIES = ("auto", "ddp")
"""Data parallelism in which each process runs the command line (not ddp_fork, whose first process is a copy)."""


def several(cfg: TrainerConfig) -> bool:
    """Whether a command may run in several processes."""
    return cfg.num_nodes > 1 or str(cfg.devices) not in ("1", "[0]", "0,")


def check_parallel(cfg: TrainerConfig) -> None:
    """Refuses, before anything is loaded, a strategy that is no data parallelism.

    Raises:
        UserError: names the key.
    """
    if several(cfg) and cfg.strategy not in STRATEGIES:
        raise UserError(
            f"trainer.strategy={cfg.strategy}: is for train only; use trainer.strategy=ddp, or trainer.devices=1"
        )


def in_processes(cfg: TrainerConfig, work: Callable[[Processes], ResultT]) -> ResultT:
    """Runs a function in each process of a command.

    Args:
        work: what each process does; all have loaded the same model and data.

    Returns:
        The result in this process.

    Raises:
        UserError: the devices do not exist.
    """
    if not several(cfg):
        return work(Processes())
    check_parallel(cfg)
    try:
        # gloo: texts and representations are gathered from memory of the CPU
        strategy = DDPStrategy(process_group_backend="gloo", start_method="popen")
        fabric = Fabric(accelerator=cfg.accelerator, devices=cfg.devices, num_nodes=cfg.num_nodes, strategy=strategy)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"trainer.devices={cfg.devices}: {str(error).splitlines()[0]}") from error

    def run(fabric: Fabric) -> ResultT:
        try:
            return work(Processes(fabric.global_rank, fabric.world_size))
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()

    others: Any = fabric.strategy.launcher
    try:
        with watched():
            result: ResultT = fabric.launch(run)
            for process in getattr(others, "procs", []):
                process.wait()
        return result
    except BaseException:
        for process in getattr(others, "procs", []):
            process.kill()
        raise
