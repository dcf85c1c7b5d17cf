"""The tables of the verbs with other schemas than `RunConfig`, in the form of `reads.py`."""

from __future__ import annotations

from typing import Any

from llm2slm.cli.conditions import Reads, Row, When, row, when
from llm2slm.cli.reads import (
    BUILD,
    CASCADES,
    DATA,
    MODEL,
    NO_RUN,
    PART,
    RUN_KEYS,
    TASK,
    hub_name,
    logger_rows,
)
from llm2slm.cli.schema import keys
from llm2slm.config import (
    CompareConfig,
    CostsConfig,
    DashboardConfig,
    ExportConfig,
    GenerateConfig,
    JudgeConfig,
    ReportConfig,
    RunConfig,
    TokenizerConfig,
)
from llm2slm.types import Decoding, SystemKind, Tokenizers


def leaves(schema: type) -> list[str]:
    """The keys of a schema that are no sections."""
    return [name for name, key in keys(schema).items() if not key.section]


def _named(verb: str, always: str, conditions: dict[str, When] | None = None) -> dict[str, Row]:
    return {name: row(verb) for name in always.split()} | {
        name: row(verb, if_=each) for name, each in (conditions or {}).items()
    }


def _logger(verb: str) -> dict[str, Row]:
    return {f"logger.{name}": each for name, each in logger_rows(verb, samples=(verb,)).items()}


FILE = when("input=FILE", lambda config: config.input is not None)
SAMPLED = when("do_sample=true", lambda config: config.do_sample)
ONE = when("num_beams=1 and no input=", lambda config: config.input is None and config.num_beams == 1)
ONE_MODEL = when(
    "decoding is neither lossless nor cascade",
    lambda config: config.decoding not in (Decoding.lossless, Decoding.compiled_lossless, Decoding.cascade),
)
ON_HUB = "the name of a repository"
GENERATE = _named(
    "generate",
    # the command refuses model.llm.* for a trained model, and output without input
    "run llm model.llm.gguf_file model.llm.dtype model.llm.attn_implementation model.llm.quantization "
    "model.llm.prefix model.llm.chat prompt input output prefix decoding max_new_tokens num_beams do_sample overlong "
    "seed",
    {"field": FILE, "batch_size": FILE, "stream": ONE, "temperature": SAMPLED, "top_p": SAMPLED}
    | {"cascade": CASCADES, "prompt_cache": ONE_MODEL}
    | {"model.llm.revision": when(ON_HUB, lambda config: config.run is None or hub_name(config.run))},
) | _logger("generate")
EXPORT = _named(
    "export", "run llm out with_llm dtype name license results push",
    {"private": when("push=REPOSITORY", lambda config: config.push is not None)},
) | _logger("export")  # fmt: skip
JUDGE = _named(  # the command refuses keys of an endpoint with local, and the reverse
    "judge",
    "runs endpoint model key_env local dtype attn_implementation quantization out rows instruction reference "
    "max_tokens temperature parameters workers timeout retries wait again price_in price_out seed",
    {"revision": when(ON_HUB, lambda config: config.local is None or hub_name(config.local))},
) | _logger("judge")
REPORT = _named("report", "runs mixed out title buckets") | _logger("report")
COMPARE = _named("compare", "runs out baseline metrics language benchmark resamples rows seed") | _logger("compare")
DASHBOARD = _named("dashboard", "project entity group metric factors title mode out")
TOKENIZER = (
    {f"data.{name}": rows for name, rows in DATA.items()}
    | {f"task.{name}": rows for name, rows in TASK.items()}
    | _named("tokenizer", "vocab_size out seed")
    | {f"logger.{name}": each for name, each in logger_rows("tokenizer", samples=("train",)).items()}
)
OF_CONFIGS = (
    *("kind", "llm.name", "llm.revision", "llm.gguf_file", "llm.init", "llm.config", "llm.layer"),
    *("slm.name", "slm.revision", "slm.gguf_file", "slm.init", "slm.config", "slm.layers", "slm.vocab"),
    *("slm.tokenizer", "slm.tune", "slm.peft", "projector.hidden"),
    *("conditioning", "pool", "cross_every", "kv_blocks", "tokenizers"),
)
"""Keys under `model` that `costs` reads, where `benchmark` reads them (those of the LLM with model.kind=slm too)."""


def _of_configs(name: str) -> Row:
    if name not in OF_CONFIGS:
        return MODEL[name]
    if name.startswith("llm.") and name != "llm.layer":
        return row("costs", if_=NO_RUN)
    return Row(Reads(("costs",), NO_RUN & each.when) for each in MODEL[name] if set(each.verbs) & set(BUILD))


OTHER_TOKENIZERS = when(
    "run= or model.tokenizers=offsets or llm_tokens",
    lambda config: config.run is not None or config.model.tokenizers is not Tokenizers.shared,
)
COSTS = {f"model.{name}": _of_configs(name) for name in MODEL} | _named(
    "costs",
    "run device bandwidth tflops overhead dtype batch prompt_tokens response_tokens",
    {"llm": when("run=", lambda config: config.run is not None), "slm_vocab": NO_RUN, "slm_tokens": OTHER_TOKENIZERS}
    | dict.fromkeys(
        ("draft_tokens", "accepted_tokens", "rewritten", "shared_encoding"),
        when("run= or model.kind=llm2slm", lambda c: c.run is not None or c.model.kind is SystemKind.llm2slm),
    ),
)
COSTS |= {f"logger.{name}": each for name, each in logger_rows("costs", samples=("train",)).items()}

TABLES: dict[type, dict[str, Row]] = {
    RunConfig: RUN_KEYS,
    GenerateConfig: GENERATE,
    ExportConfig: EXPORT,
    JudgeConfig: JUDGE,
    ReportConfig: REPORT,
    CompareConfig: COMPARE,
    CostsConfig: COSTS,
    DashboardConfig: DASHBOARD,
    TokenizerConfig: TOKENIZER,
}
"""Schema -> the row of every key that is no section."""


def unread_parts(verb: str, parts: list[Any], default: Any) -> list[tuple[str, str]]:
    """Keys of the parts of a mixture that are set and not read, and where they are read."""
    return [
        (f"data.parts[{number}].{name}={getattr(part, name)}", f"read with {each}")
        for number, part in enumerate(parts)
        for name, each in PART.items()
        if getattr(part, name) != getattr(default, name) and not each.test(verb, part)
    ]
