"""Conditioning `kv` against transformers models: the LLM alone, and a cut model with a cache that is made by hand."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling import representatives
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm2slm.config import DataConfig, LLMConfig, ModelConfig, SLMConfig
from llm2slm.data.tokenization.last_token import LastToken
from llm2slm.data.tokenization.round_trip import counts, marked
from llm2slm.models.build import build_model
from llm2slm.models.conditioning.kv import chosen_blocks, shares_cache
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.kv_cache import CacheShape, by_block, flat
from llm2slm.models.loading.cut_config import RECORD
from llm2slm.offline import encode, open_writer
from llm2slm.testing import labelled, tiny_model_config, tiny_rows, tiny_tokenizer, write_tiny
from llm2slm.types import IGNORE_INDEX, Batch, Control, Example, SystemKind, Tokenizers, UserError

FAMILIES = ("gpt2", "pythia", "llama", "qwen2", "gemma2", "gemma3", "opt")
WINDOW = {"gemma2": {"sliding_window": 4}, "gemma3": {"sliding_window": 4}}
"""Narrower than the tiny prompts, so that a window over wrong positions has an effect."""


def lm(place: Path, **values: Any) -> SLMConfig:
    return SLMConfig(name=str(place), tokenizer=str(place), **values)


@pytest.fixture
def folder(request: pytest.FixtureRequest, zoo: Path) -> Path:
    """A tiny LLM of four blocks, of the family in the parameter."""
    place = zoo / f"kv_{request.param}"
    if not place.is_dir():
        write_tiny(request.param, place, seed=3, dropout=0.0)
        tiny_tokenizer().save_pretrained(place)
    return place


def cut_by_hand(folder: Path, blocks: list[int], place: Path) -> Path:
    """Writes the model of a folder with some of its blocks (1-based), its tokenizer, and a record of the blocks."""
    if place.is_dir():
        return place
    whole = AutoModelForCausalLM.from_pretrained(folder)
    config = deepcopy(whole.config)
    config.num_hidden_layers = len(blocks)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[block - 1] for block in blocks]
    setattr(config, RECORD, {"blocks": blocks, "depth": whole.config.num_hidden_layers})
    small, names = type(whole)(config), whole.state_dict()
    state = {}
    for name in small.state_dict():
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if number is not None:
            parts[number] = str(blocks[int(parts[number])] - 1)
        state[name] = names[".".join(parts)]
    small.load_state_dict(state)
    small.save_pretrained(place)
    AutoTokenizer.from_pretrained(folder).save_pretrained(place)
    return place


def config_of(llm: Path, slm: Path, family: str = "", **more: Any) -> ModelConfig:
    window = WINDOW.get(family, {})
    llm_config = LLMConfig(name=str(llm), tokenizer=str(llm), config=window)
    return ModelConfig(llm=llm_config, slm=lm(slm, config=window), conditioning="kv", **more)


def real(batch: Batch, logits_BTV: Tensor) -> Tensor:
    return logits_BTV[batch.labels_BT != IGNORE_INDEX]


@torch.no_grad()
@pytest.mark.parametrize("folder", representatives(FAMILIES, ["gpt2", "llama", "gemma2"]), indirect=True)
def test_with_all_blocks_the_hybrid_equals_the_llm_alone(folder: Path) -> None:
    family = folder.name.removeprefix("kv_")
    cfg = config_of(folder, folder, family)
    model = build_model(cfg).eval()
    alone = build_model(replace(cfg, kind=SystemKind.llm, conditioning="none")).eval()
    assert model.config.kv == {"blocks": [1, 2, 3, 4], "mapped": False}
    assert {name.partition(".")[0] for name in model.trainable_names()} == {"slm"}
    batch = labelled(model, [0, 1, 2])
    assert batch.slm_ids_BQ.shape[1] == 1 and len(set(batch.llm_mask_BP.sum(1).tolist())) == 3
    found, expected = model.logits(batch), alone.logits(labelled(alone, [0, 1, 2]))
    torch.testing.assert_close(real(batch, found), real(batch, expected), rtol=1e-4, atol=1e-4)
    texts = [row["source"] for row in tiny_rows()]
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        length = {"max_new_tokens": 7, "min_new_tokens": 7}
        assert model.generate_text(texts, **length, **options) == alone.generate_text(texts, **length, **options)


@torch.no_grad()
@pytest.mark.parametrize("folder", representatives(FAMILIES, ["gpt2", "llama", "gemma2"]), indirect=True)
@pytest.mark.parametrize("blocks", representatives([[1, 4], [2, 3, 4]], [[1, 4]]), ids=str)
def test_a_cut_model_equals_transformers_on_the_llms_cache(folder: Path, zoo: Path, blocks: list[int]) -> None:
    family = folder.name.removeprefix("kv_")
    slm = cut_by_hand(folder, blocks, zoo / f"{folder.name}_{'_'.join(map(str, blocks))}")
    cfg = config_of(folder, slm, family)
    model = build_model(cfg).eval()
    assert model.config.kv == {"blocks": blocks, "mapped": False}
    batch = labelled(model, [0, 1, 2])
    found = model.logits(batch)
    # two transformers models, one row at a time, without padding
    window = WINDOW.get(family, {})
    llm = AutoModelForCausalLM.from_pretrained(folder, **window).eval()
    small = AutoModelForCausalLM.from_pretrained(slm, **window).eval()
    for row in range(3):
        ids = batch.llm_ids_BP[row][batch.llm_mask_BP[row].bool()].unsqueeze(0)
        labels = batch.labels_BT[row][batch.labels_BT[row] != IGNORE_INDEX].unsqueeze(0)
        read, given = DynamicCache(), DynamicCache()
        llm(ids[:, :-1], past_key_values=read, use_cache=True)
        for number, block in enumerate(blocks):
            given.update(read.layers[block - 1].keys, read.layers[block - 1].values, number)
        own = torch.cat([ids[:, -1:], labels[:, :-1]], dim=1)
        own_positions = torch.arange(ids.shape[1] - 1, ids.shape[1] - 1 + own.shape[1]).unsqueeze(0)
        expected = small(own, past_key_values=given, use_cache=True, position_ids=own_positions).logits[0]
        torch.testing.assert_close(found[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("folder", ["llama", "gpt2"], indirect=True)
def test_the_padding_side_of_the_llm_has_no_effect(folder: Path) -> None:
    model = build_model(config_of(folder, folder)).eval()
    batch = labelled(model, [0, 1, 2])
    order = torch.argsort(batch.llm_mask_BP, dim=1, stable=True)
    left = replace(batch, llm_ids_BP=batch.llm_ids_BP.gather(1, order), llm_mask_BP=batch.llm_mask_BP.gather(1, order))
    assert not left.llm_mask_BP[:, 0].all() and batch.llm_mask_BP[:, 0].all()
    torch.testing.assert_close(real(batch, model.logits(left)), real(batch, model.logits(batch)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_sampling_follows_the_llms_distribution(folder: Path) -> None:
    """First tokens of many samples against the LLM's probabilities (binomial bound of five standard deviations)."""
    model = build_model(config_of(folder, folder)).eval()
    text, number = tiny_rows()[0]["source"], 4000
    batch = model.collator.batch_of_texts([text])
    torch.manual_seed(0)
    ids = model.generate(batch, do_sample=True, top_k=0, max_new_tokens=1, num_return_sequences=number)
    llm = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = batch.llm_ids_BP[batch.llm_mask_BP.bool()].unsqueeze(0)
    share = llm(prompt).logits[0, -1].softmax(-1)
    counts = torch.bincount(ids[:, 0], minlength=len(share)) / number
    assert ((counts - share).abs() <= 5 * (share * (1 - share) / number).sqrt() + 2 / number).all()


