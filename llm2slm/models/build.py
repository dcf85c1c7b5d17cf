"""Builds systems (hybrid, SLM alone, LLM alone) from a configuration."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2slm.config import DataConfig, LanguageModelConfig, LLMConfig, ModelConfig
from llm2slm.data.interface import filled_tokenizer, first_added, frame, load_tokenizer
from llm2slm.models import conditioning
from llm2slm.models.ablation import check_control
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.llm import LLMRecord
from llm2slm.models.loading.configs import locate, model_config
from llm2slm.models.loading.pretrained import load_encoder, load_language_model
from llm2slm.models.loading.published import OF_TOKENS
from llm2slm.models.loading.vocabulary import adapt, check_trained
from llm2slm.models.processing import attach_processor, default_limits
from llm2slm.models.soft_prompts import virtual_tokens
from llm2slm.models.stored_encoder import PromptEncoder, StoredEncoder
from llm2slm.models.tuning import FULL, choose_trainable
from llm2slm.types import Init, SystemKind, Tokenizers, UserError


def generator_config(cfg: ModelConfig) -> LanguageModelConfig:
    """The configuration of the generating model: the LLM for kind llm, else the SLM."""
    return cfg.llm if cfg.kind is SystemKind.llm else cfg.slm


def load_tokenizers(cfg: ModelConfig) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase | None]:
    """Tokenizers of the generating model and of the LLM encoder (the same object if shared; None without an encoder).

    Raises:
        UserError: one is not configured, or two different ones are to be shared.
    """
    llm, slm = cfg.llm, cfg.slm
    shared = cfg.tokenizers is Tokenizers.shared
    # an SLM with random weights takes the LLM's tokenizer, in a hybrid and in the SLM that it is compared with
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
    filled = filled_tokenizer(name)
    if filled is not None:
        return filled
    return load_tokenizer(locate(name), None if side.tokenizer else side.revision)  # the revision is the model's


def build_model(cfg: ModelConfig, data: DataConfig | None = None, *, frozen: bool = False) -> LLM2SLM:
    """A system with its processor, in train mode.

    Args:
        data: limits on lengths, and a store of representations (`reps`) that replaces the LLM; None: the defaults.
        frozen: the generating model is not trained, so that weights of a GGUF file may stay packed.

    Raises:
        UserError: a model or tokenizer cannot be read, or parts do not fit together.
    """
    check_control(cfg)
    guided = cfg.kind is SystemKind.llm2slm
    mode = conditioning.get(cfg.conditioning if guided else conditioning.NONE)
    data = DataConfig() if data is None else data
    tokenizer, llm_tokenizer = load_tokenizers(cfg)
    slm = load_language_model(generator_config(cfg), tokenizer, cross_attention=mode.cross_attends, frozen=frozen)
    if guided:
        mode = conditioning.check_pair(cfg, slm)
    own, key = generator_config(cfg), "model.llm" if cfg.kind is SystemKind.llm else "model.slm"
    # the tokenizer that belongs to the model has embeddings in it already
    added = first_added(tokenizer) if own.tokenizer is not None else None
    adapt(slm, tokenizer, added, own, key)
    choose_trainable(slm, own.tune, own.peft, key)
    if added is not None:
        check_trained(slm, own.tune, key)
    if not guided and not any(parameter.requires_grad for parameter in slm.parameters()):
        raise UserError(f"{key}.tune={own.tune} leaves nothing to train in a model without an LLM encoder; use full")
    encoder: PromptEncoder | None = None
    own_frame = _frame_record(cfg, tokenizer, llm_tokenizer)
    record: dict[str, Any] = {}
    if llm_tokenizer is not None:
        record = mode.record(cfg, slm, tokenizer, llm_tokenizer)
        blocks = mode.kv_blocks(LLM2SLMConfig(**record))
        encoder = load_encoder(cfg.llm, llm_tokenizer, blocks) if data.reps is None else StoredEncoder(data.reps)
        record["llm"] = LLMRecord.of(cfg.llm, encoder, own_frame).saved()
        record["projector"] = mode.projector_settings(cfg, slm, encoder)
    tokens = virtual_tokens(slm)
    config = LLM2SLMConfig(
        slm=deepcopy(slm.config),  # PreTrainedModel changes the config it is given
        virtual_tokens=None if tokens is None else tokens.record,
        kind=cfg.kind.value,
        conditioning=mode.name,
        tokenizers=cfg.tokenizers.value,
        control=cfg.control.value,
        llm_frame=own_frame,
        **record,
        limits={
            "max_prompt_tokens": data.max_prompt_tokens,
            "max_response_tokens": data.max_response_tokens,
            "overlong": data.overlong.value,
        },
    )
    model = LLM2SLM(config, slm, encoder)
    attach_processor(model, tokenizer, llm_tokenizer, own_tokens=_published_with(slm, own, tokenizer))
    if isinstance(encoder, StoredEncoder):
        encoder.check(model.config.llm or {}, cfg.llm.layer, model.collator, mode.kv_blocks(config))
    model.train()  # transformers loads in eval mode, and Lightning keeps the mode
    return model


def _published_with(slm: PreTrainedModel, cfg: LanguageModelConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether token ids in a model's published generation settings denote the same tokens in this tokenizer.

    The published tokenizer is read only if there are token ids in the settings. If none is published: True.
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
    """An LLM that generates alone, in eval mode, without training: `tune`, `peft` and `layer` are ignored.

    Args:
        data: limits on lengths; None: `default_limits`.

    Raises:
        UserError: as `build_model`.
    """
    llm = replace(llm, tune=FULL, peft={})
    if data is None:
        tokenizer, _ = load_tokenizers(ModelConfig(kind=SystemKind.llm, llm=llm))
        data = DataConfig(**default_limits(model_config(llm, tokenizer)))
    model = build_model(ModelConfig(kind=SystemKind.llm, llm=llm), data, frozen=True)
    model.eval().requires_grad_(False)
    return model


def _frame_record(
    cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase, llm_tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any] | None:
    """The text around a prompt in the LLM's input, resolved: a chat template may change later."""
    if cfg.kind is SystemKind.slm or not (cfg.llm.prefix or cfg.llm.chat):
        return None
    return asdict(frame(llm_tokenizer or tokenizer, cfg.llm.prefix, cfg.llm.chat))
