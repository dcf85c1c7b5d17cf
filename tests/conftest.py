"""Fixtures of the whole suite: no network, one thread, the real corpora, stub commands, a tiny trained run."""

from __future__ import annotations

import os
import tempfile

from own_environment import own_environment

OWN = own_environment(os.environ, tempfile.mkdtemp(prefix="llm2slm-tests-"))
for name in os.environ.keys() - OWN.keys():
    del os.environ[name]
os.environ.update(OWN)  # before any import that reads it

import atexit
import gc
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from chat_server import ChatServer
from command_line import tiny_overrides
from omegaconf import DictConfig, OmegaConf
from sampling import SLOW

from llm2slm.cli import VERBS, main
from llm2slm.cli.compose import Composer
from llm2slm.evaluation.benchmark import ceilings

CONF = Path(__file__).resolve().parent.parent / "conf"

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests were started in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Disables fsync: no power cut occurs in a test, and on a busy disk fsync would dominate many tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def ceilings_are_measured_briefly() -> Iterator[None]:
    """Every benchmark measures the ceilings of this machine: briefly here, as no test depends on their values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "SECONDS", 0.01)
        yield


@pytest.fixture(scope="session", autouse=True)
def defaults_are_composed_once() -> Iterator[None]:
    """A command compares its configuration with the defaults of its verb, which are constant without a user's folder of
    configs: tests that run commands in this process share them, read-only. The configuration of each command line is
    still composed."""
    compose, shared = Composer.defaults, dict[tuple[str, ...], DictConfig]()

    def defaults(self: Composer) -> DictConfig:
        places = [f"{source.provider}: {source.path}" for source in self.path.get_path()]
        key = (self.schema.__name__, self.config_name, *places)
        if f"main: {CONF}" not in places or any(place.startswith("command-line: ") for place in places):
            return compose(self)
        if key not in shared:
            shared[key] = compose(self)
            OmegaConf.set_readonly(shared[key], True)
        return shared[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Composer, "defaults", defaults)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that are marked slow")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.slow:  # before any test file is imported, which reads it
        os.environ[SLOW] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects slow tests unless `--slow`, a `-m` expression or a node id on the command line selects them."""
    if config.option.slow or config.option.markexpr:
        return
    named = tuple(argument for argument in config.invocation_params.args if "::" in str(argument))
    slow = [item for item in items if item.get_closest_marker("slow") and not _named(item, named)]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


def _named(item: pytest.Item, node_ids: tuple[str, ...]) -> bool:
    return any(item.nodeid.startswith(name) or item.nodeid.endswith(name.lstrip("./")) for name in node_ids)


def pytest_collection_finish() -> None:
    """Freezes all imported objects: they live as long as the tests, so the garbage collector need not scan them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder that holds the real corpora (multi30k/, samsum/, ...); the test is skipped where it is absent."""
    checkout = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("LLM2SLM_SHARED_DATA", checkout.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no corpora at {folder}; set LLM2SLM_SHARED_DATA")
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, Path]]:
    """Every command is a stub that only records its configuration and folder; the test runs in an empty folder."""
    found: list[tuple[Any, Path]] = []
    monkeypatch.chdir(tmp_path)
    for verb in VERBS:
        stub = ModuleType(f"llm2slm.commands.{verb}")
        stub.run = lambda config, folder: found.append((config, folder))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, stub.__name__, stub)
    return found


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny T5 with its tokenizer, to be given as the LLM of a command."""
    from llm2slm.testing import write_tiny_t5

    return write_tiny_t5(tmp_path_factory.mktemp("zoo") / "llm", seed=1, width=24)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, offline; `tiny_runs.publish` fills it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A chat-completions endpoint that judges by a rule."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    with ChatServer() as server:
        yield server


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> Path:
    """The run directory of a tiny hybrid, trained by the command line. Tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *tiny_overrides(tiny_llm), f"hydra.run.dir={folder}"]) == 0
    return folder
