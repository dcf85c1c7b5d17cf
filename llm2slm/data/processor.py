"""LLM2SLMProcessor: the transformers processor of a hybrid, saved and loaded with the model.

It wraps the hybrid's `Collator` in transformers' interface, for `AutoProcessor`, the Trainer, and
`model.generate(**processor(text))`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import PROCESSOR_NAME, cached_file

from llm2slm.atomic import filling
from llm2slm.data.collate import LLM_TOKENIZER, Collator
from llm2slm.data.padding import padded_alignment, padded_inputs, padded_labels
from llm2slm.data.tokenization.prompts import Frame
from llm2slm.data.tokenization.tokenizer import load_tokenizer
from llm2slm.types import INPUTS, Example, Overlong, UserError


class LLM2SLMProcessor(ProcessorMixin):
    """Both tokenizers of a hybrid and the conversion between texts and tensors.

    Args:
        tokenizer: of the SLM.
        llm_tokenizer: of the LLM; the same object if both models share it; None without an LLM.
        settings: the other arguments of `Collator`, as plain values.

    Attributes:
        collator: the `Collator` with these arguments.
    """

    def __init__(self, tokenizer: Any, llm_tokenizer: Any = None, **settings: Any) -> None:
        self.tokenizer = tokenizer
        self.llm_tokenizer = llm_tokenizer
        self.chat_template = None
        frame = settings.get("llm_frame")
        self.collator = Collator(
            tokenizer,
            llm_tokenizer,
            **settings
            | {"llm_frame": Frame(**frame) if isinstance(frame, dict) else frame}
            | {"overlong": Overlong(settings.get("overlong", "error"))},
        )
        self.settings = settings | {"llm_frame": asdict(frame) if isinstance(frame, Frame) else frame}

    def __call__(
        self, text: str | Sequence[str], text_target: str | Sequence[str] | None = None, return_tensors: str = "pt"
    ) -> BatchFeature:
        """A batch of prompts (prefix included), with `labels` if responses are given.

        Args:
            text: one prompt or several; text_target: the responses to them.
            return_tensors: only "pt".

        Returns:
            input_ids, attention_mask (the SLM's prompt); llm_input_ids, llm_attention_mask, alignment and labels
            if present: arguments of `LLM2SLM.forward` and `generate`.

        Raises:
            UserError: a text is longer than the limits allow; with overlong=drop only a prompt without a target.
        """
        if return_tensors != "pt":
            raise ValueError(f"LLM2SLMProcessor returns torch tensors: return_tensors='pt', not {return_tensors!r}")
        texts = [text] if isinstance(text, str) else list(text)
        if text_target is None:
            return BatchFeature(self.collator.batch_of_texts(texts).inputs())
        targets = [text_target] if isinstance(text_target, str) else list(text_target)
        if len(targets) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(targets)} targets; give one for each")
        rows = self.collator.encode([Example(i, t, t, a) for i, (t, a) in enumerate(zip(texts, targets, strict=True))])
        if not rows:
            raise UserError("no row of this batch is short enough (overlong=drop); raise the limits, or truncate")
        return BatchFeature(self.collator(rows).inputs())

    def pad(self, rows: Sequence[Mapping[str, Any]], **_: Any) -> BatchFeature:
        """A padded batch of tokenized rows, for a Trainer's `data_collator` (or in `DataCollatorForSeq2Seq`).

        Args:
            rows: each is what this processor returns for one text without its first dimension, as tensors or lists.
                Padding that they have is removed first.
            _: arguments of transformers' collators, without effect: a batch is padded to its longest rows.
        """
        collator = self.collator
        left, one = collator.decoder_only, collator.one_prompt
        batch = padded_inputs(rows, "", collator.pad_id, left)
        if "llm_input_ids" in rows[0]:
            llm_pad_id = collator.pad_id if one else collator.llm_prompts.pad_id
            batch |= padded_inputs(rows, "llm_", llm_pad_id, left and one)
        if "alignment" in rows[0]:
            batch["alignment"] = padded_alignment(rows, left)
        if "labels" in rows[0]:
            batch["labels"] = padded_labels(rows)
        return BatchFeature(batch)

    def batch_decode(self, ids: Tensor | Sequence[Any], **_: Any) -> list[str]:
        """The texts of response ids (rows of a tensor), each up to its end, special tokens left out."""
        return self.collator.decode(ids)

    def decode(self, ids: Tensor | Sequence[int], **_: Any) -> str:
        """The text of one response."""
        return self.collator.decode([ids])[0]

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors in a batch, without labels."""
        return [name for name in INPUTS if name != "labels"]

    @property
    def padding_side(self) -> str:
        """Of responses, for transformers' collators."""
        return "right"

    @property
    def pad_token_id(self) -> int:
        """Padding id of responses, for transformers' Trainer."""
        return self.collator.pad_id

    def to_dict(self) -> dict[str, Any]:
        """The content of `processor_config.json`."""
        second = None if self.llm_tokenizer is None else "shared" if self.collator.shared else LLM_TOKENIZER
        names = {"processor_class": type(self).__name__, "llm_tokenizer": second}
        return names | self.settings | {"overlong": self.collator.overlong.value}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **_: Any) -> list[str]:
        """Writes both tokenizers and `processor_config.json`; called by the model's `save_pretrained`, too."""
        if push_to_hub:
            raise ValueError(
                "save_pretrained(push_to_hub=True): use the model's push_to_hub, which includes the processor"
            )
        with filling(Path(save_directory), last=PROCESSOR_NAME) as folder:
            self.collator.save(folder)
            (folder / PROCESSOR_NAME).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return [str(Path(save_directory) / PROCESSOR_NAME)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, revision: str | None = None, **_: Any) -> Self:
        """Loads the processor of a saved hybrid from a folder or a Hub id.

        Raises:
            UserError: it is not a saved hybrid, or a tokenizer is missing.
        """
        name = str(Path(pretrained_model_name_or_path).expanduser())
        if name.startswith(("/", ".")) and not Path(name).is_dir():
            raise UserError(f"{name}: no such folder; give the folder or Hub id of a saved hybrid")
        path = cached_file(name, PROCESSOR_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
        if path is None:
            raise UserError(
                f"{name}: has no {PROCESSOR_NAME}; a hybrid of an earlier version gets one when it is saved again: "
                f"LLM2SLM.from_pretrained({name!r}).save_pretrained(FOLDER)"
            )
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
        settings.pop("processor_class", None)
        tokenizer, second = load_tokenizer(name, revision), settings.pop("llm_tokenizer", None)
        if second == "shared":
            return cls(tokenizer, tokenizer, **settings)
        return cls(tokenizer, second and load_tokenizer(name, revision, subfolder=second), **settings)
