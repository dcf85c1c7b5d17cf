"""Tokens that were added to a tokenizer have embeddings: initialized as a mean, trained, saved, loaded. With a cut
vocabulary the model has the kept rows, and computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sampling import representatives
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from llm2slm.config import DataConfig, LLMConfig, ModelConfig, SLMConfig
from llm2slm.data.tokenization.cutting import cut
from llm2slm.data.tokenization.keeping import count_characters, keeping
from llm2slm.data.tokenization.tokenizer import cut_of, load_tokenizer
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.loading.vocabulary import grow, named_ids, renumber, select
from llm2slm.testing import ARCHITECTURES, tiny_tokenizer, write_tiny, write_tiny_t5
from llm2slm.types import Init, SystemKind, Tokenizers, UserError
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
    """Folder of the extended tokenizer, the number of entries before, and after."""
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
    own = SLMConfig(name=str(t5), tokenizer=str(kept), **slm)
    return ModelConfig(kind, llm, own, conditioning="memory", tokenizers=Tokenizers.offsets)


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


def test_added_tokens_are_trained_generated_saved_and_loaded(parts, tmp_path):
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
    # a model that starts from this folder has the embeddings already
    again = build_model(ModelConfig(SystemKind.slm, slm=SLMConfig(name=str(tmp_path))), DataConfig())
    assert torch.equal(again.slm.get_input_embeddings().weight, table)


def save_again(folder: Path) -> Path:
    LLM2SLM.from_pretrained(folder).save_pretrained(folder / "again")
    return folder / "again"


def test_a_hybrid_with_added_tokens_is_saved_and_its_llm_keeps_its_tokens(parts, tmp_path):
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
def test_tuning_that_does_not_train_the_embeddings_is_refused(parts, tune):
    with pytest.raises(UserError, match=r"model.slm.tune=.* does not train shared.weight, which .*tune=full") as caught:
        build_model(config(parts, SystemKind.llm2slm, tune=tune), DataConfig())
    assert "\n" not in str(caught.value)
    build_model(config(parts, tune="shared"), DataConfig())


def test_random_weights_have_rows_for_all_tokens(parts):
    model = build_model(config(parts, init=Init.random), DataConfig())
    assert model.slm.get_input_embeddings().weight.shape[0] == parts[4]


@pytest.mark.parametrize("name", ["t5", "flan", "bart", "mbart", "pegasus", "gpt2", "llama", "opt", "t5gemma"])
def test_embeddings_of_every_family_grow(tmp_path, name):
    """Tied and untied heads, biases of logits, spare rows: new rows are the mean, old rows are unchanged."""
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
        grow(model, len(tokenizer), first)  # the second call adds nothing
        assert torch.equal(model(**inputs).logits, after)
    assert after.shape[-1] == first + 3


def test_spare_rows_are_used_first(tmp_path):
    """T5's embeddings have 28 more rows than its tokenizer has entries."""
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


# A cut vocabulary


def cut_tokenizer(tokenizer, texts=("two dogs see it", "zz")):
    used = {token for ids in tokenizer(list(texts))["input_ids"] for token in ids}
    return cut(tokenizer, used, set("".join(texts)))


WRITERS = [name for name, (kind, *_) in ARCHITECTURES.items() if kind not in ("bert", "modernbert")]


def loaded(folder: Path, name: str):
    seq = ARCHITECTURES[name][0] in ("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "t5gemma")
    return (AutoModelForSeq2SeqLM if seq else AutoModelForCausalLM).from_pretrained(folder).eval()


@pytest.mark.parametrize("name", representatives(WRITERS, ["t5", "bart", "gpt2", "llama", "gemma2"]))
def test_selected_rows_give_the_logits_of_the_complete_model(tmp_path, name):
    """Tied and untied heads, logits with a bias, halves of different widths; after saving and loading too."""
    folder, tokenizer = write_tiny(name, tmp_path / name), tiny_tokenizer()
    model, made = loaded(folder, name), cut_tokenizer(tokenizer)
    rows = cut_of(made).rows
    assert rows != list(range(len(rows)))
    for bias_name, bias in [*model.named_buffers(), *model.named_parameters()]:
        if bias_name.endswith("final_logits_bias"):
            bias.data.copy_(torch.randn(bias.shape))
    model.generation_config.bad_words_ids = [[rows[-1]], [rows[-1], next(i for i in range(500) if i not in rows)]]
    text = "two dogs see it"
    ids = [torch.tensor([side(text)["input_ids"]]) for side in (tokenizer, made)]
    inputs = [{"input_ids": i} | ({"decoder_input_ids": i} if model.config.is_encoder_decoder else {}) for i in ids]
    special = {
        key: getattr(model.config, key) for key in ("pad_token_id", "eos_token_id", "bos_token_id")
    }  # fmt: skip
    with torch.no_grad():
        whole = model(**inputs[0]).logits
        dropped = select(model, rows)
        torch.testing.assert_close(model(**inputs[1]).logits, whole[..., rows])
    assert model.generation_config.bad_words_ids == [[len(rows) - 1]] and dropped[0].startswith("bad_words_ids=[[")
    for key, value in special.items():
        assert rows[getattr(model.config, key)] == value, key
    model.save_pretrained(tmp_path / "cut")
    again = loaded(tmp_path / "cut", name)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs[1]).logits, whole[..., rows])
    sizes = [p.shape for p in again.parameters() if len(tokenizer) in p.shape]
    assert not sizes, "no table of the whole vocabulary is left"