def shallow(zoo: Path) -> Path:
    folder = zoo / "kv_llama"
    if not folder.is_dir():
        write_tiny("llama", folder, seed=3, dropout=0.0)
        tiny_tokenizer().save_pretrained(folder)
    return cut_by_hand(folder, [1, 4], zoo / "kv_llama_1_4")


# With maps


@pytest.mark.parametrize("tokenizers", [Tokenizers.shared, Tokenizers.offsets])
@pytest.mark.parametrize(
    ("llm", "slm"),
    representatives([("gpt2", "gpt2"), ("llama", "gpt2"), ("qwen2", "llama")], [("gpt2", "gpt2"), ("qwen2", "llama")]),
)
def test_with_maps_it_starts_as_the_slm_and_the_maps_have_gradients(
    zoo: Path, llm: str, slm: str, tokenizers: Tokenizers
) -> None:
    cfg = tiny_model_config(zoo, llm, slm, "kv", tokenizers)
    model = build_model(cfg).eval()
    assert model.config.kv["mapped"] and model.config.kv["blocks"] == [1, 2, 3, 4]
    alone_cfg = replace(cfg, kind=SystemKind.slm, conditioning="none")
    alone = build_model(alone_cfg).eval()
    batch = labelled(model, [0, 1, 2])
    with torch.no_grad():
        expected = alone.logits(labelled(alone, [0, 1, 2]))
        torch.testing.assert_close(real(batch, model.logits(batch)), real(batch, expected), rtol=1e-4, atol=1e-4)
    loss = real(batch, model.logits(batch)).log_softmax(-1)[:, 0].sum()
    loss.backward()
    assert (model.projector.weight.grad.abs().amax((1, 2)) > 0).all()  # of keys and values, in every block


