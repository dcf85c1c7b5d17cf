"""Next-token distillation from the whole LLM on a batch's labels.

The divergence (`objectives.token_divergence`) is added to cross-entropy with weight `optim.distill`.
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
from llm2slm.models.loading.configs import model_config
from llm2slm.models.loading.partial_loading import is_bidirectional
from llm2slm.training.objectives import token_divergence
from llm2slm.types import IGNORE_INDEX, Batch, Init, SystemKind, UserError


class Teacher:
    """A frozen LLM that scores labels. It is not a torch module, so that state dicts, optimizers, parameter counts and
    `.train()` of the student exclude it.

    Args:
        model: the LLM as built by model=llm.
        ids: token id of the student -> the LLM's id of that token.
        temperature: of the divergence.
    """

    def __init__(self, model: LLM2SLM, ids: Sequence[int], temperature: float = 1.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokens, self.temperature = len(ids), temperature
        # of a reduced vocabulary (model.slm.vocab); otherwise the ids are equal
        self.ids_V = None if list(ids) == list(range(len(ids))) else torch.tensor(ids)

    @property
    def collator(self) -> Collator:
        """The collator that makes the teacher's prompts."""
        collator: Collator = self.model.collator
        return collator

    def to(self, device: torch.device) -> None:
        """Moves the teacher to a device."""
        self.model.to(device)
        self.ids_V = None if self.ids_V is None else self.ids_V.to(device)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Teacher-forced logits_BTV of a batch's labels after the teacher's prompts, in the teacher's dtype.

        With a reduced vocabulary V is the student's: the logits of the kept entries, over which softmax renormalizes.

        Raises:
            ValueError: the batch has no prompts for the teacher.
        """
        if batch.teacher is None:
            raise ValueError("this batch has no prompts for a teacher: make it with Collator.with_teacher")
        prompts, labels_BT = batch.teacher, batch.teacher.labels_BT
        if self.ids_V is not None and labels_BT is not None:
            ids_BT = self.ids_V.to(labels_BT.device)[labels_BT.clamp(min=0)]
            prompts = replace(prompts, labels_BT=ids_BT.masked_fill(labels_BT == IGNORE_INDEX, IGNORE_INDEX))
        with torch.autocast(batch.slm_ids_BQ.device.type, enabled=False):
            logits_BTV: Tensor = self.model.logits(prompts)
        return logits_BTV if self.ids_V is None else logits_BTV[..., self.ids_V.to(logits_BTV.device)]

    def divergence(self, batch: Batch, logits_BTV: Tensor) -> Tensor:
        """Divergence of the student's logits from the teacher's (`token_divergence`)."""
        assert batch.labels_BT is not None
        return token_divergence(logits_BTV, self.logits(batch), batch.labels_BT, self.temperature, self.tokens)


def check_distill(config: RunConfig) -> None:
    """Refuses, before anything is loaded, impossible distillation settings.

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
        raise UserError(f"optim.distill={weight}: the LLM would be its own teacher; leave it out for model=llm")
    if config.model.llm.start is Init.random:
        raise UserError(f"optim.distill={weight}: an LLM with random weights is no teacher; set model.llm.name alone")
    if config.data.reps is not None:
        raise UserError(
            f"optim.distill={weight} needs the whole LLM, and with data.reps={config.data.reps} it is never loaded; "
            "leave one of them out (to train on outputs of the LLM without loading it: data.labels=llm)"
        )


def build_teacher(config: RunConfig, student: Collator) -> Teacher | None:
    """The teacher of a run, built as model=llm is; None if optim.distill=0.

    Args:
        student: the collator of the student.

    Raises:
        UserError: the token ids of LLM and student differ, or the LLM cannot be loaded.
    """
    if not config.optim.distill:
        return None
    try:
        tokenizer, _ = load_tokenizers(ModelConfig(kind=SystemKind.llm, llm=config.model.llm))
        ids = common_tokens(student.slm_tokenizer, tokenizer)
        llm = model_config(config.model.llm, tokenizer)
        if is_bidirectional(llm) and not llm.is_encoder_decoder:
            raise UserError(f"a {llm.model_type} is an encoder and predicts no next token; use another LLM")
        model = build_llm(config.model.llm, config.data)
    except UserError as error:
        raise UserError(f"optim.distill={config.optim.distill}: the teacher: {error}") from None
    return Teacher(model, ids, config.optim.distill_temperature)


def common_tokens(student: Any, teacher: Any) -> list[int]:
    """The teacher's id for each token id of the student: equal ids, or, for a reduced vocabulary
    (`data/tokenization/cutting.py`), the id of the same entry of the whole vocabulary.

    Raises:
        UserError: an id stands for different tokens, or the eos tokens differ.
    """
    student_tokens, teacher_tokens = (
        {i: token for token, i in side.get_vocab().items()} for side in (student, teacher)
    )
    size: int = max(student_tokens) + 1
    original = list(range(size)) if cut_of(student) is None else original_ids(student)
    position = None if cut_of(teacher) is None else {entry: i for i, entry in enumerate(original_ids(teacher))}
    found = [entry if position is None else position.get(entry, -1) for entry in original]
    found += [-1] * (size - len(original))  # added to a cut vocabulary
    ids = [i for i in range(size) if found[i] < 0 or student_tokens.get(i) != teacher_tokens.get(found[i])]
    ends = student.eos_token, teacher.eos_token
    if not ids and ends[0] == ends[1]:
        return found
    differ = (
        f"token {ids[0]} is {student_tokens.get(ids[0])!r} and {teacher_tokens.get(found[ids[0]])!r}"
        if ids
        else f"eos is {ends[0]!r} and {ends[1]!r}"
    )
    raise UserError(
        f"the tokens of {student.name_or_path} and {teacher.name_or_path} differ ({differ}), so their distributions "
        "cannot be compared; use the LLM's tokenizer for the SLM (model.tokenizers=shared model.slm.init=random), or "
        "train on outputs of the LLM (`llm2slm label`)"
    )
