"""StoredEncoder: representations from a store in place of the LLM, which is not loaded.

`identity` describes what the representations were computed from; it is compared with the configuration before training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from llm2slm.data.interface import Collator, RepsStore
from llm2slm.gguf_files.header import read_header
from llm2slm.gguf_files.names import is_gguf
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.kv_cache import CacheShape
from llm2slm.models.loading.configs import locate
from llm2slm.models.loading.gguf import weights_in
from llm2slm.models.loading.partial_loading import Layer, chosen_layers
from llm2slm.types import Reps

WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
SAVED = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
"""Keys of config.json that do not affect what the model computes."""
SAMPLES, SAMPLE_BYTES = 256, 4096
"""Number and size of the parts of a weight file that enter its hash."""


class StoredEncoder(nn.Module):
    """Serves a hybrid like `FrozenEncoder`, from a store. It has no parameters.

    Args:
        folder: of the store.

    Attributes:
        layers, chosen, width, embedding_width, blocks, positions, kv_blocks, cache_shape: of the `FrozenEncoder` that
            wrote the store. unloaded: the number of its parameters.

    Raises:
        UserError: no store, or a file is missing or truncated; later, a prompt is not in it.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.store = RepsStore(folder)
        facts = self.store.encoder_facts
        self.layers: list[int] = facts["layers"]
        self.chosen = facts["chosen"]
        self.width: int = facts["width"]
        self.embedding_width: int = facts["embedding_width"]
        self.blocks: int = facts["blocks"]
        self.positions: int | None = facts["positions"]
        self.unloaded: int = facts["parameters"]
        self.kv_blocks: list[int] | None = facts.get("kv_blocks")
        shape = facts.get("cache_shape")
        self.cache_shape = None if shape is None else CacheShape(*shape)

    def forward(self, ids_BP: Tensor, mask_BP: Tensor) -> Reps:
        """As `FrozenEncoder.forward`, for prompts that are in the store."""
        return self.store.reps(ids_BP, mask_BP)

    def embed(self, ids_BP: Tensor) -> Tensor:
        """As `FrozenEncoder.embed`."""
        return self.store.embed(ids_BP)

    def fingerprint(self) -> str:
        """That of the LLM that the store was computed with."""
        return str(self.store.encoder_facts["fingerprint"])

    def check(
        self, llm: Mapping[str, Any], layer: Layer, collator: Collator, kv_blocks: Sequence[int] | None = None
    ) -> None:
        """Refuses representations of another LLM, layer, tokenizer or frame than configured.

        Weights are compared if they are available, as the same ones may have been moved to another folder. Limits on
        lengths are not compared: a truncated prompt is another prompt, and not in the store.

        Args:
            llm: as for `identity`. layer: `model.llm.layer`. kv_blocks: blocks whose keys and values are needed.

        Raises:
            UserError: names every difference.
        """
        facts = self.store.encoder_facts
        layers = chosen_layers(layer, facts["depth"], not facts["decoder_only"])
        if kv_blocks is not None:
            layers = [block for block in kv_blocks for _ in range(2)]
        expected = identity(llm, layers, collator, keys_values=kv_blocks is not None)
        if "weights" in expected and expected["weights"] == self.store.identity.get("weights"):
            del expected["name"]
        RepsStore(self.store.folder, expected)


PromptEncoder = FrozenEncoder | StoredEncoder


def identity(
    llm: Mapping[str, Any], layers: Sequence[int], collator: Collator, *, keys_values: bool = False
) -> dict[str, Any]:
    """What the representations in a store were computed from.

    Args:
        llm: a saved `LLMRecord` (`LLM2SLMConfig.llm`). A value that is missing (the fingerprint of weights that were
            not loaded, the hashes of files that are not on this machine) is not compared.
        layers: absolute numbers of the layers that are read.
        collator: has the LLM's tokenizer, and the frame around its prompts.
        keys_values: keys and values of blocks are read instead of hidden states.
    """
    frame = collator.llm_prompts.frame
    keys = ("name", "revision", "gguf_file", "config", "init", "fingerprint", "dtype", "quantization")
    place = llm.get("name")
    found = {} if place is None else {"weights": weights_hash(place), "settings": settings_hash(place)}
    return {key: llm[key] for key in keys if key in llm} | {
        **{key: value for key, value in found.items() if value is not None},
        "layers": list(layers),
        **({"gives": "keys and values"} if keys_values else {}),
        "tokenizer": tokenizer_hash(collator.llm_prompts.tokenizer),
        "frame": {
            "before": frame.before + frame.prefix,
            "after": frame.after,
            "special_tokens": frame.special_tokens,
        },
        "prompt_mark": collator.llm_prompts.mark,
    }


def weights_hash(name: str) -> str | None:
    """Twelve hexadecimal digits that identify weight files without loading them: a hash of names, sizes, and evenly
    spaced parts. None if the model is not a local folder with weights, nor a local GGUF file.
    """
    place = Path(locate(name))
    files = sorted({path for pattern in WEIGHT_FILES for path in place.glob(pattern)}) if place.is_dir() else []
    if is_gguf(name) and place.is_file():
        files = [place]
    digest = sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(SAMPLE_BYTES, size // SAMPLES)):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:12] if files else None


def settings_hash(name: str) -> str | None:
    """Twelve hexadecimal digits that identify a config.json, or the settings in a GGUF file: with other settings the
    same weights compute something else. None as for `weights_hash`."""
    place = Path(locate(name))
    if is_gguf(name) and place.is_file():
        return sha256(json.dumps(read_header(place).settings, sort_keys=True).encode()).hexdigest()[:12]
    path = place / "config.json"
    if not path.is_file():
        return None
    settings = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k not in SAVED}
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def encoder_facts(encoder: FrozenEncoder) -> dict[str, Any]:
    """The attributes of an encoder that a store records, so that `StoredEncoder` needs no LLM."""
    return {
        "layers": encoder.layers,
        "chosen": encoder.chosen,
        "width": encoder.width,
        "embedding_width": encoder.embedding_width,
        "blocks": encoder.blocks,
        "depth": encoder.depth,
        "decoder_only": encoder.decoder_only,
        "positions": encoder.positions,
        "kv_blocks": encoder.kv_blocks,
        "cache_shape": None if encoder.cache_shape is None else list(astuple(encoder.cache_shape)),
        "parameters": sum(number for _, number in weights_in(encoder)),
        "fingerprint": encoder.fingerprint(),
    }


def tokenizer_hash(tokenizer: Any) -> str:
    """Twelve hexadecimal digits that identify a fast tokenizer: a hash of its file, without settings of calls."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    for setting in ("truncation", "padding"):  # of its last call
        settings.pop(setting, None)
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
