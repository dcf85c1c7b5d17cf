"""A device without enough memory, simulated by models that refuse large batches: messages, and parts of batches."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from sampling import representatives
from stopped_runs import StopAt, assert_runs_equal, interrupted, resumed
from tiny_runs import assert_same, checkpoint, curve, taught, tiny_run, weights

from llm2slm.commands.train import run as train
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.out_of_memory import OutOfMemory, explained, is_out_of_memory
from llm2slm.testing import write_tiny_t5
from llm2slm.training.fit import fit, set_seed
from llm2slm.training.loggers import MetricsFile
from llm2slm.training.micro_batches import check_micro_batch
from llm2slm.types import Batch, Control, UserError

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def small_device(monkeypatch, rows, where="forward", only_rank=0):
    """Larger training batches do not fit: at the start, or in the backward pass after gradients were accumulated."""
    original, seen = LLM2SLM.logits, []

    def logits(model, batch, *arguments):
        seen.append(len(batch.slm_ids_BQ))
        other = torch.distributed.is_initialized() and torch.distributed.get_rank() != only_rank
        if other or not torch.is_grad_enabled() or len(batch.slm_ids_BQ) <= rows:
            return original(model, batch, *arguments)
        if where == "forward":
            raise FULL
        found = original(model, batch, *arguments)

        def fails(_):
            hook.remove()
            raise FULL

        hook = next(p for p in model.projector.parameters()).register_hook(fails)  # late in the backward pass
        return found

    monkeypatch.setattr(LLM2SLM, "logits", logits)
    return seen


def fitted(config, folder):
    set_seed(config.seed)
    model, data, teacher = taught(config)
    fit(config, folder, model, data, loggers=[MetricsFile(folder)], teacher=teacher)
    return model


def without_dropout(root, **trainer):
    config = tiny_run(root, max_steps=4, val_every=4, **trainer)
    config.model.slm.name = str(write_tiny_t5(root / "zoo" / "slm", dropout=0.0))
    config.callbacks.generate_rows = 0
    return config


CASES = [("forward", 1, 0.0), ("backward", 1, 0.0), ("backward", 2, 0.0), ("forward", 2, 0.5)]


@pytest.mark.parametrize(("where", "windows", "distill"), representatives(CASES, [("backward", 2, 0.0)]))
def test_parts_of_batches_give_the_same_gradients(tmp_path, monkeypatch, capsys, where, windows, distill):
    """Losses, and the weights after four steps of AdamW with clipping, equal those of whole batches."""
    config = without_dropout(tmp_path, accumulate_grad_batches=windows)
    config.optim.distill = distill
    whole = fitted(config, tmp_path / "whole")
    config.trainer.micro_batch = "auto"
    seen = small_device(monkeypatch, 3, where)
    parts = fitted(config, tmp_path / "parts")
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert said and all("processed in parts from now on (trainer.micro_batch=auto)" in line for line in said)
    assert len(said) < 8 < len([rows for rows in seen if rows <= 3]), "what did not fit is not tried again"
    for name in ("train/loss", "val/loss"):
        found, wanted = ([float(row[name]) for row in curve(tmp_path / run) if row[name]] for run in ("parts", "whole"))
        assert found == pytest.approx(wanted, abs=1e-6)
    start = weights(taught(config)[0])
    found, wanted = weights(parts), weights(whole)
    off = sum(float((found[n] - wanted[n]).pow(2).sum()) for n in start) ** 0.5
    way = sum(float((wanted[n] - start[n]).pow(2).sum()) for n in start) ** 0.5
    assert off < 1e-3 * way


def test_micro_batches_change_nothing_if_everything_fits(tmp_path):
    config = tiny_run(tmp_path, max_steps=3, val_every=3)
    config.callbacks.generate_rows = 0
    whole = fitted(config, tmp_path / "whole")
    config.trainer.micro_batch = "auto"
    assert_same(weights(fitted(config, tmp_path / "auto")), weights(whole))
    assert curve(tmp_path / "auto") == curve(tmp_path / "whole")


@pytest.mark.slow
def test_parts_with_dropout_are_resumed_exactly(tmp_path, monkeypatch):
    config = tiny_run(tmp_path, max_steps=6, val_every=3, micro_batch="auto")
    config.callbacks.generate_rows = 0
    small_device(monkeypatch, 3)
    train(deepcopy(config), tmp_path / "whole")
    interrupted(deepcopy(config), tmp_path / "run", monkeypatch, StopAt(4))
    assert checkpoint(tmp_path / "run/checkpoints/last.ckpt")["random_states"][0]["micro_batch"] > 0
    resumed(config, tmp_path / "run")
    assert_runs_equal(tmp_path / "run", tmp_path / "whole")


SHAPE = r"\d+ rows of \d+ prompt tokens and \d+ response tokens"


@pytest.mark.parametrize("where", representatives(["forward", "backward"], ["backward"]))
def test_a_batch_that_does_not_fit_is_reported_with_the_remedy(tmp_path, monkeypatch, where):
    small_device(monkeypatch, 2, where)
    remedy = r"lower data.batch_tokens \(and raise .*\), or set trainer.micro_batch=auto, which keeps the gradient"
    with pytest.raises(OutOfMemory, match=rf"^out of memory in a training batch of {SHAPE}; {remedy}$"):
        fitted(without_dropout(tmp_path), tmp_path / "run")


def test_a_row_that_does_not_fit_alone_ends_the_training(tmp_path, monkeypatch):
    small_device(monkeypatch, 0)
    with pytest.raises(OutOfMemory, match=r"^out of memory in a training batch of 1 row of \d+ .*; shorten the rows"):
        fitted(without_dropout(tmp_path, micro_batch="auto"), tmp_path / "run")


def test_validation_batches_and_the_optimizer_without_memory_are_reported(tmp_path, monkeypatch):
    config = without_dropout(tmp_path)
    with monkeypatch.context() as patch:
        original = LLM2SLM.logits

        def logits(model, batch):
            if not torch.is_grad_enabled():
                raise FULL
            return original(model, batch)

        patch.setattr(LLM2SLM, "logits", logits)
        with pytest.raises(OutOfMemory, match=r"in a validation batch of 4 rows .*; lower data.eval_batch_size$"):
            fitted(config, tmp_path / "validation")

    def step(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(OutOfMemory, match=r"^out of memory in the optimizer's step; train fewer weights"):
        fitted(config, tmp_path / "optimizer")


def test_other_errors_are_not_changed():
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"), explained("a batch", "less"):
        raise RuntimeError("shape mismatch")
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"micro_batch": "8"}, "micro_batch=8: expected auto or null"),
        ({"micro_batch": "auto", "strategy": "fsdp"}, "micro_batch=auto: with trainer=fsdp all processes must"),
        ({"micro_batch": "auto", "control": True}, "micro_batch=auto: model.control=shuffled exchanges prompts"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, change, said):
    if change.pop("control", False):
        config = tiny_run(tmp_path, **change)
        config.model.control = Control.shuffled
    else:
        config = tiny_run(tmp_path, **change)
    with pytest.raises(UserError, match=said):
        check_micro_batch(config)


def test_rows_of_a_batch_are_selected():
    ids = torch.arange(12).view(4, 3)
    teacher = Batch(ids + 100, ids > 0)
    part = Batch(ids, ids > 2, labels_BT=ids, indices=(5, 6, 7, 8), teacher=teacher).rows(1, 3)
    assert part.slm_ids_BQ.tolist() == part.labels_BT.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert part.indices == (6, 7) and part.llm_ids_BP is None
    assert part.teacher.slm_ids_BQ.tolist() == [[103, 104, 105], [106, 107, 108]]
