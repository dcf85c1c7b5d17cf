"""Token ids, masks, labels, overlong texts and alignment, each compared with an independent computation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llm2slm.data.collate import Collator
from llm2slm.data.tokenization.align import Spans, alignment
from llm2slm.data.tokenization.prompts import Frame
from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.types import Example, Overlong, UserError

TEXTS = [f"The {a} farmer sells {n} old houses.\nDer {a} Bauer." for a in ("big", "small", "tall") for n in range(20)]
WORDS = ["<pad>", "</s>", "[CLS]", "[SEP]", "[UNK]", "the", "old", "house", "a", "b", "c", "d"]


@pytest.fixture(scope="module")
def slm():
    return train_tokenizer(TEXTS, 320)


@pytest.fixture(scope="module")
def llm():
    return train_tokenizer([text.upper() for text in TEXTS] + ["ab", "bc"], 275, "unigram")


def word_tokenizer(specials=True, pad="<pad>", eos="</s>", lower=False):
    """A word-level tokenizer that drops white space; with `specials`, [CLS] before and [SEP] after the text."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lower:
        core.normalizer = normalizers.Lowercase()
    if specials:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, eos_token=eos, **names)


def example(prompt="the old house", target="a b", index=0):
    return Example(index=index, source=prompt, prompt=prompt, target=target)


def encode(collator, item):
    (encoded,) = collator.encode([item])
    return encoded


def batch_of(collator, *examples):
    return collator(collator.encode(examples))


# Ids, masks, labels


def test_encoder_decoder_batch_is_padded_on_the_right():
    batch = batch_of(Collator(word_tokenizer()), example(index=4), example("the", "a b c", index=9))
    assert batch.slm_ids_BQ.tolist() == [[2, 5, 6, 7, 3], [2, 5, 3, 0, 0]]
    assert batch.slm_mask_BQ.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.labels_BT.tolist() == [[8, 9, 1, -100], [8, 9, 10, 1]]
    assert batch.indices == (4, 9)
    assert batch.llm_ids_BP is None and batch.llm_mask_BP is None and batch.align_BQP is None
    assert {t.dtype for t in (batch.slm_ids_BQ, batch.slm_mask_BQ, batch.labels_BT)} == {torch.int64}


def test_decoder_only_prompts_are_padded_on_the_left_and_labels_on_the_right():
    collator = Collator(word_tokenizer(), word_tokenizer(False), decoder_only=True)
    batch = batch_of(collator, example(), example("the", "a b c"))
    assert batch.slm_ids_BQ.tolist() == [[2, 5, 6, 7, 3], [0, 0, 2, 5, 3]]
    assert batch.slm_mask_BQ.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert batch.llm_ids_BP.tolist() == [[5, 6, 7], [5, 0, 0]]  # padded on the right, for absolute positions
    assert batch.llm_mask_BP.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels_BT.tolist() == [[8, 9, 1, -100], [8, 9, 10, 1]]


def test_shared_tokenizer_gives_the_same_tensors():
    tokenizer = word_tokenizer()
    batch = batch_of(Collator(tokenizer, tokenizer, align=True), example())
    assert batch.llm_ids_BP is batch.slm_ids_BQ
    assert batch.llm_mask_BP is batch.slm_mask_BQ
    assert batch.align_BQP is None


def test_pad_equal_to_eos_loses_no_token():
    collator = Collator(word_tokenizer(pad=None))
    batch = batch_of(collator, example(), example("the a", "a"))
    assert batch.slm_ids_BQ.tolist() == [[2, 5, 6, 7, 3], [2, 5, 8, 3, 1]]
    assert batch.slm_mask_BQ.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch.labels_BT.tolist() == [[8, 9, 1], [8, 1, -100]]
    assert collator.pad_id == collator.eos_id == 1


def test_a_tokenizer_without_eos_or_pad_is_refused():
    with pytest.raises(UserError, match="has no eos token"):
        encode(Collator(word_tokenizer(eos=None)), example())
    with pytest.raises(UserError, match="has neither a pad nor an eos token"):
        Collator(word_tokenizer(pad=None, eos=None))


