"""`benchmark`: which systems it times, the baseline, and what it writes. (The timing itself: tests/evaluation.)"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from statistics import fmean

import pytest
from command_line import without_next
from tiny_runs import SIZES, build, publish, tiny_run
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from llm2slm.cli import main
from llm2slm.commands import benchmark as benchmark_command
from llm2slm.commands.benchmark import run as benchmark
from llm2slm.commands.train import run as train
from llm2slm.config import ModelConfig, TargetConfig
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import write_tiny_gpt2
from llm2slm.types import Init, Overlong, UserError

OLD, NEW, COPY = "a" * 40, "b" * 40, "c" * 40
"""Commits of models on the Hub."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark")


def config_of(root):
    config = tiny_run(root, max_steps=1)
    config.callbacks.generate_rows = 0
    config.benchmark.repeats, config.benchmark.warmup, config.benchmark.prompts = 1, 0, 2
    config.benchmark.response_tokens, config.benchmark.memory = [4], False
    return config


@pytest.fixture(scope="module")
def hybrid(root):
    """Folder of an untrained hybrid, which suffices for timing."""
    build(config_of(root))[0].save_pretrained(root / "hybrid")
    return root / "hybrid"


@pytest.fixture
def lengths(monkeypatch):
    """Tokens of each prompt that a system encodes, by its number of parameters; filled during timing."""
    found, generate = {}, LLM2SLM.generate

    def noting(self, batch, *given, **arguments):
        own = found.setdefault(self.parameter_counts()["total"], [])
        own += batch.slm_mask_BQ.sum(1).tolist()
        return generate(self, batch, *given, **arguments)

    monkeypatch.setattr(LLM2SLM, "generate", noting)
    return found


