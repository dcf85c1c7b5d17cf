"""Cascade decoding: the hybrid answers; where its confidence is below a threshold, the LLM generates the answer anew.

The confidence is computed from the logits of which the hybrid's tokens are chosen, without a further pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from llm2slm.decoding.choice import left_to_generate, refuse
from llm2slm.decoding.decoder import OnTokens
from llm2slm.decoding.forward import Forward
from llm2slm.decoding.loop import Step, collected, padding, settings, stream, stream_after
from llm2slm.decoding.reading import encoded, shares_the_encoding
from llm2slm.decoding.static import StaticForward, misfit
from llm2slm.models.slm import end_tokens
from llm2slm.types import Batch, Confidence, Reps

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


@dataclass(frozen=True)
class Rule:
    """Which answers the LLM writes: those whose confidence is below the threshold.

    Attributes:
        threshold: -inf: none; inf: all.
        confidence: mean or minimum of the natural log-probabilities of an answer's tokens, its end token included.
    """

    threshold: float
    confidence: Confidence = Confidence.mean


@dataclass
class Counts:
    """Numbers of all batches so far: answers, and those that the LLM wrote."""

    rows: int = 0
    rewritten: int = 0

    def summary(self) -> dict[str, float]:
        """The counts, and the share of answers that the LLM wrote."""
        return asdict(self) | {"share_rewritten": self.rewritten / max(self.rows, 1)}

    def line(self) -> str:
        """The counts in words."""
        return f"the LLM wrote {self.rewritten:,} of {self.rows:,} answers"


class LogProbabilities:
    """Log-probabilities of the tokens of R responses, as they are generated; by the logits before any setting."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.sum_R, self.min_R, self.tokens_R = torch.zeros(3, rows, device=device)

    def of(self, steps: Iterable[Step]) -> Iterator[Step]:
        """The steps, each counted."""
        for step in steps:
            every_BV = step.logits_BV.float().log_softmax(-1)
            each_B = every_BV.gather(1, step.ids_B.unsqueeze(1)).squeeze(1)
            self.sum_R[step.rows_B] += each_B
            self.min_R[step.rows_B] = torch.minimum(self.min_R[step.rows_B], each_B)
            self.tokens_R[step.rows_B] += 1
            yield step

    def confidence(self, measure: Confidence) -> Tensor:
        """Of each response: (R,); -inf where a logit is not a number."""
        found_R: Tensor = self.sum_R / self.tokens_R if measure is Confidence.mean else self.min_R
        return found_R.masked_fill(found_R.isnan(), -torch.inf)


@dataclass(frozen=True)
class Answered:
    """The hybrid's responses to a batch.

    Attributes:
        ids_RT: padded on the right; those of a prompt's samples are consecutive.
        scores: from which their confidence is computed.
        reps: the LLM's representations of the prompts, if its responses need no other encoding.
    """

    ids_RT: Tensor
    scores: LogProbabilities
    reps: Reps | None


