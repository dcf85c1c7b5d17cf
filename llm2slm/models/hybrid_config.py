"""LLM2SLMConfig: config.json of a saved hybrid."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class LLM2SLMConfig(PreTrainedConfig):
    """The configuration of a saved model.

    Attributes:
        slm: config of the SLM.
        kind: a `SystemKind`; conditioning: its name; tokenizers: a `Tokenizers`; control: a `Control`.
        llm: an `LLMRecord` (`models/llm.py`) as plain values; None without an LLM.
        projector: arguments of `Projector` except the widths. pool, cross_every: as in `ModelConfig`.
        kv: of conditioning kv: `blocks`, for each SLM block the LLM block (1-based) whose keys and values it attends
            to; `mapped`, whether they are mapped and added to the SLM's.
        virtual_tokens: tune and arguments of the SLM's `SoftPrompts`; None: it has none.
        llm_frame: text around a prompt in the LLM's input (fields of `Frame`); None: none.
        prefix, suffix: text around every prompt in training; a record only, inputs are processed without it.
        limits: arguments of `Collator` (lengths, overlong).
        trained: number of parameters that `llm2slm train` trained; None: it was not trained by that command.
    """

    model_type = "llm2slm"
    sub_configs = {"slm": AutoConfig}  # noqa: RUF012  transformers reads it as a class attribute

    slm: PreTrainedConfig | dict[str, Any] | None = None
    kind: str = "slm"
    conditioning: str = "none"
    tokenizers: str = "shared"
    control: str = "none"
    llm: dict[str, Any] | None = None
    projector: dict[str, Any] | None = None
    pool: float | None = None
    cross_every: int = 1
    kv: dict[str, Any] | None = None
    virtual_tokens: dict[str, Any] | None = None
    llm_frame: dict[str, Any] | None = None
    prefix: str | None = None
    suffix: str = ""
    limits: dict[str, Any] | None = None
    trained: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.slm, dict):
            values = dict(self.slm)
            if "model_type" not in values:
                raise ValueError("slm has no model_type")
            self.slm = AutoConfig.for_model(values.pop("model_type"), **values)
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The SLM's, where transformers' tools look for the size of the vocabulary and the width."""
        slm = self.slm
        return slm.get_text_config(decoder, encoder) if isinstance(slm, PreTrainedConfig) else self


AutoConfig.register("llm2slm", LLM2SLMConfig)
