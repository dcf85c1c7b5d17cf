"""`train`: the run directory, all three kinds, two processes, Ctrl-C, and other commands on a run."""

from __future__ import annotations

import json
import os
import signal
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import yaml
from command_line import python, tiny_overrides
from lightning import Callback
from sampling import representatives
from tiny_runs import SIZES, assert_same, build, checkpoint, curve, tiny_run, trained_run, two_processes, weights
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands.benchmark import run as benchmark
from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.export import run as export
from llm2slm.commands.preflight import check_context_length
from llm2slm.commands.train import run as train
from llm2slm.config import BenchmarkConfig, ExportConfig
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import write_tiny_gpt2, write_tiny_t5
from llm2slm.training import fit as fit_module
from llm2slm.training.fit import build_trainer
from llm2slm.types import Example, UserError

RESULT = {
    "schema", "verb", "created", "command", "git_commit", "versions", "device", "seed", "config_hash", "wall_seconds",
    "systems", "selection", "baseline", "targets", "calibration",
}  # fmt: skip
SYSTEM = {"name", "kind", "parameters", "quality", "speed", "quality_kept", "samples", "curve", "notes", "weights"}
SYSTEM |= {"buckets", "validation", "failures"}


def jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def hybrid(root):
    """Folder and configuration of a trained hybrid."""
    return trained_run(root, "hybrid", max_steps=4, val_every=2)


def test_an_answer_starts_as_in_training(root, tmp_path):
    """BART's published configuration forces a first token in `generate` with which no label starts."""
    config = tiny_run(root, kind="slm", slm="bart", max_steps=2, val_every=2)
    published = GenerationConfig.from_pretrained(config.model.slm.name)
    published.forced_bos_token_id = 77
    published.save_pretrained(config.model.slm.name)
    train(config, tmp_path / "run")
    model = LLM2SLM.from_pretrained(tmp_path / "run" / "model")
    batch = model.collator(model.collator.encode([Example(0, "", "two dogs", "it")]))
    likeliest = int(model.logits(batch)[0, 0].argmax())
    assert likeliest != 77
    assert model.generate(batch, max_new_tokens=3)[0, 0] == likeliest


def test_the_run_directory_has_the_documented_files(hybrid):
    folder, config = hybrid
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml", "model", "checkpoints", "metrics.csv", "predictions.jsonl", "result.json",
    }  # fmt: skip
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    assert yaml.safe_load((folder / "config.yaml").read_text()) == runs.plain(config)
    rows = curve(folder)
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3"]
    assert [row["step"] for row in rows if row["val/loss"]] == ["1", "3"]
    assert all(row["val/chrf"] and row["val/exact_match"] for row in rows if row["val/loss"])


def test_the_result_has_the_fields_of_the_schema(hybrid):
    folder, config = hybrid
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == RESULT
    assert (result["schema"], result["verb"], result["seed"]) == (1, "train", 5)
    assert result["config_hash"] == runs.config_hash(config)
    (system,) = result["systems"]
    assert set(system) == SYSTEM
    assert (system["kind"], system["name"]) == ("llm2slm", "llm2slm")
    model = build(config)[0]
    trained = sum(p.numel() for p in model.projector.parameters()) + sum(p.numel() for p in model.slm.parameters())
    read = sum(p.numel() for p in model.encoder.parameters())
    assert system["parameters"] == {"total": trained + read, "trainable": trained}
    for score in system["quality"].values():
        assert set(score) == {"value", "signature", "n"}
        assert score["n"] == SIZES["test"]
    assert list(system["quality"]) == ["chrf", "exact_match"]
    assert system["notes"]["optimizer_steps"] == 4
    assert [row["step"] for row in system["curve"]] == [0, 1, 2, 3]