def test_the_end_of_a_prompt_is_marked_only_if_no_special_token_ends_it(slm):
    bare = train_tokenizer(TEXTS, 300)
    bare.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    newline = bare("\n", add_special_tokens=False)["input_ids"]
    plain = bare("old", add_special_tokens=False)["input_ids"]
    marked = Collator(bare, slm, decoder_only=True)
    assert encode(marked, example("old")).slm == plain + newline
    assert encode(marked, example("old")).llm == slm("old\n")["input_ids"]
    assert encode(Collator(bare), example("old")).slm == plain
    assert encode(Collator(slm, decoder_only=True), example("old")).slm == slm("old")["input_ids"]
    assert marked.batch_of_texts(["old"]).slm_ids_BQ.tolist() == [plain + newline]


def test_empty_texts_have_special_tokens_only_and_a_prompt_without_tokens_is_refused():
    assert encode(Collator(word_tokenizer()), example("", "")).slm == [2, 3]
    assert encode(Collator(word_tokenizer()), example("", "")).response == [1]
    with pytest.raises(UserError, match="row 0: its prompt has no token"):
        encode(Collator(word_tokenizer(False)), example(" "))
    assert encode(Collator(word_tokenizer(False)), example("")).slm == [1]


def test_responses_are_decoded_to_their_texts(slm):
    texts = ["Der Bauer\n  😀 ", "", "</s> 12"]
    batch = batch_of(Collator(slm), *[example(target=text) for text in texts])
    assert Collator(slm).decode(batch.labels_BT) == texts


def test_decode_stops_at_the_first_eos():
    ids = torch.tensor([[8, 1, 9, 9], [2, 8, 9, 0], [1, 8, 8, 8]])
    assert Collator(word_tokenizer()).decode(ids) == ["a", "a b", ""]


def test_batch_of_texts_equals_the_prompts_of_a_batch(slm, llm):
    collator = Collator(slm, llm, align=True)
    texts = ["The big farmer", "old\nhouses 12"]
    batch = batch_of(collator, *[example(text) for text in texts])
    alone = collator.batch_of_texts(texts)
    for name in ("slm_ids_BQ", "slm_mask_BQ", "llm_ids_BP", "llm_mask_BP", "align_BQP"):
        assert torch.equal(getattr(alone, name), getattr(batch, name))
    assert alone.labels_BT is None
    with pytest.raises(UserError, match="no text: give at least one"):
        collator.batch_of_texts([])


def test_save_writes_both_tokenizers(slm, llm, tmp_path):
    Collator(slm, llm).save(tmp_path)
    for folder, tokenizer in ((tmp_path, slm), (tmp_path / "llm_tokenizer", llm)):
        text = "The big 12 \n"
        assert PreTrainedTokenizerFast.from_pretrained(folder)(text)["input_ids"] == tokenizer(text)["input_ids"]


# Overlong texts

LONG = example("the old house a b c", "a b c d", index=17)


def test_overlong_is_an_error_that_names_row_lengths_and_limits():
    collator = Collator(word_tokenizer(), word_tokenizer(False), max_prompt_tokens=6, max_response_tokens=9)
    with pytest.raises(UserError) as caught:
        collator.encode([LONG], "data=json, train, ")
    assert str(caught.value) == (
        "data=json, train, row 17 (from 0): its prompt has 8 (SLM) and 6 (LLM) tokens, at most 6 are allowed; raise "
        "data.max_prompt_tokens or data.max_response_tokens (both share the model's positions: a lower limit of one "
        "leaves more for the other), or set data.overlong=truncate or drop"
    )
    assert collator.counts == {"prompt": 1}


def test_the_limit_itself_is_allowed():
    collator = Collator(word_tokenizer(), max_prompt_tokens=8, max_response_tokens=5)
    assert encode(collator, LONG).slm == [2, 5, 6, 7, 8, 9, 10, 3]
    assert encode(collator, LONG).response == [8, 9, 10, 11, 1]
    assert not collator.counts


