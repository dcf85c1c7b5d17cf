"""Every YAML file under conf/: it composes, contains only non-default values, and these are applied."""

from __future__ import annotations

import re
from enum import Enum
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from sampling import first_of_each, representatives

from llm2slm.cli import main
from llm2slm.cli.compose import Composer
from llm2slm.cli.folders import conf_folder
from llm2slm.cli.schema import SCHEMAS, keys, lookup
from llm2slm.config import RunConfig
from llm2slm.data.sources.corpora import CORPORA
from llm2slm.data.tasks import TASKS
from llm2slm.models import conditioning
from llm2slm.types import SystemKind

CONF = conf_folder()
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent.name != "wandb_sweep")
PRIMARY = [path for path in FILES if len(path.parts) == 1]
OPTIONS = [path for path in FILES if len(path.parts) > 1 and path.parts[0] != "hydra"]


@cache
def composer(verb):
    return Composer(verb)


@cache
def composed(verb, override=None):
    """The configuration that Hydra composes: once for all tests, which must not change it."""
    return composer(verb).compose([] if override is None else [composer(verb).prepare(override, sweeping=False)])


def name_of(path):
    return path.with_suffix("").as_posix()


def content(path):
    return yaml.safe_load((CONF / path).read_text(encoding="utf-8")) or {}


def leaves(values, prefix=""):
    for key, value in values.items():
        name = f"{prefix}{key}"
        known = lookup(RunConfig, name)
        if isinstance(value, dict) and known is not None and known.section:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def statements(path):
    """The keys that a file sets, by their path in the complete configuration."""
    header = re.match(r"# @package (\S+)\n", (CONF / path).read_text(encoding="utf-8"))
    package = header[1] if header else ".".join(path.parts[:-1])
    prefix = "" if package in ("_global_", "") else f"{package}."
    values = {key: value for key, value in content(path).items() if key not in ("defaults", "hydra")}
    return dict(leaves(values, prefix))


SET_BY_GROUPS = {name for path in OPTIONS if path.parts[0] != "experiment" for name in statements(path)}
"""Keys that an option of a group sets, so that an experiment may have to reset them to the code's default."""


def plain(value):
    if isinstance(value, Enum):
        return value.value
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def choice(path):
    return f"{path.parent.as_posix()}={path.stem}"


def test_every_file_belongs_to_a_verb_or_a_group():
    assert [name_of(path) for path in PRIMARY] == sorted(SCHEMAS)
    groups = {path.parts[0] for path in FILES if len(path.parts) > 1}
    assert groups == {"model", "data", "task", "trainer", "logger", "callbacks", "experiment", "hydra"}
    assert len(FILES) == len(PRIMARY) + len(OPTIONS) + len(list((CONF / "hydra").rglob("*.yaml")))


@pytest.mark.parametrize("path", PRIMARY, ids=name_of)
def test_primary_configs_compose(path):
    found = composed(path.stem)
    assert type(composer(path.stem).typed(found)) is SCHEMAS[path.stem]
    for name, value in statements(path).items():
        arrived = plain(OmegaConf.select(found, name))
        if isinstance(value, dict):  # an open dict: merged into the chosen group's
            arrived = {key: arrived.get(key) for key in value}
        assert arrived == value, name


