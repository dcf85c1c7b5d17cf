"""Cut vocabularies: texts that they were cut for keep their tokens, other texts lose nothing more than before."""

from __future__ import annotations

import functools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2Tokenizer, T5Config

from llm2slm.data.collate import Collator
from llm2slm.data.tokenization.cutting import cut
from llm2slm.data.tokenization.keeping import count_characters, keeping
from llm2slm.data.tokenization.tokenizer import cut_of, first_added, load_tokenizer, original_ids
from llm2slm.testing import tiny_tokenizer
from llm2slm.types import UserError
from tests.data.kinds import KINDS
from tests.data.test_collate import example

CORPUS = [
    "The big farmer sells old houses",
    "it's true. Ein tall Bauer, he said",
    "farm 17 </s> <unk> qx",
    "The small #1",
]
"""Texts with whole words, words in pieces, names of control tokens, and a word that no tokenizer knows."""


def ids_of(tokenizer, texts=CORPUS) -> list[list[int]]:
    """Ids by a collator: content never contains a control token."""
    rows = Collator(tokenizer, decoder_only=True).encode([example(text, text, i) for i, text in enumerate(texts)])
    return [[*row.slm, *row.response] for row in rows]


def cut_for(tokenizer, texts=CORPUS):
    used = {token for row in ids_of(tokenizer, texts) for token in row}
    return cut(tokenizer, used, {character for text in texts for character in text})


