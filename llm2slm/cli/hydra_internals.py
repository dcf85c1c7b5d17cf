"""The only module that imports `hydra._internal`, which Hydra may change in any release.

Why the public API does not suffice: `hydra.main` parses `sys.argv` itself, has no verbs, and prints user mistakes as
tracebacks; `hydra.compose` neither runs jobs nor adds a search path. `llm2slm VERB` checks every override before
anything runs, so it needs Hydra's config loader, its sweeper's cross product, its argument parser and its application
object. `tests/test_hydra_internals.py` states what each of them must do and fails when a release of Hydra differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from copy import copy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from llm2slm.types import UserError

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
"""`hydra.sweeper._target_` where the user chose no sweeper."""
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
"""`hydra.launcher._target_` where the user chose no launcher: jobs run one after another in this process."""

OWN = "llm2slm.sweeps."
"""Start of the `_target_` of the launchers and sweepers of this package, which Hydra does not instantiate."""


def kind_of_sweep(composed: DictConfig) -> str | None:
    """grid | optuna; None: sweeper or launcher is a plugin of Hydra, which runs the jobs itself.

    Raises:
        UserError: a sweeper and a launcher that do not fit together.
    """
    sweeper, launcher = (str(composed.hydra[part].get("_target_")) for part in ("sweeper", "launcher"))
    own, optuna, grid = launcher.startswith(OWN), sweeper.startswith(OWN), sweeper == BASIC_SWEEPER
    chosen = dict(composed.hydra.runtime.choices)
    if optuna and not own:
        raise UserError(
            f"hydra/sweeper=optuna: hydra/launcher={chosen.get('hydra/launcher')} cannot run its jobs; choose "
            "hydra/launcher=local, slurm or ray"
        )
    if own and not (optuna or grid):
        raise UserError(
            f"hydra/sweeper={chosen.get('hydra/sweeper')} is a plugin of Hydra and starts its jobs by a launcher of "
            "Hydra; add hydra/launcher=basic"
        )
    if optuna:
        return "optuna"
    return "grid" if grid and (own or launcher == BASIC_LAUNCHER) else None


class Repository(ConfigRepository):
    """The config files of one verb. Hydra takes a folder `NAME/` for a group of every primary config; this class
    excludes the verb's plain keys (`model` is a group of `train` and a text of `judge`)."""

    def __init__(self, path: ConfigSearchPath, plain_keys: Collection[str]) -> None:
        super().__init__(path)
        self.plain_keys = plain_keys

    def __deepcopy__(self, memo: dict[int, Any]) -> Repository:
        """A shallow copy: Hydra copies the repository at each query to add search paths to the copy, and only reads
        the sources, which hold the whole `ConfigStore`."""
        return copy(self)

    def group_exists(self, config_path: str) -> bool:
        return config_path not in self.plain_keys and bool(super().group_exists(config_path))


def search_path(folder: str) -> ConfigSearchPath:
    """Hydra's own configs, `folder`, and the schemas of the `ConfigStore`."""
    return create_config_search_path(folder)


def config_loader(path: ConfigSearchPath, plain_keys: Collection[str]) -> ConfigLoaderImpl:
    """The loader of one verb's configs; see `Repository` for `plain_keys`."""
    loader = ConfigLoaderImpl(config_search_path=path)
    loader.repository = Repository(path, plain_keys)
    return loader


def application(verb: str, loader: ConfigLoaderImpl) -> Hydra:
    """A Hydra application with `hydra.job.name=VERB` that composes by `loader`."""
    hydra: Hydra = Hydra.create_main_hydra2(task_name=verb, config_search_path=loader.get_search_path())
    hydra.config_loader.repository = loader.repository
    return hydra


def cross_product(overrides: list[Override]) -> list[list[str]]:
    """The overrides of each job of a sweep, in the basic sweeper's order.

    Raises:
        HydraException: a sweep that the basic sweeper does not support, as `interval(0,1)`.
    """
    jobs: list[list[str]] = BasicSweeper.split_arguments(overrides, None)[0]
    return jobs


def argument_parser() -> argparse.ArgumentParser:
    """Hydra's command-line parser: overrides, -m, --cfg, --info, --config-dir, ..."""
    parser: argparse.ArgumentParser = get_args_parser()
    return parser
