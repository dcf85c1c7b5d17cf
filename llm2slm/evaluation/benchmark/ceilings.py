"""The measured ceilings of this machine: memory bandwidth and rate of matrix products, in one to two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from llm2slm.evaluation.benchmark.roofline import Device

SECONDS = 0.3
"""Time spent on each measurement."""


def measure(product: str) -> Device:
    """The ceilings of the first GPU, or of the CPU threads that torch uses.

    Args:
        product: dtype of the matrix product, as "bfloat16".
    """
    kind = _kind()
    large = kind == "cuda"
    rows, width = (16384, 16384) if large else (8192, 8192)  # no cache holds it
    matrix, vector = torch.ones(rows, width, device=kind), torch.ones(width, device=kind)
    # the best of two kernels: MKL's product uses one thread on some processors
    reading = min(best_time(partial(torch.mv, matrix, vector)), best_time(partial(torch.amax, matrix)))
    bandwidth = matrix.nbytes / reading / 1e9
    rate = product_rate(product, kind, 8192 if large else 1024) / 1e12
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if large else None
    return Device(bandwidth, {product: rate}, 0, memory, "measured on this machine")


def product_rate(product: str, kind: str, side: int | None = None) -> float:
    """FLOPs per second of a square product, which is limited by its operations.

    Args:
        product: dtype, as "bfloat16". kind: cpu or cuda.
        side: of the matrices; None: 4096 on a GPU, 1024 on a CPU.
    """
    side = side or (4096 if kind == "cuda" else 1024)
    one, two = (torch.ones(side, side, dtype=getattr(torch, product), device=kind) for _ in range(2))
    products: list[Callable[[], object]] = [partial(torch.mm, one, two)]
    if kind == "cpu" and product == "float32" and torch.backends.mkldnn.is_available():  # others are oneDNN's already
        products.append(partial(torch.ops.mkldnn._linear_pointwise, one, two, None, "none", [], ""))
    return 2 * side**3 / min(map(best_time, products))


def _kind() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def best_time(call: Callable[[], object]) -> float:
    """Seconds of the fastest call, after an untimed one."""

    def timed() -> float:
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        timed()
        end, times = time.perf_counter() + SECONDS, [timed()]
        while time.perf_counter() < end:
            times.append(timed())
    return min(times)
