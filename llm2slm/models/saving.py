"""Save, load and push a model.

A hybrid's folder holds SLM and projector, both tokenizers and a model card; its LLM is recorded by name and
fingerprint, or (with_llm) its used part is in a folder inside. A system without an LLM is a plain transformers folder;
with virtual tokens, which no plain model has, it is a hybrid's folder without an LLM.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from llm2slm.atomic import filling
from llm2slm.config import LanguageModelConfig
from llm2slm.data.interface import LLM_TOKENIZER, load_tokenizer
from llm2slm.gguf_files.names import is_gguf
from llm2slm.models import conditioning
from llm2slm.models.encoder import FrozenEncoder, fingerprint
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.llm import LLMRecord
from llm2slm.models.loading.configs import locate, model_config, read_config
from llm2slm.models.loading.gguf import packed_weights
from llm2slm.models.loading.pretrained import load_encoder_layers, load_language_model
from llm2slm.models.loading.reading_errors import load_errors
from llm2slm.models.parts import Parts
from llm2slm.models.placement import DTYPES, keep_in_float32
from llm2slm.models.processing import attach_processor, default_limits
from llm2slm.models.saved_record import check_record, plain_record
from llm2slm.models.soft_prompts import virtual_tokens
from llm2slm.models.tuning import merged, restore_soft_prompts
from llm2slm.types import SystemKind, Tokenizers, UserError, reason_of

WEIGHTS = "model.safetensors"
CARD = "README.md"
INSIDE = "./llm"
"""Recorded name of an LLM whose used part is in the saved model's folder."""

SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""Names of a saved model's weight files."""

ModelT = TypeVar("ModelT", bound=Parts)


def save(model: Parts, folder: Path, *, with_llm: bool = False) -> None:
    """Implements `LLM2SLM.save_pretrained`.

    Raises:
        UserError: with_llm, and there is no LLM, or one with random weights; the weights are offloaded.
    """
    if any(tensor.is_meta for _, tensor in own_tensors(model)):
        raise UserError(
            "save_pretrained: the weights are offloaded by accelerate; save the model as it was loaded without "
            "device_map, or after accelerate.hooks.remove_hook_from_module(model, recurse=True)"
        )
    if with_llm and model.encoder is None:
        raise UserError(f"with_llm: this system ({model.kind}) has no LLM encoder; save it without")
    with filling(folder, last="config.json") as stage:
        tuned, model.slm = model.slm, merged(model.slm)
        try:
            if model.encoder is None and virtual_tokens(model.slm) is None:
                _save_plain(model, stage)
            else:
                _save_hybrid(model, stage, with_llm=with_llm)
        finally:
            model.slm = tuned
        for path in stage.rglob("*.safetensors"):  # safetensors ignores the umask
            path.chmod((stage / "config.json").stat().st_mode & 0o777)
        text, weights = model.card or ("", "")
        if weights == own_fingerprint(model) and not (folder / CARD).exists():  # an existing card may be newer
            (stage / CARD).write_text(text, encoding="utf-8")
        written = {path.name for path in stage.iterdir()}
    for path in folder.iterdir():  # transformers would read shards of an earlier save
        if SHARD.fullmatch(path.name) and path.name not in written:
            path.unlink()


def _save_plain(model: Parts, folder: Path) -> None:
    config = model.config
    model.slm.config.llm2slm = {
        "kind": model.kind.value,
        "limits": config.limits,
        "dtype": model.working_dtype,
        "prefix": config.prefix,
        "suffix": config.suffix,
        "frame": config.llm_frame,
        "trained": config.trained,
    }
    model.slm.save_pretrained(folder)
    model.collator.save(folder)


