"""Bad input for `test_bad_input.py`: each case with its command, the damage to the files, and part of the message.

The command runs in a folder with `train.jsonl`, `validation.jsonl`, `test.jsonl`, a tiny LLM `llm`, and the run
directory `run` of a hybrid trained on it. Nothing in the folder may change.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from command_line import tiny_overrides

Prepare = Callable[[Path], object]
ROW = {"source": "the little dog", "target": "der kleine Hund"}
LINE = json.dumps(ROW) + "\n"
SPLITS = ("train", "validation", "test")
TINY = ["train", *tiny_overrides(Path("llm")), "hydra.run.dir=new"]
JSON = [*TINY, "data=json", *(f"data.{split}={split}.jsonl" for split in SPLITS)]
RESUME = ["train", "run=run", "trainer.max_steps=4"]
EVALUATE = ["evaluate", "run=run", "hydra.run.dir=new", "trainer.accelerator=cpu"]
CALIBRATE = ["calibrate", "run=run", "hydra.run.dir=new", "trainer.accelerator=cpu"]
CASCADE = [*EVALUATE, "decoding=cascade"]
LABEL = ["label", "run=run", "hydra.run.dir=new", "trainer.accelerator=cpu"]
BENCHMARK = ["benchmark", "run=run", "hydra.run.dir=new", "trainer.accelerator=cpu"]
EXPORT = ["export", "run=run", "out=new"]
GENERATE = ["generate", "run=run", "prompt=hello"]
ENCODE = ["encode", *TINY[1:]]
REPORT = ["report", "runs=[run]", "out=new"]
COMPARE = ["compare", "runs=[run,other]", "out=new"]
JUDGE = ["judge", "runs=[run]", "local=llm", "out=new"]
TOKENIZER = ["tokenizer", "out=new"]


@dataclass(frozen=True)
class Case:
    """One case. message: part of the line. slow: left out of the default run, because it loads a model and another
    case fails in the same way."""

    name: str
    command: list[str]
    message: str
    prepare: Prepare = lambda folder: None
    slow: bool = False


# Damage to files


def write(name: str, content: str | bytes) -> Prepare:
    """Replaces a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def removed(name: str) -> Prepare:
    return lambda folder: (folder / name).unlink()


def cut(name: str, size: int | None = None) -> Prepare:
    """Keeps the first half of a file, or `size` bytes."""

    def prepare(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2 if size is None else size])

    return prepare


def as_folder(*names: str) -> Prepare:
    """Replaces files by folders of the same names."""

    def prepare(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()
            (folder / name).mkdir()

    return prepare


def as_file(name: str) -> Prepare:
    """Replaces a folder by a file of the same name."""

    def prepare(folder: Path) -> None:
        shutil.rmtree(folder / name)
        (folder / name).write_text("text\n")

    return prepare


def entries(name: str, **values: object) -> Prepare:
    """Changes entries of a JSON object."""

    def prepare(folder: Path) -> None:
        found = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(found | values), "utf-8")

    return prepare


def all_of(*prepares: Prepare) -> Prepare:
    return lambda folder: [prepare(folder) for prepare in prepares]


# Keys: refused when the configuration is composed, before torch is imported

