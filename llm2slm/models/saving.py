"""What is kept of a system, and how it comes back: save, load, push.

A hybrid's folder holds SLM and projector, both tokenizers and a model card; its LLM is named, with a fingerprint of its
weights, or (with_llm) its used part stands in a folder inside. An unguided system is a plain transformers folder; or,
with virtual tokens, which no plain model has, a folder as a hybrid's without an LLM.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from llm2slm.atomic import filling
from llm2slm.config import LanguageModelConfig, LLMConfig, recorded_changes
from llm2slm.data.interface import LLM_TOKENIZER, load_tokenizer
from llm2slm.gguf_files.names import is_gguf
from llm2slm.models.build import attach_processor, default_limits
from llm2slm.models.encoder import FrozenEncoder, fingerprint
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.loading.gguf import packed_weights
from llm2slm.models.loading.pretrained import (
    load_encoder,
    load_encoder_layers,
    load_language_model,
    locate,
    model_config,
    read_config,
)
from llm2slm.models.soft_prompts import virtual_tokens
from llm2slm.models.tuning import merged, restore_soft_prompts
from llm2slm.types import Init, SystemKind, Tokenizers, UserError, reason_of

WEIGHTS = "model.safetensors"
CARD = "README.md"
INSIDE = "./llm"
"""The recorded name of an LLM whose used part stands in the model's own folder."""

SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""Names of a saved model's weights."""

ModelT = TypeVar("ModelT", bound=LLM2SLM)


def save(model: LLM2SLM, folder: Path, *, with_llm: bool = False) -> None:
    """What `LLM2SLM.save_pretrained` does."""
    if with_llm and model.encoder is None:
        raise UserError(f"with_llm: this system ({model.kind}) has no LLM beside it; save it without")
    with filling(folder, last="config.json") as stage:
        tuned, model.slm = model.slm, merged(model.slm)
        try:
            if model.encoder is None and virtual_tokens(model.slm) is None:
                _save_plain(model, stage)
            else:
                _save_hybrid(model, stage, with_llm=with_llm)
        finally:
            model.slm = tuned
        for path in stage.rglob("*.safetensors"):  # which safetensors leaves to its owner alone, whatever the umask
            path.chmod((stage / "config.json").stat().st_mode & 0o777)
        text, weights = model.card or ("", "")
        if weights == own_fingerprint(model) and not (folder / CARD).exists():  # a card that is there may be newer
            (stage / CARD).write_text(text, encoding="utf-8")
        written = {path.name for path in stage.iterdir()}
    for path in folder.iterdir():  # as transformers does; it would read shards of an earlier save
        if SHARD.fullmatch(path.name) and path.name not in written:
            path.unlink()


def _save_plain(model: LLM2SLM, folder: Path) -> None:
    own = model.config
    model.slm.config.llm2slm = {
        "kind": model.kind.value,
        "limits": own.limits,
        "dtype": model.working_dtype,
        "prefix": own.prefix,
        "suffix": own.suffix,
        "frame": own.llm_frame,
        "trained": own.trained,
    }
    model.slm.save_pretrained(folder)
    model.collator.save(folder)


def _save_hybrid(model: LLM2SLM, folder: Path, *, with_llm: bool) -> None:
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]
    if isinstance(config.slm, PreTrainedConfig):
        config.slm.name_or_path = ""  # where it came from is no matter of where it goes
    record = dict(config.llm or {})
    if with_llm:
        config.llm = _save_llm(model, record, folder / INSIDE)
    elif record.get("name") == INSIDE:  # it came with its LLM, and is saved without
        origin = dict(record.pop("origin"))
        if origin.pop("local"):  # nobody else has it: it is where it was found
            origin = {"name": str(Path(str(model.llm_place)).resolve())}
        config.llm = record | origin
    config.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    model.slm.generation_config.save_pretrained(folder)
    own = {name: p.detach().contiguous() for name, p in own_tensors(model)}
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})


