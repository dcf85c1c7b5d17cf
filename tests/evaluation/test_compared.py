"""The inputs of `compare`: systems of runs and demos, identical rows, names, and the choice of the timing run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from compared_runs import GOOD, POOR, SOURCES, TARGETS, speed, system, write_demo, write_run

from llm2slm import runs
from llm2slm.config import RunConfig
from llm2slm.evaluation.compare.same_rows import check_aligned
from llm2slm.evaluation.compare.systems import find, label_systems, read_run, set_speeds
from llm2slm.runs import System
from llm2slm.types import UserError


def read(*places):
    systems = [system for place in places for system in read_run(str(place))]
    label_systems(systems)
    return systems


def test_a_run_is_read_with_the_facts_of_its_result(tmp_path):
    write_run(tmp_path / "a", "slm", POOR)
    for place in (tmp_path / "a", tmp_path / "a" / "result.json", tmp_path / "a" / "predictions.jsonl"):
        [found] = read_run(str(place))
        assert found.kind == "slm"
        assert found.predictions == POOR
        assert found.rows[1] == (SOURCES[1], TARGETS[1], POOR[1])
        assert found.system["parameters"]["total"] == 700_000
        assert (found.folder, found.run) == (tmp_path / "a", tmp_path / "a")


def test_a_demo_is_read_as_its_systems_with_predictions(tmp_path):
    write_demo(tmp_path / "demo", {"llm": TARGETS, "slm": POOR, "llm2slm": GOOD})
    found = read(tmp_path / "demo")
    assert [(s.label, s.kind, s.predictions) for s in found] == [
        ("llm", "llm", TARGETS), ("slm", "slm", POOR), ("llm2slm", "llm2slm", GOOD),
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "demo" / "slm")
    assert [s.label for s in read(tmp_path / "demo")] == ["llm", "llm2slm"]


def test_labels_are_folders_without_their_common_part(tmp_path, monkeypatch):
    write_demo(tmp_path / "outputs" / "demo", {"llm": TARGETS, "slm": POOR})
    write_run(tmp_path / "outputs" / "b", "slm", GOOD)
    write_run(tmp_path / "other" / "b", "slm", GOOD)
    monkeypatch.chdir(tmp_path)
    assert [s.label for s in read("outputs/demo", "outputs/b/")] == ["demo/llm", "demo/slm", "b"]
    assert [s.label for s in read("outputs/b", tmp_path / "other/b")] == ["outputs/b", "other/b"]
    with pytest.raises(UserError, match=r"outputs/b: named twice"):
        read("outputs/b", "outputs/../outputs/b")


def test_a_control_is_in_the_label_unless_the_folder_names_it(tmp_path):
    names = ("zero", "a_zero-1", "nonzero", "b")
    for name in names:
        write_run(tmp_path / name, "llm2slm", GOOD)
        result = runs.read_result(tmp_path / name)
        result["systems"][0]["notes"] = {"control": "zero"}
        (tmp_path / name / "result.json").write_text(json.dumps(result), encoding="utf-8")
    labels = [system.label for system in read(*(tmp_path / name for name in names))]
    assert labels == ["zero", "a_zero-1", "nonzero, zero", "b, zero"]


def test_a_baseline_is_found_by_label_folder_or_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_demo(Path("demo"), {"llm": TARGETS, "slm": POOR})
    write_run(Path("b"), "slm", GOOD)
    systems = read("b", "demo")
    for name, place in {"demo/slm": 2, "demo": 1, "demo/result.json": 1, "b": 0, "./b/": 0, "slm": None}.items():
        assert find(systems, name) == place, name


@pytest.mark.parametrize(
    ("sources", "targets", "predictions", "message"),
    [
        (
            [*SOURCES[:2], "zwei kleine Vögel fliegen", *SOURCES[3:]], TARGETS, GOOD,
            "row 3 differs in its source, 'zwei kleine Vögel singen' and 'zwei kleine Vögel fliegen'",
        ),
        (
            SOURCES, [*TARGETS[:7], "x" * 100 + "y"], GOOD,
            "row 8 differs in its target, 'he gives her some bread' and 'xxxxxxxxxx",
        ),
        (SOURCES[:5], TARGETS[:5], GOOD[:5], "8 and 5 rows, so row 6 is in only one of them"),
        ([SOURCES[1], SOURCES[0], *SOURCES[2:]], TARGETS, GOOD, "row 1 differs in its source"),
    ],
)  # fmt: skip
def test_different_rows_are_refused(tmp_path, sources, targets, predictions, message):
    write_run(tmp_path / "a", "slm", POOR)
    write_run(tmp_path / "c", "slm", GOOD)
    write_run(tmp_path / "b", "slm", predictions, sources=sources, targets=targets)
    with pytest.raises(UserError) as caught:
        check_aligned(read(tmp_path / "a", tmp_path / "c", tmp_path / "b"))
    files = f"{tmp_path}/a/predictions.jsonl and {tmp_path}/b/predictions.jsonl: "
    assert str(caught.value).startswith(files + message)
    assert str(caught.value).endswith("; compare runs over the same rows")
    assert "\n" not in str(caught.value)
    check_aligned(read(tmp_path / "a", tmp_path / "c"))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"data.corpus": "summarization"}, "the two runs differ in data.corpus (translation and summarization)"),
        ({"split": "validation"}, "the two runs differ in split (test and validation)"),
        (
            {"data.name": "json", "data.test": "a.jsonl", "seed": 2},
            "the two runs differ in data.name (builtin and json), data.test (none and a.jsonl)",
        ),
        ({"data.overlong": "drop", "data.max_prompt_tokens": 9}, "differ in data.overlong (error and drop), data.max_"),
        ({"task.template": ["{source}!"]}, "differ in task.template (none and ['{source}!'])"),
        (
            {"seed": 2},
            "the runs have seeds 1 and 2, by which an earlier version drew the evaluation rows",
        ),
        ({"data.train_size": 7, "optim.lr": 0.5}, None),
    ],
)
def test_different_rows_are_explained_by_the_settings_that_differ(tmp_path, keys, reason):
    config = RunConfig()
    for key, value in keys.items():
        section, _, name = key.rpartition(".")
        setattr(getattr(config, section) if section else config, name, value)
    write_run(tmp_path / "a", "slm", POOR)
    write_run(tmp_path / "b", "slm", POOR, sources=["x", *SOURCES[1:]], config=config)
    write_run(tmp_path / "c", "slm", POOR[:5], sources=SOURCES[:5], targets=TARGETS[:5], config=config)
    for other in ("b", "c"):
        with pytest.raises(UserError) as caught:
            check_aligned(read(tmp_path / "a", tmp_path / other))
        assert str(caught.value).endswith("; compare runs over the same rows")
        assert "\n" not in str(caught.value)
        if reason is None:
            assert "the two runs" not in str(caught.value) and "the runs have" not in str(caught.value)
        else:
            assert reason in str(caught.value)


def test_a_difference_at_the_end_of_a_long_text_is_shown(tmp_path):
    start = "so much that is the same in both texts, and more of it " * 3
    for name, end in (("a", "one"), ("b", "two")):
        write_run(tmp_path / name, "slm", ["x"], sources=[start + end], targets=["y"])
    with pytest.raises(UserError, match=r"source, '….* one' and '….* two';"):
        check_aligned(read(tmp_path / "a", tmp_path / "b"))


def test_bad_files_are_reported_on_one_line(tmp_path):
    run = write_run(tmp_path / "a", "slm", POOR)
    predictions, good = run / "predictions.jsonl", (run / "result.json").read_text("utf-8")
    row = json.dumps({"source": "a", "target": "b", "prediction": "c"})
    wrong = {
        f"{row}\n{{": "a/predictions.jsonl, line 2: not JSON",
        f"{row}\n\n{row.replace('prediction', 'answer')}": "line 3: no text in the field prediction; has: source, ",
        json.dumps({"source": 1, "target": "b", "prediction": "c"}): "line 1: no text in the field source",
        "\n": "a/predictions.jsonl: holds no rows",
    }
    for text, message in wrong.items():
        predictions.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as caught:
            read_run(str(run))
        assert message in str(caught.value)
    predictions.unlink()
    with pytest.raises(UserError, match=r"a/predictions.jsonl: no such file; compare reads the predictions"):
        read_run(str(run))
    (run / "result.json").write_text(good.replace('"kind"', '"kin"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"a/result.json: not a result of llm2slm \(a system lacks one of kind, name"):
        read_run(str(run))
    shutil.copytree(write_demo(tmp_path / "demo", {"llm": TARGETS, "slm": POOR}), tmp_path / "bare")
    for name in ("llm", "slm"):
        shutil.rmtree(tmp_path / "bare" / name)
    with pytest.raises(UserError, match=r"bare/NAME/predictions.jsonl: no such file"):
        read_run(str(tmp_path / "bare"))


# Speeds


def totals(systems):
    return [None if s.row is None else s.row["total_ms"]["median"] for s in systems]


def test_speeds_are_taken_from_one_run(tmp_path):
    """The baseline's run if it was timed, else the first timed run. Other timings are left out, which a note states."""
    one = write_demo(tmp_path / "one", {"llm": TARGETS, "slm": POOR})
    two = write_demo(tmp_path / "two", {"llm": TARGETS, "slm": GOOD})
    alone = write_run(tmp_path / "alone", "slm", GOOD)
    systems = read(alone, one, two)
    timing = set_speeds(systems, systems[0], None)
    assert timing.run == one
    assert totals(systems) == [None, 100, 20, None, None]
    assert timing.notes == [f"two/{name} was timed in another run: its speed is left out." for name in ("llm", "slm")]
    systems = read(alone, one, two)
    assert set_speeds(systems, systems[4], None).run == two
    assert totals(systems) == [None, None, None, 100, 20]
    systems = read(alone)
    timing = set_speeds(systems, systems[0], None)
    assert (timing.run, timing.notes, totals(systems)) == (None, [], [None])


