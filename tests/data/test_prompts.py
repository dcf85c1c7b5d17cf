"""Frames around the prompt of the LLM: compared with chat templates in transformers, and with matrices by hand."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from llm2slm.data.collate import Collator
from llm2slm.data.tokenization.align import Spans
from llm2slm.data.tokenization.prompts import PLACEHOLDER, Frame, PromptTokenizer, frame
from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.types import Example, Overlong, UserError
from tests.data.test_collate import TEXTS, example, word_tokenizer

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(template: str | None = CHAT) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    tokenizer.split_special_tokens = False
    tokenizer.chat_template = template
    return tokenizer


def test_a_chat_frame_gives_the_ids_of_the_template_in_transformers() -> None:
    tokenizer = chat_tokenizer()
    texts = ["The big farmer", "é 😀\nold houses?", "a"]
    read = PromptTokenizer(tokenizer, frame(tokenizer, "Answer: ", chat=True))
    for text, (ids, _) in zip(texts, read(texts), strict=True):
        turns = [{"role": "user", "content": f"Answer: {text}"}]
        own = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert ids == own
    assert tokenizer.eos_token_id not in ids  # special tokens are those of the template only


def test_a_prefix_precedes_the_prompt_within_the_special_tokens() -> None:
    tokenizer = word_tokenizer()
    ((ids, spans),) = PromptTokenizer(tokenizer, frame(tokenizer, "a b ", chat=False), spans=True)(["the old"])
    assert ids == tokenizer("a b the old")["input_ids"] == [2, 8, 9, 5, 6, 3]
    assert spans is not None
    assert spans.special == [True, True, True, False, False, True]  # the frame counts as special
    assert list(spans)[3:5] == [(0, 3), (4, 7)]  # characters of the prompt itself
    assert (spans.leading, spans.behind) == (3, 1)


def test_spans_are_restricted_to_a_part_of_the_text() -> None:
    whole = Spans([0, 0, 2, 4, 8, 9], [0, 3, 4, 8, 9, 9], [True, False, False, False, False, False])
    part = whole.within(2, 6)  # characters 2 to 8
    assert list(part) == [(0, 0), (0, 1), (0, 2), (2, 6), (6, 6), (6, 6)]
    assert part.special == [True, False, False, False, True, True]  # a token across the boundary keeps its part inside


def test_alignment_with_a_shared_tokenizer_skips_the_frame_of_the_llm() -> None:
    """The LLM has the prefix "a b": each token is aligned with itself, two positions later."""
    tokenizer = word_tokenizer()
    collator = Collator(tokenizer, tokenizer, align=True, llm_frame=Frame("a b ", " c"))
    batch = collator(collator.encode([example("the old")]))
    assert batch.slm_ids_BQ.tolist() == [[2, 5, 6, 3]]  # the SLM gets the prompt only
    assert batch.llm_ids_BP.tolist() == [[2, 8, 9, 5, 6, 10, 3]]
    expected = torch.zeros(4, 7)
    expected[0, 0] = expected[1, 3] = expected[2, 4] = expected[3, 6] = 1
    assert torch.equal(batch.align_BQP[0], expected)


def test_tokens_of_the_prompt_are_aligned_as_without_a_frame() -> None:
    slm, llm = train_tokenizer(TEXTS, 320), train_tokenizer([t.upper() for t in TEXTS], 290)
    for text in ("The big farmer", "é 😀\n old houses ", ""):
        plain = Collator(slm, llm, align=True)
        framed = Collator(slm, llm, align=True, llm_frame=Frame("<<", ">>"))
        one, two = (c(c.encode([example(text)])).align_BQP[0] for c in (plain, framed))
        before = len(llm("<<", add_special_tokens=False)["input_ids"])
        of_text = one.shape[1] - 1  # without eos
        assert torch.equal(two[:-1, before : before + of_text], one[:-1, :-1])
        assert two[-1, -1] == one[-1, -1] == 1  # eos is aligned with eos


def test_the_frame_is_added_to_prompts_of_the_llm_only() -> None:
    tokenizer, other = word_tokenizer(), word_tokenizer(False)
    framed = [2, 8, 5, 3]
    alone = Collator(tokenizer, llm_frame=Frame("a "))  # the LLM generates
    assert alone.batch_of_texts(["the"]).slm_ids_BQ.tolist() == [framed]
    by_llm_tokens = Collator(other, tokenizer, llm_prompts=True, llm_frame=Frame("a "))  # one sequence for both
    batch = by_llm_tokens.batch_of_texts(["the"])
    assert batch.slm_ids_BQ.tolist() == batch.llm_ids_BP.tolist() == [framed]
    two = Collator(other, tokenizer, llm_frame=Frame("a ")).batch_of_texts(["the"])
    assert (two.slm_ids_BQ.tolist(), two.llm_ids_BP.tolist()) == ([[5]], [framed])


def test_the_end_mark_is_added_only_if_no_other_token_ends_the_prompt() -> None:
    bare = train_tokenizer(TEXTS, 300)
    bare._tokenizer.post_processor = None
    newline = bare("\n")["input_ids"]
    ends = {
        frame.after: Collator(bare, bare, decoder_only=True, llm_frame=frame) for frame in (Frame("a"), Frame("", "b"))
    }
    for after, collator in ends.items():
        batch = collator.batch_of_texts(["old"])
        assert batch.slm_ids_BQ[0, -1:].tolist() == newline  # the prompt of the SLM
        assert batch.llm_ids_BP[0].tolist() == bare("aold\n" if not after else "oldb")["input_ids"]
    assert not Collator(bare, decoder_only=True, llm_frame=Frame("", "b")).marks_end


def test_truncation_shortens_the_prompt_and_keeps_the_frame() -> None:
    tokenizer = word_tokenizer()
    collator = Collator(
        word_tokenizer(False), tokenizer, llm_frame=Frame("a ", " b c"), max_prompt_tokens=7, overlong=Overlong.truncate
    )
    batch = collator.batch_of_texts(["the old house d"])
    assert batch.llm_ids_BP.tolist() == [[2, 8, 5, 6, 9, 10, 3]]  # [CLS] a the old b c [SEP]
    assert batch.slm_ids_BQ.tolist() == [[5, 6, 7, 11]]
    assert collator.counts == {"prompt": 1}
    small = Collator(tokenizer, llm_frame=Frame("a ", " b c"), max_prompt_tokens=5, overlong=Overlong.truncate)
    with pytest.raises(UserError, match=r"takes 5 tokens, and at most 5 are allowed.*data.max_prompt_tokens"):
        small.encode([Example(0, "", "the", "a")])


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('roles!') }}", "fails: roles!"),
        ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", "does not contain the prompt exactly once"),
        ("hello", "does not contain the prompt exactly once"),
        ("{{ messages[0]['content'] | tojson }}", "does not contain the prompt exactly once, unchanged"),
        ("{{ messages[0]['content'] | length }}", "does not contain the prompt exactly once, unchanged"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
    ],
)
def test_a_template_that_cannot_be_a_frame_is_refused_on_one_line(template: str | None, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        frame(chat_tokenizer(template), "", chat=True)
    assert "\n" not in str(caught.value) and PLACEHOLDER not in str(caught.value)