def test_the_result_states_how_the_tested_checkpoint_was_chosen(root):
    """The best validation of the curve, its step, and its scores; `evaluate` states the same for the same weights."""
    folder, config = trained_run(root, "chosen", max_steps=6, val_every=2)
    stored = runs.read_result(folder)
    validations = [row for row in curve(folder) if row["val/loss"]]
    best = min(validations, key=lambda row: float(row["val/loss"]))
    best_step = 2 * (validations.index(best) + 1)
    assert stored["selection"] == {
        "metric": "val/loss", "mode": "min", "split": "validation", "value": float(best["val/loss"]), "step": best_step,
    }  # fmt: skip
    assert checkpoint(folder / "checkpoints/best.ckpt")["global_step"] == best_step
    [system] = stored["systems"]
    assert system["validation"] == {name: float(best[f"val/{name}"]) for name in ("loss", "chrf", "exact_match")}
    config.run = str(folder)
    again = evaluate(config, root / "chosen again")
    assert (runs.plain(again.selection), again.systems[0].validation) == (stored["selection"], system["validation"])
    assert train(deepcopy(config), folder).selection == again.selection  # nothing is missing

    del stored["selection"], system["validation"]  # as an earlier version wrote it
    (folder / "result.json").write_text(json.dumps(stored))
    old = train(deepcopy(config), folder)
    assert old.selection is None and old.systems[0].validation == {}
    assert evaluate(config, root / "of an old result").selection is None


def test_predictions_are_those_of_the_saved_model_in_the_order_of_the_test_split(hybrid, root):
    folder, _ = hybrid
    rows, wanted = jsonl(folder / "predictions.jsonl"), jsonl(root / "rows" / "test.jsonl")
    assert [(r["source"], r["target"]) for r in rows] == [(r["source"], r["target"]) for r in wanted]
    model = LLM2SLM.from_pretrained(folder / "model")
    answers = [model.generate_text([row["source"]], max_new_tokens=6)[0] for row in wanted]
    assert [r["prediction"] for r in rows] == answers
    best = checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"]
    assert_same(weights(model), {name: best[f"model.{name}"] for name in weights(model)})


def test_evaluate_gives_the_scores_of_the_training(hybrid, root):
    folder, config = hybrid
    again = deepcopy(config)
    again.run = str(folder)
    result = evaluate(again, root / "evaluated")
    stored = json.loads((folder / "result.json").read_text())["systems"][0]["quality"]
    assert runs.plain(result.systems[0].quality) == stored
    assert (root / "evaluated" / "predictions.jsonl").read_bytes() == (folder / "predictions.jsonl").read_bytes()


@pytest.mark.slow
def test_a_finished_run_resumed_with_more_steps_equals_a_longer_run(root):
    config = tiny_run(root, max_steps=2, val_every=1)
    config.optim.schedule = "constant"
    train(deepcopy(config), root / "short")
    longer = tiny_run(root, max_steps=4, val_every=1)
    longer.optim.schedule = "constant"
    longer.run = str(root / "short")
    train(longer, root / "short")
    config.trainer.max_steps = 4
    train(config, root / "long")
    assert curve(root / "short") == curve(root / "long")
    both = [checkpoint(root / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("short", "long")]
    assert_same(*both)


@pytest.mark.parametrize("llm", representatives(["t5", "gpt2"], ["gpt2"]))
def test_a_fine_tuned_llm_is_a_plain_folder_and_the_encoder_of_a_hybrid(root, llm):
    config = tiny_run(root, kind="llm", mode="none", llm=llm, max_steps=3)
    before = {k: v.clone() for k, v in build(config)[0].slm.state_dict().items()}
    train(config, root / f"llm_{llm}")
    place = root / f"llm_{llm}" / "model"
    auto = AutoModelForSeq2SeqLM if llm == "t5" else AutoModelForCausalLM
    plain = auto.from_pretrained(place)
    after = plain.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(after[key], value) for key, value in before.items())
    best = checkpoint(root / f"llm_{llm}" / "checkpoints" / "best.ckpt")["state_dict"]
    for key, value in after.items():
        assert torch.equal(best[f"model.slm.{key}"], value), key
    assert AutoTokenizer.from_pretrained(place)("the dog").input_ids
    hybrid = tiny_run(root, llm=llm, max_steps=1)
    hybrid.model.llm.name = str(place)
    hybrid.callbacks.generate_rows = 0
    result = train(hybrid, root / f"hybrid_{llm}")
    assert result.systems[0].kind == "llm2slm"
    loaded = LLM2SLM.from_pretrained(root / f"hybrid_{llm}" / "model")
    reader = loaded.encoder.body.state_dict()
    source = plain.get_encoder().state_dict() if llm == "t5" else plain.transformer.state_dict()
    assert_same(reader, {key: source[key] for key in reader})


