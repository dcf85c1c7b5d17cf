"""`demo` with tiny settings: all systems, ratios of their figures, one page."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from sampling import first_few
from tiny_runs import SIZES, tiny_run

from llm2slm import runs
from llm2slm.commands import demo as demo_command
from llm2slm.commands.demo import clear, quality_kept, run, system_config
from llm2slm.data.collate import Collator
from llm2slm.runs import Score, System
from llm2slm.testing import tiny_model_config
from llm2slm.types import Overlong, SystemKind, Tokenizers, UserError


def demo_config(folder):
    config = tiny_run(folder, max_steps=2, val_every=2)
    config.benchmark.repeats, config.benchmark.warmup, config.benchmark.prompts = 2, 0, 2
    config.benchmark.response_tokens, config.benchmark.memory = [3], False
    config.benchmark.hybrid_decoders = ["captured", "lossless"]
    config.systems = {
        "small": {"model": {"kind": "slm"}},
        "guided": {"model": {"kind": "llm2slm", "conditioning": "memory"}, "optim": {"lr": 0.002}},
    }
    return config


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    config = demo_config(folder)
    run(deepcopy(config), folder / "out")
    return folder / "out", config, json.loads((folder / "out" / "result.json").read_text())


def test_all_systems_are_scored_and_timed(demo):
    folder, _, result = demo
    assert [(s["name"], s["kind"]) for s in result["systems"]] == [
        ("llm", "llm"), ("small", "slm"), ("guided", "llm2slm"), ("guided (captured)", "llm2slm"),
        ("guided (lossless)", "llm"),
    ]  # fmt: skip
    llm, *others = result["systems"]
    for system in result["systems"]:
        assert {score["n"] for score in system["quality"].values()} == {SIZES["test"]}
        assert [row["lengths"] for row in system["speed"]] == ["test", "grid"]
        place = folder / system["name"].replace(" (", "-").removesuffix(")")
        assert (place / "predictions.jsonl").is_file()
        for row, reference in zip(system["speed"], llm["speed"], strict=True):
            assert (row["batch"], row["prompt_tokens"]) == (reference["batch"], reference["prompt_tokens"])
            if row["repeats"] == 1:
                assert row["speedup"]["median"] == reference["total_ms"]["median"] / row["total_ms"]["median"]
    assert {row["speedup"]["median"] for row in llm["speed"]} == {1.0}
    for system in others:
        for metric, kept in system["quality_kept"].items():
            assert kept == system["quality"][metric]["value"] / llm["quality"][metric]["value"]


def test_decoders_reproduce_the_scores_of_the_hybrid_or_the_llm(demo):
    """captured has the scores and responses of the hybrid, lossless those of the LLM."""
    folder, _, result = demo
    llm, _, hybrid, captured, lossless = result["systems"]
    assert captured["quality"] == hybrid["quality"] and lossless["quality"] == llm["quality"]
    assert set(lossless["quality_kept"].values()) <= {1.0}
    names = {"llm": "guided-lossless", "guided": "guided-captured"}
    for one, other in names.items():
        same = (folder / one / "predictions.jsonl").read_text(), (folder / other / "predictions.jsonl").read_text()
        assert same[0] == same[1]
    assert [row["decoding"] for s in (hybrid, captured, lossless) for row in s["speed"][:1]] == [
        "transformers generate", "captured", "lossless",
    ]  # fmt: skip
    assert lossless["notes"]["decoder"]["counts"]["rows"] == SIZES["test"]


def test_each_system_is_trained_with_the_common_configuration_and_its_overrides(demo):
    folder, config, _ = demo
    stored = {name: runs.read_config(folder / name) for name in ("small", "guided")}
    wanted = runs.plain(config) | {"systems": {}}
    assert stored["small"] == wanted | {"model": wanted["model"] | {"kind": "slm"}}
    assert stored["guided"] == wanted | {
        "model": wanted["model"] | {"kind": "llm2slm", "conditioning": "memory"},
        "optim": wanted["optim"] | {"lr": 0.002},
    }


def test_the_page_names_all_systems(demo):
    page = (demo[0] / "report.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in page for name in ("llm", "small", "guided"))


def test_the_card_of_a_system_loads_it(demo):
    folder, _, _ = demo
    for name in ("small", "guided"):
        card = (folder / name / "model" / "README.md").read_text("utf-8")
        assert f"# out-{name}\n" in card and f"from_pretrained('out/{name}/model')" in card


def test_quality_kept_is_the_ratio_of_scores_whose_higher_values_are_better():
    def system(**values):
        return System("", "slm", {}, {name: Score(value, "", 3) for name, value in values.items()})

    llm = system(bleu=40.0, chrf=0.0, rougeL=50.0)
    assert quality_kept(system(bleu=30.0, chrf=5.0, other=1.0), llm) == {"bleu": 0.75}
    less = system(ter=40.0, perplexity=2.0, repetition=1.0)  # not for errors
    assert quality_kept(system(ter=48.0, perplexity=3.0, repetition=2.0), less) == {}


def test_a_systems_configuration_is_the_common_one_with_its_changes(tmp_path):
    config = demo_config(tmp_path)
    system = system_config(config, "guided")
    assert (system.model.kind, system.model.conditioning, system.optim.lr) == (SystemKind.llm2slm, "memory", 0.002)
    assert system.optim.projector_lr == config.optim.projector_lr
    assert config.model.conditioning == "add"


@pytest.mark.parametrize(
    ("change", "message"),
    first_few(
        [
            (lambda c: setattr(c.model.llm, "name", None), r"model\.llm\.name"),
            (lambda c: c.systems.update(llm={"model": {"kind": "slm"}}), r"systems\.llm"),
            (lambda c: c.systems.update(other="folder"), r"systems\.other: expected overrides"),
            (lambda c: c.systems.update(other={"modle": {"kind": "slm"}}), r"systems\.other.*modle"),
            (lambda c: setattr(c.trainer, "devices", 2), r"trainer\.devices=2"),
            (lambda c: setattr(c.data, "overlong", Overlong.drop), r"data\.overlong=drop.*use data\.overlong=truncate"),
            (lambda c: c.systems.update(other={"data": {"overlong": "drop"}}), r"data\.overlong=drop"),
            (lambda c: setattr(c.task, "metrics", ["blue"]), "'blue' is unknown; did you mean 'bleu'"),
            (
                lambda c: c.systems.update(other={"task": {"metrics": ["blue"]}}),
                "'blue' is unknown; did you mean 'bleu'",
            ),
            (
                lambda c: c.systems["small"]["model"].update(control="zero"),
                r"systems\.small: model\.control=zero: .*kind=slm",
            ),
        ],
        6,
    ),
)
def test_errors_are_reported_before_anything_is_trained(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(demo_command, "train_side_by_side", lambda *_, **__: pytest.fail("trained"))
    config = demo_config(tmp_path)
    change(config)
    with pytest.raises(UserError, match=message) as caught:
        run(config, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_earlier_demo_is_removed_and_nothing_else(tmp_path):
    config = demo_config(tmp_path)
    for name in ("small", "guided", "mine"):
        (tmp_path / "out" / name).mkdir(parents=True)
    clear(tmp_path / "out", config.systems)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"small", "guided", "mine"}  # not a demo
    runs.write_config(tmp_path / "out", config)
    clear(tmp_path / "out", config.systems)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mine", "config.yaml"}


def test_the_run_of_another_command_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_command, "train_side_by_side", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "out" / "guided" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"out/guided: holds a run already \(checkpoints\)"):
        run(demo_config(tmp_path), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["guided", "checkpoints"]


@pytest.mark.slow
def test_with_truncated_prompts_all_systems_are_scored_and_timed_on_the_same_rows(tmp_path, monkeypatch):
    """With two tokenizers different rows are overlong; dropping them would leave each system other rows."""
    config = demo_config(tmp_path)
    config.model = tiny_model_config(tmp_path / "zoo", tokenizers=Tokenizers.offsets)
    config.data.overlong, config.data.max_prompt_tokens = Overlong.truncate, 9
    config.benchmark.prompts, config.benchmark.repeats = SIZES["test"], 1
    timed, tokens = {}, {}
    read, benchmark_systems = Collator.batch_of_texts, demo_command.benchmark_systems

    def timing(systems, *rest):
        names = {id(system.collator): name for name, system in systems.items()}

        def noting(self, texts):
            batch = read(self, texts)
            timed.setdefault(names[id(self)], []).extend(texts)
            tokens.setdefault(names[id(self)], []).extend(batch.slm_mask_BQ.sum(1).tolist())
            return batch

        monkeypatch.setattr(Collator, "batch_of_texts", noting)
        return benchmark_systems(systems, *rest)

    monkeypatch.setattr(demo_command, "benchmark_systems", timing)
    result = run(config, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "rows" / "test.jsonl").read_text().splitlines()]
    assert timed["llm"][: len(rows)] == [row["source"] for row in rows]
    assert timed["llm"] == timed["small"] == timed["guided"]
    assert {name: max(read) for name, read in tokens.items()} == {"llm": 9, "small": 9, "guided": 9}
    over = {}
    for system in result.systems:
        lines = (tmp_path / "out" / system.name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["source"] for line in lines] == [row["source"] for row in rows]
        assert {score.n for score in system.quality.values()} == {len(rows)}
        told = system.notes["data"]["test"]
        assert (told["rows"], told["dropped"], told["overlong"]) == (len(rows), 0, "truncate")
        over[system.name] = told["overlong_prompts"]
    assert 0 < over["llm"] < over["small"] == over["guided"]
