"""StoredReader: representations that an LLM left in a store, in the LLM's place. The LLM itself is never loaded.

What the representations are of (`identity`) is compared with what a run asks for before anything is trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from llm2slm.data.collate import Collator
from llm2slm.data.reps_store import RepsStore
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.pruning import Layer, chosen_layers
from llm2slm.types import Reps


class StoredReader(nn.Module):
    """What `FrozenEncoder` is to a hybrid, out of a store. It has no parameters.

    Args:
        folder: of the store.

    Attributes:
        layers, chosen, width, embedding_width, blocks, positions: those of the reader that filled it.

    Raises:
        UserError: no store, or a file of it is missing or cut short; later, a prompt is not in it.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.store = RepsStore(folder)
        facts = self.store.reader
        self.layers: list[int] = facts["layers"]
        self.chosen = facts["chosen"]
        self.width: int = facts["width"]
        self.embedding_width: int = facts["embedding_width"]
        self.blocks: int = facts["blocks"]
        self.positions: int | None = facts["positions"]

    def forward(self, ids_BP: Tensor, mask_BP: Tensor) -> Reps:
        """As `FrozenEncoder.forward`, of prompts that are in the store."""
        return self.store.reps(ids_BP, mask_BP)

    def embed(self, ids_BP: Tensor) -> Tensor:
        """As `FrozenEncoder.embed`."""
        return self.store.embed(ids_BP)

    def fingerprint(self) -> str:
        """That of the LLM which filled the store."""
        return str(self.store.reader["fingerprint"])

    def check(self, llm: Mapping[str, Any], layer: Layer, collator: Collator) -> None:
        """Refuses representations of another LLM, layer, tokenizer, frame or limit than a model asks for.

        Args:
            layer: `model.llm.layer`.

        Raises:
            UserError: names every difference.
        """
        facts = self.store.reader
        layers = chosen_layers(layer, facts["depth"], not facts["decoder_only"])
        RepsStore(self.store.folder, identity(llm, layers, collator))


Reader = FrozenEncoder | StoredReader


def identity(llm: Mapping[str, Any], layers: Sequence[int], collator: Collator) -> dict[str, Any]:
    """What a store's representations are of.

    Args:
        llm: how a saved hybrid names its LLM (`LLM2SLMConfig.llm`). Without a fingerprint (weights that were not
            loaded) the identity has none; a store that is opened with it is then not asked for its own.
        layers: absolute numbers of those that are read.
        collator: its tokenizer of the LLM's prompts, the frame around them, and its limits.
    """
    keys = ("name", "revision", "config", "fingerprint", "dtype", "quantization")
    return {key: llm[key] for key in keys if key in llm} | {
        "layers": list(layers),
        "tokenizer": tokenizer_hash(collator.llm_prompts.tokenizer),
        "frame": asdict(collator.llm_prompts.frame),
        "prompt_mark": collator.llm_prompts.mark,
        "max_prompt_tokens": collator.max_prompt_tokens,
        "overlong": collator.overlong.value,
    }


def reader_facts(encoder: FrozenEncoder) -> dict[str, Any]:
    """The LLM's shapes as a reader, for whoever builds a model without it."""
    return {
        "layers": encoder.layers,
        "chosen": encoder.chosen,
        "width": encoder.width,
        "embedding_width": encoder.embedding_width,
        "blocks": encoder.blocks,
        "depth": encoder.depth,
        "decoder_only": encoder.decoder_only,
        "positions": encoder.positions,
        "fingerprint": encoder.fingerprint(),
    }


def tokenizer_hash(tokenizer: Any) -> str:
    """Twelve hexadecimal digits that tell a fast tokenizer from others: all that its file says of how text is cut."""
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    for setting in ("truncation", "padding"):  # of its last call
        said.pop(setting, None)
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
