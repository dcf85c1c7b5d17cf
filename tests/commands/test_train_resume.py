"""`train run=DIR` on every state of a run directory: stopped before its first checkpoint, trained but not tested,
complete; and the files and messages after a failure that follows training."""

from __future__ import annotations

import json
import resource
import shlex
import signal
from copy import deepcopy

import pytest
import torch
import yaml
from command_line import files_of, tiny_overrides
from lightning import Callback
from sampling import first_few, representatives
from tiny_runs import assert_same, checkpoint, curve, tiny_run, trained_run, weights

from llm2slm import runs
from llm2slm.atomic import NotWritten
from llm2slm.cli import main
from llm2slm.commands import evaluate as evaluate_command
from llm2slm.commands import train as train_command
from llm2slm.commands.train import run as train
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.training import fit as fit_module
from llm2slm.training.fit import build_trainer
from llm2slm.types import UserError

CLOCK = ("created", "command", "wall_seconds")
"""Fields of a result that differ between two identical runs."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(root):
    """A run without failures: folder, configuration."""
    return trained_run(root, "whole", max_steps=4, val_every=2)


def fail(error):
    def failing(*_, **__):
        raise error

    return failing


def again(config, folder, **trainer):
    """`train run=folder` with other values of `trainer`."""
    config = deepcopy(config)
    config.run = str(folder)
    for name, value in trainer.items():
        setattr(config.trainer, name, value)
    return train(config, folder)


def result_of(folder):
    """result.json without times."""
    found = runs.read_result(folder)
    (system,) = found["systems"]
    del system["notes"]["training_seconds"]
    system["notes"].pop("generation", None)
    for counts in system["notes"]["data"].values():
        del counts["seconds"]
    return {name: value for name, value in found.items() if name not in CLOCK}


def assert_complete(folder, wanted):
    assert result_of(folder) == result_of(wanted)
    assert (folder / "predictions.jsonl").read_bytes() == (wanted / "predictions.jsonl").read_bytes()
    assert curve(folder) == curve(wanted)
    assert "chrf" in (folder / "model" / "README.md").read_text()
    assert_same(weights(LLM2SLM.from_pretrained(folder / "model")), weights(LLM2SLM.from_pretrained(wanted / "model")))


def no_training(patch):
    patch.setattr(train_command, "fit", fail(AssertionError("trained again")))


AFTER = {
    "save": (LLM2SLM, "save_pretrained", set()),
    "generation": (evaluate_command, "predict", {"model"}),
    "metric": (evaluate_command, "measure", {"model", "predictions.jsonl"}),
    "result": (runs, "write_result", {"model", "predictions.jsonl"}),
    "card": (train_command, "card_in_run", {"model", "predictions.jsonl", "result.json"}),
}
"""Steps after training, in order: the function called, and the files that exist before it."""


@pytest.mark.parametrize("stage", representatives(AFTER, ["generation"]))
def test_a_failure_after_training_keeps_earlier_files_and_is_completed_on_resume(
    whole, tmp_path, monkeypatch, capsys, stage
):
    wanted, config = whole
    owner, name, there = AFTER[stage]
    folder = tmp_path / "a run"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(owner, name, fail(OSError(28, "No space left on device")))
        train(deepcopy(config), folder)
    lines = [line for line in capsys.readouterr().err.splitlines() if "what is missing" in line]
    assert len(lines) == 1 and lines[0].endswith(f"llm2slm train run='{folder}'")
    assert {p.name for p in folder.iterdir()} == {"config.yaml", "checkpoints", "metrics.csv"} | there
    if "model" in there:
        assert LLM2SLM.from_pretrained(folder / "model").generate_text(["the dog"], max_new_tokens=2)
    with monkeypatch.context() as patch:
        no_training(patch)
        if "predictions.jsonl" in there:
            patch.setattr(evaluate_command, "predict", fail(AssertionError("answered again")))
        result = again(config, folder)
    assert_complete(folder, wanted)
    assert runs.plain(result.systems[0]) == json.loads((folder / "result.json").read_text())["systems"][0]


@pytest.mark.slow
def test_predictions_of_other_rows_are_not_reused(whole, tmp_path, monkeypatch):
    wanted, config = whole
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of luck"):
        patch.setattr(evaluate_command, "measure", fail(RuntimeError("out of luck")))
        train(deepcopy(config), tmp_path)
    kept = tmp_path / "predictions.jsonl"
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[::-1]))
    again(config, tmp_path)
    assert_complete(tmp_path, wanted)


def cut_off(content):
    """Truncates the last line, as after a disk error."""
    return content[:-20]


def not_text(content):
    return content[: content.rstrip().rfind(b"\n") + 1] + b"\xff\xfe\n"


def without_answer(content):
    return content.replace(b'"prediction"', b'"answer"', 1)


def no_answer(content):
    line, _, rest = content.partition(b"\n")
    return json.dumps(json.loads(line) | {"prediction": None}).encode() + b"\n" + rest


@pytest.mark.slow
@pytest.mark.parametrize("harm", representatives([cut_off, not_text, without_answer, no_answer], [cut_off]))
def test_damaged_predictions_are_generated_again(whole, tmp_path, monkeypatch, capsys, harm):
    wanted, config = whole
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of luck"):
        patch.setattr(evaluate_command, "measure", fail(RuntimeError("out of luck")))
        train(deepcopy(config), tmp_path)
    kept = tmp_path / "predictions.jsonl"
    kept.write_bytes(harm(kept.read_bytes()))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        no_training(patch)
        again(config, tmp_path)
    told = [line for line in capsys.readouterr().err.splitlines() if "predictions.jsonl" in line]
    number = 6 if harm in (cut_off, not_text) else 1
    assert len(told) == 1 and told[0].startswith(f"llm2slm: {kept}, line {number}: ")
    assert told[0].endswith("; its predictions are generated again")
    assert_complete(tmp_path, wanted)


@pytest.mark.slow
def test_an_unexpected_error_after_training_keeps_its_traceback_and_names_the_command(
    tmp_path, tiny_llm, monkeypatch, capsys
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_command, "measure", fail(RuntimeError("out of luck")))
        assert main(["train", *tiny_overrides(tiny_llm), f"hydra.run.dir={folder}"]) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: out of luck" in said and "Traceback" in said
    assert said.count(f"llm2slm train run={folder}") == 1
    with monkeypatch.context() as patch:
        no_training(patch)
        assert main(["train", f"run={folder}"]) == 0
    assert (folder / "result.json").is_file()
    before = files_of(folder)
    capsys.readouterr()
    assert main(["train", f"run={folder}"]) == 0
    said = capsys.readouterr()
    assert "nothing is missing" in said.err and str(folder / "result.json") in said.out
    assert files_of(folder) == before


def test_ctrl_c_during_generation_keeps_the_trained_model(tmp_path, tiny_llm, monkeypatch, capsys):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_command, "predict", fail(KeyboardInterrupt()))
        assert main(["train", *tiny_overrides(tiny_llm), f"hydra.run.dir={folder}"]) == 130
    said = capsys.readouterr().err
    assert f"what is missing: llm2slm train run={folder}" in said and "Traceback" not in said
    assert (folder / "model" / "model.safetensors").is_file()
    with monkeypatch.context() as patch:
        no_training(patch)
        assert main(["train", f"run={folder}"]) == 0
    assert (folder / "result.json").is_file()


def typed(monkeypatch, *arguments):
    """Runs the command line, with `sys.argv` as in a separate process."""
    monkeypatch.setattr("sys.argv", ["llm2slm", *arguments])
    return main(list(arguments))


def test_a_resumed_run_keeps_the_command_that_started_it(tmp_path, tiny_llm, monkeypatch):
    folder = tmp_path / "a run"
    given = ["train", *tiny_overrides(tiny_llm), "task.prefix='to: '", f"hydra.run.dir={folder}"]
    first = f"llm2slm {shlex.join(given)}"
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_command, "measure", fail(RuntimeError("out of luck")))
        assert typed(monkeypatch, *given) == 1
    before = (folder / "config.yaml").read_bytes()
    assert before.startswith(f"# {first}\n".encode())
    assert typed(monkeypatch, "train", f"run={folder}") == 0
    assert (folder / "config.yaml").read_bytes() == before
    assert runs.read_result(folder)["command"] == first
    assert "train 'model.llm.name=" not in first and "&&" not in (folder / "model/README.md").read_text()
    again = ["train", f"run={folder}", "trainer.max_steps=3"]
    second = f"llm2slm {shlex.join(again)}"
    assert typed(monkeypatch, *again) == 0  # with other values, both commands are needed to repeat the run
    assert (folder / "config.yaml").read_text().splitlines()[:2] == [f"# {first}", f"# {second}"]
    assert runs.read_result(folder)["command"] == f"{first} && {second}"
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(kept))  # as an earlier version wrote it
    assert typed(monkeypatch, *again[:2], "trainer.max_steps=4") == 0
    assert runs.read_result(folder)["command"] == f"llm2slm train {shlex.quote(again[1])} trainer.max_steps=4"


def test_fewer_steps_than_a_run_has_are_reported(whole, tmp_path, capsys, monkeypatch):
    folder, config = whole
    before = files_of(folder)
    again(config, folder, max_steps=3)
    assert capsys.readouterr().err.splitlines() == [
        f"llm2slm: {folder}: trained and tested already; nothing is missing; it is at step 4 already, so "
        "trainer.max_steps=3 has no effect"
    ]
    assert files_of(folder) == before
    again(config, folder)
    assert capsys.readouterr().err == f"llm2slm: {folder}: trained and tested already; nothing is missing\n"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(runs, "write_result", fail(OSError(28, "No space left on device")))
        train(deepcopy(config), tmp_path)
    capsys.readouterr()
    again(config, tmp_path, max_steps=3)
    assert (
        f"llm2slm: warning: {tmp_path}: it is at step 4 already, so with trainer.max_steps=3 it is not trained further"
    ) in capsys.readouterr().err.splitlines()


def test_the_refusal_of_other_settings_names_them_with_both_values(whole, monkeypatch):
    folder, config = whole
    monkeypatch.setattr(train_command, "prepare", None)  # refused before

    def refused(change):
        other = deepcopy(config)
        change(other)
        with pytest.raises(UserError) as caught:
            again(other, folder)
        return str(caught.value)

    rest = "; a resumed run can change trainer, logger and callbacks only: leave the rest out, or train anew "
    rest += "without run="
    assert refused(lambda c: setattr(c.optim, "lr", 1e-4)) == (
        f"run={folder} was started with optim.lr=0.003, not 0.0001{rest}"
    )
    assert refused(lambda c: setattr(c, "seed", 6)) == f"run={folder} was started with seed=5, not 6{rest}"

    def several(c):
        c.model.control, c.model.slm.config, c.model.llm.chat, c.data.train_size = "zero", {"n_layer": 1}, True, 7

    assert refused(several) == (
        f"run={folder} was started with model.llm.chat=false, not true; model.slm.config.n_layer=null, not 1; "
        f"model.control=none, not zero; and 1 more{rest}"
    )


# A full disk: a limit on the size of files fails the same calls


@pytest.fixture
def size_limit():
    """Sets the largest size of a file, in bytes; None: no limit, as after the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


