"""Attributes of `LLM2SLM` that all its interfaces use: modules and records, and which parameters are trained."""

from __future__ import annotations

from transformers import PreTrainedModel

from llm2slm.data.interface import Collator, LLM2SLMProcessor
from llm2slm.models.conditioning import Conditioning
from llm2slm.models.frozen import KeepsEncoderFrozen
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.loading.gguf import weights_in
from llm2slm.models.stored_encoder import StoredEncoder
from llm2slm.types import Control, SystemKind


class Parts(KeepsEncoderFrozen):
    """The modules and records of a hybrid, or of an LLM or SLM alone.

    Attributes:
        slm: the transformers model that generates. encoder (the frozen LLM) and projector: None without an LLM.
        mode: the implementation of the conditioning. pads_left: prompt and response are one sequence of the SLM.
        working_dtype: the SLM's dtype when it was built; halving it later changes what is stored only.
        llm_path: where the LLM was found, if not at its recorded name.
        card: the model card that was loaded, and the fingerprint of the weights that it describes.
        processor: both tokenizers and the conversion of texts to batches; attached after construction.
    """

    config_class = LLM2SLMConfig
    config: LLM2SLMConfig
    slm: PreTrainedModel
    mode: Conditioning
    kind: SystemKind
    control: Control
    pads_left: bool
    working_dtype: str
    llm_path: str | None
    card: tuple[str, str] | None
    processor: LLM2SLMProcessor

    @property
    def conditioning(self) -> str:
        """Name of the conditioning."""
        return self.mode.name

    @property
    def collator(self) -> Collator:
        """Converts texts to `Batch` and response ids to texts."""
        return self.processor.collator

    def trainable_names(self) -> set[str]:
        """Names of the parameters that training may change: those of projector and SLM."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def parameter_counts(self) -> dict[str, int]:
        """Numbers of parameters: total (including an LLM that is replaced by a store) and trainable."""
        counts = [(number, parameter.requires_grad) for parameter, number in weights_in(self)]
        unloaded = self.encoder.unloaded if isinstance(self.encoder, StoredEncoder) else 0
        return {"total": sum(n for n, _ in counts) + unloaded, "trainable": sum(n for n, trained in counts if trained)}
