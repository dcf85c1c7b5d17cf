"""Alignment of real tokenizers on difficult text, complete and truncated, against a character-by-character oracle."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, note
from hypothesis import strategies as st
from sampling import examples
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm2slm.data.tokenization.align import Spans, alignment
from llm2slm.data.tokenization.tokenizer import train_tokenizer

TEXTS = [f"The cafe sells {n} houses 😀😁 near 한국어 中文.\nEin Bauer, nahe na he 😂." for n in range(60)]
KINDS = ("bpe", "trimmed", "sentencepiece", "wordpiece", "llama")
PAIRS = list(product(KINDS, KINDS))
OPENS = ("trimmed", "wordpiece", "llama")  # with a special token before the text
CLOSES = ("bpe", "sentencepiece", "wordpiece")  # with one after it
LOSSLESS = ("bpe", "llama")  # each character has a token
NASTY = [
    *("😀", "😂😀", "🦊", "😀" * 8, "👨\u200d👩\u200d👧\u200d👦", "❤\ufe0f\u200d🔥", "👍🏽", "🇩🇪🇰🇷", "🇩"),
    *("e\u0301", "a\u0323\u0302\u0308", "\u0308", "\u0301" * 7, "é", "ﬁ", "½", "ﷺ", "İ", "ß", "①"),
    *("한국어", "\u1112\u1161\u11ab", "漢字", "中文。", "ｱｲ", "カ\u3099", "שָׁלוֹם", "مرحبا", "\u202eabc\u202c", "ไทย"),
    *("\u200b", "\u200d", "\ufeff", "\u00ad", "\u2060", "\x00", "\x07", "\x1b", "\x7f", "\x85", "\ufffd", "\U0010ffff"),
    *("\n", "\r\n", "\n\n\n", "\t", " ", "   ", " " * 9, "\u00a0", "\u3000", "\u2028"),
    *("The", " the cafe", " Bauer", "nahe ", "12", ",", "▁", "Ġ", "x" * 25, "caf" * 9),
    *("</s>", "<s>", "[SEP]", "<0x0A>", "<unk>"),  # written out in the text
]
PROMPTS = st.lists(st.sampled_from(NASTY) | st.text(max_size=5), min_size=1, max_size=9).map("".join)


def wrapped(core, single, *specials, unknown):
    """A fast tokenizer that adds special tokens around a text by the template `single`."""
    around = [(token, core.token_to_id(token)) for token in specials]
    template = processors.TemplateProcessing(single=single, special_tokens=around)
    core.post_processor = processors.Sequence([core.post_processor, template]) if core.post_processor else template
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=specials[-1], unk_token=unknown)


def trimmed():
    """Byte-level BPE that trims spaces off its spans, like RoBERTa: the span of a single space is empty."""
    core = train_tokenizer(TEXTS, 320).backend_tokenizer
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    return wrapped(core, "<pad> $A", "<pad>", unknown=None)


def sentencepiece():
    """Like T5 and mT5: normalized (ligatures become letters, runs of spaces one), "▁" before, </s> after the text."""
    core = Tokenizer(models.Unigram())
    one_space = normalizers.Replace(Regex(" {2,}"), " ")
    core.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), one_space])
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    names = {"special_tokens": ["<pad>", "</s>", "<unk>"], "unk_token": "<unk>"}
    core.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=150, show_progress=False, **names))
    return wrapped(core, "$A </s>", "</s>", unknown="<unk>")


def wordpiece():
    """Like BERT: lower case, no accents, control characters, white space; [CLS] before and [SEP] after the text."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
    core.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    return wrapped(core, "[CLS] $A [SEP]", "[CLS]", "[SEP]", unknown="[UNK]")