class Fills(Callback):
    """Fills the disk at a step."""

    def __init__(self, step, size_limit):
        self.step, self.size_limit = step, size_limit

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == self.step:
            self.size_limit(50_000)


@pytest.mark.parametrize(
    ("step", "to", "file"),
    representatives(
        [
            (0, "there is no checkpoint yet; to start over", "best"),
            (3, "to resume from the last checkpoint", "best|last"),
        ],
        lambda case: case[0] == 3,
    ),
)
def test_an_unwritable_checkpoint_is_reported_with_the_applicable_command(
    whole, tmp_path, monkeypatch, capsys, size_limit, step, to, file
):
    wanted, config = whole
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(NotWritten, match=rf"/checkpoints/({file}).ckpt: cannot be"):
        patch.setattr(
            fit_module,
            "build_trainer",
            lambda cfg, at, calls, logs: build_trainer(cfg, at, [*calls, Fills(step, size_limit)], logs),
        )
        train(deepcopy(config), folder)
    size_limit(None)
    assert capsys.readouterr().err.splitlines()[-1] == f"llm2slm: {to}: llm2slm train run={folder}"
    assert not list(folder.rglob(".*.part"))
    again(config, folder)
    assert_complete(folder, wanted)


@pytest.mark.parametrize("stage", representatives(["save", "result"], ["save"]))
def test_a_full_disk_after_training_is_reported_on_one_line_with_the_command(
    tmp_path, tiny_llm, monkeypatch, capsys, size_limit, stage
):
    owner, name, _ = AFTER[stage]
    folder, original = tmp_path / "run", getattr(owner, name)

    def full(*arguments, **others):
        size_limit(1_000)
        try:
            return original(*arguments, **others)
        finally:
            size_limit(None)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        assert main(["train", *tiny_overrides(tiny_llm), f"hydra.run.dir={folder}"]) == 2
    said = capsys.readouterr().err
    place = folder / {"save": "model", "result": "result.json"}[stage]
    assert said.splitlines()[-2].endswith(f"to do only what is missing: llm2slm train run={folder}")
    assert said.splitlines()[-1] == (
        f"llm2slm: error: {place}: cannot be written (File too large); free space on this disk"
    )
    assert "Traceback" not in said and not list(folder.rglob(".*part"))
    with monkeypatch.context() as patch:
        no_training(patch)
        assert main(["train", f"run={folder}"]) == 0


