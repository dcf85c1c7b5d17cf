"""AdamW or Muon over parameter groups (projector, SLM, its embeddings; with and without weight decay), linear warm-up,
then decay."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from llm2slm.config import OptimConfig
from llm2slm.config.choices import OPTIMIZERS, SCHEDULES, check_choice
from llm2slm.training.muon import Muon

EMBEDDINGS = "slm_embeddings"


def embedding_ids(model: nn.Module, *, heads: bool) -> set[int]:
    """The `id` of every parameter of an embedding matrix; with `heads` also of output layers that are not tied."""
    found = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    if heads:
        outputs = [m.get_output_embeddings() for m in model.modules() if isinstance(m, PreTrainedModel)]
        found |= {id(p) for head in outputs if isinstance(head, nn.Module) for p in head.parameters()}
    return found


def parameter_groups(model: nn.Module, cfg: OptimConfig) -> list[dict[str, object]]:
    """Trainable parameters in groups `projector`, `projector_no_decay`, `slm`, `slm_no_decay`, and, with
    `optim.embedding_lr`, `slm_embeddings`; none empty.

    Weight decay, and Muon, are for matrices of linear layers: biases, norms, gates and embeddings are
    excluded. For Muon, and with `optim.embedding_lr`, an untied output layer counts as an embedding.
    """
    muon, apart = cfg.name == "muon", cfg.embedding_lr is not None
    embeddings = embedding_ids(model, heads=muon or apart)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "slm" if ".slm." in f".{name}" else "projector"
        no_decay = parameter.ndim < 2 or id(parameter) in embeddings or (muon and parameter.ndim > 2)
        group = f"{part}_no_decay" if no_decay else part
        if apart and part == "slm" and id(parameter) in embeddings:
            group = EMBEDDINGS
        groups.setdefault(group, []).append(parameter)
    rates = {"projector": cfg.lr if cfg.projector_lr is None else cfg.projector_lr, "slm": cfg.lr}
    rates |= {} if cfg.embedding_lr is None else {EMBEDDINGS: cfg.embedding_lr}
    plain = [name for name in groups if name.endswith("_no_decay") or name == EMBEDDINGS]
    return [
        {
            "name": name,
            "params": groups[name],
            "lr": rates[name.removesuffix("_no_decay")],
            "weight_decay": 0.0 if name in plain else cfg.weight_decay,
            "muon": muon and name not in plain,
        }
        for name in sorted(groups)
    ]


def check_optimizer(cfg: OptimConfig) -> None:
    """Refuses an unknown optimizer."""
    check_choice("optim.name", cfg.name, OPTIMIZERS)


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> Optimizer:
    """The optimizer named by `optim.name`, over the groups.

    Raises:
        UserError: unknown optimizer.
    """
    check_optimizer(cfg)
    groups = parameter_groups(model, cfg)
    if cfg.name == "muon":
        return Muon(groups, betas=cfg.betas)
    optimizer = AdamW(groups, betas=cfg.betas, fused=True)
    # Fused, it could unscale fp16 gradients itself, for which Lightning would refuse to clip them, in bf16 as well.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def schedule_factor(cfg: OptimConfig, max_steps: int) -> Callable[[int], float]:
    """Learning-rate factor at an optimizer step (0-based).

    Raises:
        UserError: unknown schedule.
    """
    check_choice("optim.schedule", cfg.schedule, SCHEDULES)

    def factor(step: int) -> float:
        if step < cfg.warmup_steps:
            return (step + 1) / cfg.warmup_steps
        if cfg.schedule == "constant":
            return 1.0
        done = min(1.0, (step - cfg.warmup_steps) / max(1, max_steps - cfg.warmup_steps))
        shape = 0.5 * (1 + math.cos(math.pi * done)) if cfg.schedule == "cosine" else 1 - done
        return cfg.final_lr + (1 - cfg.final_lr) * shape

    return factor


def apply_schedule(scheduler: LambdaLR) -> None:
    """Sets every group's rate to the scheduler's value at its current step.

    A checkpoint restores the rates of the schedule with which it was written. If trainer.max_steps has changed since,
    the rates of the current schedule differ.
    """
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
