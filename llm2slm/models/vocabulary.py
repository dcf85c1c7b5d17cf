"""Embeddings of tokens that a tokenizer got after its model was trained (`data/keeping.py`)."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2slm.types import UserError


@torch.no_grad()
def grow(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, first: int) -> None:
    """Gives a model embeddings of the tokens from `first` on, in place: each the mean of those before it.

    So it is for the rows of the output layer, where they are others. Rows that a model holds beyond its vocabulary (T5
    has some) are used first.
    """
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for layer in _layers(model):
        for values in layer.parameters():  # weight, and bias where there is one
            values[first : len(tokenizer)] = values[:first].float().mean(0).to(values.dtype)


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


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers with a row for each token: embeddings, and the output layer where it has weights of its own."""
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    apart = {id(layer.weight): layer for layer in found if layer is not None}
    return list(apart.values())