# Which trainings are finished


def scripted(monkeypatch, values):
    """Validations give these values of val/chrf, and no answer is written."""
    left = iter(values)
    original = train_command.validation_scorer

    def judge(*arguments):
        found = original(*arguments)
        return type(found)(
            lambda model, examples, share, between: dict.fromkeys(range(len(examples)), ""),
            lambda examples, texts: {"chrf": next(left)},
        )

    monkeypatch.setattr(train_command, "validation_scorer", judge)


def test_a_training_that_stopped_early_is_finished_until_its_limits_change(tmp_path, monkeypatch):
    config = tiny_run(tmp_path, max_steps=20, val_every=1)
    config.callbacks.monitor, config.callbacks.patience, config.callbacks.generate_rows = "val/chrf", 1, 1
    scripted(monkeypatch, [9.0, 8.0, 7.0, 6.0, 5.0])
    train(deepcopy(config), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with monkeypatch.context() as patch:
        no_training(patch)
        assert again(config, tmp_path / "run").systems[0].notes["optimizer_steps"] == 2
    config.callbacks.patience = 2
    assert again(config, tmp_path / "run").systems[0].notes["optimizer_steps"] == 3
    config.trainer.max_steps = 30
    assert again(config, tmp_path / "run").systems[0].notes["optimizer_steps"] == 4


@pytest.mark.slow
def test_an_earlier_result_is_not_kept_next_to_a_later_model(whole, tmp_path, monkeypatch):
    config = deepcopy(whole[1])
    train(deepcopy(config), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of luck"):
        patch.setattr(evaluate_command, "predict", fail(RuntimeError("out of luck")))
        again(config, tmp_path, max_steps=6)
    assert not (tmp_path / "result.json").exists() and not (tmp_path / "predictions.jsonl").exists()
    config.trainer.max_steps = 6
    with monkeypatch.context() as patch:
        no_training(patch)
        result = again(config, tmp_path)
    assert result.systems[0].notes["optimizer_steps"] == 6
    assert [point["step"] for point in result.systems[0].curve] == list(range(6))
    best = checkpoint(tmp_path / "checkpoints" / "best.ckpt")["state_dict"]
    saved = weights(LLM2SLM.from_pretrained(tmp_path / "model"))
    assert_same(saved, {name: best[f"model.{name}"] for name in saved})


def test_a_result_is_kept_while_its_training_is_extended(whole, tmp_path, monkeypatch):
    config = deepcopy(whole[1])
    train(deepcopy(config), tmp_path)
    before = {name: data for name, data in files_of(tmp_path).items() if name.startswith(("model/", "pred", "result"))}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_command, "fit", fail(KeyboardInterrupt()))
        again(config, tmp_path, max_steps=6)
    after = files_of(tmp_path)
    assert {name: after[name] for name in before} == before


def test_training_seconds_are_those_of_all_processes(whole, tmp_path, monkeypatch):
    config = deepcopy(whole[1])
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(evaluate_command, "measure", fail(RuntimeError()))
        train(deepcopy(config), tmp_path)
    state = checkpoint(tmp_path / "checkpoints" / "last.ckpt")["callbacks"]["Checkpoints"]
    assert again(config, tmp_path).systems[0].notes["training_seconds"] == round(state["seconds"], 1)


# Before the first checkpoint


class Dies(Callback):
    """Ends training at a step without saving, like two signals."""

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == 3:
            raise KeyboardInterrupt


@pytest.fixture
def killed(root, tmp_path, monkeypatch, capsys):
    """A run that was stopped after three of four steps, before its first validation: folder, configuration."""
    config = tiny_run(root, max_steps=4, val_every=4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            fit_module, "build_trainer", lambda cfg, at, calls, logs: build_trainer(cfg, at, [*calls, Dies()], logs)
        )
        train(deepcopy(config), tmp_path / "run")
    assert f"to start over: llm2slm train run={tmp_path / 'run'}" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.yaml", "metrics.csv"}
    assert len(curve(tmp_path / "run")) > 1
    return tmp_path / "run", config


def test_a_run_without_a_checkpoint_restarts_in_its_folder(killed, tmp_path, capsys):
    """Its rows of metrics.csv are not mixed with the new ones: the second attempt logs at the last step only."""
    folder, config = killed
    again(config, folder, log_every_n_steps=4)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llm2slm: ")]
    assert said[0] == f"llm2slm: {folder}: the training was stopped before its first checkpoint; it starts over"
    config.trainer.log_every_n_steps = 4
    train(deepcopy(config), tmp_path / "fresh")
    assert curve(folder) == curve(tmp_path / "fresh") and len(curve(folder)) == 1
    assert (folder / "predictions.jsonl").read_bytes() == (tmp_path / "fresh" / "predictions.jsonl").read_bytes()
    found, fresh = ((path / "config.yaml").read_bytes().splitlines() for path in (folder, tmp_path / "fresh"))
    assert found == [fresh[0], *fresh]  # the changed value is of the second command


def test_training_into_an_existing_run_names_the_command_that_restarts_it(killed, monkeypatch):
    folder, config = killed
    before = files_of(folder)
    monkeypatch.setattr("llm2slm.commands.train.prepare", None)  # refused before the data is prepared
    with pytest.raises(UserError) as caught:
        train(deepcopy(config), folder)
    assert f"holds a run already (metrics.csv); resume or complete it by `llm2slm train run={folder}`" in str(
        caught.value
    )
    assert files_of(folder) == before


def test_a_folder_that_is_not_a_training_is_not_restarted(root, tmp_path):
    config = tiny_run(root)
    config.run = str(tmp_path)
    with pytest.raises(UserError, match="not a run directory"):
        train(deepcopy(config), tmp_path)
    recorded = tiny_run(root)
    recorded.run = "outputs/another"
    runs.write_config(tmp_path, recorded)
    with pytest.raises(UserError, match=r"is no training, but made from run=outputs/another"):
        train(deepcopy(config), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


# Messages before training


@pytest.mark.parametrize(
    ("warmup", "steps", "said"),
    [(5, 6, None), (6, 6, "its peak at the last step only"), (8, 6, "75% of its peak"), (0, 1, None)],
)
def test_a_warm_up_longer_than_training_is_warned_of(root, tmp_path, monkeypatch, capsys, warmup, steps, said):
    config = tiny_run(root, max_steps=steps)
    config.optim.warmup_steps = warmup
    monkeypatch.setattr(train_command, "fit", fail(RuntimeError("enough")))
    with pytest.raises(RuntimeError, match="enough"):
        train(config, tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "warmup_steps" in line]
    assert lines == [] if said is None else [
        f"llm2slm: warning: optim.warmup_steps={warmup} is not less than trainer.max_steps={steps}: the learning rate "
        f"reaches {said} and never decays; set optim.warmup_steps lower"
    ]  # fmt: skip


@pytest.mark.parametrize("rows", representatives([4, 11, None], [4]))
def test_val_rows_caps_the_rows_of_the_validation_loss(root, tmp_path, capsys, rows):
    """val/loss of the untrained model (lr 1e-30, since 0 would be refused) is that of the same drawn rows each time."""
    config = tiny_run(root, max_steps=2, val_every=1, val_rows=rows)
    config.callbacks.generate_rows = 0
    config.optim.lr = config.optim.projector_lr = 1e-30
    seen = []

    class Seen(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append([tuple(row[row >= 0].tolist()) for row in batch.labels_BT])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fit_module, "build_trainer", lambda cfg, at, calls, logs: build_trainer(cfg, at, [*calls, Seen()], logs)
        )
        train(deepcopy(config), tmp_path / "run")
    half = len(seen) // 2
    first, second = ([row for batch in part for row in batch] for part in (seen[:half], seen[half:]))
    assert first == second and len(first) == (rows or 11)
    losses = [float(row["val/loss"]) for row in curve(tmp_path / "run") if row["val/loss"]]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    said = (
        "val/loss is computed on 4 of the 11 validation rows, the same at each validation (trainer.val_rows; null: all)"
    )
    assert (said in capsys.readouterr().err) == (rows == 4)


# Validation rows that changed


def builtin_run(root, seed):
    config = tiny_run(root, max_steps=2, val_every=1)
    config.seed, config.data.name, config.data.corpus = seed, "builtin", "instruction"
    config.data.train = config.data.validation = config.data.test = None
    config.data.train_size, config.data.validation_size, config.data.test_size = 12, 8, 4
    config.data.max_response_tokens = 128
    config.callbacks.generate_rows = 0
    return config


def as_before(folder):
    """Makes a run like one of an earlier version: without trainer.val_rows and the identity of the validation rows; its
    best value is better than any of this model."""
    recorded = yaml.safe_load((folder / "config.yaml").read_text())
    del recorded["trainer"]["val_rows"]
    (folder / "config.yaml").write_text(yaml.safe_dump(recorded))
    set_best(folder, keep_rows=False)


def set_best(folder, *, keep_rows):
    path = folder / "checkpoints" / "last.ckpt"
    saved = checkpoint(path)
    state = saved["callbacks"]["Checkpoints"]
    state["best"] = -1.0
    if not keep_rows:
        del state["rows"]
    torch.save(saved, path)


def best_of(folder):
    return checkpoint(folder / "checkpoints" / "last.ckpt")["callbacks"]["Checkpoints"]["best"]


OTHER_ROWS = "was computed on other validation rows before"


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "others"), representatives([(1, False), (2, True)], [(2, True)]))
def test_a_builtin_run_of_an_earlier_version_is_not_compared_with_validations_on_other_rows(
    root, tmp_path, capsys, monkeypatch, seed, others
):
    train(builtin_run(root, seed), tmp_path / "run")
    as_before(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "run=run", "trainer.max_steps=3"]) == 0
    assert (OTHER_ROWS in capsys.readouterr().err) == others
    assert (best_of(tmp_path / "run") == -1.0) == (not others)
    assert runs.read_config(tmp_path / "run")["trainer"]["val_rows"] is None  # all rows, as before


