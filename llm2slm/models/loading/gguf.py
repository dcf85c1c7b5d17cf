"""Loading of config and weights from GGUF files with transformers; weights stay quantized where possible.

For most architectures transformers has only its older loader, which dequantizes all weights; `reading_part` restricts
it to the needed tensors. A few architectures have a newer, lazy loader that can keep weights in their quantized blocks
("packed").
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from llm2slm.gguf_files.header import Header, once_per_file, read_header
from llm2slm.gguf_files.names import neutral_folder
from llm2slm.gguf_files.reader import reading_part
from llm2slm.types import UserError, reason_of

BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")
"""Block index in a GGUF tensor's name."""


def gguf_config(path: Path) -> PreTrainedConfig:
    """The transformers config of a GGUF file.

    Raises:
        UserError: as `read_header`; or transformers does not support the architecture.
    """
    return deepcopy(_config(path))


@once_per_file
def _config(path: Path) -> PreTrainedConfig:
    header = read_header(path)
    try:
        with reading_part(lambda name: False):  # noqa: ARG005
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                neutral_folder(), gguf_file=str(path), trust_remote_code=False
            )
    except Exception as error:  # KeyError, ValueError, NotImplementedError, ..., depending on the architecture
        raise UserError(_unsupported(header, error)) from error
    config.name_or_path = str(path)
    return config


def _unsupported(header: Header, error: Exception) -> str:
    return (
        f"{header.path}: transformers cannot read the architecture {header.architecture!r} from a GGUF file "
        f"({reason_of(error)}); use the model's own folder or Hub id"
    )


def gguf_weights(
    auto: Any, path: Path, config: PreTrainedConfig, *, packed: bool, **more: Any
) -> tuple[PreTrainedModel, Any]:
    """A model with weights from a GGUF file, and transformers' loading report.

    Args:
        auto: one of transformers' Auto classes, or a model class.
        config: the file's config, possibly changed.
        packed: the weights are not trained, and may stay quantized.
        more: arguments of `from_pretrained`.

    Raises:
        UserError: as `gguf_config`.
    """
    header, read = read_header(path), getattr(auto, "blocks_read", None)
    reason = _unpacked_because(header) if packed else ""
    more["quantization_config"] = _setting(dequantize=not packed or bool(reason))
    if more["quantization_config"] is None:
        del more["quantization_config"]
    if packed and not reason:
        more.setdefault("attn_implementation", "sdpa")  # else transformers downloads an attention kernel
    model: PreTrainedModel
    try:
        with reading_part(partial(_unread, config, None if read is None else read(config))):
            model, report = auto.from_pretrained(
                neutral_folder(), gguf_file=str(path), config=config, output_loading_info=True,
                ignore_mismatched_sizes=True, **more,
            )  # fmt: skip
    except (KeyError, NotImplementedError) as error:
        raise UserError(_unsupported(header, error)) from error
    model.config.name_or_path = str(path)
    if packed and header.packed and reason:
        _report_unpacked(header, model, reason)
    return model, report


def named_with_head(path: Path) -> bool:
    """Whether transformers loads the file's quantized weights only into a model with a language-modelling head, whose
    tensor names its newer loader uses.

    Raises:
        UserError: as `read_header`.
    """
    try:
        from transformers.integrations.gguf.utils import is_gguf_arch_supported
    except ImportError:
        return False
    return bool(is_gguf_arch_supported(read_header(path).architecture))


def _setting(*, dequantize: bool) -> Any:
    """transformers' GGUF quantization config; None in a version that always dequantizes."""
    try:
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:
        return None
    return GgufConfig(dequantize=dequantize)


def _unpacked_because(header: Header) -> str:
    """The reason why weights cannot stay packed; "" if they can."""
    try:
        from transformers.integrations.gguf.kernels import get_gguf_kernel
        from transformers.integrations.gguf.utils import is_gguf_arch_supported
    except ImportError:
        return "this version of transformers has no kernel for packed weights"
    if not is_gguf_arch_supported(header.architecture):
        return f"transformers has no packed layers for the architecture {header.architecture}"
    if not header.packed:
        return "nothing in it is packed"
    if not get_gguf_kernel():
        return "no kernel for packed weights is installed for this device (pip install kernels)"
    return ""