def benchmark(folder, config, systems):
    runs.write_result(folder, runs.Result("benchmark", 1, "0" * 12, 1.0, systems))
    runs.write_config(folder, config)


def test_the_speeds_of_a_benchmark_are_assigned_to_the_models_that_it_timed(tmp_path, monkeypatch):
    """Identified by folder or id: the model of `train`, the model that `evaluate` read, and the LLM itself."""
    monkeypatch.chdir(tmp_path)
    trained = write_run(Path("trained"), "llm2slm", GOOD)
    (trained / "model").mkdir()
    write_run(Path("judged"), "llm2slm", GOOD, verb="evaluate", config=RunConfig(run="trained/model"))
    write_run(Path("slm"), "slm", POOR)
    write_run(Path("llm"), "llm", TARGETS, verb="evaluate", config=RunConfig(run="some/llm"))
    write_run(Path("untimed"), "slm", POOR)
    config = RunConfig(run=str(tmp_path / "trained"), systems={"small": "slm"})
    config.model.llm.name = "some/llm"
    rows = [System(n, k, {}, speed=[speed(t, 90 / t)]) for n, k, t in
            [("llm", "llm", 90.0), ("llm2slm", "llm2slm", 30.0), ("small", "slm", 10.0)]]  # fmt: skip
    benchmark(Path("bench"), config, rows)
    systems = read("trained", "judged", "slm", "llm", "untimed")
    timing = set_speeds(systems, systems[0], "bench")
    assert totals(systems) == [30, 30, 10, 90, None]
    assert (timing.run, timing.notes) == (Path("bench"), ["Not timed in bench: untimed."])
    others = read("untimed")
    with pytest.raises(UserError, match=r"^benchmark=bench: timed some/llm, .*, but none of the compared systems"):
        set_speeds(others, others[0], "bench")
    with pytest.raises(
        UserError, match=r"^benchmark=slm: holds no timing; give the run of `llm2slm benchmark` or of a"
    ):
        set_speeds(others, others[0], "slm")


