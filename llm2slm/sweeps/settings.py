"""Keys of `hydra.launcher` and `hydra.sweeper` of the launchers and the sweeper of this package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LauncherSettings:
    """Keys of every launcher."""

    _target_: str = ""
    jobs: int | None = None
    """Number of jobs at the same time; null: local: one for each GPU (or for each group of trainer.devices GPUs), one
    without GPUs; slurm: all; ray: as many as fit."""
    on_failure: str = "continue"
    """continue | stop (start no other job, and stop the running ones, which save their state)."""
    retries: int = 0
    """How often a failed job is repeated within one command; a training resumes from its checkpoint."""


@dataclass
class LocalSettings(LauncherSettings):
    """Keys of `hydra/launcher=local`: each job is a process on this machine."""

    _target_: str = "llm2slm.sweeps.local"


@dataclass
class SlurmSettings(LauncherSettings):
    """Keys of `hydra/launcher=slurm`: each job is an element of a Slurm job array, submitted by submitit."""

    _target_: str = "llm2slm.sweeps.slurm"
    executor: str = "slurm"
    """slurm | local (submitit's processes on this machine, to test the same path without a cluster)."""
    partition: str | None = None
    """Slurm's partition, or several, separated by commas."""
    account: str | None = None
    """Slurm's account."""
    qos: str | None = None
    """Slurm's quality of service."""
    constraint: str | None = None
    """Slurm's constraint on nodes."""
    timeout_min: int = 1440
    """Minutes until Slurm stops a job, which is then requeued and resumes."""
    requeues: int = 20
    """How often a job that reached `timeout_min` is requeued; preempted jobs are always requeued."""
    signal_delay_s: int = 120
    """Seconds before the time limit at which Slurm sends the signal to save the state."""
    gpus: int | None = None
    """GPUs of a job on each node; null: as trainer.devices, none with trainer.accelerator=cpu."""
    cpus_per_task: int = 4
    """Processor cores of each process."""
    mem_gb: float | None = None
    """Memory of a job on each node, in GB; null: Slurm's default."""
    setup: list[str] = field(default_factory=list)
    """Shell commands before the job, as `module load cuda`."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Further parameters of sbatch, as {reservation: NAME}."""


@dataclass
class RaySettings(LauncherSettings):
    """Keys of `hydra/launcher=ray`: each job is a Ray task."""

    _target_: str = "llm2slm.sweeps.ray"
    address: str | None = None
    """Address of a Ray cluster (auto: the running one); null: Ray is started on this machine."""
    gpus: float | None = None
    """GPUs of a job; null: as trainer.devices, none with trainer.accelerator=cpu. Below 1, jobs share a GPU."""
    cpus: float | None = None
    """Processor cores of a job; null: an equal share."""


@dataclass
class OptunaSettings:
    """Keys of `hydra/sweeper=optuna`: the jobs are trials of a stored Optuna study."""

    _target_: str = "llm2slm.sweeps.optuna"
    params: dict[str, Any] | None = None
    """Swept overrides in a configuration file, as of Hydra's basic sweeper."""
    trials: int = 20
    """Number of trials that end with a score or are pruned; running the command again with more continues the study."""
    objective: str | None = None
    """Validation metric that is optimized, as val/loss or val/NAME of a metric; null: callbacks.monitor."""
    sampler: str = "tpe"
    """tpe | random."""
    startup_trials: int = 10
    """Random trials before tpe uses the results."""
    seed: int | None = 0
    """Seed of the sampler; null: a random one."""
    pruner: str = "none"
    """none | median | percentile | halving | hyperband: which trials are stopped early by their validation scores."""
    pruner_startup: int = 5
    """Finished trials before median and percentile prune."""
    pruner_warmup: int = 0
    """Optimizer steps before a trial may be pruned (median, percentile); the smallest budget (halving, hyperband)."""
    storage: str | None = None
    """URL of an Optuna storage (as sqlite:///study.db); null: the file study.log in the folder of the sweep."""
    study: str | None = None
    """Name of the study in the storage; null: the folder of the sweep."""


LAUNCHERS: dict[str, type[LauncherSettings]] = {
    "local": LocalSettings,
    "slurm": SlurmSettings,
    "ray": RaySettings,
}
SWEEPERS: dict[str, type[OptunaSettings]] = {"optuna": OptunaSettings}