def _save_hybrid(model: Parts, folder: Path, *, with_llm: bool) -> None:
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]
    if isinstance(config.slm, PreTrainedConfig):
        config.slm.name_or_path = ""  # a local path is of no use elsewhere
    if config.llm is not None:
        config.llm = _saved_record(model, folder, with_llm=with_llm).saved()
    config.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    model.slm.generation_config.save_pretrained(folder)
    tensors = {name: p.detach().contiguous() for name, p in own_tensors(model)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _saved_record(model: Parts, folder: Path, *, with_llm: bool) -> LLMRecord:
    """The LLM's record in a saved folder; with_llm: also writes the LLM there."""
    record = LLMRecord.read(model.config)
    if with_llm:
        return _save_llm(model, record, folder / INSIDE)
    if record.name != INSIDE or record.origin is None:
        return record
    origin = dict(record.origin)  # it was loaded with its LLM, and is saved without
    if origin.pop("local"):  # only this machine has it, at the path where it was found
        origin = {"name": str(Path(str(model.llm_path)).resolve())}
    return replace(record, **origin, origin=None)


def _save_llm(model: Parts, record: LLMRecord, folder: Path) -> LLMRecord:
    """Writes the used part of the LLM, unquantized; returns its record in this folder."""
    if record.random:
        raise UserError("with_llm: the LLM of this system has random weights, which no file holds; it cannot be saved")
    cfg = record.located(model.llm_path or record.name)
    cfg.quantization = {}
    encoder = load_encoder_layers(cfg, model_config(cfg, model.collator.llm_tokenizer), packed=False)
    encoder.config.name_or_path = ""
    encoder.save_pretrained(folder)
    path = Path(str(record.name))
    name = path.name if path.is_absolute() else record.name  # of a local path, only the last part
    origin: dict[str, Any] = {"name": name, "revision": record.revision, "config": record.config}
    origin["local"] = path.is_absolute()
    if record.gguf_file is not None:
        origin["gguf_file"] = record.gguf_file
    origin = record.origin or origin
    return replace(record, name=INSIDE, revision=None, config={}, gguf_file=None, origin=origin)


def own_tensors(model: Parts) -> list[tuple[str, Tensor]]:
    """Parameters and persistent buffers of SLM and projector, each once (tied weights under one name)."""
    kept = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for tensor_name, tensor in kept.items():
        first.setdefault(id(tensor), tensor_name)
    return [(tensor_name, kept[tensor_name]) for tensor_name in first.values()]


def saved_kind(name: str, revision: str | None = None) -> SystemKind | None:
    """The kind of system in a Hub id or folder that `save` wrote; None for any other transformers model.

    Raises:
        UserError: it cannot be read.
    """
    config = read_config(name, revision)
    if isinstance(config, LLM2SLMConfig):
        check_record(config, name)
        return SystemKind(config.kind)
    kind = plain_record(config, name).get("kind")
    return None if kind is None else SystemKind(kind)


def own_fingerprint(model: Parts) -> str:
    """Identifies the weights of SLM and projector, in model cards and results."""
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
    """Uploads a saved model to a repository of the Hub; returns the commit's address.

    Raises:
        UserError: it needs an LLM that exists on this machine only; the Hub cannot be reached, or refuses.
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
    except Exception as error:  # of the Hub's client, or of its HTTP library, which differs by version
        raise UserError(f"{repo_id}: cannot be pushed to the Hub: {reason_of(error)}") from error
    return str(done.commit_url)


# Loading


def load(cls: type[ModelT], name: str, llm: str | None, revision: str | None, dtype: str | None = None) -> ModelT:
    """Implements `LLM2SLM.from_pretrained`.

    Args:
        dtype: of the SLM; None: the stored one.
    """
    config = read_config(name, revision)
    if isinstance(config, LLM2SLMConfig):
        check_record(config, name)
    if llm is not None and not (isinstance(config, LLM2SLMConfig) and config.llm is not None):
        raise UserError(f"llm={llm}: {name} has no LLM that could have moved; remove the key")
    model: ModelT
    if isinstance(config, LLM2SLMConfig):
        model = _load_hybrid(cls, config, name, llm=llm, revision=revision, dtype=dtype)
    else:
        model = _load_plain(cls, config, name, revision, dtype)
    path = None
    if not is_gguf(name):
        path = cached_file(
            locate(name), CARD, revision=revision,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    model.card = None if path is None else (Path(path).read_text(encoding="utf-8"), own_fingerprint(model))
    model.eval()
    return model


def _load_hybrid(
    cls: type[ModelT], config: LLM2SLMConfig, name: str, *, llm: str | None, revision: str | None, dtype: str | None
) -> ModelT:
    path = locate(name)
    tokenizer = load_tokenizer(path, revision)
    llm_tokenizer = None
    llm_path: str | None = None
    encoder: FrozenEncoder | None = None
    if config.llm is not None:
        shared = config.tokenizers == Tokenizers.shared.value
        llm_tokenizer = tokenizer if shared else load_tokenizer(path, revision, subfolder=LLM_TOKENIZER)
        record, kv_blocks = LLMRecord.read(config), conditioning.get(config.conditioning).kv_blocks(config)
        llm_path = _llm_path(record, name, llm, revision)
        encoder = record.load(name, llm_path, llm_tokenizer, kv_blocks)
    slm_config = config.slm
    assert isinstance(slm_config, PreTrainedConfig)
    auto = AutoModelForSeq2SeqLM if slm_config.is_encoder_decoder else AutoModelForCausalLM
    slm = auto.from_config(deepcopy(slm_config), **({} if dtype is None else {"dtype": DTYPES[dtype]}))
    if dtype is not None:
        keep_in_float32(slm)
    if config.virtual_tokens is not None:
        restore_soft_prompts(slm, config.virtual_tokens, name)
    model = cls(config, slm, encoder)
    model.llm_path = llm_path
    _fill(model, path, revision)
    if cached_file(path, GENERATION_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False):
        with load_errors(name):
            model.slm.generation_config = GenerationConfig.from_pretrained(path, revision=revision)
    attach_processor(model, tokenizer, llm_tokenizer)
    return model


def _load_plain(
    cls: type[ModelT], config: PreTrainedConfig, name: str, revision: str | None, dtype: str | None
) -> ModelT:
    """A system without an LLM encoder: any language model of transformers."""
    extra = plain_record(config, name)
    tokenizer = load_tokenizer(locate(name), revision)
    # the stored dtype may be narrower than the working one: builtin/llm is stored in float16
    generator = LanguageModelConfig(name=name, revision=revision, dtype=dtype or extra.get("dtype", "float32"))
    slm = load_language_model(generator, tokenizer)
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


def _llm_path(record: LLMRecord, name: str, llm: str | None, revision: str | None) -> str:
    """Path or Hub id of a saved hybrid's LLM: the given one, a folder inside the hybrid's, or the recorded name.

    Raises:
        UserError: its weights were random.
    """
    found = llm or record.name
    if found is None or record.random:
        raise UserError(f"{name}: was built on an LLM with random weights, which no file holds; it cannot be loaded")
    if found != INSIDE:
        return found
    path = locate(name)
    if not Path(path).is_dir():
        path = snapshot_download(path, revision=revision, allow_patterns=f"{Path(INSIDE).name}/*")
    return str(Path(path) / INSIDE)


def _fill(model: Parts, name: str, revision: str | None) -> None:
    """Loads SLM and projector from a saved hybrid.

    Raises:
        UserError: no weights, or a tensor is missing, unexpected, or of another shape.
    """
    path = cached_file(name, WEIGHTS, revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise UserError(f"{name}: has no {WEIGHTS}; save the model again, or give the folder that holds it")
    with load_errors(name):
        saved = load_file(path)
    tensors = dict(own_tensors(model))
    for tensor in sorted(saved.keys() ^ tensors.keys()):
        state = "missing from" if tensor in tensors else "unexpected in"
        raise UserError(f"{path}: tensor {tensor} is {state} the file; config.json and weights do not belong together")
    for tensor, value in saved.items():
        if value.shape != tensors[tensor].shape:
            raise UserError(
                f"{path}: tensor {tensor} has shape {tuple(value.shape)}, config.json (and the LLM) ask for "
                f"{tuple(tensors[tensor].shape)}"
            )
        tensors[tensor].data.copy_(value)