NUMBERS = {
    "trainer.max_steps=0": "must be at least 1",
    "trainer.max_steps=-1": "must be at least 1",
    "trainer.max_steps=10000000000000000000000": "must be at most 4294967295",
    "trainer.max_steps=1.5": "expected an integer",
    "trainer.max_steps=abc": "expected an integer",
    "trainer.max_steps=[1]": "expected an integer",
    "trainer.max_steps=null": "expected an integer",
    "trainer.devices=0": "must be at least 1, or -1",
    "trainer.num_nodes=0": "must be at least 1",
    "trainer.val_every=0": "must be at least 1",
    "trainer.val_rows=0": "must be at least 1",
    "trainer.gradient_clip_val=-1.0": "must be at least 0",
    "trainer.gradient_clip_val=nan": "must be at least 0",
    "trainer.accumulate_grad_batches=0": "must be at least 1",
    "trainer.log_every_n_steps=0": "must be at least 1",
    "trainer.overfit_batches=-1": "must be at least 0",
    "trainer.limit_val_batches=0": "must be at least 1",
    "trainer.threads=0": "must be at least 1",
    "data.eval_batch_size=0": "must be at least 1",
    "data.batch_tokens=-5": "must be at least 1",
    "data.train_size=0": "must be at least 1",
    "data.workers=-1": "must be between 0 and 512",
    "data.workers=100000": "must be between 0 and 512",
    "data.buffer=0": "must be at least 1",
    "data.labels_share=1.5": "must be between 0 and 1",
    "data.max_lossy_share=-0.1": "must be between 0 and 1",
    "data.max_prompt_tokens=0": "must be at least 1",
    "task.num_beams=0": "must be between 1 and 1000",
    "task.num_beams=100000": "must be between 1 and 1000",
    "task.max_new_tokens=0": "must be at least 1",
    "optim.lr=-1.0": "must be above 0",
    "optim.lr=0.0": "must be above 0",
    "optim.lr=nan": "must be above 0",
    "optim.lr=inf": "must be at most 4294967295",
    "optim.lr=1e+300": "must be at most 4294967295",
    "optim.projector_lr=0.0": "must be above 0",
    "optim.embedding_lr=-1.0": "must be above 0",
    "optim.weight_decay=-0.1": "must be at least 0",
    "optim.warmup_steps=-1": "must be at least 0",
    "optim.final_lr=2.0": "must be between 0 and 1",
    "optim.label_smoothing=2.0": "must be at least 0 and below 1",
    "optim.label_smoothing=-0.1": "must be at least 0 and below 1",
    "optim.distill=1.1": "must be between 0 and 1",
    "optim.distill_temperature=0.0": "must be above 0",
    "optim.betas=[1.5,0.9]": "1.5 is out of range; each must be at least 0 and below 1",
    "optim.betas=[0.9]": "must hold 2 numbers, each at least 0 and below 1",
    "optim.betas=[]": "must hold 2 numbers, each at least 0 and below 1",
    "optim.betas=[0.9,0.98,0.99]": "must hold 2 numbers, each at least 0 and below 1",
    "model.projector.hidden=-3": "must be between 0 and 1048576",
    "model.projector.hidden=100000000000": "must be between 0 and 1048576",
    "model.pool=0.0": "must be above 0",
    "model.cross_every=0": "must be at least 1",
    "model.kv_blocks=[]": "must hold one number or more",
    "callbacks.patience=-1": "must be at least 0",
    "callbacks.min_delta=-1.0": "must be at least 0",
    "callbacks.generate_rows=-1": "must be at least 0",
    "logger.samples=-1": "must be at least 0",
    "seed=-1": "must be between 0 and 4294967295",
    "seed=99999999999": "must be between 0 and 4294967295",
    "seed=abc": "expected an integer",
}
"""Override of `train` -> the rest of the message after "KEY=VALUE: "."""
TEXTS = {
    "optim.name=sgd": "expected one of adamw, muon",
    "optim.schedule=abc": "expected one of cosine, linear, constant",
    "trainer.accelerator=tpu": "expected one of auto, gpu, cuda, mps, cpu",
    "trainer.matmul_precision=low": "expected one of highest, high, medium",
    "trainer.profiler=abc": "expected one of simple, advanced, pytorch",
    "logger.mode=abc": "expected one of auto, online, offline",
    "callbacks.mode=abc": "expected one of min, max",
    "split=abc": "expected one of train, validation, test",
    "label.format=abc": "expected one of jsonl, parquet",
    "model.llm.dtype=float8": "expected one of float32, bfloat16, float16",
    "model.slm.dtype=int8": "expected one of float32, bfloat16, float16",
    "model.kind=abc": "expected one of llm2slm, slm, llm",
    "model.conditioning=abc": "expected one of add, cross_attention, kv, memory, none, prepend, replace",
    "model.tokenizers=abc": "expected one of shared, offsets, llm_tokens",
    "model.control=abc": "expected one of none, constant, shuffled, zero",
    "model.projector.start=abc": "expected one of zero, random, identity or null",
    "model.slm.init=abc": "expected one of pretrained, random or null",
    "data.overlong=abc": "expected one of error, truncate, drop, split",
    "data.streaming=abc": "expected true or false",
    "encode.dtype=abc": "expected one of float32, bfloat16, int8",
    "model.slm.tune=": "is empty; give a value, or leave the key out",
    "model.slm.tokenizer=": "is empty; give a value, or leave the key out",
    "model.llm.name=": "is empty; give a value, or leave the key out",
    "data.cache=": "is empty; give a value, or leave the key out",
    "data.train=": "is empty; give a value, or leave the key out",
    "task.metrics=['']": "is empty; give a value, or leave the key out",
    "data.parts=[1]": "expected a list of {KEY: VALUE}, [A,B]",
    "model.llm.config=abc": "expected keys and values, {key: value}",
    "systems=abc": "expected keys and values, {key: value}",
}
"""The same for keys of other types."""
KEYS = [
    *(Case(override, [*TINY, override], f"{override}: {rest}") for override, rest in (NUMBERS | TEXTS).items()),
    Case("unknown key", [*TINY, "data.trian=a"], "unknown key 'data.trian'; did you mean data.train"),
    Case("no option", [*TINY, "model/slm=t5_mni"], "no option model/slm=t5_mni; did you mean model/slm=t5_mini?"),
    Case("group of no option", [*TINY, "model=[]"], "model=[]: names no option; model has: llm, llm2slm, slm"),
    Case("no assignment", [*TINY, "trainer.max_steps"], "override 'trainer.max_steps' is malformed"),
    Case("section", [*TINY, "model=5"], "no option model=5"),
    Case("sweep without -m", [*TINY, "seed=1,2"], "seed=1,2: several values; add -m to run each of them"),
    Case("interpolation", [*TINY, "seed=${nothing}"], "Interpolation key 'nothing' not found"),
    Case("unknown verb", ["trian"], "unknown verb 'trian'; did you mean train?"),
    Case("unknown flag", [*TINY, "--nothing"], "unrecognized arguments: --nothing"),
    Case("config folder", [*TINY, "--config-dir", "nothing"], "--config-dir nothing: no such folder"),
    Case("config name", [*TINY, "--config-name", "nothing"], "--config-name nothing: no such config"),
    Case("verb of no run", ["evaluate", "hydra.run.dir=new"], "evaluate needs run=DIR"),
    Case("generate, top_p", ["generate", "top_p=0"], "top_p=0.0: must be above 0 and at most 1"),
    Case("generate, batch", ["generate", "batch_size=0"], "batch_size=0: must be at least 1"),
    Case("generate, lone surrogate", ["generate", "prompt=a\udcedb"], "prompt: half a character (\\udced)"),
    Case("judge, timeout", ["judge", "timeout=0"], "timeout=0.0: must be above 0 and at most 86400"),
    Case("judge, dtype", ["judge", "dtype=int8"], "dtype=int8: expected one of float32, bfloat16, float16"),
    Case("judge, workers", ["judge", "workers=100000"], "workers=100000: must be between 1 and 512"),
    Case("export, dtype", ["export", "run=run", "dtype=int8"], "dtype=int8: expected one of float32"),
    Case("compare, resamples", ["compare", "runs=[run]", "resamples=9"], "resamples=9: must be at least 100"),
    Case("tokenizer, size", ["tokenizer", "vocab_size=0"], "vocab_size=0: must be at least 1"),
    Case("report, title", ["report", "runs=[run]", "title="], "title=: is empty"),
]

