"""Distillation: the teacher against transformers models, a step against one by hand, and cases without a teacher."""

from __future__ import annotations

import csv
import json
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from command_line import mistake, tiny_overrides
from sampling import first_few, representatives
from test_fit import StopAt, assert_runs_equal, fitted, interrupted
from test_module import MICRO, assert_close, no_dropout, sgd, trained
from tiny_runs import assert_same, batch_of, build, checkpoint, curve, taught, tiny_run, weights
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from llm2slm.cli import main
from llm2slm.commands.train import prepare
from llm2slm.commands.train import run as train
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_model_config, tiny_tokenizer, write_tiny_gpt2, write_tiny_t5
from llm2slm.training import distill as distill_module
from llm2slm.training.distill import common_tokens
from llm2slm.training.module import TrainingModule
from llm2slm.types import IGNORE_INDEX, Init, Overlong, SystemKind, Tokenizers, UserError

assert sgd  # a fixture
KINDS = [("llm2slm", "t5", "t5", "add"), ("llm2slm", "gpt2", "t5", "memory"), ("slm", "t5", "gpt2", "none"),
         ("slm", "gpt2", "gpt2", "none")]  # fmt: skip


def distilling(folder, weight=0.5, temperature=1.0, **more):
    config = tiny_run(folder, **more)
    config.optim.distill, config.optim.distill_temperature = weight, temperature
    return config


# The teacher


def whole_llm(config):
    """The LLM and its tokenizer in transformers."""
    name = config.model.llm.name
    auto = AutoModelForSeq2SeqLM if "t5" in name else AutoModelForCausalLM
    return auto.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)


def own_logits(model, prompt, labels):
    """logits_TV of a response after a prompt, unpadded."""
    if model.config.is_encoder_decoder:
        return model(input_ids=torch.tensor([prompt]), labels=labels.unsqueeze(0)).logits[0]
    ids = torch.cat([torch.tensor(prompt), labels])
    return model(ids.unsqueeze(0)).logits[0, len(prompt) - 1 : -1]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "llm", "slm", "mode"), representatives(KINDS, lambda kind: kind[0] == "llm2slm"))
def test_the_teachers_logits_equal_those_of_the_complete_llm_after_its_prompt(tmp_path, kind, llm, slm, mode):
    config = distilling(tmp_path, kind=kind, llm=llm, slm=slm, mode=mode)
    config.model.llm.prefix = "say: "
    model, data, teacher = taught(config)
    rows = [0, 3, 5, 8]
    batch = batch_of(data, rows)
    reference, tokenizer = whole_llm(config)
    lengths = (batch.labels_BT != IGNORE_INDEX).sum(1).tolist()
    assert len(set(lengths)) > 1 and len(set(batch.teacher.slm_mask_BQ.sum(1).tolist())) > 1
    found = teacher.logits(batch)
    examples = data.examples("train")
    for b, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        prompt = tokenizer("say: " + examples[row].prompt)["input_ids"]
        wanted = own_logits(reference, prompt, batch.labels_BT[b, :length])
        torch.testing.assert_close(found[b, :length], wanted, rtol=1e-4, atol=1e-4)
        bare = own_logits(reference, prompt[1:], batch.labels_BT[b, :length])
        assert (bare - wanted).abs().max() > 0.01, "the prompt must matter"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher.logits(batch), found)  # in the dtype of the teacher
    assert model.collator.teacher is None
    assert batch_of(data, [0], "validation").teacher is None