@pytest.mark.parametrize(("monitor", "changed", "others"), first_few([
    ("val/loss", {"val_rows": 4}, True),
    ("val/loss", {"val_rows": 11}, False),  # all rows, as before
    ("val/loss", {"limit_val_batches": 1}, True),
    ("val/chrf", {"val_rows": 4}, False),
    ("val/chrf", {"generate_rows": 2}, True),
    ("val/loss", {"generate_rows": 2}, False),
], 2))  # fmt: skip
def test_the_best_value_counts_only_on_the_same_rows(root, tmp_path, capsys, monitor, changed, others):
    config = tiny_run(root, max_steps=2, val_every=1)
    config.callbacks.monitor, config.callbacks.mode, config.callbacks.patience = monitor, "min", 1
    train(deepcopy(config), tmp_path / "run")
    set_best(tmp_path / "run", keep_rows=True)
    for name, value in changed.items():
        setattr(config.callbacks if name == "generate_rows" else config.trainer, name, value)
    again(config, tmp_path / "run", max_steps=3)
    assert (OTHER_ROWS in capsys.readouterr().err) == others
    assert (best_of(tmp_path / "run") == -1.0) == (not others)


@pytest.mark.slow
def test_capped_validation_rows_of_an_earlier_version_are_the_same(root, tmp_path, capsys):
    config = tiny_run(root, max_steps=2, val_every=1, val_rows=4)
    config.callbacks.patience = 3
    train(deepcopy(config), tmp_path / "run")
    set_best(tmp_path / "run", keep_rows=False)
    again(config, tmp_path / "run", max_steps=3)
    assert OTHER_ROWS not in capsys.readouterr().err and best_of(tmp_path / "run") == -1.0


def test_a_file_at_the_path_of_the_model_is_reported_on_one_line(root, tmp_path):
    config = tiny_run(root, max_steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").write_text("")
    with pytest.raises(UserError, match=r"model/README.md: cannot be written"):
        train(config, tmp_path / "run")


def test_a_run_from_before_the_zero_start_resumes_from_a_complete_configuration(root, tmp_path):
    """The old record has gate false and no start; the new configuration sets neither."""
    config = tiny_run(root, max_steps=2, val_every=1)
    config.model.projector.gate = False
    train(deepcopy(config), tmp_path / "run")
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert recorded["model"]["projector"].pop("start") == "random"
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(recorded))
    config.model.projector.gate = config.model.projector.start = None
    assert again(config, tmp_path / "run", max_steps=3).systems[0].notes["optimizer_steps"] == 3
