"""Several processes: the losses of one, metrics that count each row once, an LLM outside DDP, torchrun."""

from __future__ import annotations

from copy import deepcopy

import pytest
from command_line import python
from sampling import representatives
from stopped_runs import fitted
from test_memory import small_device
from tiny_runs import curve, module_of, tiny_run, two_processes
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from llm2slm.testing import write_tiny_t5


def column(folder, name):
    return [float(row[name]) for row in curve(folder) if row[name]]


@pytest.mark.parametrize("fits", representatives([True, False], [True]))
def test_two_processes_have_the_losses_of_one_at_the_same_global_batch(tmp_path, monkeypatch, fits):
    """Eleven validation rows on two processes; also if batches fit into the memory of the first process only."""
    config = tiny_run(tmp_path, max_steps=6, val_every=2, accumulate_grad_batches=2)
    config.model.slm.name = str(write_tiny_t5(tmp_path / "zoo" / "slm", dropout=0.0))
    fitted(deepcopy(config), tmp_path / "one")
    config.trainer.accumulate_grad_batches, config.trainer.devices, config.trainer.strategy = 1, 2, "ddp_fork"
    if not fits:
        config.trainer.micro_batch = "auto"
        small_device(monkeypatch, 3, only_rank=1)
    fitted(config, tmp_path / "two")
    for name in ("train/loss", "val/loss"):
        assert column(tmp_path / "two", name) == pytest.approx(column(tmp_path / "one", name), rel=1e-6, abs=0), name
    assert len(column(tmp_path / "two", "train/loss")) == 6 and len(column(tmp_path / "two", "val/loss")) == 3


def test_the_frozen_llm_is_not_in_ddp(tmp_path):
    """Its gradients are not reduced and its weights and buffers not broadcast; those of all trained parts are."""
    module, _ = module_of(tiny_run(tmp_path))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(module)
        reduced = {id(parameter) for parameter in wrapped._module_parameters}
        of_llm = {id(tensor) for tensor in (*module.model.encoder.parameters(), *module.model.encoder.buffers())}
        assert reduced == {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
        assert of_llm and not reduced & of_llm
        broadcast = {name for name, _ in module.named_parameters()} - wrapped.parameters_to_ignore
        assert broadcast and not [name for name in broadcast if ".encoder.body" in name and "slm." not in name]
        assert not {id(buffer) for buffer in wrapped.modules_buffers} & of_llm
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_torchrun_starts_the_processes(tmp_path):
    config = tiny_run(tmp_path)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "llm2slm"]
    words = [*two_processes(tmp_path, config, tmp_path / "run"), "trainer.max_steps=2", "optim.warmup_steps=1"]
    done = python(*torchrun, "train", *words, "callbacks.generate_rows=2", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(column(tmp_path / "run", "train/loss")) == 2 and (tmp_path / "run/result.json").is_file()
    assert done.stdout.count("result.json") == 1
    answers = ["data.eval_batch_size=2", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.progress=false"]
    words = [f"run={tmp_path / 'run'}", *answers, f"hydra.run.dir={tmp_path / 'again'}"]
    done = python(*torchrun, "evaluate", *words, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-4000:]
    found = [(tmp_path / name / "predictions.jsonl").read_bytes() for name in ("run", "again")]
    assert found[0] == found[1]
