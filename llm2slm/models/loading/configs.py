"""Resolution of model names, and the transformers config of every model of the project."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm2slm.config import LanguageModelConfig, LLMConfig, SLMConfig
from llm2slm.config.ranges import Range
from llm2slm.gguf_files.names import commit as commit_of
from llm2slm.gguf_files.names import find, is_gguf, on_hub
from llm2slm.models.known_configs import known_config
from llm2slm.models.loading.cut_config import KEY, RECORD, depth_keys, first_blocks
from llm2slm.models.loading.gguf import gguf_config
from llm2slm.models.loading.reading_errors import check_shards, load_errors
from llm2slm.nearest_names import nearest_hint
from llm2slm.types import Init, UserError

BUILTIN = "builtin/"
POSITIVE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""Values of every language model's config that are at least 1."""
SIZE = re.compile(
    r"(^|_)(layers?|heads?|size|dim|model|ff|kv|inner|embd|positions|embeddings|buckets|distance|experts)$"
)
"""Suffixes of config keys that hold widths and numbers of layers, heads and positions."""


def locate(name: str) -> str:
    """Resolves a model's name to the name or path for transformers: `builtin/llm` to a folder of this package, `~` to
    the home folder, a local GGUF file to its path.

    Raises:
        UserError: the built-in model does not exist, or a name that can only be a local path does not exist.
    """
    if is_gguf(name):
        return name if on_hub(name) else str(find(name))
    if not name.startswith(BUILTIN):
        try:
            path = str(Path(name).expanduser()) if name.startswith("~") else name
        except RuntimeError:  # ~user without a known home folder
            path = name
        in_local_folder = "/" in name and Path(name).parent.is_dir()  # runs/nope, with an existing folder runs/
        looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or in_local_folder
        if looks_local and not Path(path).is_dir():
            raise UserError(f"model {name!r}: no such folder; give a folder with a config.json, or a Hub id")
        return path
    folder = Path(str(files("llm2slm") / "builtin" / name.removeprefix(BUILTIN)))
    if not (folder / "config.json").is_file():
        known = sorted(p.parent.name for p in folder.parent.glob("*/config.json"))
        raise UserError(f"{name}: no such built-in model; there is: {', '.join(BUILTIN + k for k in known) or 'none'}")
    return str(folder)


def is_local(name: str) -> bool:
    """Whether a model is a local folder or file."""
    return Path(locate(name)).exists()


def commit(name: str, revision: str | None = None) -> str | None:
    """The cached commit of a Hub id's branch or tag (None: main); None if it is not cached."""
    if is_gguf(name):
        return commit_of(find(name, revision))
    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


