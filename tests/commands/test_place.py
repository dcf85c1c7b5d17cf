"""The device of models: the requested one, or an error on one line; never the name of another device."""

from __future__ import annotations

import pytest
import torch

from llm2slm import runs
from llm2slm.commands.device import device_type
from llm2slm.types import UserError


@pytest.mark.parametrize("cuda", [True, False])
def test_the_device_is_the_requested_one(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_type("auto") == ("cuda" if cuda else "cpu")
    assert device_type("cpu") == "cpu"
    for wrong in ("mps", "tpu", *(() if cuda else ("gpu", "cuda"))):
        with pytest.raises(UserError, match=rf"trainer\.accelerator={wrong}"):
            device_type(wrong)


def test_the_cpu_is_never_reported_by_the_name_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert "cores" in runs.device_name("cpu")
    assert runs.device_name("cuda") == "Some GPU"
