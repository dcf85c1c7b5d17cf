"""Loads the model of a verb: a saved model as it was trained, or a pretrained LLM prompted as `model.llm` configures.

All verbs load models here, so that `model.llm.prefix`, `chat`, `revision`, `dtype`, `attn_implementation` and
`quantization` have the same effect in each, and results record the model and how it was prompted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm import runs
from llm2slm.config import DataConfig, LLMConfig, ModelConfig, ProjectorConfig, SLMConfig, recorded_changes
from llm2slm.models.build import build_llm
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.llm import found_as
from llm2slm.models.processing import attach_processor
from llm2slm.models.saving import own_fingerprint, saved_kind
from llm2slm.nearest_names import nearest_hint
from llm2slm.types import Control, Init, Start, SystemKind, Tokenizers, UserError

if TYPE_CHECKING:
    from llm2slm.decoding.decoder import Decoder

IRRELEVANT_KEYS = ("name", "layer", "tune", "peft")
"""Keys of `model.llm` without effect on how an LLM that generates alone is loaded or prompted."""


@dataclass(frozen=True)
class LoadedSystem:
    """A loaded model and its actual configuration, which may differ from the config groups of the command line."""

    model: LLM2SLM
    config: ModelConfig
    source: str | LLMConfig
    """Its folder or Hub id; for an LLM that was not trained here, its configuration."""


def load_system(
    run: str,
    moved: str | None,
    given: ModelConfig,
    data: DataConfig | None = None,
    *,
    recorded: bool = True,
    comparable: bool = False,
) -> LoadedSystem:
    """The model of a run directory, a folder or a Hub id.

    A plain model that was not trained here is loaded and prompted as `given.llm` configures, and none of its weights
    counts as trainable. A trained model is loaded as it was saved.

    Args:
        run: run directory, model folder or Hub id.
        moved: the folder or id of a hybrid's LLM, if it has moved.
        given: the given configuration; of a run directory the recorded one (`recorded`).
        data: limits on lengths; None: the saved ones.
        recorded: if `run` is a run directory, `given` is its recorded configuration.
        comparable: `moved` may also be an LLM to compare an SLM alone with, configured by `given.llm`.

    Raises:
        UserError: it cannot be loaded; or it is a trained model and `given.llm` changes how it is loaded or prompted.
    """
    if given.llm.gguf_file is not None and moved is None and runs.home(run) is None:
        run, given = named_file(run, given)
    check_folder(run)
    source, home = model_path(run), runs.home(run)
    kind = saved_kind(source, given.llm.revision if home is None else None)
    if moved is not None and kind is not SystemKind.llm2slm and not (comparable and kind is SystemKind.slm):
        raise UserError(f"llm={moved}: {run} has no LLM that could have moved; remove the key")
    if home is None and kind is None:
        llm = replace(given.llm, name=run)
        return plain_llm(llm, data)
    model: LLM2SLM = LLM2SLM.from_pretrained(source, llm=moved if kind is SystemKind.llm2slm else None)
    trained = given if home is not None and recorded else described(model, source, moved)
    # of an SLM alone, `given.llm` configures the LLM to compare with
    if trained is not given and (model.kind is not SystemKind.slm or moved is None):
        check_unchanged(run, given.llm, trained.llm)
    if home is None and model.kind is not SystemKind.llm2slm:
        model.requires_grad_(False)
    if data is not None:
        limited(model, data)
    return LoadedSystem(model, trained, source)


def named_file(run: str, given: ModelConfig) -> tuple[str, ModelConfig]:
    """The GGUF file of `model.llm.gguf_file` in the folder or repository `run`, and a configuration without the key."""
    named = replace(given.llm, name=run)
    return str(named.source), replace(given, llm=replace(named, name=None, gguf_file=None))


def plain_llm(llm: LLMConfig, data: DataConfig | None) -> LoadedSystem:
    """A pretrained LLM that generates alone."""
    return LoadedSystem(build_llm(llm, data), alone(llm), llm)


def alone(llm: LLMConfig) -> ModelConfig:
    """The configuration of an LLM that generates alone."""
    return ModelConfig(kind=SystemKind.llm, llm=llm, conditioning="none")


def check_folder(run: str) -> None:
    """Refuses a folder that holds neither a run nor a model, and a missing one next to run directories.

    Raises:
        UserError: names the run directories in or next to the folder.
    """
    path, files = Path(run), ("config.yaml", "config.json", "model/config.json")
    if path.is_dir() and not any((path / name).is_file() for name in files):
        inside = sorted(found.parent.name for found in path.glob("*/config.yaml"))
        listed = f"; run directories in it: {', '.join(inside)}" if inside else ""
        raise UserError(f"run={run}: neither a run directory (config.yaml) nor a model (config.json){listed}")
    if path.parent != path and not path.exists():
        siblings = sorted(found.parent.name for found in path.parent.glob("*/config.yaml"))
        hint = nearest_hint(path.name, siblings)
        if siblings and (path.parent != Path() or hint):  # a name without a folder may be a Hub id
            raise UserError(f"run={run}: no such folder{hint}; give a run directory, a folder of a model, or a Hub id")


def model_path(run: str) -> str:
    """The model folder of a run directory; other paths and ids are returned unchanged."""
    inside = Path(run) / "model"
    return str(inside) if inside.is_dir() else run


def check_unchanged(run: str, llm: LLMConfig, trained: LLMConfig) -> None:
    """Refuses keys of `model.llm` that would load or prompt a trained model differently than in training.

    Args:
        trained: the configuration of the training.

    Raises:
        UserError: names the first key of `model.llm` that is set to another value.
    """
    default = LLMConfig()
    for field in fields(LLMConfig):
        value, usual = getattr(llm, field.name), (getattr(default, field.name), getattr(trained, field.name))
        if field.name not in IRRELEVANT_KEYS and value not in usual:
            raise UserError(
                f"model.llm.{field.name}={str(value).lower() if isinstance(value, bool) else value}: {run} was "
                "trained by llm2slm and is loaded and prompted as in its training; remove the key"
            )


def described(model: LLM2SLM, source: str, moved: str | None) -> ModelConfig:
    """The configuration of a saved model without a run directory, from its config.json."""
    if model.kind is SystemKind.llm:
        return alone(LLMConfig(name=source))
    config, slm = model.config, SLMConfig(name=source)
    if model.kind is SystemKind.slm:
        return ModelConfig(kind=SystemKind.slm, slm=slm, conditioning="none")
    return ModelConfig(
        llm=recorded_llm(model, moved, LLMConfig()) or LLMConfig(),
        slm=slm,
        projector=recorded_projector(config.projector or {}),
        conditioning=config.conditioning,
        pool=config.pool,
        cross_every=config.cross_every,
        kv_blocks=None if config.kv is None else config.kv["blocks"],
        tokenizers=Tokenizers(config.tokenizers),
        control=Control(config.control),
    )


def recorded_projector(record: dict[str, Any]) -> ProjectorConfig:
    """The projector's configuration from a saved model's record; earlier versions always had a random last layer."""
    return ProjectorConfig(**record | {"start": Start(record.get("start", Start.random.value))})


def recorded_llm(model: LLM2SLM, moved: str | None, given: LLMConfig) -> LLMConfig | None:
    """The LLM to compare a saved model with: the LLM of a hybrid, prompted alike; for another model the LLM `moved`,
    configured by `given`; None without either.

    Args:
        moved: folder or id of the LLM, if it has moved.
    """
    record = model.config.llm
    if record is None:
        return None if moved is None else replace(given, name=moved)
    return LLMConfig(
        name=moved or record["name"],
        revision=record.get("revision")
        if moved in (None, record["name"])
        else None,  # a commit belongs to one repository
        gguf_file=record.get("gguf_file") if moved in (None, record["name"]) else None,
        init=Init(record.get("init", Init.pretrained.value)),
        config=recorded_changes(record["name"], record.get("config") or {}),
        layer=record.get("layer"),
        dtype=record["dtype"],
        attn_implementation=record.get("attn_implementation"),
        quantization=dict(record.get("quantization") or {}),
        prefix=record.get("prefix", ""),
        chat=record.get("chat", False),
    )


def limited(model: LLM2SLM, data: DataConfig) -> LLM2SLM:
    """Replaces the model's limits on lengths by those of the configuration; returns the model."""
    model.config.limits = limits(data)
    attach_processor(model, model.collator.slm_tokenizer, model.collator.llm_tokenizer)
    return model