def test_the_slm_alone_is_trained_by_the_same_command(root):
    result = train(tiny_run(root, kind="slm", mode="none", slm="gpt2", max_steps=2), root / "slm")
    assert result.systems[0].kind == "slm"
    assert AutoModelForCausalLM.from_pretrained(root / "slm" / "model").config.n_layer == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "slm", "tune"),
    representatives(
        [("slm", "t5", "prompt"), ("slm", "gpt2", "prefix"), ("llm", "t5", "prefix")], [("slm", "gpt2", "prefix")]
    ),
)
def test_a_system_with_virtual_tokens_passes_every_command(root, kind, slm, tune):
    """Trained, resumed, evaluated, timed, and exported."""
    folder = root / f"{kind}_{slm}_{tune}"

    def config(steps):
        config = tiny_run(root, kind=kind, mode="none", slm=slm, llm=slm, max_steps=steps, val_every=1)
        side = config.model.llm if kind == "llm" else config.model.slm
        side.tune, side.peft, config.optim.schedule = tune, {"num_virtual_tokens": 3}, "constant"
        return config

    train(config(2), folder)
    longer = config(4)
    longer.run = str(folder)
    result = train(longer, folder).systems[0]
    train(config(4), whole := root / f"whole_{folder.name}")
    assert curve(folder) == curve(whole)
    both = [checkpoint(place / "checkpoints" / "last.ckpt")["state_dict"] for place in (folder, whole)]
    assert_same(*both)
    found = build(config(4))[0]
    tokens = sum(p.numel() for p in found.slm.virtual_tokens.parameters())
    assert result.kind == kind and result.parameters == {
        "total": sum(p.numel() for p in found.parameters()),
        "trainable": tokens,
    }
    best = checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"]
    saved = LLM2SLM.from_pretrained(folder / "model")
    own = {f"model.{name}": tensor for name, tensor in saved.state_dict().items()}
    assert {f"model.{name}" for name in found.trainable_names()} <= best.keys()  # the frozen rest is left out
    assert_same({name: own[name] for name in best}, best)
    frozen = {n: p for n, p in found.named_parameters() if n not in found.trainable_names()}
    assert_same({name: saved.get_parameter(name) for name in frozen}, frozen)
    assert "tuning)" in (folder / "model" / "README.md").read_text()
    again = config(4)
    again.run = str(folder)
    assert evaluate(deepcopy(again), root / "evaluated_virtual").systems[0].quality == result.quality
    again.benchmark = BenchmarkConfig(response_tokens=[4], batch=[2], prompts=1, repeats=1, warmup=0, memory=False)
    rows = {system.name: system.speed for system in benchmark(again, root / f"timed_{folder.name}").systems}[kind]
    assert [row.batch for row in rows] == [1, 2] and all(row.flops for row in rows)
    export(ExportConfig(run=str(folder), out=str(root / f"given_{folder.name}")), root)
    given = LLM2SLM.from_pretrained(root / f"given_{folder.name}")
    assert given.generate_text(["the dog"], max_new_tokens=5) == saved.generate_text(["the dog"], max_new_tokens=5)


