"""Lossless decoding: the hybrid drafts tokens, the LLM verifies them in one forward pass; the output is the LLM's.

Speculative decoding after Leviathan et al. 2023 (arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318), with the
hybrid as drafter: its prompt is encoded by the LLM that verifies. Rows of a batch advance by different numbers of
tokens (`RowCache`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig

from llm2slm.decoding.choice import Choice, left_to_generate
from llm2slm.decoding.loop import settings
from llm2slm.decoding.static import StaticForward, StaticState
from llm2slm.models import slm as language_model
from llm2slm.types import Batch

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

LENGTHS = (4, 8, 16, 32)
"""Tokens of a draft: the next longer one after drafts that were accepted whole, the next shorter one after a draft of
which less than half was accepted in all rows. Each length is one captured pass of the LLM."""


@dataclass
class Drafts:
    """Counts of the drafts of one or more batches.

    Attributes:
        verified: forward passes of the LLM over a row's draft. accepted: drafted tokens that the LLM chose too.
        tokens: tokens of all responses. whole: responses whose drafted tokens were all accepted. rows: responses.
    """

    verified: int = 0
    accepted: int = 0
    tokens: int = 0
    whole: int = 0
    rows: int = 0
    longest: list[int] = field(default_factory=list)


class Lossless:
    """Greedy generation of an LLM with drafts of a hybrid.

    Args:
        hybrid: drafts; its SLM has the token ids of the LLM.
        llm: the LLM as a system that generates alone.
    """

    def __init__(self, hybrid: LLM2SLM, llm: LLM2SLM) -> None:
        self.hybrid, self.llm = hybrid, llm
        self.draft, self.verify = StaticForward(hybrid), StaticForward(llm)
        self.counts = Drafts()

    @torch.no_grad()
    def generate(
        self, batch: Batch, llm_batch: Batch, generation_config: GenerationConfig | None = None, **arguments: int
    ) -> Tensor:
        """The LLM's greedy responses: ids_BT as `LLM2SLM.generate` of the LLM returns them.

        Args:
            batch: the prompts for the hybrid. llm_batch: the same prompts for the LLM.
            generation_config, arguments: of the LLM's `generate`.
        """
        config = settings(self.llm, generation_config, **arguments)
        if left := [*left_to_generate(config), *(["do_sample"] if config.do_sample else [])]:
            raise ValueError(f"{', '.join(left)}: cannot be decoded losslessly; use LLM2SLM.generate")
        limit = config.max_new_tokens
        room = limit + max(LENGTHS) + 1
        verified, logits_BV = self.verify.start(self.llm.prefill(llm_batch), room)
        drafted, _ = self.draft.start(self.hybrid.prefill(batch), room)
        assert isinstance(verified, StaticState) and isinstance(drafted, StaticState)
        return self._rounds(config, verified, drafted, logits_BV)

    def _rounds(
        self, config: GenerationConfig, verified: StaticState, drafted: StaticState, logits_BV: Tensor
    ) -> Tensor:
        rows, limit, device = len(logits_BV), int(config.max_new_tokens), logits_BV.device
        ends = torch.tensor(sorted(language_model.end_tokens(config)), dtype=torch.int64, device=device)
        pad = 0 if config.pad_token_id is None else int(config.pad_token_id)
        # two more columns in front: the token before the first one is processed again, which changes nothing
        ids_BT = torch.full((rows, limit + max(LENGTHS) + 1), pad, dtype=torch.int64, device=device)
        ids_BT[:, 0] = logits_BV.argmax(-1)
        counts_B = torch.ones(rows, dtype=torch.int64, device=device)
        done_B = torch.isin(ids_BT[:, 0], ends) | (counts_B >= limit)
        size, each_B = 0, torch.arange(rows, device=device).unsqueeze(1)
        processed_B = torch.zeros_like(counts_B)  # tokens of the response in the drafter's cache
        while not bool(done_B.all()):
            length = LENGTHS[size]
            slots_B = torch.where(done_B, 0, counts_B)
            draft_BN = self._drafted(drafted, ids_BT, slots_B, processed_B, length)
            last_BQ = ids_BT[each_B, (slots_B - 1).clamp(min=0).unsqueeze(1)]
            steps_Q = torch.arange(length + 1, device=device)
            logits_BQV = verified.session.advance(
                torch.cat([last_BQ, draft_BN], dim=1),
                verified.length + (slots_B - 1).clamp(min=0).unsqueeze(1) + steps_Q,
            )
            chosen_BQ = logits_BQV.argmax(-1)
            agrees_BN = (chosen_BQ[:, :-1] == draft_BN).long().cumprod(1)
            accepted_B = agrees_BN.sum(1)
            for row in (~done_B).nonzero().squeeze(1).tolist():
                new = chosen_BQ[row, : int(accepted_B[row]) + 1]
                ended = torch.isin(new, ends).nonzero()
                if len(ended):
                    new = new[: int(ended[0]) + 1]
                start = int(counts_B[row])
                new = new[: limit - start]
                ids_BT[row, start : start + len(new)] = new
                counts_B[row] = start + len(new)
                done_B[row] = bool(len(ended)) and start + len(new) <= limit or start + len(new) >= limit
                self.counts.verified += 1
                self.counts.accepted += min(int(accepted_B[row]), len(new))
            processed_B = counts_B - 1
            active = accepted_B[~done_B]
            if len(active) and bool((active == length).all()):
                size = min(size + 1, len(LENGTHS) - 1)
            elif len(active) and bool((2 * active < length).all()):
                size = max(size - 1, 0)
        self.counts.rows += rows
        self.counts.tokens += int(counts_B.sum())
        return ids_BT[:, : int(counts_B.max())]

    @staticmethod
    def _drafted(state: StaticState, ids_BT: Tensor, counts_B: Tensor, processed_B: Tensor, length: int) -> Tensor:
        """The hybrid's next tokens, greedily: draft_BN. Its cache holds the response but the last two tokens at least."""
        each_B = torch.arange(len(ids_BT), device=ids_BT.device).unsqueeze(1)
        first_B = (counts_B - 2).clamp(min=0).unsqueeze(1)
        two_2 = torch.arange(2, device=ids_BT.device)
        # of a response of one token, the second position is not real yet: its logits are those of the first
        ids_BQ, slots_BQ = ids_BT[each_B, first_B + two_2], state.length + first_B + two_2
        logits_BQV = state.session.advance(ids_BQ, slots_BQ)
        last_B = (counts_B - 1).clamp(min=0) - first_B.squeeze(1)
        next_B = logits_BQV[torch.arange(len(ids_BT)), last_B].argmax(-1)
        drafts = [next_B]
        for step in range(1, length):
            slots_B1 = state.length + (counts_B - 1).clamp(min=0).unsqueeze(1) + step
            next_B = state.session.advance(next_B.unsqueeze(1), slots_B1)[:, -1].argmax(-1)
            drafts.append(next_B)
        return torch.stack(drafts, dim=1)
