"""Sweeps by a sweeper or a launcher that is a plugin of Hydra: Hydra composes the jobs, and its launcher runs them."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from llm2slm.atomic import REFUSED
from llm2slm.cli import hydra_internals
from llm2slm.cli.compose import Composer, one_line, quote
from llm2slm.cli.job import attempt, release, with_environment
from llm2slm.cli.launch import Command
from llm2slm.commands.output_folder import make_folder
from llm2slm.sweeps.jobs import JOB_FOLDER, JobRecord, read_record
from llm2slm.sweeps.table import finish_sweep
from llm2slm.tracking.naming import of_sweep
from llm2slm.types import UserError


class SweptCommand(Command):
    """The task function of a job. No exception of the command reaches Hydra, which would end the sweep."""

    def __call__(self, composed: DictConfig) -> float | None:
        hydra = HydraConfig.get()
        folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
        print(f"[job {folder.name}] {' '.join(overrides)}", flush=True)
        found = read_record(folder)
        if found is not None and found.complete and sorted(found.overrides) == sorted(overrides):
            print(f"job {folder.name} is complete and skipped", flush=True)
            return found.value
        JobRecord(overrides, "pending").write(folder)
        try:
            with with_environment({JOB_FOLDER: str(folder)}):
                attempt(folder, partial(self.run, composed, overrides, folder))
        finally:
            release()
        record = read_record(folder)
        return None if record is None else record.value


def run_by_hydra(verb: str, composer: Composer, overrides: list[str], folder: Path) -> int:
    """Runs a sweep by Hydra, and writes its table. Returns 1 if any job failed."""
    overrides = [*overrides, f"hydra.sweep.dir={quote(str(folder))}", "hydra.mode=MULTIRUN"]
    command = SweptCommand(verb, composer)
    make_folder("hydra.sweep.dir", folder)
    complete = False
    varied = [each.lstrip("+").partition("=")[0] for each in overrides if composer.parse(each).is_sweep_override()]
    try:
        with with_environment(of_sweep(folder, varied)):
            hydra_internals.application(verb, composer.loader).multirun(composer.config_name, command, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from None
    except OSError as error:  # of files of Hydra; errors of a job are in its record
        of_the_sweep = error.errno in REFUSED if error.filename is None else folder in Path(str(error.filename)).parents
        if not of_the_sweep:
            raise
        what = "a file" if error.filename is None else error.filename
        raise UserError(f"hydra.sweep.dir={folder}: {what} cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):  # it does not exist
            (folder / "multirun.yaml").unlink()  # of Hydra; the config.yaml of each job has the same information
        complete = finish_sweep(folder)
    return 0 if complete else 1
