"""Fits a model: callbacks, Trainer, and the best checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.loggers import Logger

from llm2slm.config import RunConfig, TrainerConfig
from llm2slm.data.batches import drawn
from llm2slm.data.datamodule import DataModule
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.ranks import first_process
from llm2slm.runs import Selection, text_hash
from llm2slm.stops import Stopped
from llm2slm.training.checkpoint_io import CHECKPOINTS, CheckpointFiles, damage, read
from llm2slm.training.checkpoints import Checkpoints, Interrupted, Limits, Progress, newest_best, selected
from llm2slm.training.distill import Teacher
from llm2slm.training.frozen_weights import MODEL, FrozenParts
from llm2slm.training.micro_batches import MicroBatches
from llm2slm.training.module import TrainingModule
from llm2slm.training.phases import projector_rate
from llm2slm.training.precision import matmul_precision
from llm2slm.training.progress_lines import training_progress
from llm2slm.training.sharding import FSDP, Sharded
from llm2slm.training.signals import kept_ctrl_c, without_signals
from llm2slm.training.utilization import Work
from llm2slm.training.validation_scores import GenerationQuality, KeepSamples, ValidationScorer
from llm2slm.types import Example, UserError

NAMED_BY = {
    "strategy": "strategy", "precision": "precision", "profiler": "profiler", "max_time": "duration",
    "devices": "devices", "accelerator": "accelerator",
}  # fmt: skip
"""Field of `TrainerConfig` -> a word in Lightning's message about it."""


@dataclass(frozen=True)
class Fitted:
    """The outcome of a fit.

    Attributes:
        model: with the weights of the best checkpoint. best: path of that checkpoint; selection: how it was selected.
        seconds, steps: of training (optimizer steps); of the whole training, interruptions included.
    """

    model: LLM2SLM
    seconds: float
    steps: int
    best: str
    first_process: bool
    selection: Selection | None
    validation: dict[str, float]
    """Scores of that checkpoint by metric."""


class EarlyStopping(lightning_callbacks.EarlyStopping):
    """Lightning's callback with the same checkpoint key. A resumed run uses the current `callbacks.patience`, not the
    one in the checkpoint, and restarts the count if the validation rows changed.

    Attributes:
        rows, unrecorded: as in `Checkpoints`.
    """

    rows: str | None = None
    unrecorded: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state, and the hash of the rows on which the monitored value is computed."""
        return {**super().state_dict(), "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best value and the count of validations without improvement."""
        if state_dict.get("rows", self.unrecorded) == self.rows:
            super().load_state_dict({**state_dict, "patience": self.patience})


class OnceBegun(Callback):
    """Calls a function in the first process once training works: after its first batch, or at its end without one."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """After the first batch."""
        if self._action is not None and trainer.is_global_zero:
            self._action()
        self._action = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a training without batches, as one that repeats a validation only."""
        self.on_train_batch_end(trainer, pl_module)


def set_seed(seed: int) -> None:
    """Seeds every generator: Python's, NumPy's, torch's, and those of DataLoader processes."""
    seed_everything(seed, workers=True, verbose=False)


