"""The table of the keys of `RunConfig`: which verb reads which key, and in which mode.

`given.py` warns of keys that are set and not read. A test fails for a key without a row. `reads_verbs.py` has the
tables of the verbs with other schemas.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llm2slm.cli.conditions import ALWAYS, Reads, Row, When, either, row, when
from llm2slm.config import CorpusConfig, RunConfig
from llm2slm.data.sources.corpora import CORPORA
from llm2slm.models import conditioning
from llm2slm.models.conditioning import Conditioning
from llm2slm.types import Decoding, Init, Labels, SystemKind, Tokenizers

FIT = ("train", "demo")
ANSWER = ("train", "demo", "evaluate", "calibrate", "label")
BUILD = ("train", "demo", "encode", "benchmark")
EXTEND = ("train", "demo", "encode")
RUN_VERBS = ("train", "demo", "evaluate", "calibrate", "label", "encode", "benchmark")
DATA_VERBS = (*RUN_VERBS, "tokenizer")
STREAM = ("train", "demo", "encode", "tokenizer")

# model


def hub_name(name: str | None) -> bool:
    """Whether the name of a model is a Hub id, which may have a revision."""
    return name is not None and not name.startswith("builtin/") and not Path(name).expanduser().exists()


def _lends_tokenizer(config: RunConfig) -> bool:
    model = config.model
    alone = model.kind is SystemKind.slm and model.tokenizers is Tokenizers.shared
    return alone and model.slm.tokenizer is None and model.slm.start is Init.random


def _conditioned(holds: Callable[[Conditioning], bool], *, excluded: bool = False) -> When:
    """The configured conditioning has a property. Its module, and with it torch, is imported at the first test.

    Args:
        excluded: the words name the ways of conditioning without the property, if they are fewer.
    """

    def words() -> str:
        named = [name for name in conditioning.names() if holds(conditioning.get(name)) is not excluded]
        return ("a conditioning other than " if excluded else "model.conditioning=") + " or ".join(named)

    return When(words, lambda verb, config: holds(conditioning.get(config.model.conditioning)))  # noqa: ARG005


def _option(key: str) -> When:
    """`model.KEY` is an option of the configured conditioning."""
    return _conditioned(lambda mode: key in mode.options)


ADDED = ("lora", "prompt", "prefix")
BUILT = When("", lambda verb, config: verb != "benchmark" or config.run is None)
"""The configured model is built; no saved model is loaded."""
HYBRID = BUILT & when("model.kind=llm2slm", lambda config: config.model.kind is SystemKind.llm2slm)
PROJECTED = _conditioned(lambda mode: mode.uses_projector, excluded=True)
HIDDEN_STATES = _conditioned(lambda mode: not mode.uses_llm_cache, excluded=True)
WITH_SLM = BUILT & when("model.kind=llm2slm or slm", lambda config: config.model.kind is not SystemKind.llm)
LLM_ALONE = BUILT & when("model.kind=llm", lambda config: config.model.kind is SystemKind.llm)
WITH_LLM = BUILT & When(
    "model.kind=llm2slm or llm, or optim.distill",
    lambda verb, config: (
        verb == "demo" or config.model.kind is not SystemKind.slm or (verb == "train" and config.optim.distill > 0)
    ),
)
LENDS_TOKENIZER = BUILT & when("an SLM alone that shares its tokenizer", _lends_tokenizer)
RUN = when("run=LLM", lambda config: config.run is not None)
INT8 = when("decoding=int8 or compiled_int8", lambda c: c.decoding in (Decoding.int8, Decoding.compiled_int8))
NO_RUN = when("no run=", lambda config: config.run is None)
PROMPTED = either(row(*BUILD, if_=WITH_LLM), row("label"), row("evaluate", "benchmark", if_=RUN))
"""Loading and prompting of an LLM: of the configured one, or of one that `run` names."""
LLM_ON_HUB = when("the name of a repository", lambda c: hub_name(c.model.llm.name if c.run is None else c.run))
SLM_ON_HUB = when("the name of a repository", lambda config: hub_name(config.model.slm.name))
SLM = row(*BUILD, if_=WITH_SLM)
"""The commands check which of the two models supports the key; `label` refuses it."""

MODEL: dict[str, Row] = {
    "kind": row(*BUILD, if_=BUILT),
    "llm.name": either(row(*BUILD, if_=WITH_LLM), row(*BUILD, if_=LENDS_TOKENIZER), row("label", if_=NO_RUN)),
    "llm.revision": Row(
        Reads(each.verbs, each.when & LLM_ON_HUB) for each in (*PROMPTED, Reads(BUILD, LENDS_TOKENIZER))
    ),
    "llm.gguf_file": either(PROMPTED, row(*BUILD, if_=LENDS_TOKENIZER)),
    "llm.init": PROMPTED,
    "llm.config": PROMPTED,
    "llm.tokenizer": either(PROMPTED, row(*BUILD, if_=LENDS_TOKENIZER)),
    "llm.keep_whitespace": row(*EXTEND, if_=LLM_ALONE),
    "llm.keep_characters": row(*EXTEND, if_=LLM_ALONE),
    "llm.vocab": row(*EXTEND, if_=LLM_ALONE),
    "llm.dtype": PROMPTED,
    "llm.attn_implementation": PROMPTED,
    "llm.tune": row(*BUILD, if_=LLM_ALONE),
    "llm.peft": row(
        *BUILD, if_=LLM_ALONE & when("model.llm.tune=lora, prompt or prefix", lambda c: c.model.llm.tune in ADDED)
    ),
    "llm.layer": row(*BUILD, if_=HYBRID & HIDDEN_STATES),
    "llm.prefix": PROMPTED,
    "llm.chat": PROMPTED,
    "llm.quantization": PROMPTED,
    "slm.name": SLM,
    "slm.revision": row(*BUILD, if_=WITH_SLM & SLM_ON_HUB),
    "slm.gguf_file": SLM,
    "slm.init": SLM,
    "slm.layers": SLM,
    "slm.config": SLM,
    "slm.tokenizer": SLM,
    "slm.keep_whitespace": row(*EXTEND, if_=WITH_SLM),
    "slm.keep_characters": row(*EXTEND, if_=WITH_SLM),
    "slm.vocab": row(*EXTEND, if_=WITH_SLM),
    "slm.dtype": SLM,
    "slm.attn_implementation": SLM,
    "slm.tune": SLM,
    "slm.peft": row(
        *BUILD, if_=WITH_SLM & when("model.slm.tune=lora, prompt or prefix", lambda c: c.model.slm.tune in ADDED)
    ),
    "projector.hidden": row(*BUILD, if_=HYBRID & PROJECTED),
    "projector.norm": row(*BUILD, if_=HYBRID & PROJECTED),
    "projector.gate": row(*BUILD, if_=HYBRID & PROJECTED),
    "projector.start": row(*BUILD, if_=HYBRID & PROJECTED),
    "conditioning": either(
        row(*BUILD, if_=HYBRID), row(*RUN_VERBS, if_=when("", lambda c: c.model.conditioning == "none"))
    ),
    "pool": row(*BUILD, if_=HYBRID),
    "cross_every": row(*BUILD, if_=HYBRID & _option("cross_every")),
    "kv_blocks": row(*BUILD, if_=HYBRID & _option("kv_blocks")),
    "tokenizers": SLM,
    "control": row(*BUILD, if_=BUILT),
}

# data


def _known(config: CorpusConfig) -> bool:
    return config.name in CORPORA


def _from_hub(config: CorpusConfig) -> bool:
    return config.name == "hub" or (_known(config) and config.root is None)


FILES = when("data=json, data=hub or a known corpus", lambda corpus: corpus.name not in ("builtin", "mixture"))
FROM_HUB = when("data=hub, or a known corpus without data.root", _from_hub)
NO_FOLDER = when(
    "a data set of the Hub", lambda corpus: corpus.path is None or not Path(corpus.path).expanduser().is_dir()
)

CORPUS: dict[str, When] = {
    "name": ALWAYS,
    "corpus": when("data=builtin", lambda corpus: corpus.name == "builtin"),
    "root": when("a known corpus or data=mixture", lambda corpus: _known(corpus) or corpus.name == "mixture"),
    "path": when("data=hub or a known corpus", lambda corpus: corpus.name == "hub" or _known(corpus)),
    "subset": FROM_HUB,
    "revision": FROM_HUB & NO_FOLDER,
    "train": FILES,
    "validation": FILES,
    "test": FILES,
    "source": FILES,
    "target": FILES,
    "train_size": ALWAYS,
    "validation_size": ALWAYS,
    "test_size": ALWAYS,
}
"""Fields of a corpus: of `data`, and of a part of a mixture."""

PART: dict[str, When] = CORPUS | dict.fromkeys(("weight", "repeat", "task", "prefix", "template", "language"), ALWAYS)

SPLIT_VERBS = {
    "train": ("train", "demo", "encode", "tokenizer"),
    "validation": ("train", "demo", "encode", "benchmark", "calibrate"),
    "test": ("train", "demo", "encode", "benchmark"),
}


def _of_data(name: str) -> Row:
    """The row of `data.NAME`, a field of `CorpusConfig`."""
    own = CORPUS[name]
    inner = When(own.words, lambda verb, config: own.test(verb, config.data))
    split = name.removesuffix("_size")
    if split not in SPLIT_VERBS:
        return row(*DATA_VERBS, if_=inner)
    chosen = when(f"split={split}", lambda config: config.split == split)
    return either(row(*SPLIT_VERBS[split], if_=inner), row("evaluate", "label", if_=chosen & inner))


WRITTEN_BY_LLM = when("data.labels=llm or mix", lambda config: config.data.labels is not Labels.gold)
TRAIN_SPLIT = when("split=train", lambda config: config.split == "train")
STREAMING = when("data.streaming=true", lambda config: config.data.streaming)
RELABELS = either(row("train", "demo"), row("evaluate", if_=TRAIN_SPLIT))

DATA: dict[str, Row] = {name: _of_data(name) for name in CORPUS} | {
    "parts": row(*DATA_VERBS, if_=when("data=mixture", lambda config: config.data.name == "mixture")),
    "batch_tokens": row(*FIT),
    "eval_batch_size": row(*ANSWER),
    "max_prompt_tokens": row(*RUN_VERBS),
    "max_response_tokens": row(*RUN_VERBS),
    "overlong": row(*RUN_VERBS),
    "max_lossy_share": row(*FIT),
    "workers": row(*FIT),
    "reps": either(row("benchmark", if_=NO_RUN), row(*FIT, if_=HYBRID)),
    "labels": RELABELS,
    "labels_from": Row(Reads(each.verbs, each.when & WRITTEN_BY_LLM) for each in RELABELS),
    "labels_share": Row(
        Reads(each.verbs, each.when & when("data.labels=mix", lambda config: config.data.labels is Labels.mix))
        for each in RELABELS
    ),
    "streaming": row(*STREAM),
    "buffer": row("train", "demo", "encode", if_=STREAMING),
    "cache": row(*RUN_VERBS),
}

TASK: dict[str, Row] = {
    "name": row(*DATA_VERBS),
    "prefix": row(*DATA_VERBS),
    "template": row(*DATA_VERBS),
    "metrics": row(*ANSWER),
    "language": row(*ANSWER),
    "max_new_tokens": row(*ANSWER),
    "num_beams": row(*ANSWER),
}

# optim, trainer, logger, callbacks, benchmark, label, encode

DECAYS = when("optim.schedule=cosine or linear", lambda config: config.optim.schedule != "constant")
DISTILLS = when("optim.distill above 0", lambda config: config.optim.distill > 0)
STOPS = when("callbacks.patience", lambda config: config.callbacks.patience is not None)
LOGGED = when("a logger other than csv", lambda config: config.logger.name != "csv")
SAMPLES = when("label.do_sample=true", lambda config: config.label.do_sample)

OPTIM = dict.fromkeys(
    (
        *("name", "lr", "embedding_lr", "weight_decay", "betas", "warmup_steps", "schedule", "label_smoothing"),
        "distill",
    ),
    row(*FIT),
) | {
    "projector_lr": row(*FIT, if_=HYBRID),
    "freeze_slm_steps": row(*FIT),  # train refuses it without an LLM
    "final_lr": row(*FIT, if_=DECAYS),
    "distill_temperature": row(*FIT, if_=DISTILLS),
}
TRAINER = dict.fromkeys(
    (
        *("precision", "matmul_precision", "max_steps", "max_time", "val_every", "gradient_clip_val", "micro_batch"),
        *("accumulate_grad_batches", "log_every_n_steps", "deterministic", "profiler", "overfit_batches"),
        *("limit_val_batches", "val_rows"),
    ),
    row(*FIT),
)
TRAINER |= dict.fromkeys(("devices", "num_nodes", "strategy"), row(*FIT, "evaluate", "label", "encode"))
TRAINER["int8_encoding"] = row(*FIT, if_=HYBRID)
TRAINER |= {"accelerator": row(*RUN_VERBS), "progress": row(*RUN_VERBS), "threads": row(*FIT, "encode")}


def _logger(*names: str) -> When:
    """One of the loggers is used."""
    words = f"logger.name={' or '.join(names)}"
    return when(words, lambda config: not set(names).isdisjoint(config.logger.name.split("+")))


def logger_rows(*verbs: str, samples: tuple[str, ...]) -> dict[str, Row]:
    """The rows of `logger` for verbs of one schema; `samples`: those with a table of samples."""
    return {
        "name": row(*verbs),
        "mode": row(*verbs, if_=_logger("wandb")),
        "entity": row(*verbs, if_=_logger("wandb")),
        "project": row(*verbs, if_=_logger("wandb", "mlflow")),
        "uri": row(*verbs, if_=_logger("mlflow")),
        "group": row(*verbs, if_=LOGGED),
        "tags": row(*verbs, if_=LOGGED),
        "artifacts": row(*verbs, if_=_logger("wandb", "mlflow")),
        "samples": row(*samples, if_=LOGGED),
    }


LOGGER = logger_rows(*RUN_VERBS, samples=ANSWER)
CALLBACKS = dict.fromkeys(("monitor", "mode", "patience", "generate_rows"), row(*FIT)) | {
    "min_delta": row(*FIT, if_=STOPS),
    "predictions": row(*FIT, if_=LOGGED),
}
TIMED = ("benchmark", "demo")
TIMES = when("benchmark.after_training=true", lambda config: config.benchmark.after_training)
BENCHMARK = (
    dict.fromkeys(
        (
            "batch",
            "prompt_tokens",
            "response_tokens",
            "prompts",
            "test_batch",
            "repeats",
            "warmup",
            "max_warmup",
            "threads",
            "memory",
            "ceilings",
        ),
        either(row(*TIMED), row("train", if_=TIMES)),
    )
    | dict.fromkeys(("decoders", "hybrid_decoders", "targets"), row(*TIMED))
    | {"after_training": row("train"), "baseline": row("train", "evaluate")}
)
LABEL = {
    "do_sample": row("label"),
    "temperature": row("label", if_=SAMPLES),
    "top_p": row("label", if_=SAMPLES),
    "format": row("label"),
}
CALIBRATE = dict.fromkeys(("confidence", "metric", "resamples"), row("calibrate"))
ENCODE = {"dtype": row("encode"), "batch_tokens": row("encode")}
SECTIONS = {
    "model": MODEL, "data": DATA, "task": TASK, "optim": OPTIM, "trainer": TRAINER, "logger": LOGGER,
    "callbacks": CALLBACKS, "benchmark": BENCHMARK, "label": LABEL, "encode": ENCODE,
    "calibrate": CALIBRATE,
}  # fmt: skip

CASCADES = when("decoding=cascade", lambda config: config.decoding is Decoding.cascade)
TIMES_CASCADE = when(
    "cascade is among benchmark.decoders or benchmark.hybrid_decoders",
    lambda config: Decoding.cascade in {*config.benchmark.decoders, *config.benchmark.hybrid_decoders},
)

RUN_KEYS: dict[str, Row] = {f"{top}.{name}": each for top, rows in SECTIONS.items() for name, each in rows.items()} | {
    "seed": row(*RUN_VERBS),
    "run": row("train", "evaluate", "calibrate", "label", "benchmark"),
    "llm": row("evaluate", "calibrate", "label", "benchmark", if_=when("run=", lambda config: config.run is not None)),
    "decoding": row("evaluate"),
    "exact_rows": row("evaluate", if_=INT8),
    "cascade": either(row("evaluate", if_=CASCADES), row("benchmark", "demo", if_=TIMES_CASCADE)),
    "quality_kept": row("calibrate"),
    "split": row("evaluate", "label", "encode"),  # encode refuses it
    "systems": row("demo", "benchmark"),
}
"""The row of every key of `RunConfig`."""

REFUSED = {
    ("encode", "run"), ("demo", "run"), ("evaluate", "model.llm.name"), ("label", "model.llm.name"),
    ("benchmark", "model.llm.name"), ("costs", "model.llm.name"), ("costs", "model.slm.name"),
    ("train", "data.train"), ("demo", "data.train"),
}  # fmt: skip
"""(verb, key): an error if the verb does not read the key, which selects the model or the training data."""
