"""LLM2SLM: the model that joins the four parts (encoder, projector, conditioning, SLM), and its save and load.

LLM-to-SLM generation after Bergner et al. 2024, "Think Big, Generate Quick" (arXiv 2402.16844). An LLM alone and an
SLM alone are the same class without guidance (conditioning `none`): all three read, train, decode and are timed by one
code.

What is kept of it, and how, is in `saving`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import Seq2SeqLMOutput

from llm2slm.data.collate import Collator
from llm2slm.data.processor import LLM2SLMProcessor
from llm2slm.models import conditioning as modes
from llm2slm.models import kv
from llm2slm.models import slm as writer
from llm2slm.models.control import Teller
from llm2slm.models.crossing import Crossing
from llm2slm.models.encoder import keep_out_of_state_dicts
from llm2slm.models.frozen import KeepsReaderFrozen
from llm2slm.models.gguf import weights_in
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.kv import CacheMap
from llm2slm.models.projector import Projector
from llm2slm.models.stored import Reader, StoredReader
from llm2slm.types import IGNORE_INDEX, INPUTS, Batch, Conditioning, Control, Reps, SystemKind, Tokenizers, UserError

FROM_AUTO = {"config", "trust_remote_code", "_from_auto", "_commit_hash", "adapter_kwargs"}
FROM_TRAINER = {"state_dict", "max_shard_size", "safe_serialization", "variant", "token", "save_peft_format"}
OWN_EMBEDDINGS = (Conditioning.add, Conditioning.prepend, Conditioning.cross_attention)
"""Ways of conditioning in which the SLM reads embeddings of the prompt's tokens as well."""


