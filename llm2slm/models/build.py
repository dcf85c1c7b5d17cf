"""Systems (hybrid, SLM alone, LLM alone) put together from a configuration."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llm2slm.config import DataConfig, LanguageModelConfig, LLMConfig, ModelConfig
from llm2slm.data.processor import LLM2SLMProcessor
from llm2slm.data.prompts import frame
from llm2slm.data.tokenizer import first_added, load_tokenizer
from llm2slm.gguf_files.names import is_gguf, on_hub
from llm2slm.models.conditioning import IN_PLACE
from llm2slm.models.control import check_control
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.kv import kv_record
from llm2slm.models.pretrained import (
    BUILTIN,
    commit,
    is_local,
    load_encoder,
    load_language_model,
    locate,
    model_config,
)
from llm2slm.models.published import OF_TOKENS
from llm2slm.models.slm import greedy, has_cross_attention
from llm2slm.models.stored import Reader, StoredReader
from llm2slm.models.tuning import FULL, choose_trainable
from llm2slm.models.virtual import PREFIX, PROMPT, taken, virtual_tokens
from llm2slm.models.vocabulary import adapt, check_trained
from llm2slm.types import Conditioning, Init, Start, SystemKind, Tokenizers, UserError


def writer_config(cfg: ModelConfig) -> LanguageModelConfig:
    """The configuration of whoever writes: the LLM itself for kind llm, else the SLM."""
    return cfg.llm if cfg.kind is SystemKind.llm else cfg.slm


def load_tokenizers(cfg: ModelConfig) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase | None]:
    """The writer's tokenizer, and the reader's (the same object where they are shared; None without guidance).

    Raises:
        UserError: one is not named, or two are to be shared that differ.
    """
    llm, slm = cfg.llm, cfg.slm
    shared = cfg.tokenizers is Tokenizers.shared
    # random weights fit any tokenizer: they take the LLM's, in the hybrid and in the SLM it is compared with alike
    follows = shared and slm.tokenizer is None and slm.start is Init.random
    if cfg.kind is SystemKind.llm:
        return _tokenizer(llm), None
    if cfg.kind is SystemKind.slm:
        return _tokenizer(llm if follows and (llm.tokenizer or llm.source) else slm), None
    llm_tokenizer = _tokenizer(llm)
    if not shared:
        return _tokenizer(slm), llm_tokenizer
    if not follows and _tokenizer(slm).get_vocab() != llm_tokenizer.get_vocab():
        other = "leave model.slm.tokenizer out" if slm.tokenizer else "model.slm.init=random"
        names = " and ".join(str(side.tokenizer or side.source) for side in (llm, slm))
        raise UserError(
            f"model.tokenizers=shared: the vocabularies of {names} differ; use model.tokenizers=offsets or "
            f"llm_tokens, or {other}"
        )
    return llm_tokenizer, llm_tokenizer


def _tokenizer(side: LanguageModelConfig) -> PreTrainedTokenizerBase:
    name = side.tokenizer or side.source
    if name is None:
        key = "llm" if isinstance(side, LLMConfig) else "slm"
        raise UserError(f"model.{key}.name is not set, so no tokenizer is known; set it (or model.{key}.tokenizer)")
    return load_tokenizer(locate(name), None if side.tokenizer else side.revision)  # the revision is the model's


def check_pair(cfg: ModelConfig, slm: PreTrainedModel) -> None:
    """Refuses a combination that cannot work, and names those that can."""
    if cfg.kind is not SystemKind.llm2slm:
        return
    possible = [Conditioning.add, Conditioning.replace, Conditioning.prepend]
    if has_cross_attention(slm):
        possible.append(Conditioning.memory)
    if not slm.config.is_encoder_decoder:
        possible.append(Conditioning.cross_attention)
        possible.append(Conditioning.kv)
    if cfg.conditioning not in possible:
        which = slm.config.model_type
        without = "" if has_cross_attention(slm) else " (it has no cross-attention)"
        what = f"a {which}{' (it is an encoder-decoder)' if slm.config.is_encoder_decoder else without}"
        raise UserError(f"model.conditioning={cfg.conditioning} does not fit {what}; possible: {', '.join(possible)}")
    if cfg.slm.tune == PROMPT and cfg.conditioning is Conditioning.memory:
        raise UserError(
            "model.slm.tune=prompt puts virtual tokens in front of the prompt that the SLM reads, and with "
            "model.conditioning=memory it reads none; use model.slm.tune=prefix, or another conditioning"
        )
    if cfg.conditioning is Conditioning.kv and cfg.slm.tune in (PROMPT, PREFIX):
        raise UserError(
            f"model.slm.tune={cfg.slm.tune} puts virtual tokens in front of the prompt, whose keys and values are the "
            "LLM's with model.conditioning=kv; use tune=full, lora or none"
        )
    if cfg.conditioning is Conditioning.kv and cfg.tokenizers is Tokenizers.llm_tokens:
        raise UserError("model.conditioning=kv: use model.tokenizers=shared or offsets; llm_tokens maps embeddings")
    if cfg.kv_blocks is not None and cfg.conditioning is not Conditioning.kv:
        raise UserError(f"model.kv_blocks is for model.conditioning=kv; it is {cfg.conditioning}")
    if cfg.projector.gate and cfg.conditioning is not Conditioning.add:
        raise UserError(
            f"model.projector.gate=true starts z at zero, which leaves conditioning={cfg.conditioning} nothing to "
            "read; use it with model.conditioning=add"
        )
    if cfg.projector.start is Start.zero and (cfg.conditioning is not Conditioning.add or cfg.projector.gate):
        why = f"leaves conditioning={cfg.conditioning} nothing to read; use it with model.conditioning=add"
        if cfg.conditioning is Conditioning.add:
            why = "and gate=true starts it at zero as well, so that neither gets a gradient; leave one of them out"
        raise UserError(f"model.projector.start=zero starts z at zero, {why}")
    if cfg.pool is not None and (cfg.conditioning is not Conditioning.prepend or cfg.pool <= 0):
        raise UserError(
            f"model.pool={cfg.pool}: a number above 0, for model.conditioning=prepend; it is {cfg.conditioning}"
        )


def projector_record(cfg: ModelConfig, slm: PreTrainedModel, encoder: Reader | None) -> dict[str, Any]:
    """Arguments of `Projector`, and how z starts where the configuration leaves it open.

    A pretrained SLM starts as itself where z is added to its own prompt embeddings, by a gate at zero: a last layer at
    zero moves by the whole learning rate in each of its elements, and its z is too large after a step. In the others
    zero is not the plain SLM: `replace` and `memory` would leave it no prompt, `prepend` puts new positions in front of
    it, and `cross_attention` has gates at zero, behind which z must not be zero too (nothing would get a gradient).
    With `memory` a pretrained decoder attends at first to the LLM's representations as they are, if the widths allow:
    to a decoder that is cut from the LLM's they are what it was trained with.

    Raises:
        UserError: `model.projector.start=identity` in another mode, or with other widths.
    """
    pretrained, memory = cfg.slm.start is Init.pretrained, cfg.conditioning is Conditioning.memory
    widths = (0, 1) if encoder is None else (encoder.width, slm.get_input_embeddings().embedding_dim)
    if cfg.projector.start is Start.identity and (not memory or widths[0] != widths[1]):
        raise UserError(
            f"model.projector.start=identity is for model.conditioning=memory with an LLM as wide as the SLM; it is "
            f"{cfg.conditioning}, with widths {widths[0]} and {widths[1]}"
        )
    own_prompt = cfg.conditioning is Conditioning.add and cfg.tokenizers is not Tokenizers.llm_tokens
    start, gate = cfg.projector.start, cfg.projector.gate
    if gate is None:
        gate = own_prompt and pretrained and start is None
    if start is None:
        warm = memory and pretrained and slm.config.is_encoder_decoder and widths[0] == widths[1]
        start = Start.identity if warm else Start.random
    return asdict(cfg.projector) | {"gate": gate, "start": start.value}


def build_model(cfg: ModelConfig, data: DataConfig | None = None, *, frozen: bool = False) -> LLM2SLM:
    """A system from its configuration, with its collator; in train mode, pretrained weights or not.

    Args:
        data: its limits on lengths, and a store of representations (`reps`) in the LLM's place; None: the defaults.
        frozen: nobody trains the model that writes.

    Raises:
        UserError: a model or tokenizer that cannot be read, or parts that do not fit together.
    """
    check_control(cfg)
    data = DataConfig() if data is None else data
    tokenizer, llm_tokenizer = load_tokenizers(cfg)
    guided = cfg.kind is SystemKind.llm2slm
    attends = guided and cfg.conditioning is Conditioning.memory
    continues = guided and cfg.conditioning is Conditioning.kv
    slm = load_language_model(writer_config(cfg), tokenizer, cross_attention=attends, frozen=frozen)
    check_pair(cfg, slm)
    own, key = writer_config(cfg), "model.llm" if cfg.kind is SystemKind.llm else "model.slm"
    # a tokenizer that came with the model has embeddings in it already
    added = first_added(tokenizer) if own.tokenizer is not None else None
    adapt(slm, tokenizer, added, own, key)
    choose_trainable(slm, own.tune, own.peft, key)
    if added is not None:
        check_trained(slm, own.tune, key)
    if not guided and not any(parameter.requires_grad for parameter in slm.parameters()):
        raise UserError(f"{key}.tune={own.tune} leaves nothing to train of a model without guidance; use full")
    encoder: Reader | None = None
    kv: dict[str, Any] | None = None
    if guided and llm_tokenizer is not None:
        kv = kv_record(cfg, slm, tokenizer, llm_tokenizer) if continues else None
        blocks = None if kv is None else kv["blocks"]
        encoder = load_encoder(cfg.llm, llm_tokenizer, blocks) if data.reps is None else StoredReader(data.reps)
    tokens = virtual_tokens(slm)
    config = LLM2SLMConfig(
        slm=deepcopy(slm.config),  # a record: PreTrainedModel changes the config it is given
        virtual_tokens=None if tokens is None else tokens.record,
        kind=cfg.kind.value,
        conditioning=(cfg.conditioning if guided else Conditioning.none).value,
        tokenizers=cfg.tokenizers.value,
        control=cfg.control.value,
        llm=reader_record(cfg.llm, encoder) if encoder is not None else None,
        projector=projector_record(cfg, slm, encoder) if guided and not continues else None,
        kv=kv,
        pool=cfg.pool,
        cross_every=cfg.cross_every,
        llm_frame=_frame_record(cfg, tokenizer, llm_tokenizer),
        limits={
            "max_prompt_tokens": data.max_prompt_tokens,
            "max_response_tokens": data.max_response_tokens,
            "overlong": data.overlong.value,
        },
    )
    model = LLM2SLM(config, slm, encoder)
    attach_processor(model, tokenizer, llm_tokenizer, own_tokens=_published_with(slm, own, tokenizer))
    if isinstance(encoder, StoredReader):
        encoder.check(model.config.llm or {}, cfg.llm.layer, model.collator, None if kv is None else kv["blocks"])
    model.train()  # transformers hands pretrained weights over in eval mode, and Lightning leaves the mode alone
    return model


def _published_with(slm: PreTrainedModel, cfg: LanguageModelConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the token ids in a model's published settings stand for the same tokens in this tokenizer.

    The published tokenizer is read only where there are such settings; where none is published, the one in use counts
    as the model's own.
    """
    config = slm.generation_config
    ids = any(getattr(config, name, None) is not None for name in OF_TOKENS) or isinstance(config.eos_token_id, list)
    if cfg.source is None or not ids:
        return True
    try:
        published = load_tokenizer(locate(cfg.source), cfg.revision)
    except UserError:
        return True
    return bool(published.get_vocab().items() <= tokenizer.get_vocab().items())


