"""`model.slm.vocab=corpus` from the command line: printed, resumed, exported, together with added tokens, refused."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import mistake
from sampling import representatives
from test_fit import StopAt, assert_runs_equal, interrupted
from tiny_runs import tiny_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2slm.cli import main
from llm2slm.commands.kept_tokenizer import keep_ordered
from llm2slm.commands.train import run as train
from llm2slm.config import RunConfig
from llm2slm.data.sources.sources import read_split
from llm2slm.data.tasks import resolve
from llm2slm.data.tokenization.tokenizer import cut_of, load_tokenizer
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.saving import own_fingerprint
from llm2slm.testing import tiny_tokenizer
from llm2slm.types import Init, SystemKind, Tokenizers, Vocab


def cut_run(folder: Path, **more):
    config = tiny_run(folder, **{"kind": "slm", "slm": "gpt2", "mode": "none", "max_steps": 6, "val_every": 4} | more)
    config.model.slm.vocab = Vocab.corpus
    config.task.prefix = "say:"
    return config


def test_training_rows_keep_their_tokens_and_the_saved_folder_is_a_plain_one(tmp_path, capsys):
    config = cut_run(tmp_path)
    train(deepcopy(config), tmp_path / "run")
    shown = capsys.readouterr()
    tokenizer, whole = load_tokenizer(str(tmp_path / "run" / "tokenizers" / "slm_kept")), tiny_tokenizer()
    kept = cut_of(tokenizer)
    assert len(kept.ids) < len(whole)
    line = f"llm2slm: model.slm.vocab: {len(kept.ids)} of {len(whole)} vocabulary entries are kept, "
    assert line in shown.err and (shown.out + shown.err).count("entries") == 1
    task = resolve(config.task)
    rows = [task.example(row, i) for i, row in enumerate(read_split(config.data, task, "train", 5)[0])]
    used = set()
    for row in rows:
        for text in (row.prompt, row.target):
            ids = whole(text)["input_ids"]
            assert [kept.ids[i] for i in tokenizer(text)["input_ids"]] == ids
            used |= set(ids)
    assert used <= set(kept.ids)
    folder = tmp_path / "run" / "model"
    model, own = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(own) == len(kept.ids)
    answer = model.generate(own("say: dog", return_tensors="pt")["input_ids"], max_new_tokens=3, do_sample=False)
    assert int(answer.max()) < len(own)
    (system,) = json.loads((tmp_path / "run" / "result.json").read_text())["systems"]
    assert system["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert main(["export", f"run={tmp_path / 'run'}", f"out={tmp_path / 'out'}"]) == 0
    given = LLM2SLM.from_pretrained(tmp_path / "out")
    assert own_fingerprint(given) == own_fingerprint(LLM2SLM.from_pretrained(folder))
    assert cut_of(given.collator.slm_tokenizer) == kept


@pytest.mark.parametrize("tune", representatives(["full", r"\.h\."], ["full"]))
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, tune):
    """Also with frozen embeddings, which a resumed run selects from the complete model again."""
    config = cut_run(tmp_path)
    config.model.slm.tune = tune
    train(deepcopy(config), tmp_path / "whole")
    interrupted(deepcopy(config), tmp_path / "stopped", monkeypatch, StopAt(3))
    before = (tmp_path / "stopped" / "tokenizers" / "slm_kept" / "tokenizer.json").stat().st_mtime_ns
    train(RunConfig(run=str(tmp_path / "stopped")), tmp_path / "elsewhere")
    assert_runs_equal(tmp_path / "stopped", tmp_path / "whole")
    assert (tmp_path / "stopped" / "tokenizers" / "slm_kept" / "tokenizer.json").stat().st_mtime_ns == before


def test_a_cut_for_random_weights_is_reported_once(tmp_path, capsys):
    """No weights are cut, so the tokenizer reports it."""
    config = cut_run(tmp_path, max_steps=1)
    config.model.slm.init = Init.random
    train(config, tmp_path / "run")
    shown = capsys.readouterr()
    size = len(LLM2SLM.from_pretrained(tmp_path / "run" / "model").collator.slm_tokenizer)
    line = f"slm_kept: {size} of {len(tiny_tokenizer())} vocabulary entries are kept for 40 training rows\n"
    assert f"llm2slm: {tmp_path}/run/tokenizers/{line}" in shown.err and (shown.out + shown.err).count("entries") == 1


def test_a_hybrid_whose_llm_has_a_separate_tokenizer(tmp_path):
    """offsets: prompts and responses count; llm_tokens: the SLM needs entries for responses only."""
    sizes = []
    for tokenizers in ("offsets", "llm_tokens"):
        config = cut_run(tmp_path, kind="llm2slm", mode="add", slm="t5")
        config.model.tokenizers = Tokenizers(tokenizers)
        short = tmp_path / "short.jsonl"
        short.write_text('{"source": "the little old house", "target": "dog"}\n' * 4)
        config.data.train = config.data.validation = config.data.test = str(short)
        train(deepcopy(config), tmp_path / tokenizers)
        model = LLM2SLM.from_pretrained(tmp_path / tokenizers / "model")
        sizes.append(len(model.collator.slm_tokenizer))
        assert model.slm.get_input_embeddings().weight.shape[0] == sizes[-1]
        assert len(model.collator.llm_tokenizer) == len(tiny_tokenizer())
    assert sizes[1] < sizes[0] < len(tiny_tokenizer())


@torch.no_grad()
def test_kv_encodes_the_last_prompt_token_of_the_llms_prompt(tmp_path):
    """With all blocks, training prompts get the LLM's logits of the kept entries."""
    config = cut_run(tmp_path, kind="llm2slm", mode="kv", slm="llama", llm="llama", max_steps=1, val_every=1)
    folder, template = config.model.llm.name, "{% for m in messages %}{{ m['content'] }}{% endfor %} house"
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config.model.llm.chat, config.model.tokenizers, config.model.slm.name = True, Tokenizers.offsets, folder
    config.model.llm.tokenizer = config.model.slm.tokenizer = folder
    short = tmp_path / "short.jsonl"
    short.write_text('{"source": "the little old", "target": "dog"}\n' * 4)
    config.data.train = config.data.validation = config.data.test = str(short)
    keep_ordered(config.model, config.data, config.task, 5, tmp_path)
    model = build_model(config.model, config.data).eval()
    alone = build_model(replace(config.model, kind=SystemKind.llm, conditioning="none"), config.data).eval()
    batches = [one.collator.batch_of_texts(["the little old"]) for one in (model, alone)]
    assert tokenizer.decode(batches[0].llm_ids_BP[0][-1]) == " house" and batches[0].slm_ids_BQ.shape == (1, 1)
    first = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    found, wanted = (one.generate(batch, **first).logits[0] for one, batch in zip((model, alone), batches, strict=True))
    torch.testing.assert_close(found, wanted[:, cut_of(model.collator.slm_tokenizer).ids], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["model.slm.vocab=corpus"],
            "model.slm.vocab=corpus reduces the SLM's vocabulary, and model.tokenizers=shared ",
        ),
        (
            ["model=slm", "model.slm.vocab=corpus", "data=json", "data.streaming=true", "data.overlong=drop"],
            "model.slm.vocab=corpus needs every training row before training, and data.streaming=true ",
        ),
    ],
)
def test_vocabularies_that_cannot_be_cut_are_reported_on_one_line(tmp_path, tiny_llm, capsys, arguments, said):
    named = [f"model.llm.name={tiny_llm}", f"hydra.run.dir={tmp_path / 'run'}", "trainer.accelerator=cpu"]
    assert main(["train", *named, *arguments]) == 2
    assert mistake(capsys).startswith(said)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_vocabulary_of_an_llm_alone_is_cut_and_the_unused_key_is_reported(tmp_path, capsys):
    config = cut_run(tmp_path, kind="llm")
    config.model.llm.vocab, config.model.slm.vocab = Vocab.corpus, None
    train(config, tmp_path / "run")
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("entries") == 1 and "llm2slm: model.llm.vocab: " in shown.err
    assert len(LLM2SLM.from_pretrained(tmp_path / "run" / "model").collator.slm_tokenizer) < len(tiny_tokenizer())
