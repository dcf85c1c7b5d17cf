"""`decoding=auto` measures once, stores the choice, and measures again if the file is damaged or the system differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import TEXTS

from llm2slm.decoding import auto, choose
from llm2slm.decoding.decoder import GenerateDecoder
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import Decoding


class Clock:
    """A clock that only the decoders below advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(GenerateDecoder):
    """Takes the given seconds for each response; the last value is repeated."""

    def __init__(self, model: LLM2SLM, clock: Clock, seconds: list[float]) -> None:
        super().__init__(model)
        self.clock, self.seconds, self.calls = clock, seconds, []  # type: ignore[var-annotated]

    def generate(self, batch: Any, *_: Any, **arguments: Any) -> torch.Tensor:
        self.clock.now += self.seconds[min(len(self.calls), len(self.seconds) - 1)]
        self.calls.append((len(batch.slm_ids_BQ), arguments["max_new_tokens"], arguments["min_new_tokens"]))
        return torch.zeros(1, auto.TOKENS, dtype=torch.int64)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM2SLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model(make: Any) -> LLM2SLM:
    return make("t5", "t5", "add")  # type: ignore[no-any-return]


def decoders(model: LLM2SLM, clock: Clock, **seconds: list[float]) -> dict[str, Timed]:
    return {name: Timed(model, clock, each) for name, each in seconds.items()}


def test_decoders_are_measured_once(model: LLM2SLM, folder: Path) -> None:
    clock = Clock()
    found = decoders(model, clock, captured=[9.0, 9.0, 0.010, 0.020, 0.500], eager=[0.3], generate=[0.4])
    # warm-up does not count; the median of 10, 20, 500, 500, 500 ms
    name, line = auto.fastest(model, found, clock)
    assert name == "eager" and (folder / auto.FILE).exists()
    assert line.startswith(
        "decoding=auto: eager (ms for 24 tokens: captured 500, eager 300, generate 400; measured now;"
    )
    assert line.endswith(f"to measure again, delete {folder / 'decoding.json'})")
    assert all(each.calls == [(1, auto.TOKENS, auto.TOKENS)] * (auto.WARM_UPS + auto.ROUNDS) for each in found.values())

    again = decoders(model, clock, captured=[0.0], eager=[9.0], generate=[9.0])
    name, line = auto.fastest(model, again, clock)
    assert name == "eager" and "measured earlier" in line
    assert not any(each.calls for each in again.values())
    (folder / auto.FILE).unlink()
    assert auto.fastest(model, again, clock)[0] == "captured"


def test_another_system_is_measured_again(
    model: LLM2SLM, make: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    def measured(model: LLM2SLM, **seconds: list[float]) -> int:
        found = decoders(model, clock, **seconds)
        auto.fastest(model, found, clock)
        return len(next(iter(found.values())).calls)

    times = {"eager": [0.1], "generate": [0.2]}
    assert measured(model, **times) and not measured(model, **times)
    assert measured(model, **times, captured=[0.1])
    assert measured(make("t5", "t5", "memory"), **times)
    assert measured(make("t5", "gpt2", "cross_attention"), **times)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert measured(model, **times) and not measured(model, **times)
    assert len(json.loads((folder / auto.FILE).read_text())) == 5


ENTRIES = ("3", '{"ms": {"eager": 1}}', '{"ms": {"eager": "x", "generate": 1}}')


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff", *(f'{{"KEY": {entry}}}' for entry in ENTRIES)])
def test_a_damaged_file_is_measured_again(
    content: str, model: LLM2SLM, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    found = decoders(model, clock, eager=[0.1], generate=[0.2])
    auto.fastest(model, found, clock)
    entries = json.loads((folder / auto.FILE).read_text())
    (key,) = entries
    (folder / auto.FILE).write_text(content.replace("KEY", key), errors="surrogateescape")
    for each in found.values():
        each.calls.clear()
    capsys.readouterr()
    assert auto.fastest(model, found, clock)[0] == "eager"
    assert found["eager"].calls
    assert json.loads((folder / auto.FILE).read_text()) == entries
    assert ("damaged" in capsys.readouterr().err) == ("KEY" not in content)


def test_an_unwritable_folder_is_reported(model: LLM2SLM, folder: Path) -> None:
    folder.write_text("a file")
    clock = Clock()
    name, line = auto.fastest(model, decoders(model, clock, eager=[0.2], generate=[0.1]), clock)
    assert name == "generate" and "not remembered: " in line and str(folder) in line


def test_the_file_is_in_the_cache_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM2SLM_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert auto.choices_file() == tmp_path / "xdg" / "llm2slm" / "decoding.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert auto.choices_file() == tmp_path / ".cache" / "llm2slm" / "decoding.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert auto.choices_file() == tmp_path / ".cache" / "llm2slm" / "decoding.json"


def test_auto_is_chosen_by_name(
    model: LLM2SLM, make: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offered = []
    monkeypatch.setattr(auto, "fastest", lambda _, decoders, **__: offered.append(list(decoders)) or ("eager", "LINE"))
    assert choose.decoder(Decoding.auto, model).name == "eager"  # type: ignore[comparison-overlap]
    assert "llm2slm: LINE\n" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(choose, "misfit", lambda _: "a reason")
        choose.decoder(Decoding.auto, model)
    assert offered == [["captured", "eager", "generate"], ["eager", "generate"]]
    left = make("t5", "t5", "add")
    left.generation_config.guidance_scale = 2.0
    assert choose.decoder(Decoding.auto, left).name == GenerateDecoder.name
    assert "decoding=auto: generate, for the model's settings guidance_scale" in capsys.readouterr().err


def test_auto_gives_the_responses_of_generate(model: LLM2SLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent of the choice."""
    monkeypatch.setattr(auto, "WARM_UPS", 1)
    monkeypatch.setattr(auto, "ROUNDS", 1)
    decoder = choose.decoder(Decoding.auto, model)
    batch = decoder.batch(TEXTS)
    assert torch.equal(decoder.generate(batch, max_new_tokens=9), model.generate(batch, max_new_tokens=9))
    (entry,) = json.loads((folder / auto.FILE).read_text()).values()
    assert set(entry["ms"]) == {"captured", "eager", "generate"} and all(ms > 0 for ms in entry["ms"].values())
