"""The measured ceilings of this machine: memory bandwidth and rate of matrix products, in about a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from llm2slm.evaluation.benchmark.roofline import Device

SECONDS = 0.4
"""Time spent on each measurement."""


def measure(product: str) -> Device:
    """The ceilings of the first GPU, or of the CPU threads that torch uses.

    Args:
        product: dtype of the matrix product, as "bfloat16".
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    large, dtype = kind == "cuda", getattr(torch, product)
    # a matrix that no cache holds, times a vector; a square product that is limited by its operations
    rows, width = (16384, 16384) if large else (8192, 8192)
    side = 8192 if large else 1024
    matrix, vector = torch.ones(rows, width, device=kind), torch.ones(width, device=kind)
    bandwidth = matrix.nbytes / best_time(partial(torch.mv, matrix, vector)) / 1e9
    one, two = (torch.ones(side, side, dtype=dtype, device=kind) for _ in range(2))
    rate = 2 * side**3 / best_time(partial(torch.mm, one, two)) / 1e12
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if large else None
    return Device(bandwidth, {product: rate}, 0, memory, "measured on this machine")


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
