"""`calibrate`, and `decoding=cascade` with its calibration."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import sacrebleu
from tiny_runs import SIZES, tiny_run

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands.calibrate import metric_of
from llm2slm.commands.calibrate import run as calibrate
from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.train import run as train
from llm2slm.config import RunConfig
from llm2slm.data.sources.sources import task_of
from llm2slm.types import Confidence, Decoding, UserError

KEPT = 0.9


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hybrid, and its calibrations by both measures."""
    folder = tmp_path_factory.mktemp("calibrate")
    train(tiny_run(folder, max_steps=4), folder / "run")
    for measure in Confidence:
        calibrate(configured(folder, measure), folder / measure.value)
    return folder


def configured(root: Path, measure: Confidence = Confidence.mean) -> RunConfig:
    config = tiny_run(root)
    config.run, config.quality_kept = str(root / "run"), KEPT
    config.calibrate.confidence, config.calibrate.resamples = measure, 100
    return config


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text("utf-8"))


def corpus_chrf(rows: list[dict], threshold: float) -> float:
    answers = [row["llm"] if row["confidence"] < threshold else row["hybrid"] for row in rows]
    return float(sacrebleu.corpus_chrf(answers, [[row["target"] for row in rows]]).score)


@pytest.mark.parametrize("measure", ["mean", "min"])
def test_the_calibration_and_the_result_are_consistent(root, measure):
    folder = root / measure
    found, result = read(folder, "calibration.json"), runs.read_result(folder)
    assert result["calibration"] == found and result["verb"] == "calibrate"
    assert (found["confidence"], found["metric"], found["requested"]) == (measure, "chrf", KEPT)
    assert (found["rows"], found["split"], found["seed"]) == (SIZES["validation"], "validation", 5)
    assert found["costs"]["batch"] == 4 and found["costs"]["hybrid_ms"] > 0 < found["costs"]["llm_ms"]
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text("utf-8").splitlines()]
    wanted = [json.loads(line) for line in (root / "rows" / "validation.jsonl").read_text("utf-8").splitlines()]
    assert [(row["source"], row["target"]) for row in rows] == [(row["source"], row["target"]) for row in wanted]
    whole = corpus_chrf(rows, float("inf"))
    for point in found["curve"]:
        assert point["quality"] == pytest.approx(corpus_chrf(rows, float(point["threshold"])))
        assert point["kept"] == pytest.approx(point["quality"] / whole)
    assert found["chosen"] == next(point for point in found["curve"] if point["kept"] >= KEPT)
    cascade, hybrid, llm = result["systems"]
    assert [system["kind"] for system in result["systems"]] == ["llm2slm", "llm2slm", "llm"]
    assert cascade["quality"]["chrf"]["value"] == pytest.approx(found["chosen"]["quality"])
    assert cascade["quality_kept"]["chrf"] == pytest.approx(found["chosen"]["kept"])
    assert hybrid["quality"]["chrf"]["value"] == pytest.approx(found["curve"][0]["quality"])
    assert llm["quality"]["chrf"]["value"] == pytest.approx(whole)
    assert result["baseline"] == {"name": "llm", "kind": "llm"}
    page = (folder / "report.html").read_text("utf-8")
    assert "Cascade: quality against speed" in page and 'data-name="cascade-curve"' in page


def test_answers_do_not_depend_on_the_measure(root):
    both = [(root / name / "answers.jsonl").read_text("utf-8") for name in ("mean", "min")]
    plain = [re.sub(r'"confidence": [^}]*', "", text) for text in both]
    assert plain[0] == plain[1] and both[0] != both[1]


