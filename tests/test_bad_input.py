"""Bad input through the command line and the real commands: one line each, exit code 2, no file changed."""

from __future__ import annotations

import gzip
import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from bad_inputs import CASES, LIKE_ANOTHER, LINE
from command_line import files_of, mistake, python, replace_command, tiny_overrides
from sampling import representatives

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.cli.launch import new_folder
from llm2slm.types import UserError

ROW = {"source": "the little dog", "target": "der kleine Hund"}
LONG = {"source": "a very long way " * 60, "target": "lang"}
SPLITS = ("train", "validation", "test")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An empty folder with valid and invalid files of rows."""
    monkeypatch.chdir(tmp_path)
    for split in SPLITS:
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(ROW) + "\n" for _ in range(4)))
    good = json.dumps(ROW)
    (tmp_path / "malformed.jsonl").write_text(f'{good}\n{good}\n{{"source": "a", "target"\n')
    (tmp_path / "list.jsonl").write_text(f"{good}\n[1]\n")
    (tmp_path / "short.csv").write_text(f'source,target\n"a\n{"a" * 200_000}",b\n\nc\n')
    (tmp_path / "wide.csv").write_text("source,target\na,b\nc,d,e\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "header.csv").write_text("source,target\n")
    (tmp_path / "number.jsonl").write_text(f'{good}\n{{"source": 5, "target": "b"}}\n')
    (tmp_path / "long.jsonl").write_text(f"{good}\n{json.dumps(LONG)}\n{good}\n")
    (tmp_path / "text.txt").write_text("a\n")
    return tmp_path


def train(llm, *arguments):
    data = ["data=json", *(f"data.{split}={split}.jsonl" for split in SPLITS)]
    return main(["train", *tiny_overrides(llm), *data, *arguments])


@pytest.fixture(scope="session")
def place(tmp_path_factory, trained, tiny_llm):
    """The folder that `bad_inputs` describes, to be copied."""
    folder = tmp_path_factory.mktemp("bad") / "whole"
    for name, source in {"run": trained, "other": trained, "llm": tiny_llm}.items():
        shutil.copytree(source, folder / name)
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text(LINE * 4)
    return folder


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * case.slow, id=case.name) for case in CASES]
)
def test_bad_input_is_reported_on_one_line_and_writes_nothing(place, tmp_path, monkeypatch, capsys, case):
    """Exit code 2, one line that states the error, and no new file or folder."""
    folder = tmp_path / "place"
    shutil.copytree(place, folder)
    monkeypatch.chdir(folder)
    case.prepare(folder)
    before, folders = files_of(folder), {path for path in folder.rglob("*") if path.is_dir()}
    assert main(case.command) == 2
    assert case.message in mistake(capsys)
    assert files_of(folder) == before
    assert {path for path in folder.rglob("*") if path.is_dir()} == folders


def test_runs_started_in_the_same_second_get_separate_folders(tmp_path, monkeypatch):
    made = [new_folder(tmp_path / "outputs" / "14-05-06") for _ in range(3)]
    assert [path.name for path in made] == ["14-05-06", "14-05-06-2", "14-05-06-3"]
    (tmp_path / "file").write_text("a")
    with pytest.raises(UserError, match=r"hydra\.run\.dir=.*file/x: cannot be created"):
        new_folder(tmp_path / "file" / "x")


def test_the_default_folder_is_new_and_is_removed_after_a_mistake(calls, monkeypatch, capsys):
    """All runs start in the same second."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("hydra.core.utils.datetime", Clock)
    for name in ("03-04-05", "03-04-05-2"):
        assert main(["train"]) == 0
        following = f"llm2slm: next: llm2slm benchmark run={Path('outputs/train/2026-01-02') / name}"
        assert following in capsys.readouterr().err.splitlines()
    replace_command(monkeypatch, "train", refuse)
    assert main(["train"]) == 2
    assert mistake(capsys) == "no"
    day = Path.cwd() / "outputs/train/2026-01-02"
    assert [folder for _, folder in calls] == [day / "03-04-05", day / "03-04-05-2"]
    assert sorted(path.name for path in day.iterdir()) == ["03-04-05", "03-04-05-2"]


