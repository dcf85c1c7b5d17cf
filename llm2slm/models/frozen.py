"""Keeps the LLM of a hybrid frozen under peft, transformers' Trainer, or a user's own training loop.

Such tools do not know that part of the model must not be trained: peft puts adapters into every linear layer, some
loops enable gradients of all parameters. Gradients of the LLM's parameters are disabled again; new trainable modules
inside the LLM are refused.
"""

from __future__ import annotations

from typing import Any, Self

from torch import nn
from transformers import PreTrainedModel

from llm2slm.models.stored_encoder import PromptEncoder
from llm2slm.types import UserError

PEFT = "peft_config"
"""Attribute that peft sets on a model with adapters."""
SHOWN = 3
"""Number of names in an error message."""


class KeepsEncoderFrozen(PreTrainedModel):
    """A model whose `encoder` (None, or a module) is never trained."""

    encoder: PromptEncoder | None
    _encoder_names: frozenset[str] = frozenset()

    def remember_encoder(self) -> None:
        """Records the names of the encoder's modules and parameters; to be called once it is complete."""
        if self.encoder is not None:
            self._encoder_names = frozenset(_names(self.encoder))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == PEFT and self.encoder is not None:
            new = [name for name in _names(self.encoder) if name not in self._encoder_names]
            if new:
                raise UserError(_refusal(new))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As torch does, except that the encoder's parameters never require gradients."""
        super().requires_grad_(requires_grad)
        self.keep_frozen()
        return self

    def keep_frozen(self) -> None:
        """Disables gradients of the encoder's parameters, which some tools enable for a whole model.

        Raises:
            UserError: the encoder contains new trainable parameters, as those of adapters.
        """
        if self.encoder is None:
            return
        trained = [(name, parameter) for name, parameter in self.encoder.named_parameters() if parameter.requires_grad]
        new = [name for name, _ in trained if name not in self._encoder_names]
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
        f"the LLM is frozen, and trainable modules were added to it ({shown}); build or load the model again and "
        r"exclude the LLM: with peft by exclude_modules=r'encoder\..*'"
    )
