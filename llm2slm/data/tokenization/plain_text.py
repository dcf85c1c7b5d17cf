"""Encoding of content as plain text, without control tokens.

A tokenizer turns a literal `</s>` or `<|im_end|>` in a text into the control token of that name. `PlainText` accepts
control tokens only from the frame (chat template, special tokens added by the tokenizer); in content, their names are
encoded with ordinary pieces. Content without such names gets exactly the ids of the tokenizer.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

from llm2slm.data.tokenization.align import Spans
from llm2slm.types import UserError

HARMLESS = "a"
"""A content without control tokens, to count the control tokens of a frame."""

ROLES = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
"""Roles of control tokens; an unknown token with one of them is a control token too."""

Coded = tuple[list[int], Spans | None]
"""Token ids of a text, and their spans in its content."""


def _templates(tokenizer: Any) -> list[str]:
    """The source of the tokenizer's chat templates."""
    found = tokenizer.chat_template or []
    return [found] if isinstance(found, str) else list(found.values() if isinstance(found, dict) else found)


class PlainText:
    """Encodes contents, each in the same frame.

    Control tokens are the tokens marked as special, and added tokens that occur in the frame or, if there is a frame,
    in any branch of the chat template. The unknown token may result from an unknown character of the content, but not
    from its literal name. Other added tokens are ordinary vocabulary.

    Args:
        tokenizer: a transformers tokenizer.
        before, after: text around each content, in which a fast tokenizer encodes control tokens as such.
        special_tokens: add the tokenizer's special tokens.
    """

    def __init__(self, tokenizer: Any, before: str = "", after: str = "", special_tokens: bool = True) -> None:
        self.tokenizer, self.before, self.after, self.special_tokens = tokenizer, before, after, special_tokens
        self._splits = bool(tokenizer.split_special_tokens or not tokenizer.is_fast)
        self._names = control_tokens(tokenizer)
        if not self._splits:
            added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
            texts = (before, after, *(_templates(tokenizer) if before or after else ()))
            self._names |= {name: added[name] for text in texts for name in _found(text, added)}
        self._unknown = tokenizer.unk_token
        unknown = tokenizer.unk_token_id
        apart = {unknown} - {getattr(tokenizer, role, None) for role in ROLES}
        self._control = frozenset(self._names.values()) - apart
        self._own: int | None = None  # control tokens of the frame
        self._escaped: _Escaped | None = None

    @property
    def control_names(self) -> list[str]:
        """The control tokens, sorted."""
        return sorted(self._names)

    def __call__(self, contents: Sequence[str], spans: bool = False) -> list[Coded]:
        """Token ids of each content in the frame, with `spans` also the tokens' character spans in the content.

        Tokens of the frame count as special.

        Raises:
            UserError: the tokenizer has no ordinary pieces for a content.
        """
        if not contents:
            return []
        if self._own is None:
            self._own = self._count(self._in_one_pass([HARMLESS], spans=False)[0][0])
        rows = self._in_one_pass(contents, spans)
        for i, content in enumerate(contents):
            if self._count(rows[i][0]) != self._own or (self._unknown and self._unknown in content):
                rows[i] = self._without_control_tokens(content, spans)
        return rows

    def _count(self, ids: Iterable[int]) -> int:
        return sum(map(self._control.__contains__, ids))

    def _in_one_pass(self, contents: Sequence[str], spans: bool) -> list[Coded]:
        """The tokenizer's encoding; a fast tokenizer also encodes control tokens in contents."""
        found = self.tokenizer(
            [f"{self.before}{content}{self.after}" for content in contents],
            add_special_tokens=self.special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=spans,
            return_special_tokens_mask=spans,
            split_special_tokens=self._splits,
            verbose=False,
        )
        rows: list[list[int]] = found["input_ids"]
        if not spans:
            return [(ids, None) for ids in rows]
        parts = zip(rows, found["offset_mapping"], found["special_tokens_mask"], contents, strict=True)
        return [(ids, self._within(Spans.of(*where), len(self.before), content)) for ids, *where, content in parts]

    def _within(self, spans: Spans, start: int, content: str) -> Spans:
        return spans.within(start, len(content)) if self.before or self.after else spans

    def _without_control_tokens(self, content: str, spans: bool) -> Coded:
        """The content, encoded with ordinary pieces, in the frame.

        Raises:
            UserError: the tokenizer has no ordinary pieces for it.
        """
        ids, found = self._plain(content, spans)
        if self._count(ids) != self._own:
            name = next((name for name in self._names if name in content), content[:40])
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path!r}: encodes {name!r} in a text only as its control token of "
                "that name; remove it from the text, or use another tokenizer"
            )
        return ids, found

    def _plain(self, content: str, spans: bool) -> Coded:
        if not self.tokenizer.is_fast:  # its encoding splits control tokens already
            return self._in_one_pass([content], spans)[0]
        if self._escaped is None:
            self._escaped = _Escaped(self.tokenizer, self._names, self.before, self.after)
            framed = self._escaped.encode(HARMLESS, self.special_tokens).ids
            if framed != self._in_one_pass([HARMLESS], spans=False)[0][0]:
                raise UserError(
                    f"tokenizer {self.tokenizer.name_or_path!r}: a text that holds one of its control tokens cannot be "
                    f"encoded as plain text ({content[:40]!r}); remove it from the text, or use another tokenizer"
                )
        found = self._escaped.encode(content, self.special_tokens)
        if not spans:
            return found.ids, None
        where = Spans.of(found.offsets, found.special_tokens_mask)
        return found.ids, self._within(where, len(self._escaped.before), content)


