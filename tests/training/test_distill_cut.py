"""Distillation between a vocabulary and a cut of it: the LLM gets its ids, and its distribution is restricted to the
kept entries."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from tiny_runs import batch_of, curve, taught, tiny_run
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from llm2slm.commands.tokenizer import train_ordered
from llm2slm.commands.train import run as train
from llm2slm.data.tokenization.cutting import cut
from llm2slm.data.tokenization.tokenizer import cut_of, original_ids
from llm2slm.testing import tiny_tokenizer
from llm2slm.training.distill import common_tokens
from llm2slm.types import IGNORE_INDEX, Overlong, Tokenizers, UserError, Vocab

TEXTS = ["two dogs see it", "the little dog", "two old dogs see the old house", "it"]


def distilled_run(folder, llm="gpt2", slm="gpt2", kind="slm", mode="none", temperature=1.5, **more):
    """A language model with a cut vocabulary, and a teacher with the complete one."""
    config = tiny_run(folder, kind=kind, slm=slm, mode=mode, llm=llm, **more)
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 2), encoding="utf-8")
    config.data.train = config.data.validation = config.data.test = str(path)
    config.data.source, config.data.target = None, "text"
    config.task.name, config.task.metrics = "lm", None
    config.data.overlong, config.data.max_response_tokens = Overlong.split, 20
    config.model.slm.vocab = Vocab.corpus
    config.optim.distill, config.optim.distill_temperature = 0.5, temperature
    return config


def built(config, folder):
    train_ordered(config.model, config.data, config.task, config.seed, folder)
    return taught(config)


def whole(folder):
    auto = AutoModelForSeq2SeqLM if "t5" in str(folder) else AutoModelForCausalLM
    return auto.from_pretrained(folder).eval()


@pytest.mark.parametrize("llm", ["gpt2", "t5"])
def test_the_divergence_is_that_of_the_renormalized_kept_entries(tmp_path, llm):
    """By hand, one text at a time: logits of the complete transformers models on ids of the complete vocabulary."""
    config = distilled_run(tmp_path, llm=llm)
    model, data, teacher = built(config, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(config.model.llm.name)
    kept = cut_of(model.collator.slm_tokenizer).ids
    assert len(kept) < len(tokenizer) and kept != list(range(len(kept)))
    student, reference = whole(config.model.slm.name), whole(config.model.llm.name)
    rows = [0, 1, 2, 3]
    batch = batch_of(data, rows)
    total, tokens = 0.0, 0
    start = tokenizer("")["input_ids"]
    assert start == [tokenizer.eos_token_id]
    with torch.no_grad():
        for row in rows:
            ids = tokenizer(TEXTS[row])["input_ids"]
            assert [kept[i] for i in data.encoded("train")[row].response] == ids
            sequence = torch.tensor([start + ids])

            def logits(of, sequence=sequence, ids=ids):
                if of.config.is_encoder_decoder:
                    return of(input_ids=torch.tensor([start]), labels=torch.tensor([ids])).logits[0]
                return of(sequence).logits[0, :-1]

            p = (logits(reference)[:, kept].double() / 1.5).softmax(-1)
            q = (logits(student)[:, kept].double() / 1.5).softmax(-1)
            total += float((p * (p / q).log()).sum()) * 1.5**2
            tokens += len(ids)
        found = teacher.divergence(batch, model.eval().logits(batch))
    assert tokens == int((batch.labels_BT != IGNORE_INDEX).sum())
    assert float(found) == pytest.approx(total, rel=1e-4) and total > 0.1
    assert teacher.logits(batch).shape[-1] == len(kept)


def test_a_cut_model_has_no_gradient_from_its_uncut_origin(tmp_path):
    """Equal weights: divergence and gradient are zero."""
    config = distilled_run(tmp_path)
    config.model.llm.name = config.model.slm.name
    config.model.slm.config = dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0)
    model, data, teacher = built(config, tmp_path / "run")
    found = teacher.divergence(batch_of(data, [0, 1, 2]), model.train().logits(batch_of(data, [0, 1, 2])))
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=1e-4)
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-4


def test_a_run_is_distilled_from_its_uncut_origin_and_a_later_one_starts_from_the_saved_folder(tmp_path):
    """The folder of the first run records the kept entries; the teacher may be the complete model again."""
    config = distilled_run(tmp_path, max_steps=3, val_every=3, temperature=1.0)
    config.model.llm.name = config.model.slm.name
    train(deepcopy(config), tmp_path / "healed")
    later = deepcopy(config)
    later.model.slm.name, later.model.slm.vocab = str(tmp_path / "healed" / "model"), None
    later.model.llm.name = config.model.llm.name
    train(later, tmp_path / "later")
    for name in ("healed", "later"):
        rows = [row for row in curve(tmp_path / name) if row["train/loss"]]
        assert all(row["train/kl"] for row in rows)
        loss, ce, kl = (float(rows[-1][f"train/{key}"]) for key in ("loss", "ce", "kl"))
        assert loss == pytest.approx((ce + kl) / 2, abs=1e-6)


def test_a_hybrid_with_a_cut_vocabulary_is_distilled_from_its_llm(tmp_path):
    config = distilled_run(tmp_path, slm="t5", kind="llm2slm", mode="add")
    config.model.tokenizers = Tokenizers.offsets
    model, data, teacher = built(config, tmp_path / "run")
    batch = batch_of(data, [0, 1])
    kept = cut_of(model.collator.slm_tokenizer).ids
    reference = whole(config.model.llm.name)
    with torch.no_grad():
        ids = AutoTokenizer.from_pretrained(config.model.llm.name)(TEXTS[0])["input_ids"]
        wanted = reference(torch.tensor([[1, *ids]])).logits[0, :-1][:, kept]
    torch.testing.assert_close(teacher.logits(batch)[0, : len(ids)], wanted, rtol=1e-4, atol=1e-4)


# Corresponding ids


def cut_to(tokenizer, text):
    return cut(tokenizer, tokenizer(text)["input_ids"], set(text))


def test_ids_correspond_by_the_entries_of_the_complete_vocabulary():
    tokenizer = tiny_tokenizer()
    large, small = cut_to(tokenizer, "the old house sees it"), cut_to(tokenizer, "the old house")
    assert len(small) < len(large) < len(tokenizer)
    assert common_tokens(small, tokenizer) == original_ids(small)
    found = common_tokens(small, large)
    assert [original_ids(large)[i] for i in found] == original_ids(small)
    assert large.convert_ids_to_tokens(found) == small.convert_ids_to_tokens(list(range(len(small))))
    again = cut_to(large, "the old house")
    assert common_tokens(again, tokenizer) == original_ids(small)
    for student, teacher in ((large, small), (tokenizer, small)):
        with pytest.raises(UserError, match=r"differ \(token \d+ is '.+' and None\)"):
            common_tokens(student, teacher)
    other = tiny_tokenizer("slm")
    with pytest.raises(UserError, match=r"differ \(token \d+ is"):
        common_tokens(small, other)
    small.add_tokens(["<new>"])
    with pytest.raises(UserError, match=rf"token {len(small) - 1} is '<new>' and None"):
        common_tokens(small, tokenizer)
