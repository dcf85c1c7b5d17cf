"""Drafts of a response by a hybrid, for a verification by its LLM (`lossless`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llm2slm.decoding.choice import Choice
from llm2slm.decoding.static import StaticForward, StaticState
from llm2slm.models.prompt import Prompt


@dataclass(frozen=True)
class Draft:
    """Proposed tokens.

    Attributes:
        ids_BN: token ids of the LLM; of a row with fewer proposals, any token behind them.
        probabilities_BNV: from which they were sampled; None: they are the drafter's greedy choice.
    """

    ids_BN: Tensor
    probabilities_BNV: Tensor | None = None


class Drafter(Protocol):
    """Proposes tokens after the responses so far."""

    def start(self, prompt: Prompt, new_tokens: int) -> None:
        """Begins a batch.

        Args:
            prompt: of the hybrid. new_tokens: the most tokens of a response, drafts included.
        """
        ...

    def draft(self, ids_BT: Tensor, counts_B: Tensor, active_B: Tensor, length: int, choice: Choice) -> Draft:
        """At most `length` tokens for every row.

        Args:
            ids_BT: responses in the LLM's tokens, with `length` columns to spare. counts_B: their lengths; at the
                beginning 0 in all rows, later at least 1.
            active_B: rows that need a draft.
            choice: of the LLM's tokens.
        """
        ...

    def keep(self, rows_K: Tensor) -> None:
        """Leaves all other rows out from now on."""
        ...


class SameTokens:
    """Drafts of a hybrid whose SLM has the token ids of the LLM.

    Args:
        forward: of the hybrid.
    """

    def __init__(self, forward: StaticForward) -> None:
        self.forward = forward
        self.state: StaticState
        self.first_BV: Tensor

    def start(self, prompt: Prompt, new_tokens: int) -> None:
        """See `Drafter`."""
        state, self.first_BV = self.forward.start(prompt, new_tokens)
        assert isinstance(state, StaticState)
        self.state = state

    def keep(self, rows_K: Tensor) -> None:
        """See `Drafter`."""
        self.state = self.state.keep(rows_K)

    def draft(self, ids_BT: Tensor, counts_B: Tensor, active_B: Tensor, length: int, choice: Choice) -> Draft:
        """See `Drafter`. Ends early when every active row has ended.

        The last two tokens of a response are processed together: after a draft that was accepted whole, the cache
        lacks both the last drafted token and the one that the LLM added. Of a response of one token, the second
        position is a token that is not real yet; its logits are not used, and it is written over.
        """
        session, first = self.state.session, self.state.length
        ids_BT, rows_B = ids_BT.clone(), torch.arange(len(ids_BT), device=ids_BT.device)
        logits_BV = self.first_BV
        if bool(counts_B.any()):
            start_B = (counts_B - 2).clamp(min=0)
            columns_B2 = start_B.unsqueeze(1) + torch.arange(2, device=ids_BT.device)
            logits_BQV = session.advance(ids_BT.gather(1, columns_B2), first + columns_B2)
            logits_BV = logits_BQV[rows_B, counts_B - 1 - start_B]
        running_B = active_B
        drawn: list[Tensor] = []
        probabilities: list[Tensor] = []
        for step in range(length):
            if step:
                logits_BV = session.advance(drawn[-1].unsqueeze(1), (first + counts_B + step - 1).unsqueeze(1))[:, 0]
            scores_BV = choice.scores_along(ids_BT, counts_B + step, logits_BV.unsqueeze(1))[:, 0]
            drawn.append(choice.drawn(scores_BV))
            if choice.sampled:
                probabilities.append(scores_BV.softmax(-1))
            ids_BT[rows_B, counts_B + step] = drawn[-1]
            running_B = running_B & ~choice.ended(drawn[-1])
            if not running_B.any():
                break
        return Draft(torch.stack(drawn, dim=1), torch.stack(probabilities, dim=1) if probabilities else None)


class OtherTokens:
    """Drafts of a hybrid with another tokenizer than the LLM's: responses and drafts are exchanged as text.

    After universal assisted generation in transformers. Only for greedy decoding, where any proposal may be verified.

    Args:
        forward: of the hybrid. slm_tokenizer, llm_tokenizer: of the hybrid's responses and of the LLM's.
    """

    def __init__(self, forward: StaticForward, slm_tokenizer: Any, llm_tokenizer: Any) -> None:
        self.forward, self.slm_tokenizer, self.llm_tokenizer = forward, slm_tokenizer, llm_tokenizer
        self.state: StaticState
        self.first_BV: Tensor
        self.processed: list[list[int]] = []

    def start(self, prompt: Prompt, new_tokens: int) -> None:
        """See `Drafter`. A response may have more tokens of the SLM than of the LLM: up to twice as many fit."""
        state, self.first_BV = self.forward.start(prompt, 2 * new_tokens + 2)
        assert isinstance(state, StaticState)
        self.state, self.processed = state, [[] for _ in state.rows_B]

    def keep(self, rows_K: Tensor) -> None:
        """See `Drafter`."""
        self.state, self.first_BV = self.state.keep(rows_K), self.first_BV[rows_K]
        self.processed = [self.processed[row] for row in rows_K.tolist()]

    def draft(self, ids_BT: Tensor, counts_B: Tensor, active_B: Tensor, length: int, choice: Choice) -> Draft:
        """See `Drafter`."""
        capacity = self.state.session.layout.capacity - self.state.length
        rows = zip(ids_BT.tolist(), counts_B.tolist(), active_B.tolist(), strict=True)
        texts = [_text(self.llm_tokenizer, row[:count]) if active else "" for row, count, active in rows]
        known = [_ids(self.slm_tokenizer, text)[: capacity - length - 1] for text in texts]
        drafted = self._continued(known, active_B.tolist(), length)
        ids_BN = ids_BT.new_zeros(len(texts), length)
        for row, (text, before, new) in enumerate(zip(texts, known, drafted, strict=True)):
            ids = self._llm_ids(text, before, new, ids_BT[row, : int(counts_B[row])].tolist(), choice)[:length]
            ids_BN[row, : len(ids)] = ids_BN.new_tensor(ids)
        return Draft(ids_BN)

    def _continued(self, known: Sequence[list[int]], active: Sequence[bool], length: int) -> list[list[int]]:
        """The SLM's next tokens after its tokens of each response, greedily, up to its end token."""
        session, first = self.state.session, self.state.length
        starts = [_common(old, new) for old, new in zip(self.processed, known, strict=True)]
        # at least the last token is processed again, for its logits
        starts = [max(min(start, len(ids) - 1), 0) for start, ids in zip(starts, known, strict=True)]
        longest = max(len(ids) - start for start, ids in zip(starts, known, strict=True))
        # all rows process as many tokens: a row that is almost full processes some again
        last = session.layout.capacity - self.state.length - longest
        starts = [min(start, last) for start in starts]
        logits_BV = self.first_BV
        device = logits_BV.device
        if longest:
            parts = [(ids[start:] + [0] * longest)[:longest] for start, ids in zip(starts, known, strict=True)]
            slots_BQ = torch.tensor(starts, device=device).unsqueeze(1) + torch.arange(longest, device=device)
            logits_BQV = session.advance(torch.tensor(parts, device=device), first + slots_BQ)
            ends = [len(ids) - start - 1 for start, ids in zip(starts, known, strict=True)]
            found = [logits_BQV[row, end] if end >= 0 else self.first_BV[row] for row, end in enumerate(ends)]
            logits_BV = torch.stack(found)
        drafted: list[list[int]] = [[] for _ in known]
        lengths_B1 = torch.tensor([len(ids) for ids in known], device=device).unsqueeze(1)
        end = self.slm_tokenizer.eos_token_id
        for step in range(length):
            next_B = logits_BV.argmax(-1)
            for ids, token in zip(drafted, next_B.tolist(), strict=True):
                ids.append(token)
            if step + 1 == length or all(end in ids for ids, used in zip(drafted, active, strict=True) if used):
                break
            logits_BV = session.advance(next_B.unsqueeze(1), first + lengths_B1 + step)[:, 0]
        self.processed = [ids + new[:-1] for ids, new in zip(known, drafted, strict=True)]
        return [ids[: ids.index(end) + 1] if end in ids else ids for ids in drafted]

    def _llm_ids(self, text: str, before: list[int], new: list[int], response: list[int], choice: Choice) -> list[int]:
        """The LLM's token ids of a draft, an end token included; [] if the LLM's tokens split the text otherwise."""
        ended = bool(new) and new[-1] == self.slm_tokenizer.eos_token_id
        whole = _text(self.slm_tokenizer, before + (new[:-1] if ended else new))
        if not whole.startswith(text):
            return []
        ids = _ids(self.llm_tokenizer, whole)
        if ids[: len(response)] != response:
            return []
        return ids[len(response) :] + (choice.ends[:1].tolist() if ended else [])


def _text(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))
