"""The shapes of published models: the number of parameters is that of the Hub."""

import pytest

from llm2slm.models import families
from llm2slm.models.known_configs import known, known_config

PUBLISHED = {
    "google-t5/t5-small": 60_506_624, "google-t5/t5-base": 222_903_552, "google-t5/t5-large": 737_668_096,
    "google-t5/t5-3b": 2_851_598_336, "google-t5/t5-11b": 11_307_321_344,
    "google/flan-t5-small": 76_961_152, "google/flan-t5-base": 247_577_856, "google/flan-t5-large": 783_150_080,
    "google/flan-t5-xl": 2_849_757_184, "google/flan-t5-xxl": 11_135_332_352,
    "google/mt5-small": 300_176_768, "google/mt5-base": 582_401_280, "google/mt5-large": 1_229_581_312,
    "google/mt5-xl": 3_742_619_648, "google/mt5-xxl": 12_921_057_280,
    "google/t5gemma-9b-2b-ul2": 12_292_375_296,
    "openai-community/gpt2": 124_439_808, "openai-community/gpt2-medium": 354_823_168,
    "openai-community/gpt2-large": 774_030_080, "openai-community/gpt2-xl": 1_557_611_200,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384, "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824, "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008, "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768, "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688, "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920, "Qwen/Qwen3-8B": 8_190_735_360,
}  # fmt: skip
"""Parameters of the published weights; for Qwen3-0.6B without the second copy of its tied embeddings."""


def elements(config) -> int:
    stack = families.decoder_stack(config)
    encoder = families.encoder_stack(config).weights if families.is_encoder_decoder(config) else 0
    return encoder + stack.weights + stack.memory_weights + families.whole_tables(config)


def test_every_shape_has_a_published_count():
    assert set(PUBLISHED) == set(known())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_its_published_number_of_parameters(name):
    """Except norms, biases and position embeddings, which are less than 1 %."""
    found = elements(known_config(name).to_dict())
    assert 0 <= 1 - found / PUBLISHED[name] < 0.01


def test_unknown_names_have_no_config():
    assert known_config("me/my-model") is None
