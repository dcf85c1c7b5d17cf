"""The commands on a GPU against the same commands on the CPU: training, labels, stores, scores and timings.

Skipped without a GPU. Float32 without TF32 (torch's default), so both agree up to rounding; sums on a GPU have no fixed
order, so bit-identical results are not required.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import curve, label_in_parts, taught, tiny_run

from llm2slm.commands import label
from llm2slm.commands.benchmark import run as benchmark
from llm2slm.commands.encode import run as encode
from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.train import run as train
from llm2slm.config import RunConfig
from llm2slm.data.reps.store import RepsStore, llm_prompt
from llm2slm.decoding import choose
from llm2slm.decoding import session as sessions
from llm2slm.evaluation.benchmark.timing import _peak
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.training.fit import fit
from llm2slm.types import Control, Decoding, StoreDtype, Tokenizers

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

SYSTEMS = [
    ("t5", "t5", "memory", "shared"),
    ("t5", "t5", "add", "offsets"),
    ("gpt2", "gpt2", "prepend", "offsets"),
    ("t5", "gpt2", "cross_attention", "llm_tokens"),
]


def on(
    device: str, root: Path, llm: str = "t5", slm: str = "t5", mode: str = "memory", tokenizers: str = "shared"
) -> RunConfig:
    """A tiny run without dropout, for which the two devices draw differently."""
    config = tiny_run(root, llm=llm, slm=slm, mode=mode, accelerator=device)
    config.model.tokenizers = Tokenizers(tokenizers)
    rates = {"t5": ["dropout_rate"], "gpt2": ["resid_pdrop", "embd_pdrop", "attn_pdrop"]}[slm]
    config.model.slm.config = dict.fromkeys(rates, 0.0)
    config.optim.lr = config.optim.projector_lr = 1e-3
    config.trainer.threads = 1
    return config


def numbers(folder: Path) -> list[float]:
    """Every value of metrics.csv."""
    return [float(value) for row in curve(folder) for value in row.values() if value]


def answers(folder: Path) -> list[str]:
    return [json.loads(line)["prediction"] for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("llm", "slm", "mode", "tokenizers"), SYSTEMS)
def test_training_equals_that_on_the_cpu(tmp_path: Path, llm: str, slm: str, mode: str, tokenizers: str) -> None:
    found = {
        device: train(on(device, tmp_path, llm, slm, mode, tokenizers), tmp_path / device) for device in ("cpu", "gpu")
    }
    assert numbers(tmp_path / "gpu") == pytest.approx(numbers(tmp_path / "cpu"), rel=2e-3, abs=2e-3)
    assert answers(tmp_path / "gpu") == answers(tmp_path / "cpu")
    assert found["gpu"].device == torch.cuda.get_device_name()
    loaded = LLM2SLM.from_pretrained(tmp_path / "gpu" / "model")  # on the CPU
    texts = ["the little dog sees", "two dogs"]
    there = loaded.generate_text(texts, max_new_tokens=6)
    assert loaded.to("cuda").generate_text(texts, max_new_tokens=6) == there
    assert loaded.generate_text(texts, max_new_tokens=6, num_beams=3) == loaded.cpu().generate_text(
        texts, max_new_tokens=6, num_beams=3
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_llm_is_bit_identical_after_training_on_a_gpu(tmp_path: Path, precision: str) -> None:
    config = on("gpu", tmp_path)
    config.trainer.precision, config.trainer.max_steps, config.trainer.val_every = precision, 25, 25
    model, data, _ = taught(config)
    assert model.encoder is not None
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict(keep_vars=True).items()}
    before |= {name: tensor.clone() for name, tensor in model.encoder.named_parameters()}
    assert before
    fit(config, tmp_path / "run", model, data, loggers=[])
    after = dict(model.encoder.named_parameters())
    assert all(torch.equal(after[name].cpu(), tensor.cpu()) for name, tensor in before.items() if name in after)
    assert {parameter.grad for parameter in after.values()} == {None}
    assert not model.encoder.training


def test_bf16_training_learns(tmp_path: Path) -> None:
    config = on("gpu", tmp_path)
    config.trainer.precision, config.trainer.max_steps, config.trainer.val_every = "bf16-mixed", 40, 20
    config.optim.lr = config.optim.projector_lr = 1e-2
    train(config, tmp_path / "run")
    losses = [float(row["train/loss"]) for row in curve(tmp_path / "run") if row["train/loss"]]
    assert losses[-1] < 0.8 * losses[0]


def test_dropout_continues_after_resuming(tmp_path: Path) -> None:
    """The state of the GPU's generator is in the checkpoint: another state differs by more than rounding."""

    def config(steps: int) -> RunConfig:
        made = on("gpu", tmp_path)
        made.model.slm.config = {"dropout_rate": 0.3}
        made.optim.schedule = "constant"  # so that the length of the run has no effect
        made.trainer.max_steps, made.trainer.val_every = steps, 4
        return made

    train(config(8), tmp_path / "whole")
    train(config(4), tmp_path / "parts")
    torch.rand(7, device="cuda")
    train(replace(config(8), run=str(tmp_path / "parts")), tmp_path / "unused")
    whole, parts = (
        [float(row["train/loss"]) for row in curve(tmp_path / name) if row["train/loss"]][-4:]
        for name in ("whole", "parts")
    )
    assert parts == pytest.approx(whole, rel=1e-4)