def test_truncation_keeps_final_special_tokens():
    limits = {"max_prompt_tokens": 4, "max_response_tokens": 3, "overlong": Overlong.truncate}
    collator = Collator(word_tokenizer(), word_tokenizer(False), **limits)
    encoded = encode(collator, LONG)
    assert encoded.slm == [2, 5, 6, 3]
    assert encoded.llm == [5, 6, 7, 8]
    assert encoded.response == [8, 9, 1]
    assert collator.counts == {"prompt": 1, "response": 1}
    assert encode(collator, example("the", "a")).slm == [2, 5, 3]
    assert collator.counts == {"prompt": 1, "response": 1}


def test_truncation_keeps_the_end_mark():
    bare = train_tokenizer(TEXTS, 300)
    bare.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    collator = Collator(bare, decoder_only=True, max_prompt_tokens=3, overlong=Overlong.truncate)
    ids = bare("qwrtz", add_special_tokens=False)["input_ids"]
    assert encode(collator, example("qwrtz")).slm == [*ids[:2], *bare("\n", add_special_tokens=False)["input_ids"]]


def test_overlong_rows_are_dropped_and_counted():
    collator = Collator(word_tokenizer(), max_response_tokens=4, overlong=Overlong.drop)
    assert collator.encode([LONG]) == []
    assert collator.counts == {"response": 1}
    kept = collator.encode([example(index=3), LONG, example("", "a", index=5)])
    assert [row.index for row in kept] == [3, 5]
    assert collator.counts == {"response": 2}


# Prompts for a teacher


def test_prompts_of_the_teacher_are_added_to_those_of_the_student(slm, llm):
    """Those of the teacher's collator, with the labels of the student."""
    examples = [example("The big farmer", "Der Bauer", 4), example("old houses, small", "a b", 9)]
    teacher = Collator(llm, decoder_only=True, llm_frame=Frame("Read: "))
    plain = Collator(slm, slm)
    batch, wanted = batch_of(plain.with_teacher(teacher), *examples), batch_of(plain, *examples)
    theirs = batch_of(teacher, *examples)
    for name in ("slm_ids_BQ", "slm_mask_BQ"):
        assert torch.equal(getattr(batch, name), getattr(wanted, name))
        assert torch.equal(getattr(batch.teacher, name), getattr(theirs, name))
    assert (batch.teacher.slm_mask_BQ[:, 0] == 0).any(), "padded on its side"
    assert torch.equal(batch.labels_BT, wanted.labels_BT)
    assert torch.equal(batch.teacher.labels_BT, wanted.labels_BT)
    assert (wanted.teacher, plain.teacher) == (None, None)
    assert batch.to("meta").teacher.slm_ids_BQ.device.type == "meta"
    assert batch_of_rows_without(plain.with_teacher(teacher), plain, examples).teacher is None


def batch_of_rows_without(collator, plain, examples):
    return collator(plain.encode(examples))


def test_a_prompt_too_long_for_the_teacher_only_is_refused_dropped_or_truncated():
    def taught(overlong, limit=6):
        plain = Collator(word_tokenizer(False), max_prompt_tokens=limit, overlong=overlong)
        return plain.with_teacher(Collator(word_tokenizer(), max_prompt_tokens=7, overlong=overlong))

    with pytest.raises(
        UserError, match=r"row 17 \(from 0\): its prompt has 8 tokens with the teacher's tokenizer, at most 7"
    ):
        taught(Overlong.error).encode([LONG])
    with pytest.raises(
        UserError, match=r"its prompt has 6 tokens, at most 5 are allowed, and its prompt has 8 tokens with"
    ):
        taught(Overlong.error, 5).encode([LONG])
    short = example("the old", "a", 3)
    dropping = taught(Overlong.drop)
    assert [row.index for row in dropping.encode([LONG, short])] == [3]
    assert dropping.counts == {"prompt": 1}
    cutting = taught(Overlong.truncate)
    assert encode(cutting, LONG).slm == [5, 6, 7, 8, 9, 10]
    assert encode(cutting, LONG).teacher.slm == [2, 5, 6, 7, 8, 9, 3]
    assert cutting.counts == {"prompt": 2}
    assert [len(row) for row in cutting.batch_of_texts([LONG.prompt]).slm_ids_BQ] == [6]


