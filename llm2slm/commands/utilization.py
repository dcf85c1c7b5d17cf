"""What a training computes and what its device could, for the utilisation in its logs."""

from __future__ import annotations

from functools import partial

from llm2slm.config import TrainerConfig
from llm2slm.evaluation.benchmark.ceilings import product_rate
from llm2slm.evaluation.benchmark.training_cost import row_flops
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.training.distill import Teacher
from llm2slm.training.utilization import Work


def training_work(
    model: LLM2SLM, cfg: TrainerConfig, teacher: Teacher | None = None, *, int8_encoding: bool = False
) -> Work | None:
    """The work of a training; None where the cost model does not know it (`training_cost.row_flops`).

    Args:
        model: as it is trained.
        int8_encoding: the LLM encodes in int8, so that the training has products of several dtypes.
    """
    row = row_flops(model, None if teacher is None else teacher.model)
    if row is None:
        return None
    half = {"bf16": "bfloat16", "16": "float16"}.get(str(cfg.precision).partition("-")[0])
    parts = [model.slm] if model.encoder is None else [model.slm, model.encoder]
    kinds = {each.dtype for part in parts for each in part.parameters() if each.is_floating_point()}
    product = half or str(kinds.pop()).removeprefix("torch.")
    several = int8_encoding or (bool(kinds) and half is None)
    return Work(row, None if several else partial(product_rate, product))
