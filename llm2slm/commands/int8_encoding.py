"""`trainer.int8_encoding`: while a hybrid is trained on a CPU, its frozen LLM encodes the prompts in int8."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

from llm2slm.commands.device import device_type
from llm2slm.config import RunConfig
from llm2slm.decoding.int8_reading import available, int8_encoder, replaceable
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.ranks import first_process
from llm2slm.types import Control, SystemKind, UserError

KEY = "trainer.int8_encoding=true"


def check_int8_encoding(config: RunConfig) -> None:
    """Refuses, before anything is loaded, int8 where no prompt is encoded, the LLM's weights are quantized already, or
    torch has no int8 products.

    Raises:
        UserError: names the key.
    """
    if not config.trainer.int8_encoding or config.model.kind is not SystemKind.llm2slm:
        return
    if config.data.reps is not None:
        raise UserError(f"{KEY}: data.reps={config.data.reps} has the representations already; leave one of them out")
    if config.model.control in (Control.zero, Control.constant):
        raise UserError(f"{KEY}: with model.control={config.model.control} no prompt is encoded; leave it out")
    if config.model.llm.quantization:
        raise UserError(f"{KEY}: model.llm.quantization quantizes the LLM's weights already; leave one of them out")
    if device_type(config.trainer.accelerator) == "cpu" and not available():
        raise UserError(f"{KEY}: this build of torch has no int8 products; leave it out")


def check_layers(model: LLM2SLM, config: RunConfig) -> None:
    """Refuses int8 for an LLM without a layer that int8 products replace.

    Raises:
        UserError: names the key.
    """
    encoder = encoder_in_int8(model, config)
    if encoder is not None and next(replaceable(encoder.body.modules()), None) is None:
        raise UserError(f"{KEY}: the LLM has no linear layer of plain weights (a packed GGUF file?); leave it out")


def int8_encoding(model: LLM2SLM, config: RunConfig) -> AbstractContextManager[None]:
    """Within this context the frozen LLM encodes in int8, if that is configured. On another device than a CPU one line
    states that it encodes in its dtype."""
    if (encoder := encoder_in_int8(model, config)) is not None:
        return int8_encoder(encoder).active()
    if config.trainer.int8_encoding and model.encoder is not None and first_process():
        device = device_type(config.trainer.accelerator)
        print(f"llm2slm: {KEY}: products of int8 run on a CPU only; on {device} the LLM encodes in "
              f"model.llm.dtype={config.model.llm.dtype}", file=sys.stderr)  # fmt: skip
    return nullcontext()


def encoder_in_int8(model: LLM2SLM, config: RunConfig) -> FrozenEncoder | None:
    """The LLM of a system if it encodes in int8; None: it does not."""
    on_cpu = device_type(config.trainer.accelerator) == "cpu"
    return (
        model.encoder if config.trainer.int8_encoding and on_cpu and isinstance(model.encoder, FrozenEncoder) else None
    )
