"""Runs the command of a verb once, in Hydra's output folder; `sweep` runs the jobs of a sweep (`-m`)."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm2slm import runs
from llm2slm.cli import hydra_internals
from llm2slm.cli.compose import Composer, runs_named, values
from llm2slm.cli.given import check_read
from llm2slm.cli.named import with_named_models
from llm2slm.cli.stored import chosen_keys, with_stored
from llm2slm.commands import silence_libraries
from llm2slm.commands.deferred_warnings import drop_held, show_held
from llm2slm.commands.next_command import next_command
from llm2slm.commands.output_folder import make_folder
from llm2slm.config import RunConfig
from llm2slm.ranks import first_process, started_at_once
from llm2slm.sweeps.jobs import job_overrides
from llm2slm.tracking.naming import set_overrides
from llm2slm.types import UserError


class Parser(argparse.ArgumentParser):
    """Raises UserError instead of exiting."""

    def error(self, message: str) -> Any:
        raise UserError(message)


def launch(verb: str, arguments: list[str]) -> int:
    """Parses and checks the arguments after the verb, and runs the command. Returns the exit code."""
    args = parsed(arguments)
    composer = Composer(verb, args.config_name, args.config_path, args.config_dir)
    try:
        if args.info or args.cfg or args.hydra_help:
            return show(verb, composer, args)
        words = runs_named(composer.schema, args.overrides)
        overrides = [composer.prepare(override, sweeping=args.multirun) for override in words]
        if args.multirun:
            from llm2slm.cli.sweep import run_sweep

            return run_sweep(verb, composer, overrides, arguments)
        run_prepared(verb, composer, overrides)
        return 0
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The arguments after the verb: overrides, and Hydra's flags."""
    parser = hydra_internals.argument_parser()
    parser.__class__ = Parser
    return parser.parse_intermixed_args(arguments)


def run_prepared(verb: str, composer: Composer, overrides: list[str]) -> float | None:
    """Composes checked overrides and runs the command once. Returns what an optimizing sweeper reads."""
    if verb == "train":
        overrides = resume_in_place(overrides, composer)
    composed = composer.compose([*overrides, "hydra.mode=RUN"])
    composer.typed(composed)
    return run_once(verb, composer, overrides, composed)


def show(verb: str, composer: Composer, args: argparse.Namespace) -> int:
    """Prints the output of Hydra's flags --cfg, --info and --hydra-help."""
    hydra = hydra_internals.application(verb, composer.loader)
    if args.hydra_help:
        hydra.hydra_help(config_name=composer.config_name, args_parser=hydra_internals.argument_parser(), args=args)
    else:
        words = runs_named(composer.schema, args.overrides)
        overrides = [composer.prepare(override, sweeping=args.multirun) for override in words]
        composer.typed(composer.compose(overrides))
        if args.cfg:
            hydra.show_cfg(composer.config_name, overrides, args.cfg, args.package, args.resolve)
        else:
            hydra.show_info(args.info, config_name=composer.config_name, overrides=overrides)
    return 0


def resume_in_place(overrides: list[str], composer: Composer) -> list[str]:
    """`train run=DIR` writes into DIR unless an override sets another output folder."""
    named = [o for o in overrides if o.startswith("run=")]
    elsewhere = any(o.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for o in overrides)
    if not named or elsewhere:
        return overrides
    for folder in values(composer.parse(named[-1])):  # without quotes; one value, except in a sweep
        if folder is None:
            return overrides
        runs.read_config(Path(str(folder)))  # raises for a wrong name before Hydra creates the folder
    return [*overrides, f"hydra.run.dir={named[-1].partition('=')[2]}"]


