"""The commands of README.md and docs/: how tests find them, and what they add to run each in about a second."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from pathlib import Path

from command_line import tiny_overrides

from llm2slm.testing import tiny_tokenizer, write_tiny, write_tiny_t5

BENCHMARK = [
    "benchmark.prompts=2",
    "benchmark.response_tokens=[4]",
    "benchmark.repeats=1",
    "benchmark.warmup=0",
    "benchmark.memory=false",
    "benchmark.ceilings=false",
    "trainer.progress=false",
]
SMALLER = {
    "evaluate": ["data.test_size=4", "data.validation_size=4", "trainer.progress=false", "task.max_new_tokens=4"],
    "calibrate": [
        "data.validation_size=6",
        "calibrate.resamples=100",
        "calibrate.metric=chrf",
        "trainer.progress=false",
        "task.max_new_tokens=4",
    ],
    "generate": ["max_new_tokens=4"],
    "benchmark": BENCHMARK,
    "compare": ["resamples=100"],
    "tokenizer": ["data.train_size=50"],
}
"""Overrides that follow a command of each verb; those of verbs that train are in `smaller`."""
TRAINS = ("train", "label", "encode", "demo")


def without_fences(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)


def fenced(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def code_lines(text: str) -> list[str]:
    """The lines of all indented blocks, with continued lines joined."""
    blocks = re.findall(r"(?:^ {4,}\S.*\n(?:\n(?= {4}))?)+", without_fences(text), re.MULTILINE)
    joined = re.sub(r"\\\n\s*", "", "".join(textwrap.dedent(block) for block in blocks))
    return [line for line in joined.splitlines() if line.strip()]


def spans(text: str) -> list[str]:
    """The texts between backquotes, each on one line."""
    text = re.sub(r"^ {4,}.*\n", "", without_fences(re.sub(r"\\\n\s*", "", text)), flags=re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(text: str, program: str) -> list[str]:
    """The calls of a program, without comments."""
    parts = (part.strip() for line in code_lines(text) for part in line.partition(" #")[0].split("&&"))
    return [part for part in parts if part.split()[0] == program]


def calls(text: str) -> list[list[str]]:
    """The arguments of each llm2slm command: verb and overrides."""
    return [shlex.split(call)[1:] for call in commands(text, "llm2slm")]


def write_inputs(folder: Path, trained: Path, tiny_llm: Path) -> None:
    """Writes all inputs that commands name: the runs RUN, RUN1 and RUN2, the plain LLM MODEL, texts, files of rows."""
    for name in ("RUN", "RUN1", "RUN2"):
        shutil.copytree(trained, folder / name)
    shutil.copytree(tiny_llm, folder / "MODEL")
    for name in ("train", "dev", "test", "code"):
        rows = [(f"{name} {i}: how many are {i} dogs?", f"{i} dogs;\n  {{no {i} cats}}") for i in range(9)]
        lines = (json.dumps({"question": q, "answer": a, "source": q, "target": a}) + "\n" for q, a in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for name in ("texts", "questions"):
        (folder / f"{name}.txt").write_text("The cat sleeps.\nTwo dogs see a house.\n")


def smaller(arguments: list[str], tiny_llm: Path, folder: Path) -> list[str]:
    """Overrides that follow a command: fewer rows and steps, and tiny models where it names large ones.

    The command's overrides are still composed. A model that a key names is written to that path.
    """
    verb, *given = arguments
    keys = dict(override.partition("=")[::2] for override in given)
    if "local" in keys:
        return ["max_tokens=4", "rows=1"]
    if verb not in TRAINS:
        return SMALLER.get(verb, [])
    if "run" in keys:
        return ["trainer.max_steps=3", "trainer.progress=false"] if "trainer.max_steps" in keys else []
    for key, vocabulary in (("model.llm.name", "llm"), ("model.slm.name", "slm")):
        if (name := keys.get(key)) and not (folder / name).exists():
            same = keys.get("model.llm.name") == name
            write_tiny("llama", folder / name, seed=2, vocabulary="slm" if same else vocabulary)
            tiny_tokenizer("slm" if same else vocabulary).save_pretrained(folder / name)
    added = tiny_overrides(tiny_llm)
    added += [each for each in BENCHMARK if "benchmark.after_training" in keys and each not in added]
    if "model.llm.name" in keys:
        added.remove(f"model.llm.name={tiny_llm}")
    if "model/slm" in keys and not keys["model/slm"].endswith("_mini") and "model.slm.name" not in keys:
        added.append(f"model.slm.name={write_tiny_t5(folder / 'slm', seed=2)}")
    if "-m" in given and not {"jobs", "launcher", "sweeper"} & keys.keys():  # saves several seconds per job
        added.append("hydra/launcher=basic")
    return [*added, *(BENCHMARK if verb == "demo" else [])]
