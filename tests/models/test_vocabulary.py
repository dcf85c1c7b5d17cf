"""Tokens that were added to a tokenizer have embeddings: begun as a mean, trained, saved, loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from llm2slm.config import DataConfig, LanguageModelConfig, LLMConfig, ModelConfig
from llm2slm.data.keeping import count_characters, keeping
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.vocabulary import grow
from llm2slm.testing import ARCHITECTURES, tiny_tokenizer, write_tiny, write_tiny_t5
from llm2slm.types import Conditioning, Init, SystemKind, Tokenizers, UserError
from tests.data.kinds import KINDS
from tests.data.test_collate import example

ROWS = {
    "a": "if x:\n\treturn {1}",
    "b": "for  [漢]:\n    pass\n\nend",
    "c": "The big farmer",
    "d": "x</s>y <unk>",
    "e": "a  b\t{}",
}


def kept_tokenizer(folder: Path) -> tuple[Path, int, int]:
    """Folder of the extended tokenizer, entries before, entries now."""
    tokenizer = KINDS["t5"]()
    kept = keeping(tokenizer, True, count_characters(ROWS.values()), 50)
    kept.save_pretrained(folder)
    return folder, len(tokenizer), len(kept)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    kept, first, now = kept_tokenizer(folder / "kept")
    assert now == first + 10
    t5 = write_tiny_t5(folder / "t5", tokenizer=KINDS["t5"](), width=48, decoder_layers=1, dropout=0.0)
    return folder, t5, kept, first, now


def config(parts, kind=SystemKind.slm, **slm) -> ModelConfig:
    folder, t5, kept, *_ = parts
    named = {"name": str(write_tiny("t5", folder / "llm", seed=1))} if kind is SystemKind.llm2slm else {}
    llm = LLMConfig(**named)
    own = LanguageModelConfig(name=str(t5), tokenizer=str(kept), **slm)
    return ModelConfig(kind, llm, own, conditioning=Conditioning.memory, tokenizers=Tokenizers.offsets)


def train(model: LLM2SLM, steps: int, lr: float) -> None:
    rows = [example(prompt, target, i) for i, (prompt, target) in enumerate(ROWS.items())]
    batch = model.collator(model.collator.encode(rows))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, weight_decay=0.0)
    for _ in range(steps):
        logits_BTV = model.logits(batch)
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch.labels_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_it_learns_texts_that_its_own_tokenizer_cannot_write(parts, tmp_path):
    torch.manual_seed(0)
    *_, first, now = parts
    model = build_model(config(parts), DataConfig())
    table = model.slm.get_input_embeddings().weight
    assert table.shape[0] == model.slm.config.vocab_size == now
    before = table.detach().clone()
    torch.testing.assert_close(before[first:], before[:first].mean(0).expand(now - first, -1))
    train(model, 150, 1e-2)
    assert (table[first:] - before[first:]).abs().amax(1).min() > 1e-3, "each new row is trained"
    assert model.generate_text(list(ROWS), max_new_tokens=40) == list(ROWS.values())
    model.save_pretrained(tmp_path)
    for folder in (tmp_path, save_again(tmp_path)):
        loaded = LLM2SLM.from_pretrained(folder)
        assert loaded.generate_text(list(ROWS), max_new_tokens=40) == list(ROWS.values())
        assert torch.equal(loaded.slm.get_input_embeddings().weight, table)
    # a model that is begun from it has the embeddings already
    again = build_model(ModelConfig(SystemKind.slm, slm=LanguageModelConfig(name=str(tmp_path))), DataConfig())
    assert torch.equal(again.slm.get_input_embeddings().weight, table)


def save_again(folder: Path) -> Path:
    LLM2SLM.from_pretrained(folder).save_pretrained(folder / "again")
    return folder / "again"


def test_a_hybrid_keeps_them_too_and_its_llm_reads_its_own_tokens(parts, tmp_path):
    torch.manual_seed(0)
    model = build_model(config(parts, SystemKind.llm2slm), DataConfig())
    train(model, 2, 1e-2)
    batch = model.collator.batch_of_texts(["a\n{漢}"])
    assert int(batch.llm_ids_BP.max()) < model.encoder.body.get_input_embeddings().weight.shape[0]
    assert int(batch.slm_ids_BQ.max()) >= parts[3]
    model.save_pretrained(tmp_path)
    loaded = LLM2SLM.from_pretrained(tmp_path)
    model.eval()
    with torch.no_grad():
        labelled = model.collator(model.collator.encode([example("a\n{漢}", "\t{x}")]))
        assert torch.equal(loaded.logits(labelled), model.logits(labelled))
    assert loaded.collator.decode(labelled.labels_BT) == ["\t{x}"]


@pytest.mark.parametrize("tune", ["none", "lora", "prefix", r"\.block\."])
def test_embeddings_that_would_stay_as_they_are_are_refused(parts, tune):
    with pytest.raises(UserError, match=r"model.slm.tune=.* does not train shared.weight, where .*tune=full") as caught:
        build_model(config(parts, SystemKind.llm2slm, tune=tune), DataConfig())
    assert "\n" not in str(caught.value)
    build_model(config(parts, tune="shared"), DataConfig())


def test_random_weights_have_rows_for_all_of_it(parts):
    model = build_model(config(parts, init=Init.random), DataConfig())
    assert model.slm.get_input_embeddings().weight.shape[0] == parts[4]


@pytest.mark.parametrize("name", ["t5", "flan", "bart", "mbart", "pegasus", "gpt2", "llama", "opt", "t5gemma"])
def test_every_kind_of_model_grows(tmp_path, name):
    """Tied and untied heads, biases of logits, spare rows: new rows are the mean, old ones stay."""
    folder, tokenizer = write_tiny(name, tmp_path / name), tiny_tokenizer()
    auto = AutoModelForSeq2SeqLM if ARCHITECTURES[name][0] in ("t5", "bart", "mbart", "pegasus", "t5gemma") else (
        AutoModelForCausalLM
    )  # fmt: skip
    model, first = auto.from_pretrained(folder).eval(), len(tokenizer)
    ids = torch.tensor([tokenizer("the little dog")["input_ids"]])
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        before = model(**inputs).logits
        tokenizer.add_tokens(["\n\n", "\t\t", "{{{"])
        grow(model, len(tokenizer), first)
        after = model(**inputs).logits
        torch.testing.assert_close(after[..., :first], before[..., :first])
        head = model.get_output_embeddings().weight
        torch.testing.assert_close(head[first : first + 3], head[:first].mean(0).expand(3, -1))
        grow(model, len(tokenizer), first)  # a second time there is nothing to add
        assert torch.equal(model(**inputs).logits, after)
    assert after.shape[-1] == first + 3


def test_spare_rows_are_used_first(tmp_path):
    """T5's embeddings have 28 rows more than its tokenizer has entries."""
    tokenizer = tiny_tokenizer()
    folder = write_tiny_t5(tmp_path / "t5", tokenizer=tokenizer)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    first = len(tokenizer)
    model.resize_token_embeddings(first + 28)
    tokenizer.add_tokens(["\n\n", "\t\t"])
    grow(model, len(tokenizer), first)
    table = model.get_input_embeddings().weight
    assert table.shape[0] == first + 28
    torch.testing.assert_close(table[first : first + 2], table[:first].mean(0).expand(2, -1))
