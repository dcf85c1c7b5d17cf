"""Which verb reads which key of a run's configuration, and in which mode: a table with a row for every key.

`given.py` warns of a key that is given and not read, or refuses it. A test fails for a key without a row. The tables of
the verbs that have keys of their own are in `reads_verbs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm2slm.config import CorpusConfig, RunConfig
from llm2slm.data.sources.corpora import CORPORA
from llm2slm.types import Init, Labels, SystemKind, Tokenizers


@dataclass(frozen=True)
class When:
    """Configurations in which something is read.

    Attributes:
        words: the configurations in words, as "model.kind=llm2slm"; "" for all of them.
        test: the same as a function of verb and configuration.
    """

    words: str
    test: Callable[[str, Any], bool]

    def __and__(self, other: When) -> When:
        words = " and ".join(filter(None, (self.words, other.words)))
        return When(words, lambda verb, config: self.test(verb, config) and other.test(verb, config))


def when(words: str, test: Callable[[Any], bool]) -> When:
    """The configurations that pass a test, whatever the verb."""
    return When(words, lambda verb, config: test(config))  # noqa: ARG005


@dataclass(frozen=True)
class Reads:
    """Verbs that read a key, and when."""

    verbs: tuple[str, ...]
    when: When


class Row(tuple[Reads, ...]):
    """All that reads a key."""

    def read(self, verb: str, config: Any) -> bool:
        """Whether the verb reads the key under this configuration."""
        return any(verb in each.verbs and each.when.test(verb, config) for each in self)

    def told(self, verb: str) -> str:
        """Where the key is read, in words: in which modes of this verb, else by which verbs."""
        modes = dict.fromkeys(each.when.words for each in self if verb in each.verbs and each.when.words)
        verbs = dict.fromkeys(name for each in self for name in each.verbs)
        return f"read with {' or '.join(modes)}" if modes else f"read by {', '.join(verbs)}"


ALWAYS = when("", lambda config: True)  # noqa: ARG005


def row(*verbs: str, if_: When = ALWAYS) -> Row:
    """A row of one kind of reading."""
    return Row((Reads(verbs, if_),))


def either(*rows: Row) -> Row:
    """A row of several kinds."""
    return Row(each for one in rows for each in one)


FIT = ("train", "demo")
ANSWER = ("train", "demo", "evaluate", "label")
BUILD = ("train", "demo", "encode", "benchmark")
EXTEND = ("train", "demo", "encode")
RUN_VERBS = ("train", "demo", "evaluate", "label", "encode", "benchmark")
DATA_VERBS = (*RUN_VERBS, "tokenizer")
STREAM = ("train", "demo", "encode", "tokenizer")

# model


def hub_name(name: str | None) -> bool:
    """Whether a model's name is that of a repository of the Hub, where revisions are read."""
    return name is not None and not name.startswith("builtin/") and not Path(name).expanduser().exists()


def _lends(config: RunConfig) -> bool:
    model = config.model
    alone = model.kind is SystemKind.slm and model.tokenizers is Tokenizers.shared
    return alone and model.slm.tokenizer is None and model.slm.start is Init.random


ADDED = ("lora", "prompt", "prefix")
BUILT = When("", lambda verb, config: verb != "benchmark" or config.run is None)
"""The configured model is built, and no saved one used."""
HYBRID = BUILT & when("model.kind=llm2slm", lambda config: config.model.kind is SystemKind.llm2slm)
CONTINUES = when("model.conditioning=kv", lambda config: config.model.conditioning == "kv")
PROJECTED = when("a conditioning other than kv", lambda config: config.model.conditioning != "kv")
WITH_SLM = BUILT & when("model.kind=llm2slm or slm", lambda config: config.model.kind is not SystemKind.llm)
LLM_ALONE = BUILT & when("model.kind=llm", lambda config: config.model.kind is SystemKind.llm)
WITH_LLM = BUILT & When(
    "model.kind=llm2slm or llm, or optim.distill",
    lambda verb, config: (
        verb == "demo" or config.model.kind is not SystemKind.slm or (verb == "train" and config.optim.distill > 0)
    ),
)
LENDS = BUILT & when("an SLM alone that shares its tokenizer", _lends)
RUN = when("run=LLM", lambda config: config.run is not None)
NO_RUN = when("no run=", lambda config: config.run is None)
ASKED = either(row(*BUILD, if_=WITH_LLM), row("label"), row("evaluate", "benchmark", if_=RUN))
"""How an LLM is loaded and asked: one that is built, or a plain one that `run` names."""
LLM_ON_HUB = when("the name of a repository", lambda c: hub_name(c.model.llm.name if c.run is None else c.run))
SLM_ON_HUB = when("the name of a repository", lambda config: hub_name(config.model.slm.name))
SLM = row(*BUILD, if_=WITH_SLM)
"""Which of the two models may have it, the commands say themselves; label refuses it."""

