"""The LLM beside an SLM is frozen whoever trains the model: peft, transformers' Trainer, or a loop of the user's own.

Other tools do not know that a part of the model must not be trained. peft puts adapters into every linear layer, some
loops switch gradients on for all parameters. Gradients of the LLM's own parameters are switched off again; anything new
inside the LLM that is to be trained is refused.
"""

from __future__ import annotations

from typing import Any, Self

from torch import nn
from transformers import PreTrainedModel

from llm2slm.models.stored_encoder import PromptEncoder
from llm2slm.types import UserError

PEFT = "peft_config"
"""Attribute by which peft marks a model into which it has put adapters."""
SHOWN = 3
"""Names that a message shows."""


class KeepsEncoderFrozen(PreTrainedModel):
    """A model whose `encoder` (None, or a module) is never trained."""

    encoder: PromptEncoder | None
    _own: frozenset[str] = frozenset()

    def remember_encoder(self) -> None:
        """Notes which modules and parameters the reader has: to be called once it is complete."""
        if self.encoder is not None:
            self._own = frozenset(_names(self.encoder))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == PEFT and self.encoder is not None:
            new = [name for name in _names(self.encoder) if name not in self._own]
            if new:
                raise UserError(_refusal(new))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As torch does, but for the reader, whose parameters never require gradients."""
        super().requires_grad_(requires_grad)
        self.keep_frozen()
        return self

    def keep_frozen(self) -> None:
        """Switches off gradients of the reader's own parameters, which some tools switch on for a whole model.

        Raises:
            UserError: the reader holds parameters that are new and to be trained, as adapters are.
        """
        if self.encoder is None:
            return
        trained = [(name, parameter) for name, parameter in self.encoder.named_parameters() if parameter.requires_grad]
        new = [name for name, _ in trained if name not in self._own]
        if new:
            raise UserError(_refusal(new))
        for _, parameter in trained:
            parameter.requires_grad_(False)


def _names(module: nn.Module) -> list[str]:
    """Names of all modules and parameters inside."""
    return [name for name, _ in module.named_modules()] + [name for name, _ in module.named_parameters()]


def _refusal(new: list[str]) -> str:
    shown = ", ".join(f"encoder.{name}" for name in new[:SHOWN]) + (", ..." if len(new) > SHOWN else "")
    return (
        f"the LLM is frozen, and something that is to be trained was put into it ({shown}); build or load the model "
        r"again and leave the LLM out: with peft by exclude_modules=r'encoder\..*'"
    )
