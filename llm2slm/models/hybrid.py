"""LLM2SLM, the model: a frozen LLM encodes the prompt, an SLM conditioned on its representations generates.

LLM-to-SLM generation after Bergner et al. 2024, "Think Big, Generate Quick" (arXiv 2402.16844). Three operations:
`prefill` (batch -> `Prompt`), teacher-forced `logits`, and `generate`. An LLM or SLM alone is the same class with
conditioning `none`, so that all systems train, decode and are timed by the same code.

The interface to transformers (Trainer, save, load, Hub) is in `transformers_interface`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoProcessor, GenerationConfig, PreTrainedModel
from transformers.utils import ModelOutput

from llm2slm.data.interface import LLM2SLMProcessor
from llm2slm.models import conditioning
from llm2slm.models import slm as language_model
from llm2slm.models.ablation import RepsAblation
from llm2slm.models.encoder import keep_out_of_state_dicts
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.projector import Projector
from llm2slm.models.prompt import Prompt, embed
from llm2slm.models.stored_encoder import PromptEncoder
from llm2slm.models.transformers_interface import TransformersInterface
from llm2slm.types import INPUTS, Batch, Control, Reps, SystemKind, Tokenizers, UserError


class LLM2SLM(TransformersInterface):
    """A small language model guided by a frozen LLM.

    Args:
        slm: the model that generates. encoder: the LLM, or a store of its representations; None: no LLM.

    Attributes:
        projector, crossing, ...: modules of the conditioning (`Conditioning.modules`); None if it has none.
        ablation: replaces the LLM's representations where `config.control` is set; None without an LLM.
        label: name of the system in results: its kind, and its control if set.

    Raises:
        UserError: the SLM does not fit the conditioning.
    """

    def __init__(self, config: LLM2SLMConfig, slm: PreTrainedModel, encoder: PromptEncoder | None = None) -> None:
        super().__init__(config)
        config.slm = slm.config  # one object: what transformers changes in one (vocabulary, attention) is saved
        self.slm, self.encoder = language_model.contiguous_head(slm), encoder
        self.working_dtype = str(slm.dtype).removeprefix("torch.")
        self.llm_path, self.card = None, None
        self.mode = conditioning.get(config.conditioning)
        self.kind, self.control = SystemKind(config.kind), Control(config.control)
        self.label = self.kind.value if self.control is Control.none else f"{self.kind}, {self.control}"
        self.pads_left = not slm.config.is_encoder_decoder and not self.mode.cross_attends
        self.projector: nn.Module | None = None
        self.crossing: nn.Module | None = None
        self.ablation: RepsAblation | None = None
        if encoder is not None:
            width, in_place = encoder.width * len(encoder.layers), self.mode.token_by_token(config)
            self.ablation = RepsAblation(self.control, width, in_place=in_place)
        for name, module in self.mode.modules(config, slm, encoder).items():
            setattr(self, name, module)
        keep_out_of_state_dicts(self)
        self.remember_encoder()
        self.post_init()

    # Prefill

    def represent(self, batch: Batch) -> Reps:
        """The LLM's representations of a batch's prompts, without ablation."""
        if self.encoder is None or batch.llm_ids_BP is None or batch.llm_mask_BP is None:
            raise ValueError("this system, or this batch, has no LLM to compute representations with")
        return self.encoder(batch.llm_ids_BP, batch.llm_mask_BP)  # type: ignore[no-any-return]

    def prefill(self, batch: Batch, reps: Reps | None = None) -> Prompt:
        """The SLM's input for a batch's prompts: all computation before its first forward pass.

        Args:
            reps: the LLM's representations, if they are known; else they are computed. An ablation applies to both.
        """
        if self.projector is None or self.ablation is None:
            return self.mode.prompt(self, batch, None)  # type: ignore[arg-type]
        reps, zero_BP = self.ablation(batch, reps, self.represent)
        # the projector may be float32, the SLM bfloat16, and accelerate may have put them on several devices
        z_BPD = self.projector(reps.reps_BPE).to(batch.slm_ids_BQ.device, self.slm.dtype)
        if zero_BP is not None:
            z_BPD = z_BPD.masked_fill(zero_BP.unsqueeze(-1), 0)
        return self.mode.prompt(self, batch, Reps(z_BPD, reps.mask_BP))

    def prompt_embeddings(self, batch: Batch, z: Reps) -> Tensor:
        """embeds_BQD of the prompt: the SLM's, or with tokenizers `llm_tokens` the LLM's, mapped to width D."""
        if self.config.tokenizers != Tokenizers.llm_tokens:
            return embed(self.slm, batch.slm_ids_BQ)
        if not isinstance(self.projector, Projector) or self.encoder is None or self.projector.tokens is None:
            return torch.zeros_like(z.reps_BPE)  # a conditioning that does not use them (`reads_embeddings`)
        return self.projector.embed(self.encoder.embed(batch.slm_ids_BQ)).to(z.reps_BPE.dtype)

    def attending(self, prompt: Prompt) -> AbstractContextManager[None]:
        """The context in which the SLM's forward passes attend to the prompt."""
        return self.mode.attending(self, prompt)

    # Generation

    def logits(self, batch: Batch, reps: Reps | None = None) -> Tensor:
        """Teacher-forced logits_BTV.

        Args:
            reps: as for `prefill`.

        Raises:
            ValueError: the batch has no labels.
        """
        logits_BTV: Tensor = self.teacher_forced(batch, reps).logits
        return logits_BTV

    def teacher_forced(
        self, batch: Batch, reps: Reps | None = None, decoder_ids_BT: Tensor | None = None, **wanted: Any
    ) -> ModelOutput:
        """The SLM's output under teacher forcing; decoder_ids_BT and wanted as for `slm.response_output`."""
        if batch.labels_BT is None:
            raise ValueError(
                "this batch has no labels: to generate, use generate; for the Trainer's label_smoothing_factor, add "
                "decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels) to each batch"
            )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.keep_frozen()
        prompt = self.prefill(batch, reps)
        with self.attending(prompt):
            return language_model.response_output(self.slm, prompt, batch.labels_BT, decoder_ids_BT, **wanted)

    @torch.no_grad()
    def generate(
        self,
        batch: Batch | Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        reps: Reps | None = None,
        **arguments: Any,
    ) -> Any:
        """Responses to a batch of prompts; `arguments` are those of transformers' `generate`.

        Lengths are those of the response: the returned ids never contain the prompt, for any SLM.

        Args:
            batch: the prompts. Or input_ids or None, with the processor's other tensors among the arguments.
            generation_config: values for arguments that are not given; None: the model's, greedy by default.
            reps: as for `prefill`.

        Returns:
            ids_BT, response tokens padded on the right (rows x num_return_sequences of them); with
            return_dict_in_generate=True transformers' output object, with `sequences` of response tokens.
        """
        if not isinstance(batch, Batch):
            inputs = {name: arguments.pop(name) for name in INPUTS if name in arguments}
            inputs.pop("labels", None)  # passed by Seq2SeqTrainer
            batch = self.batch_of(**inputs if batch is None else inputs | {"input_ids": batch})
        config = self.generation_config if generation_config is None else generation_config
        if "stop_strings" in arguments or config.stop_strings:
            arguments.setdefault("tokenizer", self.collator.slm_tokenizer)  # which transformers requires for them
        prompt = self.prefill(batch, reps)
        with self.attending(prompt):
            return language_model.generate(self.slm, prompt, generation_config, **arguments)

    @property
    def generation_config(self) -> GenerationConfig:
        """The SLM's."""
        return self.slm.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if "slm" in self._modules:  # else transformers' constructor sets one that it derives from the config
            self.slm.generation_config = value

    def generate_text(self, texts: Sequence[str], batch_size: int = 32, **arguments: Any) -> list[str]:
        """Responses to texts, in order; the `num_return_sequences` responses to one text are consecutive.

        Args:
            texts: prompts as in training, prefix included.
            arguments: of transformers' `generate`, as max_new_tokens=64, num_beams=4.
        """
        if isinstance(texts, str):
            raise UserError("generate_text takes a list of texts; for a single one write [text]")
        was_training = self.training
        self.eval()
        responses: list[str] = []
        try:
            for start in range(0, len(texts), batch_size):
                batch = self.collator.batch_of_texts(texts[start : start + batch_size]).to(self.device)
                ids = self.generate(batch, **arguments)
                responses += self.collator.decode(getattr(ids, "sequences", ids))
        finally:
            self.train(was_training)
        return responses


AutoModel.register(LLM2SLMConfig, LLM2SLM)
AutoModelForSeq2SeqLM.register(LLM2SLMConfig, LLM2SLM)
AutoProcessor.register(LLM2SLMConfig, LLM2SLMProcessor)
