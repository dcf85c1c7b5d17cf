"""Prompts under one tokenizer: text to token ids and spans, whole or cut to a length.

An LLM may be asked in words of its own (an instruction in front, a chat template around): that is a `Frame`, which
only the LLM reads. Spans always count characters of the prompt itself, so that they stay comparable between two
tokenizers of which one reads more than the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm2slm.data.tokenization.align import Spans
from llm2slm.data.tokenization.plain_text import PlainText, control_tokens
from llm2slm.types import UserError

PROMPT_END = "\n"
"""Ends the prompt of a decoder-only writer whose tokenizer adds nothing there: without a mark, the model could not tell
whether the prompt or the answer goes on."""

STAND_IN = "llm2slm5prompt"
"""Takes the prompt's place while a chat template is rendered; of no meaning to any template."""

PROBE = 'He said "no" <b>&amp;\\n</b> {{x}}\n\n it\'s é😀'
"""A prompt that a template must say as it is (white space at its ends aside, of which prompts have none)."""


@dataclass(frozen=True)
class Frame:
    """What stands around a prompt when it is read.

    Attributes:
        before, after: text of a chat template, in which control tokens are control tokens.
        special_tokens: the tokenizer adds its special tokens around all of it.
        prefix: the user's text between `before` and the prompt, which is plain text like the prompt.
    """

    before: str = ""
    after: str = ""
    special_tokens: bool = True
    prefix: str = ""

    def around(self, text: str) -> str:
        """The text as it is read."""
        return f"{self.before}{self.prefix}{text}{self.after}"

    def __bool__(self) -> bool:
        """Whether there is any text around the prompt."""
        return bool(self.before or self.prefix or self.after)


def frame(tokenizer: Any, prefix: str, chat: bool) -> Frame:
    """The frame of a prompt to an LLM.

    Args:
        prefix: plain text in front of every prompt; with `chat` it is part of the user's turn.
        chat: let the tokenizer's chat template make the prompt a user's turn that is to be answered.

    Raises:
        UserError: the tokenizer has no chat template, or one that does not say the prompt once.
    """
    if not chat:
        return Frame(prefix=prefix)
    name = f"model.llm.chat=true: the tokenizer {tokenizer.name_or_path!r}"
    if not tokenizer.chat_template:
        raise UserError(f"{name} has no chat template; use model.llm.prefix, or another model.llm.tokenizer")
    before, _, after = (rendered := _rendered(tokenizer, prefix + STAND_IN, name)).partition(STAND_IN)
    if rendered.count(STAND_IN) != 1 or _rendered(tokenizer, prefix + PROBE, name).count(PROBE) != 1:
        raise UserError(
            f"{name} has a chat template that does not say the prompt once, as it is; use model.llm.prefix instead"
        )
    shown = prefix if before.endswith(prefix) else prefix.lstrip()  # a template may strip what it is given
    return Frame(before.removesuffix(shown), after, special_tokens=False, prefix=shown)  # they are in the template


def _rendered(tokenizer: Any, text: str, name: str) -> str:
    """What a chat template makes of a user's turn that is to be answered."""
    try:
        rendered: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program, and may fail like one
        raise UserError(f"{name} has a chat template that fails: {str(error).partition(chr(10))[0]}") from None
    return rendered