def refuse(config, folder):
    raise UserError("no")


def test_there_are_many_cases_with_unique_names():
    assert len(CASES) >= 120
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.name for case in CASES} >= LIKE_ANOTHER


BAD = {
    "missing file": (
        ["data.train=none.jsonl"],
        "none.jsonl: no such file; give a json, jsonl, csv, tsv or parquet file",
    ),
    "malformed line": (["data.train=malformed.jsonl"], "malformed.jsonl, line 3: not JSON ("),
    "malformed validation": (["data.validation=malformed.jsonl"], "malformed.jsonl, line 3: not JSON ("),
    "no object": (["data.train=list.jsonl"], "list.jsonl, line 2: expected a JSON object, found list"),
    "too few fields": (["data.train=short.csv"], "short.csv, line 5: 1 of 2 fields; an empty one needs its comma too"),
    "unknown optimizer": (["optim.name=sgd", "model.llm.name=nowhere"], "optim.name=sgd: expected one of adamw, muon"),
    "too many fields": (["data.train=wide.csv"], "wide.csv, line 3: 3 fields, but the header has 2"),
    "empty file": (["data.train=empty.jsonl"], "empty.jsonl: the file is empty"),
    "no rows": (["data.train=header.csv"], "header.csv: holds no rows"),
    "no text": (["data.train=number.jsonl"], "number.jsonl, line 2, column 'source': expected text"),
    "kind of file": (["data.train=text.txt"], "text.txt: unsupported kind of file '.txt'"),
    "unknown column": (
        ["data.source=sorce"],
        "train.jsonl, line 1: no column 'sorce' (data.source); did you mean 'source'? columns: source, target",
    ),
    "file not named": (
        ["data.train=null"],
        "data.train is not set; with data=json give a json, jsonl, csv, tsv or parquet",
    ),
    "over-long prompt": (["data.train=long.jsonl"], "data=json, train, row 1 (from 0): its prompt has "),
    "unknown override": (["data.trian=a.jsonl"], "unknown key 'data.trian'; did you mean data.train"),
    "unknown option": (["model/slm=t5_mni"], "no option model/slm=t5_mni; did you mean model/slm=t5_mini?"),
    "conditioning": (
        [
            "model/slm=t5_small",
            "model.slm.name=null",
            "model.slm.init=random",
            "model.slm.config.model_type=llama",
            "model.slm.config.hidden_size=64",
            "model.slm.config.num_hidden_layers=1",
            "model.conditioning=memory",
        ],
        "model.conditioning=memory does not fit a llama (it has no cross-attention)",
    ),
    "gate": (
        ["model.conditioning=replace", "model.projector.gate=true"],
        "model.projector.gate=true starts z at zero, which leaves conditioning=replace nothing to read",
    ),
    "model": (["model.llm.name=none/such/model"], "model 'none/such/model': no such folder"),
    "misspelt metric": (
        ["task.metrics=[blue]", "data.train=none.jsonl", "model.llm.name=none/such/model"],
        "metric 'blue' is unknown; did you mean 'bleu'? Known: bleu, chrf, ",
    ),
    "misspelt metric, tokenizer to train": (
        ["task.metrics=[chrf,blue]", "model.slm.tokenizer=train:300", "model.tokenizers=offsets"],
        "metric 'blue' is unknown; did you mean 'bleu'? Known: bleu, chrf, ",
    ),
    "metric": (
        ["callbacks.monitor=val/rouge"],
        "callbacks.monitor=val/rouge: this run never logs it; it logs val/loss",
    ),
}


