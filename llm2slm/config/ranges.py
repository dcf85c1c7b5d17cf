"""Checks of values before a library sees them: ranges of numbers, choices of texts, and valid Unicode for models.

A test fails for a numeric key that is missing in `RANGES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from llm2slm.config.choices import CHOICES, check_choice
from llm2slm.config.data import CorpusConfig, DataConfig, PartConfig, TaskConfig
from llm2slm.config.model import LanguageModelConfig, LLMConfig, ModelConfig, ProjectorConfig, SLMConfig
from llm2slm.config.run import (
    BenchmarkConfig,
    CalibrateConfig,
    EncodeConfig,
    LabelConfig,
    RunConfig,
    TargetConfig,
    TokenizerConfig,
)
from llm2slm.config.training import CallbacksConfig, LoggerConfig, OptimConfig, TrainerConfig
from llm2slm.config.verbs import CompareConfig, CostsConfig, GenerateConfig, JudgeConfig
from llm2slm.credentials import credential_in
from llm2slm.types import UserError, check_text

UNWRITTEN = ("prompt",)
"""Fields that no file records."""
LARGEST = 2**32 - 1
"""The largest number of any key. A larger one overflows the integers or the floats of a library."""


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, both included unless `above` or `below` is set; at most `LARGEST`, never nan.

    Attributes:
        special: further legal numbers.
        empty: whether a list may be empty.
        length: required length of a list; None: any.
    """

    least: float
    most: float = inf
    above: bool = False
    below: bool = False
    special: tuple[float, ...] = ()
    empty: bool = True
    length: int | None = None

    def holds(self, value: float) -> bool:
        """Whether the value is legal."""
        if value in self.special:
            return True
        low = self.least < value if self.above else self.least <= value
        return low and (value < self.most if self.below else value <= min(self.most, LARGEST))

    def __str__(self) -> str:
        """The range in words, for a message after "must be"."""
        low = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
        if self.most == inf:
            words = low
        elif not self.above and not self.below:
            words = f"between {self.least:g} and {self.most:.12g}"
        else:
            words = f"{low} and {'below' if self.below else 'at most'} {self.most:.12g}"
        return words + "".join(f", or {number:g}" for number in self.special)

    def words(self, value: float) -> str:
        """The range in words, for a value that it does not hold: also the upper limit if that is exceeded."""
        return f"at most {LARGEST}" if self.most == inf and value > LARGEST else str(self)


POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SHARE = Range(0, 1)
LENGTHS = Range(1, empty=False)
WORKERS = Range(0, 512)
"""Processes or threads: each one takes memory."""
BLOCKS = Range(-10_000, 10_000, empty=False)
"""Block numbers, negative from the end; the model checks that the blocks exist."""
SEED = Range(0, 2**32 - 1)
"""The range of numpy and Lightning."""
DAY = 86_400
BEAMS = Range(1, 1000)