def test_rows_tokenized_together_equal_rows_tokenized_separately(slm, llm):
    collator = Collator(slm, llm, align=True, max_prompt_tokens=12, overlong=Overlong.truncate)
    texts = ["The big farmer", "", "é😀 12\n old", "the old house " * 9, "The big farmer"]
    examples = [example(text, text[:5], index) for index, text in enumerate(texts)]
    assert collator.encode(examples) == [encode(collator, item) for item in examples]
    assert collator.encode([]) == []


def test_generation_respects_overlong():
    texts = ["the", "the old house a"]
    for overlong in (Overlong.error, Overlong.drop):
        collator = Collator(word_tokenizer(), max_prompt_tokens=4, overlong=overlong)
        with pytest.raises(UserError, match="text 1: its prompt has 6 tokens"):
            collator.batch_of_texts(texts)
        assert collator.counts == {"prompt": 1}
    collator = Collator(word_tokenizer(), max_prompt_tokens=4, overlong=Overlong.truncate)
    assert collator.batch_of_texts(texts).slm_ids_BQ.tolist() == [[2, 5, 3, 0], [2, 5, 6, 3]]
    assert collator.counts == {"prompt": 1}


def test_truncated_alignment_is_that_of_the_remaining_tokens(slm, llm):
    text = "The big farmer sells 12 old houses."
    whole = batch_of(Collator(slm, llm, align=True), example(text)).align_BQP[0]
    collator = Collator(slm, llm, align=True, max_prompt_tokens=8, overlong=Overlong.truncate)
    cut = batch_of(collator, example(text)).align_BQP[0]
    assert cut.shape == (8, 8)
    covered = [q for q in range(7) if whole[q, :7].sum() == 1]
    assert len(covered) >= 1
    for q in covered:  # tokens whose characters the truncated LLM prompt contains
        torch.testing.assert_close(cut[q, :7], whole[q, :7])
    assert cut[7].tolist() == [0] * 7 + [1]
    found = [tokenizer(text, return_offsets_mapping=True)["offset_mapping"][:7] for tokenizer in (slm, llm)]
    read = found[1][-1][1]
    unread = [q for q, (start, _) in enumerate(found[0]) if start >= read]
    assert unread, "the LLM's cut must come first, else nothing is tested"
    assert [q for q in range(8) if cut[q].sum() == 0] == unread
    assert [q for q in range(8) if cut[q].sum() == 1] == [q for q in range(8) if q not in unread]


def test_tokens_that_the_llm_did_not_encode_are_not_guided():
    """Texts truncated at different characters: no z for SLM tokens after the last encoded one, for any prompt end."""
    slm = Spans.of([(0, 2), (2, 4), (4, 6), (6, 8), (8, 9), (0, 0)], [0, 0, 0, 0, 0, 1])
    llm = Spans.of([(0, 1), (1, 3), (3, 5), (5, 7), (8, 9), (0, 0)], [0, 0, 0, 0, 0, 1])
    half = [1 / 2, 1 / 2, 0]
    cut = alignment(slm, llm.take([0, 1, 5]))
    assert cut.tolist() == [half, [0, 1, 0], [0] * 3, [0] * 3, [0] * 3, [0, 0, 1]]
    marked = alignment(slm, llm.take([0, 1, 4, 5]))  # the end mark (8, 9) is kept, and stays guided
    assert marked.tolist() == [[*half, 0], [0, 1, 0, 0], [0] * 4, [0] * 4, [0, 0, 1, 0], [0, 0, 0, 1]]
    assert alignment(slm, llm.take([5])).tolist() == [[0]] * 5 + [[1]]
    whole = alignment(Spans.of([(0, 1), (9, 10)], [0, 0]), llm.take(range(6)))  # not truncated: the nearest
    assert whole[1].tolist() == [0, 0, 0, 0, 1, 0]


# Alignment


def oracle(tokenizers, text):
    """Alignment computed character by character."""
    owners = []
    for tokenizer in tokenizers:
        found = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        spans = list(zip(found["offset_mapping"], found["special_tokens_mask"], strict=True))
        owners.append([set() if special else set(range(a, b)) for (a, b), special in spans])
    slm_chars, llm_chars = owners
    rows = []
    for q in slm_chars[:-1]:
        owners = {c: sum(c in p for p in llm_chars) for c in q if any(c in p for p in llm_chars)}
        if owners:
            rows.append([sum(1 / owners[c] for c in q & p) / len(owners) for p in llm_chars])
        else:
            rows.append(None)
    return [*rows, [0.0] * (len(llm_chars) - 1) + [1.0]]


