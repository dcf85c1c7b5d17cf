"""Systems (hybrid, SLM alone, LLM alone) put together, from a configuration or from what was saved."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from llm2slm.config import DataConfig, LanguageModelConfig, LLMConfig, ModelConfig
from llm2slm.data.collate import Collator
from llm2slm.data.prompts import Frame, frame
from llm2slm.data.tokenizer import load_tokenizer
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.hybrid import LLM2SLM, LLM_TOKENIZER, LLM2SLMConfig
from llm2slm.models.pretrained import BUILTIN, commit, load_encoder, load_language_model, locate, read_config
from llm2slm.models.slm import has_cross_attention
from llm2slm.models.tuning import choose_trainable
from llm2slm.types import Conditioning, Init, Overlong, SystemKind, Tokenizers, UserError

ModelT = TypeVar("ModelT", bound=LLM2SLM)


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
    follows = shared and slm.tokenizer is None and (slm.init is Init.random or slm.name is None)
    if cfg.kind is SystemKind.llm:
        return _tokenizer(llm), None
    if cfg.kind is SystemKind.slm:
        return _tokenizer(llm if follows and (llm.tokenizer or llm.name) else slm), None
    llm_tokenizer = _tokenizer(llm)
    if not shared:
        return _tokenizer(slm), llm_tokenizer
    if not follows and _tokenizer(slm).get_vocab() != llm_tokenizer.get_vocab():
        other = "leave model.slm.tokenizer out" if slm.tokenizer else "model.slm.init=random"
        raise UserError(
            f"model.tokenizers=shared: the vocabularies of {llm.tokenizer or llm.name} and {slm.tokenizer or slm.name} "
            f"differ; use model.tokenizers=offsets or llm_tokens, or {other}"
        )
    return llm_tokenizer, llm_tokenizer


def _tokenizer(side: LanguageModelConfig) -> PreTrainedTokenizerBase:
    name = side.tokenizer or side.name
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
    if cfg.conditioning not in possible:
        what = "a hybrid" if has_cross_attention(slm) else f"a {slm.config.model_type} (it has no cross-attention)"
        raise UserError(f"model.conditioning={cfg.conditioning} does not fit {what}; possible: {', '.join(possible)}")
    if cfg.projector.gate and cfg.conditioning is not Conditioning.add:
        raise UserError(
            f"model.projector.gate=true starts z at zero, which leaves conditioning={cfg.conditioning} nothing to "
            "read; use it with model.conditioning=add"
        )
    if cfg.pool is not None and (cfg.conditioning is not Conditioning.prepend or cfg.pool <= 0):
        raise UserError(
            f"model.pool={cfg.pool}: a number above 0, for model.conditioning=prepend; it is {cfg.conditioning}"
        )


def build_model(cfg: ModelConfig, data: DataConfig | None = None) -> LLM2SLM:
    """A system from its configuration, with its collator; in train mode, pretrained weights or not.

    Args:
        data: its limits on lengths; None: the defaults.

    Raises:
        UserError: a model or tokenizer that cannot be read, or parts that do not fit together.
    """
    data = DataConfig() if data is None else data
    tokenizer, llm_tokenizer = load_tokenizers(cfg)
    guided = cfg.kind is SystemKind.llm2slm
    attends = guided and cfg.conditioning is Conditioning.memory
    slm = load_language_model(writer_config(cfg), tokenizer, cross_attention=attends)
    check_pair(cfg, slm)
    own, key = writer_config(cfg), "model.llm" if cfg.kind is SystemKind.llm else "model.slm"
    choose_trainable(slm, own.tune, own.lora, key)
    if not guided and not any(parameter.requires_grad for parameter in slm.parameters()):
        raise UserError(f"{key}.tune={own.tune} leaves nothing to train of a model without guidance; use full")
    encoder = load_encoder(cfg.llm, llm_tokenizer) if guided and llm_tokenizer is not None else None
    config = LLM2SLMConfig(
        slm=deepcopy(slm.config),  # a record: PreTrainedModel changes the config it is given
        kind=cfg.kind.value,
        conditioning=(cfg.conditioning if guided else Conditioning.none).value,
        tokenizers=cfg.tokenizers.value,
        llm=reader_record(cfg.llm, encoder) if encoder is not None else None,
        projector=asdict(cfg.projector) if guided else None,
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
    attach_collator(model, tokenizer, llm_tokenizer)
    model.train()  # transformers hands pretrained weights over in eval mode, and Lightning leaves the mode alone
    return model


def _frame_record(
    cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase, llm_tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any] | None:
    """What stands around a prompt for the LLM, in words: a chat template may say something else another day."""
    if cfg.kind is SystemKind.slm or not (cfg.llm.prefix or cfg.llm.chat):
        return None
    return asdict(frame(llm_tokenizer or tokenizer, cfg.llm.prefix, cfg.llm.chat))


def reader_record(cfg: LLMConfig, encoder: FrozenEncoder) -> dict[str, Any]:
    """How a saved hybrid names its LLM: enough to load it again. Local folders by absolute path, Hub ids by commit."""
    name = cfg.name
    revision = cfg.revision
    if name is not None and not name.startswith(BUILTIN):
        if Path(locate(name)).is_dir():
            name = str(Path(locate(name)).resolve())
        else:
            revision = revision or commit(name)
    record = {"name": name, "revision": revision, "layer": encoder.chosen, "dtype": cfg.dtype, "config": cfg.config}
    return (
        record
        | {"prefix": cfg.prefix, "chat": cfg.chat}
        | {"quantization": cfg.quantization, "width": encoder.width, "init": cfg.init.value}
        | {"fingerprint": encoder.fingerprint()}
    )


def attach_collator(
    model: LLM2SLM, tokenizer: PreTrainedTokenizerBase, llm_tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Gives a model its tokenizers, with limits no longer than its position embeddings."""
    limits = dict(model.config.limits or {})
    limits["overlong"] = Overlong(limits.get("overlong", "error"))
    limits["max_prompt_tokens"] = min(limits["max_prompt_tokens"], _prompt_room(model, limits["max_response_tokens"]))
    mixed = model.conditioning in (Conditioning.add, Conditioning.replace)
    model.collator = Collator(
        tokenizer,
        llm_tokenizer,
        align=mixed and model.config.tokenizers != Tokenizers.llm_tokens.value,
        llm_prompts=model.config.tokenizers == Tokenizers.llm_tokens.value and llm_tokenizer is not None,
        llm_frame=Frame(**model.config.llm_frame) if model.config.llm_frame else None,
        decoder_only=model.pads_left,
        **limits,
    )