MODEL: dict[str, Row] = {
    "kind": row(*BUILD, if_=BUILT),
    "llm.name": either(row(*BUILD, if_=WITH_LLM), row(*BUILD, if_=LENDS), row("label", if_=NO_RUN)),
    "llm.revision": Row(Reads(each.verbs, each.when & LLM_ON_HUB) for each in (*ASKED, Reads(BUILD, LENDS))),
    "llm.gguf_file": either(ASKED, row(*BUILD, if_=LENDS)),
    "llm.init": ASKED,
    "llm.config": ASKED,
    "llm.tokenizer": either(ASKED, row(*BUILD, if_=LENDS)),
    "llm.keep_whitespace": row(*EXTEND, if_=LLM_ALONE),
    "llm.keep_characters": row(*EXTEND, if_=LLM_ALONE),
    "llm.vocab": row(*EXTEND, if_=LLM_ALONE),
    "llm.dtype": ASKED,
    "llm.attn_implementation": ASKED,
    "llm.tune": row(*BUILD, if_=LLM_ALONE),
    "llm.peft": row(
        *BUILD, if_=LLM_ALONE & when("model.llm.tune=lora, prompt or prefix", lambda c: c.model.llm.tune in ADDED)
    ),
    "llm.layer": row(*BUILD, if_=HYBRID & PROJECTED),
    "llm.prefix": ASKED,
    "llm.chat": ASKED,
    "llm.quantization": ASKED,
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
    "cross_every": row(
        *BUILD,
        if_=HYBRID & when("model.conditioning=cross_attention", lambda c: c.model.conditioning == "cross_attention"),
    ),
    "kv_blocks": row(*BUILD, if_=HYBRID & CONTINUES),
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
"""Fields of a corpus, of `data` as of a part of a mixture."""

PART: dict[str, When] = CORPUS | dict.fromkeys(("weight", "repeat", "task", "prefix", "template", "language"), ALWAYS)

SPLIT_VERBS = {
    "train": ("train", "demo", "encode", "tokenizer"),
    "validation": ("train", "demo", "encode", "benchmark"),
    "test": ("train", "demo", "encode", "benchmark"),
}


def _of_data(name: str) -> Row:
    """The row of a field of `CorpusConfig` within `data`."""
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

# how it is trained, timed and kept

DECAYS = when("optim.schedule=cosine or linear", lambda config: config.optim.schedule != "constant")
DISTILLS = when("optim.distill above 0", lambda config: config.optim.distill > 0)
STOPS = when("callbacks.patience", lambda config: config.callbacks.patience is not None)
WANDB = when("logger.name=wandb", lambda config: config.logger.name == "wandb")
SAMPLES = when("label.do_sample=true", lambda config: config.label.do_sample)

OPTIM = dict.fromkeys(
    ("name", "lr", "weight_decay", "betas", "warmup_steps", "schedule", "label_smoothing", "distill"), row(*FIT)
) | {
    "projector_lr": row(*FIT, if_=HYBRID),
    "freeze_slm_steps": row(*FIT),  # train refuses it without an LLM beside the SLM
    "final_lr": row(*FIT, if_=DECAYS),
    "distill_temperature": row(*FIT, if_=DISTILLS),
}
TRAINER = dict.fromkeys(
    (
        *("devices", "num_nodes", "strategy", "precision", "matmul_precision", "max_steps", "max_time", "val_every"),
        *("gradient_clip_val", "accumulate_grad_batches", "log_every_n_steps", "deterministic", "profiler"),
        *("overfit_batches", "limit_val_batches", "val_rows"),
    ),
    row(*FIT),
) | {"accelerator": row(*RUN_VERBS), "progress": row(*RUN_VERBS), "threads": row(*FIT, "encode")}
LOGGER = dict.fromkeys(("mode", "project", "entity", "group", "tags", "samples"), row(*FIT, if_=WANDB)) | {
    "name": row(*FIT)
}
CALLBACKS = dict.fromkeys(("monitor", "mode", "patience", "generate_rows"), row(*FIT)) | {
    "min_delta": row(*FIT, if_=STOPS)
}
TIMED = ("benchmark", "demo")
BENCHMARK = dict.fromkeys(
    ("batch", "prompt_tokens", "response_tokens", "prompts", "repeats", "warmup", "threads", "memory"), row(*TIMED)
)
LABEL = {
    "do_sample": row("label"),
    "temperature": row("label", if_=SAMPLES),
    "top_p": row("label", if_=SAMPLES),
    "format": row("label"),
}
ENCODE = {"dtype": row("encode"), "batch_tokens": row("encode")}
SECTIONS = {
    "model": MODEL, "data": DATA, "task": TASK, "optim": OPTIM, "trainer": TRAINER, "logger": LOGGER,
    "callbacks": CALLBACKS, "benchmark": BENCHMARK, "label": LABEL, "encode": ENCODE,
}  # fmt: skip

RUN_KEYS: dict[str, Row] = {f"{top}.{name}": each for top, rows in SECTIONS.items() for name, each in rows.items()} | {
    "seed": row(*RUN_VERBS),
    "run": row("train", "evaluate", "label", "benchmark"),
    "llm": row("evaluate", "label", "benchmark", if_=when("run=", lambda config: config.run is not None)),
    "split": row("evaluate", "label", "encode"),  # encode refuses it in its own words
    "systems": row("demo", "benchmark"),
}
"""Every key of `RunConfig`."""

REFUSED = {
    ("encode", "run"), ("demo", "run"), ("evaluate", "model.llm.name"), ("label", "model.llm.name"),
    ("benchmark", "model.llm.name"),
}  # fmt: skip
"""Verbs and keys that name what is worked on: where the verb does not read the key, it would work on something else."""