def llama():
    """Like Llama 2: "▁" for a space, no split into words, byte fallback; <s> before the text."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    names = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=names, max_token_length=8, show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    return wrapped(core, "<s> $A", "<s>", unknown="<unk>")


@pytest.fixture(scope="module")
def tokenizers():
    made = (train_tokenizer(TEXTS, 320), trimmed(), sentencepiece(), wordpiece(), llama())
    return dict(zip(KINDS, made, strict=True))


# The oracle


class Token(NamedTuple):
    chars: range
    special: bool


def tokenized(tokenizer, text):
    found = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    both = zip(found["offset_mapping"], found["special_tokens_mask"], strict=True)
    return [Token(range(a, b), special == 1) for (a, b), special in both]


def spans(tokens):
    return Spans.of([(t.chars.start, t.chars.stop) for t in tokens], [int(t.special) for t in tokens])


def distance(one, other):
    """The distance of two spans: the minimum over positions in both (ends included)."""
    return min(abs(a - b) for a, b in product(range(one.start, one.stop + 1), range(other.start, other.stop + 1)))


def unread(tokens, kept, size):
    """The truncated characters: after those of the kept head, before those of the kept tail."""
    head = [tokens[i].chars for n, i in enumerate(kept) if n == i and not tokens[i].special]
    tail = [tokens[i].chars for n, i in enumerate(kept) if n != i and not tokens[i].special]
    first = next(c for c in range(size + 1) if not any(chars.stop > c for chars in head))
    behind = next((c for c in range(size) if any(chars.start <= c for chars in tail)), size)
    return None if len(kept) == len(tokens) else range(first, behind)


def evenly(owners):
    """Votes of one character: equal for each token that contains it, with the same total for every character."""
    assert len(owners) <= 10
    return dict.fromkeys(owners, 2520 // max(len(owners), 1))


def oracle(slm, llm, cut=None):
    """By the five rules, per token and character: the votes of a character go to the LLM tokens that contain it."""
    seen = [p for p, token in enumerate(llm) if not token.special and token.chars]
    last = {len(llm) - 1: 1} if llm[-1].special else {}
    first = {0: 1} if llm[0].special and not all(token.special for token in llm) else {}  # no text: all follow it
    holders = {c: evenly([p for p in seen if c in llm[p].chars]) for c in {c for token in slm for c in token.chars}}
    rows = []
    for q, (chars, special) in enumerate(slm):
        votes = Counter()
        for c in chars:
            votes.update(holders[c])
        at_cut = cut is not None and cut.start <= chars.start <= cut.stop
        if special:  # rule 3
            votes = last if all(token.special for token in slm[q:]) else first
        elif not votes and (at_cut and all(c in cut for c in chars)):  # rule 5
            votes = {}
        elif not votes and seen:  # rule 2; min gives the earlier one
            votes = {min(seen, key=lambda p: distance(chars, llm[p].chars)): 1}
        elif not votes:  # rule 4
            votes = last
        total = max(sum(votes.values()), 1)
        rows.append([votes.get(p, 0) / total for p in range(len(llm))])
    return rows


def assert_close(align_QP, expected):
    assert align_QP.dtype == torch.float32
    wanted = torch.tensor(expected, dtype=torch.float32)
    assert align_QP.shape == wanted.shape
    if not torch.equal(align_QP, wanted):  # which is faster to check
        torch.testing.assert_close(align_QP, wanted, rtol=1e-6, atol=1e-7)


def shortened(draw, tokens):
    """Positions of a truncated prompt, head and tail as in the collator; all if no text would be removed."""
    finals = next((n for n, token in enumerate(reversed(tokens)) if not token.special), len(tokens))
    limit = draw(st.integers(1, max(len(tokens) - 1, 1)))
    head = max(limit - draw(st.integers(finals, finals + 3)), 0)
    behind = len(tokens) - (limit - head)
    text_goes = not all(token.special for token in tokens[head:behind])
    return [*range(head), *range(behind, len(tokens))] if text_goes else [*range(len(tokens))]


# Arbitrary text, every pair of tokenizers


@examples(120)
@given(text=PROMPTS)
@example(text="")
def test_alignment_of_every_pair_of_tokenizers_equals_the_oracle(tokenizers, text):
    found = {kind: tokenized(tokenizer, text) for kind, tokenizer in tokenizers.items()}
    for slm, llm in PAIRS:
        note(f"{slm} over {llm}")
        assert_close(alignment(spans(found[slm]), spans(found[llm])), oracle(found[slm], found[llm]))


@pytest.mark.slow
@examples(60)
@given(text=PROMPTS, data=st.data())
def test_alignment_of_truncated_prompts_equals_the_oracle(tokenizers, text, data):
    whole, short = {}, {}
    for kind, tokenizer in tokenizers.items():
        tokens = tokenized(tokenizer, text)
        kept = shortened(data.draw, tokens)
        whole[kind] = tokens, spans(tokens), None
        short[kind] = [tokens[i] for i in kept], spans(tokens).take(kept), unread(tokens, kept, len(text))
    for slm, llm in PAIRS:
        for left, right in ((whole, short), (short, whole), (short, short)):
            (tokens_q, spans_q, _), (tokens_p, spans_p, cut) = left[slm], right[llm]
            note(f"{slm} ({len(tokens_q)} tokens) over {llm} ({len(tokens_p)}, cut {cut})")
            assert_close(alignment(spans_q, spans_p), oracle(tokens_q, tokens_p, cut))


@examples(60)
@given(text=PROMPTS, data=st.data())
def test_a_token_has_no_guidance_exactly_if_none_of_its_characters_was_encoded(tokenizers, text, data):
    """Rule 5 without the oracle: these LLMs have a token for each character, so one in no kept token was truncated."""
    for slm, llm in product(KINDS, LOSSLESS):
        tokens_q, tokens_p = tokenized(tokenizers[slm], text), tokenized(tokenizers[llm], text)
        kept = shortened(data.draw, tokens_p)
        read = {c for i in kept for c in tokens_p[i].chars}
        note(f"{slm} over {llm}, {kept}")
        sums = alignment(spans(tokens_q), spans(tokens_p).take(kept)).sum(1).tolist()
        for token, total in zip(tokens_q, sums, strict=True):
            if token.chars:
                assert total == pytest.approx(1 if read.intersection(token.chars) else 0)


@examples(60)
@given(text=PROMPTS)
@example(text="")
def test_sums_of_rows_and_columns_follow_from_the_special_tokens(tokenizers, text):
    """Sums of rows and columns, by the positions of special tokens of each kind."""
    found = {kind: tokenized(tokenizer, text) for kind, tokenizer in tokenizers.items()}
    for slm, llm in PAIRS:
        note(f"{slm} over {llm}")
        align_QP = alignment(spans(found[slm]), spans(found[llm]))
        special_Q, special_P = (torch.tensor([token.special for token in found[kind]]) for kind in (slm, llm))
        width_P = torch.tensor([len(token.chars) for token in found[llm]])
        closes = llm in CLOSES or special_P.all()  # a lone <s> closes an empty text
        expected_Q = torch.where(special_Q, float(closes), float(closes or width_P.any()))
        if slm in OPENS and not special_Q.all():
            expected_Q[0] = float(llm in OPENS and not special_P.all())
        torch.testing.assert_close(align_QP.sum(1), expected_Q)
        assert (align_QP >= 0).all()
        assert not align_QP[:, ~special_P & (width_P == 0)].any()
        assert not align_QP[special_Q][:, ~special_P].any()
        assert not (width_P.any() and align_QP[~special_Q][:, special_P].any())


@pytest.mark.slow
@examples(100)
@given(text=PROMPTS)
def test_a_tokenizer_is_aligned_with_itself(tokenizers, text):
    """A token that shares no character is aligned with itself; the bytes of one character share it equally."""
    for kind in KINDS:
        tokens = tokenized(tokenizers[kind], text)
        align_QP, eye_PP = alignment(spans(tokens), spans(tokens)), torch.eye(len(tokens))
        note(kind)
        for q, token in enumerate(tokens):
            mates = [p for p, other in enumerate(tokens) if set(token.chars) & set(other.chars)]
            if mates and all(tokens[p].chars == token.chars for p in mates):
                assert_close(align_QP[q], (eye_PP[mates].sum(0) / len(mates)).tolist())
            if token.special and not all(other.special for other in tokens):
                assert_close(align_QP[q], eye_PP[q].tolist())


# Arbitrary spans


@st.composite
def tokenizations(draw, size=12):
    """Ordered tokens with gaps and overlaps, or none; some of zero width; special tokens around them."""
    starts = sorted(draw(st.lists(st.integers(0, size), max_size=6)))
    text = [Token(range(start, min(start + draw(st.integers(0, 4)), size)), False) for start in starts]
    anywhere = st.sampled_from([range(0), range(3), range(size)])  # the span of a special token has no meaning
    front, behind = ([Token(draw(anywhere), True) for _ in range(draw(st.integers(0, 2)))] for _ in range(2))
    return [*front, *text, *behind] or [Token(range(0), True)]


@examples(500)
@given(slm=tokenizations(), llm=tokenizations(), data=st.data())
def test_alignment_of_arbitrary_spans_equals_the_oracle(slm, llm, data):
    assert_close(alignment(spans(slm), spans(llm)), oracle(slm, llm))
    kept = shortened(data.draw, llm)
    taken = spans(llm).take(kept)
    assert_close(alignment(spans(slm), taken), oracle(slm, [llm[i] for i in kept], unread(llm, kept, 12)))
    assert taken.take(range(len(kept))) == taken  # no further truncation


# By hand


def named(tokenizer, text):
    """The tokens with their texts and positions, and their spans."""
    pieces, tokens = tokenizer(text).tokens(), tokenized(tokenizer, text)
    places = [(piece, t.chars.start, t.chars.stop) for piece, t in zip(pieces, tokens, strict=True)]
    return places, spans(tokens)


def test_an_accent_within_a_word_and_an_emoji_are_aligned(tokenizers):
    """The characters: n 0, a 1, combining diaeresis 2, h 3, e 4, space 5, emoji 6."""
    (tokens, bpe), (words, llm) = (named(tokenizers[kind], "na\u0308he 😀") for kind in ("bpe", "wordpiece"))
    accent, emoji = [("Ì", 2, 3), ("Ī", 2, 3)], [("ĠðŁĺ", 5, 7), ("Ģ", 6, 7)]  # a space and 3 bytes; the 4th byte
    assert tokens == [("n", 0, 1), ("a", 1, 2), *accent, ("he", 3, 5), *emoji, ("</s>", 0, 0)]
    assert words == [("[CLS]", 0, 0), ("nahe", 0, 5), ("😀", 6, 7), ("[SEP]", 0, 0)]
    word, face, end = [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]
    assert_close(alignment(bpe, llm), [word, word, word, word, word, face, face, end])
    expected = [
        [0, 0, 0, 0, 0, 0, 0, 0],  # [CLS]: the other has no token before the text
        [1 / 5, 1 / 5, 1 / 10, 1 / 10, 2 / 5, 0, 0, 0],  # nahe: 5 characters, one of them in two tokens
        [0, 0, 0, 0, 0, 1 / 2, 1 / 2, 0],  # the emoji: in two tokens; the space is not shared
        [0, 0, 0, 0, 0, 0, 0, 1],  # [SEP]: </s>
    ]
    assert_close(alignment(llm, bpe), expected)
    own = alignment(bpe, bpe)
    assert_close(own[2:4], [[0, 0, 1 / 2, 1 / 2, 0, 0, 0, 0]] * 2)  # the accent's two bytes
    assert_close(own[5:7], [[0, 0, 0, 0, 0, 3 / 4, 1 / 4, 0], [0, 0, 0, 0, 0, 1 / 2, 1 / 2, 0]])  # the emoji's


def test_dropped_characters_are_aligned_with_the_nearest_token_unless_truncated(tokenizers):
    """e 0, combining acute 1, newlines 2 and 3, emoji 4: BERT drops the accent and the newlines."""
    (tokens, bpe), (words, llm) = (named(tokenizers[kind], "e\u0301\n\n😀") for kind in ("bpe", "wordpiece"))
    accent, lines, emoji = [("Ì", 1, 2), ("ģ", 1, 2)], [("Ċ", 2, 3), ("Ċ", 3, 4)], [("ðŁĺ", 4, 5), ("Ģ", 4, 5)]
    assert tokens == [("e", 0, 1), *accent, *lines, *emoji, ("</s>", 0, 0)]
    assert words == [("[CLS]", 0, 0), ("e", 0, 1), ("😀", 4, 5), ("[SEP]", 0, 0)]
    word, face, end = [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]
    assert_close(alignment(bpe, llm), [word, word, word, word, face, face, face, end])
    cut = alignment(bpe, llm.take([0, 1, 3]))  # [CLS] e [SEP]: the text after the e was truncated
    assert_close(cut, [[0, 1, 0], *[[0, 0, 0]] * 6, [0, 0, 1]])
