"""Added tokens for what a tokenizer loses: white space, and characters that its vocabulary lacks.

Tokenizers in the way of SentencePiece (T5, mBART, ...) write a space as ▁ in front of each word, fold all white space
into it, and have no piece for some characters. Here such a tokenizer gets those as added tokens, and the rules that put
a space where none was are taken out: a word right behind an added token has no ▁. Words between single spaces keep
their ids.
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
"""What `keep_whitespace` adds, as far as it is lost."""

CONTEXTS = ("a{}b", "a {} b", "a{0}{0}b", "{}b")
"""Texts that must be read back, whatever stands for {}."""


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """How often each character occurs, but for the space, which every tokenizer writes in its own way."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(text)
    del found[" "]
    return found


def keeping(
    tokenizer: PreTrainedTokenizerFast, whitespace: bool, characters: Mapping[str, int], limit: int
) -> PreTrainedTokenizerFast:
    """A tokenizer that reads back what this one loses; the same object where it loses nothing of it.

    Args:
        whitespace: add white space (`WHITE_SPACE`).
        characters: of the texts that are to be kept, and how often each occurs.
        limit: characters to add at most, the most frequent ones first. Those that the decoder rewrites are left out.

    Raises:
        UserError: this kind of tokenizer cannot be made to keep them.
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
            f"tokenizer {tokenizer.name_or_path!r} loses {min(still, key=added.index)!r} even as an added token: one "
            f"that joins words by other rules than spaces written as ▁ cannot keep all of a text; {REMEDY}"
        )
    return kept


REMEDY = "train a tokenizer that does: model.slm.tokenizer=train:8000 model.slm.init=random"


def rewritten(tokenizer: PreTrainedTokenizerFast, characters: Iterable[str]) -> list[str]:
    """The lost characters that the tokenizer's decoder replaces in added tokens too, so that none can hold them.

    SentencePiece's decoder writes each ▁ as a space.
    """
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []
    replaced = [character for character in characters if character not in decoder.decode(["a", character, "b"])]
    return sorted(_lost(tokenizer, replaced))


def _lost(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> set[str]:
    """Those of the texts that are not read back, in some context."""
    pairs = [(text, context.format(text)) for text in texts for context in CONTEXTS]
    rows = PlainText(tokenizer, special_tokens=False)([context for _, context in pairs])
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    lost = set()
    for (text, context), (ids, _) in zip(pairs, rows, strict=True):
        if str(tokenizer.decode(ids, **options)).strip() != context.strip():
            lost.add(text)
    return lost


def _extended(tokenizer: PreTrainedTokenizerFast, added: list[str]) -> PreTrainedTokenizerFast:
    """A copy with added tokens, whose rules add and fold no spaces."""
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
    """The same without some of its steps; None where none is left."""
    if rules is None:
        return None
    for name in ("normalizers", "pretokenizers"):
        if name in rules:
            inner = [part for part in (_without(part, out) for part in rules[name]) if part is not None]
            return rules | {name: inner} if inner else None
    return None if out(rules) else rules


def _folds(step: dict[str, Any]) -> bool:
    """Whether a step of a normalizer takes white space away."""
    if step["type"] != "Replace":
        return bool(step["type"] == "Strip")
    pattern = step["pattern"]
    said = pattern.get("Regex", re.escape(pattern.get("String", "")))
    try:
        return re.fullmatch(said, "  ") is not None
    except re.error:  # Oniguruma knows more than re
        return False