def _prompt_room(model: LLM2SLM, response_tokens: int) -> int:
    """The longest prompt that both models have positions for, in tokens.

    Raises:
        UserError: the response leaves no room for a prompt.
    """
    room = sys.maxsize
    positions = getattr(model.slm.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and model.pads_left:
        room = positions - response_tokens
        room = room // 2 if model.conditioning is Conditioning.prepend else room  # both readings of the prompt
        if room < 1:
            raise UserError(
                f"the SLM has {positions} positions for prompt and response together, and data.max_response_tokens="
                f"{response_tokens} leaves none for the prompt; lower it"
            )
    elif positions is not None:
        if response_tokens > positions:
            raise UserError(
                f"the SLM has {positions} positions for a response, data.max_response_tokens={response_tokens} asks "
                "for more; lower it"
            )
        if model.conditioning is not Conditioning.memory:  # else the SLM reads no prompt of its own
            room = positions // 2 if model.conditioning is Conditioning.prepend else positions
    if model.encoder is not None:
        read = getattr(model.encoder.body.config.get_text_config(), "max_position_embeddings", None)
        room = room if read is None else min(room, read)
    return room


def load_saved(cls: type[ModelT], name: str, llm: str | None, revision: str | None) -> ModelT:
    """What `LLM2SLM.from_pretrained` does."""
    config = read_config(name, revision)
    place = locate(name)
    if not isinstance(config, LLM2SLMConfig):
        extra = dict(getattr(config, "llm2slm", None) or {})
        # the file may be narrower than its use (builtin/llm is stored in float16): its own dtype does not decide
        writer = LanguageModelConfig(name=name, revision=revision, dtype=extra.get("dtype", "float32"))
        slm = load_language_model(writer, load_tokenizer(place, revision))
        own = LLM2SLMConfig(
            slm=deepcopy(slm.config),
            kind=extra.get("kind", "llm"),
            llm_frame=extra.get("frame"),
            limits=extra.get("limits") or _limits(slm.config),
        )
        model = cls(own, slm, None)
        attach_collator(model, load_tokenizer(place, revision), None)
        model.eval()
        return model
    record = dict(config.llm or {})
    llm_name = llm or record["name"]
    if llm_name is None or record["init"] == Init.random.value:
        raise UserError(f"{name}: was built on an LLM with random weights, which no file holds; it cannot be loaded")
    cfg = LLMConfig(
        name=llm_name,
        revision=record["revision"] if llm_name == record["name"] else None,  # a commit of one place is none of another
        config=record.get("config") or {},
        dtype=record["dtype"],
        layer=record["layer"],
        quantization=record.get("quantization") or {},
    )
    tokenizer = load_tokenizer(place, revision)
    llm_tokenizer = tokenizer
    if config.tokenizers != Tokenizers.shared.value:
        llm_tokenizer = load_tokenizer(place, revision, subfolder=LLM_TOKENIZER)
    try:
        encoder = load_encoder(cfg, llm_tokenizer)
    except UserError as error:
        raise UserError(f"{name}: its LLM is not at hand: {error}; say where it is with llm=PATH") from None
    if encoder.width != record["width"]:
        raise UserError(
            f"{name}: was trained on an LLM of width {record['width']}, {llm_name} has {encoder.width}; "
            "give the right one with llm=PATH"
        )
    known, found = record.get("fingerprint"), encoder.fingerprint()
    if known is not None and found != known:
        raise UserError(
            f"{name}: the LLM at {llm_name} is not the one it was trained with: its weights (fingerprint {found}) are "
            f"not those recorded ({known}); give the right one with llm=PATH"
        )
    slm_config = config.slm
    assert isinstance(slm_config, PreTrainedConfig)
    auto = AutoModelForSeq2SeqLM if slm_config.is_encoder_decoder else AutoModelForCausalLM
    model = cls(config, auto.from_config(deepcopy(slm_config)), encoder)
    model.load_own(place, revision)
    if cached_file(place, GENERATION_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False):
        model.slm.generation_config = GenerationConfig.from_pretrained(place, revision=revision)
    attach_collator(model, tokenizer, llm_tokenizer)
    model.eval()
    return model


def _limits(config: PreTrainedConfig) -> dict[str, Any]:
    """Of a model that records none: the defaults, its response at most half of its positions."""
    data, positions = DataConfig(), getattr(config.get_text_config(), "max_position_embeddings", None)
    response = data.max_response_tokens if positions is None else min(data.max_response_tokens, positions // 2)
    return {"max_prompt_tokens": data.max_prompt_tokens, "max_response_tokens": response}
