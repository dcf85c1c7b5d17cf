"""The calls that record a step as a CUDA graph, with a mock of torch.cuda; `test_cuda.py` needs a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_loop import LENGTH, TEXTS

from llm2slm.decoding import session
from llm2slm.decoding.capture import WARM_UPS, replayed
from llm2slm.decoding.loop import LoopDecoder
from llm2slm.decoding.static import StaticForward
from llm2slm.types import UserError


class Cuda:
    """Records the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.recorded: Any = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Stream:
            def __init__(self, device: object = None, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                cuda.calls.append(f"{self.name} waits for {other.name}")

        class Graph:
            def replay(self) -> None:
                cuda.calls.append("replay")
                cuda.recorded()

        for name, value in {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "current_stream": lambda: Stream(name="main"),
            "device": lambda _: self.within("device"),
            "stream": lambda stream: self.within(stream.name),
            "graph": lambda _: self.within("graph"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def within(self, name: str) -> AbstractContextManager[None]:
        @contextmanager
        def context() -> Iterator[None]:
            self.calls.append(f"enter {name}")
            yield
            self.calls.append(f"leave {name}")

        return context()


def test_a_step_is_warmed_up_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, buffer, result = Cuda(), torch.zeros(2), torch.zeros(2)
    cuda.install(monkeypatch)
    cuda.recorded = lambda: result.copy_(2 * buffer)

    def compute() -> torch.Tensor:
        cuda.calls.append("compute")
        return result

    replay = replayed(compute, torch.device("cuda"))
    warm = ["side waits for main", "enter side", *["compute"] * WARM_UPS, "leave side", "main waits for side"]
    assert cuda.calls == ["enter device", *warm, "enter graph", "compute", "leave graph", "leave device"]
    cuda.calls.clear()
    for value in (1.0, 3.0):
        buffer.fill_(value)
        assert replay() is result and result.tolist() == [2 * value] * 2  # one tensor, written by each replay
    assert cuda.calls == ["replay", "replay"]


def test_a_step_that_cannot_be_recorded_is_reported_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    cuda.install(monkeypatch)

    def compute() -> torch.Tensor:
        if "enter graph" in cuda.calls:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        return torch.zeros(1)

    with pytest.raises(UserError, match=r"^this model's step .* \(CUDA error: .* capturing\); use decoding=e"):
        replayed(compute, torch.device("cuda"))


def test_a_session_on_a_gpu_replays_its_graph(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout whose device is cuda in name only: the graph of operations is wrapped, and its results are unchanged."""
    wrapped = []

    def wrap(compute: Any, device: torch.device) -> Any:
        wrapped.append(device.type)
        compute()  # a warm-up: running a step again changes nothing
        return compute

    monkeypatch.setattr(session, "replayed", wrap)
    model = make("t5", "gpt2", "cross_attention")
    decoder = LoopDecoder(model, StaticForward(model), "captured")
    batch = decoder.batch(TEXTS)
    init = session.Session.__init__

    def on_gpu(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self.layout = replace(self.layout, device=torch.device("cuda"))

    monkeypatch.setattr(session.Session, "__init__", on_gpu)
    model.generation_config.eos_token_id = None
    assert torch.equal(decoder.generate(batch, max_new_tokens=LENGTH), model.generate(batch, max_new_tokens=LENGTH))
    assert wrapped == ["cuda"]
