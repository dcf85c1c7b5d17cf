"""Embeddings and output rows of a pretrained model, made to fit a tokenizer that was changed after its training.

Tokens were added to it (`data/keeping.py`), or entries were taken out (`data/cutting.py`).
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
from llm2slm.data.tokenizer import cut_of
from llm2slm.gguf_files.names import is_gguf
from llm2slm.models.pretrained import locate, model_config
from llm2slm.types import Init, UserError

RECORD = "llm2slm_vocab"
"""In the config of a model with a cut vocabulary: `data.tokenizer.Cut.record`."""

SINGLE = ("_token_id", "_token_ids", "_token_index")
"""Ends of the names by which configs call a token, or several."""
LISTS = ("suppress_tokens", "begin_suppress_tokens")
SEQUENCES = ("bad_words_ids", "force_words_ids")


def adapt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, added: int | None, cfg: LanguageModelConfig, key: str
) -> None:
    """Makes a model fit its tokenizer, in place, and prints what a cut vocabulary saves.

    Args:
        added: id of the first token that the model has no embedding of; None: there is none.
        cfg: where the model comes from. key: of the model in the configuration, as model.slm.

    Raises:
        UserError: the model's vocabulary is cut and the tokenizer's is not; or as `select`.
    """
    cut, own = cut_of(tokenizer), getattr(model.config, RECORD, None)
    if own is not None and cut is None:
        raise UserError(
            f"{key}.name={cfg.name}: its vocabulary is cut to {own['kept']} of {own['of']} entries, and the tokenizer "
            f"{tokenizer.name_or_path} has {len(tokenizer)}; leave {key}.tokenizer out, its own is in its folder"
        )
    if cut is None:
        if added is not None and cfg.start is Init.pretrained:
            grow(model, len(tokenizer), added)
        return
    named = cfg.start is Init.pretrained and cfg.tokenizer is not None  # else it came with the model, which fits it
    if named and own != cut.record:
        if added is not None and added < len(cut.rows):
            grow(model, cut.rows[-1] + 1, cut.rows[added])
        before = model.num_parameters()
        total = model.get_input_embeddings().weight.shape[0]
        dropped = select(model, cut.rows)
        now = model.num_parameters()
        print(
            f"llm2slm: {key}.vocab: {len(cut.rows):,} of {total:,} vocabulary entries are kept, "
            f"{(before - now) / 1e6:.1f} M of {before / 1e6:.1f} M parameters are left out",
            file=sys.stderr,
        )
        if dropped:
            print(f"llm2slm: {key}: names entries that are not kept, left out: {', '.join(dropped)}", file=sys.stderr)
    if named and len(tokenizer) > len(cut.rows):  # added to it after it was cut
        grow(model, len(tokenizer), len(cut.rows))
    setattr(model.config, RECORD, cut.record)


@torch.no_grad()
def grow(model: PreTrainedModel, size: int, first: int) -> None:
    """Gives a model embeddings of the tokens from `first` to `size`, in place: each the mean of those before it.

    So it is for the rows of the output layer, where they are others. Rows that a model holds beyond its vocabulary (T5
    has some) are used first.
    """
    if size > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(size, mean_resizing=False)
    for values in _tables(model):
        values[first:size] = values[:first].float().mean(0).to(values.dtype)


@torch.no_grad()
def select(model: PreTrainedModel, rows: Sequence[int]) -> list[str]:
    """Keeps some rows of a model's embeddings and output layer, in place, and renumbers the ids in its configs.

    Args:
        rows: ascending.

    Returns:
        What of the configs named tokens that are gone, and is left out, as "bad_words_ids=[[7]]".

    Raises:
        UserError: the model has not so many rows, or further tables with a row for each token.
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
    """Gives the token ids in a config their new numbers, in place; without those that are gone, which it returns.

    Args:
        new: by old id.
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
    """One id or a list of such; None where nothing is left of it. What is no id stays as it is."""
    if isinstance(value, int):
        return value if value < 0 else new.get(value)
    if not isinstance(value, list) or not all(isinstance(i, int) for i in value):
        return value
    return [new[i] for i in value if i in new] or None


def _whole(ids: Sequence[Any], new: Mapping[int, int]) -> list[Any] | None:
    """A sequence of ids, or of such sequences, in new numbers; None where one of them is gone."""
    found = [_whole(one, new) if isinstance(one, list | tuple) else new.get(one) for one in ids]
    return None if None in found else found


def named_ids(cfg: LanguageModelConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that a pretrained model's config and generation config name by role (`bos_token_id` and the like)."""
    name = cfg.source
    if name is None or cfg.start is Init.random:
        return set()
    configs: list[Any] = list(_configs(model_config(cfg, tokenizer)))
    if not is_gguf(name):  # a file, without others beside it
        place = locate(name)
        path = cached_file(
            place, GENERATION_CONFIG_NAME, revision=cfg.revision,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if path is not None:
            configs.append(GenerationConfig.from_pretrained(place, revision=cfg.revision))
    values = [value for one in configs for name, value in vars(one).items() if name.endswith(SINGLE)]
    ids = [i for value in values for i in (value if isinstance(value, list) else [value])]
    return {i for i in ids if isinstance(i, int) and 0 <= i < len(tokenizer)}


def check_trained(model: PreTrainedModel, tune: str, key: str) -> None:
    """Refuses to train a model whose new embeddings would stay as they are.

    Args:
        key: of the model in the configuration, as model.slm.

    Raises:
        UserError: its embeddings, or the rows of its output layer, are not trained.
    """
    frozen = [layer.weight for layer in _layers(model) if not layer.weight.requires_grad]
    if frozen:
        names = [name for name, parameter in model.named_parameters() if any(parameter is one for one in frozen)]
        raise UserError(
            f"{key}.tune={tune} does not train {' and '.join(names)}, where the tokens that {key}.keep_whitespace and "
            f"{key}.keep_characters add have embeddings to be learned; use {key}.tune=full, or a regular expression "
            "that names them too"
        )


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and those within it."""
    yield config
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            yield from _configs(inner)


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers with a row for each token: embeddings, and the output layer where it has weights of its own."""
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    if model.config.is_encoder_decoder:
        found += [half.get_input_embeddings() for half in (model.get_encoder(), model.get_decoder())]
    apart = {id(layer.weight): layer for layer in found if layer is not None}
    return list(apart.values())


def _tables(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """The parameters with a row for each token: weights, and biases where there are such."""
    for layer in _layers(model):
        yield from layer.parameters()