@torch.no_grad()
def test_the_maps_add_aligned_keys_and_values(zoo: Path) -> None:
    """By hand: the SLM's cache of the prompt, plus alignment times the LLM's cache times the maps."""
    model = build_model(tiny_model_config(zoo, "gpt2", "llama", "kv", Tokenizers.offsets)).eval()
    model.projector.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    batch = labelled(model, [0])
    llm = AutoModelForCausalLM.from_pretrained(zoo / "llm_gpt2").eval()
    slm = AutoModelForCausalLM.from_pretrained(zoo / "slm_llama_slm").eval()
    read, own = DynamicCache(), DynamicCache()
    llm(batch.llm_ids_BP, past_key_values=read, use_cache=True)
    slm(batch.slm_ids_BQ[:, :-1], past_key_values=own, use_cache=True)
    for number, block in enumerate(model.config.kv["blocks"]):
        for which, name in enumerate(("keys", "values")):
            theirs = getattr(read.layers[block - 1], name)[0].transpose(0, 1).flatten(1)
            added = batch.align_BQP[0] @ theirs @ model.projector.weight[2 * number + which]
            mine = getattr(own.layers[number], name)
            mine += added[:-1].unflatten(1, (mine.shape[1], mine.shape[3])).transpose(0, 1)
    labels = batch.labels_BT
    expected = slm(torch.cat([batch.slm_ids_BQ[:, -1:], labels[:, :-1]], 1), past_key_values=own, use_cache=True)
    torch.testing.assert_close(model.logits(batch), expected.logits, rtol=1e-4, atol=1e-4)


# The last token


def test_the_last_token_is_encoded_in_a_smaller_vocabulary() -> None:
    whole = tiny_tokenizer()
    merged = next(token for token in ("dog", "house", "see", "the") if token in whole.get_vocab())
    vocabulary = {token: i for token, i in whole.get_vocab().items() if len(token) == 1 or i < 10}
    numbers = {token: n for n, token in enumerate(sorted(vocabulary, key=vocabulary.get))}
    cut = Tokenizer(models.BPE(vocab=numbers, merges=[]))
    cut.pre_tokenizer, cut.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    slm = PreTrainedTokenizerFast(tokenizer_object=cut, eos_token=whole.eos_token)
    last = LastToken(whole, slm)
    assert slm.decode(last([whole.get_vocab()[merged]])) == merged and len(last([whole.get_vocab()[merged]])) > 1
    assert last([5, whole.get_vocab()["a"]]) == [numbers["a"]]
    with pytest.raises(UserError, match="the SLM's vocabulary has entries that are not in the LLM's"):
        LastToken(slm, whole)


# Blocks


