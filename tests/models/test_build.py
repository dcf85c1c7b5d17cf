"""Models from configurations: the built model, and the errors, each on one line."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import publish
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    T5ForConditionalGeneration,
)

from llm2slm.config import DataConfig, LLMConfig, ModelConfig, SLMConfig
from llm2slm.models import conditioning
from llm2slm.models.build import build_model, load_tokenizers
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.loading.configs import locate
from llm2slm.models.loading.cross_attention import can_add_cross_attention
from llm2slm.models.slm import start_token
from llm2slm.testing import tiny_model_config, tiny_rows, tiny_tokenizer, write_tiny_gpt2, write_tiny_t5
from llm2slm.types import Example, Init, Overlong, SystemKind, Tokenizers, UserError

TEXTS = [row["source"] for row in tiny_rows()]
COMMIT = "c0ffee" + 34 * "0"
MINI_T5 = {
    "model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 2,
}  # fmt: skip
MINI_GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 320}


def refused(cfg: ModelConfig, message: str, data: DataConfig | None = None) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_model(cfg, data)
    assert "\n" not in str(error.value)


def with_slm(cfg: ModelConfig, **values: object) -> ModelConfig:
    return replace(cfg, slm=replace(cfg.slm, **values))


# The built model


@pytest.mark.parametrize("config", [MINI_T5, MINI_GPT2], ids=["t5", "gpt2"])
def test_random_slm_follows_its_config_and_the_tokenizer_of_the_llm(zoo, config) -> None:
    cfg = replace(tiny_model_config(zoo), slm=SLMConfig(init=Init.random, config=config))
    model = build_model(cfg)
    assert type(model.slm) is {"t5": T5ForConditionalGeneration, "gpt2": GPT2LMHeadModel}[config["model_type"]]
    found = model.slm.config.to_dict()
    assert {key: found[key] for key in config} == config
    tokenizer = tiny_tokenizer()
    assert found["vocab_size"] == len(tokenizer)
    assert (found["pad_token_id"], found["eos_token_id"]) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert model.collator.shared
    assert len(model.generate_text(TEXTS, max_new_tokens=5)) == 3


def test_every_module_is_in_train_mode_and_trained(zoo) -> None:
    """transformers loads pretrained models in eval mode, in which dropout would be off."""
    model = build_model(tiny_model_config(zoo))
    assert model.training and all(m.training for m in model.slm.modules())
    assert not any(m.training for m in model.encoder.modules())


@pytest.mark.parametrize("kind", [SystemKind.llm, SystemKind.slm])
def test_systems_without_an_encoder_have_one_model_and_train_all_of_it(zoo, kind) -> None:
    cfg = tiny_model_config(zoo, "t5", "gpt2", kind=kind)
    model = build_model(cfg)
    own = cfg.llm if kind is SystemKind.llm else cfg.slm
    auto = AutoModelForSeq2SeqLM if kind is SystemKind.llm else AutoModelForCausalLM
    weights = auto.from_pretrained(own.name).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.slm.state_dict().items())
    assert model.encoder is None and model.projector is None
    assert all(p.requires_grad for p in model.parameters())
    assert model.conditioning == "none"


@pytest.mark.parametrize("init", list(Init))
def test_a_name_and_a_whole_config_together_are_refused(zoo, init) -> None:
    """Otherwise one of them would be ignored silently."""
    cfg = tiny_model_config(zoo)
    with pytest.raises(UserError, match=r"model\.slm\.name=.*model\.slm\.config\.model_type=gpt2 describe two models"):
        build_model(with_slm(cfg, init=init, config=dict(MINI_GPT2)))


@pytest.mark.parametrize("init", list(Init))
def test_single_fields_of_a_named_config_are_changed(zoo, init) -> None:
    cfg = with_slm(tiny_model_config(zoo), init=init, config={"dropout_rate": 0.25})
    slm = build_model(cfg).slm
    assert slm.config.dropout_rate == 0.25
    assert {m.p for m in slm.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    wider = with_slm(cfg, config={"hidden_size": 24, "d_ff": 40})  # hidden_size: an alias of d_model in transformers
    if init is Init.random:
        found = build_model(wider).slm
        assert found.shared.weight.shape == (found.config.vocab_size, 24)
    else:
        refused(wider, r"slm_t5.*weights do not fit.*model\.slm\.init=random")
        refused(with_slm(cfg, config={"num_layers": 5}), r"encoder\.block\.2.*model\.slm\.init=random")


def test_random_weights_of_a_named_model_differ_from_the_pretrained_ones(zoo) -> None:
    cfg = tiny_model_config(zoo)
    a, b = (build_model(with_slm(cfg, init=init)).slm.state_dict() for init in Init)
    assert {n: v.shape for n, v in a.items()} == {n: v.shape for n, v in b.items()}
    assert not torch.equal(a["lm_head.weight"], b["lm_head.weight"])


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_the_dtype_is_applied_and_saved(zoo, tmp_path, family) -> None:
    cfg = tiny_model_config(zoo, family, family)
    cfg = replace(with_slm(cfg, dtype="bfloat16"), llm=replace(cfg.llm, dtype="bfloat16"))
    model = build_model(cfg).eval()
    assert (
        {p.dtype for p in model.slm.parameters()} == {p.dtype for p in model.encoder.parameters()} == {torch.bfloat16}
    )
    answers = model.generate_text(TEXTS, max_new_tokens=5)
    model.save_pretrained(tmp_path)
    again = LLM2SLM.from_pretrained(tmp_path)
    assert {n: p.dtype for n, p in again.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}
    assert again.generate_text(TEXTS, max_new_tokens=5) == answers


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize("kind", [SystemKind.llm, SystemKind.slm])
def test_dtype_of_a_system_without_an_encoder_survives_saving(zoo, tmp_path, kind, family) -> None:
    cfg = tiny_model_config(zoo, family, family, kind=kind)
    cfg = replace(with_slm(cfg, dtype="bfloat16"), llm=replace(cfg.llm, dtype="bfloat16"))
    build_model(cfg).save_pretrained(tmp_path)
    again = LLM2SLM.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    again.save_pretrained(tmp_path / "second")
    assert {p.dtype for p in LLM2SLM.from_pretrained(tmp_path / "second").parameters()} == {torch.bfloat16}


def test_weights_stored_in_half_precision_are_used_in_float32(zoo, tmp_path) -> None:
    """The format of the built-in LLM."""
    model = build_model(tiny_model_config(zoo, kind=SystemKind.llm))
    model.slm.half()
    model.save_pretrained(tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert {p.dtype for p in LLM2SLM.from_pretrained(tmp_path).parameters()} == {torch.float32}
    assert {p.dtype for p in LLM2SLM.from_pretrained("builtin/llm").parameters()} == {torch.float32}


def test_a_changed_llm_config_survives_saving(zoo, tmp_path) -> None:
    deep = write_tiny_t5(tmp_path / "deep", width=24, encoder_layers=4)
    cfg = tiny_model_config(zoo)
    model = build_model(replace(cfg, llm=LLMConfig(name=str(deep), config={"num_layers": 3}))).eval()
    model.save_pretrained(tmp_path / "saved")
    again = LLM2SLM.from_pretrained(tmp_path / "saved")
    assert len(again.encoder.body.block) == len(model.encoder.body.block) == 3
    batch = model.collator.batch_of_texts(TEXTS)
    assert torch.equal(again.represent(batch).reps_BPE, model.represent(batch).reps_BPE)


@pytest.mark.parametrize("given", [None, "main", COMMIT])
@pytest.mark.parametrize("changes", [{}, {"dropout_rate": 0.25}])
def test_a_hub_llm_is_recorded_by_commit(zoo, hub, given, changes) -> None:
    publish(hub, "someone/llm", COMMIT)
    llm = LLMConfig(name="someone/llm", revision=given, config=changes)
    record = build_model(replace(tiny_model_config(zoo), llm=llm)).config.llm
    assert (record["name"], record["revision"], record["config"]) == ("someone/llm", COMMIT, changes)


def test_a_hybrid_keeps_the_commit_of_its_llm(zoo, hub, tmp_path) -> None:
    """Even if `main` is another commit when it is loaded."""
    publish(hub, "someone/llm", COMMIT)
    model = build_model(replace(tiny_model_config(zoo), llm=LLMConfig(name="someone/llm"))).eval()
    model.save_pretrained(tmp_path / "saved")
    publish(hub, "someone/llm", "f" * 40, encoder_layers=3)
    again = LLM2SLM.from_pretrained(tmp_path / "saved")
    batch = model.collator.batch_of_texts(TEXTS)
    assert torch.equal(again.represent(batch).reps_BPE, model.represent(batch).reps_BPE)


def test_a_tilde_in_a_path_is_expanded(zoo, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(zoo))
    cfg = tiny_model_config(zoo)
    model = build_model(replace(with_slm(cfg, name="~/slm_t5_llm"), llm=LLMConfig(name="~/llm_t5")))
    assert model.config.llm["name"] == str((zoo / "llm_t5").resolve())
    model.save_pretrained(tmp_path / "saved")
    assert LLM2SLM.from_pretrained(tmp_path / "saved", llm="~/llm_t5").encoder.width == 24
    refused(with_slm(cfg, name="~nobody-of-this-name/model", tokenizer=cfg.llm.name), "~nobody.*no such folder")


@pytest.mark.parametrize(("layer", "numbers"), [(-2, [3]), (0.25, [1]), ([1, -1], [1, 4])])
def test_layers_survive_saving(zoo, tmp_path, layer, numbers) -> None:
    cfg = tiny_model_config(zoo, "gpt2", "gpt2")
    cfg = replace(cfg, llm=replace(cfg.llm, layer=layer))
    model = build_model(cfg).eval()
    if model.projector.mix is not None:
        model.projector.mix.data.copy_(torch.tensor([1.0, -1.0]))
    model.save_pretrained(tmp_path)
    again = LLM2SLM.from_pretrained(tmp_path)
    assert model.encoder.layers == again.encoder.layers == numbers
    batch = model.collator.batch_of_texts(["the old dog"])
    assert torch.equal(model.prefill(batch).states_BQD, again.prefill(batch).states_BQD)


def test_several_layers_have_one_more_trainable_tensor(zoo) -> None:
    cfg = tiny_model_config(zoo, "gpt2", "gpt2")
    one, two = (build_model(replace(cfg, llm=replace(cfg.llm, layer=layer))) for layer in (1, [1, 3]))
    assert two.trainable_names() - one.trainable_names() == {"projector.mix"}
    assert two.trainable_names() > one.trainable_names()


def test_quantization_survives_saving(zoo, tmp_path) -> None:
    pytest.importorskip("optimum.quanto")
    cfg = tiny_model_config(zoo)
    cfg = replace(cfg, llm=replace(cfg.llm, quantization={"quant_method": "quanto", "weights": "int8"}))
    model = build_model(cfg).eval()
    model.save_pretrained(tmp_path)
    batch = model.collator.batch_of_texts(["the old dog"])
    again, plain = LLM2SLM.from_pretrained(tmp_path), build_model(tiny_model_config(zoo))
    first, second, third = (m.represent(batch).reps_BPE for m in (model, again, plain))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_generating_llm_is_quantized_like_an_encoder(zoo) -> None:
    pytest.importorskip("optimum.quanto")
    cfg = tiny_model_config(zoo, kind=SystemKind.llm)
    cfg = replace(cfg, llm=replace(cfg.llm, quantization={"quant_method": "quanto", "weights": "int8"}))
    model = build_model(cfg).eval()
    assert any(type(module).__name__ == "QLinear" for module in model.slm.modules())
    assert all(model.generate_text(TEXTS, max_new_tokens=5, min_new_tokens=5))


def test_limits_survive_saving(zoo, tmp_path) -> None:
    data = DataConfig(max_prompt_tokens=40, max_response_tokens=9, overlong=Overlong.truncate)
    build_model(tiny_model_config(zoo), data).save_pretrained(tmp_path)
    found = LLM2SLM.from_pretrained(tmp_path).collator
    assert (found.max_prompt_tokens, found.max_response_tokens, found.overlong) == (40, 9, Overlong.truncate)


# Positions


@pytest.mark.parametrize(("mode", "room"), [("add", 60), ("replace", 60), ("prepend", 30)])
def test_a_prompt_and_its_response_fit_into_the_positions_of_the_slm(zoo, mode, room) -> None:
    short = write_tiny_gpt2(zoo / "short_gpt2", positions=100)
    cfg = replace(tiny_model_config(zoo, "t5"), conditioning=mode, slm=SLMConfig(name=str(short)))
    model = build_model(cfg, DataConfig(max_response_tokens=40)).eval()
    assert model.collator.max_prompt_tokens == room
    longest = "ö" * ((room - 1) // 2)  # no merges: two tokens each, and eos
    assert len(model.collator.slm_tokenizer(longest).input_ids) in (room, room - 1)
    assert len(model.generate_text([longest], max_new_tokens=40, min_new_tokens=40)) == 1
    with pytest.raises(UserError, match=f"at most {room} are allowed"):
        model.generate_text([longest + "öö"])
    refused(cfg, "100 positions.*max_response_tokens=100 leaves none", DataConfig(max_response_tokens=100))


def test_a_prompt_fits_into_the_positions_of_the_llm(zoo) -> None:
    short = write_tiny_gpt2(zoo / "short_gpt2_llm", positions=50)
    cfg = replace(tiny_model_config(zoo), llm=LLMConfig(name=str(short)))
    model = build_model(cfg).eval()
    assert model.collator.max_prompt_tokens == 50
    assert len(model.generate_text(["ö" * 24], max_new_tokens=2)) == 1


def test_an_answer_fits_into_the_positions_of_the_slm(zoo, tmp_path) -> None:
    model = LLM2SLM.from_pretrained(write_tiny_gpt2(tmp_path, positions=64))
    assert (model.collator.max_prompt_tokens, model.collator.max_response_tokens) == (32, 32)
    (n,) = model.collator.batch_of_texts(["ö" * 9]).slm_mask_BQ.sum(1).tolist()
    assert len(model.generate_text(["ö" * 9, "ö"], max_new_tokens=64 - n, min_new_tokens=64 - n)) == 2
    model.train()
    with pytest.raises(UserError, match=f"max_new_tokens=60 .*prompt of {n} tokens.* 64 positions; at most {64 - n}"):
        model.generate_text(["ö", "ö" * 9], max_new_tokens=60)
    assert model.training, "a failed answer must not leave the model in eval mode"


# Errors


def test_memory_needs_cross_attention(zoo) -> None:
    message = r"memory does not fit a llama \(it has no cross-attention\); possible: add, .*, kv, prepend, replace$"
    cfg = tiny_model_config(zoo, conditioning="memory")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    cfg.slm = SLMConfig(init=Init.random, config={"model_type": "llama", **sizes})
    refused(cfg, message)


def test_only_cross_attention_is_new_in_a_pretrained_decoder(zoo) -> None:
    alone = build_model(tiny_model_config(zoo, slm="gpt2", kind=SystemKind.slm)).slm.state_dict()
    guided = build_model(tiny_model_config(zoo, slm="gpt2", conditioning="memory")).slm.state_dict()
    assert all(torch.equal(guided[name], value) for name, value in alone.items())
    new = {name.split(".", 3)[3] for name in guided.keys() - alone.keys()}
    linear = {f"crossattention.{m}.{part}" for m in ("c_attn", "q_attn", "c_proj") for part in ("weight", "bias")}
    assert new == linear | {"ln_cross_attn.weight", "ln_cross_attn.bias"}
    assert not any("cross" in name for name in alone), "an SLM alone has nothing to attend to"


def test_optional_cross_attention_is_found_by_interface(zoo) -> None:
    """Also of a family that the package does not name. transformers' GPT-BigCode with multi_query refuses a
    two-dimensional mask in these layers; BERT's class can add such layers only as a decoder."""

    class OtherConfig(GPT2Config):
        model_type = "other"

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512}
    assert can_add_cross_attention(GPT2LMHeadModel, OtherConfig(**sizes))
    bert = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    assert not can_add_cross_attention(BertLMHeadModel, bert)
    cfg = tiny_model_config(zoo, conditioning="memory")
    for multi_query, reason in ((True, "it has no cross-attention"), (False, "its cross-attention accepts no padded")):
        cfg.slm = SLMConfig(init=Init.random, config={"model_type": "gpt_bigcode", "multi_query": multi_query, **sizes})
        refused(cfg, rf"memory does not fit a gpt_bigcode \({reason}")