class Command:
    """The task function of Hydra, called with the composed configuration: runs `llm2slm.commands.VERB.run`.

    Attributes:
        value: of a finished run, the value that an optimizing sweeper reads.
        failure: the exception of the run. It does not reach Hydra, which would print it.
    """

    def __init__(self, verb: str, composer: Composer) -> None:
        self.verb, self.composer = verb, composer
        self.value: float | None = None
        self.failure: Exception | None = None
        self.config: Any = None

    def __call__(self, composed: DictConfig) -> float | None:
        hydra = HydraConfig.get()
        try:
            self.value = self.run(composed, list(hydra.overrides.task), Path(hydra.runtime.output_dir))
        except Exception as error:
            self.failure = error
        return self.value

    def run(self, composed: DictConfig, overrides: list[str], folder: Path) -> float | None:
        """Runs the command. Returns the value that an optimizing sweeper reads: of `train` the best validation score by
        `callbacks.monitor`; of other verbs the score of the first metric."""
        set_overrides(job_overrides() or overrides)
        first = first_process()  # the others print nothing
        try:
            with_named_models(self.composer, composed, overrides, shown=first)
            config, names = self.composer.typed(composed), None
            self.config = config
            if isinstance(config, RunConfig):
                config, recorded = with_stored(self.verb, config, overrides), config
                names = None if config is recorded else chosen_keys(overrides)
            default, experiment = self.composer.typed(self.composer.defaults()), self.experiment(overrides)
            check_read(self.verb, config, default, names, experiment=experiment, shown=first)
            run: Callable[[Any, Path], runs.Result | None] = import_module(f"llm2slm.commands.{self.verb}").run
            silence_libraries()
            with nullcontext() if first else silent():
                result = run(config, folder)
        except UserError:  # raised before the work began, or after the warnings were printed
            drop_held()
            raise
        finally:
            show_held()
            set_overrides([])
        if result and result.selection is not None and self.verb == "train":
            return result.selection.value
        scores = result.systems[0].quality if result and result.systems else {}
        return next((score.value for score in scores.values()), None)

    def experiment(self, overrides: list[str]) -> Any:
        """The configuration with only the chosen experiment; None if none is chosen."""
        chosen = [override for override in overrides if chosen_keys([override]) == ["experiment"]]
        if not chosen:
            return None
        try:
            composed = self.composer.compose(chosen)
            with_named_models(self.composer, composed, chosen, shown=False)
            return self.composer.typed(composed)
        except (UserError, OmegaConfBaseException):  # it needs other overrides: all keys may cause warnings
            return None


@contextmanager
def silent() -> Iterator[None]:
    """Discards the output of a further process: the first one prints the same. Errors are printed after the block."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
        yield


def run_once(verb: str, composer: Composer, overrides: list[str], composed: DictConfig) -> float | None:
    """Runs the composed configuration once; raises the exception of the command. Returns `Command.value`."""
    command, hydra = Command(verb, composer), hydra_internals.application(verb, composer.loader)
    hydra.config_loader.load_configuration = lambda *_, **__: composed
    chosen = any(override.startswith("hydra.run.dir=") for override in overrides)
    if chosen and not str(composed.hydra.run.dir).strip():
        raise UserError("hydra.run.dir=: is empty; give a folder, or leave it out")
    given = Path(os.path.normpath(str(composed.hydra.run.dir)))
    folder = given.absolute()
    missing = [each for each in (folder, *folder.parents) if not os.path.exists(each)]  # noqa: PTH110  raises no OSError
    done = False
    try:
        if not chosen and has_time(composed):
            folder = common_folder(folder, composer, composed)
            given = given.with_name(folder.name)
            missing, composed.hydra.run.dir = [folder, *missing[1:]], str(folder)
        make_folder("hydra.run.dir", Path(str(composed.hydra.run.dir)))
        hydra.run(composer.config_name, command, [*overrides, "hydra.mode=RUN"])
        if command.failure is not None:
            raise command.failure
        done = True
        following = None if job_overrides() is not None else next_command(verb, command.config, given, overrides)
        if following and first_process():
            print(f"llm2slm: next: {following}", file=sys.stderr)
    finally:
        if not done:
            remove_empty(missing)
    return command.value


def has_time(composed: DictConfig) -> bool:
    """Whether the output folder is named by the time, as by default."""
    plain: Any = OmegaConf.to_container(composed.hydra.run, resolve=False)
    return "${now:" in str(plain["dir"])


def common_folder(folder: Path, composer: Composer, composed: DictConfig) -> Path:
    """`new_folder` for all processes of a command: those that a launcher has started may have different times."""
    if not started_at_once() or (trainer := getattr(composer.typed(composed), "trainer", None)) is None:
        return new_folder(folder)
    from llm2slm.training.first_result import from_first
    from llm2slm.training.launch import several

    if not several(trainer):
        return new_folder(folder)
    return Path(from_first("run directory", lambda: str(new_folder(folder))))


def new_folder(folder: Path) -> Path:
    """Creates a folder, or if it exists one with a number appended: of two runs that start in the same second each gets
    its folder."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            made = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            with suppress(FileExistsError):
                made.mkdir()
                return made
    except OSError as error:
        raise UserError(f"hydra.run.dir={folder}: cannot be created ({error.strerror}); give another one") from None
    raise AssertionError


def remove_empty(folders: list[Path]) -> None:
    """Removes empty folders, the innermost first."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # not empty, or it does not exist
            return