def fit(
    config: RunConfig,
    folder: Path,
    model: LLM2SLM,
    data: DataModule,
    *,
    loggers: list[Logger],
    scorer: ValidationScorer | None = None,
    resume: Path | None = None,
    recorded: RunConfig | None = None,
    teacher: Teacher | None = None,
    keep_samples: KeepSamples | None = None,
    begun: Callable[[], object] | None = None,
    rebuild: Callable[[], LLM2SLM] | None = None,
    work: Work | None = None,
) -> Fitted:
    """Trains `model` in place; afterwards it holds the weights of the best checkpoint.

    Args:
        folder: the run directory; checkpoints go to `checkpoints/`.
        scorer: generates and scores predictions in validations.
        resume: checkpoint to resume from.
        recorded: the configuration of the checkpoint's validations, for checkpoints that record no hash of their
            validation rows; None: these validations are not comparable with later ones.
        teacher: for optim.distill; `data` must provide its prompts.
        keep_samples: receives the predictions of each validation, in the first process.
        rebuild: builds the untrained model again, for the result of a strategy that leaves `model` sharded (FSDP).
        begun: called once in the first process, after the first step of this process (or its last validation).
        work: for the logged utilisation; None: none is logged.

    Raises:
        UserError: incompatible settings, a monitored value that is never logged, or a loss that is not finite.
        Stopped: by a signal (a KeyboardInterrupt); after a first one `checkpoints/last.ckpt` has the current step.
    """
    cfg = config.trainer
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    frozen = FrozenParts(model, config.model, teacher)
    optim = replace(config.optim, projector_lr=projector_rate(config.optim, config.model))
    micro = MicroBatches() if cfg.micro_batch else None
    module = TrainingModule(model, optim, cfg.max_steps, teacher, frozen, micro=micro, work=work)
    validation = data.examples("validation")
    rows = monitored_rows(config, drawn(validation, data.val_rows), validation)
    unrecorded = None
    if recorded is not None:
        unrecorded = monitored_rows(recorded, drawn(validation, recorded.trainer.val_rows), validation)
    limits = Limits.of(cfg, config.callbacks, None if scorer is None else scorer.lower_is_better)
    checkpoints = Checkpoints(folder / CHECKPOINTS, limits, validation_interval(cfg), rows, unrecorded)
    callbacks: list[Callback] = [checkpoints]
    if config.callbacks.patience is not None:
        callbacks.append(_early_stopping(limits, rows, unrecorded))
    if begun is not None:
        callbacks.append(OnceBegun(begun))
    if scorer is not None and config.callbacks.generate_rows:
        examples = validation[: config.callbacks.generate_rows]
        callbacks.insert(0, GenerationQuality(scorer, examples, checkpoints.abort_if_requested, keep_samples))
    if cfg.progress:
        callbacks.append(training_progress())
    trainer = build_trainer(cfg, folder, callbacks, loggers)
    model.train()  # Lightning keeps eval mode, in which dropout is off
    with matmul_precision(cfg.matmul_precision):
        _run(trainer, module, data, checkpoints, resume)
    seconds = checkpoints.seconds
    module.teacher = None  # the Trainer still references the module
    best = newest_best(folder / CHECKPOINTS)
    if cfg.strategy != FSDP or rebuild is None:
        load_best(model, best, frozen)
    elif trainer.is_global_zero:  # it alone tests and saves
        model = rebuild()
        load_best(model, best, frozen)
    chosen = selected(best)
    return Fitted(model, seconds, trainer.global_step, str(best), trainer.is_global_zero, *chosen)


def monitored_rows(config: RunConfig, of_loss: Sequence[Example], validation: Sequence[Example]) -> str:
    """Hash of the rows on which the monitored value is computed: those of val/loss, or the first rows of the validation
    split, for which predictions are generated."""
    if config.callbacks.monitor == "val/loss":
        rows, limit = of_loss, config.trainer.limit_val_batches
    else:
        rows, limit = validation[: config.callbacks.generate_rows], None
    return text_hash([str(limit), *(text for row in rows for text in (row.source, row.target))])


def load_fitted(
    config: RunConfig, folder: Path, model: LLM2SLM, progress: Progress, teacher: Teacher | None = None
) -> Fitted:
    """The result of `fit` for a finished training; loads the weights of the best checkpoint into `model`."""
    best = newest_best(folder / CHECKPOINTS)
    load_best(model, best, FrozenParts(model, config.model, teacher))
    return Fitted(model, progress.seconds, progress.steps, str(best), first_process(), *selected(best))


def load_best(model: LLM2SLM, path: Path, frozen: FrozenParts) -> None:
    """Loads the weights of a training checkpoint into a model.

    Raises:
        UserError: the file is damaged.
    """
    if reason := damage(path):
        raise UserError(f"{path}: {reason}; `llm2slm train run={path.parent.parent}` continues with the other one")
    current = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
    state = frozen.complete(read(path), current)
    model.load_state_dict({n.removeprefix(MODEL): tensor for n, tensor in state.items() if n.startswith(MODEL)})


