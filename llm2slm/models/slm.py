"""One interface to transformers' encoder-decoder and decoder-only language models (the SLM).

Input is a `Prompt` (`models/prompt.py`); output are logits or generated ids.
"""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import ModelOutput

from llm2slm.models.loading.published import FORCED_END, OF_TOKENS, drop_token_ids, drop_unsupported
from llm2slm.models.prompt import Prompt, cached_prefix, embed, extended, prompt_arguments, with_soft_prompts
from llm2slm.models.sequences import positions
from llm2slm.models.soft_prompts import PREFIX, virtual_tokens
from llm2slm.types import IGNORE_INDEX, UserError


def contiguous_head(slm: PreTrainedModel) -> PreTrainedModel:
    """The model, its output layer given contiguous inputs. transformers gives it a slice of one position, for which a
    bfloat16 product on a CPU copies the whole matrix once a row (270 MB a row with 151,936 entries of width 896)."""
    head = slm.get_output_embeddings()
    if head is not None and _contiguous not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(_contiguous)
    return slm


def _contiguous(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.contiguous() if isinstance(value, Tensor) else value for value in inputs)


def response_output(
    slm: PreTrainedModel, prompt: Prompt, labels_BT: Tensor, decoder_ids_BT: Tensor | None = None, **wanted: Any
) -> ModelOutput:
    """The SLM's output under teacher forcing: at position t it is conditioned on the prompt and the response before t.

    Args:
        labels_BT: the response, padded on the right with IGNORE_INDEX.
        decoder_ids_BT: the decoder's input, if it is not that of the labels; without effect if prompt and response are
            one sequence.
        wanted: output_attentions, output_hidden_states.

    Returns:
        transformers' output. Its `logits` are logits_BTV of the response. Hidden states and attentions of a
        decoder-only model are those of its whole input: the prompt, then the response.
    """
    prompt = with_soft_prompts(slm, prompt)
    before, cached = cached_prefix(slm, len(labels_BT), prompt)
    if prompt.cross_attended or slm.config.is_encoder_decoder:
        ids_BT = decoder_inputs(slm, labels_BT) if decoder_ids_BT is None else decoder_ids_BT
        inputs = {"decoder_input_ids": ids_BT}
        if not slm.config.is_encoder_decoder:
            inputs = {"input_ids": ids_BT, "attention_mask": extended(torch.ones_like(ids_BT), before)}
        crossed: ModelOutput = slm(**inputs, **prompt_arguments(slm, prompt), **cached, **wanted)
        return crossed
    real_BT = labels_BT != IGNORE_INDEX
    response_BTD = embed(slm, labels_BT.masked_fill(~real_BT, 0))
    states = torch.cat([prompt.states_BQD, response_BTD.to(prompt.states_BQD.dtype)], dim=1)
    before_response = prompt.whole_mask if prompt.cache is not None else extended(prompt.mask_BQ, before)
    mask = torch.cat([before_response, real_BT.to(prompt.mask_BQ.dtype)], dim=1)
    length = labels_BT.shape[1] + 1  # the last prompt position predicts the first response token
    keep = {"logits_to_keep": length} if "logits_to_keep" in inspect.signature(slm.forward).parameters else {}
    position_ids = positions(mask)[:, before:]
    output: ModelOutput = slm(
        inputs_embeds=states, attention_mask=mask, position_ids=position_ids, **cached, **keep, **wanted
    )
    output.logits = output.logits[:, -length:-1]
    return output


def start_token(slm: PreTrainedModel) -> int:
    """The first decoder token of `generate` if no prompt precedes the response.

    Raises:
        UserError: the model's configs have none.
    """
    names = ["decoder_start_token_id", "bos_token_id"]
    if not slm.config.is_encoder_decoder:
        names.append("eos_token_id")  # which GPT-2 starts with as well
    for name in names:
        for config in (slm.generation_config, slm.config):
            token = getattr(config, name, None)
            if token is not None:
                return int(token[0] if isinstance(token, list) else token)
    raise UserError(
        f"SLM {slm.config.model_type}: none of {', '.join(names)} is set, so no response could start; set one in its "
        "generation_config.json or config.json"
    )