@pytest.mark.parametrize("path", first_of_each(OPTIONS, lambda path: path.parent), ids=name_of)
def test_options_compose_and_are_applied(path):
    found = composed("train", choice(path))
    assert type(composer("train").typed(found)) is RunConfig
    for name, value in statements(path).items():
        arrived = plain(OmegaConf.select(found, name))
        if path.parts[0] == "experiment" and isinstance(value, dict):  # an open dict: merged into the chosen group's
            arrived = {key: arrived.get(key) for key in value}
        if name == "data.parts":  # the schema adds the fields that a part does not set
            arrived = [{key: part[key] for key in own} for part, own in zip(arrived, value, strict=True)]
        assert arrived == value, name


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] != "hydra"], ids=name_of)
def test_files_state_no_default_of_the_code(path):
    schema = SCHEMAS.get(path.stem, RunConfig) if len(path.parts) == 1 else RunConfig
    for name, value in statements(path).items():
        known = lookup(schema, name)
        assert known is not None, f"{name} is no key"
        default = known.default.value if isinstance(known.default, Enum) else known.default
        taken_back = path.parts[0] == "experiment" and name in SET_BY_GROUPS
        assert value != default or taken_back, f"{name}: {value} is the default; leave it out"


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "experiment"], ids=name_of)
def test_experiments_start_with_their_command(path):
    lines = (CONF / path).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert re.match(rf"# llm2slm (train|benchmark) (-m )?experiment={path.stem}\b", lines[1])


@pytest.mark.parametrize("path", [p for p in FILES if "targets" in content(p).get("benchmark", {})], ids=name_of)
def test_targets_are_of_rows_that_their_experiment_times(path):
    given = content(path)["benchmark"]
    decoders = {"generate", *given["decoders"], *given.get("hybrid_decoders", ())}
    for target in given["targets"]:
        of_grid = "response_tokens" in target
        assert not of_grid or target["response_tokens"] in given["response_tokens"]
        assert target.get("batch", 1) in given["batch" if of_grid else "test_batch"]
        named = [target[key] for key in ("system", "against") if key in target]
        found = {match[1] if (match := re.search(r"\((\w+)\)", name)) else "generate" for name in named}
        assert found <= decoders | {"ctranslate2"}, target["name"]  # an extra, added on the command line


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "train.yaml"], ids=name_of)
def test_files_state_their_purpose(path):
    assert (
        path.parts[0] == "task" or "\n#" in "\n" + (CONF / path).read_text(encoding="utf-8") or len(content(path)) == 1
    )


def stems(group):
    return {path.stem for path in FILES if path.parent == Path(group)}


def test_groups_offer_the_options_of_the_code():
    assert stems("data") == {"builtin", "json", "hub", "mixture", *CORPORA}
    assert stems("task") == set(TASKS)
    assert stems("model/conditioning") == set(conditioning.names())
    assert stems("model") == set(SystemKind.__members__)


@pytest.mark.parametrize("group", ["data", "task", "model/conditioning", "model"])
def test_the_name_of_an_option_is_the_value_it_sets(group):
    key = {"data": "data.name", "task": "task.name", "model/conditioning": "model.conditioning", "model": "model.kind"}
    for option in stems(group):
        found = OmegaConf.select(composed("train", f"{group}={option}"), key[group])
        assert getattr(found, "value", found) == option


def test_systems_without_an_encoder_have_no_conditioning():
    for kind in ("slm", "llm"):
        assert composed("train", f"model={kind}").model.conditioning == "none"


@pytest.mark.parametrize(
    ("typed", "value"),
    representatives(
        [
            ("6", 6),
            ("0.25", 0.25),
            ("[1,4,-1]", [1, 4, -1]),
            ("{encoder:0.5,decoder:[1,-1]}", {"encoder": 0.5, "decoder": [1, -1]}),
            ("null", None),
        ],
        lambda case: case[0].startswith(("0", "{")),
    ),
)
def test_blocks_of_an_slm_are_passed_as_plain_values(calls, typed, value):
    assert main(["train", "model.slm.name=x/y", f"model.slm.layers={typed}"]) == 0
    found = calls[0][0].model.slm.layers
    assert found == value and type(found) is type(value)


def test_every_key_has_a_checked_type():
    """No field has a type so loose that a wrong value would pass (except open dicts; models check layers)."""
    loose = [k.name for k in keys(RunConfig).values() if "Any" in str(k.annotation) and not k.open]
    assert loose == ["model.llm.layer", "model.slm.layers"]