def build_llm(llm: LLMConfig, data: DataConfig | None = None) -> LLM2SLM:
    """An LLM as it is, writing alone: every command that lets one answer builds it here.

    No weight counts as trainable: `tune` and `peft` are not read, nor is `layer`. All other keys are.

    Args:
        data: its limits on lengths; None: `default_limits`.

    Raises:
        UserError: as `build_model`.
    """
    llm = replace(llm, tune=FULL, peft={})
    if data is None:
        tokenizer, _ = load_tokenizers(ModelConfig(kind=SystemKind.llm, llm=llm))
        data = DataConfig(**default_limits(model_config(llm, tokenizer)))
    model = build_model(ModelConfig(kind=SystemKind.llm, llm=llm), data, frozen=True)
    model.requires_grad_(False)
    return model


def default_limits(config: PreTrainedConfig) -> dict[str, Any]:
    """Limits on lengths of a model that records none: the defaults, its response at most half of its positions."""
    data, positions = DataConfig(), getattr(config.get_text_config(), "max_position_embeddings", None)
    response = data.max_response_tokens if positions is None else min(data.max_response_tokens, positions // 2)
    return {"max_prompt_tokens": data.max_prompt_tokens, "max_response_tokens": response}


def _frame_record(
    cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase, llm_tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any] | None:
    """What stands around a prompt for the LLM, in words: a chat template may say something else another day."""
    if cfg.kind is SystemKind.slm or not (cfg.llm.prefix or cfg.llm.chat):
        return None
    return asdict(frame(llm_tokenizer or tokenizer, cfg.llm.prefix, cfg.llm.chat))


def found_as(cfg: LanguageModelConfig) -> dict[str, Any]:
    """Name, revision and file (`gguf_file`, of a GGUF file on the Hub alone) that find a model again: the absolute path
    of a local folder or file, the commit of a Hub id."""
    name, revision = cfg.source, cfg.revision
    if name is None or name.startswith(BUILTIN):
        return {"name": name, "revision": revision}
    if is_local(name):
        return {"name": str(Path(locate(name)).resolve()), "revision": revision}
    repository = on_hub(name) if is_gguf(name) else None
    found: dict[str, Any] = {"name": name, "revision": commit(name, revision) or revision}
    return found if repository is None else found | {"name": repository[0], "gguf_file": repository[1]}


def reader_record(cfg: LLMConfig, encoder: Reader) -> dict[str, Any]:
    """How a saved hybrid names its LLM: enough to load it again. Local folders by absolute path, Hub ids by commit."""
    return (
        found_as(cfg)
        | {"layer": encoder.chosen, "dtype": cfg.dtype, "config": cfg.config}
        | {"prefix": cfg.prefix, "chat": cfg.chat, "attn_implementation": cfg.attn_implementation}
        | {"quantization": cfg.quantization, "width": encoder.width, "init": cfg.start.value}
        | {"fingerprint": encoder.fingerprint()}
    )


def attach_processor(
    model: LLM2SLM,
    tokenizer: PreTrainedTokenizerBase,
    llm_tokenizer: PreTrainedTokenizerBase | None,
    *,
    own_tokens: bool = True,
) -> None:
    """Gives a model its tokenizers, with limits no longer than its position embeddings.

    Args:
        own_tokens: the SLM was published with this tokenizer, or one that is a part of it.
    """
    config, limits = model.config, dict(model.config.limits or {})
    limits["max_prompt_tokens"] = min(limits["max_prompt_tokens"], _prompt_room(model, limits["max_response_tokens"]))
    as_it_is = model.conditioning is Conditioning.kv and not (config.kv or {})["mapped"]
    mixed = model.conditioning in IN_PLACE or (model.conditioning is Conditioning.kv and not as_it_is)
    eos = tokenizer.eos_token_id
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if dropped := greedy(model.slm, pad, eos, own_tokens=own_tokens):
        told = ", ".join(f"{name}={value}" for name, value in dropped.items())
        name = model.slm.config.name_or_path or model.config.name_or_path or model.slm.config.model_type
        print(f"llm2slm: {name}: not used of its generation_config.json: {told}", file=sys.stderr)
    model.processor = LLM2SLMProcessor(
        tokenizer,
        llm_tokenizer,
        align=mixed and config.tokenizers != Tokenizers.llm_tokens.value,
        llm_prompts=config.tokenizers == Tokenizers.llm_tokens.value and llm_tokenizer is not None,
        llm_frame=config.llm_frame,
        decoder_only=model.pads_left,
        **({"last_token": True} if as_it_is else {}),
        **limits,
    )


def _prompt_room(model: LLM2SLM, response_tokens: int) -> int:
    """The longest prompt that both models have positions for, in tokens.

    Raises:
        UserError: the response leaves no room for a prompt.
    """
    room = sys.maxsize
    positions = getattr(model.slm.config.get_text_config(), "max_position_embeddings", None)
    before_prompt, before_response = taken(model.slm)
    virtual = f" ({max(before_prompt, before_response)} are taken by virtual tokens)" if any(taken(model.slm)) else ""
    if positions is not None and model.pads_left:
        room = positions - response_tokens - before_prompt
        room = room // 2 if model.conditioning is Conditioning.prepend else room  # both readings of the prompt
        if room < 1:
            raise UserError(
                f"the SLM has {positions} positions for prompt and response together{virtual}, and "
                f"data.max_response_tokens={response_tokens} leaves none for the prompt; lower it"
            )
    elif positions is not None:
        if response_tokens + before_response > positions:
            raise UserError(
                f"the SLM has {positions} positions for a response{virtual}, "
                f"data.max_response_tokens={response_tokens} asks for more; lower it"
            )
        if model.conditioning is not Conditioning.memory:  # else the SLM reads no prompt of its own
            room = positions - before_prompt
            room = room // 2 if model.conditioning is Conditioning.prepend else room
    if model.encoder is not None:
        read = model.encoder.positions
        room = room if read is None else min(room, read)
    return room
