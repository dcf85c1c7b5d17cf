"""The choice of the next token from logits: greedy or sampled, after the settings of a generation config.

The settings are applied by transformers' logits processors, in the order in which `generate` applies them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    ForcedBOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm2slm.models.loading.published import NEUTRAL, OF_SAMPLING
from llm2slm.models.slm import end_tokens
from llm2slm.types import UserError

APPLIED = {
    *("repetition_penalty", "no_repeat_ngram_size", "min_length", "min_new_tokens", "suppress_tokens"),
    *("forced_bos_token_id", "temperature", "top_k", "top_p", "min_p"),
}
"""Settings that are applied here; others of `NEUTRAL` and `OF_SAMPLING` are left to `generate`."""
ELSEWHERE: dict[str, Any] = {
    "num_beams": 1,
    "stop_strings": None,
    "max_time": None,
    "return_dict_in_generate": False,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "renormalize_logits": False,
    "remove_invalid_values": False,
}
"""Settings of other algorithms and outputs, which are left to `generate`, each with its neutral value."""
OF_THE_MODEL: dict[str, Any] = {
    # algorithms that take tokens back, read hidden states, run the model without the prompt, or are code of the Hub
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "use_mtp": False,
    "penalty_alpha": None,
    "dola_layers": None,
    "guidance_scale": 1.0,
    "num_beam_groups": 1,
    "constraints": None,
    "force_words_ids": None,
    # how the model computes
    "use_cache": True,
    "cache_implementation": None,
    "prefill_chunk_size": None,
    "token_healing": False,
}
"""Settings with which `generate` needs the model itself, and not only the logits of its steps; with neutral values."""
OF_OUTPUTS: dict[str, Any] = {"output_attentions": False, "output_hidden_states": False}
"""The same where `return_dict_in_generate` is set; otherwise they have no effect."""


def left_to_generate(config: GenerationConfig) -> list[str]:
    """The settings of a config that need transformers' `generate`, in alphabetical order; [] if none does."""
    neutral = {name: value for name, value in NEUTRAL.items() if name not in APPLIED} | ELSEWHERE
    if config.do_sample:
        neutral |= {name: value for name, value in OF_SAMPLING.items() if name not in APPLIED}
    return sorted({*_changed(config, neutral), *needs_the_model(config)})


def needs_the_model(config: GenerationConfig) -> list[str]:
    """Those of `left_to_generate` for which the logits of steps are not enough, in alphabetical order."""
    return sorted(_changed(config, OF_THE_MODEL | (OF_OUTPUTS if config.return_dict_in_generate else {})))


def _changed(config: GenerationConfig, neutral: dict[str, Any]) -> list[str]:
    """The settings that have another value than the neutral one."""
    values = {name: getattr(config, name, None) for name in neutral}
    return [name for name, value in values.items() if value not in (None, neutral[name])]


def refuse(names: Iterable[str], config: GenerationConfig, decoding: str) -> None:
    """Refuses settings of a config that a decoder does not support.

    Raises:
        UserError: there are such `names`.
    """
    if given := ", ".join(f"{name}={getattr(config, name)}" for name in names):
        raise UserError(f"{given}: decoding={decoding} does not support it; use decoding=generate")


TOP_K = 50
"""transformers' default of top_k, if neither the model nor the call sets it."""


class Choice:
    """Chooses tokens, and decides when a row is finished.

    Args:
        config: complete (`slm.completed_config`), with nothing that is `left_to_generate`.
        start: the decoder's start token, which `generate` counts among the ids; None: the response follows the prompt.
        prompt: positions of the prompt, with padding, in front of the response; min_length counts them.
        device: of the logits.
    """

    def __init__(self, config: GenerationConfig, start: int | None, prompt: int, device: torch.device) -> None:
        self.sampled = bool(config.do_sample)
        self.start = start
        self.ends = torch.tensor(sorted(end_tokens(config)), dtype=torch.int64, device=device)
        counted = int(start is not None)
        shortest = max(config.min_new_tokens or 0, (config.min_length or 0) - prompt - counted)
        self.shortest = shortest if len(self.ends) else 0
        self.processors = LogitsProcessorList(_processors(config, device))

    def __call__(self, ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        """The next token of each row: ids_B.

        Args:
            ids_BT: the response so far.
        """
        return self.drawn(self.scores(ids_BT, logits_BV))

    def scores(self, ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        """Logits after all settings, float32: scores_BV; arguments as above."""
        scores_BV = logits_BV.to(torch.float32, copy=True)
        if ids_BT.shape[1] < self.shortest:
            scores_BV[:, self.ends] = -torch.inf
        if self.start is not None and self.processors:
            ids_BT = torch.cat([ids_BT.new_full((len(ids_BT), 1), self.start), ids_BT], dim=1)
        for processor in self.processors:
            scores_BV = processor(ids_BT, scores_BV)
        return scores_BV

    def scores_along(self, ids_BT: Tensor, counts_B: Tensor, logits_BQV: Tensor) -> Tensor:
        """Scores of Q consecutive tokens of every row: scores_BQV.

        Args:
            ids_BT: the responses, with the tokens before each of the Q positions.
            counts_B: number of tokens before the first of the positions.
            logits_BQV: of the tokens at the positions counts_B, counts_B + 1, ...
        """
        scores_BQV = logits_BQV.to(torch.float32)
        if not self.processors and not self.shortest:
            return scores_BQV
        steps_Q = torch.arange(logits_BQV.shape[1], device=counts_B.device)
        scores_BQV = scores_BQV.clone()
        if self.shortest:
            blocked_V = torch.zeros(logits_BQV.shape[2], dtype=torch.bool, device=counts_B.device)
            blocked_V[self.ends] = True
            short_BQ = counts_B.unsqueeze(1) + steps_Q < self.shortest
            scores_BQV.masked_fill_(short_BQ.unsqueeze(-1) & blocked_V, -torch.inf)
        if self.processors:  # they take responses of one length
            for row, count in enumerate(counts_B.tolist()):
                for step, logits_V in enumerate(scores_BQV[row]):
                    before_1T = ids_BT[row : row + 1, : count + step]
                    scores_BQV[row, step] = self.scores(before_1T, logits_V.unsqueeze(0))[0]
        return scores_BQV

    def drawn(self, scores_BV: Tensor) -> Tensor:
        """The most probable token of each row, or a sampled one: ids_B."""
        if not self.sampled:
            return scores_BV.argmax(-1)
        return torch.multinomial(scores_BV.softmax(-1), num_samples=1).squeeze(1)

    def ended(self, ids_B: Tensor) -> Tensor:
        """Whether each token ends its response: (B,)."""
        return torch.isin(ids_B, self.ends)


def _processors(config: GenerationConfig, device: torch.device) -> list[Any]:
    """transformers' logits processors for the settings that are not neutral, but for the minimum length."""
    found: list[Any] = []
    if config.repetition_penalty not in (None, 1.0):
        found.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.forced_bos_token_id is not None:
        found.append(ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id))
    if config.suppress_tokens is not None:
        found.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
    if not config.do_sample:
        return found
    if config.temperature not in (None, 1.0):
        found.append(TemperatureLogitsWarper(config.temperature))
    if top_k := TOP_K if config.top_k is None else config.top_k:
        found.append(TopKLogitsWarper(top_k))
    if config.top_p is not None and config.top_p < 1.0:
        found.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        found.append(MinPLogitsWarper(config.min_p))
    return found
