"""README.md: every command in its code blocks runs unchanged except for sizes, and every other verifiable statement is
verified."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_line import ROOT
from documented import code_lines, commands, fenced, smaller, spans, write_inputs
from sampling import first_of_each

from llm2slm.cli import VERBS, main
from llm2slm.cli.compose import Composer
from llm2slm.models import conditioning
from llm2slm.types import UserError

README = (ROOT / "README.md").read_text(encoding="utf-8")
FIGURE = ROOT / "docs" / "figures" / "quality.svg"
SECONDARY = {"logger.mode=online": "needs a network", "llm=PATH": "PATH is a location of the user"}
"""Overrides in the text that no test composes, and the reason."""
CALLS = commands(README, "llm2slm")
CHECKED_VERBS = {
    "train",
    "evaluate",
    "calibrate",
    "generate",
    "benchmark",
    "costs",
    "judge",
    "export",
    "report",
    "compare",
}


@pytest.fixture
def place(tmp_path, monkeypatch, trained, tiny_llm):
    """A folder with all inputs of the README's commands."""
    write_inputs(tmp_path, trained, tiny_llm)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(place: Path) -> list[Path]:
    return sorted(p for p in place.rglob("result.json") if p.relative_to(place).parts[0] in ("outputs", "multirun"))


def test_the_parser_finds_every_command():
    assert len(CALLS) == README.count("\n    llm2slm ") > 8
    assert {shlex.split(call)[1] for call in CALLS} == CHECKED_VERBS
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
    before = (place / "RUN/result.json").read_text("utf-8")
    code = main([*arguments, *smaller(arguments, tiny_llm, place), *server])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    given = dict(argument.partition("=")[::2] for argument in arguments[1:] if "=" in argument)
    match arguments[0]:
        case "train" if "run" in given:
            result = json.loads((place / "RUN/result.json").read_text("utf-8"))
            steps = [each["systems"][0]["notes"]["optimizer_steps"] for each in (json.loads(before), result)]
            assert steps == [2, 3]
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
            assert system["kind"] == ("llm" if given["run"] == "MODEL" else "llm2slm")
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
            plots = place / given["out"] / "plots"
            assert {path.suffix for path in plots.iterdir()} == {".svg", ".pdf"}


def test_python_block_runs(place):
    names: dict[str, object] = {}
    exec(compile(fenced(README, "python")[0], "README.md", "exec"), names)
    assert [type(answer) for answer in names["answers"]] == [str]
    assert {name.partition(".")[0] for name in names["names"]} == {"slm", "projector"}


def test_make_targets_exist():
    targets = dict(re.findall(r"^([a-z-]+):.*?## (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {word for call in commands(README, "make") for word in call.split()[1:]} | {
        span.split()[1] for span in spans(README) if span.startswith("make ")
    }
    assert {"demo", "test", "setup"} <= named <= targets.keys()
    assert "make test-all" in README and "test-all" in targets


def test_lines_that_are_not_commands_name_existing_files():
    """The map of the checkout, and the installation."""
    programs = ("llm2slm", "make", "pip", "source")
    others = [line for line in code_lines(README) if line.split()[0] not in programs]
    assert len(others) > 5
    for line in others:
        folder, *inside = re.findall(r"[\w.]+/(?:[\w.]+/)*|\w+\.md", line)
        assert (ROOT / folder).is_dir(), folder
        assert all((ROOT / name).exists() or (ROOT / folder / name).exists() for name in inside), line
    packages = {path.parent.name for path in (ROOT / "llm2slm").glob("*/__init__.py")} - {"gguf_files"}
    assert packages <= {word for line in others for word in re.findall(r"llm2slm/(\w+)/", line)}
    assert commands(README, "pip") == ["pip install -c constraints.txt -e ."]
    assert (ROOT / "constraints.txt").is_file()
    assert commands(README, "source") == ["source .venv/bin/activate"]


def test_links_and_files_in_the_text_exist():
    paths = [s for s in spans(README) if re.fullmatch(r"[\w./]+/|[\w/-]+\.(md|txt|py)", s) and "=" not in s]
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    assert paths and links
    for path in [*paths, *links]:
        assert (ROOT / path).exists(), path
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(paths), pages - set(paths)


def test_overrides_in_the_text_are_valid(capsys):
    composer = Composer("train")
    checked = 0
    for span in spans(README):
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
    assert checked > 0


def prepared(composer: Composer, override: str) -> None:
    """Composes an override for `train` or, if it does not know the key, for another verb."""
    for other in (composer, Composer("generate"), Composer("judge"), Composer("report")):
        try:
            other.prepare(override, sweeping=False)
            return
        except UserError:
            pass
    Composer("export").prepare(override, sweeping=False)


def test_the_list_of_verbs_is_complete():
    assert [verb for s in spans(README) if s.startswith("train evaluate") for verb in s.split()] == list(VERBS)
    for verb in set(VERBS) - CHECKED_VERBS:
        assert any(f"llm2slm {verb} " in page.read_text("utf-8") or f"llm2slm {verb}\n" in page.read_text("utf-8")
                   for page in (ROOT / "docs").glob("*.md")), verb  # fmt: skip


def test_the_table_of_conditionings_is_complete():
    page = (ROOT / "docs" / "conditioning.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \|", page.partition("\n## ")[0], re.MULTILINE)
    assert sorted(table) == sorted(set(conditioning.names()) - {"none"})


def test_table_one_has_rows_of_the_measured_table():
    block = README.partition("<!-- table one: begin")[2].partition("<!-- table one: end -->")[0]
    rows = [line for line in block.splitlines() if line.startswith("|")]
    measured = (ROOT / "experiments/real_pairs/samsum.md").read_text("utf-8").splitlines()
    assert len(rows) > 3
    assert [row for row in rows if row not in measured] == []


def test_the_figure_is_drawn_from_the_raw_results(tmp_path):
    """The script draws the committed figure, with the values of the raw results."""
    path = tmp_path / "figure.svg"
    subprocess.run([sys.executable, str(ROOT / "experiments/figures/quality.py"), str(path)], check=True)
    assert texts(path) == texts(FIGURE)
    rows = json.loads((ROOT / "experiments/real_pairs/samsum.json").read_text("utf-8"))["rows"]
    scores = json.loads((ROOT / "experiments/captions_gpu/scores.json").read_text("utf-8"))
    assert {f"{row['value']:.1f}" for row in rows} <= set(texts(FIGURE))
    assert any(text.startswith(f"LLM: {scores['llm']['bleu']:.1f} BLEU, ") for text in texts(FIGURE))
    hybrid = min(("all/memory_0.002", "all/memory_0.004"), key=lambda name: min(scores[name]["val_loss"]))
    assert any(text.startswith(f"LLM-to-SLM: {scores[hybrid]['bleu']:.1f} BLEU, ") for text in texts(FIGURE))


def texts(svg: Path) -> list[str]:
    """The texts of a figure, in order."""
    nodes = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return [" ".join("".join(node.itertext()).split()) for node in nodes]
