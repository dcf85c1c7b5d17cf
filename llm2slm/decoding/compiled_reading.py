"""Short prompts are encoded by compiled passes: by the LLM that encodes for a hybrid, and by an SLM with an encoder.

Of a small encoder and a short prompt, the Python code of its modules and the launches of its operations take most of
the time. A pass is captured and compiled once for each size of a batch; prompts are padded to a multiple of `STEP`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, masking_utils
from transformers.modeling_outputs import BaseModelOutput

from llm2slm.decoding.capture import captured, replayed
from llm2slm.decoding.compiled import Compiled
from llm2slm.decoding.products import Products, onednn
from llm2slm.decoding.static import COARSE, TOLERANCE
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.types import Reps, reason_of

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

STEP = 32
"""Prompts are padded to a multiple of this number of tokens."""
WORK = 1 << 29
"""Largest product of weights and tokens of a compiled pass. Above it products take most of the time of a pass, and
compiling would gain little: of 4 million weights, 128 tokens."""
Pass = Callable[[Tensor, Tensor], Tensor]
"""(ids_BP or embeds_BPD, mask_BP) -> states_BPE."""


def compiled_products(model: LLM2SLM, name: str) -> Products:
    """The products of passes over prompts for a decoder with compiled steps: large ones by oneDNN, encoders compiled.

    Args:
        model: stays on its device, and its weights are not replaced.
        name: of the decoder, for messages.
    """
    found: dict[nn.Module, Any] = dict(onednn(model).forwards)
    encoder: Any = model.encoder
    if isinstance(encoder, FrozenEncoder) and _plain(encoder):
        found[encoder] = _of_frozen(encoder, name)
    encoder = model.slm.get_encoder() if model.slm.config.is_encoder_decoder else None
    if isinstance(encoder, PreTrainedModel) and _plain(encoder):  # conditioning `memory` removes it
        found[encoder] = _of_slm(encoder, name)
    return Products(found)


def _plain(encoder: Any) -> bool:
    """Whether the passes of an encoder are those of its classes, which hooks (as accelerate's) may replace, and do not
    depend on the padded length, as those with two sets of rotary frequencies do."""
    body = encoder.body if isinstance(encoder, FrozenEncoder) else encoder
    text = body.config.get_text_config()
    rotary = str([getattr(text, name, None) for name in ("rope_parameters", "rope_scaling")])
    by_length = any(f"'{kind}'" in rotary for kind in ("longrope", "dynamic"))
    return not by_length and not any("forward" in vars(module) for module in encoder.modules())


def _of_frozen(encoder: FrozenEncoder, name: str) -> Callable[[Tensor, Tensor], Reps]:
    """The forward pass of an LLM that encodes."""
    plain = type(encoder).forward

    def compute(ids_BP: Tensor, mask_BP: Tensor) -> Tensor:
        return plain(encoder, ids_BP, mask_BP).reps_BPE

    passes = CompiledPasses(encoder.body, compute, name, encoder.positions)

    def forward(ids_BP: Tensor, mask_BP: Tensor) -> Reps:
        return Reps(passes(ids_BP, mask_BP), mask_BP)

    return forward


def _of_slm(encoder: Any, name: str) -> Callable[..., BaseModelOutput]:
    """The forward pass of the encoder of an encoder-decoder SLM, whose prompts are padded on the right."""
    plain = encoder.forward

    def compute(embeds_BPD: Tensor, mask_BP: Tensor) -> Tensor:
        states_BPE: Tensor = plain(inputs_embeds=embeds_BPD, attention_mask=mask_BP, return_dict=True).last_hidden_state
        return states_BPE

    positions = getattr(encoder.config.get_text_config(), "max_position_embeddings", None)
    passes = CompiledPasses(encoder, compute, name, positions)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if args or kwargs.keys() != {"inputs_embeds", "attention_mask", "return_dict"}:
            return plain(*args, **kwargs)
        return BaseModelOutput(last_hidden_state=passes(kwargs["inputs_embeds"], kwargs["attention_mask"]))

    return forward


class CompiledPasses:
    """Passes of an encoder: small ones compiled, by the size of the batch, and all others as the modules compute them.

    Args:
        module: the encoder. compute: its pass, padded on the right as far as is wanted. name: of the decoder.
        positions: of the encoder at most; None: unlimited.

    Attributes:
        failed: a pass could not be compiled or was wrong, so none is.
        passes: by rows and padded length, buffers and the compiled pass over them.
    """

    def __init__(self, module: nn.Module, compute: Pass, name: str, positions: int | None) -> None:
        self.compute, self.name = compute, name
        tables = {id(table.weight) for table in module.modules() if isinstance(table, nn.Embedding)}
        self.weights = sum(p.numel() for p in module.parameters() if p.dim() == 2 and id(p) not in tables)
        self.failed = False
        self.positions = sys.maxsize if positions is None else positions
        self.passes: dict[tuple[int, int], tuple[Tensor, Tensor, Callable[[], Tensor]]] = {}

    def __call__(self, input_BP: Tensor, mask_BP: Tensor) -> Tensor:
        """states_BPE of prompts, given as ids_BP or embeds_BPD."""
        rows, length = mask_BP.shape
        padded = -(-length // STEP) * STEP
        if self.failed or rows * padded * self.weights > WORK or padded > self.positions:
            return self.compute(input_BP, mask_BP)
        key = rows, padded
        if key not in self.passes:
            if (made := self._made(input_BP, mask_BP, padded)) is None:
                self.failed = True
                return self.compute(input_BP, mask_BP)
            self.passes[key] = made
        return _run(self.passes[key], input_BP, mask_BP)

    def _made(
        self, input_BP: Tensor, mask_BP: Tensor, padded: int
    ) -> tuple[Tensor, Tensor, Callable[[], Tensor]] | None:
        """The compiled pass of one size; None, with a line of the reason, where it cannot be compiled or is wrong.

        Families differ in how they derive masks and positions, so the result is compared with that of the modules.
        """
        with torch.inference_mode(False):
            like, rest = input_BP.new_zeros(len(mask_BP), padded, *input_BP.shape[2:]), padded - mask_BP.shape[1]
            buffers = like, functional.pad(mask_BP.clone(), (0, rest))
        buffers[0][:, : mask_BP.shape[1]] = input_BP
        wanted_BPE = self.compute(input_BP, mask_BP)
        reason = "gives other states"
        try:
            # whether a prompt has padding may not decide which operations are recorded
            with patch.object(masking_utils, "is_tracing", lambda *_: True):
                compute, _ = captured(lambda: self.compute(*buffers), Compiled(name=self.name, what="an encoding"))
            found = *buffers, replayed(compute, like.device) if like.device.type == "cuda" else compute
            states_BPE = _run(found, input_BP, mask_BP)
            real_BP1 = mask_BP.unsqueeze(-1).bool()
            difference = ((states_BPE - wanted_BPE).float() * real_BP1).abs().max()
            if difference <= TOLERANCE.get(wanted_BPE.dtype, COARSE) * (wanted_BPE.float() * real_BP1).abs().max():
                return found
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError) as error:
            reason = f"fails ({reason_of(error)})"
        print(
            f"llm2slm: decoding={self.name}: the compiled encoding of {len(mask_BP)} x {padded} tokens {reason}; "
            "prompts are encoded without it",
            file=sys.stderr,
        )
        return None


def _run(found: tuple[Tensor, Tensor, Callable[[], Tensor]], input_BP: Tensor, mask_BP: Tensor) -> Tensor:
    """The states of a compiled pass, which the next one does not change."""
    length = mask_BP.shape[1]
    for buffer, value in zip(found[:2], (input_BP, mask_BP), strict=True):
        buffer[:, :length] = value
        buffer[:, length:] = 0
    with torch.inference_mode():
        return found[2]()[:, :length].clone()