def read_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The transformers config of a Hub id, a folder or a GGUF file."""
    if is_gguf(name):
        return _with_decoder_depth(gguf_config(find(name, revision)))
    path = locate(name)
    if not (Path(path) / "config.json").is_file():
        if (Path(path) / "model" / "config.json").is_file():
            raise UserError(f"model {name!r}: is a run directory; give its model, {Path(name) / 'model'}")
        if (Path(path) / "config.yaml").is_file():
            raise UserError(f"model {name!r}: is a run directory without a model; its training did not finish")
    with load_errors(name):
        values, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
        if (code := values.get("auto_map")) and values.get("model_type") not in CONFIG_MAPPING:
            raise UserError(
                f"model {name!r}: its config.json names Python code ({', '.join(map(str, dict(code).values()))}), "
                "which llm2slm does not run; give a model of an architecture that transformers has"
            )
        check_shards(Path(path))
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        text = config.get_text_config()
        for key in POSITIVE:
            if isinstance(value := getattr(text, key, None), int) and value < 1:
                raise UserError(f"model {name!r}: {key}={value} in its config.json: must be at least 1")
    return _with_decoder_depth(config)


def _with_decoder_depth(config: PreTrainedConfig) -> PreTrainedConfig:
    """Sets `decoder_layers`, so that `generate` sizes its cache by the decoder's depth.

    transformers (5.23) otherwise sizes it by `num_layers`, T5's encoder depth, and fails for a deeper decoder.
    """
    if getattr(config, "num_decoder_layers", None) and not hasattr(config, "decoder_layers"):
        config.decoder_layers = config.num_decoder_layers
    return config


def shipped(cfg: LanguageModelConfig) -> PreTrainedConfig | None:
    """The config, from this package, of a published model that gets random weights and is not on this machine."""
    name = cfg.source
    if cfg.start is not Init.random or name is None or cfg.revision is not None or known_config(name) is None:
        return None
    return None if is_local(name) or commit(name) is not None else known_config(name)


def model_config(
    cfg: LanguageModelConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    read: Callable[[str, str | None], PreTrainedConfig] = read_config,
) -> PreTrainedConfig:
    """The transformers config of a model to build: that of `cfg.name` with the changes `cfg.config`, or a new one.

    Args:
        tokenizer: gives random weights their vocabulary size and special token ids; None: those of the config.
        read: the config of a name and a revision.

    Raises:
        UserError: neither a name nor a whole config (with model_type) is given, or both; the name is that of a hybrid;
            a key that the config does not have, or a value of a wrong type.
    """
    side, whole, name = side_key(cfg), "model_type" in cfg.config, cfg.source
    if name is None and (cfg.start is Init.pretrained or not whole):
        need = "" if cfg.init is not Init.random else f" and model.{side}.config.model_type (as t5, gpt2, llama)"
        raise UserError(f"model.{side}.name{need} is not set; give a Hub id or a folder, or model.{side}.init=random")
    if name is not None:
        if whole:
            raise UserError(
                f"model.{side}.name={name} and model.{side}.config.model_type={cfg.config['model_type']} describe "
                "two models; leave one of them out"
            )
        config, changes = shipped(cfg) or read(name, cfg.revision), dict(cfg.config)
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
                f"model.{side}.config.model_type={model_type} is unknown{nearest_hint(model_type, CONFIG_MAPPING)}"
            )
        config = CONFIG_MAPPING[model_type]()
    known = config.to_dict().keys() | config.attribute_map.keys()
    for key in changes:
        if key not in known:
            hint = nearest_hint(key, known)
            raise UserError(f"model.{side}.config.{key}: a {config.model_type} has no such value{hint}")
        _check_value(f"model.{side}.config.{key}", changes[key], getattr(config, key, None))
    _check_cut(cfg, config)
    if cfg.start is Init.random:
        changes |= {} if tokenizer is None else _token_values(tokenizer)
        vars(config).pop(RECORD, None)  # a record of cut blocks does not hold for new weights
    if changes:
        renamed = {config.attribute_map.get(key, key): value for key, value in changes.items()}  # hidden_size: d_model
        with load_errors(name or f"model.{side}.config"):
            config = type(config).from_dict(config.to_dict() | first_blocks(config, renamed) | renamed)
    if cfg.start is Init.random and config.is_encoder_decoder:
        config.decoder_start_token_id = config.pad_token_id
        if getattr(config, "forced_eos_token_id", None) is not None:  # BART's default, token 2, is another token here
            config.forced_eos_token_id = config.eos_token_id
    return _with_decoder_depth(config)


def _check_value(key: str, value: Any, default: Any) -> None:
    """Refuses a size below 1 and a dropout outside of [0, 1), from which transformers builds unusable models.

    Raises:
        UserError: with key, value and range.
    """
    name = key.rpartition(".")[2]
    legal = Range(0, 1, below=True) if "drop" in name else Range(1) if SIZE.search(name) else None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if legal is not None and number and value != default and not legal.holds(value):
        raise UserError(f"{key}={value}: must be {legal}")


def _check_cut(cfg: LanguageModelConfig, config: PreTrainedConfig) -> None:
    """Refuses `model.slm.layers` for random or quantized weights, or together with a depth in `cfg.config`.

    Args:
        config: config of the named model, without the changes of `cfg.config`.
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
            f"{KEY}={cfg.layers} and model.slm.config.{twice[0]}={cfg.config[twice[0]]} both set the number of blocks; "
            "leave one of them out"
        )
    if getattr(config, "quantization_config", None):
        raise UserError(f"{KEY}={cfg.layers}: {cfg.name} is quantized, and cannot be cut; give its original")


def _token_values(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Config values of a model with random weights that follow from its tokenizer."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    special = {"pad_token_id": pad, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    return {"vocab_size": len(tokenizer), **special}


def side_key(cfg: LanguageModelConfig) -> str:
    return "llm" if isinstance(cfg, LLMConfig) else "slm"
