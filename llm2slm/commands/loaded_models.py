"""The models that answer in a verb: saved ones as they were trained, and LLMs as they are, asked as `model.llm` says.

All verbs get theirs here, so that `model.llm.prefix`, `chat`, `revision`, `dtype`, `attn_implementation` and
`quantization` mean the same in each, and so that a result records the model which answered and how it was asked.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.config import DataConfig, LLMConfig, ModelConfig, ProjectorConfig, SLMConfig, recorded_changes
from llm2slm.models.build import build_llm
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.llm import found_as
from llm2slm.models.processing import attach_processor
from llm2slm.models.saving import own_fingerprint, saved_kind
from llm2slm.types import Control, Init, Start, SystemKind, Tokenizers, UserError

NOT_ASKED = ("name", "layer", "tune", "peft")
"""Keys of `model.llm` that say nothing of how an LLM which writes alone is loaded or asked."""


@dataclass(frozen=True)
class LoadedSystem:
    """A loaded model, and the configuration of it: what was loaded, not what a group of the command line set."""

    model: LLM2SLM
    config: ModelConfig
    place: str | LLMConfig
    """What loads it again: its folder or Hub id, or the configuration of an LLM that was not trained here."""


def load_system(
    run: str,
    moved: str | None,
    asked: ModelConfig,
    data: DataConfig | None = None,
    *,
    recorded: bool = True,
    beside: bool = False,
) -> LoadedSystem:
    """The model of a run directory, a folder or a Hub id.

    A plain model that was not trained here is loaded and asked as `asked.llm` says, and no weight of it counts as
    trainable. A trained one is as it was saved.

    Args:
        run: run directory, model folder or Hub id.
        moved: where the LLM of a hybrid is now, if it has moved.
        asked: the configuration; of a run directory the recorded one (`recorded`).
        data: limits on lengths, in place of those that the model was saved with; None: those.
        recorded: `asked` is what a run directory records, if `run` is one.
        beside: `moved` may also be an LLM beside an SLM that is alone, and `asked.llm` its configuration.

    Raises:
        UserError: it cannot be loaded; or it is a trained model, and `asked.llm` says to load or ask it otherwise.
    """
    if asked.llm.gguf_file is not None and moved is None and runs.home(run) is None:
        run, asked = named_file(run, asked)
    place, home = model_place(run), runs.home(run)
    kind = saved_kind(place, asked.llm.revision if home is None else None)
    if moved is not None and kind is not SystemKind.llm2slm and not (beside and kind is SystemKind.slm):
        raise UserError(f"llm={moved}: {run} has no LLM beside it, which could be at another place; leave it out")
    if home is None and kind is None:
        llm = replace(asked.llm, name=run)
        return plain_llm(llm, data)
    model: LLM2SLM = LLM2SLM.from_pretrained(place, llm=moved if kind is SystemKind.llm2slm else None)
    own = asked if home is not None and recorded else described(model, place, moved)
    if own is not asked and (model.kind is not SystemKind.slm or moved is None):  # else that LLM is asked so
        refuse_asked(run, asked.llm, own.llm)
    if home is None and model.kind is not SystemKind.llm2slm:
        model.requires_grad_(False)
    if data is not None:
        limited(model, data)
    return LoadedSystem(model, own, place)


def named_file(run: str, asked: ModelConfig) -> tuple[str, ModelConfig]:
    """The GGUF file of `model.llm.gguf_file` in the folder or repository `run`, and a configuration without the key."""
    named = replace(asked.llm, name=run)
    return str(named.source), replace(asked, llm=replace(named, name=None, gguf_file=None))


def plain_llm(llm: LLMConfig, data: DataConfig | None) -> LoadedSystem:
    """An LLM as it is, writing alone."""
    return LoadedSystem(build_llm(llm, data), alone(llm), llm)


def alone(llm: LLMConfig) -> ModelConfig:
    """The configuration of an LLM that writes alone."""
    return ModelConfig(kind=SystemKind.llm, llm=llm, conditioning="none")


def model_place(run: str) -> str:
    """The model of a run directory; anything else (a model's own folder, an id) stays as it is."""
    inside = Path(run) / "model"
    return str(inside) if inside.is_dir() else run


def refuse_asked(run: str, llm: LLMConfig, own: LLMConfig) -> None:
    """Refuses to load or ask a trained model otherwise than it was trained.

    Args:
        own: as it was trained.

    Raises:
        UserError: names the first key of `model.llm` that is set to another value.
    """
    default = LLMConfig()
    for field in fields(LLMConfig):
        value = getattr(llm, field.name)
        if field.name not in NOT_ASKED and value not in (getattr(default, field.name), getattr(own, field.name)):
            raise UserError(
                f"model.llm.{field.name}={str(value).lower() if isinstance(value, bool) else value}: {run} was "
                "trained by llm2slm and is loaded and asked as it was trained; leave the key out"
            )


def described(model: LLM2SLM, place: str, moved: str | None) -> ModelConfig:
    """The configuration of a saved model whose run is not at hand, from the record in its own folder."""
    if model.kind is SystemKind.llm:
        return alone(LLMConfig(name=place))
    config, slm = model.config, SLMConfig(name=place)
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
    """The projector's configuration from the record in a saved model; earlier versions always drew its last layer."""
    return ProjectorConfig(**record | {"start": Start(record.get("start", Start.random.value))})


def recorded_llm(model: LLM2SLM, moved: str | None, asked: LLMConfig) -> LLMConfig | None:
    """The LLM to compare a saved model with: of a hybrid the one that it reads with, asked alike; of another model the
    one at `moved`, asked as `asked` says; None where there is neither.

    Args:
        moved: where the LLM is now, if not where the hybrid says.
    """
    record = model.config.llm
    if record is None:
        return None if moved is None else replace(asked, name=moved)
    return LLMConfig(
        name=moved or record["name"],
        revision=record.get("revision") if moved in (None, record["name"]) else None,  # a commit is of one place
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
    """The model under the configuration's limits on lengths, in place of those that it was saved with."""
    model.config.limits = limits(data)
    attach_processor(model, model.collator.slm_tokenizer, model.collator.llm_tokenizer)
    return model


def limits(data: DataConfig) -> dict[str, Any]:
    """The configuration's limits on lengths as a model records them."""
    return {
        "max_prompt_tokens": data.max_prompt_tokens,
        "max_response_tokens": data.max_response_tokens,
        "overlong": data.overlong.value,
    }


def parameters(model: LLM2SLM) -> dict[str, int]:
    """For a result: the number of parameters (total), and of those that training changed (trainable).

    A loaded model does not say by its tensors what was trained of it: frozen weights are saved too, and adapters
    are merged. Its configuration does. Without such a record, `trainable` is what a training would change.
    """
    trained = model.config.trained
    return model.parameter_counts() | ({} if trained is None else {"trainable": trained})


def llm_note(model: LLM2SLM, llm: LLMConfig, weights: str | None = None) -> dict[str, Any]:
    """For a result: the LLM of a system, and how it is asked. Empty without an LLM.

    Args:
        llm: the configuration of an LLM that writes alone; a hybrid has a record of its own.
        weights: the model's `own_fingerprint`, where it is known already.
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