def test_invalid_data_leaves_no_run_directory(root):
    config = tiny_run(root)
    config.data.validation = str(root / "nowhere.jsonl")
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        train(config, root / "bad")
    assert not (root / "bad").exists()


POSITIONS = 80


@pytest.fixture(scope="module")
def short_slm(root):
    """Folder of a GPT-2 with `POSITIONS` positions."""
    return str(write_tiny_gpt2(root / "short_writer", positions=POSITIONS))


@pytest.mark.parametrize(
    ("kind", "mode", "readings", "tune"),
    [
        ("slm", "none", 1, "full"), ("llm2slm", "add", 1, "full"), ("llm2slm", "prepend", 2, "full"),
        ("slm", "none", 1, "prompt"), ("slm", "none", 1, "prefix"),
    ],
)  # fmt: skip
def test_the_longest_answer_that_fits_is_accepted_and_one_more_token_refused(
    root, short_slm, kind, mode, readings, tune
):
    """Readings: how often the prompt precedes the answer (prepend: as representations and as tokens)."""
    config = tiny_run(root, kind=kind, mode=mode, slm="gpt2")
    config.model.slm.name, config.data.max_response_tokens = short_slm, 50
    virtual = 0 if tune == "full" else 4
    config.model.slm.tune, config.model.slm.peft = tune, {"num_virtual_tokens": virtual} if virtual else {}
    texts = [row["source"] for row in jsonl(root / "rows" / "test.jsonl")]
    tokens = [len(ids) for ids in AutoTokenizer.from_pretrained(short_slm)(texts)["input_ids"]]
    model, data = build(config)
    tokens = [readings * (n + model.collator.marks_end) + virtual for n in tokens]
    longest = max(tokens)
    data.task = replace(data.task, max_new_tokens=POSITIONS - longest)
    check_context_length(model, data, "test")
    full = {"max_new_tokens": POSITIONS - longest, "min_new_tokens": POSITIONS - longest}
    model.generate_text([texts[tokens.index(longest)]], **full)  # the SLM would fail beyond its positions
    data.task = replace(data.task, max_new_tokens=POSITIONS - longest + 1)
    with pytest.raises(UserError) as caught:
        check_context_length(model, data, "test")
    assert str(caught.value) == (
        f"task.max_new_tokens={POSITIONS - longest + 1} after the prompt of test row {tokens.index(longest)} "
        f"({longest} tokens) exceeds the SLM's {POSITIONS} positions; at most {POSITIONS - longest} fit"
    )
    check_context_length(model, data, "test", rows=tokens.index(longest))  # only rows with an answer count


def test_an_slm_without_positions_accepts_any_answer_length(root):
    model, data = build(tiny_run(root))
    data.task = replace(data.task, max_new_tokens=10**6)
    check_context_length(model, data, "test")


@pytest.mark.parametrize(("generate_rows", "split"), [(0, "test"), (4, "test"), (4, "validation")])
def test_answers_that_exceed_the_positions_are_refused_before_anything_is_written(
    root, tmp_path, short_slm, generate_rows, split
):
    """In the validation split, only the rows with generation (`generate_rows`) count."""
    config = tiny_run(root, kind="slm", mode="none", slm="gpt2", max_steps=1)
    config.model.slm.name, config.data.max_response_tokens = short_slm, 40
    config.callbacks.generate_rows, config.task.max_new_tokens = generate_rows, 60
    rows = [{"source": "dog", "target": "dog"}] * 6
    rows[3] = {"source": "little dog " * 12, "target": "dog"}
    for name in ("validation", "test"):
        own = rows if name == split else rows[:1]
        setattr(config.data, name, str(tmp_path / f"{name}.jsonl"))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    with pytest.raises(UserError, match=rf"^task\.max_new_tokens=60 after the prompt of {split} row 3 \("):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if split == "validation":
        config.callbacks.generate_rows = 3
        train(config, tmp_path / "run")
        assert len(jsonl(tmp_path / "run" / "predictions.jsonl")) == 1


