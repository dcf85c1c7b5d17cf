"""The least time of a cost on a device: each forward pass takes the longer of its bytes and its operations.

A pass needs at least (bytes read / memory bandwidth) and at least (operations / rate of matrix products) seconds, plus
the overhead of each block, such as launches of kernels, where it is given. Real programs reach a part of these rates,
so that times are lower bounds; ratios of systems are closer, as all of them fall short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from llm2slm.evaluation.benchmark.costs import Cost, Work


@dataclass(frozen=True)
class Device:
    """What bounds the speed of a device.

    Attributes:
        bandwidth: of its memory, 1e9 bytes per second.
        tflops: dtype of a matrix product -> 1e12 operations per second, without sparsity.
        overhead: microseconds per block of a forward pass, in addition to reading and computing.
        memory: 1e9 bytes; None: not stated.
        source: of the figures.
    """

    bandwidth: float
    tflops: Mapping[str, float]
    overhead: float = 0
    memory: float | None = None
    source: str = ""


def _gpu(bandwidth: float, memory: float, half: float, single: float, source: str) -> Device:
    return Device(bandwidth, {"float32": single, "bfloat16": half, "float16": half}, 0, memory, source)


DEVICES: dict[str, Device] = {
    # Tensor cores for 16 bits, without sparsity; float32 without TF32, as torch computes by default.
    "a100": _gpu(2039, 80, 312, 19.5, "NVIDIA A100 80GB SXM, data sheet"),
    "h100": _gpu(3350, 80, 989, 67, "NVIDIA H100 SXM, data sheet"),
    "h200": _gpu(4800, 141, 989, 67, "NVIDIA H200 SXM, data sheet"),
    "rtx4090": _gpu(1008, 24, 165.2, 82.6, "NVIDIA Ada GPU architecture, products accumulated in float32"),
    # No vendor states these. Measured on two cores: reading of weights; T5-large's encoder on 64 tokens (353, 164 ms).
    "cpu-2-cores": Device(23, {"float32": 0.11, "bfloat16": 0.24}, source="two cores of an AMD EPYC, measured"),
}
"""Named devices. `ceilings.py` measures the machine that it runs on."""


@dataclass(frozen=True)
class Precision:
    """Bytes of a weight, bytes of a cached key or value, and the dtype of products."""

    weight: float
    value: float
    product: str


PRECISIONS = {
    "float32": Precision(4, 4, "float32"),
    "bfloat16": Precision(2, 2, "bfloat16"),
    "float16": Precision(2, 2, "float16"),
    "int8": Precision(1, 2, "bfloat16"),  # weights only
}


@dataclass(frozen=True)
class Times:
    """Milliseconds of the phases of a response, for a whole batch."""

    prefill: float
    decode: float

    @property
    def total(self) -> float:
        """Of the whole response."""
        return self.prefill + self.decode


def least_times(cost: Cost, device: Device, product: str, batch: int = 1) -> Times:
    """Lower bounds of the times of a batch of responses.

    Args:
        product: dtype of matrix products, a key of `device.tflops`.
    """

    def milliseconds(works: Iterable[Work]) -> float:
        seconds = 0.0
        for work in works:
            read = cost.bytes_of(work, batch) / (1e9 * device.bandwidth)
            computed = work.rows * batch * work.flops / (1e12 * device.tflops[product])
            seconds += max(read, computed) + 1e-6 * device.overhead * work.blocks * work.runs(batch)
        return 1e3 * seconds

    return Times(milliseconds(cost.prefill), milliseconds(cost.decode))


LONGEST = 2**17
"""Longest response, in tokens, in the search for a break-even length."""


def break_even(system: Callable[[int], float], baseline: Callable[[int], float]) -> int | None:
    """The shortest response for which a system is faster than the baseline.

    Args:
        system, baseline: response length in tokens -> total time. Their difference changes its sign at most once.

    Returns:
        A number of tokens, at least 1; None: the system is not faster at any length up to `LONGEST`.
    """
    slower, faster = 0, 1
    while system(faster) >= baseline(faster):
        slower, faster = faster, 2 * faster
        if faster > LONGEST:
            return None
    while faster - slower > 1:
        middle = (slower + faster) // 2
        slower, faster = (slower, middle) if system(middle) < baseline(middle) else (middle, faster)
    return faster
