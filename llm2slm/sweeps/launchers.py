"""The launcher that the settings choose; optional packages are imported only for theirs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from llm2slm.sweeps.jobs import Job
from llm2slm.sweeps.local import LocalLauncher
from llm2slm.sweeps.running import Launcher
from llm2slm.sweeps.settings import LauncherSettings, RaySettings, SlurmSettings
from llm2slm.types import UserError


def launcher_of(settings: LauncherSettings, jobs: Sequence[Job], folder: Path) -> Launcher:
    """The launcher for jobs of a sweep in `folder`.

    Raises:
        UserError: its package is missing, or it cannot run these jobs.
    """
    if isinstance(settings, SlurmSettings):
        need("submitit", "sweep", "hydra/launcher=slurm")
        from llm2slm.sweeps.slurm import SlurmLauncher

        return SlurmLauncher(settings, folder)
    if isinstance(settings, RaySettings):
        need("ray", "ray", "hydra/launcher=ray")
        from llm2slm.sweeps.ray_tasks import RayLauncher

        return RayLauncher(settings, jobs)
    return LocalLauncher(settings, jobs)


def need(package: str, extra: str, what: str) -> None:
    """Refuses what needs a package that is not installed.

    Raises:
        UserError: names the extra to install.
    """
    if find_spec(package) is None:
        raise UserError(f"{what} needs the package {package}; pip install 'llm-to-slm[{extra}]'")