def test_the_speeds_of_a_demo_are_assigned_like_those_of_a_benchmark(tmp_path):
    """To its systems, to evaluations of their folders, and to its LLM."""
    demo = write_demo(tmp_path / "demo", {"llm": TARGETS, "slm": POOR, "llm2slm": GOOD})
    config = RunConfig(systems={"slm": {"model": {"kind": "slm"}}, "llm2slm": {}})
    config.model.llm.name = "builtin/llm"
    runs.write_config(demo, config)
    again = write_run(tmp_path / "again", "slm", POOR, verb="evaluate", config=RunConfig(run=str(demo / "slm")))
    plain = write_run(tmp_path / "plain", "llm", POOR, verb="evaluate", config=RunConfig(run="builtin/llm"))
    for place in (demo, demo / "result.json"):
        systems = read(again, plain, demo)
        timing = set_speeds(systems, systems[0], str(place))
        assert totals(systems) == [20, 100, 100, 20, 25]
        assert (timing.run, timing.notes) == (demo, [])


def test_a_benchmark_identifies_the_llm_of_a_demo(tmp_path):
    demo = write_demo(tmp_path / "demo", {"llm": TARGETS, "slm": POOR})
    config = RunConfig()
    config.model.llm.name = "builtin/llm"
    runs.write_config(demo, config)
    benchmark(tmp_path / "bench", config, [system("llm", "llm", TARGETS, row=speed(70.0, 1.0))])
    systems = read(demo)
    set_speeds(systems, systems[0], str(tmp_path / "bench"))
    assert totals(systems) == [70, None]
