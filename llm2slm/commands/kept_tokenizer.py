"""The tokenizer of the model that writes, changed for the training texts: `model.slm.keep_whitespace`,
`keep_characters` (what it loses becomes tokens of it) and `vocab` (entries that are not needed are taken out).

The changed tokenizer is written into the run directory and named in the configuration, as a trained one is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm2slm.atomic import filling
from llm2slm.commands.tokenizer import training_examples
from llm2slm.config import DataConfig, LanguageModelConfig, ModelConfig, TaskConfig
from llm2slm.types import Conditioning, Example, SystemKind, Tokenizers, UserError

SHOWN = 12
"""Added tokens that are listed by name."""
PART = 1_000
"""Rows tokenized at once."""


def check_keeping(model: ModelConfig, data: DataConfig) -> None:
    """Refuses keep_whitespace, keep_characters and vocab where they cannot be obeyed.

    Raises:
        UserError: the LLM would get the new ids, or a vocabulary would be cut to rows that are streamed.
    """
    side, writer = _writer(model)
    shared = model.kind is SystemKind.llm2slm and model.tokenizers is Tokenizers.shared
    key = _key(side, writer)
    if key is not None and shared:
        raise UserError(
            f"{key} adds tokens that the LLM does not know, and with model.tokenizers=shared it would read them; set "
            "model.tokenizers=offsets"
        )
    if writer.vocab is None:
        return
    if shared:
        raise UserError(
            f"model.{side}.vocab={writer.vocab} gives the SLM another vocabulary than the LLM has, and with "
            "model.tokenizers=shared both read the same tokens; set model.tokenizers=offsets or llm_tokens"
        )
    if data.streaming:
        raise UserError(
            f"model.{side}.vocab={writer.vocab} looks at every training row first, and with data.streaming=true they "
            "are read while training; set data.streaming=false, or name a tokenizer that another run has cut: "
            f"model.{side}.tokenizer=RUN/tokenizers/{side}_kept"
        )


def keep_ordered(model: ModelConfig, data: DataConfig, task: TaskConfig, seed: int, folder: Path) -> None:
    """Changes the tokenizer of the model that writes as its configuration orders, and names it there.

    Raises:
        UserError: the tokenizer or the corpus cannot be read, the tokenizer cannot be made to keep what it loses, or
            its vocabulary cannot be cut.
    """
    side, language_model = _writer(model)
    out = folder / "tokenizers" / f"{side}_kept"
    # a run that goes on names it already
    nothing = _key(side, language_model) is None and language_model.vocab is None
    if nothing or language_model.tokenizer == str(out.resolve()):
        return
    if os.environ.get("LOCAL_RANK", "0") == "0":  # Lightning starts the other processes after the first got here
        needed = language_model.keep_characters or language_model.vocab
        print(_change(model, training_examples(data, task, seed) if needed else [], out))
    if out.is_dir():
        language_model.tokenizer = str(out.resolve())


def _change(model: ModelConfig, examples: Sequence[Example], out: Path) -> str:
    """Writes the changed tokenizer, where it is another; what was added and taken out, in a line."""
    from llm2slm.data.tokenizer import FIRST_ADDED
    from llm2slm.models.build import load_tokenizers, writer_config

    tokenizer, _ = load_tokenizers(model)
    cfg = writer_config(model)
    if cfg.tokenizer is None:  # it came with the model, which has embeddings of all of it
        tokenizer.init_kwargs.pop(FIRST_ADDED, None)
    name = cfg.tokenizer or cfg.source or tokenizer.name_or_path
    kept, told = _extended(model, tokenizer, examples, name)
    if cfg.vocab is not None:
        kept, taken = _cut(model, kept, examples)
        told = "; ".join(filter(None, (told, taken)))
    if kept is tokenizer:
        shutil.rmtree(out, ignore_errors=True)  # of an earlier training that did not begin
        return f"tokenizer {name}: {told}"
    with filling(out, last="tokenizer.json") as stage:
        kept.save_pretrained(stage)
    return f"{out}: {told}"


def _extended(model: ModelConfig, tokenizer: Any, examples: Sequence[Example], name: str) -> tuple[Any, str]:
    """The tokenizer with what it loses as tokens, or the same one where there is nothing to add; and that in words."""
    from llm2slm.data.keeping import count_characters, keeping, rewritten

    side, cfg = _writer(model)
    if _key(side, cfg) is None:
        return tokenizer, ""
    found = count_characters(_texts(model, examples) if cfg.keep_characters else [])
    kept = keeping(tokenizer, cfg.keep_whitespace, found, cfg.keep_characters)
    impossible = rewritten(tokenizer, found)
    left_out = f"; left out, since its decoder rewrites it: {', '.join(map(repr, impossible))}" if impossible else ""
    if kept is tokenizer:
        other = "else " if impossible else ""
        return kept, f"loses nothing {other}that is asked for: no token is added{left_out}"
    new = [str(token) for token in kept.convert_ids_to_tokens(list(range(len(tokenizer), len(kept))))]
    more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
    shown = ", ".join(map(repr, new[:SHOWN]))
    return kept, f"{len(new)} tokens added to the {len(tokenizer)} of {name}: {shown}{more}{left_out}"


def _cut(model: ModelConfig, tokenizer: Any, examples: Sequence[Example]) -> tuple[Any, str]:
    """The tokenizer cut to what the rows need, which keep their tokens, and what was taken out in words.

    Raises:
        UserError: it cannot be cut, or a row would be encoded otherwise.
    """
    from llm2slm.data.cutting import NOT_CUT, cut
    from llm2slm.data.tokenizer import cut_of
    from llm2slm.models.pretrained import model_config
    from llm2slm.models.vocabulary import RECORD, named_ids

    _, cfg = _writer(model)
    before = [_ids(model, tokenizer, part) for part in _parts(examples)]
    used = {token for part in before for row in part for token in row} | _last_tokens(model, tokenizer, examples)
    own, done = cut_of(tokenizer), getattr(model_config(cfg, tokenizer), RECORD, None)
    characters = {character for text in _texts(model, examples) for character in text}
    whole_model = own is not None and done != own.record
    kept = cut(tokenizer, used | named_ids(cfg, tokenizer), characters, whole_model)
    names, entries = ({i: name for name, i in side.get_vocab().items()} for side in (kept, tokenizer))
    for part, rows in zip(_parts(examples), before, strict=True):
        for example, was, ids in zip(part, rows, _ids(model, kept, part), strict=True):
            if [names[i] for i in ids] != [entries[i] for i in was]:
                raise UserError(
                    f"tokenizer {tokenizer.name_or_path!r}: {NOT_CUT} training row {example.index} would be encoded "
                    "otherwise"
                )
    return kept, f"{len(kept)} of {len(tokenizer)} entries kept, which {len(examples)} training rows need"


def _ids(model: ModelConfig, tokenizer: Any, examples: Sequence[Example]) -> list[list[int]]:
    """What the tokenizer of the model that writes makes of each row: prompt (where it reads such) and response."""
    from llm2slm.data.collate import Collator
    from llm2slm.data.prompts import frame
    from llm2slm.models.pretrained import model_config

    _, cfg = _writer(model)
    alone = model.kind is SystemKind.llm
    collator = Collator(
        tokenizer,
        llm_frame=frame(tokenizer, model.llm.prefix, model.llm.chat) if alone else None,
        decoder_only=not model_config(cfg, tokenizer).is_encoder_decoder and not _attends(model),
    )
    return [[*(row.slm if _reads(model) else ()), *row.response] for row in collator.tokenized(examples)]


def _last_tokens(model: ModelConfig, tokenizer: Any, examples: Sequence[Example]) -> set[int]:
    """Conditioning kv: the last tokens of the prompts as the LLM reads them (by its chat template), which an SLM with
    the LLM's vocabulary reads."""
    from llm2slm.data.collate import Collator
    from llm2slm.data.last_token import is_cut
    from llm2slm.data.prompts import frame
    from llm2slm.models.build import load_tokenizers

    if model.kind is not SystemKind.llm2slm or model.conditioning is not Conditioning.kv:
        return set()
    llm = load_tokenizers(model)[1]
    if not is_cut(tokenizer, llm):
        return set()
    own = frame(llm, model.llm.prefix, model.llm.chat)
    collator = Collator(tokenizer, llm, llm_frame=own, decoder_only=True, last_token=True)
    return {token for part in _parts(examples) for row in collator.tokenized(part) for token in row.slm}


def _attends(model: ModelConfig) -> bool:
    return model.kind is SystemKind.llm2slm and model.conditioning is Conditioning.memory


def _reads(model: ModelConfig) -> bool:
    """Whether the model that writes reads prompts by its own tokenizer; else it reads them as the LLM's tokens."""
    return model.kind is not SystemKind.llm2slm or model.tokenizers is not Tokenizers.llm_tokens


def _texts(model: ModelConfig, examples: Sequence[Example]) -> list[str]:
    prompts = [example.prompt for example in examples if _reads(model)]
    return [example.target for example in examples] + prompts


def _parts(examples: Sequence[Example]) -> list[Sequence[Example]]:
    return [examples[start : start + PART] for start in range(0, len(examples), PART)]


def _writer(model: ModelConfig) -> tuple[str, LanguageModelConfig]:
    """Which model writes, and its configuration."""
    return ("llm", model.llm) if model.kind is SystemKind.llm else ("slm", model.slm)


def _key(side: str, cfg: LanguageModelConfig) -> str | None:
    """The key that asks for added tokens; None where none does."""
    if cfg.keep_whitespace:
        return f"model.{side}.keep_whitespace=true"
    return f"model.{side}.keep_characters={cfg.keep_characters}" if cfg.keep_characters else None