# Data, files and folders: refused before a model is loaded

DATA = [
    Case("no data", [*JSON, "data.train=none.jsonl"], "none.jsonl: no such file"),
    Case("data is a folder", JSON, "train.jsonl: ", as_folder("train.jsonl")),
    Case("empty", JSON, "train.jsonl: the file is empty", write("train.jsonl", "")),
    Case("binary", JSON, "train.jsonl, line 1: not UTF-8", write("train.jsonl", b"\xff\xfe\x00\x01")),
    Case("Latin-1", JSON, "train.jsonl, line 2: not UTF-8", write("train.jsonl", LINE.encode() + b'{"a": "\xe4"}\n')),
    Case("malformed", JSON, "train.jsonl, line 2: not JSON (", write("train.jsonl", LINE + '{"source": \n')),
    Case("malformed validation", JSON, "validation.jsonl, line 2: not JSON (", write("validation.jsonl", "{\n")),
    Case(
        "no object",
        JSON,
        "train.jsonl, line 2: expected a JSON object, found list",
        write("train.jsonl", LINE + "[1]\n"),
    ),
    Case(
        "number for text",
        JSON,
        "train.jsonl, line 1, column 'source': expected text",
        write("train.jsonl", '{"source": 5, "target": "b"}\n'),
    ),
    Case(
        "null for text",
        JSON,
        "train.jsonl, line 1, column 'target': expected text",
        write("train.jsonl", '{"source": "a", "target": null}\n'),
    ),
    Case("lone surrogate", JSON, "train.jsonl", write("train.jsonl", '{"source": "a\\ud800", "target": "b"}\n')),
    Case("NaN", JSON, "train.jsonl, line 1", write("train.jsonl", '{"source": NaN, "target": "b"}\n')),
    Case("unknown column", [*JSON, "data.source=sorce"], "train.jsonl, line 1: no column 'sorce' (data.source)"),
    Case(
        "csv, fields missing",
        [*JSON, "data.train=a.csv"],
        "a.csv, line 2: 1 of 2 fields",
        write("a.csv", "source,target\na\n"),
    ),
    Case(
        "csv, fields too many",
        [*JSON, "data.train=a.csv"],
        "a.csv, line 2: 3 fields, but the header has 2",
        write("a.csv", "source,target\na,b,c\n"),
    ),
    Case("csv, header only", [*JSON, "data.train=a.csv"], "a.csv: holds no rows", write("a.csv", "source,target\n")),
    Case("csv, open quote", [*JSON, "data.train=a.csv"], "a.csv, line ", write("a.csv", 'source,target\n"a,b\n')),
    Case("no gzip", [*JSON, "data.train=a.jsonl.gz"], "a.jsonl.gz: ", write("a.jsonl.gz", b"\x1f\x8b\x08abc")),
    Case("no parquet", [*JSON, "data.train=a.parquet"], "a.parquet: ", write("a.parquet", "PAR1 no")),
    Case("kind of file", [*JSON, "data.train=a.txt"], "a.txt: unsupported kind of file '.txt'", write("a.txt", "a\n")),
    Case("below a file", [*JSON, "data.train=train.jsonl/a.jsonl"], "train.jsonl/a.jsonl: no such file"),
    Case("unknown corpus", [*TINY, "data.name=abc"], "data=abc: unknown corpus"),
    Case("unknown generated corpus", [*TINY, "data.corpus=abc"], "data.corpus=abc: unknown"),
    Case("mixture of nothing", [*TINY, "data=mixture"], "data=mixture: no parts"),
    Case(
        "mixture, unknown part", [*TINY, "data=mixture", "data.parts=[{name: abc}]"], "data.parts[0]: data=abc: unknown"
    ),
    Case(
        "mixture, weight",
        [*TINY, "data.parts=[{name: samsum, weight: 0}]"],
        "data.parts[0].weight=0.0: must be above 0",
    ),
    Case("no folder of corpora", [*TINY, "data=samsum", "data.root=nowhere"], "nowhere"),
    Case("no store", [*TINY, "data.reps=nowhere"], "nowhere: is no store of representations"),
    Case("store, no JSON", [*TINY, "data.reps=run"], "run/store.json", write("run/store.json", "{")),
    Case("store, another JSON", [*TINY, "data.reps=run"], "run/store.json", write("run/store.json", "[]")),
    Case("no labels", [*TINY, "data.labels=llm", "data.labels_from=run"], "data.labels_from=run: has no labels.jsonl"),
    Case(
        "labels of another form",
        [*TINY, "data.labels=llm", "data.labels_from=train.jsonl"],
        "train.jsonl, line 1: not a label",
    ),
    Case("unknown task", [*TINY, "task.name=abc"], "task.name=abc: unknown"),
    Case("template, column", [*TINY, "task.template=['{nope}']"], "data.corpus=translation, train: no column 'nope'"),
    Case("template, brace", [*TINY, "task.template=['{']"], "task.template='{': "),
    Case("unknown metric", [*TINY, "task.metrics=[blue]"], "metric 'blue' is unknown; did you mean 'bleu'?"),
    Case("unknown language", [*TINY, "task.language=abc"], "task.language=abc: unknown language"),
    Case(
        "tokenizer to train, no number", [*TINY, "model.slm.tokenizer=train:abc"], "model.slm.tokenizer=train:abc: give"
    ),
    Case(
        "tokenizer to train, digit of another script",
        [*TINY, "model.slm.tokenizer=train:²"],
        "model.slm.tokenizer=train:²: give",
    ),
    Case(
        "tokenizer to train, huge",
        [*TINY, "model.slm.tokenizer=train:99999999999999999999"],
        "model.slm.tokenizer=train:99999999999999999999: ",
    ),
    Case(
        "tokenizer to train, small",
        [*TINY, "model.slm.tokenizer=train:5", "model.tokenizers=offsets"],
        "tokenizer of 5 entries: too small",
    ),
    Case("tokenizer to train, small, verb", [*TOKENIZER, "vocab_size=5"], "tokenizer of 5 entries: too small"),
    Case(
        "tokenizer to train, pretrained SLM",
        [
            *TINY,
            "model.slm.name=llm",
            "model.slm.init=pretrained",
            "model.slm.tokenizer=train:300",
            "model.tokenizers=offsets",
        ],
        "model.slm.tokenizer=train:300: ",
    ),
    Case(
        "data after a tokenizer was trained",
        [*JSON, "model.slm.tokenizer=train:300", "model.tokenizers=offsets"],
        "validation.jsonl, line 1: not UTF-8",
        write("validation.jsonl", b"\xff\n"),
    ),
    Case("prompts file", ["generate", "run=run", "input=none.txt"], "input=none.txt: no such file"),
    Case("prompts folder", ["generate", "run=run", "input=llm"], "input=llm: is a folder"),
    Case(
        "output below a file",
        ["generate", "run=run", "input=train.jsonl", "output=validation.jsonl/a.txt"],
        "output=validation.jsonl/a.txt: ",
    ),
    Case(
        "output in a read-only folder",
        ["generate", "run=run", "input=train.jsonl", "output=/proc/a/b.txt"],
        "/proc/a/b.txt",
    ),
    Case(
        "run directory is a file",
        [*TINY, "hydra.run.dir=train.jsonl"],
        "hydra.run.dir=train.jsonl: train.jsonl is a file",
    ),
    Case(
        "run directory below a file",
        [*TINY, "hydra.run.dir=train.jsonl/new"],
        "hydra.run.dir=train.jsonl/new: train.jsonl is a file",
    ),
    Case("run directory in a read-only folder", [*TINY, "hydra.run.dir=/proc/new"], "hydra.run.dir=/proc/new: "),
    Case("run directory of no name", [*TINY, "hydra.run.dir="], "hydra.run.dir="),
    Case(
        "sweep folder below a file", ["train", "-m", "seed=1,2", "hydra.sweep.dir=train.jsonl/new"], "hydra.sweep.dir="
    ),
    Case("export below a file", ["export", "run=run", "out=train.jsonl/new"], "out=train.jsonl/new: "),
    Case("report below a file", ["report", "runs=[run]", "out=train.jsonl/new"], "out=train.jsonl/new: "),
    Case("compare below a file", ["compare", "runs=[run,run]", "out=train.jsonl/new"], "out=train.jsonl/new: "),
    Case("tokenizer below a file", ["tokenizer", "out=train.jsonl/new"], "out=train.jsonl/new: "),
    Case("judge below a file", ["judge", "runs=[run]", "local=llm", "out=train.jsonl/new"], "out=train.jsonl/new: "),
    Case(
        "system outside of the folder",
        ["demo", "systems={../evil: {seed: 2}}", "hydra.run.dir=new"],
        "systems.../evil: ",
    ),
    Case("judge, no endpoint", [*JUDGE[:2], "out=new", "endpoint=nowhere", "model=a"], "endpoint: not an HTTP address"),
    Case(
        "judge, no key",
        [*JUDGE[:2], "out=new", "endpoint=http://127.0.0.1:9/v1", "model=a", "key_env=NOTHING_OF_THE_KIND"],
        "key_env=NOTHING_OF_THE_KIND: ",
    ),
    Case(
        "judge, no connection",
        [*JUDGE[:2], "out=new", "endpoint=http://127.0.0.1:9/v1", "model=a", "retries=0"],
        "http://127.0.0.1:9/v1",
    ),
    Case("push, name", [*EXPORT, "push=a/b/c"], "push=a/b/c: give a repository of the Hub"),
]

