"""`llm2slm --help` and `llm2slm VERB --help`, from the conf folder and the sources, without heavy imports."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from llm2slm.cli.folders import conf_folder
from llm2slm.cli.reads_verbs import TABLES
from llm2slm.cli.schema import LISTED, REGISTERED, SCHEMAS, Key, as_help, has_groups, keys
from llm2slm.config import RunConfig
from llm2slm.sweeps.settings import LAUNCHERS, SWEEPERS, LauncherSettings
from llm2slm.types import UserError

WIDTH = 116
COLUMN = 42
"""Column of the help of a key."""
EXAMPLES = {
    "train": [
        "llm2slm train                                            built-in LLM, mini SLM, built-in translation",
        "llm2slm train experiment=multi30k_ende data.root=DIR     a corpus with its task and model sizes",
        "llm2slm train model=slm seed=2 hydra.run.dir=runs/slm    the SLM alone, into a folder of your choice",
        "llm2slm train model/llm=t5_base model/slm=t5_small 'task.prefix=translate English to German: '",
        "llm2slm train data=json data.train=a.jsonl data.validation=b.jsonl data.test=c.jsonl"
        " data.source=de data.target=en",
        "llm2slm train -m model/slm=t5_mini,gpt2_mini model.conditioning=add,replace     four runs, one table",
        "llm2slm train -m optim.lr=1e-3,3e-3 seed=range(1,4) jobs=2 hydra.sweep.dir=runs/lr     two jobs at a time",
        "llm2slm train run=DIR trainer.max_steps=5000             continue a run",
    ],
    "evaluate": [
        "llm2slm evaluate run=DIR                                 on the test split of its corpus",
        "llm2slm evaluate run=DIR split=validation task.num_beams=4",
        "llm2slm evaluate run=DIR data=multi30k data.root=DIR     on another corpus",
    ],
    "calibrate": [
        "llm2slm calibrate run=DIR quality_kept=0.99              threshold, and curve of quality against speed",
        "llm2slm evaluate run=DIR decoding=cascade cascade=CALIBRATION",
    ],
    "generate": [
        "llm2slm generate run=DIR prompt='The old woman reads a book.'",
        "llm2slm generate run=DIR input=texts.txt output=answers.jsonl num_beams=4",
        "llm2slm generate run=DIR                                 interactive; an empty line quits",
    ],
    "label": [
        "llm2slm label data=multi30k data.root=DIR model/llm=flan_t5_large hydra.run.dir=labels",
        "llm2slm train data=multi30k data.root=DIR data.labels=llm data.labels_from=labels",
        "llm2slm label run=LLM_RUN label.do_sample=true label.temperature=0.7 label.format=parquet",
    ],
    "encode": [
        "llm2slm encode data=multi30k data.root=DIR model/llm=flan_t5_large hydra.run.dir=encoded",
        "llm2slm train data=multi30k data.root=DIR model/llm=flan_t5_large data.reps=encoded/reps",
    ],
    "benchmark": [
        "llm2slm benchmark run=DIR                                the model of the run and its LLM",
        "llm2slm benchmark run=DIR systems.slm=OTHER_DIR benchmark.batch=[1,8] benchmark.repeats=10",
        "llm2slm benchmark run=DIR benchmark.decoders=[generate,captured,lossless]",
        "llm2slm benchmark experiment=speed_cpu                   shapes of T5 without weights, and targets",
    ],
    "costs": [
        "llm2slm costs model/llm=t5_11b model/slm=t5_small        on an H100, in bfloat16",
        "llm2slm costs model/llm=qwen2_7b model/slm=smollm2 device=rtx4090 batch=1,8 response_tokens=32,256",
        "llm2slm costs run=DIR device=measure dtype=float32       a trained pair on this machine",
    ],
    "judge": [
        "llm2slm judge DIR endpoint=http://localhost:8000/v1 model=NAME               rate each answer, 1 to 10",
        "llm2slm judge DIR_A DIR_B endpoint=https://HOST/v1 model=NAME key_env=MY_KEY   compare, in both orders",
        "llm2slm judge DIR_A DIR_B local=FOLDER_OR_ID out=outputs/a-b             by a model on this machine",
    ],
    "export": [
        "llm2slm export run=DIR out=my-model                      weights, tokenizers, model card",
        "llm2slm export run=DIR out=my-model with_llm=true        and its part of the LLM",
        "llm2slm export run=DIR out=my-model results=[BENCHMARK_DIR] license=apache-2.0 push=me/my-model",
    ],
    "report": [
        "llm2slm report outputs/a outputs/b out=outputs/comparison",
        "llm2slm report multirun/DATE/TIME                        a sweep: factors, seeds, quality against latency",
    ],
    "compare": [
        "llm2slm compare runs/slm runs/hybrid                     differences to the first run, intervals, p-values",
        "llm2slm compare outputs/demo baseline=slm                all systems of a demo, against the SLM alone",
        "llm2slm compare A B C metrics=[chrf,bleu] benchmark=BENCHMARK_DIR resamples=1000",
    ],
    "dashboard": [
        "llm2slm dashboard project=llm2slm group=SWEEP            plots of a sweep at W&B; offline: their JSON files",
        "llm2slm dashboard metric=chrf factors=[model.conditioning,optim.lr]",
    ],
    "demo": ["llm2slm demo", "llm2slm demo seed=2 hydra.run.dir=outputs/demo-2"],
    "tokenizer": ["llm2slm tokenizer data=multi30k data.root=DIR vocab_size=8000 out=tokenizers/multi30k"],
}


def overview(verbs: Mapping[str, str]) -> str:
    """The text of `llm2slm --help`."""
    lines = [
        "usage: llm2slm VERB [KEY=VALUE ...]",
        "",
        "A frozen LLM encodes the prompt once; a small language model generates the response.",
    ]
    lines += ["", "verbs:", *(f"  {verb:10} {line}" for verb, line in verbs.items()), ""]
    lines += ["llm2slm VERB --help lists its keys, groups and options. -m runs every combination of KEY=A,B values."]
    return "\n".join(lines)


def details(verb: str, line: str, arguments: list[str]) -> str:
    """The text of `llm2slm VERB --help`, with the options of a --config-dir in `arguments`."""
    schema = SCHEMAS[verb]
    lines = [
        f"usage: llm2slm {verb} {'RUN [RUN ...] ' if 'runs' in keys(schema) else ''}[KEY=VALUE ...] [GROUP=OPTION ...]",
        "",
        f"{line[0].upper()}{line[1:]}.",
        "",
        "examples:",
    ]
    lines += [f"  {example}" for example in EXAMPLES[verb]]
    groups = group_options([conf_folder(), *config_dirs(arguments)], schema)
    if groups:
        lines += ["", "groups (GROUP=OPTION):"]
        for group, options in groups.items():
            lines += wrapped(f"  {group:19} ", ", ".join(options))
    lines += ["", "keys (KEY=VALUE), with their defaults:"]
    defaults = primary(conf_folder() / f"{verb}.yaml", keys(schema))
    names = used(verb, schema)
    known = [replace(key, default=defaults.get(name, key.default)) for name, key in keys(schema).items()]
    shown_keys = [key for key in known if key.name in names]
    for key in sorted(shown_keys, key=lambda key: "." in key.name or key.section):  # keys outside sections first
        lines += describe(key)
    if hidden := len(known) - len(shown_keys):
        lines += [
            "",
            *wrapped("  ", f"{hidden} keys that only other verbs use are left out. Setting one has no effect here."),
        ]
    lines += ["", "flags:"]
    lines += [f"  {flag:28} {text}" for flag, text in FLAGS.items()]
    return "\n".join([*lines, *of_sweeps(verb, schema)])


def used(verb: str, schema: type) -> set[str]:
    """The keys that a verb reads under some configuration, and the sections that contain one."""
    rows, known = TABLES.get(schema, {}), keys(schema)
    unread = {name for name, row in rows.items() if not any(verb in each.verbs for each in row)}
    read = {name for name, key in known.items() if not key.section and name not in unread}
    return read | {name for name, key in known.items() if key.section and any(n.startswith(f"{name}.") for n in read)}


def of_sweeps(verb: str, schema: type) -> list[str]:
    """The keys of launchers and sweepers, for verbs with a run directory (which run in several processes)."""
    if schema is not RunConfig:
        return []
    short = "launcher=, sweeper=, jobs= for hydra/launcher=, hydra/sweeper=, hydra.launcher.jobs="
    lines = ["", f"sweeps, with -m (short: {short}):"]
    shared = keys(LauncherSettings, "hydra.launcher.")
    lines += ["", "  every launcher but basic (one after another in the process of the command):"]
    for name, key in shared.items():
        lines += [] if name.endswith("_target_") else describe(key)
    groups: dict[str, Mapping[str, type]] = {"launcher": LAUNCHERS, "sweeper": SWEEPERS if verb == "train" else {}}
    for group, schemas in groups.items():
        for option, node in schemas.items():
            lines += ["", *wrapped(f"  hydra/{group}={option}: ", as_help(node.__doc__ or "").partition(": ")[2])]
            for name, key in keys(node, f"hydra.{group}.").items():
                lines += [] if name in shared or name.endswith("_target_") else describe(key)
    return lines


def primary(path: Path, known: Mapping[str, Key]) -> dict[str, Any]:
    """The values that the primary config of a verb sets, by key: they replace the defaults of the dataclass."""
    found: dict[str, Any] = {}

    def collect(values: Mapping[str, Any], before: str) -> None:
        for name, value in values.items():
            key = known.get(before + name)
            if key is not None and key.section:
                collect(value, f"{key.name}.")
            elif key is not None:
                found[key.name] = type(key.default)(value) if isinstance(key.default, Enum) else value

    collect(yaml.safe_load(path.read_text(encoding="utf-8")), "")
    return found


FLAGS = {
    "-m, --multirun": "run every combination of KEY=A,B values, then print one table",
    "-cd, --config-dir DIR": "look for groups and configs in DIR too",
    "-cn, --config-name NAME": "start from another primary config",
    "-c, --cfg job [-p KEY]": "show the composed configuration (or a part) instead of running",
    "-i, --info": "show where the configuration comes from",
    "-sc, --shell-completion": 'eval "$(llm2slm -sc install=bash)" completes what is typed (also zsh, fish)',
    "hydra.run.dir=DIR": "run directory (hydra.sweep.dir=DIR: that of a sweep)",
}


def config_dirs(arguments: list[str]) -> list[Path]:
    """The folder of --config-dir, as a list; [] without the flag.

    Raises:
        UserError: it is not a folder.
    """
    found: list[Path] = []
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, rest = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = Path(rest if equals else value).expanduser()
            if not folder.is_dir():
                raise UserError(f"--config-dir {folder}: no such folder")
            found.append(folder)
    return found


def group_options(folders: list[Path], schema: type) -> dict[str, list[str]]:
    """Group -> its options, for the groups of the schema."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            group = path.parent.relative_to(folder).as_posix()
            top = group.partition("/")[0]
            if has_groups(schema, top) or (top == "experiment" and schema is RunConfig):
                found.setdefault(group, set()).add(path.stem)
    return {group: sorted(found[group]) for group in sorted(found)}


def wrapped(head: str, text: str) -> list[str]:
    """`text` after `head`, wrapped with a hanging indent."""
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


def describe(key: Key) -> list[str]:
    """The lines of a key: name=default and help; of a section: name and help."""
    if key.section:
        return ["", *wrapped(f"  {key.name}: ", summary(key))]
    head = f"    {key.name}={shown(key.default)}"
    text = key.help or ""
    if isinstance(key.default, Enum) and not LISTED.search(text):
        text = f"{text} {' | '.join(type(key.default).__members__)}".strip()
    elif key.name in REGISTERED:
        text = f"{text} {' | '.join(key.choices)}"
    if not text:
        return [head]
    if len(head) > COLUMN - 2:
        return [head, *wrapped(" " * COLUMN, text)]
    return wrapped(head.ljust(COLUMN), text)


def summary(key: Key) -> str:
    """The help of a section: the docstring of its field, else of its class."""
    return key.help or as_help(key.annotation.__doc__ or "")


def shown(value: Any) -> str:
    """A default in the syntax of the command line."""
    if value is None:
        return "null"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(shown(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {shown(v)}" for name, v in value.items()) + "}"
    return str(value)
