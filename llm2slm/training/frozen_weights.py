"""Frozen weights, which checkpoints leave out because they can be loaded again by the model's name.

A checkpoint records the names of these models and fingerprints of their weights, which a resumed training compares.
Frozen weights that were initialized at random exist in no other file, so they are saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from llm2slm.config import LanguageModelConfig, ModelConfig, RunConfig
from llm2slm.models.build import generator_config
from llm2slm.models.encoder import fingerprint
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.loading.configs import BUILTIN, commit, is_local
from llm2slm.models.loading.gguf import plain_tensors
from llm2slm.training.distill import Teacher
from llm2slm.types import Init, UserError

FROZEN = "frozen"
"""Key of a checkpoint: the record of `FrozenParts`."""
MODEL = "model."
"""Prefix of the model's tensors in the state dict of the LightningModule."""


class FrozenParts:
    """The frozen parts of a system that is trained: frozen weights of the generating model, LLM, teacher.

    Args:
        model: the system, before its first step. cfg: its configuration. teacher: of `optim.distill`.

    Attributes:
        names: tensors of the generating model that checkpoints leave out, as in the model's state dict.
    """

    def __init__(self, model: LLM2SLM, cfg: ModelConfig, teacher: Teacher | None = None) -> None:
        generator = generator_config(cfg)
        loadable = generator.source is not None and generator.start is Init.pretrained
        state = model.state_dict(keep_vars=True)
        self.names = {
            name
            for name, tensor in state.items()
            if loadable and name.startswith("slm.") and isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        }
        side = "llm" if generator is cfg.llm else "slm"
        self.record: dict[str, dict[str, str | None]] = {}
        if self.names:
            found = fingerprint((name, state[name].detach()) for name in self.names)
            self.record["the frozen part of the model that is trained"] = _record(generator, side, found)
        if model.encoder is not None:
            self.record["the LLM"] = _record(cfg.llm, "llm", str((model.config.llm or {}).get("fingerprint")))
        if teacher is not None:
            found = fingerprint(plain_tensors(teacher.model))
            self.record["the teacher"] = _record(cfg.llm, "llm", found)

    def leave_out(self, checkpoint: dict[str, Any]) -> None:
        """Removes the frozen weights from a checkpoint, and adds the record."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: v for n, v in state.items() if n.removeprefix(MODEL) not in self.names}
        checkpoint[FROZEN] = self.record

    def complete(self, checkpoint: Mapping[str, Any], current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of a checkpoint, completed with the frozen weights.

        Args:
            current: the state dict of the module that the checkpoint is loaded into.

        Raises:
            UserError: a frozen part differs from the one at the start of training.
        """
        saved: dict[str, Tensor] = dict(checkpoint["state_dict"])
        for part, then in (checkpoint.get(FROZEN) or {}).items():
            now = self.record.get(part)
            if now is not None and now["fingerprint"] != then["fingerprint"]:
                at = f" at commit {then['revision']}" if then["revision"] else ""
                raise UserError(
                    f"{part} ({now['name']}) is not the one that this training began with: its weights (fingerprint "
                    f"{now['fingerprint']}) are not those recorded in the checkpoint ({then['fingerprint']}); restore "
                    f"{then['name']}{at} to resume"
                )
        if FROZEN in checkpoint:
            missing = {MODEL + name for name in self.names} - saved.keys()
            saved |= {name: current[name] for name in missing if name in current}
        return saved


def at_recorded_commits(config: RunConfig, checkpoint: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run with its Hub models at the commits of the start of training."""
    model = replace(config.model)
    for then in (checkpoint.get(FROZEN) or {}).values():
        if then["revision"] is not None:
            setattr(model, then["side"], replace(getattr(model, then["side"]), revision=then["revision"]))
    return replace(config, model=model)


def _record(of: LanguageModelConfig, side: str, found: str) -> dict[str, str | None]:
    """The record of a frozen part: section of the configuration, model name, commit (None: a folder), fingerprint."""
    name = of.source
    here = name is None or name.startswith(BUILTIN) or is_local(name)
    revision = None if here else commit(str(name), of.revision)
    return {"side": side, "name": name, "revision": revision, "fingerprint": found}
