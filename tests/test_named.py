"""A model given by name: only the default group's config is dropped; a key of the user is applied or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import mistake, without_next
from tiny_runs import tiny_run

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands.demo import system_config
from llm2slm.config import LanguageModelConfig, RunConfig
from llm2slm.models.loading.pretrained import load_language_model
from llm2slm.testing import tiny_tokenizer, write_tiny_gpt2, write_tiny_t5
from llm2slm.types import Init


def composed(calls: list[tuple[Any, Path]], *arguments: str, verb: str = "train") -> RunConfig:
    assert main([verb, *arguments]) == 0
    config: RunConfig = calls[-1][0]
    return config


def test_the_default_groups_config_is_dropped_and_the_users_keys_are_applied(calls: Any) -> None:
    """The default group is t5_mini, whose num_layers is 1."""
    assert composed(calls, "model.slm.name=some/model").model.slm.config == {}
    assert composed(calls, "model.slm.name=some/model", "model.slm.config={num_hidden_layers: 6}").model.slm.config == {
        "num_hidden_layers": 6
    }
    same = composed(calls, "model.slm.name=some/model", "model.slm.config.num_layers=1", "model.slm.init=random")
    assert same.model.slm.config == {"num_layers": 1}  # although the group has the same value
    both = composed(calls, "model.slm.name=m", "model.slm.config={d_ff: 8}", "model.slm.config.dropout_rate=0.5")
    assert both.model.slm.config == {"d_ff": 8, "dropout_rate": 0.5}


def test_without_a_name_the_groups_config_is_changed(calls: Any) -> None:
    config = composed(calls, "model.slm.config={num_layers: 6}").model.slm.config
    assert (config["model_type"], config["num_layers"], config["d_model"]) == ("t5", 6, 64)


@pytest.mark.slow
def test_a_sweep_drops_the_default_groups_config_too(calls: Any) -> None:
    assert main(["train", "-m", "hydra/launcher=basic", "model.slm.name=a,b", "model.slm.config.d_ff=8"]) == 0
    assert [(c.model.slm.name, c.model.slm.config) for c, _ in calls] == [("a", {"d_ff": 8}), ("b", {"d_ff": 8})]


@pytest.mark.slow
def test_the_config_in_a_verbs_file_belongs_to_its_default_model(calls: Any) -> None:
    assert composed(calls, verb="demo").model.slm.config["n_embd"] == 128
    assert composed(calls, "model.slm.name=some/model", verb="demo").model.slm.config == {}
    assert composed(calls, "model/slm=t5_small", verb="demo").model.slm.config == {}


@pytest.mark.slow
def test_an_experiments_config_is_dropped_with_a_warning_or_applied(calls: Any, capsys: Any, tmp_path: Path) -> None:
    assert composed(calls, "experiment=samsum", "model.slm.name=some/model").model.slm.config == {}
    assert without_next(capsys.readouterr().err) == (
        "llm2slm: warning: model.slm.config of the experiment (d_ff, d_kv, d_model, dropout_rate, num_decoder_layers, "
        "num_layers) is for another model, and not used for model.slm.name=some/model\n"
    )
    own = tmp_path / "mine" / "experiment" / "cut.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nmodel:\n  slm:\n    name: some/model\n    config: {num_layers: 1}\n")
    found = composed(calls, "--config-dir", "mine", "experiment=cut", "model.slm.config.d_ff=8").model.slm
    assert (found.name, found.config) == ("some/model", {"num_layers": 1, "d_ff": 8})
    (tmp_path / "mine" / "own.yaml").write_text(
        "defaults:\n  - train\n  - _self_\nmodel:\n  slm:\n    name: some/model\n    config: {num_layers: 1}\n"
    )
    assert composed(calls, "--config-dir", "mine", "-cn", "own", "seed=3").model.slm.config == {"num_layers": 1}
    assert set(map(without_next, capsys.readouterr().err.splitlines(keepends=True))) == {""}


def test_two_models_are_refused(calls: Any, capsys: Any) -> None:
    assert main(["train", "model/slm=gpt2_mini", "model.slm.name=some/model"]) == 2
    assert mistake(capsys) == (
        "model/slm=gpt2_mini and model.slm.name=some/model describe two models; leave one of them out"
    )
    assert main(["train", "model/slm=t5_small", "model.slm.name=copy/of/it"]) == 0  # a group that only sets a name
    assert calls[-1][0].model.slm.name == "copy/of/it"


@pytest.mark.slow
def test_each_system_of_a_demo_drops_the_default_config(tmp_path: Path) -> None:
    config = RunConfig()
    config.model.slm.config = {"model_type": "t5", "num_layers": 1}
    config.systems = {"a": {"model": {"slm": {"name": "m", "config": {"d_ff": 8}}}}, "b": {"optim": {"lr": 0.5}}}
    assert system_config(config, "a").model.slm.config == {"d_ff": 8}
    assert system_config(config, "b").model.slm.config == config.model.slm.config


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    write_tiny_t5(folder / "t5", seed=1)
    write_tiny_gpt2(folder / "gpt2", seed=1)
    return folder


@pytest.mark.parametrize(
    ("kind", "key", "depth", "tensor"),
    [
        ("t5", "num_layers", 1, "encoder.block.1."),
        ("t5", "num_decoder_layers", 2, "decoder.block.2."),
        ("gpt2", "num_hidden_layers", 1, "transformer.h.1."),
    ],
)
def test_a_smaller_number_of_layers_keeps_the_first_pretrained_layers(
    zoo: Path, capsys: Any, kind: str, key: str, depth: int, tensor: str
) -> None:
    cfg = LanguageModelConfig(name=str(zoo / kind), config={key: depth})
    whole = load_language_model(replace(cfg, config={}), tiny_tokenizer()).state_dict()
    capsys.readouterr()
    cut = load_language_model(cfg, tiny_tokenizer())
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llm2slm: ")]
    assert len(said) == 1 and f"model.slm.config={{{key}: {depth}}} leaves " in said[0] and tensor in said[0]
    assert getattr(cut.config, key) == depth
    left = {name for name in whole if name not in cut.state_dict()}
    assert left and any(name.startswith(tensor) for name in left)
    assert all(torch.equal(value, whole[name]) for name, value in cut.state_dict().items())
    drawn = load_language_model(replace(cfg, init=Init.random), tiny_tokenizer())
    assert drawn.state_dict().keys() == cut.state_dict().keys() and "llm2slm: " not in capsys.readouterr().err


def test_changes_that_fit_the_weights_are_applied(zoo: Path) -> None:
    plain = load_language_model(LanguageModelConfig(name=str(zoo / "t5")), tiny_tokenizer())
    cfg = LanguageModelConfig(name=str(zoo / "t5"), config={"dropout_rate": 0.5})
    changed = load_language_model(cfg, tiny_tokenizer())
    assert changed.config.dropout_rate == 0.5
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in changed.state_dict().items())


def test_a_configuration_of_an_earlier_version_is_read_as_it_was_used(tmp_path: Path) -> None:
    """It contains the default group's config next to the name, which was not used."""
    config = tiny_run(tmp_path)
    runs.write_config(tmp_path / "run", config)
    path = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["model"]["slm"]["config"] = {"model_type": "t5", "num_layers": 1}
    path.write_text(yaml.safe_dump(values))
    assert runs.read_config(tmp_path / "run")["model"]["slm"]["config"] == {}
