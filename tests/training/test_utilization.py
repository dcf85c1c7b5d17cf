"""FLOPs of a training step against torch's count; their rate; the columns of the log."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llm2slm.commands import train
from llm2slm.commands import utilization as command
from llm2slm.commands.utilization import training_work
from llm2slm.config import TrainerConfig
from llm2slm.evaluation.benchmark.ceilings import product_rate
from llm2slm.evaluation.benchmark.training_cost import row_flops
from llm2slm.models.build import build_llm, build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_model_config
from llm2slm.training.objectives import token_cross_entropy
from llm2slm.training.utilization import Utilization, Work
from llm2slm.types import IGNORE_INDEX, Batch, SystemKind

ROWS, RESPONSE = 3, 11
NEAR = 0.12  # the cost model omits attention that the causal mask hides, a large part in tiny models
"""The cost model omits the part of attention that the causal mask hides, which is large in tiny models."""
TEXT = "the small cat sees a dog and the dog sees a small cat"


def batch_of(model: LLM2SLM, response: int = RESPONSE) -> Batch:
    """Rows of equal length, so that there is no padding."""
    batch = model.collator.batch_of_texts([TEXT] * ROWS)
    labels_BT = torch.randint(4, 20, (ROWS, response), generator=torch.Generator().manual_seed(1))
    return replace(batch, labels_BT=labels_BT)


def counted(model: LLM2SLM, batch: Batch) -> int:
    """torch's count of the FLOPs of a forward and a backward pass."""
    assert batch.labels_BT is not None
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        token_cross_entropy(model.logits(batch), batch.labels_BT)[0].backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("llm", "slm", "mode"),
    [("t5", "t5", "memory"), ("t5", "t5", "add"), ("t5", "llama", "replace"), ("llama", "gpt2", "cross_attention")],
)
def test_the_flops_of_a_step_of_a_hybrid_equal_torchs_count(llm: str, slm: str, mode: str, tmp_path: Path) -> None:
    model = build_model(tiny_model_config(tmp_path, llm, slm, mode)).train()
    batch, flops = batch_of(model), row_flops(model)
    assert flops is not None and batch.llm_mask_BP is not None
    lengths = batch.llm_mask_BP.shape[1], batch.slm_mask_BQ.shape[1], RESPONSE
    assert ROWS * flops(*lengths) == pytest.approx(counted(model, batch), rel=NEAR)


def test_the_flops_of_an_slm_alone_a_frozen_one_and_a_teacher(tmp_path: Path) -> None:
    config = tiny_model_config(tmp_path, "t5", "llama", "add", kind=SystemKind.slm)
    model = build_model(config).train()
    batch, flops = batch_of(model), row_flops(model)
    assert flops is not None
    q = batch.slm_mask_BQ.shape[1]
    assert ROWS * flops(99, q, RESPONSE) == pytest.approx(counted(model, batch), rel=NEAR)
    teacher = build_llm(config.llm)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        teacher.logits(batch_of(teacher))
    p = batch_of(teacher).slm_mask_BQ.shape[1]
    with_teacher = row_flops(model, teacher)
    assert with_teacher is not None
    added = with_teacher(p, q, RESPONSE) - flops(p, q, RESPONSE)
    assert ROWS * added == pytest.approx(counter.get_total_flops(), rel=NEAR)
    hybrid = build_model(tiny_model_config(tmp_path, "t5", "llama", "replace"))
    whole = row_flops(hybrid)
    hybrid.slm.requires_grad_(False)
    frozen = row_flops(hybrid)
    assert whole is not None and frozen is not None
    found = counted(hybrid.train(), batch_of(hybrid))  # attention has no weights: it costs as much as in a trained SLM
    assert 0.75 * found < ROWS * frozen(p, q, RESPONSE) < found < ROWS * whole(p, q, RESPONSE)


def test_unknown_families_have_no_flops(tmp_path: Path) -> None:
    model = build_model(tiny_model_config(tmp_path, "t5", "t5", "add"))
    config = model.slm.config.to_dict() | {"model_type": "unheard-of"}
    model.slm.config.to_dict = lambda: config
    assert row_flops(model) is None and training_work(model, TrainerConfig()) is None


