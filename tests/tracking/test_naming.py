"""Names, groups and tags of runs from overrides; secrets are removed from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llm2slm.cli.job import with_environment
from llm2slm.redaction import HIDDEN, redact, redact_known, redact_text
from llm2slm.tracking import naming
from llm2slm.tracking.naming import group_of, name_of, of_sweep, set_overrides, sweep_name, tags_of


@pytest.fixture(autouse=True)
def overrides() -> Iterator[None]:
    yield
    set_overrides([])


def test_a_single_run_has_its_overrides_in_its_name() -> None:
    set_overrides(["model.conditioning=add", "++model.slm.config.d_model=32", "hydra.run.dir=RUN", "logger=wandb"])
    assert name_of("train", Path("RUN")) == "train conditioning=add d_model=32"
    assert group_of(None) is None and group_of("mine") == "mine"
    assert tags_of(["tiny"]) == ["tiny", "model.conditioning=add", "model.slm.config.d_model=32"]


def test_a_run_without_overrides_has_the_name_of_its_folder() -> None:
    assert name_of("evaluate", Path("outputs/a")) == "evaluate a"


def test_keys_with_the_same_last_part_are_complete_and_paths_are_short() -> None:
    set_overrides(["model.llm.name=/data/models/t5", "model.slm.name='a b'", "data=samsum"])
    assert name_of("train", Path("RUN")) == "train model.llm.name=t5 model.slm.name=a b data=samsum"


def test_a_job_of_a_sweep_is_named_after_the_varied_keys() -> None:
    set_overrides(["model.conditioning=add", "seed=2", "data=samsum"])
    folder = Path("multirun/2026-01-31/10-20-30")
    with with_environment(of_sweep(folder, ["model.conditioning", "seed"])):
        assert name_of("train", folder / "3") == "conditioning=add seed=2 (2026-01-31/10-20-30/3)"
        assert group_of(None) == "2026-01-31/10-20-30" and group_of("mine") == "mine"
    with with_environment(of_sweep(Path("sweeps/rates"), [])):
        assert name_of("train", Path("sweeps/rates/3")) == "conditioning=add seed=2 data=samsum (rates/3)"
    assert naming.sweep_folder() is None
    assert sweep_name(Path("a/b")) == "b"


def test_lengths_of_names_and_tags_are_limited() -> None:
    set_overrides([f"task.prefix={'x' * 300}"])
    with with_environment(of_sweep(Path("s"), [])):
        name = name_of("train", Path("s/12"))
    assert len(name) == naming.LONGEST_NAME and name.endswith("… (s/12)")
    assert [len(tag) for tag in tags_of(["y" * 100])] == [64, 64]


def test_secrets_of_every_kind_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "t0ken-of-some-service")
    monkeypatch.setenv("MY_KEY", "short")
    cases = {
        "see t0ken-of-some-service.": f"see {HIDDEN}.",
        "http://me:hunter2@host:80/v1": f"http://{HIDDEN}@host:80/v1",
        "hf_" + "a" * 34: HIDDEN,
        "Authorization: Bearer abc.def-ghi": f"Authorization: {HIDDEN} {HIDDEN}",
        "api_key=abc,x=1": f"api_key={HIDDEN},x=1",
        '{"access_token": "abc"}': f'{{"access_token": {HIDDEN}}}',
        "batch_tokens=2048 key_env=MY_KEY tokenizer=short": "batch_tokens=2048 key_env=MY_KEY tokenizer=short",
        "token=null": "token=null",
        "a: b, c=d": "a: b, c=d",
    }
    assert {text: redact_text(text) for text in cases} == cases
    assert redact_known("api_key=abc") == "api_key=abc"
    nested = {"model": {"name": "x", "token": "abc", "tokens": 3}, "keys": ["t0ken-of-some-service", 1, None]}
    assert redact(nested) == {"model": {"name": "x", "token": HIDDEN, "tokens": 3}, "keys": [HIDDEN, 1, None]}
    set_overrides(["++parameters.api_key=abc", "endpoint=http://me:hunter2@host/v1"])
    assert naming.assignments() == {"parameters.api_key": HIDDEN, "endpoint": f"http://{HIDDEN}@host/v1"}
    assert "abc" not in name_of("judge", Path("x")) and not any("hunter2" in tag for tag in tags_of([]))
