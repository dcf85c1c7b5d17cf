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
from transformers.utils import ModelOutput

from llm2slm.models import saving
from llm2slm.models.delegation import Delegation
from llm2slm.models.placement import chosen_dtype, place
from llm2slm.types import IGNORE_INDEX, INPUTS, Batch, Reps, UserError

FROM_AUTO = {"config", "trust_remote_code", "_from_auto", "_commit_hash", "adapter_kwargs"}
"""Arguments that transformers' Auto classes pass to `from_pretrained` themselves."""
FROM_TRAINER = {"state_dict", "max_shard_size", "safe_serialization", "variant", "token", "save_peft_format"}
"""Arguments that transformers' Trainer passes to `save_pretrained`."""


class TransformersInterface(Delegation):
    """Methods of a `PreTrainedModel` in terms of the model's `logits`."""

    base_model_prefix = "llm2slm"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # num_items_in_batch

    def teacher_forced(
        self, batch: Batch, reps: Reps | None = None, decoder_ids_BT: Tensor | None = None, **wanted: Any
    ) -> ModelOutput:
        """The SLM's output under teacher forcing, as `slm.response_output`."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        llm_input_ids: Tensor | None = None,
        llm_attention_mask: Tensor | None = None,
        alignment: Tensor | None = None,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Loss and teacher-forced logits, as transformers' Trainer expects them.

        Args:
            input_ids, attention_mask, ..., alignment: tensors of `LLM2SLMProcessor`; `INPUTS` maps their names.
            labels: the response, padded with -100; without them there is no loss.
            decoder_input_ids: what `prepare_decoder_input_ids_from_labels` returns; None: derived from the labels.
            num_items_in_batch: divides the summed loss; None: the number of response tokens in the batch.
            output_attentions, output_hidden_states: also return the SLM's, as `decoder_attentions`, ...; those of a
                decoder-only SLM are over its whole input. None: as the config has it.
            return_dict: False: return a tuple.

        Raises:
            TypeError: an argument that the model does not take, as inputs_embeds.
            UserError: output_attentions with an attention implementation that returns none.
        """
        given = sorted(name for name, value in others.items() if value is not None)
        if given:
            raise TypeError(
                f"LLM2SLM.forward does not take {', '.join(given)}; give the tensors of its processor (peft's prompt "
                "and prefix tuning are model.slm.tune=prompt and prefix of build_model)"
            )
        response = labels
        if decoder_input_ids is not None:  # the token after the last has no effect
            response = torch.cat([decoder_input_ids[:, 1:], torch.full_like(decoder_input_ids[:, :1], -100)], dim=1)
        batch = self.batch_of(
            input_ids=input_ids, attention_mask=attention_mask, llm_input_ids=llm_input_ids,
            llm_attention_mask=llm_attention_mask, alignment=alignment, labels=response,
        )  # fmt: skip
        output = self.teacher_forced(
            batch, None, decoder_input_ids, **self._wanted(output_attentions, output_hidden_states)
        )
        loss = None
        if labels is not None:
            summed = cross_entropy(
                output.logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
            )
            loss = summed / ((labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch)
        found = Seq2SeqLMOutput(loss=loss, logits=output.logits, **_states(output))
        return found.to_tuple() if (self.config.return_dict if return_dict is None else return_dict) is False else found

    def _wanted(self, attentions: bool | None, hidden_states: bool | None) -> dict[str, bool]:
        """What the SLM is to return besides logits; values that are None are those of the config."""
        values = {"output_attentions": attentions, "output_hidden_states": hidden_states}
        wanted = {name: getattr(self.config, name) if value is None else value for name, value in values.items()}
        used = self.slm.config._attn_implementation
        if wanted["output_attentions"] and used != "eager":
            raise UserError(
                f"output_attentions: the SLM's attention implementation is {used}, which returns no attentions; call "
                "model.set_attn_implementation('eager'), or load the model with attn_implementation='eager'"
            )
        return {name: True for name, value in wanted.items() if value}

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
        cls,
        name: str | Path | None = None,
        llm: str | Path | None = None,
        revision: str | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        offload_folder: str | Path | None = None,
        output_loading_info: bool = False,
        **others: Any,
    ) -> Self:
        """Loads a trained system, its tokenizers and its LLM.

        Args:
            name: folder or Hub id of a saved hybrid, or of any transformers language model (a system without an LLM);
                also as `pretrained_model_name_or_path`.
            llm: folder or Hub id of the LLM, if it is not at its recorded name.
            dtype: of the SLM (torch.bfloat16, "bfloat16", ...); None or "auto": the stored one. The LLM keeps the dtype
                that the model was trained with, to which its fingerprint belongs; the projector computes in float32.
            attn_implementation: of SLM and LLM, as for `set_attn_implementation`.
            device_map, max_memory, offload_folder: devices, as in transformers (`placement.place`).
            output_loading_info: also return a dict of missing, unexpected and mismatched keys. They are empty, as such
                keys are errors.
            others: arguments of transformers' Auto classes, without effect.

        Returns:
            The model, in eval mode.

        Raises:
            UserError: the model cannot be read; the LLM is missing or not the recorded one; or a tensor is missing,
                unexpected, or of another shape.
            TypeError: an argument that would change how it is loaded.
        """
        older = others.pop("torch_dtype", None)  # transformers' earlier name of dtype
        name = others.pop("pretrained_model_name_or_path", name)
        if name is None:
            raise TypeError("LLM2SLM.from_pretrained needs the name of a saved model: a folder or Hub id")
        unknown = sorted(others.keys() - FROM_AUTO)
        if unknown:
            raise TypeError(
                "LLM2SLM.from_pretrained takes name, llm, revision, dtype, attn_implementation, device_map, "
                f"max_memory, offload_folder and output_loading_info, not {', '.join(unknown)}"
            )
        given = getattr(others.get("config"), "llm", None)
        if llm is None and isinstance(given, str):  # AutoConfig takes llm= for a field of the config
            llm = given
        used = chosen_dtype(older if dtype is None else dtype)
        model = saving.load(cls, str(name), None if llm is None else str(llm), revision, used)
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        if device_map is not None:
            place(model, device_map, max_memory, offload_folder)
        if not output_loading_info:
            return model
        info: dict[str, Any] = {name: set() for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        info["error_msgs"] = []
        return model, info  # type: ignore[return-value]

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


def _states(output: ModelOutput) -> dict[str, Any]:
    """Hidden states and attentions of an SLM's output under the names of `Seq2SeqLMOutput`, where there are any."""
    names = {"hidden_states": "decoder_hidden_states", "attentions": "decoder_attentions"}
    kept = (*names, *names.values(), "cross_attentions", "encoder_hidden_states", "encoder_attentions")
    found = {names.get(name, name): output[name] for name in kept if output.get(name)}  # GPT-2: an empty tuple
    if found:
        found["encoder_last_hidden_state"] = output.get("encoder_last_hidden_state")
    return found
