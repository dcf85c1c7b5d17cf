"""Ablations of the LLM's representations, as controls for what they contribute.

A hybrid has more parameters than the SLM alone, and more positions to attend to. A control keeps both (projector,
conditioning, data, training) and removes the LLM's information on the prompt; the difference between the hybrid and
its control is due to the LLM. After the control tasks of Hewitt and Liang 2019 (arXiv 1909.03368).

    constant  a vector of ones at each prompt position, so that z is the same learned vector everywhere
    shuffled  the LLM's representations of another prompt of the batch
    zero      z is 0 at each prompt position
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm2slm.config import ModelConfig
from llm2slm.models.sequences import positions
from llm2slm.types import Batch, Control, Reps, SystemKind, UserError


def check_control(cfg: ModelConfig) -> None:
    """Refuses a control of a system without an LLM encoder.

    Raises:
        UserError: names the control.
    """
    if cfg.control is not Control.none and cfg.kind is not SystemKind.llm2slm:
        raise UserError(
            f"model.control={cfg.control}: replaces the LLM's representations, and model.kind={cfg.kind} has "
            "none; use model.control=none"
        )


@dataclass(frozen=True)
class _Earlier:
    """Token ids and representations of a prompt of an earlier batch."""

    prompt: tuple[int, ...]
    reps_PE: Tensor


class RepsAblation:
    """Computes the projector's input: the LLM's representations, or a control's.

    `constant` and `zero` do not run the LLM. `shuffled` gives row i the representations of row i - 1, and row 0 those
    of the last row; a row with the same prompt is skipped for the one before it. If all rows of a batch have the same
    prompt (as in a batch of one), they get the last other prompt of earlier batches (kept in this object, separately in
    each process, and in training checkpoints); if there is none yet, z is 0: a row never gets its own prompt. So the
    output for a row depends on its batch.

    With `in_place` z is mixed into the row's prompt token by token: the n-th LLM token of the row gets the n-th
    representation of the other prompt, and the row's alignment maps it to SLM tokens; where the other prompt has no
    n-th token, z is 0. Otherwise the row gets the other prompt with its length.

    Args:
        width: E, of all layers that are read.
        in_place: the conditioning mixes z into the prompt token by token.
    """

    def __init__(self, control: Control, width: int, in_place: bool) -> None:
        self.control = control
        self.width = width
        self.in_place = in_place
        self._earlier: list[_Earlier] = []

    @property
    def runs_llm(self) -> bool:
        """Whether the LLM's representations are needed."""
        return self.control in (Control.none, Control.shuffled)

    def __call__(
        self, batch: Batch, reps: Reps | None, represent: Callable[[Batch], Reps]
    ) -> tuple[Reps, Tensor | None]:
        """The projector's input for a batch, and the positions (B, P) at which z is set to 0; None: at none.

        Args:
            reps: the LLM's representations of the batch if they are known; the control applies to them too.
            represent: computes them otherwise.
        """
        if self.runs_llm:
            reps = represent(batch) if reps is None else reps
            return (reps, None) if self.control is Control.none else self._shuffled(batch, reps)
        mask_BP = batch.llm_mask_BP if reps is None else reps.mask_BP
        if mask_BP is None:
            raise ValueError("this batch has no LLM prompts, which a control needs")
        constant = self.control is Control.constant
        ones_BPE = mask_BP.unsqueeze(-1).float().expand(*mask_BP.shape, self.width)
        if constant:
            return Reps(ones_BPE, mask_BP), None
        # the projector runs on finite input, so that each of its parameters has a gradient (of 0), as DDP requires
        return Reps(torch.zeros_like(ones_BPE), mask_BP), torch.ones_like(mask_BP, dtype=torch.bool)

    def state(self) -> list[tuple[tuple[int, ...], Tensor]]:
        """The earlier prompts that `shuffled` keeps in this process: token ids, and reps_PE on the CPU."""
        return [(earlier.prompt, earlier.reps_PE.cpu()) for earlier in self._earlier]

    def restore(self, state: Sequence[tuple[Sequence[int], Tensor]]) -> None:
        """Restores the result of `state`."""
        self._earlier = [_Earlier(tuple(prompt), reps_PE) for prompt, reps_PE in state]

    def _shuffled(self, batch: Batch, reps: Reps) -> tuple[Reps, Tensor | None]:
        prompts, packed = _prompts(batch), _packed(reps)
        rows = len(prompts)
        sources = [
            next((j % rows for j in range(i - 1, i - rows, -1) if prompts[j % rows] != prompts[i]), None)
            for i in range(rows)
        ]
        other = self._from_earlier(prompts[0], packed) if None in sources else _rows(packed, sources)
        self._remember(prompts, packed, sources[-1])
        if other is None:
            return Reps(torch.zeros_like(reps.reps_BPE), reps.mask_BP), torch.ones_like(reps.mask_BP, dtype=torch.bool)
        return _placed(other, reps.mask_BP) if self.in_place else (other, None)

    def _from_earlier(self, prompt: tuple[int, ...], packed: Reps) -> Reps | None:
        """The last other prompt of earlier batches, for each row; None if there is none."""
        earlier = next((earlier for earlier in self._earlier if earlier.prompt != prompt), None)
        if earlier is None:
            return None
        rows, (tokens, width) = len(packed.mask_BP), earlier.reps_PE.shape
        # a copy: a tensor of inference mode cannot enter a graph
        reps_BPE = earlier.reps_PE.to(packed.reps_BPE).expand(rows, tokens, width).clone()
        return Reps(reps_BPE, packed.mask_BP.new_ones(rows, tokens))

    def _remember(self, prompts: list[tuple[int, ...]], packed: Reps, other: int | None) -> None:
        """Keeps the last prompt and the last different one: one of them differs from the next batch's prompt."""
        kept = [len(prompts) - 1] if other is None else [len(prompts) - 1, other]
        before = [earlier for earlier in self._earlier if earlier.prompt != prompts[-1]]
        new = [_Earlier(prompts[n], packed.reps_BPE[n, packed.mask_BP[n].bool()].detach()) for n in kept]
        self._earlier = [*new, *before][:2]