class CascadeDecoder:
    """The hybrid's responses, and the LLM's in place of those of low confidence.

    Where the two have different tokenizers, the LLM's ids are shifted by the size of the hybrid's vocabulary, so that
    one tensor holds the responses of both; `decode` decodes each response by its tokenizer.

    Args:
        hybrid: answers first. llm: the LLM as a system that generates alone; `models.llm.share_weights` lets both share
            the encoding of the prompt.
        rule: which answers the LLM writes.

    Attributes:
        counts: of all batches so far.
    """

    name = "cascade"
    streams = False
    token_by_token = False

    def __init__(self, hybrid: LLM2SLM, llm: LLM2SLM, rule: Rule) -> None:
        self.model, self.llm, self.rule, self.counts = hybrid, llm, rule, Counts()
        self.forward, self.llm_forward = _forward(hybrid), _forward(llm)
        self.llm_rows_forward = Forward(llm, self.llm_forward.reading)
        tokenizers = hybrid.collator.slm_tokenizer, llm.collator.slm_tokenizer
        same = tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
        self.shift = 0 if same else int(hybrid.slm.get_input_embeddings().weight.shape[0])

    def batch(self, texts: Sequence[str]) -> tuple[Batch, Batch]:
        """See `Decoder`: the prompts for the hybrid and for the LLM."""
        hybrid, llm = (model.collator.batch_of_texts(list(texts)) for model in (self.model, self.llm))
        return hybrid.to(self.model.device), llm.to(self.llm.device)

    @torch.no_grad()
    def generate(
        self,
        batch: tuple[Batch, Batch],
        generation_config: GenerationConfig | None = None,
        *,
        on_tokens: OnTokens | None = None,
        **arguments: Any,
    ) -> Tensor:
        """See `Decoder`. The generation config (None: that of each model) and the arguments apply to both models.

        Raises:
            UserError: settings that are `left_to_generate`.
        """
        answered = self.answer(batch, generation_config, **arguments)
        confidence_R = answered.scores.confidence(self.rule.confidence)
        rows_K = (confidence_R < self.rule.threshold).nonzero().squeeze(1)
        self.counts.rows += len(confidence_R)
        self.counts.rewritten += len(rows_K)
        ids_RT = answered.ids_RT
        if len(rows_K):
            ids_KT = self.rewrite(batch, rows_K, answered.reps, generation_config, **arguments) + self.shift
            ids_RT = self._merged(ids_RT, rows_K, ids_KT.to(ids_RT.device))
        if on_tokens is not None:
            on_tokens(torch.arange(len(ids_RT)), ids_RT, self._lengths(ids_RT))
        return ids_RT

    def answer(
        self, batch: tuple[Batch, Batch], generation_config: GenerationConfig | None = None, **arguments: Any
    ) -> Answered:
        """The hybrid's responses, with their confidence; arguments and errors as for `generate`."""
        prompts, llm_prompts = batch
        config = settings(self.model, generation_config, **arguments)
        refuse(left_to_generate(config), config, self.name)
        rows = len(prompts.slm_mask_BQ) * (config.num_return_sequences or 1)
        scores = LogProbabilities(rows, prompts.slm_mask_BQ.device)
        reps: Reps | None = None
        with torch.no_grad():
            shared = shares_the_encoding(self.model, self.llm, prompts, llm_prompts)
            if shared and self.llm.slm.config.is_encoder_decoder:
                with self.forward.reading.active():
                    reps = self.model.represent(prompts)
            steps = stream(self.model, prompts, config, reps, self.forward)
            return Answered(collected(scores.of(steps), rows, padding(config)), scores, reps)

    def rewrite(
        self,
        batch: tuple[Batch, Batch],
        rows_K: Tensor,
        reps: Reps | None = None,
        generation_config: GenerationConfig | None = None,
        **arguments: Any,
    ) -> Tensor:
        """The LLM's responses in place of some of the hybrid's, in ids of the LLM: ids_KT, padded on the right.

        Args:
            rows_K: of `Answered.ids_RT`. reps: of `Answered`; None: the LLM encodes the prompts.
        """
        copies = settings(self.model, generation_config, **arguments).num_return_sequences or 1
        config = settings(self.llm, generation_config, **arguments | {"num_return_sequences": 1})
        # the number of rows differs between batches: to capture the steps for each would take longer than it saves
        forward = self.llm_forward if len(rows_K) == 1 else self.llm_rows_forward
        prompts_K = (rows_K // copies).to(batch[1].slm_mask_BQ.device)
        with torch.no_grad():
            if left_to_generate(config):
                ids_KT: Tensor = self.llm.generate(_rows(batch[1], prompts_K), config)
                return ids_KT
            if reps is None:
                steps = stream(self.llm, _rows(batch[1], prompts_K), config, forward=forward)
            else:
                prompt = encoded(reps, batch[1]).rows(prompts_K)
                steps = stream_after(self.llm, prompt, config, forward)
            return collected(steps, len(rows_K), padding(config))

    def decode(self, ids_BT: Tensor) -> list[str]:
        """See `Decoder`."""
        if not self.shift:
            return self.model.collator.decode(ids_BT)
        theirs_B = ids_BT[:, 0] >= self.shift
        texts = self.model.collator.decode(ids_BT.masked_fill(theirs_B.unsqueeze(1), 0))
        llm_texts = self.llm.collator.decode((ids_BT[theirs_B] - self.shift).clamp(min=0))
        for row, text in zip(theirs_B.nonzero().squeeze(1).tolist(), llm_texts, strict=True):
            texts[row] = text
        return texts

    @property
    def ends(self) -> set[int]:
        """See `Decoder`."""
        theirs = {token + self.shift for token in end_tokens(self.llm.generation_config)}
        return set(end_tokens(self.model.generation_config)) | theirs

    def _merged(self, ids_RT: Tensor, rows_K: Tensor, ids_KT: Tensor) -> Tensor:
        """The hybrid's responses with some rows replaced by the LLM's, each padded with its own padding."""
        if len(rows_K) == len(ids_RT):
            return ids_KT
        width = max(ids_RT.shape[1], ids_KT.shape[1])
        pads = padding(settings(self.model)), padding(settings(self.llm)) + self.shift
        ours, theirs = (
            torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=pad)
            for ids, pad in zip((ids_RT, ids_KT), pads, strict=True)
        )
        ours[rows_K] = theirs
        return ours

    def _lengths(self, ids_RT: Tensor) -> Tensor:
        """Tokens of each response, its end token included: (R,)."""
        ended_RT = torch.isin(ids_RT, torch.tensor(sorted(self.ends), dtype=ids_RT.dtype, device=ids_RT.device))
        return torch.where(ended_RT.any(1), ended_RT.long().argmax(1) + 1, ids_RT.shape[1])


def _forward(model: LLM2SLM) -> Forward:
    """Captured steps where they fit, else steps with a cache that grows."""
    return Forward(model) if misfit(model) else StaticForward(model)


def _rows(batch: Batch, rows_K: Tensor) -> Batch:
    """Some rows of a batch of a system without an encoder, without columns that are padding in all of them."""
    ids_KQ, mask_KQ = batch.slm_ids_BQ[rows_K], batch.slm_mask_BQ[rows_K]
    real_Q = mask_KQ.bool().any(0)
    return replace(batch, slm_ids_BQ=ids_KQ[:, real_Q], slm_mask_BQ=mask_KQ[:, real_Q], indices=())
