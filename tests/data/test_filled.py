"""The built-in tokenizer with a vocabulary of another size."""

import pytest

from llm2slm.config import LLMConfig, ModelConfig
from llm2slm.data.tokenization.filled import filled_tokenizer
from llm2slm.data.tokenization.tokenizer import load_tokenizer
from llm2slm.models.build import load_tokenizers
from llm2slm.models.loading.configs import locate
from llm2slm.types import SystemKind


def test_the_filled_tokenizer_has_the_size_and_the_built_in_tokens():
    built_in, filled = load_tokenizer(locate("builtin/llm")), filled_tokenizer("filled:32128")
    assert len(filled) == 32128
    text = "Two men are cooking, 12 <unused_9> é"
    assert filled(text)["input_ids"] == built_in(text)["input_ids"]
    assert filled.decode(filled(text)["input_ids"], skip_special_tokens=True) == text
    assert (filled.eos_token_id, filled.pad_token_id) == (built_in.eos_token_id, built_in.pad_token_id)
    assert filled.decode([32127]) == "<unused_32127>"


def test_a_configuration_can_name_a_filled_tokenizer():
    cfg = ModelConfig(kind=SystemKind.llm, llm=LLMConfig(name="anything", tokenizer="filled:5000"))
    assert len(load_tokenizers(cfg)[0]) == 5000


@pytest.mark.parametrize("name", ["filled:", "filled:many", "someone/filled:9", "builtin/llm"])
def test_other_names_are_not_filled_tokenizers(name):
    assert filled_tokenizer(name) is None
