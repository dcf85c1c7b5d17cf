"""Task lm in training: the loss equals that of transformers on the same ids, and a run from the command line."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_runs import batch_of, build, curve, tiny_run
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from llm2slm.commands.train import run as train
from llm2slm.types import IGNORE_INDEX, Overlong, Vocab

TEXTS = ["the little dog sees the old house", "it", "two dogs see the old dog and the house of a dog " * 3, "zz top"]


def plain_run(folder, slm="gpt2", **more):
    config = tiny_run(folder, kind="slm", slm=slm, mode="none", **more)
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 3), encoding="utf-8")
    config.data.train = config.data.validation = config.data.test = str(path)
    config.data.source = config.data.target = None
    config.task.name, config.task.metrics = "lm", None
    config.data.overlong, config.data.max_response_tokens = Overlong.split, 40
    return config


def losses_of_transformers(folder, limit):
    """Summed loss and number of tokens of each piece of each text, with the shift and mean of transformers."""
    config = json.loads((folder / "config.json").read_text())
    seq = config["is_encoder_decoder"] if "is_encoder_decoder" in config else config["model_type"] == "t5"
    model = (AutoModelForSeq2SeqLM if seq else AutoModelForCausalLM).from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in TEXTS:
        ids = tokenizer(text.strip())["input_ids"]  # eos at the end
        for start in range(0, len(ids), limit):
            piece = ids[start : start + limit]
            first = tokenizer("")["input_ids"]
            if seq:
                loss = model(input_ids=torch.tensor([first]), labels=torch.tensor([piece])).loss
            else:
                labels = torch.tensor([[IGNORE_INDEX] * len(first) + piece])
                loss = model(input_ids=torch.tensor([first + piece]), labels=labels).loss
            found.append((float(loss) * len(piece), len(piece)))
    return found


@torch.no_grad()
@pytest.mark.parametrize("slm", ["gpt2", "t5", "llama"])
def test_the_loss_equals_that_of_transformers_on_the_same_ids(tmp_path, slm):
    config = plain_run(tmp_path, slm)
    model, data = build(config)
    found = losses_of_transformers(tmp_path / "zoo" / f"slm_{slm}_llm", 40)
    rows = data.encoded("train")
    assert len(rows) == 3 * len(found) > 3 * len(TEXTS)
    batch = batch_of(data, list(range(len(found))))
    logits_BTV = model.eval().logits(batch)
    for b, (nats, tokens) in enumerate(found):
        own = torch.nn.functional.cross_entropy(logits_BTV[b], batch.labels_BT[b], reduction="sum")
        assert float(own) == pytest.approx(nats, rel=1e-4)
        assert int((batch.labels_BT[b] != IGNORE_INDEX).sum()) == tokens


def test_a_run_is_evaluated_by_perplexity_and_answers_its_single_prompt_once(tmp_path, monkeypatch, capsys):
    config = plain_run(tmp_path, max_steps=3, val_every=3)
    config.model.slm.vocab = Vocab.corpus
    from llm2slm.commands import evaluate

    asked = []
    whole = evaluate.predict
    monkeypatch.setattr(
        evaluate, "predict", lambda m, rows, *a, **k: asked.append(len(rows)) or whole(m, rows, *a, **k)
    )
    train(config, tmp_path / "run")
    shown = capsys.readouterr()
    assert asked == [1]
    assert "pieces that rows are split into" in shown.out and "task lm: no prefix" in shown.out
    (system,) = json.loads((tmp_path / "run" / "result.json").read_text())["systems"]
    found = system["quality"]["perplexity"]
    assert found["n"] == len(TEXTS) * 3 and ", split into pieces of 40 tokens," in found["signature"]
    pieces = losses_of_transformers(tmp_path / "run" / "model", 40)
    assert found["value"] == pytest.approx(math.exp(sum(n for n, _ in pieces) / sum(t for _, t in pieces)), rel=1e-4)
    (logged,) = [float(row["val/loss"]) for row in curve(tmp_path / "run") if row["val/loss"]]
    assert logged == pytest.approx(math.log(found["value"]), rel=1e-4)
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(TEXTS) * 3 and len({json.loads(line)["prediction"] for line in lines}) == 1