@pytest.mark.parametrize(("given", "cut", "llm_depth", "expected"), [
    (None, None, 4, [2, 4]),
    (None, {"blocks": [1, 4], "depth": 4}, 4, [1, 4]),
    (None, {"blocks": [1, 4], "depth": 4}, 12, [6, 12]),  # cut from another model
    ([2, -1], {"blocks": [1, 4], "depth": 4}, 4, [2, 4]),
    (None, None, 1, [1, 1]),
])  # fmt: skip
def test_blocks_are_chosen_by_number_cut_or_depth(
    zoo: Path, given: Any, cut: Any, llm_depth: int, expected: list[int]
) -> None:
    config = AutoModelForCausalLM.from_pretrained(shallow(zoo)).config
    setattr(config, RECORD, cut)
    assert chosen_blocks(given, config, llm_depth) == expected


@pytest.mark.parametrize(("given", "message"), [
    ([1], "names 1 blocks of the LLM, and the SLM has 2"),
    ([0, 1], "0 is no block of the LLM; give 1 to 4"),
    ([1, 5], "5 is no block of the LLM; give 1 to 4"),
])  # fmt: skip
def test_invalid_blocks_are_refused(zoo: Path, given: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(config_of(zoo / "kv_llama", shallow(zoo), kv_blocks=given))


@pytest.mark.parametrize(("change", "message"), [
    ({"tune": "prefix"}, "model.slm.tune=prefix puts virtual tokens in front of the prompt"),
    ({"tune": "prompt"}, "model.slm.tune=prompt puts virtual tokens in front of the prompt"),
])  # fmt: skip
def test_virtual_tokens_are_refused(zoo: Path, change: dict[str, Any], message: str) -> None:
    cfg = config_of(zoo / "kv_llama", shallow(zoo))
    with pytest.raises(UserError, match=message):
        build_model(replace(cfg, slm=replace(cfg.slm, **change)))


@pytest.mark.parametrize(("llm", "slm", "message"), [
    ("t5", "gpt2", "needs a decoder-only LLM, and .* is a t5: use"),
    ("gpt2", "t5", "model.conditioning=kv does not fit a t5.*possible: add"),
])  # fmt: skip
def test_encoder_decoders_are_refused(zoo: Path, llm: str, slm: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(tiny_model_config(zoo, llm, slm, "kv"))


RECURRENT: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "mamba": {"state_size": 4},
    "gemma3n_text": {  # the last two blocks use the cache of earlier blocks
        "vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "altup_num_inputs": 2, "laurel_rank": 4,
        "activation_sparsity_pattern": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("side", ["LLM", "SLM"])
@pytest.mark.parametrize("family", RECURRENT)
def test_models_without_a_cache_in_every_block_are_refused(tmp_path: Path, zoo: Path, family: str, side: str) -> None:
    tokenizer, special = tiny_tokenizer(), ("pad_token_id", "eos_token_id")
    shape = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "vocab_size": len(tokenizer),
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    shape |= {name: getattr(tokenizer, name) for name in special} | RECURRENT[family]
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    other = shallow(zoo)
    llm, slm = (tmp_path, other) if side == "LLM" else (other, tmp_path)
    with pytest.raises(UserError, match=f"kv: the {side}, a {family}, does not cache keys and values"):
        build_model(config_of(llm, slm))


@pytest.mark.parametrize(("family", "same", "change"), [
    ("gptj", True, {"n_layer": 2}),
    ("gptj", False, {"rotary_dim": 8}),
    ("falcon", False, {"alibi": True}),
    ("gpt_neo", False, {"window_size": 128}),
    ("llama4_text", False, {"attention_chunk_size": 64}),
    ("bloom", True, {"hidden_dropout": 0.3}),
    ("mamba", True, {"num_hidden_layers": 2}),  # refused later, since it has no keys
])  # fmt: skip
def test_a_cache_is_shared_if_the_positions_are_computed_alike(family: str, same: bool, change: dict[str, Any]) -> None:
    assert shares_cache(CONFIG_MAPPING[family](**change), CONFIG_MAPPING[family]()) is same


def test_kv_blocks_are_refused_for_another_conditioning(zoo: Path) -> None:
    with pytest.raises(UserError, match=r"model\.kv_blocks=.* is for model\.conditioning=kv"):
        build_model(replace(tiny_model_config(zoo, "gpt2", "gpt2"), kv_blocks=[1, 2, 3, 4]))


# Stores, ablations, layout


@torch.no_grad()
def test_flat_and_by_block_are_inverse() -> None:
    cache = DynamicCache()
    for number in range(3):
        cache.update(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4), number)
    found = by_block(flat(cache, [3, 1]), CacheShape(3, 4))
    for (keys, values), number in zip(found, (2, 0), strict=True):
        assert torch.equal(keys, cache.layers[number].keys) and torch.equal(values, cache.layers[number].values)


def rows_of(model: LLM2SLM) -> list[Any]:
    examples = [Example(i, row["source"], row["source"], row["target"]) for i, row in enumerate(tiny_rows())]
    return model.collator.encode(examples)


@torch.no_grad()
@pytest.mark.parametrize("mapped", [False, True])
def test_a_store_contains_the_caches(zoo: Path, tmp_path: Path, mapped: bool) -> None:
    cfg = tiny_model_config(zoo, "gpt2", "llama", "kv") if mapped else config_of(zoo / "kv_llama", shallow(zoo))
    model = build_model(cfg).eval()
    with open_writer(tmp_path / "reps", model) as store:
        encode(model, rows_of(model), store, 64, progress=False)
    stored = build_model(cfg, DataConfig(reps=str(tmp_path / "reps"))).eval()
    if mapped:
        for one in (model, stored):
            one.projector.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    batch = labelled(model, [0, 1, 2])
    assert torch.equal(stored.logits(labelled(stored, [0, 1, 2])), model.logits(batch))
    other_blocks = [1] * len(model.config.kv["blocks"])
    for other in (replace(cfg, conditioning="add"), replace(cfg, kv_blocks=other_blocks)):
        with pytest.raises(UserError, match="layer"):
            build_model(other, DataConfig(reps=str(tmp_path / "reps")))


@torch.no_grad()
def test_controls_remove_the_prompt_from_the_slm(zoo: Path) -> None:
    cfg = config_of(zoo / "kv_llama", shallow(zoo))
    plain = build_model(cfg).eval()
    batch = labelled(plain, [0, 1, 2])
    for control in (Control.zero, Control.constant):
        model = build_model(replace(cfg, control=control)).eval()
        other = replace(batch, llm_ids_BP=batch.llm_ids_BP.flip(1).clamp(min=3))
        assert torch.equal(model.logits(batch), model.logits(other))
    shuffled = build_model(replace(cfg, control=Control.shuffled)).eval()
    found = shuffled.logits(batch)
    for row in range(3):
        source = (row - 1) % 3
        own, read = labelled(plain, [row]), labelled(plain, [source])
        expected = plain.logits(replace(own, llm_ids_BP=read.llm_ids_BP, llm_mask_BP=read.llm_mask_BP))
        torch.testing.assert_close(found[row, : expected.shape[1]], expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_a_bfloat16_llm_with_a_float32_slm(zoo: Path, precision: torch.dtype) -> None:
    cfg = config_of(zoo / "kv_llama", shallow(zoo))
    model = build_model(replace(cfg, llm=replace(cfg.llm, dtype="bfloat16"))).eval()
    exact = build_model(cfg).eval()
    batch = labelled(model, [0, 1, 2])
    with torch.no_grad():
        assert (real(batch, model.logits(batch)) - real(batch, exact.logits(batch))).abs().max() < 0.3
    assert model.encoder.body.dtype is precision


def test_a_prompt_of_which_the_slm_gets_one_token_is_not_counted_as_truncated(zoo: Path) -> None:
    model = build_model(config_of(zoo / "kv_llama", shallow(zoo)))
    examples = [Example(i, row["source"], row["source"], row["target"]) for i, row in enumerate(tiny_rows())]
    assert counts(marked(model.collator, model.collator.tokenized(examples), examples)) == {
        "response": 0, "prompt": 0, "llm_prompt": 0,
    }  # fmt: skip
