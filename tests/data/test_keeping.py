"""Added tokens for text that a tokenizer loses: texts are decoded exactly, ordinary words keep their ids."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples
from tokenizers import AddedToken
from transformers import AutoTokenizer, MBartConfig, PegasusConfig, T5Config

from llm2slm.data.collate import Collator
from llm2slm.data.tokenization.keeping import WHITE_SPACE, count_characters, keeping, rewritten
from llm2slm.data.tokenization.tokenizer import first_added, load_tokenizer
from llm2slm.types import UserError
from tests.data.kinds import KINDS, TEXTS
from tests.data.test_collate import example

CODE = "def f(x):\n\tif x > {1}:\n        return  [漢, 'é']\n\n    else:\r\n\t\tpass   # Ｆ ﬁ … e\u0301\u3000~"
LOSES, LOSSLESS, OTHERS = ("t5", "xlmr"), ("llama", "bytes_bpe"), ("bert", "words")


@functools.cache
def pair(kind: str):
    tokenizer = KINDS[kind]()
    return tokenizer, keeping(tokenizer, True, count_characters([CODE]), 100)


def read_back(tokenizer, *texts: str) -> list[str]:
    collator = Collator(tokenizer)
    return collator.decode([row.response for row in collator.encode([example(text, text) for text in texts])])


@pytest.mark.parametrize("kind", LOSES)
@examples(150)
@given(text=st.text(alphabet=sorted(set(CODE) | set("The farmer</s>")), max_size=30))
def test_any_text_of_kept_characters_is_decoded_exactly(kind: str, text: str) -> None:
    tokenizer, kept = pair(kind)
    texts = [text.strip(), CODE, "</s>", "<unk>{", "a  b", "a" + " " * 37 + "b"]
    assert read_back(kept, *texts) == texts
    assert read_back(tokenizer, CODE) != [CODE]


@pytest.mark.parametrize("kind", LOSES)
def test_ordinary_texts_keep_their_ids_and_the_limit_selects_the_most_frequent(kind: str) -> None:
    tokenizer, kept = pair(kind)
    assert kept(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert (len(tokenizer), first_added(tokenizer), first_added(kept)) == (len(tokenizer), None, len(tokenizer))
    counts = Counter({"漢": 5, "{": 9, "}": 9, "T": 100, "\n": 2, "é": 1})
    some = keeping(tokenizer, False, counts, 3)
    assert some.convert_ids_to_tokens(list(range(len(tokenizer), len(some)))) == ["{", "}", "漢"]
    white = keeping(tokenizer, True, {}, 0)
    assert white.convert_ids_to_tokens(list(range(len(tokenizer), len(white)))) == list(WHITE_SPACE)
    assert not any(token.special for i, token in white.added_tokens_decoder.items() if i >= len(tokenizer))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_tokenizer_is_returned_unchanged(kind: str) -> None:
    tokenizer, kept = pair(kind)
    assert kept is tokenizer
    assert keeping(tokenizer, True, {"▁": 1}, 9) is tokenizer
    assert rewritten(tokenizer, ["▁", "é"]) == (["▁"] if kind == "llama" else [])


@pytest.mark.parametrize("kind", LOSES)
def test_a_character_that_the_decoder_rewrites_is_left_out(kind: str) -> None:
    """The decoder writes every ▁ as a space, in an added token too."""
    tokenizer = KINDS[kind]()
    counts = Counter({"▁": 9, "{": 5, "漢": 3})
    kept = keeping(tokenizer, False, counts, 2)
    assert kept.convert_ids_to_tokens(list(range(len(tokenizer), len(kept)))) == ["{", "漢"]
    assert read_back(kept, "a{b 漢") == ["a{b 漢"]
    assert rewritten(tokenizer, counts) == ["▁"]
    assert keeping(tokenizer, False, {"▁": 1}, 2) is tokenizer


@pytest.mark.parametrize("kind", OTHERS)
def test_a_tokenizer_that_loses_even_added_tokens_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"loses '\\n' even as an added token: .*model.slm.tokenizer=train:8000"):
        keeping(KINDS[kind](), True, {}, 0)


@pytest.mark.parametrize(("kind", "config"), [("t5", T5Config), ("xlmr", MBartConfig), ("t5", PegasusConfig)])
def test_a_tokenizer_with_added_tokens_saved_next_to_a_model_is_loaded_unchanged(tmp_path, kind: str, config) -> None:
    """The tokenizer class of the model would build other rules."""
    _, kept = pair(kind)
    config().save_pretrained(tmp_path)
    kept.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded(CODE)["input_ids"] == kept(CODE)["input_ids"]
        assert loaded.eos_token_id == kept.eos_token_id and len(loaded) == len(kept)
        assert read_back(loaded, CODE) == [CODE]
        assert first_added(loaded) == first_added(kept)
    assert keeping(loaded, True, count_characters([CODE]), 100) is loaded


def test_unnamed_special_tokens_stay_special() -> None:
    tokenizer = KINDS["t5"]()
    tokenizer.add_tokens([AddedToken("<sep>", special=True)])
    kept = keeping(tokenizer, True, {}, 0)
    marked = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert {token.content for token in kept.added_tokens_decoder.values() if token.special} == marked
    assert len(marked) == 104  # three names, a hundred sentinels, and this one