def test_rates_are_computed_for_batches_without_padding() -> None:
    seen: list[tuple[float, float, float]] = []

    def row(*lengths: float) -> float:
        seen.append(lengths)  # type: ignore[arg-type]
        return 1e12

    found = Utilization(Work(row, lambda kind: 4e12))
    assert found.logged(1.0, "cpu") == {}
    slm_mask, llm_mask = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 0], [1, 1]])
    labels = torch.tensor([[5, IGNORE_INDEX], [5, 6]])
    found.add(Batch(slm_mask, slm_mask, labels_BT=labels, llm_ids_BP=llm_mask, llm_mask_BP=llm_mask))
    found.add(Batch(slm_mask, slm_mask, labels_BT=labels))  # a batch of an SLM alone
    assert found.logged(2.0, "cpu") == {"train/tflops": 2.0, "train/utilization": 0.5}
    assert seen == [((3 + 5) / 4, 10 / 4, 6 / 4)]
    found.restart()
    assert found.logged(1.0, "cpu") == {}


@pytest.mark.parametrize(("device", "message"), [("mps", None), ("cuda", "CUDA out of memory"), ("cpu", "broken")])
def test_without_a_peak_rate_only_flops_are_logged(device: str, message: str | None) -> None:
    def rate(kind: str) -> float:
        raise RuntimeError(message)

    found = Utilization(Work(lambda *lengths: 1e12, rate))
    mask = torch.ones(1, 2)
    found.add(Batch(mask, mask, labels_BT=mask.long()))
    if message == "broken":
        with pytest.raises(RuntimeError, match="broken"):
            found.logged(1.0, device)
        return
    assert found.logged(1.0, device) == found.logged(1.0, device) == {"train/tflops": 1.0}


def test_mixed_dtypes_have_no_rate_and_a_part_of_the_slm_no_flops(tmp_path: Path) -> None:
    model = build_model(tiny_model_config(tmp_path, "t5", "t5", "add"))
    model.slm.to(torch.bfloat16)
    mixed = training_work(model, TrainerConfig())
    assert mixed is not None and mixed.rate is None
    int8 = training_work(model, TrainerConfig(precision="bf16-mixed"), int8_encoding=True)
    assert int8 is not None and int8.rate is None
    autocast = training_work(model, TrainerConfig(precision="bf16-mixed"))
    assert autocast is not None and autocast.rate is not None
    model.slm.requires_grad_(False)
    model.slm.get_input_embeddings().requires_grad_(True)
    assert row_flops(model) is None


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_rate_of_products_is_measured_without_onednn_for_other_dtypes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN has no kernel for bfloat16 on processors without AVX512."""
    called: list[torch.dtype] = []

    def best_time(call: Any) -> float:
        if "linear" in str(call.func):
            called.append(call.args[0].dtype)
        return 1.0

    monkeypatch.setattr("llm2slm.evaluation.benchmark.ceilings.best_time", best_time)
    assert product_rate(name, "cpu", 8) == 2 * 8**3
    assert called == ([torch.float32] if name == "float32" and torch.backends.mkldnn.is_available() else [])


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", "float32"), ("bf16-mixed", "bfloat16")])
def test_the_rate_is_that_of_the_precision_and_is_measured_once(
    precision: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(command, "product_rate", lambda name, kind: measured.append(name) or 1e9)
    model = build_model(tiny_model_config(tmp_path, "t5", "t5", "add"))
    work = training_work(model, TrainerConfig(precision=precision))
    assert work is not None and not measured
    found = Utilization(work)
    for _ in range(2):
        found.add(batch_of(model))
        assert found.logged(1.0, "cpu")["train/utilization"] > 0
        found.restart()
    assert measured == [dtype]


def test_the_log_of_a_training_has_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr("llm2slm.training.module.time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(command, "product_rate", lambda name, kind: 1e6)
    config: Any = tiny_run(tmp_path, max_steps=2, log_every_n_steps=1)
    train.run(config, tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/tflops")]
    assert rows
    for row in rows:
        assert float(row["train/tflops"]) > 0
        assert float(row["train/utilization"]) == pytest.approx(float(row["train/tflops"]) * 1e6)
