"""Models from a configuration, from a Hub id, or from a folder: the one place where transformers loads anything."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from llm2slm.config import DataConfig, LanguageModelConfig, LLMConfig, ModelConfig, ProjectorConfig
from llm2slm.data.collate import Collator
from llm2slm.data.tokenizer import load_tokenizer
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.hybrid import LLM2SLM, LLM_TOKENIZER, LLM2SLMConfig
from llm2slm.types import Conditioning, Init, Overlong, SystemKind, Tokenizers, UserError

BUILTIN = "builtin/"
DTYPES = ("float32", "bfloat16", "float16")
ModelT = TypeVar("ModelT", bound=LLM2SLM)


def locate(name: str) -> str:
    """A model's name as transformers takes it: `builtin/llm` is a folder of this package, the rest stays."""
    if not name.startswith(BUILTIN):
        return name
    folder = Path(str(files("llm2slm") / "builtin_models" / name.removeprefix(BUILTIN)))
    if not (folder / "config.json").is_file():
        known = sorted(p.parent.name for p in folder.parent.glob("*/config.json"))
        raise UserError(f"{name}: no such built-in model; there is: {', '.join(BUILTIN + k for k in known) or 'none'}")
    return str(folder)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns transformers' many ways of saying "not there" into one line."""
    try:
        yield
    except (OSError, ValueError, StrictDataclassError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"model {name!r} cannot be read: {reason}") from error


def read_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The transformers config of a Hub id or folder."""
    place = locate(name)
    looks_local = place.startswith((".", "/", "~")) or place.count("/") > 1
    if looks_local and not Path(place).is_dir():
        raise UserError(f"model {name!r}: no such folder; give a folder with a config.json, or a Hub id")
    with reading(name):
        config = AutoConfig.from_pretrained(place, revision=revision)
    return _with_decoder_depth(config)


def _with_decoder_depth(config: PreTrainedConfig) -> PreTrainedConfig:
    """Lets `generate` size its cache by the decoder's depth.

    transformers (5.23) sizes it by `num_layers`, T5's encoder depth, and fails where the decoder is deeper. It does
    look for `decoder_layers` first, so that is where the depth is told; the config stays a valid one of its class.
    """
    if getattr(config, "num_decoder_layers", None) and not hasattr(config, "decoder_layers"):
        config.decoder_layers = config.num_decoder_layers
    return config


def model_config(cfg: LanguageModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The transformers config of a model to build: the named one with `cfg.config` as changes, or a whole new one.

    A whole `cfg.config` (one with a model_type) describes a model of its own and gives way to a name.

    Raises:
        UserError: neither a name nor a whole config; a value that the config does not have, or of the wrong type.
    """
    side, whole = _side(cfg), "model_type" in cfg.config
    if cfg.name is None and (cfg.init is Init.pretrained or not whole):
        need = "" if cfg.init is Init.pretrained else f" and model.{side}.config.model_type (as t5, gpt2, llama)"
        raise UserError(f"model.{side}.name{need} is not set; give a Hub id or a folder, or model.{side}.init=random")
    if cfg.name is not None:
        config, changes = read_config(cfg.name, cfg.revision), {} if whole else dict(cfg.config)
    else:
        changes = dict(cfg.config)
        model_type = changes.pop("model_type")
        if model_type not in CONFIG_MAPPING:
            raise UserError(
                f"model.{side}.config.model_type={model_type} is unknown{_nearest(model_type, CONFIG_MAPPING)}"
            )
        config = CONFIG_MAPPING[model_type]()
    known = config.to_dict().keys() | config.attribute_map.keys()
    for key in changes:
        if key not in known:
            raise UserError(f"model.{side}.config.{key}: a {config.model_type} has no such value{_nearest(key, known)}")
    if cfg.init is Init.random:
        changes |= _token_values(tokenizer)
    if changes:
        own_names = {
            config.attribute_map.get(key, key): value for key, value in changes.items()
        }  # hidden_size: d_model
        with reading(cfg.name or f"model.{side}.config"):
            config = type(config).from_dict(config.to_dict() | own_names)
    if cfg.init is Init.random and config.is_encoder_decoder:
        config.decoder_start_token_id = config.pad_token_id
    return _with_decoder_depth(config)


