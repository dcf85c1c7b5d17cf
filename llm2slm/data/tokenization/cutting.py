"""Reduction of a tokenizer's vocabulary to the entries that given texts need.

The texts keep their tokenization, and any other text can still be encoded. Kept are: the entries used by the texts; all
added and special tokens; single bytes (byte-level BPE: the alphabet of 256 characters; byte fallback: the 256 pieces
<0x..>), else single ASCII characters and the characters of the texts; and the parts of these entries. Ids keep their
order.

Why the tokenization of the texts is unchanged: BPE repeatedly applies the merge of the lowest rank. All intermediate
parts of each kept entry are kept, so every merge applied to the texts remains, and stays the lowest one in the reduced
set. Unigram selects the best segmentation and WordPiece the longest match; removing unselected entries changes neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast

from llm2slm.data.tokenization.tokenizer import ALPHABET, CUT, FIRST_ADDED, cut_of, first_added, rebuilt, steps
from llm2slm.types import UserError

ASCII = tuple(map(chr, range(32, 127)))
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")


def cut(
    tokenizer: PreTrainedTokenizerFast, used: Iterable[int], characters: Iterable[str], whole_model: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer with only the used and the required entries (see the module).

    `original_ids` of the new tokenizer gives the id of each entry in the whole vocabulary.

    Args:
        used: ids used by the texts.
        characters: characters of the texts.
        whole_model: the tokenizer is already a cut one, but the model has the whole vocabulary.

    Raises:
        UserError: a tokenizer of this type cannot be cut.
    """
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r}: {NOT_CUT} it has no fast implementation")
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    if rules["model"]["type"] not in KINDS:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r}: {NOT_CUT} it is a {rules['model']['type']}")
    entries = {i: str(token) for token, i in tokenizer.get_vocab().items()}
    kept = sorted(_needed(tokenizer, rules, set(used), set(characters)))
    new = {old: i for i, old in enumerate(kept)}
    made = rebuilt(tokenizer, _renumbered(rules, new, entries))
    found = made.convert_ids_to_tokens(list(range(len(kept))))
    if len(made) != len(kept) or found != [entries[i] for i in kept]:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r}: {NOT_CUT} its ids do not follow from its tokenizer.json"
        )
    added, before = first_added(tokenizer), cut_of(tokenizer)
    end = len(tokenizer) if added is None else added
    ids = [i for i in kept if i < end] if before is None else [before.ids[i] for i in kept if i < len(before.ids)]
    rows = kept
    if before is not None and whole_model:  # tokens added after the first cut follow its rows
        known = [*before.rows, *range(before.rows[-1] + 1, before.rows[-1] + 1 + len(tokenizer) - len(before.rows))]
        rows = [known[i] for i in kept]
    made.init_kwargs[CUT] = {"of": end if before is None else before.of, "ids": ids}
    made.init_kwargs[CUT] |= {} if ids == rows else {"rows": rows}
    if added is not None:
        made.init_kwargs[FIRST_ADDED] = sum(i < added for i in kept)
    return made


NOT_CUT = "its vocabulary cannot be cut (model.slm.vocab=corpus):"


def _needed(
    tokenizer: PreTrainedTokenizerFast, rules: Mapping[str, Any], used: set[int], characters: set[str]
) -> set[int]:
    """The ids to keep."""
    model, vocab = rules["model"], _vocabulary(rules["model"])
    found = used | {token["id"] for token in rules["added_tokens"]} | set(tokenizer.all_special_ids)
    unknown = model.get("unk_token")
    found |= {vocab[unknown]} if unknown in vocab else set()
    if model["type"] == "Unigram":
        found |= set() if model.get("unk_id") is None else {model["unk_id"]}
        # the score of an unknown character is 10 below the lowest score
        found |= {min(range(len(model["vocab"])), key=lambda i: model["vocab"][i][1])} if model["vocab"] else set()
    parts = [rules[name] for name in ("normalizer", "pre_tokenizer", "decoder")]
    if any(step["type"] == "ByteLevel" for part in parts for step in steps(part)):
        single: Iterable[str] = ALPHABET
    elif model.get("byte_fallback"):
        single = BYTE_PIECES
    else:
        single = {*ASCII, *characters}
    prefix, suffix = _affixes(model)
    forms = (form for one in single for form in (one, prefix + one, one + suffix, prefix + one + suffix))
    found |= {vocab[form] for form in forms if form in vocab}
    return found if model["type"] != "BPE" else found | _parts(model, found)


def _affixes(model: Mapping[str, Any]) -> tuple[str, str]:
    """Prefix of word-continuing entries and suffix of word-final entries ("" if unused)."""
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    vocab = model["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = model["merges"]
    return [tuple(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in merges]


def _parts(model: Mapping[str, Any], kept: set[int]) -> set[int]:
    """The ids of all intermediate parts from which BPE builds the kept entries."""
    vocab = model["vocab"]
    names = {i: name for name, i in vocab.items()}
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(_pairs(model))))}
    prefix, suffix = _affixes(model)
    found = set()
    for i in kept & names.keys():
        for part in _made(names[i], ranks, prefix, suffix):
            if part in vocab:
                found.add(vocab[part])
    return found


def _made(entry: str, ranks: Mapping[tuple[str, str], int], prefix: str, suffix: str) -> list[str]:
    """The characters of an entry, then its parts in the order in which BPE merges them."""
    start = prefix if prefix and entry.startswith(prefix) else ""
    end = suffix if suffix and entry.endswith(suffix) else ""
    word = list(entry[len(start) : len(entry) - len(end)])
    if not word:
        return []
    word = [start + word[0], *(prefix + character for character in word[1:])]
    word[-1] += end
    made = list(word)
    while len(word) > 1:
        best = min(range(len(word) - 1), key=lambda n: ranks.get((word[n], word[n + 1]), len(ranks)))
        if (word[best], word[best + 1]) not in ranks:
            break  # an entry without merges (ignore_merges)
        word[best : best + 2] = [word[best] + word[best + 1].removeprefix(prefix)]
        made.append(word[best])
    return made


def _renumbered(rules: Mapping[str, Any], new: Mapping[int, int], entries: Mapping[int, str]) -> dict[str, Any]:
    """The content of tokenizer.json with the kept entries under their new ids.

    Args:
        new: old id -> new id.
        entries: old id -> entry.
    """
    model = dict(rules["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {piece: new[i] for piece, i in model["vocab"].items() if i in new}
    else:
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        model["unk_id"] = None if model.get("unk_id") is None else new[model["unk_id"]]
    if "merges" in model:
        prefix, _ = _affixes(model)
        vocab = model["vocab"]
        model["merges"] = [
            [one, two]
            for one, two in _pairs(rules["model"])
            if one in vocab and two in vocab and one + two.removeprefix(prefix) in vocab
        ]
    added = [token | {"id": new[token["id"]]} for token in rules["added_tokens"]]
    behind = json.loads(json.dumps(rules["post_processor"]))
    ids = {entries[old]: i for old, i in new.items()}
    for step in steps(behind):
        for token in (step.get("special_tokens") or {}).values():
            token["ids"] = [ids[name] for name in token["tokens"]]
        for name in ("sep", "cls"):
            if name in step:
                step[name] = [step[name][0], ids[step[name][0]]]
    changed = {"model": model, "added_tokens": added, "post_processor": behind, "truncation": None, "padding": None}
    return {**rules, **changed}