def test_evaluate_reproduces_the_calibration(root):
    """On the same rows the cascade has the quality and the share of the calibration, and with inf that of the LLM."""
    found = read(root / "mean", "calibration.json")
    result = runs.read_result(root / "mean")
    ends = {"inf": result["systems"][2]}
    shares = {str(root / "mean"): found["chosen"]["share"], "inf": 1.0}
    for number, (cascade, share) in enumerate(shares.items()):
        config = configured(root)
        config.decoding, config.cascade, config.split = Decoding.cascade, cascade, "validation"
        system = evaluate(config, root / f"evaluate-{number}").systems[0]
        note = system.notes["decoder"]
        assert note["name"] == "cascade" and note["counts"]["rows"] == SIZES["validation"]
        assert note["counts"]["share_rewritten"] == share
        wanted = ends.get(cascade, result["systems"][0])["quality"]["chrf"]["value"]
        assert system.quality["chrf"].value == pytest.approx(wanted)
        json.dumps(runs.plain(system), allow_nan=False)
    assert note["threshold"] == "inf"


def test_generate_reproduces_the_calibration(root, capsys):
    """The answers are those of the calibration at its threshold."""
    rows = [json.loads(line) for line in (root / "mean" / "answers.jsonl").read_text("utf-8").splitlines()]
    (root / "texts.txt").write_text("".join(f"{row['source']}\n" for row in rows), "utf-8")
    threshold = float(read(root / "mean", "calibration.json")["threshold"])
    wanted = [row["llm"] if row["confidence"] < threshold else row["hybrid"] for row in rows]
    words = ["generate", f"run={root / 'run'}", "decoding=cascade", f"cascade={root / 'mean'}"]
    assert main([*words, f"input={root / 'texts.txt'}", f"output={root / 'answers.txt'}"]) == 0
    assert (root / "answers.txt").read_text("utf-8").splitlines() == wanted
    capsys.readouterr()
    assert main([*words, f"prompt={rows[0]['source']}"]) == 0
    assert capsys.readouterr().out == wanted[0] + "\n"


def test_the_table_and_the_next_command_are_printed(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = [f"run={root / 'run'}", "quality_kept=0.9", "calibrate.resamples=100", "trainer.accelerator=cpu"]
    assert main(["calibrate", *words, f"hydra.run.dir={root / 'cli'}"]) == 0
    shown = capsys.readouterr()
    assert "LLM for all" in shown.out and "chosen" in shown.out
    assert max(map(len, shown.out.partition("With threshold")[0].splitlines())) <= 80
    assert shown.err.endswith(f"llm2slm: next: llm2slm evaluate run={root / 'run'} decoding=cascade "
                              f"cascade={root / 'cli'}\n")  # fmt: skip
    assert read(root / "cli", "calibration.json")["threshold"] == read(root / "mean", "calibration.json")["threshold"]


def test_a_calibration_of_other_weights_is_refused(root, tmp_path):
    found = read(root / "mean", "calibration.json")
    for role, name in (("hybrid", "hybrid"), ("llm", "LLM")):
        folder = tmp_path / role
        folder.mkdir()
        other = found | {"weights": found["weights"] | {role: "000000000000"}}
        (folder / "calibration.json").write_text(json.dumps(other), "utf-8")
        config = configured(root)
        config.decoding, config.cascade = Decoding.cascade, str(folder)
        with pytest.raises(UserError, match=rf"^cascade=\S+: was calibrated for another {name} \(fingerprint 0+; "):
            evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_metric_is_chosen_or_refused():
    config = RunConfig()
    for given, metrics, found in (
        (None, ["ter", "perplexity", "length_ratio", "chrf", "bleu"], "chrf"), ("bleu", ["chrf"], "bleu"),
    ):  # fmt: skip
        config.calibrate.metric, config.task.metrics = given, metrics
        assert metric_of(config, task_of(config.task, config.data)) == found
    for given, metrics, shown in (
        (None, ["ter", "perplexity"], r"task\.metrics=\[ter,perplexity\]: quality kept needs a metric of texts"),
        ("ter", ["bleu"], r"calibrate\.metric=ter: quality kept needs a metric of texts whose higher values"),
        ("bleurt", ["bleu"], "metric 'bleurt' is unknown; did you mean 'bleu'"),
    ):
        config.calibrate.metric, config.task.metrics = given, metrics
        with pytest.raises(UserError, match=f"^{shown}"):
            metric_of(config, task_of(config.task, config.data))
