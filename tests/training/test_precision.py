"""The precision of a training: `trainer.precision=auto`, and attention in float32 if a CPU computes in bfloat16."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import tiny_run
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from llm2slm import runs
from llm2slm.commands.train import run as train
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.training import precision
from llm2slm.training.precision import Float32Attention, attention, settled

BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def inputs(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, 4, generator=draw).to(dtype).requires_grad_() for _ in range(3)]


class Backward(TorchDispatchMode):
    """Records the dtypes of the backward passes of attention."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is BACKWARD:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_computed_in_float32_and_returned_in_the_dtype_of_torch(dtype, autocast):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        usual = scaled_dot_product_attention(*inputs(dtype), is_causal=True)
    wanted = scaled_dot_product_attention(*(each.float() for each in inputs(dtype)), is_causal=True)
    given = inputs(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Float32Attention():
        found = scaled_dot_product_attention(*given, is_causal=True)
    assert found.dtype == usual.dtype
    assert torch.equal(found, wanted.to(usual.dtype))
    assert (found - usual).abs().max() < 0.05
    with Backward() as seen:
        found.sum().backward()
    assert seen.dtypes == [torch.float32]
    assert all(each.grad is not None and each.grad.dtype == dtype for each in given)


def test_only_bfloat16_on_a_cpu_changes_attention():
    assert isinstance(attention("bf16-mixed", "cpu", torch.float32), Float32Attention)
    assert isinstance(attention("32-true", "cpu", torch.bfloat16), Float32Attention)
    for other in (("32-true", "cpu"), ("bf16-mixed", "cuda"), ("16-mixed", "cuda")):
        assert not isinstance(attention(*other, torch.float32), Float32Attention)


@pytest.mark.parametrize("micro", [None, "auto"])
@pytest.mark.parametrize("name", ["bf16-mixed", "32-true"])
def test_the_precision_of_the_forward_pass_of_a_training_step(tmp_path, monkeypatch, name, micro):
    config = tiny_run(tmp_path, max_steps=2, val_every=2, precision=name, micro_batch=micro)
    seen, original = [], LLM2SLM.logits

    def logits(model, batch):
        modes = torch.overrides._get_current_function_mode_stack()
        seen.append(model.training and any(isinstance(mode, Float32Attention) for mode in modes))
        return original(model, batch)

    monkeypatch.setattr(LLM2SLM, "logits", logits)
    config.callbacks.generate_rows = 0
    train(config, tmp_path / "run")
    assert sum(seen) == (2 if name == "bf16-mixed" else 0) and len(seen) > 2


@pytest.mark.parametrize(
    ("device", "capabilities", "gpu", "wanted"),
    [
        ("cpu", {"avx512_bf16": True}, False, "bf16-mixed"),
        ("cpu", {"avx512_bf16": False, "amx_bf16": True}, False, "bf16-mixed"),
        ("cpu", {"avx512_bf16": False, "avx512_f": True}, True, "32-true"),
        ("mps", {"avx512_bf16": True}, True, "32-true"),
        ("cuda", {}, True, "bf16-mixed"),
        ("cuda", {"avx512_bf16": True}, False, "32-true"),
    ],
)
def test_auto_is_chosen_by_the_hardware(monkeypatch, device, capabilities, gpu, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: gpu)
    assert settled("auto", device) == wanted
    for given in ("32-true", "bf16-mixed", "16-mixed"):
        assert settled(given, device) == given


def test_auto_is_32_true_if_torch_does_not_know_the_processor(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert settled("auto", "cpu") == "32-true"


@pytest.mark.parametrize("fast", [False, True])
def test_a_run_records_the_precision_that_auto_chose(tmp_path, monkeypatch, fast, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast}, raising=False)
    config = tiny_run(tmp_path, max_steps=1, val_every=1, precision=precision.AUTO)
    config.callbacks.generate_rows = 0
    train(config, tmp_path / "run")
    wanted = "bf16-mixed" if fast else "32-true"
    assert runs.read_config(tmp_path / "run")["trainer"]["precision"] == wanted
    assert f"llm2slm: trainer.precision=auto: {wanted} on this device\n" in capsys.readouterr().err
