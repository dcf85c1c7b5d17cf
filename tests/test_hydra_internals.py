"""The private modules of Hydra that `llm2slm.cli.hydra_internals` uses; a failure here means that Hydra changed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra import version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_class

from llm2slm.cli import hydra_internals as internals


@pytest.fixture
def loader(tmp_path: Path) -> Any:
    """A primary config `top`, a group `model` with two options, and a folder `data` with the name of a plain key."""
    version.setbase("1.3")
    (tmp_path / "top.yaml").write_text("defaults:\n  - model: a\n  - _self_\nsteps: 1\ndata: text\n")
    for group, names in {"model": "ab", "data": "c"}.items():
        (tmp_path / group).mkdir()
        for name in names:
            (tmp_path / group / f"{name}.yaml").write_text(f"name: {name}\n")
    return internals.config_loader(internals.search_path(str(tmp_path)), {"data"})


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_signatures_are_unchanged() -> None:
    hydra = internals.Hydra
    assert parameters(hydra.create_main_hydra2) == ["task_name", "config_search_path"]
    assert parameters(hydra.run)[:4] == parameters(hydra.multirun)[:4]
    assert parameters(hydra.run)[:4] == ["self", "config_name", "task_function", "overrides"]
    assert parameters(hydra.hydra_help) == ["self", "config_name", "args_parser", "args"]
    assert parameters(hydra.show_cfg) == ["self", "config_name", "overrides", "cfg_type", "package", "resolve"]
    assert parameters(hydra.show_info)[:4] == ["self", "info", "config_name", "overrides"]
    assert parameters(internals.ConfigLoaderImpl.load_configuration)[:4] == [
        "self", "config_name", "overrides", "run_mode",
    ]  # fmt: skip
    assert parameters(internals.ConfigRepository.group_exists) == ["self", "config_path"]


@pytest.mark.parametrize("path", [internals.BASIC_SWEEPER, internals.BASIC_LAUNCHER])
def test_default_plugins_have_these_names(path: str, loader: Any) -> None:
    assert get_class(path).__name__ == path.rpartition(".")[2]
    composed = loader.load_configuration("top", [], run_mode=RunMode.RUN)
    assert path in (composed.hydra.sweeper["_target_"], composed.hydra.launcher["_target_"])


def test_the_loader_composes_and_lists_groups(loader: Any) -> None:
    composed = loader.load_configuration("top", ["model=b", "data=words"], run_mode=RunMode.RUN)
    assert (composed.model.name, composed.steps, composed.data) == ("b", 1, "words")
    assert loader.get_group_options("model", ObjectType.CONFIG) == ["a", "b"]
    assert "model" in loader.list_groups("")


def test_a_plain_key_is_not_a_group(loader: Any, tmp_path: Path) -> None:
    """Without the exclusion Hydra composes the file `data/c.yaml` instead of the text."""
    assert loader.load_configuration("top", ["data=c"], run_mode=RunMode.RUN).data == "c"
    plain = internals.ConfigLoaderImpl(config_search_path=internals.search_path(str(tmp_path)))
    with pytest.raises(HydraException):
        plain.load_configuration("top", ["data=c"], run_mode=RunMode.RUN)


def test_an_application_composes_with_the_loader(loader: Any) -> None:
    try:
        hydra = internals.application("verb", loader)
        composed = hydra.config_loader.load_configuration("top", ["data=c"], run_mode=RunMode.RUN)
    finally:
        GlobalHydra.instance().clear()
    assert (composed.data, composed.hydra.job.name) == ("c", "verb")


def test_jobs_of_a_sweep_are_in_order(loader: Any) -> None:
    parse = OverridesParser.create(config_loader=loader).parse_override
    assert internals.cross_product([parse("a=1,2"), parse("b=x"), parse("c=3,4")]) == [
        ["a=1", "b=x", "c=3"], ["a=1", "b=x", "c=4"], ["a=2", "b=x", "c=3"], ["a=2", "b=x", "c=4"],
    ]  # fmt: skip
    with pytest.raises(HydraException):
        internals.cross_product([parse("a=interval(0,1)")])


def test_the_parser_has_the_arguments_that_launch_uses() -> None:
    given = ["a=1", "-m", "--cfg", "job", "-p", "a", "--config-dir", "D", "--config-name", "N", "--resolve"]
    args = internals.argument_parser().parse_intermixed_args(given)
    assert (args.overrides, args.multirun, args.cfg, args.package, args.resolve) == (["a=1"], True, "job", "a", True)
    assert (args.config_dir, args.config_name, args.config_path) == ("D", "N", None)
    assert (args.info, args.hydra_help) == (None, False)