# Recorded runs: configuration, result, predictions

CONFIG, RESULT, PREDICTIONS = "run/config.yaml", "run/result.json", "run/predictions.jsonl"
RUNS = [
    Case("no run", ["train", "run=nowhere"], "nowhere: not a run directory (no config.yaml)"),
    Case("run is a file", ["train", "run=train.jsonl"], "train.jsonl: not a run directory"),
    Case("no run to evaluate", ["evaluate", "run=./nowhere", "hydra.run.dir=new"], "model './nowhere': no such folder"),
    Case("no run to report", ["report", "runs=[nowhere]", "out=new"], "nowhere: no such folder"),
    Case("config empty", RESUME, f"{CONFIG}: not a configuration", write(CONFIG, "")),
    Case("config no YAML", RESUME, f"{CONFIG}, line 1: not YAML", write(CONFIG, "{")),
    Case("config a list", RESUME, f"{CONFIG}: not a configuration", write(CONFIG, "[]")),
    Case("config binary", RESUME, f"{CONFIG}: not UTF-8 text", write(CONFIG, b"\xff")),
    Case("config a folder", RESUME, "run: not a run directory", as_folder(CONFIG)),
    Case(
        "config with code",
        RESUME,
        f"{CONFIG}, line 1: not YAML",
        write(CONFIG, "a: !!python/object/apply:os.system ['touch executed']\n"),
    ),
    Case("config, unknown key", RESUME, f"{CONFIG}: unknown key 'abc'", write(CONFIG, "abc: 1\n")),
    Case("config, type", RESUME, f"{CONFIG}: Value 'abc'", write(CONFIG, "seed: abc\n")),
    Case("config, section", RESUME, f"{CONFIG}: ", write(CONFIG, "model: abc\n")),
    Case("config, option", RESUME, f"{CONFIG}: Invalid value 'abc'", write(CONFIG, "model: {kind: abc}\n")),
    Case("config, range", EVALUATE, f"{CONFIG}: optim.lr=-1.0: must be above 0", write(CONFIG, "optim: {lr: -1}\n")),
    Case("result no JSON", REPORT, f"{RESULT}, line 1: not JSON", write(RESULT, "{")),
    Case("result empty", REPORT, f"{RESULT}, line 1: not JSON", write(RESULT, "")),
    Case("result binary", REPORT, f"{RESULT}: not UTF-8 text", write(RESULT, b"\xff")),
    Case("result a list", REPORT, f"{RESULT}: not a result of schema 1", write(RESULT, "[]")),
    Case("result of another schema", REPORT, f"{RESULT}: not a result of schema 1", write(RESULT, '{"schema": 99}')),
    Case(
        "result, no systems",
        REPORT,
        f"{RESULT}: not a result of llm2slm",
        write(RESULT, '{"schema": 1, "verb": "train"}'),
    ),
    Case(
        "result, system",
        REPORT,
        f"{RESULT}: not a result of llm2slm",
        write(RESULT, '{"schema": 1, "verb": "train", "systems": [{"name": "a"}]}'),
    ),
    Case("result a folder", REPORT, f"{RESULT}: is a folder", as_folder(RESULT)),
    Case("result of a run to evaluate", EVALUATE, f"{RESULT}, line 1: not JSON", write(RESULT, "{")),
    Case("result of a run to resume", RESUME, f"{RESULT}: not UTF-8 text", write(RESULT, b"\xff")),
    Case("calibrate, no run", ["calibrate", "hydra.run.dir=new"], "calibrate needs run=DIR"),
    Case("calibrate, an LLM", [CALIBRATE[0], "run=llm", *CALIBRATE[2:]], "calibrate needs a hybrid: run=llm is llm"),
    Case("calibrate, too much", [*CALIBRATE, "quality_kept=1.01"], "quality_kept=1.01: must be above 0 and at most 1"),
    Case("calibrate, nothing", [*CALIBRATE, "quality_kept=0"], "quality_kept=0.0: must be above 0 and at most 1"),
    Case(
        "calibrate, metric", [*CALIBRATE, "calibrate.metric=ter"], "calibrate.metric=ter: quality kept needs a metric"
    ),
    Case(
        "calibrate, beams",
        [*CALIBRATE, "task.num_beams=2"],
        "beam search is not supported; use num_beams=1",
    ),
    Case("calibrate, an LLM that moved", [*CALIBRATE, "llm=nowhere"], "nowhere"),
    Case("cascade, no threshold", CASCADE, "decoding=cascade needs cascade=DIR"),
    Case("cascade, no folder", [*CASCADE, "cascade=nowhere"], "cascade=nowhere: neither a number nor a folder with"),
    Case("cascade, nan", [*CASCADE, "cascade=nan"], "cascade=nan: is no threshold"),
    Case(
        "cascade, no calibration",
        [*CASCADE, "cascade=."],
        "calibration.json: not a calibration (KeyError: 'weights')",
        write("calibration.json", '{"threshold": "-inf", "confidence": "mean"}'),
    ),
    Case(
        "cascade, no JSON",
        [*CASCADE, "cascade=."],
        "calibration.json: not a calibration (JSONDecodeError",
        write("calibration.json", "{"),
    ),
    Case("predictions no JSON", COMPARE, f"{PREDICTIONS}, line 1: not JSON", write(PREDICTIONS, "{")),
    Case("predictions empty", COMPARE, f"{PREDICTIONS}", write(PREDICTIONS, "")),
    Case("predictions of another form", COMPARE, f"{PREDICTIONS}", write(PREDICTIONS, '{"a": 1}\n')),
    Case("predictions missing", JUDGE, "run", removed(PREDICTIONS)),
    Case("predictions binary", JUDGE, f"{PREDICTIONS}, line 1: not UTF-8", write(PREDICTIONS, b"\xff\n")),
]
FILES = [f"run/checkpoints/{name}.ckpt" for name in ("last", "previous", "best")]
LAST = FILES[0]
CHECKPOINTS = [
    Case(
        "checkpoints empty",
        RESUME,
        f"{LAST}: is damaged",
        all_of(*(write(path, "") for path in FILES)),
    ),
    Case(
        "checkpoints of text",
        RESUME,
        f"{LAST}: is damaged",
        all_of(*(write(path, "a") for path in FILES)),
        slow=True,
    ),
    Case("checkpoints cut", RESUME, f"{LAST}: is damaged", all_of(*map(cut, FILES)), slow=True),
    Case("checkpoints are folders", RESUME, f"{LAST}: cannot be read", as_folder(*FILES)),
    Case("checkpoints a file", RESUME, "run/checkpoints: is a file", as_file("run/checkpoints")),
]

