"""Models of the transformers library: the one place where their configs and weights are found and loaded."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig

from llm2slm.config import LanguageModelConfig, LLMConfig, SLMConfig
from llm2slm.config.ranges import Range
from llm2slm.gguf_files.names import commit as commit_of
from llm2slm.gguf_files.names import find, is_gguf, on_hub
from llm2slm.models.cut_config import KEY, RECORD, chosen_blocks, depth_keys, first_blocks, sides
from llm2slm.models.cutting import cut_model, partial_class, plan_cut
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.gguf import gguf_config, gguf_weights, named_with_head
from llm2slm.models.pruning import reader_class
from llm2slm.types import Init, UserError, reason_of

BUILTIN = "builtin/"
SIZE = re.compile(
    r"(^|_)(layers?|heads?|size|dim|model|ff|kv|inner|embd|positions|embeddings|buckets|distance|experts)$"
)
"""Ends of the names by which transformers' configs call numbers of layers, heads and positions, and widths."""
WITH_CROSS_ATTENTION = frozenset({"gpt2"})  # decoder-only models that can have such layers, and generate with them
CROSS_ATTENTION = ("crossattention.", "ln_cross_attn.")  # in the names of their tensors
DTYPES = ("float32", "bfloat16", "float16")


def locate(name: str) -> str:
    """A model's name as transformers takes it: `builtin/llm` is a folder of this package, `~` the home folder, and
    a GGUF file of this machine its path.

    Raises:
        UserError: no such built-in model, or what can only be a folder or file is none.
    """
    if is_gguf(name):
        return name if on_hub(name) else str(find(name))
    if not name.startswith(BUILTIN):
        try:
            place = str(Path(name).expanduser()) if name.startswith("~") else name
        except RuntimeError:  # ~someone that this machine does not know
            place = name
        beside = "/" in name and Path(name).parent.is_dir()  # runs/nope, where runs/ is a folder here
        looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or beside
        if looks_local and not Path(place).is_dir():
            raise UserError(f"model {name!r}: no such folder; give a folder with a config.json, or a Hub id")
        return place
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
    except (OSError, ValueError, ImportError, StrictDataclassError) as error:  # a library that a model wants is missing
        raise UserError(f"model {name!r} cannot be read: {reason_of(error)}") from error


def is_local(name: str) -> bool:
    """Whether a model is a folder or file of this machine."""
    return Path(locate(name)).exists()


def commit(name: str, revision: str | None = None) -> str | None:
    """The commit that a Hub id's branch or tag (None: main) was when it was read last; transformers does not say it."""
    if is_gguf(name):
        return commit_of(find(name, revision))
    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


def read_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The transformers config of a Hub id, a folder or a GGUF file."""
    if is_gguf(name):
        return _with_decoder_depth(gguf_config(find(name, revision)))
    place = locate(name)
    if not (Path(place) / "config.json").is_file() and (Path(place) / "model" / "config.json").is_file():
        raise UserError(f"model {name!r}: is a run directory; give its model, {Path(name) / 'model'}")
    if not (Path(place) / "config.json").is_file() and (Path(place) / "config.yaml").is_file():
        raise UserError(f"model {name!r}: is a run directory without a model; its training did not come to its end")
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

    Raises:
        UserError: neither a name nor a whole config (one with a model_type), or both; the name of a hybrid; a value
            that the config does not have, or of the wrong type.
    """
    side, whole, name = _side(cfg), "model_type" in cfg.config, cfg.source
    if name is None and (cfg.start is Init.pretrained or not whole):
        need = "" if cfg.init is not Init.random else f" and model.{side}.config.model_type (as t5, gpt2, llama)"
        raise UserError(f"model.{side}.name{need} is not set; give a Hub id or a folder, or model.{side}.init=random")
    if name is not None:
        if whole:
            raise UserError(
                f"model.{side}.name={name} and model.{side}.config.model_type={cfg.config['model_type']} describe "
                "two models; leave one of them out"
            )
        config, changes = read_config(name, cfg.revision), dict(cfg.config)
        if config.model_type == "llm2slm":
            raise UserError(
                f"model {name!r}: is a hybrid, or has virtual tokens, and cannot be model.{side} of another; "
                "give a plain model of transformers"
            )
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
        _check_value(f"model.{side}.config.{key}", changes[key], getattr(config, key, None))
    _check_cut(cfg, config)
    if cfg.start is Init.random:
        changes |= _token_values(tokenizer)
        vars(config).pop(RECORD, None)  # new weights come from no block of another model
    if changes:
        own_names = {
            config.attribute_map.get(key, key): value for key, value in changes.items()
        }  # hidden_size: d_model
        with reading(name or f"model.{side}.config"):
            config = type(config).from_dict(config.to_dict() | first_blocks(config, own_names) | own_names)
    if cfg.start is Init.random and config.is_encoder_decoder:
        config.decoder_start_token_id = config.pad_token_id
        if getattr(config, "forced_eos_token_id", None) is not None:  # BART's own is token 2, whatever that is here
            config.forced_eos_token_id = config.eos_token_id
    return _with_decoder_depth(config)


