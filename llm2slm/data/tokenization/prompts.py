"""Tokenization of prompts: token ids and spans, optionally truncated.

The LLM's prompt may have a `Frame` (an instruction prefix, a chat template) that the SLM's prompt lacks. Spans count
characters of the prompt without frame, so that the spans of both tokenizers are comparable.
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
"""End mark of the prompt of a decoder-only SLM whose tokenizer appends no special token: it separates prompt and
response."""

PLACEHOLDER = "llm2slm5prompt"
"""The prompt while a chat template is rendered; without meaning in any template."""

PROBE = 'He said "no" <b>&amp;\\n</b> {{x}}\n\n it\'s é😀'
"""A prompt that a template must render unchanged (prompts have no white space at their ends)."""


@dataclass(frozen=True)
class Frame:
    """The text around a prompt.

    Attributes:
        before, after: text of a chat template, in which control tokens are encoded as such.
        special_tokens: the tokenizer adds its special tokens around the whole text.
        prefix: plain text between `before` and the prompt.
    """

    before: str = ""
    after: str = ""
    special_tokens: bool = True
    prefix: str = ""

    def around(self, text: str) -> str:
        """The text inside the frame."""
        return f"{self.before}{self.prefix}{text}{self.after}"

    def __bool__(self) -> bool:
        """Whether there is any text around the prompt."""
        return bool(self.before or self.prefix or self.after)


def frame(tokenizer: Any, prefix: str, chat: bool) -> Frame:
    """The frame of the LLM's prompts.

    Args:
        prefix: plain text before every prompt; with `chat` part of the user turn.
        chat: render the prompt as a user turn with the tokenizer's chat template and its generation prompt.

    Raises:
        UserError: the tokenizer has no chat template, or one that does not contain the prompt exactly once, unchanged.
    """
    if not chat:
        return Frame(prefix=prefix)
    name = f"model.llm.chat=true: the tokenizer {tokenizer.name_or_path!r}"
    if not tokenizer.chat_template:
        raise UserError(f"{name} has no chat template; use model.llm.prefix, or another model.llm.tokenizer")
    before, _, after = (rendered := _rendered(tokenizer, prefix + PLACEHOLDER, name)).partition(PLACEHOLDER)
    if rendered.count(PLACEHOLDER) != 1 or _rendered(tokenizer, prefix + PROBE, name).count(PROBE) != 1:
        raise UserError(
            f"{name} has a chat template that does not contain the prompt exactly once, unchanged; use model.llm.prefix"
        )
    shown = prefix if before.endswith(prefix) else prefix.lstrip()  # a template may strip the content
    return Frame(before.removesuffix(shown), after, special_tokens=False, prefix=shown)  # the template has them


def _rendered(tokenizer: Any, text: str, name: str) -> str:
    """A user turn with generation prompt, rendered by the chat template."""
    try:
        rendered: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates are programs and raise any exception
        raise UserError(f"{name} has a chat template that fails: {str(error).partition(chr(10))[0]}") from None
    return rendered


class PromptTokenizer:
    """Tokenizes prompts.

    Args:
        tokenizer: a transformers tokenizer.
        frame: frame of each prompt.
        mark: end mark of each prompt, inside of the frame.
        spans: return the tokens' spans in the prompt (requires a fast tokenizer).
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
        """The tokenized text: the prompt with end mark and frame."""
        return self.frame.around(self._marked(prompt))

    def _marked(self, prompt: str) -> str:
        """The prompt with the end mark; an empty prompt without a frame has none."""
        return prompt + self.mark if prompt or self.frame else prompt

    def __call__(self, prompts: Sequence[str]) -> list[tuple[list[int], Spans | None]]:
        """Token ids of each prompt, and their spans in the prompt.

        Only the frame yields control tokens, not the prompt and the frame's prefix. An empty prompt without a frame
        consists of the tokenizer's special tokens, without end mark; if there are none, of bos or else eos, since the
        first token of the response needs a predecessor.

        Raises:
            UserError: the tokenizer has no ordinary pieces for a prompt.
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
        """An empty prompt under a tokenizer without special tokens: bos or else eos; no token if it has neither."""
        found = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        ids = [token for token in found if token is not None][:1]
        return ids, Spans.of([(0, 0)] * len(ids), [1] * len(ids)) if self._spans else None

    @cached_property
    def overhead(self) -> int:
        """Number of tokens of the frame, end mark and special tokens of each prompt."""
        plain = PlainText(self.tokenizer, special_tokens=False)
        return len(self([PLACEHOLDER])[0][0]) - len(plain([PLACEHOLDER])[0][0])

    def fingerprint(self) -> list[Any] | None:
        """All settings that determine the tokenization, as plain values; None for a slow tokenizer."""
        content = content_of(self.tokenizer)
        if content is None:
            return None
        return [content, *vars(self.frame).values(), self.mark, self._spans, self._encode.control_names]

    def shortened(self, ids: list[int], spans: Spans | None, limit: int) -> tuple[list[int], Spans | None]:
        """Truncates to `limit` tokens at the end of the prompt; final special token, end mark and the end of the frame
        stay.

        Raises:
            UserError: the frame alone has `limit` tokens or more.
        """
        if len(ids) <= limit:
            return ids, spans
        tail = self._tail
        if spans is not None and self.frame.after:
            tail = spans.behind
        if spans is not None and self.frame and tail + spans.leading >= limit:
            raise UserError(
                f"the frame of the LLM's prompts (model.llm.prefix, chat) takes {tail + spans.leading} tokens, and at "
                f"most {limit} are allowed: nothing would be left of the prompt; raise data.max_prompt_tokens"
            )
        head = max(limit - tail, 0)
        keep = [*range(head), *range(len(ids) - (limit - head), len(ids))]
        return [ids[i] for i in keep], None if spans is None else spans.take(keep)


def pad_id(tokenizer: Any) -> int:
    """The padding token's id: pad, or else eos (padding is recognized by masks).

    Raises:
        UserError: the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(f"tokenizer {tokenizer.name_or_path!r} has neither a pad nor an eos token; set one")


def content_of(tokenizer: Any) -> str | None:
    """A hash of all rules and options of a fast tokenizer that affect an encoding; None for a slow one."""
    if not tokenizer.is_fast:
        return None
    options = [tokenizer.split_special_tokens, tokenizer.unk_token, control_tokens(tokenizer)]
    rules = _rules_hash(tokenizer.backend_tokenizer.to_str())
    return hashlib.sha256(json.dumps([rules, options], sort_keys=True).encode()).hexdigest()


def _rules_hash(serialized: str) -> str:
    key = hashlib.sha256(serialized.encode()).digest()
    if key not in _RULES:
        rules = json.loads(serialized)
        # state of the last call
        del rules["truncation"], rules["padding"]
        _RULES[key] = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
    return _RULES[key]


_RULES: dict[bytes, str] = {}
"""Hash of a serialized tokenizer -> hash of its rules: sorting a large vocabulary takes a second, hashing it 20 ms."""


def final_special_tokens(tokenizer: Any) -> int:
    """Number of special tokens that the tokenizer appends to every text."""
    with_special = tokenizer("a", verbose=False)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    for behind in range(len(with_special) - len(plain) + 1):
        end = len(with_special) - behind
        if with_special[end - len(plain) : end] == plain:
            return behind
    return 0