def limits(data: DataConfig) -> dict[str, Any]:
    """The configuration's limits on lengths, in the form of `LLM2SLMConfig.limits`."""
    return {
        "max_prompt_tokens": data.max_prompt_tokens,
        "max_response_tokens": data.max_response_tokens,
        "overlong": data.overlong.value,
    }


def parameters(model: LLM2SLM, decoder: Decoder | None = None) -> dict[str, int]:
    """For a result: the number of parameters (total), and of trained parameters (trainable).

    The tensors of a loaded model do not show which were trained: frozen weights are saved too, and adapters are merged.
    Its configuration records the number; without the record, `trainable` counts what training would change.

    Args:
        decoder: of the model. Of one with a hybrid and its LLM, both count, with the tensors that they share once.
    """
    two: Any = decoder  # with `hybrid` and `model`, or `model` and `llm`
    model = two.hybrid if hasattr(two, "hybrid") else model
    trained = model.config.trained
    counted = model.parameter_counts() | ({} if trained is None else {"trainable": trained})
    of_decoder = (getattr(two, "model", None), getattr(two, "llm", None))
    if others := [each for each in of_decoder if each not in (model, None)]:
        parts = [part for own in (model, *others) for part in (own, own.encoder) if part is not None]
        tensors = {id(tensor): tensor.numel() for part in parts for tensor in part.parameters()}
        counted |= {"total": sum(tensors.values())}
    return counted


def llm_note(model: LLM2SLM, llm: LLMConfig, weights: str | None = None) -> dict[str, Any]:
    """For a result: the LLM of a system and how it is prompted. Empty without an LLM.

    Args:
        llm: the configuration of an LLM that generates alone; a hybrid's config.json records its LLM.
        weights: the model's `own_fingerprint`, if already computed.
    """
    if model.kind is SystemKind.slm:
        return {}
    record = model.config.llm
    if record is None:
        record = found_as(llm) | {"dtype": model.working_dtype, "quantization": llm.quantization}
        record |= {"prefix": llm.prefix, "chat": llm.chat, "fingerprint": weights or own_fingerprint(model)}
    keys = ("name", "revision", "fingerprint", "dtype", "quantization", "prefix", "chat")
    file = {key: record[key] for key in ("gguf_file",) if record.get(key)}
    return {"llm": {key: record.get(key) for key in keys} | file | {"frame": model.config.llm_frame}}
