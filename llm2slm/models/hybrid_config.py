"""LLM2SLMConfig: what a saved hybrid says of itself in its config.json."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class LLM2SLMConfig(PreTrainedConfig):
    """What a saved model says of itself.

    Attributes:
        slm: config of the writer.
        kind: a `SystemKind`; conditioning: a `Conditioning`; tokenizers: a `Tokenizers`; control: a `Control`.
        llm: name, revision, config (changes to it), layer, dtype and width of the reader; None without guidance.
        projector: arguments of `Projector` but for the widths. pool, cross_every: as in `ModelConfig`.
        kv: of conditioning kv: `blocks`, for each SLM block the LLM block (1-based) whose keys and values it attends
            to; `mapped`, whether they are mapped and added to the SLM's own.
        virtual_tokens: tune and arguments of the writer's `SoftPrompts`; None: it has none.
        llm_frame: what stands around a prompt when the LLM reads it (fields of `Frame`); None: nothing.
        prefix, suffix: what stood around every text in training; for whoever asks, texts are read as they are given.
        limits: arguments of `Collator` (lengths, overlong).
        trained: number of the parameters that `llm2slm train` trained; None: it was not trained by that command.
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
            self.slm = AutoConfig.for_model(values.pop("model_type"), **values)
        super().__post_init__(**kwargs)


AutoConfig.register("llm2slm", LLM2SLMConfig)