def _check_value(key: str, value: Any, default: Any) -> None:
    """Refuses a size or a dropout that no model can have; transformers would build a model without layers of it.

    Raises:
        UserError: names key, value and range.
    """
    name = key.rpartition(".")[2]
    legal = Range(0, 1, below=True) if "drop" in name else Range(1) if SIZE.search(name) else None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if legal is not None and number and value != default and not legal.holds(value):
        raise UserError(f"{key}={value}: must be {legal}")


def _check_cut(cfg: LanguageModelConfig, config: PreTrainedConfig) -> None:
    """Refuses `model.slm.layers` where no pretrained blocks are chosen, or where they are chosen in two ways.

    Args:
        config: of the model that is named, without the changes of `cfg.config`.
    """
    if not isinstance(cfg, SLMConfig) or cfg.layers is None:
        return
    if cfg.start is Init.random:
        raise UserError(
            f"{KEY}={cfg.layers}: chooses blocks of a pretrained SLM, and model.slm.init=random draws new weights; set "
            f"the depth in model.slm.config ({', '.join(sorted(depth_keys(config)))})"
        )
    if twice := sorted(depth_keys(config) & cfg.config.keys()):
        raise UserError(
            f"{KEY}={cfg.layers} and model.slm.config.{twice[0]}={cfg.config[twice[0]]} both say how many blocks the "
            "SLM has; leave one of them out"
        )
    if getattr(config, "quantization_config", None):
        raise UserError(f"{KEY}={cfg.layers}: {cfg.name} is quantized, and cannot be cut; give its original")


