"""Trained tokenizers are lossless, compatible with Hugging Face, and reproducible."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples
from transformers import AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm2slm.data.tokenization.tokenizer import load_tokenizer, train_tokenizer
from llm2slm.types import UserError

TEXTS = [f"The {a} farmer sells {n} old houses.\nDer {a} Bauer." for a in ("big", "small", "tall") for n in range(30)]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    return train_tokenizer(TEXTS, 300, request.param)


@examples(150)
@given(text=st.text() | st.text(alphabet=" \n\t0123aä漢😀</s><pad>", max_size=30))
def test_any_text_is_decoded_exactly(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == [*plain, 1]
    assert not {0, 1} & set(plain)


@pytest.mark.parametrize("text", ["", " a  b ", "x\n\ny\r\n", "don ' t , no .", "👩‍👩‍👧 é é", "a</s>b<pad><unk>"])
def test_chosen_texts_are_decoded_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_trained_tokenizers_have_pad_and_eos_and_at_most_the_given_size(tokenizer):
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 1)
    assert 258 < len(tokenizer) <= 300


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_digits_are_single_tokens(kind):
    tokenizer = train_tokenizer(["the year 2024 and 2024"] * 50, 280, kind)
    assert tokenizer.tokenize("2024") == ["2", "0", "2", "4"]
    assert not [piece for piece in tokenizer.get_vocab() if sum(map(str.isdigit, piece)) > 1]


def test_words_of_the_training_texts_have_fewer_tokens(tokenizer):
    assert len(tokenizer.tokenize(" farmer sells")) < len(tokenizer.tokenize(" qzwrjx vbkpq"))


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        text = "Die großen Häuser </s> 12\n"
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text
        assert loaded(text, return_offsets_mapping=True)["offset_mapping"][-1] == (0, 0)
        assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)


def test_training_bpe_is_reproducible():
    first, second = (json.loads(train_tokenizer(TEXTS, 290).backend_tokenizer.to_str()) for _ in range(2))
    assert first == second


def test_invalid_arguments_are_refused():
    with pytest.raises(UserError, match="tokenizer kind 'word' is unknown; use bpe or unigram"):
        train_tokenizer(TEXTS, 300, "word")
    with pytest.raises(UserError, match="tokenizer of 257 entries: too small; a bpe one takes at least 258"):
        train_tokenizer(TEXTS, 257)
    with pytest.raises(UserError, match="tokenizer of 258 entries: too small; a unigram one takes at least 259"):
        train_tokenizer(TEXTS, 258, "unigram")


def test_a_missing_tokenizer_is_reported_on_one_line(tmp_path):
    for name in (str(tmp_path), str(tmp_path / "nothing"), "nobody/no-such-model"):
        with pytest.raises(UserError) as caught:
            load_tokenizer(name)
        assert str(caught.value).startswith(f"tokenizer {name}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["t5", "mbart", "bert", "gpt2", "llama", "pegasus", "qwen2", "xglm"])
def test_a_folder_without_a_vocabulary_is_refused(tmp_path, model_type):
    """transformers builds a tokenizer of special tokens for most of them."""
    CONFIG_MAPPING[model_type]().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(tmp_path))
    told = str(caught.value)
    assert told.startswith(f"tokenizer {tmp_path}: the folder has no vocabulary (a file as ")
    assert told.endswith("by model.slm.tokenizer= (model.llm.tokenizer= for the LLM)")
    assert ".json" in told and "\n" not in told