def _run(
    trainer: Trainer, module: TrainingModule, data: DataModule, checkpoints: Checkpoints, resume: Path | None
) -> None:
    """Trainer.fit; both kinds of stop are raised as `Stopped`, a KeyboardInterrupt."""
    try:
        with kept_ctrl_c():
            trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume), weights_only=True)
    except Interrupted:
        if not trainer.is_global_zero:  # Lightning kills the first process if another one it started fails
            raise SystemExit(0) from None
        raise checkpoints.signals.stopped() from None
    except SystemExit as error:  # Lightning converts KeyboardInterrupt to it
        if trainer.interrupted:
            by = error.__context__
            raise (by if isinstance(by, Stopped) else checkpoints.signals.stopped()) from None
        raise error
    if checkpoints.signals.requested:  # during the last step: trained, not tested
        raise checkpoints.signals.stopped()


def validation_interval(cfg: TrainerConfig) -> int:
    """Optimizer steps between validations."""
    return cfg.val_every or max(1, cfg.max_steps // 10)


def build_trainer(cfg: TrainerConfig, folder: Path, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """lightning.Trainer from our configuration.

    Raises:
        UserError: Lightning's message about an impossible setting.
    """
    if cfg.precision in ("bf16-true", "16-true"):
        raise UserError(
            f"trainer.precision={cfg.precision} would change the frozen LLM's weights too; use bf16-mixed, or hold a "
            "model's weights in half precision by model.llm.dtype or model.slm.dtype"
        )
    try:
        trainer = Trainer(
            accelerator=cfg.accelerator,
            devices=cfg.devices,
            num_nodes=cfg.num_nodes,
            strategy=Sharded() if cfg.strategy == FSDP else cfg.strategy,
            precision=cfg.precision,
            max_steps=cfg.max_steps,
            max_epochs=-1,
            max_time=cfg.max_time,
            val_check_interval=1,  # in batches; `Checkpoints` decides, in steps
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            gradient_clip_val=cfg.gradient_clip_val,
            accumulate_grad_batches=cfg.accumulate_grad_batches,
            log_every_n_steps=cfg.log_every_n_steps,
            deterministic=cfg.deterministic,
            profiler=cfg.profiler,
            overfit_batches=cfg.overfit_batches,
            limit_val_batches=cfg.limit_val_batches,
            enable_progress_bar=cfg.progress,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the data module's sampler distributes the rows
            default_root_dir=folder,
            callbacks=callbacks,
            logger=loggers,
            plugins=[CheckpointFiles()],
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        named = next((name for name, word in NAMED_BY.items() if word in reason.lower()), None)
        setting = "trainer" if named is None else f"trainer.{named}={getattr(cfg, named)}"
        raise UserError(f"{setting}: {reason}") from error
    if "16-mixed" in cfg.precision and trainer.precision != cfg.precision:  # Lightning replaces it, with a warning
        raise UserError(f"trainer.precision={cfg.precision}: needs a CUDA GPU; use bf16-mixed or 32-true")
    without_signals(trainer)
    return trainer


def check_trainer(cfg: TrainerConfig, folder: Path) -> None:
    """Refuses settings that Lightning refuses, before anything is written.

    Raises:
        UserError: as `build_trainer`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `fit` repeats them
        build_trainer(cfg, folder, [], [])


def _early_stopping(limits: Limits, rows: str, unrecorded: str | None) -> EarlyStopping:
    # not strict, no check of finiteness: `Checkpoints` reports a value that is missing or not finite
    stopping = EarlyStopping(
        limits.monitor,
        min_delta=limits.min_delta,
        patience=limits.patience or 0,
        mode=limits.mode,
        strict=False,
        check_finite=False,
    )
    stopping.rows, stopping.unrecorded = rows, unrecorded
    return stopping
