"""Adapts the generating model's tokenizer to the training texts: `model.slm.keep_whitespace` and `keep_characters` add
tokens for lost text, `vocab` removes unused entries.

The changed tokenizer is saved in the run directory and set in the configuration, like a trained one.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm2slm.atomic import filling
from llm2slm.commands.tokenizer import TOKENIZERS, by_first, training_examples
from llm2slm.config import DataConfig, LanguageModelConfig, ModelConfig, TaskConfig
from llm2slm.types import Example, Init, SystemKind, Tokenizers, UserError

SHOWN = 12
"""Added tokens shown in the message."""
PART = 1_000
"""Rows per tokenizer call."""


def check_keeping(model: ModelConfig, data: DataConfig) -> None:
    """Checks that keep_whitespace, keep_characters and vocab fit the model and the data.

    Raises:
        UserError: the LLM would get the new ids, or the vocabulary would be cut to streamed rows.
    """
    side, cfg = _generator(model)
    shared = model.kind is SystemKind.llm2slm and model.tokenizers is Tokenizers.shared
    key = _key(side, cfg)
    if key is not None and shared:
        raise UserError(
            f"{key} adds tokens that the LLM does not have, and model.tokenizers=shared uses one tokenizer for both "
            "models; set model.tokenizers=offsets"
        )
    if cfg.vocab is None:
        return
    if shared:
        raise UserError(
            f"model.{side}.vocab={cfg.vocab} reduces the SLM's vocabulary, and model.tokenizers=shared uses one "
            "tokenizer for both models; set model.tokenizers=offsets or llm_tokens"
        )
    if data.streaming:
        raise UserError(
            f"model.{side}.vocab={cfg.vocab} needs every training row before training, and data.streaming=true reads "
            "rows during training; set data.streaming=false, or use the cut tokenizer of another run: "
            f"model.{side}.tokenizer=RUN/tokenizers/{side}_kept"
        )


def keep_ordered(model: ModelConfig, data: DataConfig, task: TaskConfig, seed: int, folder: Path) -> None:
    """Changes the generating model's tokenizer as configured, and sets the new one in the configuration.

    Raises:
        UserError: the tokenizer or the corpus cannot be read, lost text cannot be represented by added tokens, or the
            vocabulary cannot be cut.
    """
    side, cfg = _generator(model)
    out = folder / TOKENIZERS / f"{side}_kept"
    unchanged = _key(side, cfg) is None and cfg.vocab is None
    own = folder.resolve() / TOKENIZERS / out.name  # not `out.resolve()`: see `removed_on_failure`
    if unchanged or cfg.tokenizer == str(own):  # a resumed run has it set
        return

    def work() -> str:
        needed = cfg.keep_characters or cfg.vocab
        if report := _change(model, training_examples(data, task, seed) if needed else [], out):
            print(f"llm2slm: {report}", file=sys.stderr)
        return _complete(out)

    made = by_first(f"tokenizer {out.name}", work)
    cfg.tokenizer = (_complete(out) if made is None else made) or cfg.tokenizer


def _complete(out: Path) -> str:
    """The absolute path of a saved tokenizer; "" if the tokenizer is unchanged and none was saved."""
    return str(out.resolve()) if out.is_dir() else ""


def _change(model: ModelConfig, examples: Sequence[Example], out: Path) -> str:
    """Saves the tokenizer if it changed; returns a one-line report of added and removed entries.

    Entries removed from a pretrained model are reported with its parameters (`vocabulary.adapt`), and not here.
    """
    from llm2slm.data.tokenization.tokenizer import FIRST_ADDED
    from llm2slm.models.build import generator_config, load_tokenizers

    tokenizer, _ = load_tokenizers(model)
    cfg = generator_config(model)
    if cfg.tokenizer is None:  # the tokenizer comes with the model, which has all embeddings
        tokenizer.init_kwargs.pop(FIRST_ADDED, None)
    name = cfg.tokenizer or cfg.source or tokenizer.name_or_path
    kept, report = _extended(model, tokenizer, examples, name)
    if cfg.vocab is not None:
        kept, removed = _cut(model, kept, examples)
        report = "; ".join(filter(None, (report, "" if cfg.start is Init.pretrained else removed)))
    if kept is tokenizer:
        shutil.rmtree(out, ignore_errors=True)  # from an earlier training that failed before its start
        return f"tokenizer {name}: {report}"
    with filling(out, last="tokenizer.json") as stage:
        kept.save_pretrained(stage)
    return report and f"{out}: {report}"


def _extended(model: ModelConfig, tokenizer: Any, examples: Sequence[Example], name: str) -> tuple[Any, str]:
    """The tokenizer with added tokens for lost text (the same object if there are none), and a report."""
    from llm2slm.data.tokenization.keeping import count_characters, keeping, rewritten

    side, cfg = _generator(model)
    if _key(side, cfg) is None:
        return tokenizer, ""
    found = count_characters(_texts(model, examples) if cfg.keep_characters else [])
    kept = keeping(tokenizer, cfg.keep_whitespace, found, cfg.keep_characters)
    impossible = rewritten(tokenizer, found)
    left_out = f"; not added, since the decoder rewrites it: {', '.join(map(repr, impossible))}" if impossible else ""
    if kept is tokenizer:
        other = "other " if impossible else ""
        return kept, f"loses none of the {other}requested text: no token is added{left_out}"
    new = [str(token) for token in kept.convert_ids_to_tokens(list(range(len(tokenizer), len(kept))))]
    more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
    shown = ", ".join(map(repr, new[:SHOWN]))
    return kept, f"{len(new)} tokens added to the {len(tokenizer)} of {name}: {shown}{more}{left_out}"


def _cut(model: ModelConfig, tokenizer: Any, examples: Sequence[Example]) -> tuple[Any, str]:
    """The tokenizer cut to the entries that the rows need, and a report.

    Raises:
        UserError: the tokenizer cannot be cut, or the cut changes the tokenization of a row.
    """
    from llm2slm.data.tokenization.cutting import NOT_CUT, cut
    from llm2slm.data.tokenization.tokenizer import cut_of
    from llm2slm.models.loading.configs import model_config
    from llm2slm.models.loading.vocabulary import RECORD, named_ids

    _, cfg = _generator(model)
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
                    "differently"
                )
    return kept, f"{len(kept)} of {len(tokenizer)} vocabulary entries are kept for {len(examples)} training rows"


def _ids(model: ModelConfig, tokenizer: Any, examples: Sequence[Example]) -> list[list[int]]:
    """Token ids of each row: prompt (if encoded with this tokenizer) and response."""
    from llm2slm.data.collate import Collator
    from llm2slm.data.tokenization.prompts import frame
    from llm2slm.models.loading.configs import model_config

    _, cfg = _generator(model)
    alone = model.kind is SystemKind.llm
    collator = Collator(
        tokenizer,
        llm_frame=frame(tokenizer, model.llm.prefix, model.llm.chat) if alone else None,
        decoder_only=not model_config(cfg, tokenizer).is_encoder_decoder and not _attends(model),
    )
    return [[*(row.slm if _reads(model) else ()), *row.response] for row in collator.tokenized(examples)]


def _last_tokens(model: ModelConfig, tokenizer: Any, examples: Sequence[Example]) -> set[int]:
    """Last tokens of the LLM's prompts (with its chat template), which an SLM with the LLM's vocabulary embeds where
    the conditioning reuses the LLM's cache."""
    from llm2slm.data.collate import Collator
    from llm2slm.data.tokenization.last_token import is_cut
    from llm2slm.data.tokenization.prompts import frame
    from llm2slm.models import conditioning
    from llm2slm.models.build import load_tokenizers

    if model.kind is not SystemKind.llm2slm or not conditioning.get(model.conditioning).uses_llm_cache:
        return set()
    llm = load_tokenizers(model)[1]
    if not is_cut(tokenizer, llm):
        return set()
    own = frame(llm, model.llm.prefix, model.llm.chat)
    collator = Collator(tokenizer, llm, llm_frame=own, decoder_only=True, last_token=True)
    return {token for part in _parts(examples) for row in collator.tokenized(part) for token in row.slm}


