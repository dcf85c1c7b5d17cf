"""docs/: the commands of each page run in order, in one folder, unchanged except for sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import ROOT
from documented import BENCHMARK, calls, code_lines, smaller, write_inputs
from sampling import representatives

from llm2slm.cli import main

PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
NOT_RUN = {
    "train data=wmt14_en_de": "needs the Hub; tests/data/test_corpora.py",
    "train data=multi30k data.path=FOLDER": "needs the files of the Hub; tests/data/test_corpora.py",
    "benchmark experiment=speed_cpu hydra.run.dir=SPEED_CPU": "T5-large; tests/commands/test_benchmark_command.py",
    "train data=hub data.path=me/my-corpus data.source=translation.en data.target=translation.de": "needs the Hub",
}
"""Commands that test_docs_pages.py only composes, and the reason."""
IN_README = calls((ROOT / "README.md").read_text(encoding="utf-8"))
"""Commands that test_readme.py runs."""
ANOTHER_TEST = {"bring-your-own-model": ("train", "benchmark", "generate", "export")}
"""Verbs that test_docs.py runs, with models of the families on the page."""
HYDRA_FOLDER = ("train", "evaluate", "calibrate", "label", "encode", "benchmark", "costs")
"""Verbs that write to hydra.run.dir, by default a folder named after the time."""
WRITES = {
    "judge": ("judge.json", "outputs/judge"),
    "compare": ("compare.html", "outputs/compare"),
    "report": ("report.html", "outputs/report"),
    "export": ("model.safetensors", "outputs/export"),
    "tokenizer": ("tokenizer.json", "outputs/tokenizer"),
    "dashboard": ("workspace.json", "outputs/dashboard"),
}
"""Verb -> a file that it writes into `out`, and the default of `out`."""


@pytest.mark.parametrize("page", representatives(PAGES, ["publishing"]))
def test_commands_run(page, tmp_path, monkeypatch, trained, tiny_llm, request, capsys):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    found = [call for call in calls(text) if call[0] not in ANOTHER_TEST.get(page, ())]
    write_inputs(tmp_path, trained, tiny_llm)
    monkeypatch.chdir(tmp_path)
    if any("data.root=DIR" in call for call in found):
        (tmp_path / "DIR").symlink_to(request.getfixturevalue("shared_data"))
    for number, call in enumerate(found):
        if " ".join(call) in NOT_RUN or call in IN_README:
            continue
        verb, given = call[0], dict(word.partition("=")[::2] for word in call[1:])
        new = verb == "train" and "run" not in given and "hydra.run.dir" in given
        if new and (tmp_path / given["hydra.run.dir"]).exists():  # the page makes a run that later commands use
            (tmp_path / "RUN").rename(tmp_path / "before")
        if given.get("results") == "[RUN-speed]" and not Path("RUN-speed").exists():
            assert main(["benchmark", "run=RUN", *BENCHMARK, "hydra.run.dir=RUN-speed"]) == 0
        unnamed = verb in HYDRA_FOLDER and "-m" not in call and "hydra.run.dir" not in given
        folder = [f"hydra.run.dir=unnamed-{number}"] * unnamed  # the default is the same within a second
        server = [f"endpoint={request.getfixturevalue('chat').url}"] if "endpoint" in given else []
        code = main([*call, *smaller(call, tiny_llm, tmp_path), *server, *folder])
        shown = capsys.readouterr()
        if "local" in given:  # the judge has random weights: it replies, but without a verdict
            assert code == 2 and "no verdict in its reply" in shown.err
            assert (Path(given["out"]) / "replies.jsonl").is_file()
            continue
        assert code == 0, (call, shown.err)
        check(verb, given)


def check(verb: str, given: dict[str, str]) -> None:
    """Checks the files that the command wrote."""
    if verb in WRITES:
        name, folder = WRITES[verb]
        assert (Path(given.get("out", folder)) / name).is_file()
    elif "output" in given:
        rows = [json.loads(line) for line in Path(given["output"]).read_text("utf-8").splitlines()]
        assert rows and all("prediction" in row for row in rows)
    elif "hydra.run.dir" in given:
        files = {"label": "labels.jsonl", "encode": "reps", "costs": "costs.json"}
        assert (Path(given["hydra.run.dir"]) / files.get(verb, "result.json")).exists()


def test_the_files_of_a_run_are_those_on_the_page(trained):
    lines = code_lines((ROOT / "docs" / "training.md").read_text("utf-8"))
    names = [line.split()[0] for line in lines if not line.startswith("llm2slm")]
    assert names[0] == "RUN/config.yaml" and len(names) == 6
    assert {name.removeprefix("RUN/").rstrip("/") for name in names} == {path.name for path in trained.iterdir()}
    result = json.loads((trained / "result.json").read_text("utf-8"))
    assert result["selection"].keys() == {"metric", "mode", "value", "step", "split"}
    assert "loss" in result["systems"][0]["validation"]


def test_commands_that_are_not_run_are_in_the_pages():
    found = {" ".join(call) for page in PAGES for call in calls((ROOT / "docs" / f"{page}.md").read_text("utf-8"))}
    assert set(NOT_RUN) <= found