@functools.cache
def pair(kind: str):
    tokenizer = KINDS[kind]()
    return tokenizer, cut_for(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_keep_their_tokens_and_ids_keep_their_order(kind: str) -> None:
    tokenizer, made = pair(kind)
    original = original_ids(made)
    assert len(made) < len(tokenizer)
    assert original == sorted(set(original)) and len(original) == len(made)
    assert [[original[i] for i in row] for row in ids_of(made)] == ids_of(tokenizer)
    names = tokenizer.convert_ids_to_tokens(original)
    assert made.convert_ids_to_tokens(list(range(len(made)))) == names
    assert cut_of(made).record["kept"] == len(made) and cut_of(made).record["of"] == len(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_tokens_around_a_text_are_kept(kind: str) -> None:
    tokenizer, made = pair(kind)
    original = original_ids(made)
    for name, token in tokenizer.special_tokens_map.items():
        assert made.special_tokens_map[name] == token
        assert original[made.convert_tokens_to_ids(token)] == tokenizer.convert_tokens_to_ids(token)
    assert {str(t) for t in tokenizer.added_tokens_decoder.values()} <= {
        str(t) for t in made.added_tokens_decoder.values()
    }
    marked = {token.content for token in made.added_tokens_decoder.values() if token.special}
    assert marked == {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for text in (CORPUS[0], [CORPUS[0], CORPUS[1]]):
        found = made(text if isinstance(text, str) else text[0], None if isinstance(text, str) else text[1])
        known = tokenizer(text if isinstance(text, str) else text[0], None if isinstance(text, str) else text[1])
        assert [original[i] for i in found["input_ids"]] == known["input_ids"]


@pytest.mark.parametrize("kind", ["llama", "bytes_bpe"])
@examples(100)
@given(text=st.text(alphabet=sorted(set("The farmer sells") | set("zé漢🦆\n\t |#</>")), max_size=30))
def test_any_other_text_is_decoded_from_its_bytes(kind: str, text: str) -> None:
    _, made = pair(kind)
    rows = Collator(made).encode([example("x", text)])
    assert Collator(made).decode([rows[0].response]) == [text]


@pytest.mark.parametrize("kind", ["t5", "xlmr", "bert"])
def test_other_words_are_encoded_by_single_characters(kind: str) -> None:
    """ASCII characters of the whole vocabulary are kept: no known text becomes unknown."""
    tokenizer, made = pair(kind)
    for text in ("zebra", "Xylophone wax", "hjk"):
        assert made.unk_token_id not in made(text)["input_ids"]
        assert (
            made.decode(made(text)["input_ids"], skip_special_tokens=True).strip()
            == tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip()
        )


def byte_bpe(size: int, seed: int, ignore_merges: bool) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    draw = random.Random(seed)
    words = ["".join(draw.choices("aabbcdé", k=draw.randint(1, 9))) for _ in range(400)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [" ".join(words)], trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    rules = json.loads(core.to_str())
    rules["model"]["ignore_merges"] = ignore_merges
    if ignore_merges:  # like Llama 3: every split of an entry into two entries is a merge
        vocab = sorted(rules["model"]["vocab"], key=rules["model"]["vocab"].get)
        pairs = [(w[:n], w[n:]) for w in vocab for n in range(1, len(w))]
        rules["model"]["merges"] = [[a, b] for a, b in pairs if {a, b} <= rules["model"]["vocab"].keys()]
        rules["model"]["vocab"]["cababab"] = len(vocab)  # reached as a whole word only
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(rules)), eos_token="<end>")


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_bpe_makes_the_same_tokens_of_random_texts(seed: int, ignore_merges: bool) -> None:
    tokenizer, draw = byte_bpe(380, seed, ignore_merges), random.Random(seed)
    texts = [" ".join("".join(draw.choices("aabbcdé", k=draw.randint(1, 12))) for _ in range(6)) for _ in range(12)] + [
        "cababab aababab"
    ]
    made = cut_for(tokenizer, texts)
    original = original_ids(made)
    assert 257 < len(made) < len(tokenizer)
    assert [[original[i] for i in row] for row in ids_of(made, texts)] == ids_of(tokenizer, texts)
    other = "".join(draw.choices("abcdé", k=50))
    assert made.decode(made(other)["input_ids"]) == other


def test_the_unigram_cost_of_an_unknown_character_is_kept() -> None:
    """It is ten above the cost of the worst entry; without that entry, the unknown token would be chosen here."""
    vocab = [("<unk>", 0.0), ("</s>", 0.0), ("a", -2.0), ("ébé", -11.0), ("zz", -30.0), ("b", -1.0)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(vocab, unk_id=0)), unk_token="<unk>", eos_token="</s>"
    )
    texts = ["aébéb"]
    assert tokenizer.convert_ids_to_tokens(tokenizer(texts[0])["input_ids"]) == ["a", "ébé", "b"]
    made = cut(tokenizer, {2, 3, 5}, set("aéb"))
    assert made.convert_ids_to_tokens(made(texts[0])["input_ids"]) == ["a", "ébé", "b"]


def qwen() -> Qwen2Tokenizer:
    """The tokenizer class of a model, which is loaded for a model of that kind."""
    rules = json.loads(KINDS["bytes_bpe"]().backend_tokenizer.to_str())["model"]
    return Qwen2Tokenizer(vocab=rules["vocab"], merges=[tuple(pair) for pair in rules["merges"]])


@pytest.mark.parametrize(
    ("make", "config"), [(KINDS["t5"], T5Config), (KINDS["bytes_bpe"], LlamaConfig), (qwen, Qwen2Config)]
)
def test_a_cut_tokenizer_saved_next_to_a_model_is_loaded_unchanged(tmp_path, make, config) -> None:
    """With a chat template, and an unnamed control token."""
    tokenizer = make()
    tokenizer.add_tokens([AddedToken("<sep>", special=True)])
    tokenizer.chat_template = "{% for m in messages %}<sep>{{ m.content }}{% endfor %}"
    made = cut_for(tokenizer)
    config().save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        assert ids_of(loaded) == ids_of(made)
        assert (original_ids(loaded), loaded.chat_template) == (original_ids(made), tokenizer.chat_template)
        assert loaded.special_tokens_map == made.special_tokens_map
        assert loaded("<sep>")["input_ids"][0] == made.convert_tokens_to_ids("<sep>")


@pytest.mark.parametrize("kind", ["t5", "xlmr"])
def test_added_tokens_stay_at_the_end_and_have_no_original_id(kind: str) -> None:
    tokenizer = KINDS[kind]()
    kept = keeping(tokenizer, True, count_characters(["{漢}"]), 9)
    texts = [*CORPUS, "if x:\n\t{漢}  y"]
    made = cut_for(kept, texts)
    entries = cut_of(made)
    added = len(kept) - len(tokenizer)
    assert added > 5 and first_added(made) == len(made) - added == len(entries.ids)
    assert entries.rows == [*entries.ids, *range(len(tokenizer), len(kept))]
    assert entries.of == len(tokenizer)
    assert [[entries.rows[i] for i in row] for row in ids_of(made, texts)] == ids_of(kept, texts)
    assert Collator(made).decode([ids_of(made, texts)[-1]])[0].strip()


def test_a_cut_vocabulary_is_cut_again() -> None:
    """Original ids are those of the first vocabulary; rows are those of the model, cut already or not yet."""
    tokenizer, once = pair("bytes_bpe")
    used = {token for row in ids_of(once, CORPUS[:1]) for token in row}
    again, not_yet = (cut(once, used, set(CORPUS[0]), whole_model=whole) for whole in (False, True))
    assert len(again) < len(once) < len(tokenizer)
    for made in (again, not_yet):
        original = original_ids(made)
        assert [[original[i] for i in row] for row in ids_of(made, CORPUS[:1])] == ids_of(tokenizer, CORPUS[:1])
        assert cut_of(made).of == len(tokenizer)
    assert [original_ids(once)[row] for row in cut_of(again).rows] == original_ids(again)
    assert cut_of(not_yet).rows == original_ids(not_yet)
    assert cut_of(again).record == cut_of(not_yet).record


def test_a_slow_tokenizer_is_refused_and_tiny_vocabularies_are_cut() -> None:
    core = Tokenizer(models.BPE({"a": 0, "</s>": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")

    class Slow:
        is_fast, name_or_path = False, "slow"

    with pytest.raises(UserError, match=r"^tokenizer 'slow': its vocabulary cannot be cut \(model.slm.vocab=corpus\)"):
        cut(Slow(), set(), set())
    gaps = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>")), unk_token="<unk>"
    )
    assert len(cut(gaps, {0}, set("a"))) == 3  # single characters and <unk>
    assert cut(tokenizer, {0}, set("a")).get_vocab() == {"a": 0, "</s>": 1}


def test_single_bytes_are_kept_and_unused_entries_are_removed() -> None:
    tokenizer = tiny_tokenizer()
    made = cut_for(tokenizer, ["the old house"])
    gone = set(tokenizer.get_vocab()) - set(made.get_vocab())
    assert gone and not any(len(token) == 1 for token in gone)
    assert {"house", "ld"} & set(tokenizer.get_vocab()) <= set(made.get_vocab())
