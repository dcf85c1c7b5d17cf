"""The test kit: seeded tiny LLMs, SLMs and tokenizers in real transformers format, and a task of three rows.

Every model is written to a folder and named by it, so that tests go through the code that loads a Hub id. Weights are
drawn wide enough that prompts, positions and padding mistakes show in the logits. Imported by tests only.
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

from llm2slm.config import LanguageModelConfig, LLMConfig, ModelConfig, ProjectorConfig
from llm2slm.data.tokenizer import train_tokenizer
from llm2slm.types import Conditioning, SystemKind, Tokenizers

READER_TEXTS = ("the little dog sees the old house", "the house sees a dog", "two little dogs see it")
WRITER_TEXTS = ("der kleine Hund sieht das alte Haus", "a sees thee oldest little", "zwei kleine Hunde sehen es")


def tiny_rows() -> list[dict[str, str]]:
    """Three rows of a translation task; their lengths differ under every tokenizer of this kit."""
    return [
        {"source": "the old dog sees a house.", "target": "der alte Hund sieht ein Haus."},
        {"source": "two dogs", "target": "zwei Hunde"},
        {"source": "it sees the little house, no?", "target": "es sieht das kleine Haus, nicht?"},
    ]


def tiny_tokenizer(which: str = "reader") -> PreTrainedTokenizerFast:
    """One of two byte-level tokenizers that cut the same text differently: reader or writer."""
    texts, size = (READER_TEXTS, 300) if which == "reader" else (WRITER_TEXTS, 280)
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
    """Writes a T5 with its tokenizer. By default deeper in the decoder than in the encoder, and with dropout."""
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
    """Writes a GPT-2 with its tokenizer. `positions`: the longest sequence, in tokens."""
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


def tiny_model_config(
    folder: Path | str,
    llm: str = "t5",
    slm: str = "t5",
    conditioning: Conditioning = Conditioning.add,
    tokenizers: Tokenizers = Tokenizers.shared,
    *,
    kind: SystemKind = SystemKind.llm2slm,
    **projector: Any,
) -> ModelConfig:
    """The configuration of a system of two tiny pretrained models, which are written under `folder` once.

    Args:
        llm, slm: t5 or gpt2.
        tokenizers: shared: both models have the reader tokenizer; offsets: the SLM has the writer tokenizer.
        projector: fields of `ProjectorConfig`.
    """
    write: dict[str, Callable[..., Path]] = {"t5": write_tiny_t5, "gpt2": write_tiny_gpt2}
    cut = "reader" if tokenizers is Tokenizers.shared else "writer"
    llm_folder, slm_folder = Path(folder) / f"llm_{llm}", Path(folder) / f"slm_{slm}_{cut}"
    if not llm_folder.is_dir():
        write[llm](llm_folder, seed=1, width=24)
    if not slm_folder.is_dir():
        write[slm](slm_folder, seed=2, tokenizer=tiny_tokenizer(cut))
    return ModelConfig(
        kind=kind,
        llm=LLMConfig(name=str(llm_folder)),
        slm=LanguageModelConfig(name=str(slm_folder)),
        projector=ProjectorConfig(**projector),
        conditioning=conditioning,
        tokenizers=tokenizers,
    )


def _written(kind: type[Any], config: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        if isinstance(model, T5ForConditionalGeneration):  # else its own last token outweighs all that its blocks say
            model.shared.weight.data.mul_(0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
