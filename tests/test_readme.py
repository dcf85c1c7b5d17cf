"""README.md: every command of its code blocks runs as it stands, only smaller; every other line of them holds true."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest
from command_line import ROOT, tiny_overrides
from sampling import first_of_each

from llm2slm.cli import VERBS, main
from llm2slm.cli.compose import Composer
from llm2slm.models import conditioning
from llm2slm.testing import write_tiny_t5
from llm2slm.types import UserError

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECONDARY = {"logger.mode=online": "needs a network", "llm=PATH": "PATH stands for a place of the reader's"}
"""Overrides within the text that no test tries, and why."""

SMALLER = {
    "train": [],  # filled per test: they name a tiny LLM
    "evaluate": [],
    "generate": ["max_new_tokens=4"],
    "benchmark": [
        "benchmark.prompts=2",
        "benchmark.response_tokens=4",
        "benchmark.repeats=1",
        "benchmark.warmup=0",
        "benchmark.memory=false",
        "trainer.progress=false",
    ],
    "judge": [],  # filled per test: they name a local server
    "export": [],
    "report": [],
    "compare": ["resamples=100"],
}
"""What is put behind a command of each verb, so that it runs in a second."""


def code_lines() -> list[str]:
    """The lines of all indented blocks, continued lines joined."""
    blocks = re.findall(r"(?:^ {4,}\S.*\n(?:\n(?= {4}))?)+", without_fences(), re.MULTILINE)
    joined = re.sub(r"\\\n\s*", "", "".join(textwrap.dedent(block) for block in blocks))
    return [line for line in joined.splitlines() if line.strip()]


def without_fences() -> str:
    return re.sub(r"^```.*?^```\n", "", README, flags=re.MULTILINE | re.DOTALL)


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[str]:
    """The calls of a program, comments taken off."""
    parts = (part.strip() for line in code_lines() for part in line.partition(" #")[0].split("&&"))
    return [part for part in parts if part.split()[0] == program]


def spans() -> list[str]:
    """What stands between backquotes in the text, as one line each."""
    text = re.sub(r"^ {4,}.*\n", "", without_fences(), flags=re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


CALLS = commands("llm2slm")


@pytest.fixture
def place(tmp_path, monkeypatch, trained, tiny_llm):
    """A folder with all that the README's commands name: runs RUN, RUN1 and RUN2, texts, files of rows."""
    for name in ("RUN", "RUN1", "RUN2"):
        shutil.copytree(trained, tmp_path / name)
    for name in ("train", "dev", "test"):
        rows = [{"question": f"{name} {i}: how many are {i} dogs?", "answer": f"{i} dogs"} for i in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.txt").write_text("The cat sleeps.\nTwo dogs see a house.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def smaller(arguments: list[str], tiny_llm: Path, place: Path) -> list[str]:
    """Overrides behind a command: sizes, and tiny models where it names large ones (their groups still compose)."""
    verb = arguments[0]
    if verb != "train":
        return SMALLER[verb]
    slm = [each for each in arguments if each.startswith("model/slm=") and not each.endswith("_mini")]
    named = [f"model.slm.name={write_tiny_t5(place / 'slm', seed=2)}"] if slm else []
    return [*tiny_overrides(tiny_llm), *named]


def results(place: Path) -> list[Path]:
    return sorted(p for p in place.rglob("result.json") if p.relative_to(place).parts[0] in ("outputs", "multirun"))


def test_the_parser_finds_what_a_reader_sees():
    assert len(CALLS) == README.count("\n    llm2slm ") > 8
    assert {shlex.split(call)[1] for call in CALLS} == set(SMALLER)
    assert all("\\" not in call for call in CALLS)
    assert re.findall(r"^```(\w+)", README, re.MULTILINE) == ["python", "bibtex"]


@pytest.mark.parametrize(
    "call", first_of_each(CALLS, lambda call: call.split()[1]), ids=[" ".join(call.split()[1:4]) for call in CALLS]
)
def test_command_runs(call, place, tiny_llm, request, capsys):
    arguments = shlex.split(call)[1:]
    if "data.root=DIR" in arguments:
        (place / "DIR").symlink_to(request.getfixturevalue("shared_data"))
    server = [f"endpoint={request.getfixturevalue('chat').url}"] if arguments[0] == "judge" else []
    code = main([*arguments, *smaller(arguments, tiny_llm, place), *server])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    given = dict(argument.partition("=")[::2] for argument in arguments[1:] if "=" in argument)
    match arguments[0]:
        case "train":
            jobs = 1
            for value in given.values():
                jobs *= 1 + value.count(",") if "-m" in arguments else 1
            found = [json.loads(path.read_text("utf-8")) for path in results(place)]
            assert len(found) == jobs
            assert all(path.with_name("predictions.jsonl").is_file() for path in results(place))
            assert all(result["systems"][0]["quality"] for result in found)
            assert len(list(place.rglob("sweep.csv"))) == ("-m" in arguments)
        case "evaluate" | "benchmark" as verb:
            [path] = results(place)
            [*_, system] = json.loads(path.read_text("utf-8"))["systems"]
            assert system["kind"] == "llm2slm"
            assert {row["batch"] for row in system["speed"]} == ({1, 8} if verb == "benchmark" else set())
        case "generate":
            if "output" in given:
                rows = [json.loads(line) for line in Path(given["output"]).read_text("utf-8").splitlines()]
                assert [row["source"] for row in rows] == Path(given["input"]).read_text().splitlines()
            else:
                assert shown.out.endswith("\n")
        case "judge":
            assert json.loads((place / "outputs/judge/judge.json").read_text("utf-8"))["pairs"]["judged"] > 0
        case "export":
            assert (place / "my-model" / "llm" / "model.safetensors").is_file()
            assert "license: apache-2.0" in (place / "my-model" / "README.md").read_text("utf-8")
        case "compare":
            assert "</html>" in (place / given["out"] / "compare.html").read_text("utf-8")
        case "report":
            assert "</html>" in (place / given["out"] / "report.html").read_text("utf-8")


def test_python_block_runs(place):
    names: dict[str, object] = {}
    exec(compile(fenced("python")[0], "README.md", "exec"), names)
    assert [type(answer) for answer in names["answers"]] == [str]
    assert {name.partition(".")[0] for name in names["names"]} == {"slm", "projector"}


def test_make_targets_exist_and_are_told_alike():
    targets = dict(re.findall(r"^([a-z-]+):.*?## (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {word for call in commands("make") for word in call.split()[1:]} | {
        span.split()[1] for span in spans() if span.startswith("make ")
    }
    assert {"demo", "test", "setup"} <= named <= targets.keys()


def test_what_is_no_command_names_what_exists(trained):
    """The two listings (of the checkout, of a run) and the installation."""
    programs = ("llm2slm", "make", "pip", "source")
    rest = [line for line in code_lines() if line.split()[0] not in programs]
    names = [line.split()[0] for line in rest]
    run = names.index("RUN/config.yaml")
    for name in names[run : run + 6]:
        assert (trained / name.removeprefix("RUN/")).exists(), name
    others = rest[:run] + rest[run + 6 :]
    assert len(others) > 5
    for line in others:
        folder, *inside = re.findall(r"[\w.]+/(?:[\w.]+/)*|\w+\.md", line)
        assert (ROOT / folder).is_dir(), folder
        assert all((ROOT / name).exists() or (ROOT / folder / name).exists() for name in inside), line
    assert commands("pip") == ["pip install -c constraints.txt -e ."]
    assert (ROOT / "constraints.txt").is_file()
    assert commands("source") == ["source .venv/bin/activate"]


def test_links_and_files_within_the_text_exist():
    paths = [span for span in spans() if re.fullmatch(r"[\w./]+/|[\w/]+\.(md|txt)", span) and "=" not in span]
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


def test_overrides_within_the_text_are_valid(capsys):
    composer = Composer("train")
    checked = 0
    for span in spans():
        words = span.split()
        if words[0] == "llm2slm" and words[1:] in (["--help"], ["VERB", "--help"]):
            assert all(main([verb, "--help"]) == 0 for verb in VERBS)
        for word in words:
            if word in SECONDARY or not re.fullmatch(r"[a-z][\w./]*=\S*", word):
                continue
            key, _, value = word.partition("=")
            for option in value.split("|"):
                if value == "":
                    assert composer.options(key), word
                else:
                    prepared(composer, f"{key}={option}")
                checked += 1
    assert checked > 10


def prepared(composer: Composer, override: str) -> None:
    """As `train` takes it, or, where that does not know the key, another verb."""
    for other in (composer, Composer("generate"), Composer("judge"), Composer("report")):
        try:
            other.prepare(override, sweeping=False)
            return
        except UserError:
            pass
    Composer("export").prepare(override, sweeping=False)


def test_the_table_of_conditionings_is_complete():
    table = re.findall(r"^\| `(\w+)`", README, re.MULTILINE)
    assert sorted(table) == sorted(set(conditioning.names()) - {"none"})
    assert [verb for span in spans() if span.startswith("train evaluate") for verb in span.split()] == list(VERBS)
