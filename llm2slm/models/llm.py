"""The LLM of a hybrid: its record in a saved model, and one copy of its weights for the encoder and the whole LLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2slm.config import LanguageModelConfig, LLMConfig, recorded_changes
from llm2slm.gguf_files.names import is_gguf, on_hub
from llm2slm.models.encoder import FrozenEncoder, fingerprint
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.loading.configs import BUILTIN, commit, is_local, locate
from llm2slm.models.loading.gguf import plain_tensors
from llm2slm.models.loading.partial_loading import encoder_view
from llm2slm.models.loading.pretrained import load_encoder
from llm2slm.models.parts import Parts
from llm2slm.models.stored_encoder import PromptEncoder
from llm2slm.types import Init, UserError


def share_weights(hybrid: Parts, llm: Parts) -> bool:
    """Replaces the encoder of a hybrid by a view of a whole LLM that is loaded too: from then on one copy is in memory.

    Args:
        llm: the LLM as a system that generates alone.

    Returns:
        Whether they share their tensors now. False: the hybrid has no LLM, or one with other weights, dtypes, devices
        or attention implementation, which it keeps.
    """
    encoder, whole = hybrid.encoder, llm.slm
    if not isinstance(encoder, FrozenEncoder):
        return False
    model = whole if whole.config.is_encoder_decoder else whole.base_model
    try:
        view, _ = encoder_view(model, encoder.chosen)
    except UserError:  # no such layer: another LLM
        return False
    if _contents(view) != _contents(encoder.body):
        return False
    use_weights(hybrid, llm)
    return True


def use_weights(hybrid: Parts, llm: Parts) -> None:
    """Replaces the encoder of a hybrid by a view of a whole LLM of the same shape, whatever the weights of both are."""
    encoder, whole = hybrid.encoder, llm.slm
    assert isinstance(encoder, FrozenEncoder)
    model = whole if whole.config.is_encoder_decoder else whole.base_model
    hybrid.encoder = FrozenEncoder(model, encoder.chosen, encoder.kv_blocks)


def _contents(body: PreTrainedModel) -> tuple[Any, ...]:
    """What an encoder computes with: fingerprint, kinds of tensors, attention implementation."""
    kinds = {name: (tensor.dtype, tensor.shape, tensor.device) for name, tensor in body.state_dict().items()}
    return fingerprint(plain_tensors(body)), kinds, body.config._attn_implementation


@dataclass(frozen=True)
class LLMRecord:
    """The LLM of a saved hybrid: where it is, and what its representations depend on.

    Attributes:
        name: Hub id, absolute path, or `saving.INSIDE`; None with a `config` of a whole new model.
        revision: commit of a Hub id. gguf_file: GGUF file in the repository `name`.
        config: changes to the model's config. layer: layer that is read, as configured.
        width: E of one layer. init: an `Init`. fingerprint: of the weights (`encoder.fingerprint`).
        origin: name, revision, config and gguf_file before it was saved inside the hybrid's folder, and whether `name`
            was a local path (`local`).
        frame: text around the prompt (fields of `Frame`); stored as `LLM2SLMConfig.llm_frame`.
    """

    name: str | None
    revision: str | None
    layer: Any
    dtype: str
    width: int
    init: str
    config: dict[str, Any]
    prefix: str = ""
    chat: bool = False
    attn_implementation: str | None = None
    quantization: dict[str, Any] | None = None
    fingerprint: str | None = None
    gguf_file: str | None = None
    origin: dict[str, Any] | None = None
    frame: dict[str, Any] | None = None

    @classmethod
    def of(cls, cfg: LLMConfig, encoder: PromptEncoder, frame: Mapping[str, Any] | None = None) -> Self:
        """The record of a configured LLM and its encoder."""
        return cls(
            **{"gguf_file": None} | found_as(cfg),
            layer=encoder.chosen,
            dtype=cfg.dtype,
            width=encoder.width,
            init=cfg.start.value,
            config=cfg.config,
            prefix=cfg.prefix,
            chat=cfg.chat,
            attn_implementation=cfg.attn_implementation,
            quantization=cfg.quantization,
            fingerprint=encoder.fingerprint(),
            frame=None if frame is None else dict(frame),
        )

    @classmethod
    def read(cls, config: LLM2SLMConfig) -> Self:
        """The record in the config of a saved hybrid; keys that earlier versions did not write take their defaults."""
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in (config.llm or {}).items() if key in known}
        return cls(**{"config": {}} | values | {"frame": config.llm_frame})

    def saved(self) -> dict[str, Any]:
        """Plain values for `LLM2SLMConfig.llm`."""
        values = asdict(self)
        del values["frame"]
        return {key: value for key, value in values.items() if key not in ("gguf_file", "origin") or value is not None}

    def located(self, path: str | None) -> LLMConfig:
        """The configuration that loads it from a path or Hub id; revision and file apply to the recorded name only."""
        recorded = path == self.name
        return LLMConfig(
            name=path,
            revision=self.revision if recorded else None,
            gguf_file=self.gguf_file if recorded else None,
            config=recorded_changes(str(path), self.config or {}),
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            layer=self.layer,
            quantization=self.quantization or {},
        )

    def load(
        self, name: str, path: str, tokenizer: PreTrainedTokenizerBase, kv_blocks: Sequence[int] | None
    ) -> FrozenEncoder:
        """The encoder of the saved hybrid `name`, from a path or Hub id.

        Raises:
            UserError: it cannot be read, or its width or fingerprint is not the recorded one.
        """
        try:
            encoder = load_encoder(self.located(path), tokenizer, kv_blocks)
        except UserError as error:
            raise UserError(f"{name}: its LLM cannot be loaded: {error}; give its path with llm=PATH") from None
        if encoder.width != self.width:
            raise UserError(
                f"{name}: was trained on an LLM of width {self.width}, {path} has {encoder.width}; "
                "give the right one with llm=PATH"
            )
        found = encoder.fingerprint()
        if self.fingerprint is not None and found != self.fingerprint:
            raise UserError(
                f"{name}: the LLM at {path} is not the one it was trained with: its weights (fingerprint {found}) are "
                f"not those recorded ({self.fingerprint}); give the right one with llm=PATH"
            )
        return encoder

    @property
    def random(self) -> bool:
        """Whether its weights are random: no file holds them."""
        return self.init == Init.random.value


def found_as(cfg: LanguageModelConfig) -> dict[str, Any]:
    """Name, revision and, of a GGUF file on the Hub, `gguf_file`, which identify a model.

    The name of a local folder or file is its absolute path; the revision of a Hub id is its commit.
    """
    name, revision = cfg.source, cfg.revision
    if name is None or name.startswith(BUILTIN):
        return {"name": name, "revision": revision}
    if is_local(name):
        return {"name": str(Path(locate(name)).resolve()), "revision": revision}
    repository = on_hub(name) if is_gguf(name) else None
    found: dict[str, Any] = {"name": name, "revision": commit(name, revision) or revision}
    return found if repository is None else found | {"name": repository[0], "gguf_file": repository[1]}
