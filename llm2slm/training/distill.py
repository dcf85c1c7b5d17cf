"""The whole LLM as a teacher: it scores a batch's own labels, and what is trained is drawn to its distribution.

Next-token distillation (`objectives.token_divergence`), as a part of the loss beside cross-entropy: `optim.distill`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llm2slm.config import ModelConfig, RunConfig
from llm2slm.data.collate import Collator
from llm2slm.data.tokenization.tokenizer import cut_of, original_ids
from llm2slm.models.build import build_llm, load_tokenizers
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.loading.partial_loading import is_bidirectional
from llm2slm.models.loading.pretrained import model_config
from llm2slm.training.objectives import token_divergence
from llm2slm.types import IGNORE_INDEX, Batch, Init, SystemKind, UserError


class Teacher:
    """A frozen LLM that scores labels. It is no torch module, so that it is in no state dict, no optimizer and no count
    of parameters of what is trained, and no `.train()` reaches it.

    Args:
        model: the LLM as model=llm has it.
        ids: by token id of what is trained the LLM's own id of that token.
        temperature: of the comparison.
    """

    def __init__(self, model: LLM2SLM, ids: Sequence[int], temperature: float = 1.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokens, self.temperature = len(ids), temperature
        # of a cut vocabulary (model.slm.vocab); else the first ids are the same ones
        self.ids_V = None if list(ids) == list(range(len(ids))) else torch.tensor(ids)

    @property
    def collator(self) -> Collator:
        """Makes the prompts that it reads."""
        collator: Collator = self.model.collator
        return collator

    def to(self, device: torch.device) -> None:
        """Moves it."""
        self.model.to(device)
        self.ids_V = None if self.ids_V is None else self.ids_V.to(device)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Teacher-forced logits_BTV of a batch's labels, behind the prompts as it reads them itself; in its own dtype.

        Where the vocabulary of what is trained is a cut one, V is that one: the LLM reads its own ids, and its logits
        of the entries that are kept are given, so that a softmax renormalizes over them.

        Raises:
            ValueError: the batch has no prompts for it.
        """
        if batch.teacher is None:
            raise ValueError("this batch has no prompts for a teacher: make it with Collator.taught_by")
        read, labels_BT = batch.teacher, batch.teacher.labels_BT
        if self.ids_V is not None and labels_BT is not None:
            own_BT = self.ids_V.to(labels_BT.device)[labels_BT.clamp(min=0)]
            read = replace(read, labels_BT=own_BT.masked_fill(labels_BT == IGNORE_INDEX, IGNORE_INDEX))
        with torch.autocast(batch.slm_ids_BQ.device.type, enabled=False):
            logits_BTV: Tensor = self.model.logits(read)
        return logits_BTV if self.ids_V is None else logits_BTV[..., self.ids_V.to(logits_BTV.device)]

    def divergence(self, batch: Batch, logits_BTV: Tensor) -> Tensor:
        """How far the logits of what is trained are from its own (`token_divergence`)."""
        assert batch.labels_BT is not None
        return token_divergence(logits_BTV, self.logits(batch), batch.labels_BT, self.temperature, self.tokens)


def check_distill(config: RunConfig) -> None:
    """Refuses, before anything is loaded, what cannot be distilled.

    Raises:
        UserError: names the key.
    """
    weight, temperature = config.optim.distill, config.optim.distill_temperature
    if not 0 <= weight <= 1:
        raise UserError(f"optim.distill={weight}: must be between 0 and 1")
    if not 0 < temperature < float("inf"):
        raise UserError(f"optim.distill_temperature={temperature}: must be above 0")
    if not weight:
        return
    if config.model.kind is SystemKind.llm:
        raise UserError(f"optim.distill={weight}: the LLM would teach itself; leave it out for model=llm")
    if config.model.llm.start is Init.random:
        raise UserError(f"optim.distill={weight}: an LLM of random weights teaches nothing; set model.llm.name alone")
    if config.data.reps is not None:
        raise UserError(
            f"optim.distill={weight} needs the whole LLM, and with data.reps={config.data.reps} it is never loaded; "
            "leave one of them out (labels of the LLM need none: data.labels=llm)"
        )


def build_teacher(config: RunConfig, student: Collator) -> Teacher | None:
    """The teacher of a run, built as model=llm is; None where optim.distill=0.

    Args:
        student: the collator of what is trained.

    Raises:
        UserError: the LLM and what is trained do not write the same tokens, or the LLM cannot be loaded.
    """
    if not config.optim.distill:
        return None
    try:
        tokenizer, _ = load_tokenizers(ModelConfig(kind=SystemKind.llm, llm=config.model.llm))
        ids = common_tokens(student.slm_tokenizer, tokenizer)
        llm = model_config(config.model.llm, tokenizer)
        if is_bidirectional(llm) and not llm.is_encoder_decoder:
            raise UserError(f"a {llm.model_type} only reads, it predicts no next token; use another LLM")
        model = build_llm(config.model.llm, config.data)
    except UserError as error:
        raise UserError(f"optim.distill={config.optim.distill}: the teacher: {error}") from None
    return Teacher(model, ids, config.optim.distill_temperature)


def common_tokens(student: Any, teacher: Any) -> list[int]:
    """By id of a student's token the teacher's id of it: the same one, or, where a vocabulary was cut
    (`data/tokenization/cutting.py`), that of the same entry of the whole vocabulary.

    Raises:
        UserError: a token of the student's is another for the teacher, or another token ends a response.
    """
    own, theirs = ({i: token for token, i in side.get_vocab().items()} for side in (student, teacher))
    size: int = max(own) + 1
    original = list(range(size)) if cut_of(student) is None else original_ids(student)
    place = None if cut_of(teacher) is None else {entry: i for i, entry in enumerate(original_ids(teacher))}
    found = [entry if place is None else place.get(entry, -1) for entry in original]
    found += [-1] * (size - len(original))  # added to a cut vocabulary
    ids = [i for i in range(size) if found[i] < 0 or own.get(i) != theirs.get(found[i])]
    ends = student.eos_token, teacher.eos_token
    if not ids and ends[0] == ends[1]:
        return found
    differ = (
        f"token {ids[0]} is {own.get(ids[0])!r} and {theirs.get(found[ids[0]])!r}"
        if ids
        else f"eos is {ends[0]!r} and {ends[1]!r}"
    )
    raise UserError(
        f"the tokens of {student.name_or_path} and {teacher.name_or_path} differ ({differ}), so their distributions "
        "cannot be compared; let the SLM have the LLM's tokens (model.tokenizers=shared model.slm.init=random), or "
        "train on answers that the LLM wrote (`llm2slm label`)"
    )
