"""FSDP2 on two CPU processes (gloo): the training of one process, the same run directory, and exact resuming."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from command_line import python
from tiny_runs import build, checkpoint, curve, of_libraries, tiny_run, two_processes, weights

from llm2slm.commands.train import run as train
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import write_tiny_t5
from llm2slm.training.sharding import check_sharding
from llm2slm.types import UserError

SCRIPT = """
import os, signal, sys
import torch
from lightning import Callback
from torch.distributed.tensor import DTensor
from llm2slm.cli import main
from llm2slm.training import fit

class Look(Callback):
    def on_train_start(self, trainer, module):
        encoder, slm = (sum(p.numel() for p in part.parameters()) for part in (module.model.encoder, module.model.slm))
        sharded = [isinstance(p, DTensor) for p in module.parameters()]
        here = sum(p.to_local().numel() for p in module.parameters())
        words = f"LOOK {trainer.global_rank} {all(sharded)} {here / (encoder + slm)}"
        print(words, flush=True, file=sys.__stderr__)
    def on_train_batch_start(self, trainer, *_):
        if os.environ.get("STOP") and trainer.global_rank == 1 and trainer.global_step == int(os.environ["STOP"]):
            os.kill(os.getpid(), signal.SIGTERM)
    def on_after_backward(self, trainer, module):
        assert all(p.grad is None for p in module.model.encoder.parameters())

build = fit.build_trainer
fit.build_trainer = lambda cfg, at, calls, logs: build(cfg, at, [*calls, Look()], logs)
sys.exit(main(sys.argv[1:]))
"""


def overrides(root, config, folder):
    """Overrides of a training by two processes. Of 11 validation rows they have 6 and 5: two batches and one, and one
    without labels."""
    words = [word for word in two_processes(root, config, folder) if word != "trainer=ddp_cpu"]
    return [
        *words, "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_steps=4",
        "trainer.val_every=2", "data.batch_tokens=220", "data.eval_batch_size=5", "task.metrics=[chrf,exact_match]",
        "task.max_new_tokens=6", "optim.warmup_steps=2", "optim.lr=3e-3", "optim.projector_lr=1e-2",
        "callbacks.generate_rows=3", "seed=5",
    ]  # fmt: skip


def run(tmp_path, *words, ok=0, **environment):
    (tmp_path / "look.py").write_text(SCRIPT)
    done = python(str(tmp_path / "look.py"), "train", *words, cwd=tmp_path, OMP_NUM_THREADS="1", **environment)
    assert done.returncode == ok, done.stderr[-6000:]
    return done


@pytest.mark.slow
def test_two_sharded_processes_train_like_one(tmp_path):
    alone = tiny_run(tmp_path, max_steps=4, val_every=2, accumulate_grad_batches=2)
    alone.model.slm.name = str(write_tiny_t5(tmp_path / "zoo" / "slm", dropout=0.0))
    start = weights(build(alone)[0])
    train(deepcopy(alone), tmp_path / "alone")
    folder = tmp_path / "both"
    done = run(tmp_path, *overrides(tmp_path, alone, folder))
    assert not of_libraries(done.stderr)
    looks = re.findall(r"LOOK (\d) (\w+) (0\.\d+)", done.stderr)
    assert sorted(look[0] for look in looks) == ["0", "1"] and all(look[1] == "True" for look in looks)
    assert all(0.4 < float(look[2]) < 0.7 for look in looks), "each process has about half of all weights"
    single, double = curve(tmp_path / "alone"), curve(folder)
    for name in ("train/loss", "val/loss", "val/chrf", "train/lr_projector"):
        found, wanted = ([float(row[name]) for row in rows if row[name]] for rows in (double, single))
        assert found == pytest.approx(wanted, abs=1e-5), name
    files = [{str(p.relative_to(f)) for p in f.rglob("*")} for f in (tmp_path / "alone", folder)]
    assert files[0] == files[1]
    ends = [checkpoint(f / "checkpoints" / "last.ckpt") for f in (folder, tmp_path / "alone")]
    assert ends[0].keys() == ends[1].keys() and ends[0]["state_dict"].keys() == ends[1]["state_dict"].keys()
    off = sum(
        float((ends[0]["state_dict"][f"model.{n}"] - ends[1]["state_dict"][f"model.{n}"]).pow(2).sum()) for n in start
    )
    way = sum(float((ends[1]["state_dict"][f"model.{n}"] - start[n]).pow(2).sum()) for n in start)
    assert off < 1e-6 * way
    states = [end["optimizer_states"][0] for end in ends]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for i, state in states[1]["state"].items():
        assert {k: (type(v), v.shape) for k, v in state.items()} == {
            k: (type(v), v.shape) for k, v in states[0]["state"][i].items()
        }
    assert (folder / "predictions.jsonl").read_text() == (tmp_path / "alone" / "predictions.jsonl").read_text()
    model = LLM2SLM.from_pretrained(folder / "model")
    assert model.generate_text(["the dog"], max_new_tokens=3)


@pytest.mark.slow
def test_sharded_processes_stop_and_resume_exactly_with_dropout(tmp_path):
    config = tiny_run(tmp_path)
    rare = "trainer.log_every_n_steps=50"  # a stop does not wait for a logged step
    run(tmp_path, *overrides(tmp_path, config, tmp_path / "whole"), rare)
    run(tmp_path, *overrides(tmp_path, config, tmp_path / "run"), rare, ok=143, STOP="2")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert checkpoint(last)["global_step"] == 3
    run(tmp_path, f"run={tmp_path / 'run'}")
    ends = [checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("run", "whole")]
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    for name, tensor in ends[1]["state_dict"].items():
        assert torch.equal(ends[0]["state_dict"][name], tensor), name
    for i, state in ends[1]["optimizer_states"][0]["state"].items():
        for key, value in state.items():
            assert torch.equal(ends[0]["optimizer_states"][0]["state"][i][key], value)


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        ("optim", "name", "muon", "optim.name=muon needs whole matrices"),
        ("trainer", "precision", "16-mixed", "trainer.precision=16-mixed is not supported"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, section, name, value, said):
    config = tiny_run(tmp_path, strategy="fsdp")
    setattr(getattr(config, section), name, value)
    with pytest.raises(UserError, match=rf"^trainer.strategy=fsdp: {said}"):
        check_sharding(config)
    config.trainer.strategy = "ddp"
    check_sharding(config)
