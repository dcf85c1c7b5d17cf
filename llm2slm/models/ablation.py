"""Controls: what a hybrid is told in place of what the LLM says of its prompt, to see what that is worth.

A hybrid has more parameters than the SLM alone, more positions to attend to, and their number. A control keeps all of
it (projector, conditioning, data, training) and takes away what the LLM knows of this prompt; what the hybrid is better
than its control is the LLM's doing. In the manner of the control tasks of Hewitt and Liang 2019 (arXiv 1909.03368).

    constant  a vector of ones at each position that the prompt has, so that z is one learned vector for all prompts
    shuffled  what the LLM says of another prompt of the batch
    zero      z is 0 at each position that the prompt has
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm2slm.config import ModelConfig
from llm2slm.models.conditioning import positions
from llm2slm.types import Batch, Control, Reps, SystemKind, UserError


def check_control(cfg: ModelConfig) -> None:
    """Refuses a control of a system that the LLM tells nothing anyway."""
    if cfg.control is not Control.none and cfg.kind is not SystemKind.llm2slm:
        raise UserError(
            f"model.control={cfg.control}: replaces what an LLM tells an SLM, and in model.kind={cfg.kind} there is "
            "no such pair; use model.control=none"
        )


@dataclass(frozen=True)
class _Heard:
    """A prompt of an earlier batch, and what the LLM said of it."""

    prompt: tuple[int, ...]
    reps_PE: Tensor


class RepsAblation:
    """Gives the projector its input: what the LLM says, or what a control puts in its place.

    With `constant` and `zero` the LLM is not run. `shuffled` gives row i what was said of row i - 1, and row 0 what was
    said of the last row; a row that has the very same prompt is passed over for the one before it. Where all rows of
    the batch have one prompt (a batch of one), it is the last other prompt of the batches before (remembered on this
    object, in each process for itself; a checkpoint of a training has it), and where there is none yet, z is 0: a row
    is never told of its own prompt. So what a row is answered depends on the batch that it is in.

    `add`, `replace` and `kv` with linear maps mix z into the row's own prompt, token by token: its n-th token of the
    LLM's tokenizer gets what was said of the other prompt's n-th, and its own alignment takes it to the SLM's tokens;
    where the other prompt has no such token, z is 0. The other conditionings get the other prompt as it is, with
    its own length.

    Args:
        width: E, of all layers that are read.
        in_place: z is mixed into the prompt token by token.
    """

    def __init__(self, control: Control, width: int, in_place: bool) -> None:
        self.control = control
        self.width = width
        self.in_place = in_place
        self._heard: list[_Heard] = []

    @property
    def runs_llm(self) -> bool:
        """Whether the LLM has to read the prompt."""
        return self.control in (Control.none, Control.shuffled)

    def __call__(
        self, batch: Batch, reps: Reps | None, represent: Callable[[Batch], Reps]
    ) -> tuple[Reps, Tensor | None]:
        """What the projector is given of a batch, and the positions (B, P) at which z is 0; None: at none.

        Args:
            reps: what the LLM says of the batch where it is known already, which is controlled all the same.
            represent: gives it where it is not.
        """
        if self.runs_llm:
            reps = represent(batch) if reps is None else reps
            return (reps, None) if self.control is Control.none else self._shuffled(batch, reps)
        mask_BP = batch.llm_mask_BP if reps is None else reps.mask_BP
        if mask_BP is None:
            raise ValueError("a control was asked of a batch without the LLM's prompts")
        constant = self.control is Control.constant
        ones_BPE = mask_BP.unsqueeze(-1).float().expand(*mask_BP.shape, self.width)
        if constant:
            return Reps(ones_BPE, mask_BP), None
        # the projector still runs, on finite input: each of its parameters has a gradient (of 0), as DDP asks
        return Reps(torch.zeros_like(ones_BPE), mask_BP), torch.ones_like(mask_BP, dtype=torch.bool)

    def state(self) -> list[tuple[tuple[int, ...], Tensor]]:
        """What `shuffled` remembers of earlier batches in this process: token ids, and reps_PE on the CPU."""
        return [(heard.prompt, heard.reps_PE.cpu()) for heard in self._heard]

    def restore(self, state: Sequence[tuple[Sequence[int], Tensor]]) -> None:
        """Sets it to what `state` gave."""
        self._heard = [_Heard(tuple(prompt), reps_PE) for prompt, reps_PE in state]

    def _shuffled(self, batch: Batch, reps: Reps) -> tuple[Reps, Tensor | None]:
        prompts, packed = _prompts(batch), _packed(reps)
        rows = len(prompts)
        sources = [
            next((j % rows for j in range(i - 1, i - rows, -1) if prompts[j % rows] != prompts[i]), None)
            for i in range(rows)
        ]
        told = self._from_before(prompts[0], packed) if None in sources else _rows(packed, sources)
        self._remember(prompts, packed, sources[-1])
        if told is None:
            return Reps(torch.zeros_like(reps.reps_BPE), reps.mask_BP), torch.ones_like(reps.mask_BP, dtype=torch.bool)
        return _placed(told, reps.mask_BP) if self.in_place else (told, None)

    def _from_before(self, prompt: tuple[int, ...], packed: Reps) -> Reps | None:
        """The last other prompt of the batches before, for each row; None where there is none."""
        heard = next((heard for heard in self._heard if heard.prompt != prompt), None)
        if heard is None:
            return None
        rows, (tokens, width) = len(packed.mask_BP), heard.reps_PE.shape
        # a copy: what was read in inference mode cannot be trained on
        reps_BPE = heard.reps_PE.to(packed.reps_BPE).expand(rows, tokens, width).clone()
        return Reps(reps_BPE, packed.mask_BP.new_ones(rows, tokens))

    def _remember(self, prompts: list[tuple[int, ...]], packed: Reps, other: int | None) -> None:
        """Keeps the last prompt, and the last one that differs from it: one of them is not the next batch's own."""
        kept = [len(prompts) - 1] if other is None else [len(prompts) - 1, other]
        before = [heard for heard in self._heard if heard.prompt != prompts[-1]]
        new = [_Heard(prompts[n], packed.reps_BPE[n, packed.mask_BP[n].bool()].detach()) for n in kept]
        self._heard = [*new, *before][:2]