# Models and tokenizers

WEIGHTS, MODEL, TOKENS = "run/model/model.safetensors", "run/model/config.json", "run/model/tokenizer.json"
GENERATION, LLM_WEIGHTS, LLM_CONFIG = "run/model/generation_config.json", "llm/model.safetensors", "llm/config.json"
DAMAGED = "model 'run/model' cannot be read: a file of weights is damaged"
UNREADABLE = "model 'run/model' cannot be read: "
OF_LLM = "model 'llm'"


def with_code(folder: Path) -> None:
    """Replaces the LLM's weights by a pickle that runs a command."""
    import torch

    class Command:
        def __reduce__(self):
            return eval, ("open('executed', 'w')",)

    (folder / LLM_WEIGHTS).unlink()
    torch.save({"a": Command()}, folder / "llm/pytorch_model.bin")


def outside_shards(folder: Path) -> None:
    """Makes the LLM's index of weights name a file outside of its folder."""
    (folder / LLM_WEIGHTS).rename(folder / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"shared.weight": "../outside.safetensors"}}
    (folder / "llm/model.safetensors.index.json").write_text(json.dumps(index))


MODELS = [
    Case("weights empty", EVALUATE, DAMAGED, write(WEIGHTS, "")),
    Case("weights cut", GENERATE, DAMAGED, cut(WEIGHTS)),
    Case("weights, header cut", LABEL, DAMAGED, cut(WEIGHTS, 100), slow=True),
    Case("weights of text", BENCHMARK, DAMAGED, write(WEIGHTS, "text" * 99), slow=True),
    Case("weights to export", EXPORT, DAMAGED, cut(WEIGHTS), slow=True),
    Case("weights missing", GENERATE, "run/model: has no model.safetensors", removed(WEIGHTS), slow=True),
    Case("weights a folder", GENERATE, "run/model: has no model.safetensors", as_folder(WEIGHTS), slow=True),
    Case("config.json empty", GENERATE, UNREADABLE, write(MODEL, "")),
    Case("config.json no JSON", GENERATE, UNREADABLE, write(MODEL, "{"), slow=True),
    Case("config.json a list", GENERATE, UNREADABLE, write(MODEL, "[]"), slow=True),
    Case("config.json binary", GENERATE, UNREADABLE, write(MODEL, b"\xff\xfe"), slow=True),
    Case("config.json a folder", GENERATE, UNREADABLE, as_folder(MODEL), slow=True),
    *(
        Case(f"config.json, {name}", GENERATE, f"{MODEL}: {starts}", entries(MODEL, **values))
        for name, values, starts in [
            ("conditioning", {"conditioning": "abc"}, "conditioning=abc: expected one of add, "),
            ("conditioning a number", {"conditioning": 5}, "conditioning=5: expected one of add, "),
            ("kind", {"kind": "abc"}, "kind=abc: expected one of llm2slm, slm, llm"),
            ("tokenizers", {"tokenizers": "abc"}, "tokenizers=abc: expected one of shared, "),
            ("control", {"control": "abc"}, "control=abc: expected one of none, "),
            ("no SLM", {"slm": None}, "slm: missing"),
            ("no LLM", {"llm": None}, "kind=llm2slm, conditioning=add and no llm do not belong together"),
            ("LLM a text", {"llm": "abc"}, "llm=abc: expected keys and values"),
            ("LLM without width", {"llm": {"name": "llm"}}, "llm.revision: missing"),
            ("no projector", {"projector": None}, "projector: missing"),
            ("projector key", {"projector": {"abc": 1}}, "projector.abc: unknown"),
            ("projector width", {"projector": {"hidden": -3}}, "projector.hidden=-3: must be between 0 and"),
            ("limits", {"limits": {"abc": 1}}, "limits.abc: unknown"),
            ("pool", {"pool": "a"}, "pool=a: must be above 0"),
            ("cross_every", {"cross_every": 0}, "cross_every=0: must be at least 1"),
            ("virtual tokens", {"virtual_tokens": {"a": 1}}, "virtual_tokens.tune: missing"),
            ("frame", {"llm_frame": {"a": 1}}, "llm_frame.a: unknown"),
            ("prefix", {"prefix": 5}, "prefix=5, suffix='': expected texts"),
        ]
    ),
    Case("config.json, SLM without type", GENERATE, UNREADABLE, entries(MODEL, slm={"a": 1}), slow=True),
    Case("config.json, SLM of unknown type", GENERATE, UNREADABLE, entries(MODEL, slm={"model_type": "a"}), slow=True),
    Case("config.json, unknown type", GENERATE, UNREADABLE, entries(MODEL, model_type="abc"), slow=True),
    Case("tokenizer no JSON", GENERATE, "tokenizer run/model: ", write(TOKENS, "{"), slow=True),
    Case("tokenizer a list", GENERATE, "tokenizer run/model: ", write(TOKENS, "[]")),
    Case("tokenizer empty", GENERATE, "tokenizer run/model: ", write(TOKENS, ""), slow=True),
    Case("tokenizer missing", GENERATE, "tokenizer run/model: ", removed(TOKENS), slow=True),
    Case(
        "tokenizer settings",
        GENERATE,
        "tokenizer run/model: ",
        write("run/model/tokenizer_config.json", "[]"),
        slow=True,
    ),
    Case("generation settings no JSON", GENERATE, UNREADABLE, write(GENERATION, "{")),
    Case("generation settings a list", GENERATE, UNREADABLE, write(GENERATION, "[]"), slow=True),
    Case("LLM, weights empty", TINY, f"{OF_LLM} cannot be read: a file of weights", write(LLM_WEIGHTS, "")),
    Case("LLM, weights cut", ENCODE, f"{OF_LLM} cannot be read: a file of weights", cut(LLM_WEIGHTS), slow=True),
    Case("LLM, weights missing", TINY, f"{OF_LLM} cannot be read: ", removed(LLM_WEIGHTS), slow=True),
    Case("LLM, pickle with code", TINY, f"{OF_LLM} cannot be read: ", with_code),
    Case("LLM, shard outside of its folder", TINY, "llm/model.safetensors.index.json: ", outside_shards),
    Case(
        "LLM, index no JSON", TINY, "llm/model.safetensors.index.json: ", write("llm/model.safetensors.index.json", "{")
    ),
    Case("LLM, config.json a list", TINY, "", write(LLM_CONFIG, "[]"), slow=True),
    Case(
        "LLM, width 0",
        TINY,
        f"{OF_LLM}: hidden_size=0 in its config.json: must be at least 1",
        entries(LLM_CONFIG, d_model=0),
    ),
    Case(
        "LLM, no layer",
        TINY,
        f"{OF_LLM}: num_hidden_layers=0 in its config.json",
        entries(LLM_CONFIG, num_layers=0),
        slow=True,
    ),
    Case("LLM, width a text", TINY, "", entries(LLM_CONFIG, d_model="abc"), slow=True),
    Case(
        "LLM, remote code",
        TINY,
        f"{OF_LLM}: its config.json names Python code (evil.Config)",
        entries(LLM_CONFIG, model_type="own", auto_map={"AutoConfig": "evil.Config"}),
    ),
    Case("LLM, no such folder", [*TINY, "model.llm.name=./nowhere"], "model './nowhere': no such folder"),
    Case("LLM, not in the cache and no network", [*TINY, "model.llm.name=none/such"], "tokenizer none/such: "),
    Case("LLM, a run directory", [*TINY, "model.llm.name=run"], "tokenizer run: is a run directory; give its model"),
    Case("LLM, no file", [*TINY, "model.llm.gguf_file=a.gguf"], "model 'llm/a.gguf': no such file"),
    Case(
        "LLM, no GGUF file",
        [*TINY, "model.llm.gguf_file=a.gguf"],
        "llm/a.gguf: is cut off",
        write("llm/a.gguf", "GGUF"),
    ),
    Case("LLM, layer", [*TINY, "model.llm.layer=99"], "model.llm.layer=99: the LLM has layers 0 to 2"),
    Case("LLM, layer a text", [*TINY, "model.llm.layer=abc"], "model.llm.layer=abc: give a whole number", slow=True),
    Case("LLM, attention", [*TINY, "model.llm.attn_implementation=abc"], f"{OF_LLM} cannot be read: ", slow=True),
    Case(
        "LLM, quantization",
        [*TINY, "model.llm.quantization={quant_method: abc}"],
        "model.llm.quantization.quant_method=abc",
        slow=True,
    ),
    Case(
        "SLM, size 0",
        [*TINY, "model.slm.config={num_heads: 0}"],
        "model.slm.config.num_heads=0: must be at least 1",
        slow=True,
    ),
    Case(
        "SLM, unknown type",
        [*TINY, "model.slm.config={model_type: abc}"],
        "model.slm.config.model_type=abc is unknown",
        slow=True,
    ),
    Case("SLM, blocks", [*TINY, "model.slm.layers=99"], "model.slm.layers=99: ", slow=True),
    Case("SLM, pattern", [*TINY, "model.slm.tune='('"], "model.slm.tune=(: no regular expression", slow=True),
    Case(
        "SLM, conditioning that does not fit",
        [*TINY, "model.conditioning=kv"],
        "model.conditioning=kv does not fit a t5",
        slow=True,
    ),
]

