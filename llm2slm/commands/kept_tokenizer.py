"""`model.slm.keep_whitespace` and `model.slm.keep_characters`: what the writer's tokenizer loses becomes tokens of it.

The extended tokenizer is written into the run directory and named in the configuration, as a trained one is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from llm2slm.atomic import filling
from llm2slm.commands.tokenizer import training_examples
from llm2slm.config import DataConfig, LanguageModelConfig, ModelConfig, TaskConfig
from llm2slm.types import Example, SystemKind, Tokenizers, UserError

SHOWN = 12
"""Added tokens that are listed by name."""


def check_keeping(model: ModelConfig) -> None:
    """Refuses keep_whitespace and keep_characters where they cannot be obeyed.

    Raises:
        UserError: the LLM would get the new ids.
    """
    side, writer = _writer(model)
    key = _key(side, writer)
    if key is not None and model.kind is SystemKind.llm2slm and model.tokenizers is Tokenizers.shared:
        raise UserError(
            f"{key} adds tokens that the LLM does not know, and with model.tokenizers=shared it would read them; set "
            "model.tokenizers=offsets"
        )


def keep_ordered(model: ModelConfig, data: DataConfig, task: TaskConfig, seed: int, folder: Path) -> None:
    """Extends the writer's tokenizer as its configuration orders, and names it there.

    Raises:
        UserError: the tokenizer or the corpus cannot be read, or the tokenizer cannot be made to keep what it loses.
    """
    side, language_model = _writer(model)
    out = folder / "tokenizers" / f"{side}_kept"
    # a run that goes on names it already
    if _key(side, language_model) is None or language_model.tokenizer == str(out.resolve()):
        return
    if os.environ.get("LOCAL_RANK", "0") == "0":  # Lightning starts the other processes after the first got here
        print(_extend(model, training_examples(data, task, seed) if language_model.keep_characters else [], out))
    if out.is_dir():
        language_model.tokenizer = str(out.resolve())


def _extend(model: ModelConfig, examples: Sequence[Example], out: Path) -> str:
    """Writes the extended tokenizer, where it is another; what was added, in a line."""
    from llm2slm.data.keeping import count_characters, keeping, rewritten
    from llm2slm.models.build import load_tokenizers, writer_config

    tokenizer, _ = load_tokenizers(model)
    cfg = writer_config(model)
    name = cfg.tokenizer or cfg.source or tokenizer.name_or_path
    targets = [example.target for example in examples]
    own = model.kind is not SystemKind.llm2slm or model.tokenizers is not Tokenizers.llm_tokens
    prompts = [example.prompt for example in examples if own]  # else it reads them as the LLM's tokens
    found = count_characters([*targets, *prompts])
    kept = keeping(tokenizer, cfg.keep_whitespace, found, cfg.keep_characters)
    impossible = rewritten(tokenizer, found)
    left_out = f"; left out, since its decoder rewrites it: {', '.join(map(repr, impossible))}" if impossible else ""
    if kept is tokenizer:
        shutil.rmtree(out, ignore_errors=True)  # of an earlier training that did not begin
        other = "else " if impossible else ""
        return f"tokenizer {name}: loses nothing {other}that is asked for: no token is added{left_out}"
    with filling(out, last="tokenizer.json") as stage:
        kept.save_pretrained(stage)
    new = [str(token) for token in kept.convert_ids_to_tokens(list(range(len(tokenizer), len(kept))))]
    more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
    names = ", ".join(map(repr, new[:SHOWN]))
    return f"{out}: {len(new)} tokens added to the {len(tokenizer)} of {name}: {names}{more}{left_out}"


def _writer(model: ModelConfig) -> tuple[str, LanguageModelConfig]:
    """Which model writes, and its configuration."""
    return ("llm", model.llm) if model.kind is SystemKind.llm else ("slm", model.slm)


def _key(side: str, cfg: LanguageModelConfig) -> str | None:
    """The key that asks for added tokens; None where none does."""
    if cfg.keep_whitespace:
        return f"model.{side}.keep_whitespace=true"
    return f"model.{side}.keep_characters={cfg.keep_characters}" if cfg.keep_characters else None