def _prompts(batch: Batch) -> list[tuple[int, ...]]:
    """What tells the rows' prompts apart: the ids that the LLM reads, or the SLM, where they are not at hand."""
    ids, mask = batch.llm_ids_BP, batch.llm_mask_BP
    if ids is None or mask is None:
        ids, mask = batch.slm_ids_BQ, batch.slm_mask_BQ
    pairs = zip(ids.tolist(), mask.tolist(), strict=True)
    return [tuple(token for token, real in zip(*row, strict=True) if real) for row in pairs]


def _packed(reps: Reps) -> Reps:
    """The same, padded on the right."""
    order_BP = torch.argsort((~reps.mask_BP.bool()).long(), dim=1, stable=True)
    reps_BPE = reps.reps_BPE.gather(1, order_BP.unsqueeze(-1).expand_as(reps.reps_BPE))
    return Reps(reps_BPE, reps.mask_BP.gather(1, order_BP))


def _rows(reps: Reps, numbers: list[int | None]) -> Reps:
    index_B = torch.tensor(numbers, device=reps.mask_BP.device)
    return Reps(reps.reps_BPE[index_B], reps.mask_BP[index_B])


def _placed(told: Reps, mask_BP: Tensor) -> tuple[Reps, Tensor]:
    """The n-th position of the other prompt (padded on the right) at the n-th real one of a row's own, and where there
    is none."""
    rank_BP = positions(mask_BP)
    silent_BP = ~mask_BP.bool() | (rank_BP >= told.mask_BP.sum(1, keepdim=True))
    index_BP1 = rank_BP.clamp(max=told.mask_BP.shape[1] - 1).unsqueeze(-1)
    reps_BPE = told.reps_BPE.gather(1, index_BP1.expand(*mask_BP.shape, told.reps_BPE.shape[-1]))
    return Reps(reps_BPE.masked_fill(silent_BP.unsqueeze(-1), 0), mask_BP), silent_BP