# Devices, and settings that Lightning refuses

DEVICES = [
    Case("no such device", [*TINY, "trainer.accelerator=mps"], "trainer.accelerator=mps: torch finds no such device"),
    Case("devices", [*TINY, "trainer.devices=abc"], "trainer.devices=abc: "),
    Case("strategy", [*TINY, "trainer.strategy=abc"], "trainer.strategy=abc: "),
    Case("precision", [*TINY, "trainer.precision=abc"], "trainer.precision=abc: "),
    Case("precision of a GPU", [*TINY, "trainer.precision=16-mixed"], "trainer.precision=16-mixed: needs a CUDA GPU"),
    Case("time", [*TINY, "trainer.max_time=abc"], "trainer.max_time=abc: "),
    Case("direction of the loss", [*TINY, "callbacks.mode=max"], "callbacks.mode=max: would select the largest loss"),
    Case("monitor", [*TINY, "callbacks.monitor=val/abc"], "callbacks.monitor=val/abc: this run never logs it"),
]
LIKE_ANOTHER = {
    # data
    "Latin-1", "malformed validation", "no object", "null for text", "NaN", "csv, fields too many", "csv, header only",
    "csv, open quote", "no parquet", "below a file", "unknown generated corpus", "mixture, unknown part",
    "labels of another form", "template, column", "unknown language", "tokenizer to train, small",
    "tokenizer to train, small, verb", "tokenizer to train, digit of another script", "tokenizer to train, huge",
    "export below a file", "report below a file", "compare below a file", "judge below a file", "store, another JSON",
    "judge, no key", "judge, no connection", "no folder of corpora", "lone surrogate",
    # runs
    "config a list", "config binary", "config, section", "config, option", "result empty", "result a list",
    "result of another schema", "result, system", "predictions empty", "predictions of another form",
    "predictions binary", "calibrate, nothing", "cascade, no JSON", "cascade, nan",
    "result of a run to evaluate", "no run to evaluate",
    # models
    "config.json, conditioning a number", "config.json, tokenizers", "config.json, control", "config.json, LLM a text",
    "config.json, LLM without width", "config.json, projector key", "config.json, limits", "config.json, cross_every",
    "config.json, virtual tokens", "config.json, frame", "config.json, prefix", "config.json, pool", "LLM, no file",
    "LLM, index no JSON", "LLM, a run directory", "weights empty",
    "config.json, no SLM",
    # devices
    "strategy", "time",
}  # fmt: skip
"""Cases that the default run leaves out, because another case reaches the same check."""
CASES = [
    replace(case, slow=case.slow or case.name in LIKE_ANOTHER)
    for case in (*KEYS, *DATA, *RUNS, *CHECKPOINTS, *MODELS, *DEVICES)
]