def _token_values(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the config of a model with random weights takes from its tokenizer."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    special = {"pad_token_id": pad, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    return {"vocab_size": len(tokenizer), **special}


def _nearest(key: str, known: Iterable[str]) -> str:
    """The end of a complaint about an unknown key."""
    found = get_close_matches(str(key), list(known), n=3)
    return f"; nearest: {', '.join(found)}" if found else ""


def load_language_model(
    cfg: LanguageModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cross_attention: bool = False,
    frozen: bool = False,
) -> PreTrainedModel:
    """A model with a language-modelling head, pretrained or random.

    Args:
        cross_attention: give a decoder-only model cross-attention layers, where its architecture has such (GPT-2).
            In a pretrained model they are new, with random weights.
        frozen: nobody trains it, so that weights of a GGUF file may stay packed.
    """
    config = model_config(cfg, tokenizer)
    crossed = cross_attention and config.model_type in WITH_CROSS_ATTENTION
    if crossed:
        config.add_cross_attention = True
    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise UserError(f"model {cfg.source or config.model_type!r}: a {config.model_type} cannot write text")
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    _tell_left_out(auto.from_config, cfg, config)
    layers = cfg.layers if isinstance(cfg, SLMConfig) else None
    blocks = {} if layers is None else chosen_blocks(layers, config)
    if not blocks or all(len(blocks[side.name]) == side.depth for side in sides(config)):
        return _weights(auto, cfg, config, crossed=crossed, packed=frozen, **_quantized(cfg))
    plan = plan_cut(_get_model_class(config, mapping), config, blocks)
    try:
        return cut_model(_weights(partial_class(plan), cfg, config, crossed=crossed, packed=frozen), plan)
    except AttributeError as error:  # a model that draws or changes its weights block by block (Falcon-H1)
        raise UserError(f"{KEY}: a {config.model_type} cannot be cut: {error}") from error


def _tell_left_out(
    build: Callable[[PreTrainedConfig], PreTrainedModel], cfg: LanguageModelConfig, config: PreTrainedConfig
) -> None:
    """Prints which weights of a pretrained model its changed config leaves unused, as those of the last layers.

    transformers loads the others without a message. A reader leaves out layers in any case: nothing is printed of it.

    Args:
        build: the model of a config, without weights.
    """
    name = cfg.source
    if name is None or not cfg.config or cfg.start is Init.random:
        return
    unchanged = read_config(name, cfg.revision)
    with reading(name), torch.device("meta"):
        own, changed = (set(build(deepcopy(each)).state_dict()) for each in (unchanged, config))
    if left_out := sorted(own - changed):
        side, changes = _side(cfg), ", ".join(f"{key}: {value}" for key, value in cfg.config.items())
        print(
            f"llm2slm: warning: model.{side}.config={{{changes}}} leaves {len(left_out)} of the pretrained tensors of "
            f"{name} unused, as {left_out[0]}",
            file=sys.stderr,
        )


def load_encoder(
    cfg: LLMConfig, tokenizer: PreTrainedTokenizerBase, kv_blocks: Sequence[int] | None = None
) -> FrozenEncoder:
    """The LLM as an encoder of prompts: only the blocks that it runs are built and loaded.

    Args:
        kv_blocks: give keys and values of these blocks in place of the hidden states of `cfg.layer`.
    """
    if kv_blocks is not None:
        cfg = replace(cfg, layer=max(kv_blocks))
    return FrozenEncoder(load_reader(cfg, model_config(cfg, tokenizer)), cfg.layer, kv_blocks)


def load_reader(cfg: LLMConfig, config: PreTrainedConfig, *, packed: bool = True) -> PreTrainedModel:
    """The part of an LLM that `cfg.layer` needs, as a transformers model of its class.

    Args:
        packed: weights of a GGUF file may stay packed.
    """
    more, name = {"packed": packed} | _quantized(cfg), cfg.source
    if (
        name is not None
        and is_gguf(name)
        and cfg.start is not Init.random
        and named_with_head(find(name, cfg.revision))
    ):
        whole: PreTrainedModel = _weights(reader_class(config, cfg.layer, head=True), cfg, config, **more).base_model
        return whole
    return _weights(reader_class(config, cfg.layer), cfg, config, **more)


def _quantized(cfg: LanguageModelConfig) -> dict[str, Any]:
    """What `from_pretrained` is told of quantization."""
    if not isinstance(cfg, LLMConfig) or not cfg.quantization:
        return {}
    if cfg.start is Init.random:
        raise UserError("model.llm.quantization is for weights that are loaded; model.llm.init=random has none")
    if is_gguf(cfg.source):
        raise UserError(f"model.llm.quantization: {cfg.source} is quantized already, as GGUF files are; leave it out")
    return {"quantization_config": quantization_config(cfg.quantization)}


def _weights(
    auto: Any,
    cfg: LanguageModelConfig,
    config: PreTrainedConfig,
    *,
    crossed: bool = False,
    packed: bool = False,
    **more: Any,
) -> PreTrainedModel:
    """A model of a class, its weights read or drawn.

    Args:
        auto: one of transformers' Auto classes, or what has their `from_pretrained` and `from_config`.
        crossed: its cross-attention layers may be new. All of them or none: a part would be left to chance.
        packed: weights of a GGUF file may stay packed.
        more: arguments of `from_pretrained`.

    Raises:
        UserError: they cannot be read, or the saved ones do not fill the model: part of it would be left to chance.
    """
    side, name = _side(cfg), cfg.source
    if cfg.dtype not in DTYPES:
        raise UserError(f"model.{side}.dtype={cfg.dtype} is unknown; possible: {', '.join(DTYPES)}")
    more |= {"dtype": getattr(torch, cfg.dtype)}
    if cfg.attn_implementation is not None:
        more["attn_implementation"] = cfg.attn_implementation
    model: PreTrainedModel
    if name is None or cfg.start is Init.random:
        with reading(name or f"model.{side}.config"):
            model = auto.from_config(config, **more)
        return model
    with reading(name):
        if is_gguf(name):
            model, report = gguf_weights(auto, find(name, cfg.revision), config, packed=packed, **more)
        else:
            model, report = auto.from_pretrained(
                locate(name), revision=cfg.revision, config=config,
                output_loading_info=True, ignore_mismatched_sizes=True, **more,
            )  # fmt: skip
    wrong = sorted(key for key, *_ in report["mismatched_keys"])
    if not wrong:
        missing = set(report["missing_keys"])
        new = {key for key in model.state_dict() if any(name in key for name in CROSS_ATTENTION)} if crossed else set()
        wrong = sorted(missing - new if new <= missing else missing)
    if wrong:
        reason = f"; model.{side}.config changes its shape: set model.{side}.init=random" if cfg.config else ""
        raise UserError(f"model {name!r}: its weights do not fit its config, as {wrong[0]}{reason}")
    return model


def quantization_config(values: Mapping[str, Any]) -> Any:
    """transformers' own quantization config.

    Raises:
        UserError: no or an unknown method, a value it does not take, or its library is missing.
    """
    method = values.get("quant_method")
    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if method not in known:
        raise UserError(
            f"model.llm.quantization.quant_method={method} is unknown{_nearest(str(method), known)}; possible: "
            + ", ".join(sorted(known))
        )
    try:
        return AutoQuantizationConfig.from_dict(dict(values))
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"model.llm.quantization: {method}: {str(error).splitlines()[0]}") from None


def _side(cfg: LanguageModelConfig) -> str:
    return "llm" if isinstance(cfg, LLMConfig) else "slm"