def decoder_inputs(slm: PreTrainedModel, labels_BT: Tensor) -> Tensor:
    """The decoder's input under teacher forcing: the start token of `generate`, then the labels.

    The model's `prepare_decoder_input_ids_from_labels` is not used: mBART's starts with the last label (the language),
    so that training and generation would start differently.

    Args:
        labels_BT: the response, padded on the right with IGNORE_INDEX.
    """
    start = start_token(slm)
    ids_BT = labels_BT.new_full(labels_BT.shape, start)
    ids_BT[:, 1:] = labels_BT[:, :-1]
    # positions after a response have no loss: any token is valid
    return ids_BT.masked_fill(ids_BT == IGNORE_INDEX, start)


def greedy(slm: PreTrainedModel, pad: int, eos: int | None, *, own_tokens: bool = True) -> dict[str, str]:
    """Sets a model's default generation settings, in place: greedy decoding up to its end tokens.

    Other published settings are dropped, except `published.KEPT`. The end tokens are the tokenizer's eos, and all
    published ones if the eos is among them: an instruction model ends its turn with a token that may not be the eos.

    Args:
        own_tokens: published token ids refer to the tokenizer in use; else settings of token ids are dropped, except a
            forced end that is the eos.

    Returns:
        The dropped settings, each with its value and a reason, as text.
    """
    config, vocabulary = slm.generation_config, slm.config.get_text_config().vocab_size
    published = config.eos_token_id
    replaced = {} if own_tokens else drop_token_ids(config, lambda name, ids: name == FORCED_END and ids == [eos])
    dropped = drop_unsupported(config, vocabulary)
    outside = {name: dropped.pop(name) for name in OF_TOKENS if name in dropped}
    config.do_sample, config.pad_token_id, config.eos_token_id = False, pad, eos
    if isinstance(published, list) and len(published) > 1:
        if not own_tokens:
            replaced["eos_token_id"] = published
        elif eos in published:
            config.eos_token_id = published
        else:
            dropped["eos_token_id"] = published
    reasons = (
        (dropped, ""),
        (outside, f" (not in the vocabulary of {vocabulary})"),
        (replaced, " (token ids of another tokenizer)"),
    )
    return {
        name: f"{str(value).replace(' ', '')}{reason}" for values, reason in reasons for name, value in values.items()
    }


def end_tokens(config: GenerationConfig) -> frozenset[int]:
    """The tokens that end a response."""
    ends = config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def begin_as_trained(slm: PreTrainedModel, eos: int | None) -> None:
    """Makes the generated responses of a model in training begin and end like its labels, in place.

    Some models are published with a forced first token (BART: its bos; mBART: the language), or with several end
    tokens. Labels have no forced first token, and end with the tokenizer's eos.
    """
    slm.generation_config.forced_bos_token_id = None
    slm.generation_config.eos_token_id = eos


def generate(
    slm: PreTrainedModel,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    by: PreTrainedModel | None = None,
    **arguments: Any,
) -> Any:
    """transformers' own `generate` on a prompt of vectors.

    Args:
        config: values for arguments that are not given; None: the model's. `max_length` counts the response (and a
            start token, if there is one), as the prompt is not returned.
        by: a model that computes the SLM's logits after this prompt. It gets inputs of the same lengths, without
            vectors and caches. None: the SLM itself.

    Returns:
        ids_BT, response tokens only (without the start token), right-padded; with `return_dict_in_generate`
        transformers' output object, with such `sequences`.

    Raises:
        UserError: the SLM has too few positions for the response; or a cache is disabled or of another kind while the
            SLM's cache holds a trained prefix or the prompt.
    """
    prompt = with_soft_prompts(slm, prompt)
    starts = prompt.cross_attended or slm.config.is_encoder_decoder  # else the response continues the prompt
    config = completed_config(slm, config)
    for name in [name for name in arguments if hasattr(config, name)]:  # arguments override the config
        setattr(config, name, arguments.pop(name))
        if name == "max_length":
            config.max_new_tokens = None
    if config.max_new_tokens is None and config.max_length is not None:
        config.max_new_tokens, config.max_length = config.max_length - int(starts), None
    check_positions(slm, prompt, config.max_new_tokens)
    shown = prompt if by is None else _without_vectors(slm, prompt)
    inputs = prompt_arguments(slm, shown)
    if starts and not slm.config.is_encoder_decoder:
        ids_B1 = torch.full_like(prompt.mask_BQ[:, :1], start_token(slm), dtype=torch.int64)
        inputs |= {"input_ids": ids_B1, "attention_mask": torch.ones_like(ids_B1)}
    if shown.cross_attended and slm.config.is_encoder_decoder:  # transformers creates these, on the parameters' device
        inputs["input_ids"] = torch.full_like(prompt.mask_BQ, IGNORE_INDEX, dtype=torch.int64)
    copies = 1 if by is not None else max(config.num_beams or 1, config.num_return_sequences or 1)
    inputs |= _cache_inputs(slm, shown, inputs, config, copies)
    if by is not None:
        inputs.pop("past_key_values", None)
    output = (slm if by is None else by).generate(**inputs, generation_config=config, **arguments)
    if not starts:
        return output
    if isinstance(output, Tensor):
        return output[:, 1:]
    output.sequences = output.sequences[:, 1:]
    return output


