"""Muon: momentum with orthogonalized matrices, and AdamW for all parameters that are not hidden matrices.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with the step size of Liu et al. 2025
(https://arxiv.org/abs/2502.16982): the update of a matrix has the typical RMS of AdamW's, so both use the same
learning rate. torch.optim.Muon handles matrices only, one by one; here matrices of equal shape are stacked, which makes
it cheap for the many small matrices of a small model, and one optimizer covers all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
ADAMW_RMS = 0.2


@lru_cache(maxsize=4)
def product_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device has units for its products, since the result is rough anyway: GPUs, and CPUs with AMX
    or AVX512-BF16 (2 to 3 times as fast as float32 for matrices of width 128 on an AMD EPYC)."""
    capable = device == "cuda"
    if device == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # torch 2.13; the range starts earlier
        found = torch.cpu.get_capabilities()
        capable = bool(found.get("amx_bf16") or found.get("avx512_bf16"))
    return torch.bfloat16 if capable else torch.float32


def orthogonalize(matrices_NAB: Tensor) -> Tensor:
    """U V' of the singular value decomposition U S V' of each matrix, roughly: singular values end in 0.7 to 1.2.

    Args:
        matrices_NAB: N matrices of A x B; float32, or bfloat16 where that is faster.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices_NAB / (torch.linalg.vector_norm(matrices_NAB, dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.mT if tall else x
    return result


class Muon(Optimizer):
    """Muon for the groups with `muon` set, which hold matrices only; AdamW for the others.

    Args:
        groups: parameter groups, each with `lr`, `weight_decay` (decoupled) and `muon`.
        momentum: of the matrices, with Nesterov's look ahead.
        betas: of AdamW.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.98)
    ) -> None:
        defaults = {"lr": 1e-3, "weight_decay": 0.0, "muon": False, "momentum": momentum, "betas": betas, "eps": 1e-8}
        super().__init__(groups, defaults)
        for group in self.param_groups:
            if group["muon"] and any(parameter.ndim != 2 for parameter in group["params"]):
                raise ValueError(f"group {group.get('name')}: Muon is for matrices")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step over every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            if group["muon"]:
                shapes: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
                for parameter in parameters:
                    shapes.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
                for same in shapes.values():
                    self._muon(same, group)
            else:
                self._adamw(parameters, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step for matrices of one shape."""
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
        stacked = torch.stack(ahead).to(product_dtype(parameters[0].device.type))
        size = ADAMW_RMS * max(parameters[0].shape) ** 0.5
        updates = orthogonalize(stacked).to(parameters[0].dtype).mul_(size)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"])

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step for everything else, by torch's AdamW."""
        for parameter in parameters:
            state = self.state[parameter]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