def _attends(model: ModelConfig) -> bool:
    from llm2slm.models import conditioning

    return model.kind is SystemKind.llm2slm and conditioning.get(model.conditioning).cross_attends


def _reads(model: ModelConfig) -> bool:
    """Whether prompts are encoded with the generating model's tokenizer, and not with the LLM's only."""
    return model.kind is not SystemKind.llm2slm or model.tokenizers is not Tokenizers.llm_tokens


def _texts(model: ModelConfig, examples: Sequence[Example]) -> list[str]:
    prompts = [example.prompt for example in examples if _reads(model)]
    return [example.target for example in examples] + prompts


def _parts(examples: Sequence[Example]) -> list[Sequence[Example]]:
    return [examples[start : start + PART] for start in range(0, len(examples), PART)]


def _generator(model: ModelConfig) -> tuple[str, LanguageModelConfig]:
    """Configuration side ("llm" or "slm") and configuration of the generating model."""
    return ("llm", model.llm) if model.kind is SystemKind.llm else ("slm", model.slm)


def _key(side: str, cfg: LanguageModelConfig) -> str | None:
    """The configuration setting that requests added tokens; None if there is none."""
    if cfg.keep_whitespace:
        return f"model.{side}.keep_whitespace=true"
    return f"model.{side}.keep_characters={cfg.keep_characters}" if cfg.keep_characters else None