@torch.no_grad()
def test_a_decoder_only_teacher_gets_the_prompt_mark_of_an_llm_alone(tmp_path):
    """As the encoder of an SLM with an encoder, the LLM gets no mark."""
    bare = tiny_tokenizer()
    bare.backend_tokenizer.post_processor = None
    config = distilling(tmp_path, llm="gpt2", slm="t5", mode="memory")
    config.model.llm.name = str(write_tiny_gpt2(tmp_path / "gpt2_bare", tokenizer=bare, seed=1, width=24))
    config.model.slm.name = str(write_tiny_t5(tmp_path / "t5_bare", tokenizer=bare, seed=2))
    _, data, teacher = taught(config)
    batch, examples = batch_of(data, [0, 3]), data.examples("train")
    reference, tokenizer = whole_llm(config)
    found = teacher.logits(batch)
    for b, row in enumerate((0, 3)):
        prompt = tokenizer(examples[row].prompt + "\n")["input_ids"]
        assert batch.teacher.slm_ids_BQ[b, -len(prompt) :].tolist() == prompt
        assert batch.llm_ids_BP[b][batch.llm_mask_BP[b] == 1].tolist() == prompt[:-1]
        labels = batch.labels_BT[b][batch.labels_BT[b] != IGNORE_INDEX]
        torch.testing.assert_close(found[b, : len(labels)], own_logits(reference, prompt, labels), rtol=1e-4, atol=1e-4)


def test_the_teacher_is_frozen_and_is_not_counted_or_saved(tmp_path):
    config = distilling(tmp_path, max_steps=2, val_every=2)
    before = {k: v.clone() for k, v in whole_llm(config)[0].state_dict().items()}
    model, data, teacher = taught(config)
    module = TrainingModule(model, config.optim, 2, teacher)
    plain = deepcopy(config)
    plain.optim.distill = 0.0
    assert module.train().state_dict().keys() == TrainingModule(build(plain)[0], plain.optim, 2).state_dict().keys()
    assert not [m for m in teacher.model.modules() if m.training]
    own = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert not own & {id(p) for p in teacher.model.parameters()}
    module.training_step.__self__._trainer = type("T", (), {"accumulate_grad_batches": 1, "precision": "32-true"})()
    module.training_step(batch_of(data, [0, 1]), 0).backward()
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())
    for name, run in (("with", config), ("without", plain)):
        train(deepcopy(run), tmp_path / name)
    assert_same(whole_llm(config)[0].state_dict(), before)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("with", "without")]
    assert results[0]["systems"][0]["parameters"] == results[1]["systems"][0]["parameters"]
    states = [checkpoint(tmp_path / n / "checkpoints" / "last.ckpt")["state_dict"] for n in ("with", "without")]
    assert states[0].keys() == states[1].keys()
    saved = [LLM2SLM.from_pretrained(tmp_path / name / "model") for name in ("with", "without")]
    assert saved[0].state_dict().keys() == saved[1].state_dict().keys()
    files = [{p.name for p in (tmp_path / name / "model").rglob("*")} for name in ("with", "without")]
    assert files[0] == files[1]


# The loss


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp"])
def test_teacher_and_encoder_share_the_llm_where_each_process_has_all_weights(tmp_path, strategy):
    config = distilling(tmp_path, strategy=strategy)
    ready = prepare(config, tmp_path / "run", None)
    encoder, teacher = ({t.data_ptr() for t in m.parameters()} for m in (ready.model.encoder, ready.teacher.model))
    assert (encoder < teacher) is (strategy != "fsdp") and (encoder & teacher == set()) is (strategy == "fsdp")