class LLM2SLM(KeepsReaderFrozen):
    """A frozen LLM's reading guides a small language model's writing.

    Attributes:
        slm: the writer, a transformers model; projector, encoder, teller: None without guidance.
        label: what results call it: its kind, and its control if it is one.
        llm_place: where the LLM was found, if not where the config says.
        card: the model card that it came with, and the fingerprint of the weights that it tells of.
        processor: both tokenizers and how texts become batches; attached by whoever builds or loads the model.
    """

    config_class = LLM2SLMConfig
    config: LLM2SLMConfig
    base_model_prefix = "llm2slm"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # num_items_in_batch
    processor: LLM2SLMProcessor

    def __init__(self, config: LLM2SLMConfig, slm: PreTrainedModel, encoder: Reader | None = None) -> None:
        super().__init__(config)
        self.slm = writer.contiguous_head(slm)
        self.working_dtype = str(slm.dtype).removeprefix("torch.")  # weights halved later on are so for storage
        self.encoder = encoder
        self.llm_place: str | None = None
        self.card: tuple[str, str] | None = None
        self.conditioning = Conditioning(config.conditioning)
        self.kind, self.control = SystemKind(config.kind), Control(config.control)
        self.label = self.kind.value if self.control is Control.none else f"{self.kind}, {self.control}"
        attends = self.conditioning is Conditioning.memory
        self.pads_left = not slm.config.is_encoder_decoder and not attends  # prompt and response are one sequence
        self.projector: Projector | CacheMap | None = None
        self.teller: Teller | None = None
        if encoder is not None:
            width = encoder.width * len(encoder.layers)
            mapped = bool((config.kv or {}).get("mapped"))
            self.teller = Teller(self.control, width, in_place=mapped or self.conditioning in modes.IN_PLACE)
            if self.conditioning is Conditioning.kv:
                self.projector = kv.cache_map(slm, encoder, mapped)
            else:
                llm_tokens = config.tokenizers == Tokenizers.llm_tokens and self.conditioning in OWN_EMBEDDINGS
                self.projector = Projector(
                    *(encoder.width, slm.get_input_embeddings().embedding_dim),
                    layers=len(encoder.layers),
                    embeddings=encoder.embedding_width if llm_tokens else 0,
                    **(config.projector or {}),
                )
        self.crossing: Crossing | None = None
        if self.conditioning is Conditioning.cross_attention:
            self.crossing = Crossing(slm, config.cross_every)
        if attends and slm.config.is_encoder_decoder:
            writer.drop_encoder(slm)
        elif not attends:
            writer.embed_scale(slm)  # refuses, before anything is trained, what `embed` cannot serve
        keep_out_of_state_dicts(self)
        self.remember_reader()

    @property
    def collator(self) -> Collator:
        """Text to `Batch` and back."""
        return self.processor.collator

    # Reading

    def represent(self, batch: Batch) -> Reps:
        """The LLM's reading of a batch's prompts, whatever a control makes of it (`read`)."""
        if self.encoder is None or batch.llm_ids_BP is None or batch.llm_mask_BP is None:
            raise ValueError("representations were asked of a system, or for a batch, without an LLM")
        return self.encoder(batch.llm_ids_BP, batch.llm_mask_BP)  # type: ignore[no-any-return]

    def read(self, batch: Batch, reps: Reps | None = None) -> writer.Prompt:
        """Everything before the first response token, up to the writer's own network.

        Args:
            reps: the LLM's representations where they are known already; else they are computed. A control acts on
                them all the same.
        """
        if self.projector is None or self.teller is None:
            return writer.Prompt(writer.embed(self.slm, batch.slm_ids_BQ), batch.slm_mask_BQ)
        reps, silent_BP = self.teller(batch, reps, self.represent)
        dtype = self.slm.dtype  # the projector keeps float32 beside a bfloat16 SLM
        z_BPD = self.projector(reps.reps_BPE).to(dtype)
        if silent_BP is not None:
            z_BPD = z_BPD.masked_fill(silent_BP.unsqueeze(-1), 0)
        if isinstance(self.projector, CacheMap):
            return kv.prompt(self.slm, self.projector, batch, Reps(z_BPD, reps.mask_BP))
        if self.conditioning is Conditioning.memory:
            return writer.Prompt(z_BPD, reps.mask_BP, encoded=True)
        embeds_BQD, mask_BQ = self._prompt_embeddings(batch, z_BPD), batch.slm_mask_BQ
        if self.conditioning is Conditioning.cross_attention:
            return writer.Prompt(embeds_BQD, mask_BQ, beside=Reps(z_BPD, reps.mask_BP))
        if self.conditioning is Conditioning.prepend:
            mask_BP, size = reps.mask_BP, self.config.pool
            if size is not None:
                z_BPD, mask_BP = modes.pool(z_BPD, mask_BP, size)
            joined = modes.prepend(embeds_BQD, mask_BQ, z_BPD, mask_BP, pad_left=self.pads_left)
            return writer.Prompt(*joined)
        mix = modes.add if self.conditioning is Conditioning.add else modes.replace
        return writer.Prompt(mix(embeds_BQD, modes.align(z_BPD, batch.align_BQP), mask_BQ), mask_BQ)

    def _prompt_embeddings(self, batch: Batch, z_BPD: Tensor) -> Tensor:
        """embeds_BQD of the prompt: the SLM's own, or the LLM's, mapped (tokenizers `llm_tokens`)."""
        if self.config.tokenizers != Tokenizers.llm_tokens:
            return writer.embed(self.slm, batch.slm_ids_BQ)
        if not isinstance(self.projector, Projector) or self.encoder is None or self.projector.tokens is None:
            return torch.zeros_like(z_BPD)  # conditioning `replace`, which leaves nothing of them
        return self.projector.embed(self.encoder.embed(batch.slm_ids_BQ)).to(z_BPD.dtype)

    def _attending(self, prompt: writer.Prompt) -> AbstractContextManager[None]:
        if self.crossing is None or prompt.beside is None:
            return nullcontext()
        return self.crossing.attending(prompt.beside.reps_BPE, prompt.beside.mask_BP)

    # Writing

    def logits(self, batch: Batch, reps: Reps | None = None) -> Tensor:
        """Teacher-forced logits_BTV of a batch that has labels."""
        if batch.labels_BT is None:
            raise ValueError("this batch has no labels: to answer use generate (the Trainer's label_smoothing_factor "
                             "takes them out of the batch, so it cannot be used)")  # fmt: skip
        if torch.is_grad_enabled():
            self.keep_frozen()
        prompt = self.read(batch, reps)
        with self._attending(prompt):
            return writer.response_logits(self.slm, prompt, batch.labels_BT)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        llm_input_ids: Tensor | None = None,
        llm_attention_mask: Tensor | None = None,
        alignment: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Seq2SeqLMOutput:
        """Loss and teacher-forced logits in transformers' words: what its Trainer calls.

        Args:
            input_ids ... alignment: what `LLM2SLMProcessor` gives; `INPUTS` says what they are to us.
            labels: the response, padded with -100.
            num_items_in_batch: divides the summed loss; None: the batch's own response tokens.
        """
        batch = self.batch_of(
            input_ids=input_ids, attention_mask=attention_mask, llm_input_ids=llm_input_ids,
            llm_attention_mask=llm_attention_mask, alignment=alignment, labels=labels,
        )  # fmt: skip
        logits_BTV = self.logits(batch)
        assert labels is not None
        loss = cross_entropy(
            logits_BTV.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        items = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        return Seq2SeqLMOutput(loss=loss / items, logits=logits_BTV)

    def batch_of(self, **inputs: Tensor | None) -> Batch:
        """A `Batch` of tensors under transformers' names (`INPUTS`). Masks that are not given are all ones.

        Raises:
            ValueError: the prompt, the LLM's prompt or the alignment is missing.
        """
        ids = inputs.get("input_ids")
        if ids is None:
            raise ValueError("input_ids are missing: give what the processor gives, model.generate(**processor(text))")
        found = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        found.setdefault("attention_mask", torch.ones_like(ids))
        if self.encoder is not None and "llm_input_ids" not in found:
            if not self.collator.one_prompt:
                raise ValueError("llm_input_ids are missing: this model's LLM reads other tokens; use its processor")
            found |= {"llm_input_ids": ids, "llm_attention_mask": found["attention_mask"]}
        if self.collator.align and "alignment" not in found:
            raise ValueError("alignment is missing: this model's tokenizers differ; use its processor")
        if "llm_input_ids" in found:
            found.setdefault("llm_attention_mask", torch.ones_like(found["llm_input_ids"]))
        own: dict[str, Any] = {own: found[name] for name, own in INPUTS.items() if name in found}
        return Batch(**own)

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

        What they leave open, `generation_config` says (None: the model's own, which is greedy unless set otherwise).
        Lengths are those of the response: the prompt is no part of what comes back, whatever the SLM is.

        Args:
            batch: the prompts; or (None, or input_ids) they are among the arguments, as a processor gives them.
            reps: the LLM's representations where they are known already; else they are computed.

        Returns:
            ids_BT, response tokens only, padded on the right (rows x num_return_sequences of them); transformers'
            output object, its `sequences` of response tokens, with return_dict_in_generate=True.
        """
        if not isinstance(batch, Batch):
            inputs = {name: arguments.pop(name) for name in INPUTS if name in arguments}
            inputs.pop("labels", None)  # Seq2SeqTrainer hands them over as well
            batch = self.batch_of(**inputs if batch is None else inputs | {"input_ids": batch})
        config = self.generation_config if generation_config is None else generation_config
        if "stop_strings" in arguments or config.stop_strings:
            arguments.setdefault("tokenizer", self.collator.slm_tokenizer)  # transformers wants to know whose they are
        prompt = self.read(batch, reps)
        with self._attending(prompt):
            return writer.generate(self.slm, prompt, generation_config, **arguments)

    @property
    def generation_config(self) -> GenerationConfig:
        """The SLM's."""
        return self.slm.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self.slm.generation_config = value

    def generate_text(self, texts: Sequence[str], batch_size: int = 32, **arguments: Any) -> list[str]:
        """Responses to texts, in order (each text's `num_return_sequences` answers one after the other).

        Args:
            texts: prompts as the model was trained to read them, prefix included.
            arguments: of transformers' `generate`, as max_new_tokens=64, num_beams=4.
        """
        if isinstance(texts, str):
            raise UserError("generate_text takes a list of texts; for a single one write [text]")
        was_training = self.training
        self.eval()
        answers: list[str] = []
        try:
            for start in range(0, len(texts), batch_size):
                batch = self.collator.batch_of_texts(texts[start : start + batch_size]).to(self.device)
                ids = self.generate(batch, **arguments)
                answers += self.collator.decode(getattr(ids, "sequences", ids))
        finally:
            self.train(was_training)
        return answers

    # What is trained, and where it is kept

    def trainable_names(self) -> set[str]:
        """Names of the parameters that training may change: projector and SLM, nothing else."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def parameter_counts(self) -> dict[str, int]:
        """Numbers of parameters: total (the reader included, loaded or not) and trainable."""
        counts = [(number, parameter.requires_grad) for parameter, number in weights_in(self)]
        unloaded = self.encoder.unloaded if isinstance(self.encoder, StoredReader) else 0
        return {"total": sum(n for n, _ in counts) + unloaded, "trainable": sum(n for n, trained in counts if trained)}

    def save_pretrained(
        self, save_directory: str | Path, with_llm: bool = False, is_main_process: bool = True, **others: Any
    ) -> None:
        """Writes config, weights (SLM and projector only) and processor. Unguided: a plain transformers folder.

        Args:
            with_llm: also write the used part of the LLM, so that the folder needs nothing else.
            is_main_process: of several processes, only this one writes.
            others: what transformers' Trainer hands over beside them; what is written does not depend on it.

        Raises:
            TypeError: an argument that would change what is written.
        """
        unknown = sorted(others.keys() - FROM_TRAINER)
        if unknown:
            raise TypeError(f"LLM2SLM.save_pretrained takes save_directory and with_llm, not {', '.join(unknown)}")
        from llm2slm.models.saving import save

        if is_main_process:
            save(self, Path(save_directory), with_llm=with_llm)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch does; also of a saved folder's weights, whose names are those of a plain model without guidance.

        Raises:
            ValueError: strict=False, and a tensor is missing or unexpected all the same. transformers' Trainer would go
                on without it: so it is with LoRA, whose saved weights are merged.
        """
        if self.projector is None and not any(name.startswith("slm.") for name in state_dict):
            state_dict = {f"slm.{name}": tensor for name, tensor in state_dict.items()}
        found = super().load_state_dict(state_dict, strict, assign)
        kept = self.state_dict(keep_vars=True)
        loaded = {id(kept[name]) for name in state_dict if name in kept}
        wrong = [*found.unexpected_keys, *(n for n in found.missing_keys if id(kept.get(n)) not in loaded)]
        if wrong:
            raise ValueError(
                f"these weights are not all of this model, as {wrong[0]}; a model with LoRA adapters cannot go on from "
                "saved weights, in which they are merged: load it by from_pretrained, or resume with llm2slm train"
            )
        return found

    @classmethod
    def from_pretrained(
        cls, name: str | Path, llm: str | Path | None = None, revision: str | None = None, **others: Any
    ) -> Self:
        """Loads a trained system, its tokenizers and its LLM.

        Args:
            name: folder or Hub id: of a hybrid, or of any transformers language model (an unguided system).
            llm: folder or Hub id of the LLM, where it is not at its recorded place.
            others: what transformers' `AutoModel` hands over beside them; it adds nothing to what the folder says.

        Raises:
            UserError: nothing there, the LLM is missing or not the one it was trained with, or a tensor is missing,
                unexpected, or of another shape.
            TypeError: an argument that would change how it is loaded.
        """
        unknown = sorted(others.keys() - FROM_AUTO)
        if unknown:
            raise TypeError(f"LLM2SLM.from_pretrained takes name, llm and revision, not {', '.join(unknown)}")
        from llm2slm.models.saving import load

        told = getattr(others.get("config"), "llm", None)
        if llm is None and isinstance(told, str):  # AutoConfig takes llm= for a field of the config
            llm = told
        return load(cls, str(name), None if llm is None else str(llm), revision)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        with_llm: bool | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        token: bool | str | None = None,
    ) -> str:
        """Saves the model into a repository of the Hub: weights, processor and model card.

        Args:
            repo_id: as "me/my-model"; made if it is not there (`private`: then only for oneself).
            with_llm: as for `save_pretrained`; None: if it came with its LLM. revision: a branch.

        Returns:
            The address of the commit.
        """
        from llm2slm.models.saving import INSIDE, push

        came_with = (self.config.llm or {}).get("name") == INSIDE
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, with_llm=came_with if with_llm is None else with_llm)
            return push(Path(folder), repo_id, private=private, revision=revision, message=commit_message, token=token)


AutoModel.register(LLM2SLMConfig, LLM2SLM)
AutoModelForSeq2SeqLM.register(LLM2SLMConfig, LLM2SLM)
AutoProcessor.register(LLM2SLMConfig, LLM2SLMProcessor)
