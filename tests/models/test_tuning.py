"""The parts of the SLM that training changes: names, training steps, and that the saved model is a plain one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy

from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_model_config, tiny_rows
from llm2slm.types import IGNORE_INDEX, Example, SystemKind, UserError


def tuned(zoo, slm="gpt2", mode="add", kind=SystemKind.llm2slm, **values) -> LLM2SLM:
    torch.manual_seed(3)
    cfg = tiny_model_config(zoo, "t5", slm, mode, kind=kind)
    return build_model(replace(cfg, slm=replace(cfg.slm, **values)))


def train(model: LLM2SLM, steps: int = 2) -> set[str]:
    """Names of the SLM's parameters that the training steps changed."""
    before = {name: p.detach().clone() for name, p in model.slm.named_parameters()}
    examples = [Example(i, r["source"], r["source"], r["target"]) for i, r in enumerate(tiny_rows())]
    batch = model.collator(model.collator.encode(examples))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model.logits(batch).transpose(1, 2), batch.labels_BT, ignore_index=IGNORE_INDEX).backward()
        optimizer.step()
    return {name for name, p in model.slm.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("slm", ["gpt2", "t5"])
def test_none_leaves_the_slm_unchanged_and_trains_the_projector(zoo, slm) -> None:
    model = tuned(zoo, slm, tune="none")
    assert train(model) == set()
    assert {name.partition(".")[0] for name in model.trainable_names()} == {"projector"}


def test_new_cross_attention_is_always_trained(zoo) -> None:
    model = tuned(zoo, mode="memory", tune="none")
    changed = train(model)
    assert changed and all("cross" in name for name in changed)


def test_gated_cross_attention_is_trained_with_a_frozen_slm(zoo) -> None:
    model = tuned(zoo, mode="cross_attention", tune="none")
    assert train(model) == set()
    assert {name.partition(".")[0] for name in model.trainable_names()} == {"projector", "crossing"}


def test_layers_are_chosen_by_their_names(zoo) -> None:
    model = tuned(zoo, tune=r"h\.[23]\.|ln_f")
    changed = train(model)
    assert changed == {n for n, _ in model.slm.named_parameters() if ".h.2." in n or ".h.3." in n or "ln_f" in n}


@pytest.mark.parametrize(("slm", "mode"), [("gpt2", "add"), ("t5", "memory"), ("gpt2", "memory")])
def test_lora_trains_adapters_and_is_saved_merged(zoo, tmp_path, slm, mode) -> None:
    pytest.importorskip("peft")
    model = tuned(zoo, slm, mode, tune="lora", peft={"r": 2, "init_lora_weights": False})
    changed = train(model)
    assert changed and all("lora_" in name or "cross" in name for name in changed)
    model.eval()
    texts = [row["source"] for row in tiny_rows()]
    batch = model.collator.batch_of_texts(texts)
    batch = replace(batch, labels_BT=torch.tensor([[7, 8, 9]] * 3))
    with torch.no_grad():
        before = model.logits(batch)
        model.save_pretrained(tmp_path)
        assert torch.equal(model.logits(batch), before)  # saving changes nothing
        again = LLM2SLM.from_pretrained(tmp_path)
        torch.testing.assert_close(again.logits(batch), before, rtol=1e-4, atol=1e-4)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118
    assert not [name for name, _ in again.named_parameters() if "lora" in name]


def test_lora_of_the_slm_alone_is_saved_as_a_plain_folder(zoo, tmp_path) -> None:
    pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = tuned(zoo, kind=SystemKind.slm, mode="add", tune="lora", peft={"r": 2, "init_lora_weights": False}).eval()
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 40]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(plain(ids).logits, model.slm(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"tune": "layer_99"},
            "tune=layer_99: none of full, none, lora, prompt, prefix, and no parameter has such a name; they are like",
        ),
        ({"tune": "h.(2"}, r"tune=h.\(2: no regular expression"),
        ({"peft": {"r": 2}}, "model.slm.peft is for model.slm.tune=lora, prompt or prefix; it is full"),
        ({"tune": "lora", "peft": {"rank": 2}}, "model.slm.peft: .*rank"),
        ({"tune": "lora", "peft": {"target_modules": ["nothing"]}}, "model.slm.peft: .*nothing"),
    ],
)
def test_invalid_tuning_is_refused(zoo, values, message) -> None:
    with pytest.raises(UserError, match=message):
        tuned(zoo, **values)


def test_an_slm_alone_that_trains_nothing_is_refused(zoo) -> None:
    with pytest.raises(UserError, match=r"model.slm.tune=none leaves nothing to train"):
        tuned(zoo, kind=SystemKind.slm, tune="none")