ALIKE = (
    "malformed validation", "too many fields", "no rows", "no text", "kind of file", "unknown override", "missing file",
    "too few fields", "empty file", "unknown column", "misspelt metric",
)  # fmt: skip
"""Cases that the default run leaves out, because another one, or one of `bad_inputs.py`, is similar."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    representatives(BAD.values(), lambda case: case not in [BAD[name] for name in ALIKE]),
    ids=list(BAD),
)
def test_training_on_bad_input_writes_nothing(files, tiny_llm, capsys, arguments, message):
    """Nothing is written to the run directory, which contains a file of the user."""
    (files / "run").mkdir()
    (files / "run" / "notes.txt").write_text("mine")
    before = files_of(files)
    assert train(tiny_llm, *arguments, "hydra.run.dir=run") == 2
    told = mistake(capsys)
    assert told.startswith(message) or f": {message}" in told
    assert files_of(files) == before


@pytest.mark.slow
def test_the_terminal_shows_one_line_only(files, tiny_llm):
    """In a separate process, including the output of libraries that bypasses Python's streams."""
    data = ["data=json", "data.train=malformed.jsonl", "data.validation=validation.jsonl", "data.test=test.jsonl"]
    done = python("-m", "llm2slm", "train", *tiny_overrides(tiny_llm), *data, cwd=files, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("llm2slm: error: malformed.jsonl, line 3: not JSON (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("way", "rows"), representatives([("truncate", 3), ("drop", 2)], [("drop", 2)]))
def test_over_long_prompts_are_counted_and_reported(files, tiny_llm, way, rows):
    long = ["data.train=long.jsonl", "data.test=long.jsonl", f"data.overlong={way}", "data.max_prompt_tokens=100"]
    assert train(tiny_llm, *long, "hydra.run.dir=run") == 0
    [system] = json.loads((files / "run" / "result.json").read_text("utf-8"))["systems"]
    for split in ("train", "test"):
        told = system["notes"]["data"][split]
        assert (told["rows"], told["overlong_prompts"], told["overlong"]) == (3, 1, way)
        assert told["dropped"] == 3 - rows
    assert system["notes"]["data"]["validation"]["overlong_prompts"] == 0
    predictions = (files / "run" / "predictions.jsonl").read_text("utf-8").splitlines()
    assert len(predictions) == rows


@pytest.mark.parametrize("verb", ["evaluate", "benchmark"])
def test_a_missing_run_is_reported(files, capsys, verb):
    assert main([verb, f"run={files}/nowhere/at/all"]) == 2
    assert "no such folder" in mistake(capsys)
    assert main(["train", "run=nowhere"]) == 2
    assert mistake(capsys).startswith("nowhere: not a run directory (no config.yaml)")
    assert files_of(files / "nowhere") == {}


def test_a_run_directory_that_is_a_file_is_reported(files, capsys):
    for place in ("text.txt", "text.txt/run"):
        assert main(["train", f"hydra.run.dir={place}"]) == 2
        assert mistake(capsys) == f"hydra.run.dir={place}: text.txt is a file; give a folder"
    assert (files / "text.txt").read_text() == "a\n"


def test_a_missing_result_is_reported_by_the_given_path(files, capsys):
    assert main(["report", "runs=nowhere"]) == 2
    assert mistake(capsys).startswith("nowhere: no such folder; give a run directory")
    assert main(["report", "runs=nowhere/result.json"]) == 2
    assert mistake(capsys).startswith("nowhere/result.json: no such file")


def test_a_run_directory_is_refused_as_a_model(files, trained, capsys):
    shutil.copytree(trained, files / "run")
    assert main(["train", "model.slm.name=run"]) == 2
    assert "run: is a run directory; give its model, run/model" in mistake(capsys)


@pytest.mark.slow
def test_a_corpus_used_for_another_task_is_reported(files, tiny_llm, capsys):
    """With a custom prefix any task is accepted; without a task the task of the corpus is used."""
    (files / "samsum").mkdir()
    for split in SPLITS:
        with gzip.open(files / "samsum" / f"{split}.jsonl.gz", "wt") as file:
            file.write((json.dumps(ROW) + "\n") * 4)
    warning = "llm2slm: warning: data=samsum is a corpus for summarization, and is used for translation; set task=summ"
    corpus = ["data=samsum", "data.root=.", "trainer.max_steps=1"]
    for arguments, warned in (
        (["task=translation", "task.prefix=a "], False),
        (["task=summarization"], False),
        ([], False),
        (["task=translation"], True),
    ):
        command = ["train", *tiny_overrides(tiny_llm), *corpus, *arguments, "hydra.run.dir=run"]
        shutil.rmtree(files / "run", ignore_errors=True)
        assert main(command) == 0
        assert (warning in capsys.readouterr().err) == warned


def test_evaluating_on_bad_data_leaves_the_run_unchanged(files, trained, capsys):
    shutil.copytree(trained, files / "run")
    before = files_of(files / "run")
    assert main(["evaluate", "run=run", "data=json", "data.test=malformed.jsonl", "hydra.run.dir=scores"]) == 2
    assert mistake(capsys).startswith("malformed.jsonl, line 3: not JSON (")
    assert files_of(files / "run") == before
    assert not (files / "scores").exists()


def test_resuming_a_missing_run_makes_no_folder(files, capsys):
    assert main(["train", "run=nowhere"]) == 2
    assert mistake(capsys).startswith("nowhere: not a run directory")
    assert not (files / "nowhere").exists()


def test_resuming_with_changed_training_settings_is_refused(files, trained, capsys):
    shutil.copytree(trained, files / "run")
    before = files_of(files / "run")
    assert main(["train", "run=run", "optim.lr=0.5"]) == 2
    assert mistake(capsys).startswith("run=run was started with optim.")
    assert files_of(files / "run") == before


def test_a_missing_folder_of_a_model_is_reported(files, capsys):
    assert main(["train", "model.llm.name=./nowhere"]) == 2
    assert mistake(capsys).startswith("model './nowhere': no such folder")


@pytest.mark.parametrize(
    "told",
    ["trainer.max_steps=0: must be at least 1", "data.eval_batch_size=0: must be at least 1",
     "task.num_beams=0: must be between 1 and 1000", "optim.lr=-1.0: must be above 0", "optim.lr=0.0: must be above 0",
     "optim.lr=nan: must be above 0", "seed=-1: must be between 0 and 4294967295"],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(files, capsys, told):
    assert main(["train", told.partition(":")[0]]) == 2
    assert mistake(capsys) == told


def test_a_second_training_in_the_same_folder_is_refused(files, trained, capsys, monkeypatch):
    shutil.copytree(trained, files / "run")
    before = files_of(files / "run")
    monkeypatch.setattr("llm2slm.commands.train.prepare", None)  # refused before the data is prepared
    assert main(["train", "hydra.run.dir=run"]) == 2
    assert "holds a run already" in mistake(capsys)
    assert files_of(files / "run") == before


@pytest.mark.parametrize("verb", representatives(["evaluate", "label", "benchmark", "encode"], ["label"]))
def test_files_of_another_verb_are_not_overwritten(files, trained, capsys, verb):
    """The result, and the configuration for resuming, would be lost."""
    shutil.copytree(trained, files / "run")
    before = files_of(files / "run")
    named = [] if verb == "encode" else ["run=run"]
    assert main([verb, *named, "hydra.run.dir=run", "trainer.accelerator=cpu"]) == 2
    found = f"contains files of `llm2slm train`, which {verb} would overwrite"
    assert f"run: {'holds a run already' if verb == 'encode' else found}" in mistake(capsys)
    assert files_of(files / "run") == before


def test_each_verb_detects_the_files_of_the_others(tmp_path):
    for verb, name in {"train": "checkpoints", "encode": "reps", "label": "labels.jsonl.part"}.items():
        (tmp_path / verb / name).mkdir(parents=True)
    runs.write_result(tmp_path / "done", runs.Result("evaluate", 1, "", 0.0, []))
    held = {"train": "train", "encode": "encode", "label": "label", "done": "evaluate", "nothing": None}
    for verb in ("train", "evaluate", "label", "benchmark"):
        for place, owner in held.items():
            if owner in (verb, None):
                runs.refuse_another(tmp_path / place, verb)
                continue
            said = (
                f"{place}: contains files of `llm2slm {owner}`, which {verb} would overwrite; write to another folder"
            )
            with pytest.raises(UserError, match=said):
                runs.refuse_another(tmp_path / place, verb)