def test_labels_equal_those_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def labelling(device: str, **changes: Any) -> RunConfig:
        config = on(device, tmp_path)
        config.split = "train"
        for key, value in changes.items():
            setattr(config.label, key, value)
        return config

    for device in ("cpu", "gpu"):
        label.run(labelling(device), tmp_path / device)
    texts = [(tmp_path / device / "labels.jsonl").read_bytes() for device in ("cpu", "gpu")]
    assert texts[0] == texts[1]

    sampled = {"do_sample": True}
    label.run(labelling("gpu", **sampled), tmp_path / "whole")
    label_in_parts(monkeypatch, lambda: labelling("gpu", **sampled), tmp_path / "parts")
    found = [(tmp_path / name / "labels.jsonl").read_bytes() for name in ("whole", "parts")]
    assert found[0] == found[1]
    assert found[0] != texts[1]


@pytest.mark.parametrize(("llm", "slm", "mode", "tokenizers"), SYSTEMS)
def test_a_store_equals_that_of_the_cpu(tmp_path: Path, llm: str, slm: str, mode: str, tokenizers: str) -> None:
    def config(device: str) -> RunConfig:
        made = on(device, tmp_path, llm, slm, mode, tokenizers)
        made.encode.dtype = StoreDtype.float32
        return made

    for device in ("cpu", "gpu"):
        encode(config(device), tmp_path / f"kept_{device}")
    stores = [RepsStore(tmp_path / f"kept_{device}" / "reps") for device in ("cpu", "gpu")]
    rows = taught(config("cpu"))[1].encoded("train")
    for row in rows:
        ids = torch.tensor([llm_prompt(row)])
        near, far = (store.reps(ids, torch.ones_like(ids)).reps_BPE for store in stores)
        torch.testing.assert_close(far, near, rtol=1e-4, atol=1e-4)
    train(config("gpu"), tmp_path / "live")
    stored = config("gpu")
    stored.data.reps = str(tmp_path / "kept_cpu" / "reps")  # written on the CPU, used for training on the GPU
    train(stored, tmp_path / "stored")
    assert numbers(tmp_path / "stored") == pytest.approx(numbers(tmp_path / "live"), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("change", ["distill", "control", "prompt", "lora"])
def test_baselines_and_controls_equal_those_on_the_cpu(tmp_path: Path, change: str) -> None:
    def config(device: str) -> RunConfig:
        made = on(device, tmp_path, mode="add")
        if change == "distill":
            made.optim.distill = 0.5
        elif change == "control":
            made.model.control = Control.shuffled
        else:
            made.model.slm.tune = change
            made.model.slm.peft = {"lora_dropout": 0.0, "r": 2} if change == "lora" else {}
        return made

    for device in ("cpu", "gpu"):
        train(config(device), tmp_path / device)
    assert numbers(tmp_path / "gpu") == pytest.approx(numbers(tmp_path / "cpu"), rel=2e-3, abs=2e-3)


def test_scores_by_models_equal_those_on_the_cpu(tmp_path: Path) -> None:
    train(on("cpu", tmp_path), tmp_path / "run")
    found = []
    for device in ("cpu", "gpu"):
        config = on(device, tmp_path)
        config.run = str(tmp_path / "run")
        config.task.metrics = ["chrf", "perplexity", f"bertscore:{config.model.llm.name}:1"]
        quality = evaluate(config, tmp_path / f"scores_{device}").systems[0].quality
        found.append({name: score.value for name, score in quality.items()})
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert len(found[0]) == 3


def test_systems_are_timed_on_the_gpu(tmp_path: Path) -> None:
    train(on("cpu", tmp_path), tmp_path / "run")
    config = on("gpu", tmp_path)
    config.run = str(tmp_path / "run")
    config.benchmark.repeats, config.benchmark.warmup, config.benchmark.prompts = 3, 1, 2
    config.benchmark.response_tokens = [4, 8]
    result = benchmark(config, tmp_path / "benchmark")
    assert result.device == torch.cuda.get_device_name()
    rows = [row for system in result.systems for row in system.speed]
    assert len(rows) == 3 * len(result.systems) >= 6  # two lengths, and test lengths
    assert all(row.peak_memory_mb and row.peak_memory_mb > 0 and row.total_ms.min > 0 for row in rows)


def test_peak_memory_is_that_of_the_system_alone(tmp_path: Path) -> None:
    """64 MB held and 32 MB allocated temporarily, in addition to the memory of another system."""
    train(on("cpu", tmp_path), tmp_path / "run")
    model = LLM2SLM.from_pretrained(tmp_path / "run" / "model").to("cuda")
    others = torch.zeros(100_000_000, dtype=torch.uint8, device="cuda")
    batch = model.collator.batch_of_texts(["the little dog"]).to(model.device)
    peaks: dict[str, float] = {}
    with _peak(model, "plain", peaks):
        model.generate(batch, max_new_tokens=4)
    model.register_buffer("ballast", torch.zeros(64_000_000, dtype=torch.uint8, device="cuda"))
    with _peak(model, "loaded", peaks):
        model.generate(batch, max_new_tokens=4)
        torch.zeros(32_000_000, dtype=torch.uint8, device="cuda")
    assert peaks["loaded"] - peaks["plain"] == pytest.approx(96, abs=3)
    assert peaks["plain"] < 50
    assert others.sum() == 0


@pytest.mark.parametrize(("llm", "slm", "mode", "tokenizers"), SYSTEMS)
def test_a_captured_step_is_a_cuda_graph(
    tmp_path: Path, llm: str, slm: str, mode: str, tokenizers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Responses equal those of `generate`; one graph for each number of rows, and no Python code runs on replay."""
    model = taught(on("cpu", tmp_path, llm, slm, mode, tokenizers))[0].eval().to("cuda")
    decoder = choose.decoder(Decoding.captured, model)
    computed = []
    compute = sessions.Session._compute
    monkeypatch.setattr(
        sessions.Session, "_compute", lambda self, *inputs: computed.append(self.rows) or compute(self, *inputs)
    )
    model.generation_config.eos_token_id = None
    for texts in (["the little dog sees"], ["two dogs", "the little dog sees", "a"], ["the dog"]):
        batch = decoder.batch(texts)
        found = decoder.generate(batch, max_new_tokens=12)
        assert torch.equal(found, model.generate(batch, max_new_tokens=12))
    # twice in eager mode, then once to capture the operations: warm-up and recording run the captured ones
    assert computed == [1] * sessions.CAPTURED + [3] * sessions.CAPTURED


def test_int8_on_a_gpu_keeps_float32_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = taught(on("cpu", tmp_path))[0].eval().to("cuda")
    decoder = choose.decoder(Decoding.int8, model)
    assert decoder.name == "captured"
    assert "the weights stay float32, as with decoding=captured" in capsys.readouterr().err


def test_compiled_steps_run_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    model = taught(on("cpu", tmp_path))[0].eval().to("cuda")
    model.generation_config.eos_token_id = None
    decoder = choose.decoder(Decoding.compiled, model)
    batch = decoder.batch(["the little dog sees"])
    found = decoder.generate(batch, max_new_tokens=12)
    assert torch.equal(found, model.generate(batch, max_new_tokens=12))