@examples(150)
@given(text=st.text(max_size=40) | st.text(alphabet=" \nTheOLDfarmer12ä😀", max_size=40))
def test_alignment_equals_the_character_oracle(slm, llm, text):
    align_QP = batch_of(Collator(slm, llm, align=True), example(text)).align_BQP[0]
    expected = oracle((slm, llm), text)
    assert None not in expected  # both are lossless: every character is in a token on both sides
    torch.testing.assert_close(align_QP, torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(align_QP.sum(1), torch.ones(len(expected)))


@examples(100)
@given(text=st.text(alphabet=" \nthe old", max_size=30))
def test_alignment_with_a_tokenizer_that_drops_white_space_uses_the_nearest_token(slm, text):
    words = word_tokenizer()
    align_QP = batch_of(Collator(slm, words, align=True), example(text)).align_BQP[0]
    found = words(text, return_offsets_mapping=True)["offset_mapping"]
    spans = slm(text, return_offsets_mapping=True)["offset_mapping"]
    for q, row in enumerate(oracle((slm, words), text)):
        expected = row or [0.0] * len(found)
        if row is None:
            a, b = spans[q]
            gaps = {p: max(c - b, a - d, 0) for p, (c, d) in list(enumerate(found))[1:-1]}
            expected[min(gaps, key=gaps.get) if gaps else -1] = 1.0
        torch.testing.assert_close(align_QP[q], torch.tensor(expected), atol=1e-6, rtol=0)


def test_alignment_of_chosen_spans():
    slm = Spans.of([(0, 0), (0, 3), (3, 8), (8, 9), (0, 0)], [1, 0, 0, 0, 1])
    llm = Spans.of([(0, 1), (1, 5), (5, 6), (6, 8), (0, 0)], [0, 0, 0, 0, 1])
    expected = [
        [0, 0, 0, 0, 0],  # the LLM has no token before the text
        [1 / 3, 2 / 3, 0, 0, 0],
        [0, 2 / 5, 1 / 5, 2 / 5, 0],
        [0, 0, 0, 1, 0],  # not covered: the nearest
        [0, 0, 0, 0, 1],
    ]
    torch.testing.assert_close(alignment(slm, llm), torch.tensor(expected, dtype=torch.float32))
    back = alignment(llm, slm)
    torch.testing.assert_close(back[1], torch.tensor([0, 1 / 2, 1 / 2, 0, 0]))
    assert back[4].tolist() == [0, 0, 0, 0, 1]


def test_alignment_of_special_tokens_without_a_partner():
    slm = Spans.of([(0, 0), (0, 2), (0, 0)], [1, 0, 1])
    bare = Spans.of([(0, 2)], [0])
    assert alignment(slm, bare).tolist() == [[0], [1], [0]]
    both = Spans.of([(0, 0), (0, 2), (0, 0)], [1, 0, 1])
    assert alignment(slm, both).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    empty = Spans.of([(0, 0)], [1])
    assert alignment(slm, empty).tolist() == [[0], [1], [1]]


def test_alignment_of_a_tie_and_of_a_token_without_a_span():
    slm = Spans.of([(2, 3), (4, 4)], [0, 0])
    llm = Spans.of([(0, 2), (3, 5)], [0, 0])
    assert alignment(slm, llm).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("decoder_only", [False, True])
def test_padded_alignment_contains_that_of_a_single_row(slm, llm, decoder_only):
    collator = Collator(slm, llm, align=True, decoder_only=decoder_only)
    texts = ["The big farmer sells 12 old houses.", "old", "x\ny"]
    batch = batch_of(collator, *[example(text) for text in texts])
    for b, text in enumerate(texts):
        single = batch_of(collator, example(text)).align_BQP[0]
        real = batch.align_BQP[b][batch.slm_mask_BQ[b].bool()][:, batch.llm_mask_BP[b].bool()]
        assert torch.equal(real, single)
        assert batch.align_BQP[b].sum() == single.sum()
