"""Added tokens for text that a tokenizer loses: white space, and characters missing from its vocabulary.

SentencePiece-style tokenizers (T5, mBART, ...) encode a space as ▁ at the start of each word, fold all white space into
it, and lack pieces for some characters. `keeping` adds tokens for these, and removes the rules that insert or fold
spaces: a word directly after an added token has no ▁. Words separated by single spaces keep their ids.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from llm2slm.data.tokenization.plain_text import PlainText
from llm2slm.data.tokenization.tokenizer import FIRST_ADDED, rebuilt, steps
from llm2slm.types import UserError

WHITE_SPACE = ("\n", "\t", "\r", *(" " * n for n in (2, 4, 8, 16)))
"""The white space that `keep_whitespace` adds, if the tokenizer loses it."""

CONTEXTS = ("a{}b", "a {} b", "a{0}{0}b", "{}b")
"""Contexts in which a text must survive encoding and decoding."""


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """Frequency of each character except the space, which tokenizers represent in different ways."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(text)
    del found[" "]
    return found


def keeping(
    tokenizer: PreTrainedTokenizerFast, whitespace: bool, characters: Mapping[str, int], limit: int
) -> PreTrainedTokenizerFast:
    """A tokenizer with added tokens for the text that this one loses; the same object if it loses nothing.

    Args:
        whitespace: add white space (`WHITE_SPACE`).
        characters: character -> frequency in the texts.
        limit: maximum number of added characters, by descending frequency; without those that the decoder rewrites.

    Raises:
        UserError: the tokenizer loses text even with added tokens.
    """
    left_out = rewritten(tokenizer, characters)
    found = [character for character in characters if character not in left_out]
    ordered = sorted(found, key=lambda character: (-characters[character], character))
    lost = _lost(tokenizer, [*WHITE_SPACE, *ordered])
    added = [text for text in WHITE_SPACE if whitespace and text in lost]
    added += [character for character in ordered if character in lost and character not in added][:limit]
    if not added:
        return tokenizer
    kept = _extended(tokenizer, added)
    still = _lost(kept, added)
    if still:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} loses {min(still, key=added.index)!r} even as an added token: only "
            f"tokenizers that encode spaces as ▁ can keep all text; {REMEDY}"
        )
    return kept


REMEDY = "train a lossless tokenizer: model.slm.tokenizer=train:8000 model.slm.init=random"


def rewritten(tokenizer: PreTrainedTokenizerFast, characters: Iterable[str]) -> list[str]:
    """The lost characters that the decoder replaces even in added tokens (SentencePiece's decoder turns ▁ into a
    space), so that no token can represent them."""
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []
    replaced = [character for character in characters if character not in decoder.decode(["a", character, "b"])]
    return sorted(_lost(tokenizer, replaced))


def _lost(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> set[str]:
    """The texts that encoding and decoding change in at least one context."""
    pairs = [(text, context.format(text)) for text in texts for context in CONTEXTS]
    rows = PlainText(tokenizer, special_tokens=False)([context for _, context in pairs])
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    lost = set()
    for (text, context), (ids, _) in zip(pairs, rows, strict=True):
        if str(tokenizer.decode(ids, **options)).strip() != context.strip():
            lost.add(text)
    return lost


def _extended(tokenizer: PreTrainedTokenizerFast, added: list[str]) -> PreTrainedTokenizerFast:
    """A copy with added tokens, without the rules that insert or fold spaces."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    first = len(tokenizer)
    if any(step["type"] == "Metaspace" for step in steps(rules["decoder"])):
        rules["normalizer"] = _without(rules["normalizer"], _folds)
        rules["pre_tokenizer"] = _without(rules["pre_tokenizer"], lambda step: step["type"] == "WhitespaceSplit")
        for step in [*steps(rules["pre_tokenizer"]), *steps(rules["decoder"])]:
            if step["type"] == "Metaspace":
                step |= {"prepend_scheme": "first", "split": True}
        extended = rebuilt(tokenizer, rules, clean_up_tokenization_spaces=False)
    else:
        extended = deepcopy(tokenizer)
    extended.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
    extended.init_kwargs[FIRST_ADDED] = first
    return extended


def _without(rules: Any, out: Any) -> Any:
    """The rules without the steps for which `out` is True; None if none remains."""
    if rules is None:
        return None
    for name in ("normalizers", "pretokenizers"):
        if name in rules:
            inner = [part for part in (_without(part, out) for part in rules[name]) if part is not None]
            return rules | {name: inner} if inner else None
    return None if out(rules) else rules


def _folds(step: dict[str, Any]) -> bool:
    """Whether a normalizer step removes white space."""
    if step["type"] != "Replace":
        return bool(step["type"] == "Strip")
    pattern = step["pattern"]
    regex = pattern.get("Regex", re.escape(pattern.get("String", "")))
    try:
        return re.fullmatch(regex, "  ") is not None
    except re.error:  # Oniguruma syntax that `re` lacks
        return False
