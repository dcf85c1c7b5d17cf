"""FrozenEncoder against transformers models on one unpadded row at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sampling import representatives
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, T5EncoderModel

from llm2slm.models.encoder import FrozenEncoder
from llm2slm.testing import write_tiny_gpt2, write_tiny_t5
from llm2slm.types import UserError

ROWS = [[5, 9, 40, 200, 7, 1], [33, 1], [70, 71, 72, 73]]
DEPTH = {"t5": 2, "gpt2": 4, "llama": 4}


@pytest.fixture(scope="module", params=["t5", "gpt2", "llama"])
def kind_and_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=300, hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=1, attention_dropout=0.1, initializer_range=0.3,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    else:
        {"t5": write_tiny_t5, "gpt2": write_tiny_gpt2}[request.param](folder, width=24)
    return request.param, folder


def padded(left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, ROWS))
    pads = [[0] * (width - len(row)) for row in ROWS]
    ids = [p + row if left else row + p for p, row in zip(pads, ROWS, strict=True)]
    ones = [p + [1] * len(row) if left else [1] * len(row) + p for p, row in zip(pads, ROWS, strict=True)]
    return torch.tensor(ids), torch.tensor(ones)


def oracle(kind: str, folder: Path, layer: int) -> list[Tensor]:
    """The output of transformers for each row alone."""
    model = (T5EncoderModel if kind == "t5" else AutoModel).from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = [model(torch.tensor([row]), output_hidden_states=True) for row in ROWS]
    return [(o.last_hidden_state if layer == DEPTH[kind] else o.hidden_states[layer])[0] for o in outputs]


@pytest.mark.parametrize("left", representatives([True, False], [True]))
@pytest.mark.parametrize("layer", representatives([None, 0, 1, 2, -1, -2], [None, 0, 2]))
def test_each_layer_equals_that_of_transformers(kind_and_folder, layer, left) -> None:
    kind, folder = kind_and_folder
    depth = DEPTH[kind]
    absolute = layer
    if layer is None:
        absolute = depth if kind == "t5" else depth // 2
    elif layer < 0:
        absolute = depth + 1 + layer
    encoder = FrozenEncoder(AutoModel.from_pretrained(folder), layer)
    assert (encoder.width, encoder.layers) == (24, [absolute])
    ids, mask = padded(left)
    reps = encoder(ids, mask)
    assert reps.mask_BP is mask
    for b, expected in enumerate(oracle(kind, folder, absolute)):
        torch.testing.assert_close(reps.reps_BPE[b][mask[b] == 1], expected, rtol=1e-5, atol=1e-5)
        assert reps.reps_BPE[b][mask[b] == 0].abs().sum() == 0


def test_blocks_above_the_layer_are_not_kept(kind_and_folder) -> None:
    kind, folder = kind_and_folder
    blocks = {"gpt2": "h", "llama": "layers", "t5": "block"}[kind]
    for layer, kept in [(0, 1), (1, 1), (2, 2)] if kind == "t5" else [(0, 1), (1, 1), (2, 2), (4, 4)]:
        assert len(getattr(FrozenEncoder(AutoModel.from_pretrained(folder), layer).body, blocks)) == kept


def test_the_encoder_stays_in_eval_mode_and_has_no_gradient(kind_and_folder) -> None:
    _, folder = kind_and_folder
    encoder = FrozenEncoder(AutoModel.from_pretrained(folder).train())
    parent = torch.nn.ModuleList([encoder]).train()
    assert parent.training
    assert not any(module.training for module in encoder.modules())
    ids, mask = padded(left=False)
    first, second = encoder(ids, mask).reps_BPE, encoder(ids, mask).reps_BPE
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("beyond", [1, -2])
def test_an_unknown_layer_is_refused(kind_and_folder, beyond) -> None:
    kind, folder = kind_and_folder
    depth = DEPTH[kind]
    layer = depth + 1 if beyond == 1 else -depth - 2
    with pytest.raises(UserError, match=f"model.llm.layer={layer}: the LLM has layers 0 to {depth}"):
        FrozenEncoder(AutoModel.from_pretrained(folder), layer)
