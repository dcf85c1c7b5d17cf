"""The LightningModule that trains every kind of system: hybrid, SLM alone, LLM."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import SumMetric

from llm2slm.config import OptimConfig
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.out_of_memory import explained, shape
from llm2slm.training.distill import Teacher
from llm2slm.training.divergence import LossWatch
from llm2slm.training.frozen_weights import MODEL, FrozenParts
from llm2slm.training.micro_batches import MicroBatches, no_gradient
from llm2slm.training.objectives import token_cross_entropy
from llm2slm.training.optim import apply_schedule, build_optimizer, schedule_factor
from llm2slm.training.phases import frozen_in_first_phase, without_gradients
from llm2slm.training.precision import attention
from llm2slm.training.random_states import STATES, gather, generator_states, of_this_process, restore_states
from llm2slm.training.sharding import local, shard
from llm2slm.training.step_statistics import device_memory_mb, filled_positions, gradient_norms
from llm2slm.training.utilization import Utilization, Work
from llm2slm.types import Batch, UserError

EARLIER_PROMPTS = "heard"
"""Key of a `process_state`, in checkpoints of all versions: the prompts that an ablation keeps."""
LIMIT = "micro_batch"
"""Key of a `process_state`: the tokens of a part of a batch that fit into memory (`MicroBatches.limit`)."""
TOO_LARGE = (
    "lower data.batch_tokens (and raise trainer.accumulate_grad_batches by the same factor), or set "
    "trainer.micro_batch=auto, which keeps the gradient"
)


class _Tally:
    """Token count and summed losses, kept on the device to avoid a GPU synchronization per batch."""

    def __init__(self) -> None:
        self.tokens: Tensor | int = 0
        self.losses: dict[str, Tensor] = {}

    def add(self, tokens: Tensor, **losses: Tensor) -> None:
        self.tokens = self.tokens + tokens
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss.detach()

    def stacked(self, device: torch.device) -> Tensor:
        """[tokens, *losses] in double precision, so that token counts are exact."""
        sums = (self.tokens, *self.losses.values())
        return torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in sums])


class TrainingModule(LightningModule):
    """Token-weighted training and validation of a system.

    The gradient of a step is that of the mean loss over all its tokens, of all processes and of the whole accumulation
    window. So the loss is summed, and the gradient is divided by the token count before clipping.

    Args:
        model: the system; its frozen LLM is in no state dict and in no optimizer.
        cfg: learning rates and schedule.
        max_steps: optimizer steps of the schedule.
        teacher: an LLM whose distribution is part of the loss, with weight `cfg.distill`.
        frozen: weights that checkpoints leave out; None: the LLM only.
        micro: splits batches that do not fit into memory; None: they end the training.
        work: for the logged utilisation; None: none is logged.
    """

    def __init__(
        self,
        model: LLM2SLM,
        cfg: OptimConfig,
        max_steps: int,
        teacher: Teacher | None = None,
        frozen: FrozenParts | None = None,
        *,
        micro: MicroBatches | None = None,
        work: Work | None = None,
    ) -> None:
        super().__init__()
        if bool(cfg.distill) != (teacher is not None):
            raise ValueError(f"optim.distill={cfg.distill}: a teacher is needed above 0, and only then")
        self.model = model
        self.teacher = teacher
        self.frozen, self.micro = frozen, micro
        self.losses = LossWatch(Path())
        self.stop_requested: Callable[[], bool] = lambda: False
        self._votes: list[Tensor] = []
        self.batch = Batch(torch.empty(0, 0), torch.empty(0, 0))
        self.cfg = cfg
        self.max_steps = max_steps
        # the default drops NaN from the sum, which would hide divergence
        # each process has loaded the same LLM: DDP neither broadcasts nor reduces any of it
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, self._of_llm())
        self.val_loss, self.val_tokens = SumMetric(nan_strategy="disable"), SumMetric(nan_strategy="disable")
        self.frozen_first = frozen_in_first_phase(model) if cfg.freeze_slm_steps else []
        self._step = _Tally()
        self._positions = _Tally()
        self._since_log = _Tally()
        self._utilization = None if work is None else Utilization(work)
        self._clock = time.perf_counter()

    def _of_llm(self) -> list[str]:
        """Names of the parameters and buffers of the frozen LLM."""
        tensors = [*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)]
        return [name for name, _ in tensors if name.startswith(f"{MODEL}encoder.")]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Summed loss of a batch (see the class).

        Raises:
            OutOfMemory: the batch does not fit into the memory of the device; names its shape.
        """
        windows: int = self.trainer.accumulate_grad_batches
        self.batch = batch
        if self.micro is not None:
            return self._in_parts(self.micro, batch, first=batch_idx % windows == 0)
        with explained(f"a training batch of {shape(batch)}", TOO_LARGE):
            losses, tokens = self._forward(batch)
        self._seen(batch, tokens, losses)
        return losses["loss"] * windows  # Lightning divides by it; the true divisor is below

    def _forward(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Summed losses of a batch, and its number of response tokens."""
        assert batch.labels_BT is not None
        frozen = (
            self.frozen_first if self.first_phase and self.trainer.world_size == 1 else []
        )  # DDP waits for every gradient
        float32 = attention(self.trainer.precision, self.device.type, self.model.slm.dtype)
        with without_gradients(frozen), float32:
            logits_BTV = self.model.logits(batch)
        ce, tokens = token_cross_entropy(logits_BTV, batch.labels_BT, self.cfg.label_smoothing)
        if self.teacher is None:
            return {"loss": ce}, tokens
        kl, weight = self.teacher.divergence(batch, logits_BTV), self.cfg.distill
        return {"loss": (1 - weight) * ce + weight * kl, "ce": ce, "kl": kl}, tokens

    def _seen(self, batch: Batch, tokens: Tensor, losses: dict[str, Tensor]) -> None:
        """Adds a batch to the sums of the step."""
        self._step.add(tokens, **losses)
        self._since_log.add(tokens + batch.slm_mask_BQ.sum())
        filled, positions = filled_positions(batch)
        self._positions.add(filled, all=positions)
        self.losses.add(batch, losses["loss"])
        if self._utilization is not None:
            self._utilization.add(batch)

    def _in_parts(self, micro: MicroBatches, batch: Batch, *, first: bool) -> Tensor:
        """Forward and backward passes over a batch in parts (`MicroBatches`).

        Args:
            first: the first batch of an accumulation window, for which gradients are cleared here: Lightning would
                clear them between this function and the backward pass.

        Returns:
            A loss of 0, whose backward pass only starts the reduction of DDP.
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if first:
            for parameter in trained:
                parameter.grad = None
        before, names = self.process_state(), [""]

        def passes(part: Batch) -> tuple[Tensor, ...]:
            losses, tokens = self._forward(part)
            with torch.autocast(self.device.type, enabled=False):
                self.trainer.precision_plugin.pre_backward(losses["loss"], self).backward()
            names[1:] = losses
            return (tokens, *(loss.detach() for loss in losses.values()))

        tokens, *sums = micro.run(batch, trained, passes, lambda: self.restore_generators(before))
        self._seen(batch, tokens, dict(zip(names[1:], sums, strict=True)))
        reduced = trained if self.trainer.world_size > 1 else [p for p in trained if p.grad is not None]
        return no_gradient(reduced)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clears gradients; with parts of batches `training_step` has done it."""
        if self.micro is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's backward pass.

        Raises:
            OutOfMemory: as `training_step`.
        """
        with explained(f"a training batch of {shape(self.batch)}", TOO_LARGE):
            super().backward(loss, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's step, in which the optimizer allocates its state the first time.

        Raises:
            OutOfMemory: the state does not fit into the memory of the device.
        """
        with explained(
            "the optimizer's step", "train fewer weights (model.slm.tune=lora), or shard them (trainer=fsdp)"
        ):
            super().optimizer_step(*args, **kwargs)

    @property
    def first_phase(self) -> bool:
        """Whether the SLM is frozen in the current step (optim.freeze_slm_steps)."""
        return bool(self.frozen_first) and self.trainer.global_step < self.cfg.freeze_slm_steps

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Sum of gradients -> gradient of the token mean; called before clipping."""
        vote = torch.full((1,), float(self.stop_requested()), dtype=torch.float64, device=self.device)
        totals = self.trainer.strategy.reduce(torch.cat([self._step.stacked(self.device), vote]), reduce_op="sum")
        self._votes = [*self._votes[-1:], totals[-1]]
        tokens = totals[0].clamp(min=1)
        if self.first_phase:
            for parameter in self.frozen_first:
                parameter.grad = None  # neither a step nor weight decay
        # DDP averages gradients over processes; the token count belongs to their sum
        scale = self.trainer.world_size / tokens
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    local(parameter.grad).mul_(scale.to(parameter.grad.dtype))
        step = self.trainer.global_step + 1
        self.losses.stepped(step, totals[1] / tokens)
        # Lightning writes a row at the last step, whatever the interval
        if step % self.trainer.log_every_n_steps == 0 or step >= self.max_steps:
            self._log_losses(dict(zip(self._step.losses, (totals[1:-1] / tokens).float(), strict=True)))
            # groups with and without weight decay share a rate; with few parameters, only one of the two exists
            rates = {group["name"].removesuffix("_no_decay"): group["lr"] for group in optimizer.param_groups}
            for name, rate in rates.items():
                self.log(f"train/lr_{name}", rate)
            for name, norm in gradient_norms(optimizer).items():
                self.log(f"train/grad_norm_{name}", norm)
            filled, positions = self.trainer.strategy.reduce(self._positions.stacked(self.device), reduce_op="sum")
            self.log("train/padding", (1 - filled / positions).float())
            self._log_rate()
        self._step, self._positions = _Tally(), _Tally()

    def any_stop_requested(self) -> bool:
        """Whether a process requested a stop (`stop_requested`) before this step; equal in all processes.

        On a GPU: before the step before, whose result is there, so that the device is not waited for.
        """
        votes = self._votes if self.device.type == "cpu" else self._votes[:-1]
        return bool(votes) and float(votes[-1]) > 0

    def _log_losses(self, losses: dict[str, Tensor]) -> None:
        """Logs the step's losses, and ends a diverged run."""
        for name, loss in losses.items():
            self.log(f"train/{name}", loss, prog_bar=name == "loss")
        self.losses.check()

    def _log_rate(self) -> None:
        """Logs tokens (of prompt and response, of all processes) per second since the last log, utilisation, and device
        memory."""
        seconds = time.perf_counter() - self._clock
        if seconds > 1.0:
            seen = float(self._since_log.stacked(self.device)[0])
            self.log("train/tokens_per_s", seen * self.trainer.world_size / seconds, prog_bar=True)
            if self._utilization is not None:
                self.log_dict(self._utilization.logged(seconds, self.device.type))
            if (memory := device_memory_mb(self.device)) is not None:
                self.log("train/device_memory_mb", memory)
            self._restart_clock()

    def _restart_clock(self) -> None:
        if self._utilization is not None:
            self._utilization.restart()
        self._since_log, self._clock = _Tally(), time.perf_counter()

    def on_train_start(self) -> None:
        """Sets the rates of the first step, starts the clock, and moves the teacher to the model's device."""
        for config in self.trainer.lr_scheduler_configs:
            assert isinstance(config.scheduler, LambdaLR)
            apply_schedule(config.scheduler)
        if self.teacher is not None:
            self.teacher.to(self.device)
        self.losses = LossWatch(Path(self.trainer.default_root_dir), self.trainer.global_rank)
        self._restart_clock()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the summed loss and the token count."""
        del batch_idx
        assert batch.labels_BT is not None
        with explained(f"a validation batch of {shape(batch)}", "lower data.eval_batch_size"):
            loss, tokens = token_cross_entropy(self.model.logits(batch), batch.labels_BT)
        self.val_loss.update(loss)
        self.val_tokens.update(tokens)

    def on_validation_epoch_end(self) -> None:
        """Mean loss over every token of the split, exact under several processes."""
        self.log("val/loss", self.val_loss.compute() / self.val_tokens.compute().clamp(min=1), prog_bar=True)
        self.val_loss.reset()
        self.val_tokens.reset()
        self._restart_clock()  # training time excludes validation

    def configure_model(self) -> None:
        """With FSDP, shards the model. (`device_mesh` is None with other strategies.)"""
        if self.device_mesh is not None and not isinstance(self, FSDPModule):
            shard(self, self.device_mesh)
            self.frozen_first = frozen_in_first_phase(self.model) if self.cfg.freeze_slm_steps else []

    def configure_optimizers(self) -> Any:
        """The optimizer over projector and SLM, one scheduler step per optimizer step."""
        optimizer = build_optimizer(self.model, self.cfg)
        scheduler = LambdaLR(optimizer, schedule_factor(self.cfg, self.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Removes frozen weights, and adds the state of every process. Every process calls it."""
        if self.frozen is not None:
            self.frozen.leave_out(checkpoint)
        checkpoint[STATES] = gather(self.trainer, self.process_state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the frozen weights, and restores the state of this process.

        Raises:
            UserError: the checkpoint is of another model: a tensor is missing, unexpected, or of another shape, or the
                frozen weights differ; or it is of another number of processes.
        """
        current = self.state_dict()
        saved = checkpoint["state_dict"] if self.frozen is None else self.frozen.complete(checkpoint, current)
        checkpoint["state_dict"] = saved
        for name in sorted(saved.keys() | current.keys()):
            shapes = [tuple(state[name].shape) if name in state else "missing" for state in (saved, current)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"the checkpoint does not fit the model: tensor {name.removeprefix('model.')} is {shapes[0]} in "
                    f"the checkpoint, {shapes[1]} in the model; resume with the configuration of the run"
                )
        self.restore_process_state(of_this_process(checkpoint, self.trainer))

    def process_state(self) -> dict[str, Any]:
        """State that differs between processes: random generators, and earlier prompts kept by an ablation."""
        state = generator_states(self.device)
        if self.model.ablation is not None:
            state[EARLIER_PROMPTS] = self.model.ablation.state()
        if self.micro is not None:
            state[LIMIT] = self.micro.limit
        return state

    def restore_process_state(self, state: dict[str, Any]) -> None:
        """Restores a `process_state`."""
        self.restore_generators(state)
        if self.micro is not None:
            self.micro.limit = state.get(LIMIT)

    def restore_generators(self, state: dict[str, Any]) -> None:
        """Restores the random generators and the earlier prompts of a `process_state`."""
        restore_states(state, self.device)
        if self.model.ablation is not None:
            self.model.ablation.restore(state.get(EARLIER_PROMPTS, []))
