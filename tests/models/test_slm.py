"""The common interface of both SLM kinds, against forward and generate of transformers on token ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    GemmaConfig,
    LlamaConfig,
    MarianConfig,
    MBartConfig,
    PegasusConfig,
    PreTrainedModel,
)

from llm2slm.models import slm as language_model
from llm2slm.models.conditioning.memory import drop_encoder
from llm2slm.models.loading.configs import read_config
from llm2slm.models.prompt import Prompt, embed, embed_scale
from llm2slm.testing import write_tiny_gpt2, write_tiny_t5
from llm2slm.types import IGNORE_INDEX, UserError

PROMPTS = [[5, 9, 40, 200, 7, 1], [33, 1], [70, 71, 72, 73]]
RESPONSES = [[8, 250, 1], [9, 10, 11, 12, 1], [1]]
FEATURES = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, "pad_token_id": 0}


def load(folder: Path) -> PreTrainedModel:
    config = read_config(str(folder))
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(folder, config=config).eval()


@pytest.fixture(scope="module", params=["t5 2+3", "t5 3+1", "gpt2"])
def slm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tmp_path_factory.mktemp("slm")
    if request.param == "gpt2":
        return load(write_tiny_gpt2(folder))
    deep = {"t5 2+3": (2, 3), "t5 3+1": (3, 1)}[request.param]
    return load(write_tiny_t5(folder, encoder_layers=deep[0], decoder_layers=deep[1]))


def padded(rows: list[list[int]], pad: int, left: bool) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[pad] * (width - len(r)) + r if left else r + [pad] * (width - len(r)) for r in rows])


def response_logits(slm: PreTrainedModel, prompt: Prompt, labels_BT: Tensor) -> Tensor:
    """logits_BTV under teacher forcing."""
    logits_BTV: Tensor = language_model.response_output(slm, prompt, labels_BT).logits
    return logits_BTV


def prompt_of(slm: PreTrainedModel) -> Prompt:
    left = not slm.config.is_encoder_decoder
    mask = padded([[1] * len(row) for row in PROMPTS], 0, left)
    return Prompt(embed(slm, padded(PROMPTS, 0, left)), mask)


@torch.no_grad()
def test_response_logits_equal_those_of_transformers(slm) -> None:
    logits_BTV = response_logits(slm, prompt_of(slm), padded(RESPONSES, IGNORE_INDEX, left=False))
    assert logits_BTV.shape == (3, 5, slm.config.vocab_size)
    for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        if slm.config.is_encoder_decoder:
            own = slm(input_ids=torch.tensor([prompt]), labels=torch.tensor([response])).logits[0]
        else:
            own = slm(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(logits_BTV[b, : len(response)], own, rtol=1e-5, atol=1e-5)


TINY = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
ENCODER_DECODER = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "decoder_start_token_id": 0,
    "init_std": 0.3,
}  # fmt: skip
LLAMA = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES = {
    "pegasus": (PegasusConfig(**TINY, **ENCODER_DECODER, scale_embedding=True), 4.0),
    "pegasus unscaled": (PegasusConfig(**TINY, **ENCODER_DECODER, scale_embedding=False), 1.0),
    "marian": (MarianConfig(**TINY, **ENCODER_DECODER, scale_embedding=True, decoder_vocab_size=300), 4.0),
    "bart": (BartConfig(**TINY, **ENCODER_DECODER, scale_embedding=True), 1.0),  # scales in its embedding layer
    "llama": (LlamaConfig(**TINY, **LLAMA), 1.0),
    "gemma": (GemmaConfig(**TINY, **LLAMA, head_dim=8), 1.0),
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_equal_those_that_the_model_computes_from_ids(family, dtype) -> None:
    """Some models scale the embeddings of ids only: with plain embeddings, the result differs silently."""
    config, scale = FAMILIES[family]
    torch.manual_seed(3)
    slm = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)
    slm = slm.to(dtype).train()
    assert embed_scale(slm) == scale
    assert all(module.training for module in slm.modules())
    slm.eval()
    ids = torch.tensor([PROMPTS[0]])
    labels = torch.tensor([RESPONSES[1]])
    ours = response_logits(slm, Prompt(embed(slm, ids), torch.ones_like(ids)), labels)
    if config.is_encoder_decoder:
        own = slm(input_ids=ids, labels=labels).logits
    else:
        own = slm(input_ids=torch.cat([ids, labels], 1)).logits[:, ids.shape[1] - 1 : -1]
    exact = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(ours, own, **exact)


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        MBartConfig(**TINY, **ENCODER_DECODER),  # its training in transformers would start with the last label
        BartConfig(**TINY, **(ENCODER_DECODER | {"decoder_start_token_id": 7})),
        MBartConfig(**(TINY | ENCODER_DECODER | {"decoder_start_token_id": None, "bos_token_id": 5})),
    ],
    ids=["mbart", "bart", "no start token"],
)
def test_training_uses_the_start_token_of_generation(config) -> None:
    """Teacher-forced on its greedy answer, a model has the inputs of `generate` from the first token."""
    torch.manual_seed(3)
    slm = AutoModelForSeq2SeqLM.from_config(config).eval()
    slm.generation_config.forced_eos_token_id = None
    prompt = prompt_of(slm)
    generated = language_model.generate(slm, prompt, **FEATURES, return_dict_in_generate=True, output_logits=True)
    ids = generated.sequences
    logits = response_logits(slm, prompt, ids)
    torch.testing.assert_close(logits, torch.stack(generated.logits, 1), rtol=1e-4, atol=1e-4)
    short = torch.cat([ids[:, :2], torch.full_like(ids[:, 2:], IGNORE_INDEX)], 1)
    assert torch.equal(response_logits(slm, prompt, short)[:, :2], logits[:, :2])


def test_a_model_without_a_start_token_is_refused() -> None:
    names = {"decoder_start_token_id": None, "bos_token_id": None}
    slm = AutoModelForSeq2SeqLM.from_config(MBartConfig(**(TINY | ENCODER_DECODER | names)))
    with pytest.raises(UserError, match="SLM mbart: none of decoder_start_token_id, bos_token_id is set"):
        response_logits(slm, prompt_of(slm), padded(RESPONSES, IGNORE_INDEX, left=False))


def test_a_model_whose_embeddings_are_not_equivalent_to_ids_is_refused(tmp_path) -> None:
    slm = load(write_tiny_gpt2(tmp_path))
    slm.register_forward_pre_hook(
        lambda _, __, given: (
            ((), {**given, "inputs_embeds": given["inputs_embeds"] * 3}) if "inputs_embeds" in given else None
        ),
        with_kwargs=True,
    )
    with pytest.raises(UserError, match="SLM gpt2: embeddings of token ids give other outputs"):
        embed(slm, torch.tensor([[5]]))


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_equals_that_of_transformers(slm, beams) -> None:
    ours = language_model.generate(slm, prompt_of(slm), **FEATURES, num_beams=beams)
    assert ours.shape == (3, 7)
    for b, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        own = slm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **FEATURES, num_beams=beams)[0]
        assert ours[b].tolist() == own[1 if slm.config.is_encoder_decoder else len(prompt) :].tolist()


@torch.no_grad()
def test_the_encoders_output_replaces_the_encoder(tmp_path) -> None:
    """Without its encoder, the model given the encoder's output generates the same responses."""
    slm = load(write_tiny_t5(tmp_path))
    mask = padded([[1] * len(row) for row in PROMPTS], 0, left=False)
    states = slm.encoder(input_ids=padded(PROMPTS, 0, left=False), attention_mask=mask).last_hidden_state
    labels = padded(RESPONSES, IGNORE_INDEX, left=False)
    whole = prompt_of(slm)
    logits, ids = response_logits(slm, whole, labels), language_model.generate(slm, whole, **FEATURES)
    names = set(slm.state_dict())

    drop_encoder(slm)
    memory = Prompt(states, mask, cross_attended=True)
    assert torch.equal(response_logits(slm, memory, labels), logits)
    assert torch.equal(language_model.generate(slm, memory, **FEATURES), ids)
    assert names - set(slm.state_dict()) == {name for name in names if name.startswith("encoder.")}
    with pytest.raises(RuntimeError, match="has no encoder"):
        response_logits(slm, whole, labels)


def test_the_output_layer_gets_contiguous_inputs(tmp_path, monkeypatch) -> None:
    """transformers passes a slice of the last position, for which torch copies a bfloat16 matrix once per row."""
    write_tiny_gpt2(tmp_path)
    slm = load(tmp_path)
    found: list[bool] = []
    head, forward = slm.get_output_embeddings(), slm.get_output_embeddings().forward
    monkeypatch.setattr(head, "forward", lambda x: found.append(x.is_contiguous()) or forward(x))

    def generated() -> Tensor:
        found.clear()
        embeds = torch.randn(2, 5, slm.config.hidden_size, generator=torch.Generator().manual_seed(0))
        prompt = Prompt(embeds, torch.ones(2, 5, dtype=torch.int64))
        ids: Tensor = language_model.generate(slm, prompt, max_new_tokens=3, min_new_tokens=3)
        return ids

    before = generated()
    assert found[0] is False, "transformers no longer slices: contiguous_head can go"
    for _ in range(2):
        assert language_model.contiguous_head(slm) is slm
    assert len(head._forward_pre_hooks) == 1
    assert torch.equal(generated(), before) and all(found)