def _save_llm(model: LLM2SLM, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Writes the part of the LLM that reads, as it was before any quantization; returns its record in this folder."""
    if record["init"] == Init.random.value:
        raise UserError("with_llm: the LLM of this system has random weights, which no file holds; it cannot be saved")
    cfg = _encoder_config(record, model.llm_place or record["name"])
    cfg.quantization = {}
    encoder = load_encoder_layers(cfg, model_config(cfg, model.collator.llm_tokenizer), packed=False)
    encoder.config.name_or_path = ""
    encoder.save_pretrained(folder)
    own = Path(str(record["name"]))
    name = own.name if own.is_absolute() else record["name"]  # of a folder of this machine, no more than its name
    origin = {"name": name, "revision": record["revision"], "config": record["config"], "local": own.is_absolute()}
    if (file := record.pop("gguf_file", None)) is not None:  # what is written here is no such file
        origin["gguf_file"] = file
    return record | {"name": INSIDE, "revision": None, "config": {}, "origin": record.get("origin", origin)}


def own_tensors(model: LLM2SLM) -> list[tuple[str, Tensor]]:
    """Parameters and persistent buffers of SLM and projector, each once (tied weights under one name)."""
    kept = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for tensor_name, tensor in kept.items():
        first.setdefault(id(tensor), tensor_name)
    return [(tensor_name, kept[tensor_name]) for tensor_name in first.values()]


def saved_kind(name: str, revision: str | None = None) -> SystemKind | None:
    """The kind of system that a Hub id or folder holds as `save` wrote it; None for a plain model of somebody else's.

    Raises:
        UserError: it cannot be read.
    """
    config = read_config(name, revision)
    record = getattr(config, "llm2slm", None) or {}
    kind = config.kind if isinstance(config, LLM2SLMConfig) else record.get("kind")
    return None if kind is None else SystemKind(kind)


def own_fingerprint(model: LLM2SLM) -> str:
    """Names the weights of SLM and projector: a card, and a result, are of these and no others."""
    packed = packed_weights(model)
    return fingerprint((name, packed.get(id(tensor)) or tensor.detach()) for name, tensor in own_tensors(model))


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: bool | str | None = None,
) -> str:
    """Puts a saved model into a repository of the Hub; returns the commit's address.

    Raises:
        UserError: it needs an LLM that only this machine has; the Hub cannot be reached, or refuses.
    """
    record = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("llm") or {}
    name = record.get("name")
    if name is not None and name != INSIDE and Path(name).is_absolute():
        raise UserError(
            f"{repo_id}: not pushed: its LLM is the folder {name}, which others do not have; push it with the LLM's "
            "part in it (with_llm), or train with the LLM's Hub id"
        )
    hub = HfApi(token=token)
    try:
        repo = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            hub.create_branch(repo, branch=revision, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=message or "Upload LLM2SLM"
        )
    except Exception as error:  # of the Hub's client or of its HTTP library, which is not always the same one
        raise UserError(f"{repo_id}: cannot be pushed to the Hub: {reason_of(error)}") from error
    return str(done.commit_url)


# Loading


def load(cls: type[ModelT], name: str, llm: str | None, revision: str | None) -> ModelT:
    """What `LLM2SLM.from_pretrained` does."""
    config = read_config(name, revision)
    if llm is not None and not (isinstance(config, LLM2SLMConfig) and config.llm is not None):
        raise UserError(f"llm={llm}: {name} has no LLM beside it, which could be at another place; leave it out")
    model: ModelT
    if isinstance(config, LLM2SLMConfig):
        model = _load_hybrid(cls, config, name, llm, revision)
    else:
        model = _load_plain(cls, config, name, revision)
    path = None
    if not is_gguf(name):  # which is a file, without others beside it
        path = cached_file(
            locate(name), CARD, revision=revision,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    model.card = None if path is None else (Path(path).read_text(encoding="utf-8"), own_fingerprint(model))
    model.eval()
    return model


def _load_hybrid(cls: type[ModelT], config: LLM2SLMConfig, name: str, llm: str | None, revision: str | None) -> ModelT:
    place = locate(name)
    tokenizer = load_tokenizer(place, revision)
    llm_tokenizer = tokenizer
    if config.llm is not None and config.tokenizers != Tokenizers.shared.value:
        llm_tokenizer = load_tokenizer(place, revision, subfolder=LLM_TOKENIZER)
    llm_place, encoder = None, None
    if config.llm is not None:
        llm_place = _llm_place(config, name, llm, revision)
        encoder = _load_llm(config, name, llm_place, llm_tokenizer)
    slm_config = config.slm
    assert isinstance(slm_config, PreTrainedConfig)
    auto = AutoModelForSeq2SeqLM if slm_config.is_encoder_decoder else AutoModelForCausalLM
    slm = auto.from_config(deepcopy(slm_config))
    if config.virtual_tokens is not None:
        restore_soft_prompts(slm, config.virtual_tokens, name)
    model = cls(config, slm, encoder)
    model.llm_place = llm_place
    _fill(model, place, revision)
    if cached_file(place, GENERATION_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False):
        model.slm.generation_config = GenerationConfig.from_pretrained(place, revision=revision)
    attach_processor(model, tokenizer, llm_tokenizer if encoder is not None else None)
    return model


def _load_plain(cls: type[ModelT], config: PreTrainedConfig, name: str, revision: str | None) -> ModelT:
    """An unguided system: any language model of transformers."""
    extra = dict(getattr(config, "llm2slm", None) or {})
    tokenizer = load_tokenizer(locate(name), revision)
    # the file may be narrower than its use (builtin/llm is stored in float16): its own dtype does not decide
    writer = LanguageModelConfig(name=name, revision=revision, dtype=extra.get("dtype", "float32"))
    slm = load_language_model(writer, tokenizer)
    own = LLM2SLMConfig(
        slm=deepcopy(slm.config),
        kind=extra.get("kind", SystemKind.llm.value),
        llm_frame=extra.get("frame"),
        prefix=extra.get("prefix"),
        suffix=extra.get("suffix", ""),
        limits=extra.get("limits") or default_limits(slm.config),
        trained=extra.get("trained"),
    )
    own.name_or_path = config.name_or_path
    model = cls(own, slm, None)
    attach_processor(model, tokenizer, None)
    return model


def _llm_place(config: LLM2SLMConfig, name: str, llm: str | None, revision: str | None) -> str:
    """Where a saved hybrid's LLM is: at the user's word, in the hybrid's own folder, or by its recorded name.

    Raises:
        UserError: nowhere.
    """
    record = dict(config.llm or {})
    where: str | None = llm or record["name"]
    if where is None or record["init"] == Init.random.value:
        raise UserError(f"{name}: was built on an LLM with random weights, which no file holds; it cannot be loaded")
    if where != INSIDE:
        return where
    place = locate(name)
    if not Path(place).is_dir():
        place = snapshot_download(place, revision=revision, allow_patterns=f"{Path(INSIDE).name}/*")
    return str(Path(place) / INSIDE)


def _load_llm(config: LLM2SLMConfig, name: str, where: str, tokenizer: Any) -> FrozenEncoder:
    """The LLM that a saved hybrid reads with.

    Raises:
        UserError: it is not at hand, or not the one that the hybrid was trained with.
    """
    record = dict(config.llm or {})
    try:
        encoder = load_encoder(_encoder_config(record, where), tokenizer, (config.kv or {}).get("blocks"))
    except UserError as error:
        raise UserError(f"{name}: its LLM is not at hand: {error}; say where it is with llm=PATH") from None
    if encoder.width != record["width"]:
        raise UserError(
            f"{name}: was trained on an LLM of width {record['width']}, {where} has {encoder.width}; "
            "give the right one with llm=PATH"
        )
    known, found = record.get("fingerprint"), encoder.fingerprint()
    if known is not None and found != known:
        raise UserError(
            f"{name}: the LLM at {where} is not the one it was trained with: its weights (fingerprint {found}) are "
            f"not those recorded ({known}); give the right one with llm=PATH"
        )
    return encoder


def _encoder_config(record: dict[str, Any], where: str) -> LLMConfig:
    return LLMConfig(
        name=where,
        revision=record["revision"] if where == record["name"] else None,  # a commit of one place is none of another
        gguf_file=record.get("gguf_file") if where == record["name"] else None,
        config=recorded_changes(where, record.get("config") or {}),
        dtype=record["dtype"],
        attn_implementation=record.get("attn_implementation"),
        layer=record["layer"],
        quantization=record.get("quantization") or {},
    )


def _fill(model: LLM2SLM, name: str, revision: str | None) -> None:
    """Fills SLM and projector from a saved hybrid, every tensor of it and nothing else."""
    path = cached_file(name, WEIGHTS, revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise UserError(f"{name}: has no {WEIGHTS}; save the model again, or give the folder that holds it")
    saved, own = load_file(path), dict(own_tensors(model))
    for tensor in sorted(saved.keys() ^ own.keys()):
        state = "missing from" if tensor in own else "unexpected in"
        raise UserError(f"{path}: tensor {tensor} is {state} the file; config.json and weights do not belong together")
    for tensor, value in saved.items():
        if value.shape != own[tensor].shape:
            raise UserError(
                f"{path}: tensor {tensor} has shape {tuple(value.shape)}, config.json (and the LLM) ask for "
                f"{tuple(own[tensor].shape)}"
            )
        own[tensor].data.copy_(value)