def _token_values(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the config of a model with random weights takes from its tokenizer."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    special = {"pad_token_id": pad, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    return {"vocab_size": len(tokenizer), **special}


def _nearest(key: str, known: Iterable[str]) -> str:
    """The end of a complaint about an unknown key."""
    found = get_close_matches(str(key), list(known), n=3)
    return f"; nearest: {', '.join(found)}" if found else ""


def load_language_model(cfg: LanguageModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with a language-modelling head, pretrained or random."""
    config = model_config(cfg, tokenizer)
    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise UserError(f"model {cfg.name or config.model_type!r}: a {config.model_type} cannot write text")
    return _weights(AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM, cfg, config)


def load_encoder(cfg: LLMConfig, tokenizer: PreTrainedTokenizerBase) -> FrozenEncoder:
    """The LLM as a reader."""
    return FrozenEncoder(_weights(AutoModel, cfg, model_config(cfg, tokenizer)), cfg.layer)


def _weights(auto: Any, cfg: LanguageModelConfig, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of an Auto class, its weights read or drawn.

    Raises:
        UserError: they cannot be read, or the saved ones do not fill the model: part of it would be left to chance.
    """
    side = _side(cfg)
    if cfg.dtype not in DTYPES:
        raise UserError(f"model.{side}.dtype={cfg.dtype} is unknown; possible: {', '.join(DTYPES)}")
    dtype = getattr(torch, cfg.dtype)
    model: PreTrainedModel
    if cfg.name is None or cfg.init is Init.random:
        with reading(cfg.name or f"model.{side}.config"):
            model = auto.from_config(config, dtype=dtype)
        return model
    with reading(cfg.name):
        model, report = auto.from_pretrained(
            locate(cfg.name), revision=cfg.revision, config=config, dtype=dtype,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    wrong = sorted(key for key, *_ in report["mismatched_keys"])
    if not wrong and (auto is not AutoModel or cfg.config):  # a reader may lack what it does not use (a pooler)
        wrong = sorted(report["missing_keys"])
    if wrong:
        reason = f"; model.{side}.config changes its shape: set model.{side}.init=random" if cfg.config else ""
        raise UserError(f"model {cfg.name!r}: its weights do not fit its config, as {wrong[0]}{reason}")
    return model


def _side(cfg: LanguageModelConfig) -> str:
    return "llm" if isinstance(cfg, LLMConfig) else "slm"


def writer_config(cfg: ModelConfig) -> LanguageModelConfig:
    """The configuration of whoever writes: the LLM itself for kind llm, else the SLM."""
    return cfg.llm if cfg.kind is SystemKind.llm else cfg.slm


def load_tokenizers(cfg: ModelConfig) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase | None]:
    """The writer's tokenizer, and the reader's (the same object where they are shared; None without guidance)."""
    written = writer_config(cfg)

    def load(name: str, side: LanguageModelConfig) -> PreTrainedTokenizerBase:
        return load_tokenizer(locate(name), side.revision)

    llm_name = cfg.llm.tokenizer or cfg.llm.name
    shared = cfg.tokenizers is Tokenizers.shared and cfg.kind is not SystemKind.llm
    own = written.tokenizer or (written.name if cfg.kind is not SystemKind.llm2slm or not shared else None)
    if cfg.kind is not SystemKind.llm2slm:
        name = own or (llm_name if shared else None)
        if name is None:
            raise UserError(
                "the model has no tokenizer: set model.slm.tokenizer (or model.llm.tokenizer) to a folder or id"
            )
        return load(name, written), None
    if llm_name is None:
        raise UserError("model.llm.name is not set; the LLM needs a name, or at least model.llm.tokenizer")
    llm_tokenizer = load(llm_name, cfg.llm)
    own_name = cfg.slm.tokenizer or cfg.slm.name
    if cfg.tokenizers is Tokenizers.shared:
        if own_name and cfg.slm.init is Init.pretrained:
            theirs = load(own_name, cfg.slm)
            if theirs.get_vocab() != llm_tokenizer.get_vocab():
                raise UserError(
                    f"model.tokenizers=shared: the vocabularies of {llm_name} and {own_name} differ; "
                    "use model.tokenizers=offsets, or model.slm.init=random"
                )
        return llm_tokenizer, llm_tokenizer
    if own_name is None:
        raise UserError("model.tokenizers=offsets needs the SLM's own tokenizer: set model.slm.tokenizer")
    return load(own_name, cfg.slm), llm_tokenizer


def check_pair(kind: SystemKind, mode: Conditioning, decoder_only: bool, projector: ProjectorConfig) -> None:
    """Refuses a combination that cannot work, and names those that can."""
    if kind is not SystemKind.llm2slm:
        return
    possible = [Conditioning.add, Conditioning.replace, Conditioning.prepend]
    if not decoder_only:
        possible.append(Conditioning.memory)
    if mode not in possible:
        what = "a decoder-only SLM (it has no encoder to stand in for)" if decoder_only else "a hybrid"
        raise UserError(f"model.conditioning={mode} does not fit {what}; possible: {', '.join(possible)}")
    if projector.gate and mode is not Conditioning.add:
        raise UserError(
            f"model.projector.gate=true starts z at zero, which leaves conditioning={mode} nothing to read; "
            "use it with model.conditioning=add"
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
    slm = load_language_model(writer_config(cfg), tokenizer)
    guided = cfg.kind is SystemKind.llm2slm
    check_pair(cfg.kind, cfg.conditioning, not slm.config.is_encoder_decoder, cfg.projector)
    encoder = load_encoder(cfg.llm, llm_tokenizer) if guided and llm_tokenizer is not None else None
    config = LLM2SLMConfig(
        slm=deepcopy(slm.config),  # a record: PreTrainedModel changes the config it is given
        kind=cfg.kind.value,
        conditioning=(cfg.conditioning if guided else Conditioning.none).value,
        tokenizers=cfg.tokenizers.value,
        llm=reader_record(cfg.llm, encoder) if encoder is not None else None,
        projector=asdict(cfg.projector) if guided else None,
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


def reader_record(cfg: LLMConfig, encoder: FrozenEncoder) -> dict[str, Any]:
    """How a saved hybrid names its LLM: enough to load it again. Local folders by absolute path."""
    name = cfg.name
    if name is not None and Path(name).is_dir():
        name = str(Path(name).resolve())
    record = {"name": name, "revision": cfg.revision, "layer": cfg.layer, "dtype": cfg.dtype}
    return record | {"width": encoder.width, "init": cfg.init.value}


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
        align=mixed and model.config.tokenizers == Tokenizers.offsets.value,
        decoder_only=model.decoder_only,
        **limits,
    )


def _prompt_room(model: LLM2SLM, response_tokens: int) -> int:
    """The longest prompt that both models have positions for, in tokens.

    Raises:
        UserError: the response leaves no room for a prompt.
    """
    room = sys.maxsize
    positions = getattr(model.slm.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        room = positions - response_tokens if model.decoder_only else positions
        room = room // 2 if model.conditioning is Conditioning.prepend else room  # both readings of the prompt
        if room < 1:
            raise UserError(
                f"the SLM has {positions} positions for prompt and response together, and data.max_response_tokens="
                f"{response_tokens} leaves none for the prompt; lower it"
            )
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
        slm = load_language_model(LanguageModelConfig(name=name, revision=revision), load_tokenizer(place, revision))
        own = LLM2SLMConfig(
            slm=deepcopy(slm.config), kind=extra.get("kind", "llm"), limits=extra.get("limits") or _limits(slm.config)
        )
        model = cls(own, slm, None)
        attach_collator(model, load_tokenizer(place, revision), None)
        model.eval()
        return model
    record = dict(config.llm or {})
    llm_name = llm or record["name"]
    if llm_name is None or record["init"] == Init.random.value:
        raise UserError(f"{name}: was built on an LLM with random weights, which no file holds; it cannot be loaded")
    cfg = LLMConfig(name=llm_name, revision=record["revision"], layer=record["layer"], dtype=record["dtype"])
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
    slm_config = config.slm
    assert isinstance(slm_config, PreTrainedConfig)
    auto = AutoModelForSeq2SeqLM if slm_config.is_encoder_decoder else AutoModelForCausalLM
    model = cls(config, auto.from_config(deepcopy(slm_config)), encoder)
    model.load_own(place, revision)
    attach_collator(model, tokenizer, llm_tokenizer)
    model.eval()
    return model


def _limits(config: PreTrainedConfig) -> dict[str, Any]:
    """Of a model that records none: the defaults, its response at most half of its positions."""
    data, positions = DataConfig(), getattr(config.get_text_config(), "max_position_embeddings", None)
    response = data.max_response_tokens if positions is None else min(data.max_response_tokens, positions // 2)
    return {"max_prompt_tokens": data.max_prompt_tokens, "max_response_tokens": response}