class _Escaped:
    """A copy of a tokenizer whose control tokens have random names and the same ids; the frame uses the new names.

    One pass encodes frame and content like the original tokenizer, but a control token's original name in the content
    is ordinary text. Vocabulary pieces of that name (in Unigram vocabularies) are renamed too.
    """

    def __init__(self, tokenizer: Any, control: dict[str, int], before: str, after: str) -> None:
        secret = secrets.token_hex(16)
        self._names = {name: f"xq{secret}q{number}x" for name, number in control.items()}
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules["truncation"] = rules["padding"] = None
        added = [token["content"] for token in rules["added_tokens"]]
        for token in rules["added_tokens"]:
            token["content"] = self._names.get(token["content"], token["content"])
        self._rename_pieces(rules["model"])
        self.tokenizer = Tokenizer.from_str(json.dumps(rules))
        self.tokenizer.encode_special_tokens = tokenizer.split_special_tokens
        known = set() if tokenizer.split_special_tokens else set(added)  # else the frame has no control tokens
        self.before, self.after = (self._renamed(text, known) for text in (before, after))

    def encode(self, content: str, special_tokens: bool) -> Any:
        """The `tokenizers.Encoding` of a content in its frame; offsets count from the start of `before`."""
        return self.tokenizer.encode(f"{self.before}{content}{self.after}", add_special_tokens=special_tokens)

    def _rename_pieces(self, model: dict[str, Any]) -> None:
        names, vocab = self._names, model["vocab"]
        if isinstance(vocab, dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in vocab.items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        if "merges" in model:
            pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
            model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]

    def _renamed(self, text: str, added: Iterable[str]) -> str:
        pattern = _pattern(added)
        return text if pattern is None else pattern.sub(lambda found: self._names.get(found[0], found[0]), text)


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that a tokenizer marks as special -> their ids."""
    marked = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return marked | {str(token): number for token, number in named}


def _pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    """Matches names like a tokenizer: leftmost, then longest."""
    ordered = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _found(text: str, names: Iterable[str]) -> set[str]:
    pattern = _pattern(names)
    return set() if pattern is None or not text else set(pattern.findall(text))
