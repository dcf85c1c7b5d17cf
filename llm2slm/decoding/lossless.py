"""Lossless decoding: the hybrid drafts tokens, the LLM verifies them in one forward pass; the output is the LLM's.

Speculative decoding after Leviathan et al. 2023 (arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318), with the
hybrid as drafter: the prompt is encoded once for both. Rows of a batch advance by different numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from llm2slm.decoding.choice import Choice, left_to_generate, refuse
from llm2slm.decoding.compiled import Compiled
from llm2slm.decoding.compiled_reading import compiled_products
from llm2slm.decoding.decoder import OneModelDecoder, OnTokens
from llm2slm.decoding.draft import Draft, Drafter, OtherTokens, SameTokens
from llm2slm.decoding.forward import Forward
from llm2slm.decoding.int8 import Int8
from llm2slm.decoding.loop import chooser, padding, settings
from llm2slm.decoding.reading import read
from llm2slm.decoding.responses import Responses
from llm2slm.decoding.static import StaticForward, StaticState, misfit
from llm2slm.decoding.verify import accepted
from llm2slm.models import slm as language_model
from llm2slm.types import Batch, UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

LENGTHS = (1, 2, 4, 8, 16, 24, 32)
"""Tokens of a draft: the next longer one after drafts that were accepted whole in all rows; the next shorter one after
drafts of which less than half was accepted in all rows, or less than a quarter on average; also from batch to batch.
Each length is one captured pass of the LLM."""
FIRST_LENGTH = 4
"""Tokens of the first draft."""


@dataclass
class Counts:
    """Numbers of all batches so far.

    Attributes:
        rows: responses. tokens: of all responses. whole: responses without a rejected token.
        verifications: of the drafts of single rows. accepted: drafted tokens that the LLM accepted.
    """

    rows: int = 0
    tokens: int = 0
    whole: int = 0
    verifications: int = 0
    accepted: int = 0

    def summary(self) -> dict[str, float]:
        """The counts, accepted tokens per verification, and the share of responses without a rejected token."""
        rates = {
            "accepted_per_verification": self.accepted / max(self.verifications, 1),
            "share_accepted_whole": self.whole / max(self.rows, 1),
        }
        return asdict(self) | rates

    def line(self) -> str:
        """The counts in words."""
        found = self.summary()
        return (f"{found['accepted_per_verification']:.1f} drafted tokens accepted per verification, "
                f"{found['share_accepted_whole']:.0%} of {self.rows:,} responses without a rejected token")  # fmt: skip


class LosslessDecoder(OneModelDecoder):
    """The LLM's responses, from drafts of a hybrid.

    Args:
        hybrid: drafts. llm: the LLM as a system that generates alone; `models.llm.share_weights` lets both share the
            encoding of the prompt.
        lengths: of drafts, in ascending order.
        compiled: the passes of both are compiled, and on a CPU the hybrid drafts with int8 weights, which may change
            drafts and not responses.

    Attributes:
        name: lossless or compiled_lossless.
        counts: of all batches so far. size: position in `lengths` of the next draft's length; first: of the first one.

    Raises:
        UserError: the steps of one of them cannot be captured.
    """

    def __init__(
        self, hybrid: LLM2SLM, llm: LLM2SLM, lengths: Sequence[int] = LENGTHS, *, compiled: bool = False
    ) -> None:
        self.name = "compiled_lossless" if compiled else "lossless"
        for model in (hybrid, llm):
            if reason := misfit(model):
                raise UserError(f"decoding={self.name}: {reason}; use decoding=generate")
        self.model, self.hybrid, self.lengths, self.counts = llm, hybrid, tuple(lengths), Counts()
        self.size = self.first = next((i for i, n in enumerate(self.lengths) if n >= FIRST_LENGTH), len(lengths) - 1)
        prompts = compiled_products(llm, self.name) if compiled else None
        self.verifier = StaticForward(llm, Compiled(name=self.name) if compiled else None, prompts)
        self.reader = Forward(llm, self.verifier.reading)
        tokenizers = hybrid.collator.slm_tokenizer, llm.collator.slm_tokenizer
        int8 = Int8() if hybrid.device.type == "cpu" else None
        prompts = compiled_products(hybrid, self.name) if compiled else None
        drafting = StaticForward(hybrid, Compiled(int8, self.name) if compiled else None, prompts)
        self.reading = drafting.reading  # in the dtype of the models, also where drafts are in int8
        self.same_tokens = tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
        self.drafter: Drafter = SameTokens(drafting) if self.same_tokens else OtherTokens(drafting, *tokenizers)

    def batch(self, texts: Sequence[str]) -> tuple[Batch, Batch]:
        """See `Decoder`: the prompts for the hybrid and for the LLM."""
        hybrid, llm = (model.collator.batch_of_texts(list(texts)) for model in (self.hybrid, self.model))
        return hybrid.to(self.hybrid.device), llm.to(self.model.device)

    @torch.no_grad()
    def generate(
        self,
        batch: tuple[Batch, Batch],
        generation_config: GenerationConfig | None = None,
        *,
        on_tokens: OnTokens | None = None,
        **arguments: Any,
    ) -> Tensor:
        """See `Decoder`. The generation config is the LLM's.

        Raises:
            UserError: settings that are not supported; sampling with a hybrid of another tokenizer.
        """
        config = settings(self.model, generation_config, **arguments)
        refuse(left_to_generate(config), config, self.name)
        if config.do_sample and not self.same_tokens:
            raise UserError(f"decoding={self.name} with do_sample=true: LLM and SLM have different tokenizers; sampled "
                            "drafts can only be verified in tokens of the LLM; use greedy decoding")  # fmt: skip
        if config.do_sample:
            self.size = self.first  # the random numbers of a batch do not depend on earlier ones
        copies, limit = config.num_return_sequences or 1, int(config.max_new_tokens)
        with self.reader.reading.active(), self.reading.active():
            prompt, llm_prompt, started = read(self.hybrid, self.reader, *batch, copies)
        language_model.check_positions(self.model.slm, llm_prompt, limit)
        choice = chooser(self.model, llm_prompt, config, llm_prompt.mask_BQ.device)
        responses = Responses(len(llm_prompt.mask_BQ), limit, self.lengths[-1], padding(config), choice)
        self.drafter.start(prompt, responses.columns)
        if started is None:  # the LLM processes the first draft together with the prompt
            draft = self._draft(responses, choice)
            state, logits_BQV = self.reader.read(llm_prompt, draft.ids_BN)
            self._accept(draft, logits_BQV, responses, choice, on_tokens)
            adopted = self.verifier.adopted(state, responses.columns, behind=draft.ids_BN.shape[1])
        else:
            state, logits_BV = started
            responses.append(choice(responses.ids_RT[:, :0], logits_BV).unsqueeze(1), responses.counts_R, 0)
            if on_tokens is not None:
                on_tokens(responses.rows_B, responses.ids_RT[:, :1], responses.counts_R.clone())
            adopted = self.verifier.adopted(state, responses.columns)
        self._rounds(responses, adopted, choice, on_tokens)
        self.counts.rows += len(responses.ids_RT)
        self.counts.tokens += int(responses.counts_R.sum())
        self.counts.whole += int(responses.whole_R.sum())
        return responses.padded()

    def _rounds(self, responses: Responses, state: StaticState, choice: Choice, on_tokens: OnTokens | None) -> None:
        """Drafts and verifies until every response is complete."""
        while (active_B := responses.active()).any():
            if 2 * int(active_B.sum()) <= len(active_B):
                kept_K = active_B.nonzero().squeeze(1)
                state = state.keep(kept_K)
                self.drafter.keep(kept_K)
                responses.keep(kept_K)
            draft = self._draft(responses, choice)
            logits_BQV = self._verified(state, *responses.current(), draft.ids_BN)
            self._accept(draft, logits_BQV, responses, choice, on_tokens)

    def _draft(self, responses: Responses, choice: Choice) -> Draft:
        """A draft of the length that the last ones suggest, and not beyond the longest possible response."""
        ids_BT, counts_B = responses.current()
        active_B = responses.active()
        left = responses.limit - int(counts_B[active_B].min())
        return self.drafter.draft(ids_BT, counts_B, active_B, min(self.lengths[self.size], left), choice)

    def _accept(
        self, draft: Draft, logits_BQV: Tensor, responses: Responses, choice: Choice, on_tokens: OnTokens | None
    ) -> None:
        """Adds the accepted tokens of a draft and the LLM's next one to the responses, and adapts the draft length."""
        ids_BT, counts_B = responses.current()
        active_B, drafted = responses.active(), draft.ids_BN.shape[1]
        scores_BQV = choice.scores_along(_appended(ids_BT, counts_B, draft.ids_BN), counts_B, logits_BQV)
        ids_BQ, accepted_B = accepted(draft, scores_BQV, sampled=choice.sampled)
        new_B = responses.append(ids_BQ, accepted_B, drafted)
        self.counts.verifications += int(active_B.sum())
        self.counts.accepted += int(torch.minimum(accepted_B, new_B)[active_B].sum())
        if on_tokens is not None:
            on_tokens(responses.rows_B[active_B], ids_BQ[active_B, : int(new_B.max())], new_B[active_B])
        if drafted >= self.lengths[self.size] and bool((accepted_B >= drafted)[active_B].all()):
            self.size = min(self.size + 1, len(self.lengths) - 1)
        elif _rejected(accepted_B[active_B], drafted):
            self.size = max(self.size - 1, 0)

    def _verified(self, state: StaticState, ids_BT: Tensor, counts_B: Tensor, draft_BN: Tensor) -> Tensor:
        """logits_BQV at the positions of a draft and after it, Q = N + 1.

        The pass is over the next longer one of `lengths` of tokens; the logits of the surplus ones are left out.
        """
        drafted = draft_BN.shape[1]
        padded = next(length for length in self.lengths if length >= drafted)
        last_B1 = ids_BT.gather(1, (counts_B - 1).unsqueeze(1))
        ids_BQ = torch.cat([last_B1, draft_BN, draft_BN.new_zeros(len(draft_BN), padded - drafted)], dim=1)
        steps_Q = torch.arange(padded + 1, device=ids_BT.device)
        slots_BQ = state.length + (counts_B - 1).unsqueeze(1) + steps_Q
        return state.session.advance(ids_BQ, slots_BQ)[:, : drafted + 1]


def _rejected(accepted_B: Tensor, drafted: int) -> bool:
    """Whether the LLM accepted so little that shorter drafts cost less."""
    return bool((2 * accepted_B < drafted).all()) or 4 * int(accepted_B.sum()) < drafted * len(accepted_B)


def _appended(ids_BT: Tensor, counts_B: Tensor, draft_BN: Tensor) -> Tensor:
    """Responses with a draft after each."""
    columns_BN = counts_B.unsqueeze(1) + torch.arange(draft_BN.shape[1], device=ids_BT.device)
    return ids_BT.scatter(1, columns_BN, draft_BN)
