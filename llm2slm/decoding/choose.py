"""Decoders by name (`Decoding`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llm2slm.decoding import auto
from llm2slm.decoding.capture import Rewrite
from llm2slm.decoding.cascade import CascadeDecoder, Rule
from llm2slm.decoding.choice import needs_the_model
from llm2slm.decoding.compiled import Compiled
from llm2slm.decoding.compiled_reading import compiled_products
from llm2slm.decoding.decoder import Decoder, GenerateDecoder
from llm2slm.decoding.forward import Forward
from llm2slm.decoding.int8 import Int8
from llm2slm.decoding.int8_reading import int8_products
from llm2slm.decoding.loop import LoopDecoder, settings
from llm2slm.decoding.lossless import LosslessDecoder
from llm2slm.decoding.products import Products
from llm2slm.decoding.static import StaticForward, misfit
from llm2slm.types import Decoding, SystemKind, UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


def decoder(
    name: Decoding,
    model: LLM2SLM,
    llm: LLM2SLM | None = None,
    rule: Rule | None = None,
    num_beams: int | None = None,
) -> Decoder:
    """A decoder of a system; where the system's steps cannot be captured, `generate`, with a line of the reason.

    Args:
        model: a system in eval mode.
        llm: of a hybrid, as a system that generates alone, for the decoders in `WITH_LLM`.
        rule: of a cascade.
        num_beams: for which `auto` measures; None: the model's setting.

    Raises:
        UserError: the decoder needs a hybrid, or does not support it.
    """
    if name is Decoding.auto:
        return _fastest(model, num_beams)
    if name is Decoding.generate:
        return GenerateDecoder(model)
    if name is Decoding.eager:
        return LoopDecoder(model, Forward(model), name.value)
    if name in LOSSLESS:
        if model.kind is not SystemKind.llm2slm:
            raise UserError(f"decoding={name}: needs a hybrid, whose drafts its LLM verifies; "
                            f"this is {model.kind.value}; use decoding=captured")  # fmt: skip
        if llm is None:
            raise ValueError(f"decoding={name}: give the hybrid's LLM, as a system that generates alone, as llm")
        return LosslessDecoder(model, llm, compiled=name is Decoding.compiled_lossless)
    if name is Decoding.cascade:
        if model.kind is not SystemKind.llm2slm:
            raise UserError(f"decoding={name}: needs a hybrid, some of whose answers its LLM writes anew; "
                            f"this is {model.kind.value}; use decoding=captured")  # fmt: skip
        if llm is None or rule is None:
            raise ValueError(f"decoding={name}: give the hybrid's LLM as llm, and a rule")
        return CascadeDecoder(model, llm, rule)
    if reason := misfit(model):
        print(f"llm2slm: decoding={name}: {reason}; using generate", file=sys.stderr)
        return GenerateDecoder(model)
    if name in REDUCED and model.device.type != "cpu":
        exact = REDUCED[name]
        print(
            f"llm2slm: decoding={name}: products of int8 weights run on a CPU only; the weights stay "
            f"{str(model.slm.dtype).removeprefix('torch.')}, as with decoding={exact}",
            file=sys.stderr,
        )
        name = exact
    return LoopDecoder(model, StaticForward(model, _rewrite(name), _reading(name, model)), name.value)


def _rewrite(name: Decoding) -> Rewrite | None:
    """How the captured graphs of a decoder are changed."""
    if name in (Decoding.compiled, Decoding.compiled_int8):
        return Compiled(Int8() if name is Decoding.compiled_int8 else None, name.value)
    return Int8() if name is Decoding.int8 else None


def _reading(name: Decoding, model: LLM2SLM) -> Products | None:
    """The products of a decoder's passes over prompts."""
    if name is Decoding.compiled:
        return compiled_products(model, name.value)
    return int8_products(model) if name in REDUCED else None


def _fastest(model: LLM2SLM, num_beams: int | None) -> Decoder:
    """The fastest decoder with the responses of `generate`; prints the choice."""
    generate = GenerateDecoder(model)
    config = settings(model, None, num_beams=num_beams)
    if left := needs_the_model(config):
        print(f"llm2slm: decoding=auto: generate, for the model's settings {', '.join(left)}", file=sys.stderr)
        return generate
    names = [Decoding.captured] if misfit(model) is None else []
    decoders = {str(each): decoder(each, model) for each in (*names, Decoding.eager)} | {"generate": generate}
    name, line = auto.fastest(model, decoders, num_beams=config.num_beams or 1)
    print(f"llm2slm: {line}", file=sys.stderr)
    return decoders[name]


REDUCED = {Decoding.int8: Decoding.captured, Decoding.compiled_int8: Decoding.compiled}
"""Decoders that compute in lower precision than the model's, each with the one that does not."""
EXACT = (Decoding.generate, Decoding.eager, Decoding.captured, Decoding.compiled, Decoding.auto)
"""Decoders with the greedy responses of `generate`."""
LOSSLESS = (Decoding.lossless, Decoding.compiled_lossless)
"""Decoders of a hybrid with the responses of its LLM."""
WITH_LLM = (*LOSSLESS, Decoding.cascade)
"""Decoders that load the LLM of a hybrid as a whole."""