def test_ids_in_configs_are_renumbered():
    config = GenerationConfig(
        bos_token_id=2, eos_token_id=[4, 9], pad_token_id=-1, decoder_start_token_id=5, suppress_tokens=[2, 5],
        forced_eos_token_id=4, bad_words_ids=[[2, 4], [2, 5]], max_length=4,
    )  # fmt: skip
    config.sequence_bias = [[[2], 1.0], [[5], -1.0]]
    dropped = renumber(config, {2: 0, 4: 1, 9: 2})
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id, config.forced_eos_token_id) == (
        0,
        [1, 2],
        -1,
        1,
    )
    assert (config.decoder_start_token_id, config.suppress_tokens, config.bad_words_ids) == (None, [0], [[0, 1]])
    assert (config.sequence_bias, config.max_length) == ([[[0], 1.0]], 4)
    names = sorted(line.partition("=")[0] for line in dropped)
    assert names == ["bad_words_ids", "decoder_start_token_id", "sequence_bias", "suppress_tokens"]


def cut_config(tmp_path, name="gpt2", kind=SystemKind.slm, **slm) -> ModelConfig:
    folder = tmp_path / name
    if not folder.is_dir():
        write_tiny(name, folder)
        cut_tokenizer(tiny_tokenizer()).save_pretrained(tmp_path / "cut")
        write_tiny("t5", tmp_path / "llm", seed=1)
    own = SLMConfig(name=str(folder), tokenizer=str(tmp_path / "cut"), **slm)
    llm = LLMConfig(name=str(tmp_path / "llm")) if kind is SystemKind.llm2slm else LLMConfig()
    return ModelConfig(kind, llm, own, conditioning="add", tokenizers=Tokenizers.offsets)


@pytest.mark.parametrize("kind", [SystemKind.slm, SystemKind.llm2slm])
@pytest.mark.parametrize("name", representatives(["gpt2", "t5", "bart"], ["gpt2", "t5"]))
def test_a_model_with_a_cut_vocabulary_is_built_saved_and_loaded(tmp_path, capsys, name, kind):
    torch.manual_seed(0)
    config = cut_config(tmp_path, name, kind)
    model = build_model(config, DataConfig())
    entries = cut_of(model.collator.slm_tokenizer)
    whole = loaded(Path(config.slm.name), name)
    assert torch.equal(model.slm.get_input_embeddings().weight, whole.get_input_embeddings().weight[entries.rows])
    fewer = whole.num_parameters() - model.slm.num_parameters()
    assert fewer == (len(tiny_tokenizer()) - len(entries.rows)) * 16
    said = capsys.readouterr().err
    assert f"model.slm.vocab: {len(entries.rows)} of {len(tiny_tokenizer())} vocabulary entries are kept" in said
    assert model.slm.config.llm2slm_vocab == entries.record
    model.eval().save_pretrained(tmp_path / "saved")
    again = LLM2SLM.from_pretrained(tmp_path / "saved")
    rows = [example("two dogs", "see it"), example("zz", "two dogs see it")]
    with torch.no_grad():
        batch = model.collator(model.collator.encode(rows))
        assert torch.equal(model.logits(batch), again.logits(batch))
    assert cut_of(again.collator.slm_tokenizer) == entries
    if kind is SystemKind.slm:  # a plain transformers folder, for a later run
        plain = loaded(tmp_path / "saved", name)
        assert plain.config.vocab_size == len(entries.rows)
        for tokenizer in (None, config.slm.tokenizer, str(tmp_path / "saved")):
            later = SLMConfig(name=str(tmp_path / "saved"), tokenizer=tokenizer)
            further = build_model(ModelConfig(SystemKind.slm, slm=later), DataConfig())
            assert torch.equal(further.slm.get_input_embeddings().weight, model.slm.get_input_embeddings().weight)


def test_a_cut_model_is_cut_further(tmp_path):
    config = cut_config(tmp_path)
    model = build_model(config, DataConfig())
    model.save_pretrained(tmp_path / "saved")
    again = cut_tokenizer(model.collator.slm_tokenizer, ["zz"])
    again.save_pretrained(tmp_path / "again")
    config.slm.name, config.slm.tokenizer = str(tmp_path / "saved"), str(tmp_path / "again")
    further = build_model(config, DataConfig())
    whole = loaded(tmp_path / "gpt2", "gpt2").get_input_embeddings().weight
    assert torch.equal(further.slm.get_input_embeddings().weight, whole[cut_of(again).ids])
    assert len(cut_of(again).ids) < len(cut_of(model.collator.slm_tokenizer).ids)
    config.slm.tokenizer = str(tmp_path / "gpt2")
    with pytest.raises(UserError, match=r"its vocabulary is cut to \d+ of 286 entries, and the tokenizer .* has 286"):
        build_model(config, DataConfig())


