"""Content as plain text: whatever a text holds, its token ids hold no control token.

A tokenizer turns a literal `</s>` or `<|im_end|>` in a text into the control token of that name. Here only the frame
(a chat template, the special tokens that the tokenizer adds) brings control tokens; content is spelled out from plain
pieces. Text without control tokens is encoded by the tokenizer in one pass: its ids are exactly the tokenizer's.
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
"""A content that holds no control token, to see what a frame itself brings."""

ROLES = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
"""Of a control token, none of which may stand for an unknown character as well."""

Coded = tuple[list[int], Spans | None]
"""Token ids of a text, and where they lie in its content."""


def _templates(tokenizer: Any) -> list[str]:
    """The source of the tokenizer's chat templates."""
    found = tokenizer.chat_template or []
    return [found] if isinstance(found, str) else list(found.values() if isinstance(found, dict) else found)


class PlainText:
    """Encodes contents, each inside of the same frame.

    A control token is one that the tokenizer marks as special, or an added one that the frame or (where there is a
    frame) the chat template uses, also in a branch that a user's turn does not reach. The token
    of unknown characters may stand in a content (but not where the content has it as text). Added tokens that are not
    marked as special are ordinary vocabulary.

    Args:
        tokenizer: a transformers tokenizer.
        before, after: text around each content, in which control tokens are control tokens (of a fast tokenizer).
        special_tokens: let the tokenizer add its special tokens.
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
        """Token ids of each content in its frame; with `spans` also where they lie in the content.

        Spans count characters of the content; tokens of the frame count as special.

        Raises:
            UserError: the tokenizer has no plain pieces for a content.
        """
        if not contents:
            return []
        if self._own is None:
            self._own = self._count(self._in_one_pass([HARMLESS], spans=False)[0][0])
        rows = self._in_one_pass(contents, spans)
        for i, content in enumerate(contents):
            if self._count(rows[i][0]) != self._own or (self._unknown and self._unknown in content):
                rows[i] = self._spelled_out(content, spans)
        return rows

    def _count(self, ids: Iterable[int]) -> int:
        return sum(map(self._control.__contains__, ids))

    def _in_one_pass(self, contents: Sequence[str], spans: bool) -> list[Coded]:
        """As the tokenizer encodes them, control tokens in the contents among the others (but for a slow tokenizer)."""
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
        places = zip(rows, found["offset_mapping"], found["special_tokens_mask"], contents, strict=True)
        return [(ids, self._within(Spans.of(*place), len(self.before), content)) for ids, *place, content in places]

    def _within(self, spans: Spans, start: int, content: str) -> Spans:
        return spans.within(start, len(content)) if self.before or self.after else spans

    def _spelled_out(self, content: str, spans: bool) -> Coded:
        """The content from ordinary pieces, in its frame.

        Raises:
            UserError: the tokenizer has none for it.
        """
        ids, places = self._plain(content, spans)
        if self._count(ids) != self._own:
            name = next((name for name in self._names if name in content), content[:40])
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path!r}: cannot write {name!r} in a text but as its control token "
                "of that name; take it out of the text, or use another tokenizer"
            )
        return ids, places

    def _plain(self, content: str, spans: bool) -> Coded:
        if not self.tokenizer.is_fast:  # it splits by itself
            return self._in_one_pass([content], spans)[0]
        if self._escaped is None:
            self._escaped = _Escaped(self.tokenizer, self._names, self.before, self.after)
            framed = self._escaped.encode(HARMLESS, self.special_tokens).ids
            if framed != self._in_one_pass([HARMLESS], spans=False)[0][0]:
                raise UserError(
                    f"tokenizer {self.tokenizer.name_or_path!r}: a text that holds one of its control tokens cannot be "
                    f"encoded as plain text ({content[:40]!r}); take it out of the text, or use another tokenizer"
                )
        found = self._escaped.encode(content, self.special_tokens)
        if not spans:
            return found.ids, None
        places = Spans.of(found.offsets, found.special_tokens_mask)
        return found.ids, self._within(places, len(self._escaped.before), content)


class _Escaped:
    """A tokenizer whose control tokens have names that no text holds, and the same ids; the frame written with them.

    So one pass over frame and content cuts both as the tokenizer itself does, and a control token's literal name is
    text like any other. Vocabularies that hold that name as a piece (Unigram ones do) have it renamed too.
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
        known = set() if tokenizer.split_special_tokens else set(added)  # else a frame has no control tokens either
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
    """The control tokens of a tokenizer, each with its id: all that it marks as special."""
    marked = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return marked | {str(token): number for token, number in named}


def _pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    """Finds names as a tokenizer does: the leftmost first, of several there the longest."""
    ordered = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _found(text: str, names: Iterable[str]) -> set[str]:
    pattern = _pattern(names)
    return set() if pattern is None or not text else set(pattern.findall(text))
