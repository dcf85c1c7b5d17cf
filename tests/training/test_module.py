"""One optimizer step: the mean over the tokens of micro-batches and windows, against loops written by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from tiny_runs import batch_of, build, module_of, tiny_run, weights
from torch.utils.data import DataLoader

from llm2slm.training import module as training_module
from llm2slm.training.optim import parameter_groups, schedule_factor
from llm2slm.types import SystemKind

MICRO = [[0, 1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]
"""Rows of the micro-batches of one step, with very different numbers of tokens."""


@pytest.fixture
def sgd(monkeypatch):
    """Replaces AdamW by SGD: its step is linear in the gradient, whereas Adam's first steps amplify rounding errors."""

    def build_sgd(model, cfg):
        return torch.optim.SGD(parameter_groups(model, cfg), momentum=0.9)

    monkeypatch.setattr(training_module, "build_optimizer", build_sgd)


def no_dropout(folder, **more):
    config = tiny_run(folder, **more)
    config.model.slm.config = {"dropout_rate": 0.0}
    config.optim.warmup_steps, config.optim.lr, config.optim.projector_lr = 1, 0.1, 0.3
    return config


def trained(config, batches, accumulate, steps, clip=None):
    """Weights after `steps` optimizer steps of Lightning's loop over these batches."""
    module, data = module_of(config)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch_of(data, rows) for rows in batches], batch_size=None))
    return weights(module.model), {k: float(v) for k, v in trainer.callback_metrics.items()}


def by_hand(config, rows, steps, clip):
    """The same by hand: mean over all tokens, clipping, both rates, schedule. No Lightning, no module."""
    model, data = build(config)
    model.train()
    groups = {"projector.": config.optim.projector_lr, "slm.": config.optim.lr}
    embeddings = ("shared", "embed", "relative_attention_bias")
    params = [
        {
            "params": [p],
            "peak": lr,
            "weight_decay": 0.0 if p.ndim < 2 or any(e in name for e in embeddings) else config.optim.weight_decay,
        }
        for prefix, lr in groups.items()
        for name, p in model.named_parameters()
        if name.startswith(prefix)
    ]
    optimizer = torch.optim.SGD(params, lr=1.0, momentum=0.9)
    factor = schedule_factor(config.optim, config.trainer.max_steps)
    for step in range(steps):
        batch = batch_of(data, rows)
        loss = F.cross_entropy(model.logits(batch).transpose(1, 2), batch.labels_BT)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            norm = torch.nn.utils.clip_grad_norm_([p for g in params for p in g["params"]], clip)
            assert norm > clip, "nothing is clipped: the test would prove nothing"
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor(step)
        optimizer.step()
    return weights(model), float(loss.detach())


def assert_close(found, wanted):
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_micro_batches_of_unequal_tokens_give_the_step_of_one_large_batch(tmp_path, sgd):
    config = no_dropout(tmp_path)
    whole = [row for rows in MICRO for row in rows]
    start = weights(build(config)[0])
    wanted, loss = by_hand(config, whole, steps=3, clip=0.5)
    small, logged = trained(config, MICRO, accumulate=3, steps=3, clip=0.5)
    big, _ = trained(config, [whole], accumulate=1, steps=3, clip=0.5)
    assert_close(small, wanted)
    assert_close(big, wanted)
    assert abs(logged["train/loss"] - loss) < 1e-5
    moved = max(float((wanted[n] - start[n]).abs().max()) for n in wanted)
    assert moved > 100 * 2e-6, "the tolerance must be small against what a step does"


def test_a_mean_of_means_differs(tmp_path):
    """The same batches with equal weights give another result: the test above can fail."""
    config = no_dropout(tmp_path)
    model, data = build(config)
    losses = []
    for rows in MICRO:
        batch = batch_of(data, rows)
        losses.append(F.cross_entropy(model.logits(batch).transpose(1, 2), batch.labels_BT))
    _, logged = trained(config, MICRO, accumulate=3, steps=1)
    assert abs(float(sum(losses).detach() / 3) - logged["train/loss"]) > 1e-3


def test_an_incomplete_window_at_the_end_of_an_epoch_is_divided_by_its_tokens(tmp_path, sgd):
    config = no_dropout(tmp_path)
    window, _ = trained(config, MICRO, accumulate=2, steps=2)  # rows of the first two, then of the third only
    twice, _ = trained(config, [MICRO[0] + MICRO[1], MICRO[2]], accumulate=1, steps=2)
    assert_close(window, twice)


def test_logged_rates_are_those_of_the_step(tmp_path):
    config = no_dropout(tmp_path)
    config.optim.warmup_steps = 4
    _, logged = trained(config, [[0, 1]], accumulate=1, steps=3)
    assert logged["train/lr_slm"] == torch.tensor(config.optim.lr * 3 / 4).item()
    assert logged["train/lr_projector"] == torch.tensor(config.optim.projector_lr * 3 / 4).item()
    assert not [name for name in logged if "no_decay" in name]


def test_the_rate_of_virtual_tokens_only_is_logged(tmp_path):
    config = no_dropout(tmp_path)
    config.model.kind, config.model.slm.tune = SystemKind.slm, "prompt"
    config.optim.warmup_steps = 4
    _, logged = trained(config, [[0, 1]], accumulate=1, steps=1)
    assert logged["train/lr_slm"] == torch.tensor(config.optim.lr / 4).item()


def test_validation_loss_is_the_token_mean_for_every_batch_size(tmp_path):
    config = no_dropout(tmp_path)
    config.optim.label_smoothing = 0.3  # validation does not use it
    module, data = module_of(config)
    rows = range(len(data.encoded("validation")))
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:  # one by one: no padding
            batch = batch_of(data, [row], "validation")
            logits = module.model.eval().logits(batch)[0].double()
            total += float(F.cross_entropy(logits, batch.labels_BT[0], reduction="sum"))
            tokens += batch.labels_BT.numel()
    for size in (1, 3, 4, len(rows)):
        config.data.eval_batch_size = size
        module, data = module_of(config)
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        (logged,) = trainer.validate(module, datamodule=data, verbose=False)
        assert abs(logged["val/loss"] - total / tokens) < 2e-6, size
