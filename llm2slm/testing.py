"""The test kit: seeded tiny LLMs, SLMs and tokenizers in transformers format, and a task of three rows.

Models are saved to folders and loaded by name, like Hub models. Weights have a large variance, so that prompts,
positions and padding errors change the logits visibly. Imported by tests only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from llm2slm.config import LLMConfig, ModelConfig, ProjectorConfig, SLMConfig
from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import Batch, Example, Start, SystemKind, Tokenizers

LLM_TEXTS = ("the little dog sees the old house", "the house sees a dog", "two little dogs see it")
SLM_TEXTS = ("der kleine Hund sieht das alte Haus", "a sees thee oldest little", "zwei kleine Hunde sehen es")


_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
_BART: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 512,
    "decoder_start_token_id": 0, "forced_eos_token_id": None, "init_std": 0.3,
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.3,
}  # fmt: skip
_BERT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.3,
}  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    # name -> model_type, config of the tiny model, dropout keys
    "t5": ("t5", _T5, ("dropout_rate",)),
    "flan": ("t5", _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, ("dropout_rate",)),
    "mt5": ("mt5", _T5, ("dropout_rate",)),
    "umt5": ("umt5", _T5, ("dropout_rate",)),
    "bart": ("bart", _BART, ("dropout",)),
    "mbart": ("mbart", _BART, ("dropout",)),
    "pegasus": ("pegasus", _BART | {"scale_embedding": True}, ("dropout",)),
    "t5gemma": ("t5gemma", _LLAMA, ("attention_dropout",)),
    "bert": ("bert", _BERT, ("hidden_dropout_prob",)),
    "modernbert": ("modernbert", _BERT | {"cls_token_id": 1, "sep_token_id": 1}, ("embedding_dropout", "mlp_dropout")),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 512, "initializer_range": 0.3},
             ("embd_pdrop",)),
    "pythia": ("gpt_neox", _BERT | {"num_hidden_layers": 4}, ("hidden_dropout",)),
    "llama": ("llama", _LLAMA, ("attention_dropout",)),
    "qwen2": ("qwen2", _LLAMA, ("attention_dropout",)),
    "gemma2": ("gemma2", _LLAMA, ("attention_dropout",)),
    "gemma3": ("gemma3_text", _LLAMA, ("attention_dropout",)),
    "opt": ("opt", {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
                    "max_position_embeddings": 512, "word_embed_proj_dim": 16, "init_std": 0.3}, ("dropout",)),
}  # fmt: skip
"""Model families with configs that are built in milliseconds."""


def tiny_rows() -> list[dict[str, str]]:
    """Three rows of a translation task, with different lengths under each tokenizer of this module."""
    return [
        {"source": "the old dog sees a house.", "target": "der alte Hund sieht ein Haus."},
        {"source": "two dogs", "target": "zwei Hunde"},
        {"source": "it sees the little house, no?", "target": "es sieht das kleine Haus, nicht?"},
    ]


def labelled(model: LLM2SLM, rows: list[int]) -> Batch:
    """Rows of the tiny task as a batch with labels."""
    examples = [Example(i, row["source"], row["source"], row["target"]) for i, row in enumerate(tiny_rows())]
    return model.collator(model.collator.encode([examples[i] for i in rows]))


def tiny_tokenizer(which: str = "llm") -> PreTrainedTokenizerFast:
    """One of two byte-level tokenizers with different tokenizations: llm or slm."""
    texts, size = (LLM_TEXTS, 300) if which == "llm" else (SLM_TEXTS, 280)
    return train_tokenizer(texts, vocab_size=size)


def write_tiny_t5(
    folder: Path | str,
    seed: int = 0,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    width: int = 16,
    encoder_layers: int = 2,
    decoder_layers: int = 3,
    dropout: float = 0.1,
) -> Path:
    """Saves a T5 and its tokenizer; by default with dropout, and a decoder deeper than the encoder."""
    tokenizer = tiny_tokenizer() if tokenizer is None else tokenizer
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=encoder_layers,
        num_decoder_layers=decoder_layers,
        num_heads=2,
        dropout_rate=dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return _written(T5ForConditionalGeneration, config, tokenizer, Path(folder), seed)


def write_tiny_gpt2(
    folder: Path | str,
    seed: int = 0,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    width: int = 16,
    layers: int = 4,
    positions: int = 512,
    dropout: float = 0.1,
) -> Path:
    """Saves a GPT-2 and its tokenizer. `positions`: maximum sequence length in tokens."""
    tokenizer = tiny_tokenizer() if tokenizer is None else tokenizer
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=layers,
        n_head=2,
        n_positions=positions,
        initializer_range=0.3,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _written(GPT2LMHeadModel, config, tokenizer, Path(folder), seed)


def write_tiny(
    architecture: str, folder: Path | str, seed: int = 0, *, vocabulary: str = "llm", dropout: float = 0.1
) -> Path:
    """Saves a model of one of `ARCHITECTURES` and its tokenizer, in the format of a Hub repository.

    Args:
        vocabulary: its tokenizer, llm or slm (`tiny_tokenizer`).
    """
    tokenizer = tiny_tokenizer(vocabulary)
    model_type, values, dropouts = ARCHITECTURES[architecture]
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    own = special | {"vocab_size": len(tokenizer)} | values | dict.fromkeys(dropouts, dropout)
    if model_type == "t5gemma":  # two configs of different depth and width
        halves = {"encoder": {"num_hidden_layers": 2}, "decoder": {"num_hidden_layers": 3, "hidden_size": 24}}
        half = own | {"cross_attention_hidden_size": own["hidden_size"]}
        own = special | {name: half | changes for name, changes in halves.items()} | {"vocab_size": len(tokenizer)}
    if model_type in ("t5", "mt5", "umt5"):
        own["decoder_start_token_id"] = tokenizer.pad_token_id
    config = CONFIG_MAPPING[model_type](**own)
    if config.is_encoder_decoder:
        kind = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        kind = MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    else:
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return _written(kind, config, tokenizer, Path(folder), seed)


def tiny_model_config(
    folder: Path | str,
    llm: str = "t5",
    slm: str = "t5",
    conditioning: str = "add",
    tokenizers: Tokenizers = Tokenizers.shared,
    *,
    kind: SystemKind = SystemKind.llm2slm,
    kv_blocks: list[int] | None = None,
    **projector: Any,
) -> ModelConfig:
    """The configuration of a system of two tiny pretrained models, which are saved under `folder` once.

    Args:
        llm, slm: names of `ARCHITECTURES`.
        tokenizers: shared: both models have the llm tokenizer; else the SLM has the slm tokenizer.
        projector: fields of `ProjectorConfig`; by default z starts at random, so that it affects the output.
    """
    vocabulary = "llm" if tokenizers is Tokenizers.shared else "slm"
    llm_folder, slm_folder = Path(folder) / f"llm_{llm}", Path(folder) / f"slm_{slm}_{vocabulary}"
    sized: dict[str, Callable[..., Path]] = {"t5": write_tiny_t5, "gpt2": write_tiny_gpt2}
    if not llm_folder.is_dir() and llm in sized:
        sized[llm](llm_folder, seed=1, width=24)
    elif not llm_folder.is_dir():
        write_tiny(llm, llm_folder, seed=1)
    if not slm_folder.is_dir() and slm in sized:
        sized[slm](slm_folder, seed=2, tokenizer=tiny_tokenizer(vocabulary))
    elif not slm_folder.is_dir():
        write_tiny(slm, slm_folder, seed=2, vocabulary=vocabulary)
    # separate folders: a few families (Qwen2) load any tokenizer.json with a class that adds tokens
    saved = {name: Path(folder) / f"tokenizer_{name}" for name in ("llm", vocabulary)}
    for name, path in saved.items():
        if not path.is_dir():
            tiny_tokenizer(name).save_pretrained(path)
    named = not {llm, slm} <= {"t5", "gpt2"}
    return ModelConfig(
        kind=kind,
        llm=LLMConfig(name=str(llm_folder), tokenizer=str(saved["llm"]) if named else None),
        slm=SLMConfig(name=str(slm_folder), tokenizer=str(saved[vocabulary]) if named else None),
        projector=ProjectorConfig(**{"start": Start.random} | projector),
        conditioning=conditioning,
        tokenizers=tokenizers,
        kv_blocks=kv_blocks,
    )


def _written(kind: type[Any], config: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        if config.model_type in ("t5", "mt5", "umt5"):  # else the last token's embedding dominates the logits
            model.shared.weight.data.mul_(0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