def by_hand(config, rows, steps):
    """SGD on the mean of both terms over all tokens, without Lightning, objectives or teacher."""
    model, data, _ = taught(config)
    llm, tokenizer = whole_llm(config)
    weight, temperature = config.optim.distill, config.optim.distill_temperature
    names = {"projector.": config.optim.projector_lr, "slm.": config.optim.lr}
    groups = [
        {"params": [p for n, p in model.named_parameters() if n.startswith(start)], "lr": lr}
        for start, lr in names.items()
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    model.train()
    losses = []
    for _ in range(steps):
        batch = batch_of(data, rows)
        logits = model.logits(batch)
        parts = []
        for b, row in enumerate(rows):
            labels = batch.labels_BT[b][batch.labels_BT[b] != IGNORE_INDEX]
            prompt = tokenizer(data.examples("train")[row].prompt)["input_ids"]
            with torch.no_grad():
                target = own_logits(llm, prompt, labels).double() / temperature
            own = logits[b, : len(labels)].double()
            ce = F.cross_entropy(own, labels, reduction="sum")
            soft = F.log_softmax(own / temperature, -1)
            kl = F.kl_div(soft, F.log_softmax(target, -1), log_target=True, reduction="sum") * temperature**2
            parts.append((ce, kl, len(labels)))
        tokens = sum(n for *_, n in parts)
        ce, kl = (sum(part[i] for part in parts) / tokens for i in (0, 1))
        loss = (1 - weight) * ce + weight * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append([float(value.detach()) for value in (loss, ce, kl)])
    return weights(model), losses[-1]


def test_a_step_is_that_of_both_terms_over_all_tokens_of_the_window(tmp_path, sgd):
    """For every division of its rows into micro-batches."""
    config = no_dropout(tmp_path, llm="gpt2")
    config.optim.distill, config.optim.distill_temperature = 0.7, 2.0
    config.optim.weight_decay, config.optim.schedule = 0.0, "constant"
    whole = [row for rows in MICRO for row in rows]
    start = weights(build(config)[0])
    wanted, losses = by_hand(config, whole, steps=3)
    for batches, accumulate in ((MICRO, 3), ([whole], 1), ([whole[:1], whole[1:]], 2)):
        found, logged = trained(config, batches, accumulate=accumulate, steps=3)
        assert_close(found, wanted)
        assert [logged[f"train/{name}"] for name in ("loss", "ce", "kl")] == pytest.approx(losses, abs=1e-5)
    assert max(float((wanted[n] - start[n]).abs().max()) for n in wanted) > 100 * 2e-6
    config.optim.distill = 0.6
    other, _ = trained(config, [whole], accumulate=1, steps=3)
    assert max(float((wanted[n] - other[n]).abs().max()) for n in wanted) > 10 * 2e-6


@pytest.mark.parametrize("kind", representatives(["t5", "gpt2"], ["gpt2"]))
def test_a_model_equal_to_its_teacher_has_no_gradient(tmp_path, kind):
    config = distilling(tmp_path, weight=1.0, temperature=1.5, kind="slm", mode="none", llm=kind, slm=kind)
    off = {"t5": ["dropout_rate"], "gpt2": ["resid_pdrop", "embd_pdrop", "attn_pdrop"]}[kind]
    largest = []
    for name in (config.model.llm.name, config.model.slm.name):
        config.model.slm.name, config.model.slm.config = name, dict.fromkeys(off, 0.0)
        model, data, teacher = taught(config)
        batch = batch_of(data, MICRO[0])
        teacher.divergence(batch, model.train().logits(batch)).backward()
        largest.append(max(float(p.grad.abs().max()) for p in model.parameters()))
    assert largest[0] < 1e-4 < 0.1 < largest[1]


@pytest.mark.slow
def test_a_teacher_is_built_for_distillation_only_and_does_not_change_data_and_start(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("a teacher was built")

    config = tiny_run(tmp_path, max_steps=3, val_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(distill_module, "build_llm", never)
        train(deepcopy(config), tmp_path / "plain")
    config.optim.distill = 0.5
    train(deepcopy(config), tmp_path / "distilled")
    plain, distilled = ([row for row in curve(tmp_path / name) if row["train/loss"]] for name in ("plain", "distilled"))
    assert "train/kl" not in plain[0]
    assert distilled[0]["train/ce"] == plain[0]["train/loss"], "the same weights, batch and dropout"
    assert distilled[1]["train/ce"] != plain[1]["train/loss"]
    for row in distilled:
        loss, ce, kl = (float(row[f"train/{name}"]) for name in ("loss", "ce", "kl"))
        assert loss == pytest.approx((ce + kl) / 2, abs=1e-6)
    with pytest.raises(ValueError, match=r"optim\.distill=0\.5: a teacher is needed above 0"):
        TrainingModule(build(config)[0], config.optim, 1)


def test_validation_is_cross_entropy_alone(tmp_path):
    config = distilling(tmp_path, max_steps=1, val_every=1)
    model, _ = fitted_with_teacher(config, tmp_path / "run")
    (logged,) = [float(row["val/loss"]) for row in curve(tmp_path / "run") if row["val/loss"]]
    _, data = build(config)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in range(len(data.encoded("validation"))):
            batch = batch_of(data, [row], "validation")
            total += float(F.cross_entropy(model.eval().logits(batch)[0], batch.labels_BT[0], reduction="sum"))
            tokens += batch.labels_BT.numel()
    assert logged == pytest.approx(total / tokens, abs=1e-5)


def fitted_with_teacher(config, folder):
    config.callbacks.generate_rows = 0
    train(deepcopy(config), folder)
    return LLM2SLM.from_pretrained(folder / "model"), folder


# The run


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    config = distilling(tmp_path, max_steps=6, val_every=4, accumulate_grad_batches=2)
    config.data.batch_tokens = 150
    train(deepcopy(config), tmp_path / "whole")
    interrupted(deepcopy(config), tmp_path / "stopped", monkeypatch, StopAt(5))
    again = deepcopy(config)
    again.run = str(tmp_path / "stopped")
    train(again, tmp_path / "elsewhere")
    assert_runs_equal(tmp_path / "stopped", tmp_path / "whole")


def test_streamed_rows_contain_the_teachers_prompts(tmp_path):
    config = distilling(tmp_path, max_steps=2, val_every=2)
    config.data.streaming, config.data.overlong, config.data.buffer = True, Overlong.drop, 10
    _, data, teacher = taught(config)
    batch = next(iter(data.train_dataloader()))
    texts = {example.index: example.prompt for example in build(tiny_run(tmp_path))[1].examples("train")}
    for b, index in enumerate(batch.indices):
        ids = batch.teacher.slm_ids_BQ[b][batch.teacher.slm_mask_BQ[b] == 1].tolist()
        assert ids == teacher.collator.slm_tokenizer(texts[index])["input_ids"]
    fitted_with_teacher(config, tmp_path / "run")


def test_the_command_line_distils_an_slm_alone(tmp_path, tiny_llm, capsys):
    folder = tmp_path / "run"
    arguments = [
        *tiny_overrides(tiny_llm),
        "optim.distill=0.5",
        "optim.distill_temperature=2",
        f"hydra.run.dir={folder}",
    ]
    assert main(["train", "model=slm", *arguments, "trainer.log_every_n_steps=1", "data.workers=1"]) == 0
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert all(float(row["train/kl"]) > 0 for row in rows)
    (system,) = json.loads((folder / "result.json").read_text())["systems"]
    assert system["kind"] == "slm"
    assert system["notes"]["distilled"] == {"teacher": str(tiny_llm), "weight": 0.5, "temperature": 2.0}
    card = (folder / "model" / "README.md").read_text()
    assert "distilled: also trained on the next-token distribution of `llm` (a local folder) (weight 0.5, temp" in card
    assert "made with `llm` (a local folder)" in card
    assert (
        sum(p.numel() for p in LLM2SLM.from_pretrained(folder / "model").parameters()) == system["parameters"]["total"]
    )


REFUSED = {
    "weight": (["optim.distill=1.5"], "optim.distill=1.5: must be between 0 and 1"),
    "not a number": (["optim.distill=nan"], "optim.distill=nan: must be between 0 and 1"),
    "temperature": (["optim.distill_temperature=0"], "optim.distill_temperature=0.0: must be above 0"),
    "itself": (["model=llm"], "optim.distill=0.5: the LLM would be its own teacher; leave it out for model=llm"),
    "a store": (["data.reps=nowhere"], "optim.distill=0.5 needs the whole LLM, and with data.reps=nowhere it is never"),
    "random": (
        ["model.llm.init=random"],
        "optim.distill=0.5: an LLM with random weights is no teacher",
    ),
    "tokens": (
        ["model=slm", "model.slm.tokenizer=train:300"],
        "optim.distill=0.5: the teacher: the tokens of ",
    ),
    "prompt too long": (
        ["data.max_prompt_tokens=9", "model.llm.prefix='Translate this sentence for me, please: '", "model=slm"],
        "data=builtin, train, row 0 (from 0): its prompt has ",
    ),
}


@pytest.mark.parametrize(("arguments", "said"), first_few(REFUSED.values(), 4), ids=list(REFUSED))
def test_impossible_distillation_is_reported_on_one_line_before_training(tmp_path, tiny_llm, capsys, arguments, said):
    folder = tmp_path / "run"
    assert main(["train", *tiny_overrides(tiny_llm), "optim.distill=0.5", *arguments, f"hydra.run.dir={folder}"]) == 2
    assert mistake(capsys).startswith(said)
    assert not (folder / "checkpoints").exists()


def test_a_teacher_that_cannot_generate_is_reported(tmp_path):
    config = distilling(tmp_path, llm="bert", slm="t5")
    with pytest.raises(UserError, match=r"^optim\.distill=0\.5: the teacher: a bert is an encoder and predicts no"):
        fitted(config, tmp_path / "run")


# Common tokens


def test_padded_rows_and_tokens_of_the_teacher_only_do_not_count(tmp_path):
    config = distilling(tmp_path, llm="gpt2", slm="t5", mode="memory")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<ask>"], special_tokens=True)
    larger = AutoModelForCausalLM.from_pretrained(config.model.llm.name)
    larger.resize_token_embeddings(len(tokenizer) + 7)
    larger.save_pretrained(tmp_path / "gpt2_larger")
    tokenizer.save_pretrained(tmp_path / "gpt2_larger")
    plain, data, teacher = taught(config)
    batch = batch_of(data, [0, 1, 2])
    config.model.llm.name = str(tmp_path / "gpt2_larger")
    config.model.kind = SystemKind.slm
    _, _, wide = taught(config)
    assert wide.tokens == len(tiny_tokenizer())
    assert wide.logits(batch).shape[-1] == len(tokenizer) + 7
    logits = plain.eval().logits(batch).detach()
    logits = F.pad(logits, (0, 5), value=30.0)  # an SLM with padded rows
    torch.testing.assert_close(wide.divergence(batch, logits), teacher.divergence(batch, logits))


def test_different_vocabularies_are_refused_and_named(tmp_path):
    config = distilling(tmp_path)
    config.model = tiny_model_config(tmp_path / "zoo", "t5", "gpt2", tokenizers=Tokenizers.offsets)
    with pytest.raises(UserError) as caught:
        fitted(config, tmp_path / "run")
    said = str(caught.value)
    assert "\n" not in said
    for part in (config.model.llm.name, config.model.slm.name, "model.tokenizers=shared", "llm2slm label"):
        assert part in said
    config.model.tokenizers, config.model.slm.init, config.model.slm.name = Tokenizers.shared, Init.random, None
    config.model.slm.config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1}
    assert taught(config)[2].tokens == len(tiny_tokenizer())


def test_the_eos_must_be_the_same_token():
    student, teacher = tiny_tokenizer(), tiny_tokenizer()
    assert common_tokens(student, teacher) == list(range(len(student)))
    teacher.eos_token = "<pad>"
    with pytest.raises(UserError, match="eos is '</s>' and '<pad>'"):
        common_tokens(student, teacher)
    fewer = tiny_tokenizer()
    student.add_tokens(["<new>"])
    with pytest.raises(UserError, match=rf"token {len(fewer)} is '<new>' and None"):
        common_tokens(student, fewer)
    assert common_tokens(fewer, student) == list(range(len(fewer)))