_CORPUS = {"train_size": COUNT, "validation_size": COUNT, "test_size": COUNT}
_LANGUAGE_MODEL = {"keep_characters": NOT_NEGATIVE}
RANGES: dict[type, dict[str, Range]] = {
    LanguageModelConfig: _LANGUAGE_MODEL,
    LLMConfig: _LANGUAGE_MODEL,
    SLMConfig: _LANGUAGE_MODEL,
    ModelConfig: {"pool": POSITIVE, "cross_every": COUNT, "kv_blocks": BLOCKS},
    ProjectorConfig: {"hidden": Range(0, 2**20)},
    CorpusConfig: _CORPUS,
    PartConfig: _CORPUS | {"weight": POSITIVE},
    DataConfig: _CORPUS
    | {
        "batch_tokens": COUNT,
        "eval_batch_size": COUNT,
        "max_prompt_tokens": COUNT,
        "max_response_tokens": COUNT,
        "workers": WORKERS,
        "max_lossy_share": SHARE,
        "labels_share": SHARE,
        "buffer": COUNT,
    },
    TaskConfig: {"max_new_tokens": COUNT, "num_beams": BEAMS},
    OptimConfig: {
        "lr": POSITIVE,
        "projector_lr": POSITIVE,
        "embedding_lr": POSITIVE,
        "freeze_slm_steps": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "betas": Range(0, 1, below=True, length=2),
        "warmup_steps": NOT_NEGATIVE,
        "final_lr": SHARE,
        "label_smoothing": Range(0, 1, below=True),
        "distill": SHARE,
        "distill_temperature": POSITIVE,
    },
    TrainerConfig: {
        "devices": Range(1, special=(-1,)),
        "num_nodes": COUNT,
        "max_steps": COUNT,
        "val_every": COUNT,
        "val_rows": COUNT,
        "gradient_clip_val": NOT_NEGATIVE,
        "accumulate_grad_batches": COUNT,
        "log_every_n_steps": COUNT,
        "overfit_batches": NOT_NEGATIVE,
        "limit_val_batches": COUNT,
        "threads": COUNT,
    },
    LoggerConfig: {"samples": NOT_NEGATIVE},
    CallbacksConfig: {"patience": NOT_NEGATIVE, "min_delta": NOT_NEGATIVE, "generate_rows": NOT_NEGATIVE},
    BenchmarkConfig: {
        "batch": Range(1, empty=False),
        "prompt_tokens": COUNT,
        "response_tokens": Range(2),  # ms_per_token is measured after the first token
        "prompts": NOT_NEGATIVE,
        "test_batch": Range(1, empty=False),
        "repeats": COUNT,
        "warmup": NOT_NEGATIVE,
        "max_warmup": NOT_NEGATIVE,
        "threads": COUNT,
    },
    TargetConfig: {"at_least": POSITIVE, "at_most": POSITIVE, "batch": COUNT, "response_tokens": Range(2)},
    LabelConfig: {"temperature": POSITIVE, "top_p": Range(0, 1, above=True)},
    EncodeConfig: {"batch_tokens": COUNT},
    CalibrateConfig: {"resamples": Range(100)},  # a 95 % interval needs 100
    RunConfig: {"seed": SEED, "exact_rows": NOT_NEGATIVE, "quality_kept": Range(0, 1, above=True)},
    TokenizerConfig: {"vocab_size": COUNT, "seed": SEED},
    GenerateConfig: {
        "max_new_tokens": COUNT,
        "num_beams": BEAMS,
        "temperature": POSITIVE,
        "top_p": Range(0, 1, above=True),
        "batch_size": COUNT,
        "prompt_cache": NOT_NEGATIVE,
        "seed": SEED,
    },
    JudgeConfig: {
        "rows": COUNT,
        "max_tokens": COUNT,
        "temperature": NOT_NEGATIVE,
        "workers": Range(1, 512),
        "timeout": Range(0, DAY, above=True),
        "retries": Range(0, 1000),
        "wait": Range(0, DAY),
        "price_in": NOT_NEGATIVE,
        "price_out": NOT_NEGATIVE,
        "seed": SEED,
    },
    CostsConfig: {
        "slm_vocab": COUNT,
        "slm_tokens": POSITIVE,
        "bandwidth": POSITIVE,
        "tflops": POSITIVE,
        "overhead": NOT_NEGATIVE,
        "batch": LENGTHS,
        "prompt_tokens": LENGTHS,
        "response_tokens": LENGTHS,
        "draft_tokens": COUNT,
        "accepted_tokens": NOT_NEGATIVE,
        "rewritten": SHARE,
    },
    CompareConfig: {"resamples": Range(100), "rows": NOT_NEGATIVE, "seed": SEED},  # a 95 % interval needs 100
}
"""Section -> field -> range. None is legal for fields that allow it; of a list each number is checked."""
MODEL_TEXTS = ("prefix", "template", "prompt", "instruction")
"""Fields whose text, or list of texts, becomes part of a model's input. Only these may be empty."""


def check_ranges(config: Any, section: str = "") -> None:
    """Checks all values of a configuration or of a section.

    Args:
        section: key of the section, as "data".

    Raises:
        UserError: a number is out of range, a text is not one of its `CHOICES`, is empty where it is a name or a
            path, or contains a lone surrogate where a model reads it; names key, value and range.
    """
    for field in dataclasses.fields(config):
        key, value = f"{section}.{field.name}" if section else field.name, getattr(config, field.name)
        for inner, nested in _sections(key, value):
            check_ranges(nested, inner)
        check_value(type(config), field, key, value)


def check_value(section: type, field: dataclasses.Field[Any], key: str, value: Any) -> None:
    """Checks the value of one field.

    Args:
        section: the dataclass of the field. key: dotted name, for the message.

    Raises:
        UserError: as `check_ranges`.
    """
    if field.name not in UNWRITTEN and (kind := credential_in(value)):
        raise UserError(
            f"{key}: contains {kind}, which files would record; leave it out, and set it in the environment"
        )
    if legal := RANGES.get(section, {}).get(field.name):
        _check(key, value, legal)
    if choices := CHOICES.get(section, {}).get(field.name):
        check_choice(key, value, choices)
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and field.name in MODEL_TEXTS:
            check_text(key, text)
        elif isinstance(text, str) and not text.strip() and text != field.default:
            shown = f"['{text}']" if isinstance(value, list) else text
            raise UserError(f"{key}={shown}: is empty; give a value, or leave the key out")


def _sections(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        yield key, value
    elif isinstance(value, list):
        yield from ((f"{key}[{i}]", item) for i, item in enumerate(value) if dataclasses.is_dataclass(item))


def _check(key: str, value: Any, legal: Range) -> None:
    if isinstance(value, list | tuple):
        if not value and not legal.empty:
            raise UserError(f"{key}=[]: must hold one number or more, each {legal}")
        for number in value:
            if not legal.holds(number):
                shown = ",".join(map(str, value))
                raise UserError(f"{key}=[{shown}]: {number} is out of range; each must be {legal.words(number)}")
        if legal.length is not None and len(value) != legal.length:
            raise UserError(f"{key}=[{','.join(map(str, value))}]: must hold {legal.length} numbers, each {legal}")
    elif isinstance(value, int | float) and not legal.holds(value):
        raise UserError(f"{key}={value}: must be {legal.words(value)}")