def test_added_tokens_and_a_cut_vocabulary_are_combined(tmp_path, parts):
    """Kept rows are those of the model, new rows the mean of all its rows."""
    folder, t5, kept, first, now = parts
    texts = list(ROWS.values())
    tokenizer = load_tokenizer(str(kept))
    used = {token for text in texts for token in tokenizer(text)["input_ids"]}
    made = cut(tokenizer, used, set("".join(texts)))
    made.save_pretrained(tmp_path / "cut")
    cfg = config(parts)
    cfg.slm.tokenizer = str(tmp_path / "cut")
    table = build_model(cfg, DataConfig()).slm.get_input_embeddings().weight
    whole = AutoModelForSeq2SeqLM.from_pretrained(t5).get_input_embeddings().weight
    ids = cut_of(made).ids
    assert len(table) == len(made) == len(ids) + now - first < now
    assert torch.equal(table[: len(ids)], whole[ids])
    torch.testing.assert_close(table[len(ids) :], whole[:first].mean(0).expand(now - first, -1))
    assert folder.is_dir()


@pytest.mark.parametrize("cut_first", [False, True])
@pytest.mark.parametrize("cut_again", [False, True])
def test_tokens_are_added_to_a_cut_vocabulary(tmp_path, cut_first, cut_again):
    """By a later run: its model is cut already or complete, and the vocabulary is cut further or not."""
    tokenizer = KINDS["t5"]()
    write_tiny_t5(tmp_path / "t5", tokenizer=tokenizer)
    once = cut_tokenizer(tokenizer, ["The big farmer sells", *ROWS.values()])
    once.save_pretrained(tmp_path / "once")
    whole = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5").get_input_embeddings().weight
    name = tmp_path / "t5"
    if cut_first:
        own = SLMConfig(name=str(name), tokenizer=str(tmp_path / "once"))
        build_model(ModelConfig(SystemKind.slm, slm=own), DataConfig()).save_pretrained(tmp_path / "saved")
        name = tmp_path / "saved"
    more = keeping(load_tokenizer(str(tmp_path / "once")), True, count_characters(ROWS.values()), 50)
    added = len(more) - len(once)
    assert added > 5
    if cut_again:
        used = {token for text in ROWS.values() for token in more(text)["input_ids"]}
        more = cut(more, used, set("".join(ROWS.values())), whole_model=not cut_first)
        assert len(more) < len(once) + added
    more.save_pretrained(tmp_path / "more")
    own = SLMConfig(name=str(name), tokenizer=str(tmp_path / "more"))
    model = build_model(ModelConfig(SystemKind.slm, slm=own), DataConfig())
    table, ids = model.slm.get_input_embeddings().weight, cut_of(more).ids
    assert len(table) == len(more) == len(ids) + added
    assert torch.equal(table[: len(ids)], whole[ids])
    new = table[len(ids) :]
    assert torch.equal(new, new[:1].expand_as(new)) and new.abs().min() > 0
    model.save_pretrained(tmp_path / "last")
    again = build_model(ModelConfig(SystemKind.slm, slm=SLMConfig(name=str(tmp_path / "last"))), DataConfig())
    assert torch.equal(again.slm.get_input_embeddings().weight, table)


def test_random_weights_fit_a_cut_tokenizer_and_are_not_cut_again(tmp_path):
    config = cut_config(tmp_path, init=Init.random)
    model = build_model(config, DataConfig())
    rows = len(cut_of(model.collator.slm_tokenizer).rows)
    assert model.slm.get_input_embeddings().weight.shape[0] == rows
    model.save_pretrained(tmp_path / "saved")
    later = ModelConfig(SystemKind.slm, slm=SLMConfig(name=str(tmp_path / "saved")))
    found = build_model(later, DataConfig()).slm.get_input_embeddings().weight
    assert torch.equal(found, model.slm.get_input_embeddings().weight)


def test_shared_tokens_and_a_cut_vocabulary_are_refused_on_one_line(tmp_path):
    config = cut_config(tmp_path, kind=SystemKind.llm2slm)
    config.tokenizers = Tokenizers.shared
    with pytest.raises(UserError, match=r"use model.tokenizers=offsets or llm_tokens") as caught:
        build_model(config, DataConfig())
    assert "\n" not in str(caught.value)


def test_special_token_ids_are_found_in_all_configs(tmp_path):
    folder = write_tiny("t5gemma", tmp_path / "t5gemma")
    values = json.loads((folder / "config.json").read_text())
    values["decoder"]["bos_token_id"] = 77
    (folder / "config.json").write_text(json.dumps(values))
    GenerationConfig(eos_token_id=[1, 88], forced_bos_token_id=99, suppress_tokens=[111]).save_pretrained(folder)
    found = named_ids(SLMConfig(name=str(folder)), tiny_tokenizer())
    assert {0, 1, 77, 88, 99} <= found and 111 not in found
    assert named_ids(SLMConfig(name=str(folder), init=Init.random), tiny_tokenizer()) == set()