def test_cross_attention_with_a_missing_tensor_is_refused(zoo, tmp_path) -> None:
    cfg = tiny_model_config(zoo, slm="gpt2", conditioning="memory")
    slm = build_model(cfg).slm
    slm.save_pretrained(tmp_path / "whole")
    load_tokenizers(cfg)[0].save_pretrained(tmp_path / "whole")
    cfg.slm.name = str(tmp_path / "whole")
    again = build_model(cfg).slm.state_dict()
    assert all(torch.equal(again[name], value) for name, value in slm.state_dict().items())
    path = tmp_path / "whole" / "model.safetensors"
    tensors = load_file(path)
    del tensors["transformer.h.1.crossattention.c_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    refused(cfg, r"its weights do not fit its config, as transformer\.h\.1\.crossattention\.c_proj\.weight")


def test_a_config_flag_without_layers_is_not_cross_attention(zoo, tmp_path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    AutoConfig.for_model("llama", add_cross_attention=True, **sizes).save_pretrained(tmp_path)
    cfg = tiny_model_config(zoo, conditioning="memory")
    cfg.slm = SLMConfig(name=str(tmp_path), init=Init.random)
    refused(cfg, "memory does not fit a llama")


@pytest.mark.parametrize("slm", ["t5", "gpt2"])
def test_a_hybrid_uses_the_same_start_token_after_loading(zoo, tmp_path, slm) -> None:
    """generation_config.json of a pretrained SLM may differ from its config.json, which training used."""
    cfg = tiny_model_config(zoo, slm=slm, conditioning="memory")
    folder = tmp_path / "slm"
    shutil.copytree(cfg.slm.name, folder)
    own = GenerationConfig.from_pretrained(folder)
    own.decoder_start_token_id = 9
    own.save_pretrained(folder)
    cfg.slm.name = str(folder)
    model = build_model(cfg).eval()
    assert start_token(model.slm) == 9
    model.save_pretrained(tmp_path / "saved")
    again = LLM2SLM.from_pretrained(tmp_path / "saved")
    assert start_token(again.slm) == 9
    texts = ["the old dog sees a house.", "two dogs"]
    assert again.generate_text(texts, max_new_tokens=9) == model.generate_text(texts, max_new_tokens=9)


@pytest.mark.parametrize("mode", ["memory", "add"])
def test_a_response_fits_into_the_positions_of_the_slm(zoo, mode) -> None:
    cfg = tiny_model_config(zoo, slm="gpt2", conditioning=mode)
    with pytest.raises(UserError, match=r"the SLM has 512 positions for .*data\.max_response_tokens=513 "):
        build_model(cfg, DataConfig(max_response_tokens=513))


@pytest.mark.slow
def test_memory_leaves_all_positions_of_a_decoder_to_start_token_and_answer(zoo) -> None:
    positions = 512
    cfg = tiny_model_config(zoo, slm="gpt2", conditioning="memory")
    model = build_model(cfg, DataConfig(max_prompt_tokens=4 * positions)).eval()
    assert model.slm.config.n_positions == positions
    text = "ö" * positions  # only the LLM processes the prompt: it may exceed the SLM's positions
    answer = model.generate(model.collator.batch_of_texts([text]), max_new_tokens=positions, min_new_tokens=positions)
    assert answer.shape == (1, positions)
    with pytest.raises(UserError, match=f"max_new_tokens={positions + 1} behind a prompt of 0 tokens"):
        model.generate(model.collator.batch_of_texts([text]), max_new_tokens=positions + 1)


@pytest.mark.parametrize("slm", ["t5", "gpt2"])
def test_a_hybrid_needs_a_conditioning(zoo, slm) -> None:
    refused(tiny_model_config(zoo, slm=slm, conditioning="none"), "conditioning=none.*possible: add")


@pytest.mark.parametrize("mode", ["replace", "prepend", "memory"])
def test_gate_is_for_add_only(zoo, mode) -> None:
    message = "gate=true.*use it with model.conditioning=add"
    refused(tiny_model_config(zoo, conditioning=mode, gate=True), message)


def test_a_gated_model_starts_as_the_slm_alone(zoo) -> None:
    gated = build_model(tiny_model_config(zoo, gate=True)).eval()
    alone = build_model(tiny_model_config(zoo, kind=SystemKind.slm)).eval()
    assert gated.generate_text(TEXTS, max_new_tokens=8) == alone.generate_text(TEXTS, max_new_tokens=8)
    assert "projector.gate" in gated.trainable_names()


def test_missing_models_are_refused(zoo, tmp_path) -> None:
    cfg = tiny_model_config(zoo)
    refused(with_slm(cfg, name=str(tmp_path / "no"), tokenizer=cfg.llm.name), r"no'?: no such folder")
    refused(with_slm(cfg, name="no/such-model", tokenizer=cfg.llm.name), "no/such-model")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    refused(with_slm(cfg, name=str(tmp_path / "broken"), tokenizer=cfg.llm.name), "broken.*cannot be read")
    with pytest.raises(UserError, match="builtin/nothing: no such built-in model"):
        locate("builtin/nothing")


def test_missing_names_are_refused(zoo) -> None:
    cfg = tiny_model_config(zoo)
    refused(replace(cfg, llm=LLMConfig()), r"model\.llm\.name is not set")
    refused(with_slm(cfg, name=None), r"model\.slm\.name is not set; .*model\.slm\.init=random")
    refused(with_slm(cfg, name=None, init=Init.random), r"model\.slm\.config\.model_type")
    refused(
        with_slm(replace(cfg, tokenizers=Tokenizers.offsets), name=None, init=Init.random, config=MINI_T5),
        r"model\.slm\.name is not set, so no tokenizer is known; set it \(or model\.slm\.tokenizer\)",
    )


def test_invalid_values_of_a_config_are_refused(zoo) -> None:
    def mini(**changes: object) -> ModelConfig:
        return with_slm(tiny_model_config(zoo), name=None, init=Init.random, config={**MINI_T5, **changes})

    refused(mini(d_modle=8), r"model\.slm\.config\.d_modle: a t5 has no such value; nearest: d_model")
    refused(mini(model_type="t55"), r"model\.slm\.config\.model_type=t55 is unknown; nearest: .*t5")
    refused(mini(d_model="wide"), r"model 'model\.slm\.config' cannot be read: .*d_model")
    gpt2 = {**MINI_GPT2, "n_head": 3}
    refused(with_slm(mini(), config=gpt2), r"model 'model\.slm\.config' cannot be read: .*divisible")
    refused(with_slm(mini(), config={"model_type": "vit"}), "a vit cannot generate text")
    refused(with_slm(tiny_model_config(zoo), config={"dropout": 0.0}), "config.dropout: .*nearest: dropout_rate")
    refused(with_slm(tiny_model_config(zoo), dtype="float8"), r"model\.slm\.dtype=float8.*float32, bfloat16, float16")


@pytest.mark.parametrize(
    ("config", "key", "value", "legal"),
    [
        (MINI_T5, "num_layers", -1, "at least 1"),
        (MINI_T5, "num_decoder_layers", 0, "at least 1"),
        (MINI_T5, "d_model", 0, "at least 1"),
        (MINI_T5, "num_hidden_layers", -1, "at least 1"),  # transformers' alias of num_layers
        (MINI_T5, "relative_attention_num_buckets", 0, "at least 1"),
        (MINI_T5, "dropout_rate", 1.0, "at least 0 and below 1"),
        (MINI_T5, "dropout_rate", -0.5, "at least 0 and below 1"),
        (MINI_GPT2, "n_layer", -1, "at least 1"),
        (MINI_GPT2, "n_head", 0, "at least 1"),
        (MINI_GPT2, "n_positions", -5, "at least 1"),
        (MINI_GPT2, "attn_pdrop", 2, "at least 0 and below 1"),
    ],
)
@pytest.mark.parametrize("side", ["slm", "llm"])
def test_invalid_sizes_of_a_model_are_refused(zoo, side, config, key, value, legal) -> None:
    """transformers builds a model without layers from num_layers=-1."""
    cfg = tiny_model_config(zoo, kind=SystemKind(side))
    own = replace(
        getattr(cfg, side), name=None, init=Init.random, tokenizer=cfg.llm.name, config={**config, key: value}
    )
    refused(replace(cfg, **{side: own}), rf"^model\.{side}\.config\.{key}={value}: must be {legal}$")
    named = replace(getattr(cfg, side), name=getattr(cfg, side).name, config={"num_layers": -1})
    refused(replace(cfg, **{side: named}), rf"^model\.{side}\.config\.num_layers=-1: must be at least 1$")


def test_different_vocabularies_are_refused_as_shared_tokenizers(zoo, tmp_path) -> None:
    cfg = tiny_model_config(zoo, tokenizers=Tokenizers.offsets)
    refused(replace(cfg, tokenizers=Tokenizers.shared), "vocabularies of .* differ; use model.tokenizers=offsets")
    model = build_model(cfg)
    assert model.collator.slm_tokenizer.get_vocab() == tiny_tokenizer("slm").get_vocab()
    assert model.collator.llm_tokenizer.get_vocab() == tiny_tokenizer("llm").get_vocab()


def test_a_tokenizer_given_for_the_slm_is_compared_with_that_of_the_llm(zoo) -> None:
    """With tokenizers=shared, for random and for pretrained weights."""
    cfg = tiny_model_config(zoo)
    other = tiny_model_config(zoo, tokenizers=Tokenizers.offsets).slm.name
    for init in Init:
        message = f"vocabularies of .*llm_t5 and {other} differ; use model.tokenizers=offsets or llm_tokens, or leave"
        refused(with_slm(cfg, init=init, tokenizer=other), message)
        assert build_model(with_slm(cfg, init=init, tokenizer=cfg.slm.name)).collator.shared
    alone = with_slm(replace(cfg, kind=SystemKind.slm), init=Init.random, tokenizer=other)
    assert build_model(alone).collator.slm_tokenizer.get_vocab() == tiny_tokenizer("slm").get_vocab()


def test_a_random_slm_alone_has_the_tokenizer_of_its_hybrid(zoo) -> None:
    """With init=random both use the LLM's tokenizer, so that they are comparable."""
    writer = tiny_model_config(zoo, tokenizers=Tokenizers.offsets).slm.name
    cfg = with_slm(tiny_model_config(zoo), name=writer, init=Init.random)
    hybrid, alone = build_model(cfg), build_model(replace(cfg, kind=SystemKind.slm))
    assert hybrid.collator.slm_tokenizer.get_vocab() == tiny_tokenizer("llm").get_vocab()
    assert alone.collator.slm_tokenizer.get_vocab() == tiny_tokenizer("llm").get_vocab()
    assert alone.slm.config.vocab_size == hybrid.slm.config.vocab_size
    without_llm = build_model(replace(cfg, kind=SystemKind.slm, llm=LLMConfig()))
    assert without_llm.collator.slm_tokenizer.get_vocab() == tiny_tokenizer("slm").get_vocab()


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    """An encoder-decoder LLM whose encoder counts positions from the first one, padding included."""
    folder, tokenizer = tmp_path_factory.mktemp("bart"), tiny_tokenizer("llm")
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=128, init_std=0.3,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(5)
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("mode", ["add", "replace", "prepend"])
def test_absolute_positions_of_the_llm_are_correct_with_a_decoder_only_slm(zoo, bart, mode) -> None:
    cfg = tiny_model_config(zoo, "t5", "gpt2", mode, Tokenizers.offsets)
    torch.manual_seed(7)
    model = build_model(replace(cfg, llm=LLMConfig(name=str(bart)))).eval()
    model.projector.layers[-1].weight.mul_(4)
    texts = [*TEXTS, "a"]
    batch = model.collator.batch_of_texts(texts)
    assert (batch.llm_mask_BP[:, 0] == 1).all() and (batch.slm_mask_BQ[:, -1] == 1).all()
    labels = torch.tensor([[7, 8, 9]] * len(texts))
    logits = model.logits(replace(batch, labels_BT=labels))
    own = AutoModelForSeq2SeqLM.from_pretrained(bart).eval().get_encoder()
    for row, text in enumerate(texts):
        alone = model.collator.batch_of_texts([text])
        real = batch.llm_mask_BP[row].bool()
        expected = own(input_ids=alone.llm_ids_BP).last_hidden_state[0]
        torch.testing.assert_close(model.represent(batch).reps_BPE[row][real], expected, rtol=1e-5, atol=1e-5)
        single = model.logits(replace(alone, labels_BT=labels[:1]))[0]
        torch.testing.assert_close(logits[row], single, rtol=1e-5, atol=1e-5)


def test_absolute_positions_are_correct_with_a_decoder_only_slm_that_pads_on_the_left(zoo, bart) -> None:
    """With shared tokenizers both models get the same padding; that of the LLM is moved to the right."""
    model = build_model(replace(tiny_model_config(zoo, "t5", "gpt2"), llm=LLMConfig(name=str(bart)))).eval()
    own = AutoModelForSeq2SeqLM.from_pretrained(bart).eval().get_encoder()
    texts = ["the old dog sees a house", "a"]
    batch = model.collator.batch_of_texts(texts)
    assert batch.llm_mask_BP is batch.slm_mask_BQ and batch.llm_mask_BP[1, 0] == 0
    for row, text in enumerate(texts):
        alone = model.collator.batch_of_texts([text])
        found = model.represent(batch).reps_BPE[row][batch.llm_mask_BP[row].bool()]
        expected = own(input_ids=alone.llm_ids_BP).last_hidden_state[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_layer_is_refused(zoo) -> None:
    cfg = tiny_model_config(zoo)
    refused(replace(cfg, llm=replace(cfg.llm, layer=3)), r"model\.llm\.layer=3: the LLM has layers 0 to 2")


def test_a_hybrid_on_random_llm_weights_cannot_be_loaded(zoo, tmp_path) -> None:
    cfg = tiny_model_config(zoo)
    build_model(replace(cfg, llm=replace(cfg.llm, init=Init.random))).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="built on an LLM with random weights"):
        LLM2SLM.from_pretrained(tmp_path)


def test_incomplete_weights_are_refused(zoo, tmp_path) -> None:
    from safetensors.torch import save_file

    folder = write_tiny_t5(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights.pop("decoder.block.1.layer.0.SelfAttention.q.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(with_slm(tiny_model_config(zoo), name=str(folder)), "weights do not fit.*decoder.block.1.*q.weight")


# The LLM that a hybrid was trained with


def test_a_changed_llm_is_refused_on_loading(zoo, tmp_path) -> None:
    cfg = tiny_model_config(zoo)
    build_model(cfg).save_pretrained(tmp_path / "model")
    copy = tmp_path / "copy"
    shutil.copytree(cfg.llm.name, copy)
    LLM2SLM.from_pretrained(tmp_path / "model", llm=copy)  # the same weights in another folder
    tensors = load_file(copy / "model.safetensors")
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    save_file(tensors | {name: tensors[name] + 1e-3}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is not the one it was trained with: its weights \(fingerprint \w{12}\)"):
        LLM2SLM.from_pretrained(tmp_path / "model", llm=copy)
    name = "decoder.block.1.layer.2.DenseReluDense.wo.weight"  # not used by the encoder
    save_file(tensors | {name: tensors[name] + 1e-3}, copy / "model.safetensors", metadata={"format": "pt"})
    LLM2SLM.from_pretrained(tmp_path / "model", llm=copy)


# The LLM's tokens as the SLM's prompt


def test_llm_tokens_are_embedded_by_the_llm_and_mapped(zoo) -> None:
    model = build_model(tiny_model_config(zoo, "t5", "gpt2", "add", Tokenizers.llm_tokens)).eval()
    batch = model.collator.batch_of_texts(["the old dog", "a house"])
    assert batch.slm_ids_BQ is batch.llm_ids_BP
    table = load_file(Path(model.config.llm["name"]) / "model.safetensors")["shared.weight"]
    z = model.projector(model.represent(batch).reps_BPE)
    own = table[batch.slm_ids_BQ] @ model.projector.tokens.weight.T
    real = batch.slm_mask_BQ.bool()
    torch.testing.assert_close(model.prefill(batch).states_BQD[real], (own + z)[real])
    texts = ["das Haus", ""]
    ids = model.collator.slm_tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = model.collator.encode([Example(i, "a", "a", t) for i, t in enumerate(texts)])
    assert [row.response for row in rows] == [[*i, model.collator.eos_id] for i in ids]


def test_replace_with_llm_tokens_has_no_embedding_map(zoo) -> None:
    model = build_model(tiny_model_config(zoo, "t5", "gpt2", "replace", Tokenizers.llm_tokens))
    assert model.projector.tokens is None
    assert all("tokens" not in name for name in model.trainable_names())


@pytest.mark.parametrize(
    ("option", "values", "mode"),
    [("pool", (2.0, 0.5), "prepend"), ("cross_every", (2, 3), "cross_attention"), ("kv_blocks", ([1], [2, 3]), "kv")],
)
def test_options_of_another_conditioning_are_refused(zoo, option, values, mode) -> None:
    """Whatever their type and default; the values that are set are named."""
    assert option in conditioning.get(mode).options
    cfg = tiny_model_config(zoo, "t5", "gpt2", "add", Tokenizers.offsets)
    build_model(cfg)
    for value in values:
        message = f"model.{option}={value} is for model.conditioning={mode}; it is add"
        refused(replace(cfg, **{option: value}), re.escape(message))


def test_every_option_is_named_above() -> None:
    known = {option for name in conditioning.names() for option in conditioning.get(name).options}
    assert known == {"pool", "cross_every", "kv_blocks"}


def test_pool_is_for_prepend_only(zoo, tmp_path) -> None:
    cfg = tiny_model_config(zoo, "t5", "gpt2", "prepend")
    long = "the old dog sees a house. " * 3
    whole, pooled = build_model(cfg).eval(), build_model(replace(cfg, pool=2.0)).eval()
    batch = whole.collator.batch_of_texts([long])
    own, read = batch.slm_ids_BQ.shape[1], batch.llm_ids_BP.shape[1]
    assert whole.prefill(batch).states_BQD.shape[1] == own + read > own + 2 == pooled.prefill(batch).states_BQD.shape[1]
    pooled.save_pretrained(tmp_path)
    assert torch.equal(LLM2SLM.from_pretrained(tmp_path).prefill(batch).states_BQD, pooled.prefill(batch).states_BQD)
    refused(replace(cfg, pool=0.0), "model.pool=0.0: must be a number above 0")
