"""The command line accepts an existing path verbatim: no pattern, no list, no quotes of the shell."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase

from command_line import mistake, tiny_overrides

from llm2slm.cli import main
from llm2slm.testing import write_tiny_t5

SPLITS = ("train", "validation", "test")
OWN = {"source": "the little dog", "target": "der kleine Hund"}
OTHER = {"source": "another", "target": "ein anderer"}


def test_every_verb_accepts_a_path_verbatim(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, other = "{a,b}[1]* c='d'?", "{a,b}1x c='d'y"  # the first, as a pattern, would match the second
    assert fnmatchcase(other, name)
    for folder, row in ((name, OWN), (other, OTHER)):
        (tmp_path / folder).mkdir()
        for split in SPLITS:
            (tmp_path / folder / f"{split}.jsonl").write_text((json.dumps(row) + "\n") * 4)
    write_tiny_t5(tmp_path / name / "llm", seed=1, width=24)
    tiny = [*tiny_overrides(f"{name}/llm"), "task=instruction", "model/slm=t5_mini", f"data.cache={name}/cache"]
    data = ["data=json", *(f"data.{split}={name}/{split}.jsonl" for split in SPLITS)]

    def done(*arguments):
        assert main(list(arguments)) == 0, capsys.readouterr().err

    done("train", *tiny, *data, f"hydra.run.dir={name}/RUN")
    done("train", f"run={name}/RUN", "trainer.max_steps=3")
    done("evaluate", f"run={name}/RUN", f"hydra.run.dir={name}/SCORES")
    done("generate", f"run={name}/RUN", f"input={name}/test.jsonl", f"output={name}/answers.jsonl")
    done("label", *tiny, *data, f"hydra.run.dir={name}/LABELS")
    done("encode", *tiny, *data, f"hydra.run.dir={name}/REPS")
    made = [f"data.reps={name}/REPS/reps", "data.labels=llm", f"data.labels_from={name}/LABELS"]
    done("train", *tiny, *data, *made, f"hydra.run.dir={name}/LABELLED")
    done("train", *tiny, "data=hub", f"data.path={name}", f"hydra.run.dir={name}/HUB")
    done("compare", f"{name}/RUN", f"{name}/HUB", f"out={name}/compared")
    for run in ("RUN", "SCORES", "HUB"):
        lines = (tmp_path / name / run / "predictions.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line)["target"] for line in lines] == [OWN["target"]] * 4
    answered = (tmp_path / name / "answers.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["source"] for line in answered] == [OWN["source"]] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, other])
    capsys.readouterr()
    assert main(["train", "run=run[2]"]) == 2
    assert mistake(capsys).startswith("run[2]: not a run directory")