def _prompts(batch: Batch) -> list[tuple[int, ...]]:
    """Token ids of the rows' prompts under the LLM's tokenizer, or the SLM's if the batch has no LLM prompts."""
    ids, mask = batch.llm_ids_BP, batch.llm_mask_BP
    if ids is None or mask is None:
        ids, mask = batch.slm_ids_BQ, batch.slm_mask_BQ
    pairs = zip(ids.tolist(), mask.tolist(), strict=True)
    return [tuple(token for token, real in zip(*row, strict=True) if real) for row in pairs]


def _packed(reps: Reps) -> Reps:
    """The same representations, padded on the right."""
    order_BP = torch.argsort((~reps.mask_BP.bool()).long(), dim=1, stable=True)
    reps_BPE = reps.reps_BPE.gather(1, order_BP.unsqueeze(-1).expand_as(reps.reps_BPE))
    return Reps(reps_BPE, reps.mask_BP.gather(1, order_BP))


def _rows(reps: Reps, numbers: list[int | None]) -> Reps:
    index_B = torch.tensor(numbers, device=reps.mask_BP.device)
    return Reps(reps.reps_BPE[index_B], reps.mask_BP[index_B])


def _placed(other: Reps, mask_BP: Tensor) -> tuple[Reps, Tensor]:
    """The n-th position of another prompt (padded on the right) at the n-th real position of each row, and the mask of
    positions that it does not fill."""
    rank_BP = positions(mask_BP)
    zero_BP = ~mask_BP.bool() | (rank_BP >= other.mask_BP.sum(1, keepdim=True))
    index_BP1 = rank_BP.clamp(max=other.mask_BP.shape[1] - 1).unsqueeze(-1)
    reps_BPE = other.reps_BPE.gather(1, index_BP1.expand(*mask_BP.shape, other.reps_BPE.shape[-1]))
    return Reps(reps_BPE.masked_fill(zero_BP.unsqueeze(-1), 0), mask_BP), zero_BP
