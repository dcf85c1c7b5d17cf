"""Every number of the configuration has a legal range; a value out of range is reported on one line before any work."""

from __future__ import annotations

import dataclasses
import typing
from math import inf, nan
from typing import Any

import pytest
from command_line import mistake

from llm2slm import config
from llm2slm.cli import main
from llm2slm.cli.schema import LISTED, SCHEMAS, docstrings, keys
from llm2slm.commands.demo import check as check_demo
from llm2slm.config import DataConfig, GenerateConfig, JudgeConfig, OptimConfig, PartConfig, RunConfig
from llm2slm.config.choices import CHOICES
from llm2slm.config.ranges import RANGES, Range, check_ranges
from llm2slm.types import UserError

SECTIONS = [found for name in config.__all__ if dataclasses.is_dataclass(found := getattr(config, name))]


def numeric(annotation: Any) -> bool:
    """Whether the type allows a number, alone or in a list."""
    return annotation in (int, float) or any(numeric(inner) for inner in typing.get_args(annotation))


def fields(section: type) -> set[str]:
    hints = typing.get_type_hints(section)
    found = {f.name for f in dataclasses.fields(section) if numeric(hints[f.name])}
    return {name for name in found if typing.get_origin(hints[name]) is not dict}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_numeric_field_has_a_range(section: type) -> None:
    assert set(RANGES.get(section, {})) == fields(section)


def test_the_tables_contain_all_sections_and_no_others() -> None:
    assert set(RANGES) <= set(SECTIONS)
    assert "benchmark.batch" in keys(RunConfig) and "batch" in RANGES[config.BenchmarkConfig]


def test_a_list_of_fixed_length_states_it() -> None:
    for section in SECTIONS:
        for name, hint in typing.get_type_hints(section).items():
            inner = typing.get_args(hint)
            fixed = len(inner) if typing.get_origin(hint) is tuple and Ellipsis not in inner else None
            assert name not in RANGES.get(section, {}) or RANGES[section][name].length == fixed


@pytest.mark.parametrize("section", CHOICES, ids=lambda section: section.__name__)
def test_the_help_text_lists_the_choices(section: type) -> None:
    for name, values in CHOICES[section].items():
        listed = LISTED.search(docstrings(section)[name])
        assert listed is not None, name
        assert tuple(option.partition(" (")[0] for option in listed[1].split(" | ")) == values


@pytest.mark.parametrize("verb", SCHEMAS)
def test_defaults_are_legal(verb: str) -> None:
    check_ranges(SCHEMAS[verb]())


@pytest.mark.parametrize(
    ("legal", "inside", "outside", "words"),
    [
        (Range(1), (1, 10**9), (0, -1, nan, inf), "at least 1"),
        (Range(0, above=True), (1e-9, 5), (0, -0.0, -1, nan, inf), "above 0"),
        (Range(0, 1), (0, 0.5, 1), (-0.1, 1.1, nan), "between 0 and 1"),
        (Range(0, 1, below=True), (0, 0.999), (-0.1, 1, nan), "at least 0 and below 1"),
        (Range(0, 1, above=True), (0.1, 1), (0, 1.1, nan), "above 0 and at most 1"),
        (Range(1, special=(-1,)), (1, -1), (0, -2), "at least 1, or -1"),
        (Range(0, 2**32 - 1), (0, 2**32 - 1), (-1, 2**32), "between 0 and 4294967295"),
    ],
)
def test_a_range_contains_the_numbers_that_its_text_states(legal: Range, inside: Any, outside: Any, words: str) -> None:
    assert str(legal) == words
    assert all(legal.holds(value) for value in inside)
    assert not any(legal.holds(value) for value in outside)


