"""The interface of `LLM2SLM` that transformers expects: `forward` for its Trainer, state dicts, save, load and Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import Seq2SeqLMOutput

from llm2slm.models import saving
from llm2slm.models.parts import Parts
from llm2slm.types import IGNORE_INDEX, INPUTS, Batch, Reps

FROM_AUTO = {"config", "trust_remote_code", "_from_auto", "_commit_hash", "adapter_kwargs"}
"""Arguments that transformers' Auto classes pass to `from_pretrained` themselves."""
FROM_TRAINER = {"state_dict", "max_shard_size", "safe_serialization", "variant", "token", "save_peft_format"}
"""Arguments that transformers' Trainer passes to `save_pretrained`."""


class TransformersInterface(Parts):
    """Methods of a `PreTrainedModel` in terms of the model's `logits`."""

    base_model_prefix = "llm2slm"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # num_items_in_batch

    def logits(self, batch: Batch, reps: Reps | None = None) -> Tensor:
        """Teacher-forced logits_BTV."""
        raise NotImplementedError

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
        """Loss and teacher-forced logits, as transformers' Trainer expects them.

        Args:
            input_ids, attention_mask, ..., alignment: tensors of `LLM2SLMProcessor`; `INPUTS` maps their names.
            labels: the response, padded with -100.
            num_items_in_batch: divides the summed loss; None: the number of response tokens in the batch.
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
        """A `Batch` of tensors under transformers' names (`INPUTS`). A missing mask is all ones.

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
        fields: dict[str, Any] = {field: found[name] for name, field in INPUTS.items() if name in found}
        return Batch(**fields)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch does; without an LLM, names of a plain transformers model are accepted too.

        Raises:
            ValueError: a tensor is missing or unexpected, even with strict=False. transformers' Trainer would continue
                without it, as with LoRA, whose saved weights are merged.
        """
        if self.projector is None and not any(name.startswith("slm.") for name in state_dict):
            state_dict = {f"slm.{name}": tensor for name, tensor in state_dict.items()}
        found = super().load_state_dict(state_dict, strict, assign)
        kept = self.state_dict(keep_vars=True)
        loaded = {id(kept[name]) for name in state_dict if name in kept}
        wrong = [*found.unexpected_keys, *(n for n in found.missing_keys if id(kept.get(n)) not in loaded)]
        if wrong:
            raise ValueError(
                f"these weights do not match the model, as {wrong[0]}; a model with LoRA adapters cannot continue from "
                "saved weights, in which they are merged: load it by from_pretrained, or resume with llm2slm train"
            )
        return found

    def save_pretrained(
        self, save_directory: str | Path, with_llm: bool = False, is_main_process: bool = True, **others: Any
    ) -> None:
        """Writes config, weights (SLM and projector only) and processor; without an LLM a plain transformers folder.

        Args:
            with_llm: also write the used part of the LLM, so that the folder is complete.
            is_main_process: of several processes, only this one writes.
            others: arguments of transformers' Trainer, without effect.

        Raises:
            TypeError: an argument that would change what is written.
        """
        unknown = sorted(others.keys() - FROM_TRAINER)
        if unknown:
            raise TypeError(f"LLM2SLM.save_pretrained takes save_directory and with_llm, not {', '.join(unknown)}")
        if is_main_process:
            saving.save(self, Path(save_directory), with_llm=with_llm)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, llm: str | Path | None = None, revision: str | None = None, **others: Any
    ) -> Self:
        """Loads a trained system, its tokenizers and its LLM.

        Args:
            name: folder or Hub id of a saved hybrid, or of any transformers language model (a system without an LLM).
            llm: folder or Hub id of the LLM, if it is not at its recorded name.
            others: arguments of transformers' Auto classes, without effect.

        Raises:
            UserError: the model cannot be read; the LLM is missing or not the recorded one; or a tensor is missing,
                unexpected, or of another shape.
            TypeError: an argument that would change how it is loaded.
        """
        unknown = sorted(others.keys() - FROM_AUTO)
        if unknown:
            raise TypeError(f"LLM2SLM.from_pretrained takes name, llm and revision, not {', '.join(unknown)}")
        given = getattr(others.get("config"), "llm", None)
        if llm is None and isinstance(given, str):  # AutoConfig takes llm= for a field of the config
            llm = given
        return saving.load(cls, str(name), None if llm is None else str(llm), revision)

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
        """Uploads weights, processor and model card to a repository of the Hub.

        Args:
            repo_id: as "me/my-model"; created if it does not exist (`private`: visible to its owner only).
            with_llm: as for `save_pretrained`; None: if the model was loaded so. revision: a branch.

        Returns:
            The address of the commit.
        """
        came_with = (self.config.llm or {}).get("name") == saving.INSIDE
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, with_llm=came_with if with_llm is None else with_llm)
            return saving.push(
                Path(folder), repo_id, private=private, revision=revision, message=commit_message, token=token
            )
