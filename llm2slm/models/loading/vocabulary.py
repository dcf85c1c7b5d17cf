"""Adapts a pretrained model's embeddings and output layer to a changed tokenizer.

Tokens were added to the tokenizer (`data/tokenization/keeping.py`), or removed (`data/tokenization/cutting.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from llm2slm.config import LanguageModelConfig
from llm2slm.data.interface import cut_of
from llm2slm.gguf_files.names import is_gguf
from llm2slm.models.loading.configs import locate, model_config
from llm2slm.types import Init, UserError

RECORD = "llm2slm_vocab"
"""Config attribute of a model with a cut vocabulary: `data.tokenization.tokenizer.Cut.record`."""

SINGLE = ("_token_id", "_token_ids", "_token_index")
"""Suffixes of config keys that hold one or several token ids."""
LISTS = ("suppress_tokens", "begin_suppress_tokens")
SEQUENCES = ("bad_words_ids", "force_words_ids")


def adapt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, added: int | None, cfg: LanguageModelConfig, key: str
) -> None:
    """Adapts a model to its tokenizer, in place, and prints the parameters saved by a vocabulary cut.

    Args:
        added: id of the first token without an embedding; None if all tokens have one.
        cfg: source of the model.
        key: configuration key of the model, as model.slm.

    Raises:
        UserError: the model's vocabulary is cut and the tokenizer's is not; as `select`.
    """
    cut, own = cut_of(tokenizer), getattr(model.config, RECORD, None)
    if own is not None and cut is None:
        raise UserError(
            f"{key}.name={cfg.name}: its vocabulary is cut to {own['kept']} of {own['of']} entries, and the tokenizer "
            f"{tokenizer.name_or_path} has {len(tokenizer)}; leave {key}.tokenizer out: the model's folder has its "
            "tokenizer"
        )
    if cut is None:
        if added is not None and cfg.start is Init.pretrained:
            grow(model, len(tokenizer), added)
        return
    named = cfg.start is Init.pretrained and cfg.tokenizer is not None  # else the tokenizer comes with the model
    if named and own != cut.record:
        if added is not None and added < len(cut.rows):
            grow(model, cut.rows[-1] + 1, cut.rows[added])
        before = model.num_parameters()
        total = model.get_input_embeddings().weight.shape[0]
        dropped = select(model, cut.rows)
        now = model.num_parameters()
        print(
            f"llm2slm: {key}.vocab: {len(cut.rows):,} of {total:,} vocabulary entries are kept, "
            f"{(before - now) / 1e6:.1f} M of {before / 1e6:.1f} M parameters are removed",
            file=sys.stderr,
        )
        if dropped:
            print(f"llm2slm: {key}: settings with removed entries are dropped: {', '.join(dropped)}", file=sys.stderr)
    if named and len(tokenizer) > len(cut.rows):  # tokens added after the cut
        grow(model, len(tokenizer), len(cut.rows))
    setattr(model.config, RECORD, cut.record)


@torch.no_grad()
def grow(model: PreTrainedModel, size: int, first: int) -> None:
    """Initializes the embeddings of the tokens from `first` to `size` with the mean of the earlier ones, in place.

    The same holds for the rows of an untied output layer. Surplus rows of the model (T5 has some) are used first.
    """
    if size > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(size, mean_resizing=False)
    for values in _tables(model):
        values[first:size] = values[:first].float().mean(0).to(values.dtype)


@torch.no_grad()
def select(model: PreTrainedModel, rows: Sequence[int]) -> list[str]:
    """Keeps only the given rows of a model's embeddings and output layer, in place, and renumbers ids in its configs.

    Args:
        rows: ascending row indices.

    Returns:
        The config settings dropped because of removed tokens, as "bad_words_ids=[[7]]".

    Raises:
        UserError: the model has fewer rows, or further tables with one row per token.
    """
    total, config = model.get_input_embeddings().weight.shape[0], model.config
    if rows[-1] >= total:
        raise UserError(
            f"model {config.name_or_path}: its embeddings have {total} rows, and its tokenizer an entry {rows[-1]}; "
            "its vocabulary cannot be cut"
        )
    if other := [name for one in _configs(config) for name in vars(one) if name.startswith("vocab_size_")]:
        raise UserError(
            f"model {config.name_or_path}: a {config.model_type} has further tables by token ({other[0]}); its "
            "vocabulary cannot be cut"
        )
    chosen = torch.tensor(rows)
    for values in _tables(model):
        values[: len(rows)] = values[chosen.to(values.device)]
    for name, bias in model.named_buffers():
        if name.endswith("final_logits_bias"):
            bias[..., : len(rows)] = bias[..., chosen.to(bias.device)]
    model.resize_token_embeddings(len(rows), mean_resizing=False)
    new = {old: i for i, old in enumerate(rows)}
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.shape[0] == len(rows) and module.padding_idx is not None:
            module.padding_idx = new.get(module.padding_idx)
    dropped = [line for one in (*_configs(config), model.generation_config) if one for line in renumber(one, new)]
    for one in _configs(config):
        for name in ("vocab_size", "decoder_vocab_size"):
            if getattr(one, name, None) is not None:
                setattr(one, name, len(rows))
    return list(dict.fromkeys(dropped))


def renumber(config: PreTrainedConfig | GenerationConfig, new: Mapping[int, int]) -> list[str]:
    """Renumbers the token ids in a config, in place; removes settings of removed tokens, and returns them.

    Args:
        new: old id -> new id.
    """
    dropped = []
    for name, value in list(vars(config).items()):
        if value is None or isinstance(value, bool):
            continue
        if name.endswith(SINGLE) or name in LISTS:
            changed = _renumbered(value, new)
        elif name in SEQUENCES:
            changed = [ids for one in value if (ids := _whole(one, new))] or None
        elif name == "sequence_bias":
            pairs = value.items() if isinstance(value, dict) else value
            changed = [[ids, bias] for one, bias in pairs if (ids := _whole(one, new))] or None
        else:
            continue
        setattr(config, name, changed)
        count = len(value) if hasattr(value, "__len__") else 1
        left = 0 if changed is None else len(changed) if isinstance(changed, list) else 1
        if left < count:
            dropped.append(f"{name}={str(value).replace(' ', '')[:60]}")
    return dropped


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """An id or a list of ids in new numbers; None if nothing is left. Other values are returned unchanged."""
    if isinstance(value, int):
        return value if value < 0 else new.get(value)
    if not isinstance(value, list) or not all(isinstance(i, int) for i in value):
        return value
    return [new[i] for i in value if i in new] or None


def _whole(ids: Sequence[Any], new: Mapping[int, int]) -> list[Any] | None:
    """A (nested) sequence of ids in new numbers; None if one of them was removed."""
    found = [_whole(one, new) if isinstance(one, list | tuple) else new.get(one) for one in ids]
    return None if None in found else found


def named_ids(cfg: LanguageModelConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Token ids in the role keys (`bos_token_id`, ...) of a pretrained model's config and generation config."""
    name = cfg.source
    if name is None or cfg.start is Init.random:
        return set()
    configs: list[Any] = list(_configs(model_config(cfg, tokenizer)))
    if not is_gguf(name):  # a GGUF file has no generation config
        source = locate(name)
        path = cached_file(
            source, GENERATION_CONFIG_NAME, revision=cfg.revision,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if path is not None:
            configs.append(GenerationConfig.from_pretrained(source, revision=cfg.revision))
    values = [value for one in configs for name, value in vars(one).items() if name.endswith(SINGLE)]
    ids = [i for value in values for i in (value if isinstance(value, list) else [value])]
    return {i for i in ids if isinstance(i, int) and 0 <= i < len(tokenizer)}


def check_trained(model: PreTrainedModel, tune: str, key: str) -> None:
    """Refuses to train a model whose new embeddings are frozen.

    Args:
        key: configuration key of the model, as model.slm.

    Raises:
        UserError: the embeddings or the output layer are not trained.
    """
    frozen = [layer.weight for layer in _layers(model) if not layer.weight.requires_grad]
    if frozen:
        names = [name for name, parameter in model.named_parameters() if any(parameter is one for one in frozen)]
        raise UserError(
            f"{key}.tune={tune} does not train {' and '.join(names)}, which hold the new embeddings of the tokens "
            f"added by {key}.keep_whitespace and {key}.keep_characters; use {key}.tune=full, or a regular expression "
            "that matches them too"
        )


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and its sub-configs."""
    yield config
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            yield from _configs(inner)


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers with one row per token: embeddings, and the output layer unless its weights are tied."""
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    if model.config.is_encoder_decoder:
        found += [half.get_input_embeddings() for half in (model.get_encoder(), model.get_decoder())]
    apart = {id(layer.weight): layer for layer in found if layer is not None}
    return list(apart.values())


def _tables(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """The parameters with one row per token: weights and biases."""
    for layer in _layers(model):
        yield from layer.parameters()