@pytest.mark.parametrize(
    ("section", "name", "legal"),
    [(section, name, legal) for section, table in RANGES.items() for name, legal in table.items()],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_value_below_every_range_is_refused_by_its_name(section: type, name: str, legal: Range) -> None:
    made, low = section(), legal.least if legal.above else legal.least - 3
    many = isinstance(getattr(made, name), list | tuple)
    setattr(made, name, [low] if many else low)
    with pytest.raises(UserError) as caught:
        check_ranges(made, "here")
    assert str(caught.value).startswith(f"here.{name}=") and str(caught.value).endswith(f"must be {legal}")


@pytest.mark.parametrize(
    ("verb", "override", "told"),
    [
        ("train", "optim.lr=0", "optim.lr=0.0: must be above 0"),
        (
            "train", "optim.betas=[0.9,1]",
            "optim.betas=[0.9,1.0]: 1.0 is out of range; each must be at least 0 and below 1",
        ),
        ("train", "optim.betas=[0.9]", "optim.betas=[0.9]: must hold 2 numbers, each at least 0 and below 1"),
        ("train", "optim.betas=[]", "optim.betas=[]: must hold 2 numbers, each at least 0 and below 1"),
        (
            "train", "optim.betas=[0.9,0.98,0.99]",
            "optim.betas=[0.9,0.98,0.99]: must hold 2 numbers, each at least 0 and below 1",
        ),
        ("train", "trainer.devices=0", "trainer.devices=0: must be at least 1, or -1"),
        ("train", "data.parts=[{name: samsum, weight: 0}]", "data.parts[0].weight=0.0: must be above 0"),
        ("train", "data.parts=[{name: samsum, train_size: 0}]", "data.parts[0].train_size=0: must be at least 1"),
        ("train", "seed=4294967296", "seed=4294967296: must be between 0 and 4294967295"),
        ("encode", "encode.batch_tokens=0", "encode.batch_tokens=0: must be at least 1"),
        ("benchmark", "benchmark.batch=[]", "benchmark.batch=[]: must hold one number or more, each at least 1"),
        ("benchmark", "benchmark.batch=[1,0]", "benchmark.batch=[1,0]: 0 is out of range; each must be at least 1"),
        (
            "benchmark", "benchmark.response_tokens=[1]",
            "benchmark.response_tokens=[1]: 1 is out of range; each must be at least 2",
        ),
        ("label", "label.top_p=1.5", "label.top_p=1.5: must be above 0 and at most 1"),
        ("generate", "top_p=0", "top_p=0.0: must be above 0 and at most 1"),
        ("judge", "timeout=0", "timeout=0.0: must be above 0 and at most 86400"),
        ("judge", "seed=-1", "seed=-1: must be between 0 and 4294967295"),
        ("compare", "resamples=9", "resamples=9: must be at least 100"),
        ("tokenizer", "vocab_size=0", "vocab_size=0: must be at least 1"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_reported_by_the_command_line(
    tmp_path, monkeypatch, capsys, verb: str, override: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([verb, override]) == 2
    assert mistake(capsys) == told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("verb", "override", "key"),
    [
        ("train", "task.prefix=a\udcedb", "task.prefix"),
        ("train", "task.template=a\udcedb{source}", "task.template"),
        ("encode", "model.llm.prefix=a\udcedb", "model.llm.prefix"),
        ("train", "data.parts=[{name: samsum, prefix: 'a\udcedb'}]", "data.parts[0].prefix"),
        ("generate", "prefix=a\udcedb", "prefix"),
        ("generate", "prompt=a\udcedb", "prompt"),
        ("generate", "model.llm.prefix=a\udcedb", "model.llm.prefix"),
        ("judge", "instruction=a\udcedb", "instruction"),
        ("tokenizer", "task.prefix=a\udcedb", "task.prefix"),
    ],
)
def test_an_unpaired_surrogate_in_a_text_for_a_model_is_refused(
    tmp_path, monkeypatch, capsys, verb: str, override: str, key: str
) -> None:
    """Bytes from the shell that are not UTF-8 are passed in this form."""
    monkeypatch.chdir(tmp_path)
    assert main([verb, override]) == 2
    assert mistake(capsys) == f"{key}: half a character (\\udced); write the whole one"
    assert not list(tmp_path.iterdir())


def test_ranges_of_systems_of_a_demo_are_checked() -> None:
    made = RunConfig(systems={"slm": {"model": {"kind": "slm"}, "optim": {"lr": 0}}})
    made.model.llm.name = "builtin/llm"
    with pytest.raises(UserError, match=r"^systems\.slm: optim\.lr=0\.0: must be above 0$"):
        check_demo(made)


def test_null_is_legal_for_an_optional_field() -> None:
    check_ranges(OptimConfig(projector_lr=None))
    check_ranges(GenerateConfig(max_new_tokens=None))
    check_ranges(JudgeConfig(rows=None))
    check_ranges(DataConfig(parts=[PartConfig(name="samsum", train_size=None)]))