class CtrlC(Callback):
    """Interrupts the second batch."""

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_states_how_to_resume_and_exits_with_130(tmp_path, tiny_llm, monkeypatch, capsys):
    folder = tmp_path / "run"
    overrides = [*tiny_overrides(tiny_llm), "trainer.max_steps=3", f"hydra.run.dir={folder}"]
    with monkeypatch.context() as patch:
        patch.setattr(
            fit_module,
            "build_trainer",
            lambda cfg, where, callbacks, loggers: build_trainer(cfg, where, [*callbacks, CtrlC()], loggers),
        )
        assert main(["train", *overrides, "trainer.val_every=3"]) == 130
    said = capsys.readouterr().err
    assert f"llm2slm train run={folder}" in said
    assert "Traceback" not in said
    assert checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert not (folder / "result.json").exists()
    assert main(["train", f"run={folder}"]) == 0
    assert checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 3
    assert json.loads((folder / "result.json").read_text())["systems"][0]["notes"]["optimizer_steps"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("distill", representatives([0.0, 0.5], [0.0]))
def test_two_processes_train_like_one_with_windows_of_two(root, tmp_path, distill):
    """The batches of a step on two processes are those of an accumulation window of two on one."""
    alone = tiny_run(root, max_steps=4, val_every=2, accumulate_grad_batches=2)
    alone.model.slm.name = str(write_tiny_t5(tmp_path / "zoo" / "slm", dropout=0.0))
    alone.optim.distill = distill
    assert len(build(alone)[1].train_dataloader()) % 2 == 0, "an odd batch would be in two steps"
    start = weights(build(alone)[0])
    train(deepcopy(alone), tmp_path / "alone")
    folder = tmp_path / "both"
    overrides = [
        *two_processes(root, alone, folder), "trainer.max_steps=4", "trainer.val_every=2", "data.batch_tokens=220",
        "data.eval_batch_size=4", "task.metrics=[chrf,exact_match]", "task.max_new_tokens=6", "optim.warmup_steps=2",
        "optim.lr=3e-3", "optim.projector_lr=1e-2", "callbacks.generate_rows=3", "seed=5", f"optim.distill={distill}",
    ]  # fmt: skip
    done = python("-m", "llm2slm", "train", *overrides, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "both", "zoo"]
    assert len(list(folder.rglob("result.json"))) == 1
    single, double = curve(tmp_path / "alone"), curve(folder)
    for name in ("train/loss", "val/loss", "val/chrf", "train/lr_projector", *(["train/kl"] if distill else [])):
        found, wanted = ([float(row[name]) for row in rows if row[name]] for rows in (double, single))
        assert found == pytest.approx(wanted, rel=1e-6), name
    ends = [checkpoint(f / "checkpoints" / "last.ckpt")["state_dict"] for f in (folder, tmp_path / "alone")]
    assert ends[0].keys() == ends[1].keys()
    off = sum(float((ends[0][f"model.{n}"] - ends[1][f"model.{n}"]).pow(2).sum()) for n in start) ** 0.5
    way = sum(float((ends[1][f"model.{n}"] - start[n]).pow(2).sum()) for n in start) ** 0.5
    assert off < 1e-3 * way  # Adam amplifies rounding errors of gradients near 0
    assert (folder / "predictions.jsonl").read_text() == (tmp_path / "alone" / "predictions.jsonl").read_text()


def test_a_quantized_llm_is_not_trained(root):
    config = tiny_run(root, kind="llm")
    config.model.llm.quantization = {"quant_method": "quanto", "weights": "int8"}
    with pytest.raises(UserError, match=r"model\.llm\.quantization: .*leave it out"):
        train(config, root / "never")
    assert not (root / "never").exists()
