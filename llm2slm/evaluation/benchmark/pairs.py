"""An LLM and an SLM by their configs alone: what the cost model needs of a pair before, or without, building it.

No weights and no tokenizer are read. A config is that of a local folder or GGUF file, of the Hub's cache, of
`models/known_configs.yaml`, or (with a network) of the Hub, in this order.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llm2slm.config import LanguageModelConfig, LLMConfig, ModelConfig, ProjectorConfig
from llm2slm.gguf_files.names import is_gguf
from llm2slm.models import conditioning
from llm2slm.models.conditioning import NONE, Conditioning
from llm2slm.models.conditioning.prepend import groups_of
from llm2slm.models.families import encoder_stack, supported
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.known_configs import known_config
from llm2slm.models.llm import LLMRecord
from llm2slm.models.loading.configs import commit, is_local, model_config, read_config
from llm2slm.models.loading.cross_attention import can_add_cross_attention
from llm2slm.models.loading.cut_config import chosen_blocks, cut_config
from llm2slm.models.loading.partial_loading import chosen_layers, is_bidirectional
from llm2slm.models.saving import INSIDE
from llm2slm.models.soft_prompts import DEFAULTS, PREFIX, PROMPT
from llm2slm.types import Init, SystemKind, Tokenizers, UserError


@dataclass(frozen=True)
class Side:
    """A model of a pair.

    Attributes:
        name: Hub id or path; of a new model its model_type. source: where its config was found.
    """

    name: str
    source: str
    config: PreTrainedConfig

    @property
    def values(self) -> dict[str, Any]:
        """The config as plain values."""
        found: dict[str, Any] = self.config.to_dict()
        return found

    @property
    def encodes(self) -> bool:
        """Whether the cost of encoding a prompt is known."""
        return supported(self.values, generates=False)

    @property
    def generates(self) -> bool:
        """Whether the cost of generating a response is known."""
        return supported(self.values)


@dataclass(frozen=True)
class Pair:
    """The models of a system, and how they work together.

    Attributes:
        llm, slm: None where the system has none.
        conditioning: `none` without a hybrid. settings: attributes of `costs.Setup` that do not depend on the prompt.
        pool: as `model.pool`. slm_prompt: tokens of the prompt that the SLM gets; None: those of its tokenizer.
        same_prompt: the SLM gets the LLM's prompt tokens. same_response: both have one tokenizer.
        virtual: `virtual` or `prefix` of `costs.Setup`, for every system that the SLM is part of.
    """

    llm: Side | None
    slm: Side | None
    conditioning: str = NONE
    settings: dict[str, Any] = field(default_factory=dict)
    pool: float | None = None
    slm_prompt: int | None = None
    same_prompt: bool = True
    same_response: bool = True
    virtual: dict[str, int] = field(default_factory=dict)

    @property
    def llm_layers(self) -> int | None:
        """Blocks of the LLM that the hybrid runs; None: all blocks of its encoder."""
        return self.settings.get("llm_layers")

    def groups(self, tokens: float) -> float | None:
        """Positions of z in front of the SLM's prompt, of so many LLM tokens; None: z is not pooled."""
        return None if self.pool is None else groups_of(int(tokens), self.pool)


def configured(cfg: ModelConfig, vocabulary: int | None = None) -> Pair:
    """The pair of a configuration.

    Args:
        vocabulary: size of the SLM's vocabulary, as after a cut; None: that of its config, or of the LLM if the SLM has
            random weights and the LLM's tokenizer.

    Raises:
        UserError: a config cannot be read, or the models and settings do not fit together.
    """
    llm = _side(cfg.llm)
    if cfg.kind is SystemKind.llm:
        return Pair(llm, None)
    slm = _cut(_side(cfg.slm), cfg)
    shared = cfg.tokenizers is Tokenizers.shared
    follows = shared and cfg.slm.tokenizer is None and cfg.slm.start is Init.random
    if vocabulary is None and cfg.slm.vocab is not None:
        raise UserError(f"model.slm.vocab={cfg.slm.vocab.value}: its size depends on a corpus; give it by slm_vocab=N")
    if vocabulary is None and follows:
        vocabulary = int(llm.config.get_text_config().vocab_size)
    if vocabulary is not None:
        _set_vocabulary(slm.config, vocabulary)
    pair = Pair(llm, slm, same_prompt=cfg.tokenizers is not Tokenizers.offsets, same_response=shared)
    pair = replace(pair, virtual=_virtual(cfg.slm.tune, cfg.slm.peft))
    return pair if cfg.kind is SystemKind.slm else _guided(pair, cfg)