def _report_unpacked(header: Header, model: PreTrainedModel, reason: str) -> None:
    """Prints that weights were dequantized, and their memory."""
    from gguf import GGMLQuantizationType

    sizes: dict[int, int] = {}
    for tensor in header.packed:
        sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.size
    kind = GGMLQuantizationType(max(sizes, key=lambda kind: sizes[kind])).name
    held = sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())
    dtype = str(model.dtype).removeprefix("torch.")
    print(
        f"llm2slm: {header.path.name}: its {kind} weights were unpacked to {dtype}, because {reason}: "
        f"{held / 1e6:,.0f} MB in memory for the part read from a file of {header.path.stat().st_size / 1e6:,.0f} MB"
        + ("; model.llm.dtype=bfloat16 halves that" if dtype == "float32" else ""),
        file=sys.stderr,
    )


def _unread(config: PreTrainedConfig, read: int | None, name: str) -> bool:
    """Whether a tensor's name shows that it belongs to no part of the model.

    Args:
        config: config of the model.
        read: number of blocks of a partial encoder; None for a whole model.
        name: GGUF name of the tensor.
    """
    if read is not None and name.startswith(("output.", "dec.")):
        return True
    number, depth = BLOCK.search(name), getattr(config, "num_hidden_layers", None) if read is None else read
    both_sides = read is None and bool(config.is_encoder_decoder)  # the depths may differ
    return number is not None and depth is not None and not both_sides and int(number.group(1)) >= depth


# Packed weights


@dataclass(frozen=True)
class Packed:
    """A quantized weight of one of transformers' packed layers.

    Attributes:
        blocks: quantized blocks, as in the file.
        kind: ggml type.
        shape, dtype: of the dequantized weight.
        order: column permutation, if the layer's columns are not in the file's order.
    """

    blocks: Tensor
    kind: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    order: Tensor | None = None

    def unpacked(self) -> Tensor:
        """The dequantized weight, equal to the one that transformers' dequantizing load gives."""
        from transformers.integrations.gguf.dequant import dequantize

        plain: Tensor = dequantize(self.blocks.detach().cpu(), self.kind, self.dtype).reshape(self.shape)
        return plain if self.order is None else torch.empty_like(plain).index_copy_(-1, self.order.cpu(), plain)


def packed_weights(model: nn.Module) -> dict[int, Packed]:
    """`id` of each packed parameter of a model -> its weight."""
    dtype, found = getattr(model, "dtype", torch.float32), {}
    layer: Any
    for layer in model.modules():
        weights: list[tuple[Tensor, int, int]] = []  # blocks, ggml type, width
        if hasattr(layer, "ggml_type"):
            width = getattr(layer, "in_features", None) or layer.embedding_dim
            weights = [(layer.weight, layer.ggml_type, width)]
        elif hasattr(layer, "gate_up_type"):
            weights = [
                (layer.gate_up_proj, layer.gate_up_type, layer.hidden_dim),
                (layer.down_proj, layer.down_type, layer.intermediate_dim),
            ]
        for blocks, kind, width in weights:
            shape, order = (*blocks.shape[:-1], width), getattr(layer, "input_permutation", None)
            found[id(blocks)] = Packed(blocks, kind, shape, dtype, order)
    return found


def plain_tensors(model: nn.Module) -> list[tuple[str, Tensor | Packed]]:
    """A model's state dict as pairs, with packed weights as `Packed`."""
    packed = packed_weights(model)
    named = {name: packed.get(id(weight)) for name, weight in model.named_parameters(remove_duplicate=False)}
    return [(name, named.get(name) or tensor) for name, tensor in model.state_dict().items()]


def weights_in(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Each parameter with its number of weights, counted after dequantization."""
    packed = packed_weights(model)
    for parameter in model.parameters():
        found = packed.get(id(parameter))
        yield parameter, parameter.numel() if found is None else prod(found.shape)
