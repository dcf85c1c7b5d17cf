"""`trainer=fsdp`: the weights of LLM and SLM, gradients and optimizer state are divided among the processes (FSDP2).

Each transformer block of both models is a unit of `fully_shard`: its weights are gathered when it runs, and freed after
it. Embeddings, heads and the projector form the unit of the root, which is gathered for a whole step, since a hybrid
uses them outside of its models' forward passes. The frozen LLM has no gradients, so none of it is reduced.

Checkpoints have the format of all other strategies (one file, whole tensors, written by the first process), so a run
directory does not depend on the strategy, and a run can be resumed with another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from llm2slm.config import RunConfig
from llm2slm.training.checkpoint_io import read
from llm2slm.types import UserError, reason_of

FSDP = "fsdp"
"""Name of the strategy in `trainer.strategy`."""


def check_sharding(config: RunConfig) -> None:
    """Refuses, before anything is loaded, settings that are impossible with sharded weights.

    Raises:
        UserError: names the key.
    """
    if config.trainer.strategy != FSDP:
        return
    wrong = None
    if config.optim.name == "muon":
        wrong = "optim.name=muon needs whole matrices; use optim.name=adamw"
    elif config.model.llm.quantization:
        wrong = "model.llm.quantization: quantized weights cannot be sharded; leave it out"
    elif config.trainer.precision == "16-mixed":
        wrong = "trainer.precision=16-mixed is not supported with sharded weights; use bf16-mixed"
    if wrong is not None:
        raise UserError(f"trainer.strategy={FSDP}: {wrong}")


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2: all devices share one data-parallel group. See the module."""

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Connects the processes in one group."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The step, within the forward pass of the root, which gathers its weights."""
        module: Any = self.lightning_module
        with self.precision_plugin.train_step_context():
            return self._forward_redirection(module, module, "training_step", *args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """As `training_step`."""
        module: Any = self.lightning_module
        with self.precision_plugin.val_step_context():
            return self._forward_redirection(module, module, "validation_step", *args, **kwargs)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning calls `load_optimizer_state_dict`."""
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state in torch's format with whole tensors, on the CPU. Collective."""
        state: dict[str, Any] = getattr(optimizer, "_optimizer", optimizer).state_dict()
        whole = {i: {key: _whole(value) for key, value in each.items()} for i, each in state["state"].items()}
        return {**state, "state": whole}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint in every process."""
        del weights_only
        return read(Path(self.broadcast(checkpoint_path)))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Distributes the saved weights. (`TrainingModule.on_load_checkpoint` has compared names and shapes.)"""
        del strict
        assert self.model is not None
        saved = {name: value for name, value in checkpoint["state_dict"].items() if not isinstance(value, DTensor)}
        set_model_state_dict(self.model, saved, options=StateDictOptions(full_state_dict=True, strict=False))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Distributes the saved state like the parameters."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                i: {key: _like(value, parameters[i]) for key, value in each.items()}
                for i, each in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a LightningModule in place: each transformer block, and all other weights together.

    Raises:
        UserError: a weight cannot be sharded.
    """
    models = [each for each in module.modules() if isinstance(each, PreTrainedModel)]
    blocks = {name for model in models for name in model._no_split_modules or ()}
    group = mesh["data_parallel"]
    try:
        for each in list(module.modules()):
            if type(each).__name__ in blocks:
                fully_shard(each, mesh=group)
        fully_shard(module, mesh=group, reshard_after_forward=False)
    except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"trainer.strategy={FSDP}: the model cannot be sharded ({reason_of(error)})") from error


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Gathers the weights of the root within the block, for passes outside of a step (generation). Collective."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor in this process; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor, sharded like its parameter; a scalar (the number of steps) as it is."""
    if not isinstance(value, Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    device = parameter.device_mesh.device_type
    return distribute_tensor(value.to(device), parameter.device_mesh, parameter.placements)