class PromptTokenizer:
    """A tokenizer as prompts are read with it.

    Args:
        tokenizer: a transformers tokenizer.
        frame: what stands around each prompt.
        mark: text that ends each prompt, inside of the frame.
        spans: say where each token lies in the prompt (needs a fast tokenizer).
    """

    def __init__(self, tokenizer: Any, frame: Frame | None = None, mark: str = "", spans: bool = False) -> None:
        self.tokenizer = tokenizer
        self.frame = Frame() if frame is None else frame
        self.mark = mark
        self.pad_id = pad_id(tokenizer)
        self._spans = spans
        self._tail = max(final_special_tokens(tokenizer) if self.frame.special_tokens else 0, int(bool(mark)))
        self._encode = PlainText(tokenizer, self.frame.before, self.frame.after, self.frame.special_tokens)

    def rendered(self, prompt: str) -> str:
        """The prompt as it is tokenized: with the end mark and what stands around it."""
        return self.frame.around(self._marked(prompt))

    def _marked(self, prompt: str) -> str:
        """The prompt with the end mark; an empty one without a frame has no end to mark."""
        return prompt + self.mark if prompt or self.frame else prompt

    def __call__(self, prompts: Sequence[str]) -> list[tuple[list[int], Spans | None]]:
        """Token ids of each prompt, and where they lie in it.

        Control tokens come from the frame alone, whatever a prompt (or the frame's prefix) holds. An empty prompt
        without a frame is what the tokenizer adds to any text, without the end mark; where that is nothing, its bos, or
        else its eos: something must stand before the first token of the response.

        Raises:
            UserError: the tokenizer has no plain pieces for a prompt.
        """
        prefix = self.frame.prefix
        texts = [self._marked(prompt) for prompt in prompts]
        rows = self._encode([prefix + text for text in texts], self._spans or bool(self.frame))
        if not self.frame:
            rows = [row if row[0] or prompt else self._start for row, prompt in zip(rows, prompts, strict=True)]
        if not prefix:
            return rows
        within = zip(rows, texts, strict=True)
        return [(ids, spans and spans.within(len(prefix), len(text))) for (ids, spans), text in within]

    @property
    def _start(self) -> tuple[list[int], Spans | None]:
        """A prompt of no text under a tokenizer that adds nothing; no token where there is neither bos nor eos."""
        found = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        ids = [token for token in found if token is not None][:1]
        return ids, Spans.of([(0, 0)] * len(ids), [1] * len(ids)) if self._spans else None

    @cached_property
    def overhead(self) -> int:
        """Tokens of what stands around each prompt."""
        plain = PlainText(self.tokenizer, special_tokens=False)
        return len(self([STAND_IN])[0][0]) - len(plain([STAND_IN])[0][0])

    def fingerprint(self) -> list[Any] | None:
        """All that decides what a prompt becomes, as plain values; None where the tokenizer does not tell."""
        content = content_of(self.tokenizer)
        if content is None:
            return None
        return [content, *vars(self.frame).values(), self.mark, self._spans, self._encode.control_names]

    def shortened(self, ids: list[int], spans: Spans | None, limit: int) -> tuple[list[int], Spans | None]:
        """Cut to a number of tokens, from the end of the prompt; what is behind it (final special token, end mark, end
        of the frame) stays.

        Raises:
            UserError: the frame alone takes as many.
        """
        if len(ids) <= limit:
            return ids, spans
        tail = self._tail
        if spans is not None and self.frame.after:
            tail = spans.behind
        if spans is not None and self.frame and tail + spans.leading >= limit:
            raise UserError(
                f"what stands around a prompt for the LLM (model.llm.prefix, chat) takes {tail + spans.leading} tokens,"
                f" and at most {limit} are allowed: nothing would be left of the prompt; raise data.max_prompt_tokens"
            )
        head = max(limit - tail, 0)
        keep = [*range(head), *range(len(ids) - (limit - head), len(ids))]
        return [ids[i] for i in keep], None if spans is None else spans.take(keep)


def pad_id(tokenizer: Any) -> int:
    """The token to pad with; masks tell padding from text, so eos will do.

    Raises:
        UserError: the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(f"tokenizer {tokenizer.name_or_path!r} has neither a pad nor an eos token; set one")


def content_of(tokenizer: Any) -> str | None:
    """A hash of all that a fast tokenizer does to a text; None for a slow one."""
    if not tokenizer.is_fast:
        return None
    options = [tokenizer.split_special_tokens, tokenizer.unk_token, control_tokens(tokenizer)]
    rules = _rules_hash(tokenizer.backend_tokenizer.to_str())
    return hashlib.sha256(json.dumps([rules, options], sort_keys=True).encode()).hexdigest()


def _rules_hash(serialized: str) -> str:
    key = hashlib.sha256(serialized.encode()).digest()
    if key not in _RULES:
        rules = json.loads(serialized)
        # what it does to a text when it is called without either, and not how it was called last
        del rules["truncation"], rules["padding"]
        _RULES[key] = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
    return _RULES[key]


_RULES: dict[bytes, str] = {}
"""Hash of a serialized tokenizer -> hash of its rules: sorting a large vocabulary takes a second, hashing it 20 ms."""


def final_special_tokens(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts behind every text."""
    with_special = tokenizer("a", verbose=False)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    for behind in range(len(with_special) - len(plain) + 1):
        end = len(with_special) - behind
        if with_special[end - len(plain) : end] == plain:
            return behind
    return 0