def test_a_run_is_timed_with_its_llm_and_other_systems(root):
    trained = train(config_of(root), root / "run").systems[0].parameters
    config = config_of(root)
    config.run = str(root / "run")
    config.systems = {"other": str(write_tiny_gpt2(root / "other"))}
    result = benchmark(config, root / "timed")
    assert [(s.name, s.kind) for s in result.systems] == [("llm", "llm"), ("other", "llm"), ("llm2slm", "llm2slm")]
    assert [s.parameters["trainable"] for s in result.systems] == [0, 0, trained["trainable"]]
    assert 0 < trained["trainable"] < trained["total"]
    stored = json.loads((root / "timed" / "result.json").read_text())
    assert stored["verb"] == "benchmark"
    assert stored["baseline"] == {"name": "llm", "kind": "llm"}
    llm = stored["systems"][0]["speed"]
    for system in stored["systems"]:
        for row, reference in zip(system["speed"], llm, strict=True):
            assert row["response_tokens"] == reference["response_tokens"]
            expected = reference["total_ms"]["median"] / row["total_ms"]["median"]  # one round: no median of ratios
            assert row["speedup"]["median"] == pytest.approx(expected)
            split = row["prefill_ms"]["median"] + row["ms_per_token"]["median"] * (row["response_tokens"] - 1)
            assert row["total_ms"]["median"] == pytest.approx(split, rel=0.05) or row["lengths"] == "test"
    assert (root / "timed" / "report.html").is_file()


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "configured"])
def test_the_llm_is_loaded_once(root, hybrid, saved, monkeypatch):
    timed = {}
    config = config_of(root)
    config.run = str(hybrid) if saved else None
    config.systems = {"again": str(hybrid), "shallow": str(write_tiny_gpt2(root / "shallow", layers=1))}
    monkeypatch.setattr(benchmark_command, "benchmark_systems", lambda systems, *_: (timed.update(systems), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        benchmark(config, root / "once")
    of = {name: {t.data_ptr() for t in (model.encoder or model).parameters()} for name, model in timed.items()}
    assert of["llm2slm"] == of["again"] < of["llm"] and not of["shallow"] & of["llm"]


def test_an_untrained_model_is_timed_from_its_configuration(root):
    config = config_of(root)
    config.model.slm.init = Init.random
    result = benchmark(config, root / "shapes")
    assert [s.name for s in result.systems] == ["llm", "llm2slm"]
    assert all(row.total_ms.median > 0 for s in result.systems for row in s.speed)


def test_stored_representations_are_refused(root):
    """The time of a hybrid would lack the encoding by its LLM."""
    config = config_of(root)
    config.data.reps = str(root / "reps")
    with pytest.raises(UserError, match=r"^data\.reps=.*reps: benchmark times the LLM's encoder too"):
        benchmark(config, root / "stored")
    assert not (root / "stored").exists()


def test_a_system_that_is_not_a_run_directory_is_refused(root):
    config = config_of(root)
    config.systems = {"other": {"model": {"kind": "slm"}}}
    with pytest.raises(UserError, match=r"systems\.other: give a run directory"):
        benchmark(config, root / "bad")


def test_overlong_prompts_are_truncated_and_counted_for_each_system(root, hybrid, lengths):
    """All figures refer to truncated prompts: a model of 70 positions takes 6 tokens before a response of 64."""
    config = config_of(root)
    config.run, config.systems = str(hybrid), {"short": str(write_tiny_gpt2(root / "short", positions=70))}
    config.data.overlong, config.data.max_prompt_tokens = Overlong.truncate, 10
    config.benchmark.prompts, config.benchmark.response_tokens = SIZES["test"], []
    texts = [json.loads(line)["source"] for line in (root / "rows" / "test.jsonl").read_text().splitlines()]
    full = [len(ids) for ids in AutoTokenizer.from_pretrained(config.model.llm.name)(texts)["input_ids"]]
    room = {"llm": 10, "llm2slm": 10, "short": 6}
    over = {name: sum(n > most for n in full) for name, most in room.items()}
    assert 0 < over["llm"] < over["short"] < len(full)
    result = benchmark(config, root / "cut")
    assert [s.name for s in result.systems] == ["llm", "short", "llm2slm"]
    for system in result.systems:
        read = [min(n, room[system.name]) for n in full]
        assert Counter(lengths[system.parameters["total"]]) == Counter(read)
        told = system.notes["data"]["test"]
        assert (told["rows"], told["dropped"], told["overlong"]) == (len(full), 0, "truncate")
        assert told["overlong_prompts"] == over[system.name]
        assert system.speed[0].prompt_tokens == fmean(min(n, 10) for n in full)


def test_a_grid_states_the_truncated_prompt_length(root, hybrid, lengths):
    config = config_of(root)
    config.run, config.data.max_prompt_tokens, config.data.overlong = str(hybrid), 20, Overlong.truncate
    config.benchmark.prompts, config.benchmark.prompt_tokens = 0, [15, 40]
    result = benchmark(config, root / "grid")
    for system in result.systems:
        assert [row.prompt_tokens for row in system.speed] == [15, 20]
        assert Counter(lengths[system.parameters["total"]]) == {15: 1, 20: 1}
    config.data.overlong = Overlong.error
    with pytest.raises(UserError, match=r"prompt has 40 tokens, at most 20 .*data\.overlong"):
        benchmark(config, root / "refused")


def test_an_overlong_prompt_is_reported_on_one_line(root, hybrid):
    config = config_of(root)
    config.run, config.data.max_prompt_tokens = str(hybrid), 10
    with pytest.raises(UserError, match=r"row 1 \(from 0\): its prompt has 12 tokens, at most 10 .*truncate") as caught:
        benchmark(config, root / "long")
    assert "\n" not in str(caught.value)
    assert not (root / "long").exists()


def test_dropped_rows_are_counted(root, hybrid):
    config = config_of(root)
    config.run, config.data.max_prompt_tokens, config.data.overlong = str(hybrid), 10, Overlong.drop
    for system in benchmark(config, root / "dropped").systems:
        told = system.notes["data"]["test"]
        assert (told["rows"], told["dropped"], told["overlong"]) == (SIZES["test"], 2, "drop")


@pytest.mark.slow
def test_the_baseline_is_the_llm_that_the_hybrid_records(root, hub, tmp_path, monkeypatch):
    """With the commit and dtype of its training, not those of main or of the configuration."""
    config = config_of(root)
    config.model.llm.name, config.model.llm.dtype = "someone/llm", "bfloat16"
    publish(hub, "someone/llm", OLD)
    build(config)[0].save_pretrained(tmp_path / "saved")
    publish(hub, "someone/llm", NEW, encoder_layers=3)
    config.model, config.run = ModelConfig(), str(tmp_path / "saved")
    measured = {}
    monkeypatch.setattr(benchmark_command, "folder_memory", lambda folders, *_: measured.update(folders))
    size = {
        commit: AutoModelForSeq2SeqLM.from_pretrained("someone/llm", revision=commit).num_parameters()
        for commit in (OLD, NEW)
    }
    llm, guided = benchmark(config, tmp_path / "out").systems
    assert llm.parameters["total"] == size[OLD] != size[NEW]
    assert ({row.dtype for row in llm.speed}, {row.dtype for row in guided.speed}) == ({"bfloat16"}, {"float32"})
    assert (measured["llm"].revision, measured["llm"].dtype) == (OLD, "bfloat16")  # in a separate process
    # moved to another id, where that commit is not known
    publish(hub, "other/copy", COPY)
    shutil.rmtree(hub / "models--someone--llm")
    config.llm = "other/copy"
    llm, guided = benchmark(config, tmp_path / "moved").systems
    assert (llm.parameters["total"], llm.speed[0].dtype) == (size[OLD], "bfloat16")


@pytest.mark.slow
def test_a_default_corpus_is_reported_on_stderr_only(tiny_llm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["benchmark.prompts=1", "benchmark.response_tokens=[]", "benchmark.repeats=1", "benchmark.warmup=0"]
    rest = ["benchmark.memory=false", "trainer.progress=false", "trainer.accelerator=cpu", "hydra.run.dir=out"]
    assert main(["benchmark", f"run={tiny_llm}", *small, *rest]) == 0
    shown = capsys.readouterr()
    assert [line for line in without_next(shown.err).splitlines() if line.startswith("llm2slm: ")] == [
        f"llm2slm: {tiny_llm} records no corpus: using data=builtin (data.corpus=translation) with "
        "task.prefix='translate English to German: '"
    ]
    assert "data.corpus" not in shown.out
    assert shown.out.splitlines()[-1].endswith("out/report.html")


def test_a_published_architecture_is_timed_without_its_weights_and_tokenizer(tmp_path, monkeypatch, capsys):
    """Decoders, targets and notes on the command line: targets that are not met do not change the exit code."""
    monkeypatch.chdir(tmp_path)
    tiny = "{d_model: 8, d_ff: 8, d_kv: 4, num_heads: 2, num_layers: 1, num_decoder_layers: 1}"
    models = ["model/llm=t5_large", "model.llm.init=random", f"model.llm.config={tiny}"]
    models += ["model/slm=t5_small", "model.slm.init=random", f"model.slm.config={tiny}"]
    target = "{name: %s, system: %s, against: llm, at_least: %s, response_tokens: 4}"
    wanted = [("ever", "llm2slm", 1000000), ("never", "llm2slm", 0.000001), ("absent", "'llm2slm (int8)'", 1)]
    targets = ", ".join(target % each for each in wanted)
    grid = ["benchmark.prompts=0", "benchmark.prompt_tokens=[12]", "benchmark.response_tokens=[4]"]
    rounds = ["benchmark.repeats=1", "benchmark.warmup=0", "benchmark.memory=false", "benchmark.ceilings=false"]
    rest = ["trainer.accelerator=cpu", "trainer.progress=false", "hydra.run.dir=out"]
    decoders = ["benchmark.decoders=[generate,captured]", f"benchmark.targets=[{targets}]"]
    assert main(["benchmark", *models, *grid, *rounds, *rest, *decoders]) == 0
    shown = capsys.readouterr()
    assert (
        "google-t5/t5-large: config from llm2slm, random weights, built-in tokenizer filled up to 32,128" in shown.err
    )
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    names = ["llm", "llm (captured)", "llm2slm", "llm2slm (captured)"]
    assert [system["name"] for system in stored["systems"]] == names
    assert [(each["name"], each["met"]) for each in stored["targets"]] == [
        ("ever", False), ("never", True), ("absent", None),
    ]  # fmt: skip
    assert {row["prompt_tokens"] for system in stored["systems"] for row in system["speed"]} == {12}
    llm = stored["systems"][0]["parameters"]["total"]
    blocks = 8 * 8 * 4 * 3 + 8 * 8 * 2 * 2 + 32 * 2 * 2 + 8 * (2 + 3 + 2)  # attention, feed-forward, biases, norms
    assert llm == 32128 * 8 + blocks
    assert "not met" in shown.out and "not measured" in shown.out
    assert "warning: target 'absent' is not measured: llm2slm (int8) was not timed" in shown.err
    assert "Targets" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_unknown_decoders_and_incomplete_targets_are_refused_before_models_are_loaded(root):
    config = config_of(root)
    config.benchmark.decoders = ["captred"]
    with pytest.raises(UserError, match="captred is unknown"):
        benchmark(config, root / "unknown")
    config.benchmark.decoders, config.benchmark.targets = ["generate"], [TargetConfig(name="t", system="llm")]
    with pytest.raises(UserError, match="set at_least or at_most"):
        benchmark(config, root / "unknown")
    assert not (root / "unknown").exists()


def test_lossless_records_the_parameters_of_both_models_and_its_acceptance(root, hybrid):
    config = config_of(root)
    config.run, config.benchmark.decoders = str(hybrid), ["generate", "lossless"]
    llm, guided, lossless = benchmark(config, root / "lossless").systems
    assert (lossless.name, lossless.kind) == ("llm2slm (lossless)", "llm")
    own = guided.parameters["trainable"]
    assert llm.parameters["total"] < lossless.parameters["total"] <= llm.parameters["total"] + own
    assert lossless.notes["decoder"]["counts"]["rows"] == 3  # two prompts, one row of the grid
    assert lossless.weights == guided.weights
