"""Representations of the last prompts, so that a repeated prompt is not encoded by the LLM again."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llm2slm.models.encoder import FrozenEncoder
from llm2slm.types import Batch, Control, Reps

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


class PromptCache:
    """The representations of the prompts used last, by their token ids.

    Args:
        model: a hybrid whose LLM is loaded.
        capacity: number of prompts.

    Attributes:
        hits, misses: numbers of prompts that were found, and that were encoded.
    """

    def __init__(self, model: LLM2SLM, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self.kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self.hits = self.misses = 0

    @staticmethod
    def fits(model: LLM2SLM) -> bool:
        """Whether a system has representations that depend on nothing but the prompt."""
        return isinstance(model.encoder, FrozenEncoder) and model.control is Control.none

    def reps(self, batch: Batch) -> Reps:
        """The LLM's representations of a batch's prompts; those that are not known are encoded together."""
        ids_BP, mask_BP = batch.llm_ids_BP, batch.llm_mask_BP
        if ids_BP is None or mask_BP is None:
            raise ValueError("the batch has no prompts in the LLM's tokens")
        keys = [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(ids_BP, mask_BP, strict=True)]
        new = {key: row for row, key in enumerate(keys) if key not in self.kept}  # of equal prompts one row
        self.hits, self.misses = self.hits + len(keys) - len(new), self.misses + len(new)
        found = {key: self.kept[key] for key in keys if key in self.kept}
        if new:
            assert isinstance(self.model.encoder, FrozenEncoder)
            rows_K = torch.tensor([*new.values()], device=ids_BP.device)
            encoded = self.model.encoder(ids_BP[rows_K], mask_BP[rows_K])
            for key, reps_PE, mask_P in zip(new, encoded.reps_BPE, encoded.mask_BP, strict=True):
                found[key] = reps_PE[mask_P.bool()]
        for key in keys:
            self.kept[key] = found[key]
            self.kept.move_to_end(key)
        while len(self.kept) > self.capacity:
            self.kept.popitem(last=False)
        width = found[keys[0]].shape[1]
        reps_BPE = found[keys[0]].new_zeros(*mask_BP.shape, width)
        for row, key in enumerate(keys):
            reps_BPE[row, mask_BP[row].bool()] = found[key]
        return Reps(reps_BPE, mask_BP)
