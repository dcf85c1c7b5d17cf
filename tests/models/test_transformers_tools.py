"""accelerate's offloading, torch.compile and torch.export, transformers' Trainer with its options, and peft."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, infer_auto_device_map
from datasets import Dataset
from interface import HYBRIDS, SYSTEMS, TARGETS, TEXTS, System, batch_of, built, close, named
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from sampling import representatives
from test_clients import arguments, without_dropout
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer

from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.placement import inferred_map
from llm2slm.testing import tiny_model_config
from llm2slm.types import IGNORE_INDEX, UserError

EIGHT = {"max_new_tokens": 8, "min_new_tokens": 8}
FEW = [HYBRIDS[0], HYBRIDS[8]]


# accelerate


@pytest.mark.parametrize("system", representatives(SYSTEMS, FEW), ids=named)
@torch.no_grad()
def test_an_offloaded_model_computes_the_same(zoo: Path, system: System) -> None:
    model = built(zoo, system)
    batch = batch_of(model)
    expected, answers = model(**batch), model.generate_text(TEXTS, **EIGHT)
    names = set(model.state_dict())
    assert not any(name.startswith("encoder.") for name in names)
    cpu_offload(model, execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
    output = model(**batch)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    assert model.device == torch.device("cpu")
    assert model.generate_text(TEXTS, **EIGHT) == answers
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("system", representatives(SYSTEMS, FEW), ids=named)
def test_device_maps_cover_the_model_and_split_no_block(zoo: Path, system: System) -> None:
    model = built(zoo, system)
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    third = sum(sizes.values()) // 3
    memory = {0: third, 1: third, "cpu": 10**9}
    blocks = [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    assert any(name.startswith("slm.") for name in blocks)
    assert model.encoder is None or any(name.startswith("encoder.") for name in blocks)

    def check(devices: dict[str, Any]) -> None:
        def device_of(name: str) -> Any:
            return next(device for prefix, device in devices.items() if f"{name}.".startswith(f"{prefix}."))

        assert len({device_of(name) for name in sizes}) > 1
        for block in blocks:
            assert len({device_of(name) for name in sizes if name.startswith(f"{block}.")}) == 1, block

    check(inferred_map(model, "sequential", memory))
    if system.slm == "t5" and system.mode != "memory" and not system.alone:
        with pytest.raises(IndexError):  # once accelerate compares whole names, `inferred_map` can call it directly
            infer_auto_device_map(model, memory, model._no_split_modules)
    else:
        check(infer_auto_device_map(model, memory, model._no_split_modules))


@pytest.mark.parametrize("system", representatives(SYSTEMS, FEW), ids=named)
@torch.no_grad()
def test_device_map_of_from_pretrained(zoo: Path, tmp_path: Path, system: System) -> None:
    model = built(zoo, system)
    model.save_pretrained(tmp_path / "saved")
    batch = batch_of(model)
    expected = model(**batch).logits
    for device_map in ("cpu", torch.device("cpu"), {"": "cpu"}, "auto"):
        loaded = LLM2SLM.from_pretrained(tmp_path / "saved", device_map=device_map)
        assert torch.equal(loaded(**batch).logits, expected)
    parts = [name for name, _ in model.named_children()]
    devices = {name: "disk" if name in ("encoder", "projector") else "cpu" for name in parts}
    if model.encoder is None:
        devices = {"slm": "disk"}
    with pytest.raises(UserError, match=r"^device_map: We need an `offload_dir`"):
        LLM2SLM.from_pretrained(tmp_path / "saved", device_map=devices)
    loaded = LLM2SLM.from_pretrained(tmp_path / "saved", device_map=devices, offload_folder=tmp_path / "disk")
    offloaded = {name for name, parameter in loaded.named_parameters() if parameter.is_meta}
    assert offloaded and list((tmp_path / "disk").glob("*.dat"))
    assert torch.equal(loaded(**batch).logits, expected)
    assert loaded.generate_text(TEXTS, **EIGHT) == model.generate_text(TEXTS, **EIGHT)
    if all(name.startswith("encoder.") for name in offloaded):  # the encoder is not saved
        loaded.save_pretrained(tmp_path / "again")
        assert torch.equal(LLM2SLM.from_pretrained(tmp_path / "again")(**batch).logits, expected)
        return
    with pytest.raises(UserError, match="the weights are offloaded by accelerate; save the model as it was loaded"):
        loaded.save_pretrained(tmp_path / "again")


# torch.compile and torch.export


@pytest.mark.parametrize("system", representatives(SYSTEMS, [HYBRIDS[2]]), ids=named)
def test_the_forward_pass_is_a_single_graph(zoo: Path, system: System) -> None:
    """Compiled and exported on one batch, it computes other batches of these shapes too, with any padding."""
    model = built(zoo, system)
    batch = batch_of(model)
    others = {name: tensor.flip(0) for name, tensor in batch.items()}  # the padding is in other rows
    expected = [model(**inputs) for inputs in (batch, others)]
    for output, inputs in zip(expected, (batch, others), strict=True):
        loss = cross_entropy(output.logits.transpose(1, 2), inputs["labels"])
        close(output.loss, loss)
    assert not torch.allclose(expected[0].logits, expected[1].logits, atol=1e-2)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    exported = torch.export.export(model, (), batch, strict=False).module()
    for output, inputs in zip(expected, (batch, others), strict=True):
        for found in (compiled(**inputs), exported(**inputs)):
            close(found.logits, output.logits)
            close(found.loss, output.loss)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [3, 0.4])
@pytest.mark.parametrize("slm", ["t5", "gpt2"])
@torch.no_grad()
def test_pooled_positions_are_in_the_single_graph(zoo: Path, slm: str, pool: float) -> None:
    model = build_model(replace(tiny_model_config(zoo, "t5", slm, "prepend"), pool=pool)).eval()
    batch = batch_of(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    exported = torch.export.export(model, (), batch, strict=False).module()
    for inputs in (batch, {name: tensor.flip(0) for name, tensor in batch.items()}):
        expected = model(**inputs)
        for found in (compiled(**inputs), exported(**inputs)):
            close(found.logits, expected.logits)
            close(found.loss, expected.loss)


@pytest.mark.slow
def test_a_compiled_model_trains_like_the_eager_one(zoo: Path) -> None:
    model = without_dropout(built(zoo, HYBRIDS[6])).train()
    batch = batch_of(model)
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.compiler.reset()
    torch.compile(model, fullgraph=True)(**batch).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


# The Trainer


def tokenized(model: LLM2SLM, times: int = 1) -> list[dict[str, Any]]:
    """Rows as lists, as in a data set."""
    pairs = [(text, target) for text, target in zip(TEXTS, TARGETS, strict=True) for _ in range(times)]
    batches = [model.processor(text, target) for text, target in pairs]
    return [{name: tensor[0].tolist() for name, tensor in batch.items()} for batch in batches]


def losses(trainer: Seq2SeqTrainer) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("system", representatives(SYSTEMS, FEW), ids=named)
def test_the_processor_pads_tokenized_rows(zoo: Path, system: System) -> None:
    model = built(zoo, system)
    expected = batch_of(model)
    padded = [{name: tensor[n] for name, tensor in expected.items()} for n in range(3)]
    for rows in (tokenized(model), padded):
        batch = model.processor.pad(rows)
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    batch = DataCollatorForSeq2Seq(model.processor, model)(tokenized(model))
    ids = batch.pop("decoder_input_ids")
    assert torch.equal(ids, model.prepare_decoder_input_ids_from_labels(expected["labels"]))
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    short = model.processor.pad(padded[1:2])
    assert all(torch.equal(short[name], tensor) for name, tensor in batch_of(model, [1]).items())


@pytest.mark.parametrize("system", representatives(SYSTEMS, [HYBRIDS[8]]), ids=named)
def test_unused_columns_are_removed_by_default(zoo: Path, tmp_path: Path, system: System) -> None:
    theirs, ours = (without_dropout(built(zoo, system)) for _ in range(2))
    rows = [row | {"text": "not a tensor"} for row in tokenized(theirs)]
    options = arguments(tmp_path, max_steps=2, remove_unused_columns=True)
    found = losses(Seq2SeqTrainer(theirs, options, theirs.processor.pad, Dataset.from_list(rows)))
    raw = [{"source": text, "target": target} for text, target in zip(TEXTS, TARGETS, strict=True)]

    def collate(rows: list[dict[str, str]]) -> Any:
        return ours.processor([row["source"] for row in rows], [row["target"] for row in rows])

    assert found == pytest.approx(
        losses(Seq2SeqTrainer(ours, arguments(tmp_path, max_steps=2), collate, raw)), abs=2e-4
    )
    with pytest.raises(ValueError, match=r"No columns in the dataset match .*remove_unused_columns=False"):
        losses(Seq2SeqTrainer(ours, options, collate, Dataset.from_list(raw)))


def test_rows_are_grouped_by_length(zoo: Path, tmp_path: Path) -> None:
    model = built(zoo, HYBRIDS[1])
    seen: list[list[int]] = []

    def collate(rows: list[dict[str, Any]]) -> Any:
        seen.append([len(row["input_ids"]) for row in rows])
        return model.processor.pad(rows)

    rows = tokenized(model, times=12)
    options = arguments(tmp_path, max_steps=12, remove_unused_columns=True, train_sampling_strategy="group_by_length")
    trainer = Seq2SeqTrainer(model, options, collate, rows, processing_class=model.processor)
    assert len(losses(trainer)) == 12
    order = [length for batch in seen for length in batch]
    assert sorted(order) == sorted(len(row["input_ids"]) for row in rows)
    for start in (9, 18, 27):  # transformers sorts random groups of three batches
        group = order[start + 1 : start + 9]
        assert group == sorted(group, reverse=True)
    assert order[0] == max(order)


@pytest.mark.parametrize("system", representatives([HYBRIDS[0], HYBRIDS[5], SYSTEMS[-1]], [HYBRIDS[5]]), ids=named)
def test_neftune_adds_noise_to_the_slms_embeddings(zoo: Path, tmp_path: Path, system: System) -> None:
    model = without_dropout(built(zoo, system))
    embeddings, seen = model.get_input_embeddings(), []
    plain = embeddings.weight.detach().clone()

    class Recorded(Seq2SeqTrainer):
        def compute_loss(self, *args: Any, **keywords: Any) -> Any:
            hook = embeddings.register_forward_hook(lambda _, ids, output: seen.append((ids[0], output.detach())))
            try:
                return super().compute_loss(*args, **keywords)
            finally:
                hook.remove()

    options = arguments(tmp_path, max_steps=1, neftune_noise_alpha=5.0, remove_unused_columns=True)
    Recorded(model, options, model.processor.pad, tokenized(model)).train()
    assert seen
    for ids, output in seen:
        noise = (output - plain[ids]).abs()
        bound = 5.0 / math.sqrt(output.shape[1] * output.shape[2])
        assert 0.9 * bound < float(noise.max()) <= bound * (1 + 1e-5)
    after = model.get_input_embeddings()
    close(after(torch.tensor([[5, 6]])), after.weight[[5, 6]].unsqueeze(0))  # the noise is removed


@pytest.mark.parametrize("system", representatives(SYSTEMS, [HYBRIDS[8]]), ids=named)
def test_label_smoothing(zoo: Path, tmp_path: Path, system: System) -> None:
    theirs, ours = (without_dropout(built(zoo, system)) for _ in range(2))
    options = arguments(tmp_path, max_steps=2, label_smoothing_factor=0.3, remove_unused_columns=True)
    collator = DataCollatorForSeq2Seq(theirs.processor, theirs)
    found = losses(Seq2SeqTrainer(theirs, options, collator, tokenized(theirs)))

    def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
        logs, real = log_softmax(logits, -1), labels != IGNORE_INDEX
        likely = logs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return -(0.7 * likely + 0.3 * logs.mean(-1))[real].mean()

    optimizer = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    expected = []
    for _ in range(2):
        batch = batch_of(ours.train())
        loss = smoothed(ours(**batch).logits, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert found == pytest.approx(expected, abs=2e-4)
    with pytest.raises(ValueError, match=r"label_smoothing_factor, add decoder_input_ids=model\.prepare_decoder_input"):
        Seq2SeqTrainer(theirs, options, theirs.processor.pad, tokenized(theirs)).train()


def test_the_trainer_checkpoints_activations(zoo: Path, tmp_path: Path) -> None:
    found = []
    for checkpointing in (True, False):
        model = without_dropout(built(zoo, HYBRIDS[6]))
        options = arguments(tmp_path, remove_unused_columns=True, gradient_checkpointing=checkpointing)
        found.append(losses(Seq2SeqTrainer(model, options, model.processor.pad, tokenized(model))))
        assert model.slm.is_gradient_checkpointing == checkpointing
    assert found[0] == pytest.approx(found[1], abs=1e-4)


# peft


def adapted(model: LLM2SLM) -> PeftModel:
    torch.manual_seed(1)
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules="all-linear", exclude_modules=r"encoder\..*")
    return get_peft_model(model, config)


@pytest.mark.parametrize("system", representatives(SYSTEMS, [HYBRIDS[0]]), ids=named)
def test_peft_wraps_a_sequence_to_sequence_model(zoo: Path, tmp_path: Path, system: System) -> None:
    model = without_dropout(built(zoo, system))
    model.save_pretrained(tmp_path / "base")
    batch = batch_of(model)
    with torch.no_grad():
        expected, answers = model(**batch), model.generate(**batch, **EIGHT)
    peft = adapted(model)
    assert type(peft).__name__ == "PeftModelForSeq2SeqLM"
    with torch.no_grad():
        assert torch.equal(peft(**batch).loss, expected.loss)  # the adapters are zero at the start
        assert torch.equal(peft.generate(**batch, **EIGHT), answers)
    before = {name: parameter.clone() for name, parameter in peft.named_parameters()}
    options = arguments(tmp_path / "out", max_steps=3, learning_rate=3e-2, remove_unused_columns=True)
    found = losses(Seq2SeqTrainer(peft, options, model.processor.pad, tokenized(model)))
    assert found[-1] < found[0] == pytest.approx(float(expected.loss), abs=2e-4)
    changed = {name for name, parameter in peft.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all("lora_" in name and ".encoder.body." not in name for name in changed)

    peft.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(LLM2SLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = peft.eval()(**batch).logits
        assert torch.equal(again(**batch).logits, logits) and not torch.equal(logits, expected.logits)
        merged = peft.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, logits, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(LLM2SLM.from_pretrained(tmp_path / "merged")(**batch).logits, merged(**batch).logits)


def test_virtual_tokens_of_peft_are_refused(zoo: Path) -> None:
    shape = {"num_virtual_tokens": 2, "num_layers": 2, "token_dim": 16, "num_attention_heads": 2}
    for kind in (PromptTuningConfig, PrefixTuningConfig):
        model = built(zoo, HYBRIDS[0])
        peft = get_peft_model(model, kind(task_type="SEQ_2_SEQ_LM", **shape))
        with pytest.raises(TypeError, match=r"does not take .*; give .* are model\.slm\.tune=prompt and prefix of"):
            peft(**batch_of(model))