def recorded(run: str, moved: str | None = None) -> Pair:
    """The pair of a saved model: of a hybrid both models, else the model alone.

    Args:
        run: run directory, model folder or Hub id. moved: the folder or id of the LLM, if it has moved.

    Raises:
        UserError: a config cannot be read; moved, and the model has no LLM; its LLM is not on this machine.
    """
    inside = Path(run) / "model"
    run = str(inside) if inside.is_dir() else run
    config = read_config(run)
    record = getattr(config, "llm2slm", None) or {}
    if not isinstance(config, LLM2SLMConfig):
        _refuse_moved(run, moved)
        side = Side(run, _source(run, None), config)
        return Pair(None, side) if record.get("kind") == SystemKind.slm.value else Pair(side, None)
    assert isinstance(config.slm, PreTrainedConfig)
    slm = Side(run, _source(run, None), config.slm)
    tokens = config.virtual_tokens or {}
    virtual = _virtual(tokens.get("tune", ""), tokens)
    if config.llm is None:
        _refuse_moved(run, moved)
        return Pair(None, slm, virtual=virtual) if config.kind == SystemKind.slm.value else Pair(slm, None)
    cfg = ModelConfig(
        llm=_recorded_llm(LLMRecord.read(config), run, moved),
        projector=ProjectorConfig(hidden=(config.projector or {}).get("hidden")),
        conditioning=config.conditioning,
        pool=config.pool,
        cross_every=config.cross_every,
        kv_blocks=None if config.kv is None else config.kv["blocks"],
        tokenizers=Tokenizers(config.tokenizers),
    )
    same_prompt, shared = cfg.tokenizers is not Tokenizers.offsets, cfg.tokenizers is Tokenizers.shared
    return _guided(Pair(_side(cfg.llm), slm, NONE, {}, None, None, same_prompt, shared, virtual), cfg, config)


def _refuse_moved(run: str, moved: str | None) -> None:
    if moved is not None:
        raise UserError(f"llm={moved}: {run} has no LLM that could have moved; remove the key")


def _recorded_llm(record: LLMRecord, run: str, moved: str | None) -> LLMConfig:
    """The configuration of a saved hybrid's LLM."""
    if record.name is None and moved is None:
        return LLMConfig(init=Init.random, config=record.config, layer=record.layer)
    path = moved or str(record.name)
    if path == INSIDE:
        path = str(Path(run) / INSIDE)
        if not Path(path).is_dir():
            raise UserError(f"run={run}: its LLM is in its repository; download it, or give the LLM by llm=NAME")
    return replace(record.located(path), config=record.config if path == record.name else {})


def _side(cfg: LanguageModelConfig) -> Side:
    config = model_config(cfg, None, _read)
    name = cfg.source
    return Side(config.model_type, "new", config) if name is None else Side(name, _source(name, cfg.revision), config)


def _read(name: str, revision: str | None) -> PreTrainedConfig:
    """As `read_config`, from `known_configs.yaml` if only the Hub has it."""
    shipped = known_config(name) if _source(name, revision) == SHIPPED else None
    return read_config(name, revision) if shipped is None else shipped


SHIPPED = "shipped"


def _source(name: str, revision: str | None) -> str:
    """Where the config of a model is: folder | cache | shipped | Hub."""
    if is_gguf(name) or is_local(name):
        return "folder"
    if commit(name, revision) is not None:
        return "cache"
    return SHIPPED if revision is None and known_config(name) is not None else "Hub"


def _cut(side: Side, cfg: ModelConfig) -> Side:
    """With the blocks of `model.slm.layers` only."""
    if cfg.slm.layers is None:
        return side
    return replace(side, config=cut_config(side.config, chosen_blocks(cfg.slm.layers, side.config)))


def _set_vocabulary(config: PreTrainedConfig, size: int) -> None:
    """Sets the size of the vocabulary in a config and in those of its halves, in place."""
    halves = (getattr(config, name, None) for name in ("encoder", "decoder"))
    for each in (config, *(half for half in halves if isinstance(half, PreTrainedConfig))):
        each.vocab_size = size


def _virtual(tune: str, peft: dict[str, Any]) -> dict[str, int]:
    """Virtual tokens as an attribute of `costs.Setup`; {} for other values of `tune`."""
    if tune not in (PROMPT, PREFIX):
        return {}
    count = int((DEFAULTS[tune] | peft)["num_virtual_tokens"])
    return {"virtual" if tune == PROMPT else "prefix": count}


def _guided(pair: Pair, cfg: ModelConfig, saved: LLM2SLMConfig | None = None) -> Pair:
    """With the hybrid of both models; unchanged if the cost of either is unknown.

    Args:
        saved: config of a saved hybrid.

    Raises:
        UserError: as `conditioning.check_pair`; no such layer of the LLM.
    """
    llm, slm, mode = pair.llm, pair.slm, conditioning.get(cfg.conditioning)
    if llm is None or slm is None or not llm.encodes or not slm.generates:
        return pair
    conditioning.check_pair(cfg, _empty(slm.config, mode))
    settings = mode.planned_cost_settings(cfg, llm.config, slm.config, saved)
    slm_prompt = settings.pop("prompt_tokens", None)
    record = LLM2SLMConfig(kv={"mapped": settings.get("kv_mapped") is not None})
    aligned = cfg.tokenizers is Tokenizers.offsets and mode.token_by_token(record)
    settings = {"llm_layers": _layers(cfg, llm), "aligned": aligned} | settings
    return replace(pair, conditioning=mode.name, settings=settings, pool=cfg.pool, slm_prompt=slm_prompt)


def _layers(cfg: ModelConfig, llm: Side) -> int:
    """Number of blocks of the LLM that the encoder runs, as `FrozenEncoder.blocks`."""
    depth = encoder_stack(llm.values).layers
    read = chosen_layers(cfg.llm.layer, depth, is_bidirectional(llm.config))
    return depth if read == [depth] else max(1, *read)


def _empty(config: PreTrainedConfig, mode: Conditioning) -> Any:
    """The SLM without weights, on the meta device."""
    config = deepcopy(config)
    if mode.cross_attends and not config.is_encoder_decoder:
        kind = _get_model_class(config, MODEL_FOR_CAUSAL_LM_MAPPING)
        config.add_cross_attention = can_add_cross_attention(kind, config)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)