def _without_vectors(slm: PreTrainedModel, prompt: Prompt) -> Prompt:
    """A prompt of the same lengths whose states have no width, and which no encoder has to process."""
    crossed = prompt.cross_attended or slm.config.is_encoder_decoder
    return replace(prompt, states_BQD=prompt.states_BQD[..., :0], cross_attended=crossed)


def _cache_inputs(
    slm: PreTrainedModel, prompt: Prompt, inputs: dict[str, Any], config: GenerationConfig, copies: int
) -> dict[str, Any]:
    """Inputs of `generate` that differ if the cache holds a trained prefix, or keys and values of the prompt.

    The cache has `copies` rows of each prompt, one for each beam or sample, since `generate` repeats all inputs but the
    cache. Its positions are part of a decoder-only model's mask, and of its embeddings, from which `generate` removes
    the cached ones.
    """
    tokens = virtual_tokens(slm)
    prefix = tokens is not None and tokens.tune == PREFIX
    if not prefix and prompt.cache is None:
        return {}
    if config.cache_implementation is not None or config.use_cache is False:
        name = "use_cache=False" if config.use_cache is False else f"cache_implementation={config.cache_implementation}"
        kept = "the prompt's keys and values are" if prompt.cache is not None else "this model's trained prefix is"
        raise UserError(f"{name}: {kept} in a cache that is given to `generate`; leave it out")
    length, cached = cached_prefix(slm, len(inputs["attention_mask"]) * copies, prompt)
    found: dict[str, Any] = {"past_key_values": cached["past_key_values"]}
    if slm.config.is_encoder_decoder:
        return found
    if "inputs_embeds" in inputs:
        states_BQD = inputs["inputs_embeds"]
        cached_BCD = states_BQD.new_zeros(len(states_BQD), length, states_BQD.shape[2])
        found["inputs_embeds"] = torch.cat([cached_BCD, states_BQD], dim=1)
    if prompt.cache is not None:
        return found | {"attention_mask": prompt.whole_mask}
    return found | {"attention_mask": extended(inputs["attention_mask"], length)}


def completed_config(slm: PreTrainedModel, config: GenerationConfig | None) -> GenerationConfig:
    """A copy of a generation config with missing special tokens filled in, the decoder start token as in training."""
    own = slm.generation_config
    config = deepcopy(own if config is None else config)
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        if getattr(config, name) is None:
            setattr(config, name, getattr(own, name))
    if slm.config.is_encoder_decoder and config.decoder_start_token_id is None:
        config.decoder_start_token_id = start_token(slm)
    return config


def check_positions(slm: PreTrainedModel, prompt: Prompt, new_tokens: int | None) -> None:
    """Refuses a response that exceeds the position embeddings, which would be an index error during generation.

    Raises:
        UserError: with the numbers of positions and tokens.
    """
    positions = getattr(slm.config.get_text_config(), "max_position_embeddings", None)
    if positions is None or new_tokens is None:
        return
    read = 0 if prompt.cross_attended or slm.config.is_encoder_decoder else int(prompt.whole_mask.sum(1).max())
    tokens = virtual_tokens(slm)
    read += (
        tokens.length if tokens is not None and tokens.tune == PREFIX else 0
    )  # those of prompt tuning are in the mask
    if read + new_tokens > positions:
        raise UserError(
            f"max_new_tokens={new_tokens} behind a prompt of {read} tokens exceeds the SLM's {positions} positions; "
            f"at most {max(positions - read, 0)} fit"
        )
