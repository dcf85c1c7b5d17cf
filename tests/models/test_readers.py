"""Encoders of every architecture against complete transformers models; only the used part is built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sampling import representatives
from transformers import AutoModel, PreTrainedModel, T5Config, T5ForConditionalGeneration

from llm2slm.config import LLMConfig
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.loading.partial_loading import chosen_layers
from llm2slm.models.loading.pretrained import load_encoder
from llm2slm.testing import ARCHITECTURES, tiny_tokenizer, write_tiny
from llm2slm.types import UserError

ROWS = [[5, 9, 40, 200, 7, 1], [33, 1], [70, 71, 72, 73]]
BOTH_WAYS = {"t5", "flan", "mt5", "umt5", "bart", "mbart", "pegasus", "t5gemma", "bert", "modernbert"}
DEPTH = {"bert": 3, "modernbert": 3} | dict.fromkeys(BOTH_WAYS - {"bert", "modernbert"}, 2)


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, write_tiny(request.param, tmp_path_factory.mktemp(request.param))


def read(folder: Path, **values: object) -> FrozenEncoder:
    return load_encoder(LLMConfig(name=str(folder), **values), tiny_tokenizer())  # type: ignore[arg-type]


def whole(folder: Path) -> PreTrainedModel:
    """The encoding part of the complete transformers model."""
    model = AutoModel.from_pretrained(folder).eval()
    return model.get_encoder() if model.config.is_encoder_decoder else model


@pytest.mark.parametrize("layer", representatives([None, 0, 1, 2, -1, 0.5, [0, 2, -1]], [[0, 2, -1]]), ids=str)
def test_every_layer_equals_that_of_transformers(named, layer) -> None:
    name, folder = named
    if name in BOTH_WAYS and layer == [0, 2, -1]:
        layer = [0, -1]
    encoder, oracle, depth = read(folder, layer=layer), whole(folder), DEPTH.get(name, 4)
    numbers = {None: [depth if name in BOTH_WAYS else 2], -1: [depth], 0.5: [round(depth / 2)]}
    numbers |= {0: [0], 1: [1], 2: [2]}
    expected = numbers[layer] if not isinstance(layer, list) else [depth if n == -1 else n for n in layer]
    assert encoder.layers == expected
    for left in (False, True):
        width = max(map(len, ROWS))
        pads = [[0] * (width - len(row)) for row in ROWS]
        ids = torch.tensor([p + r if left else r + p for p, r in zip(pads, ROWS, strict=True)])
        mask = torch.tensor([p + [1] * len(r) if left else [1] * len(r) + p for p, r in zip(pads, ROWS, strict=True)])
        reps = encoder(ids, mask).reps_BPE
        for b, row in enumerate(ROWS):
            with torch.no_grad():
                output = oracle(torch.tensor([row]), output_hidden_states=True)
            wanted = [output.last_hidden_state if n == depth else output.hidden_states[n] for n in expected]
            torch.testing.assert_close(reps[b][mask[b] == 1], torch.cat(wanted, -1)[0], rtol=1e-4, atol=1e-4)
            assert reps[b][mask[b] == 0].abs().sum() == 0


def test_representations_depend_on_the_tokens_and_their_order(named) -> None:
    """Otherwise the comparison above would pass on weights without effect."""
    _, folder = named
    encoder, mask = read(folder), torch.ones(1, 3, dtype=torch.int64)
    one, other = (encoder(torch.tensor([ids]), mask).reps_BPE for ids in ([9, 40, 200], [40, 9, 200]))
    assert (one[0, -1] - other[0, -1]).abs().max() > 1e-3


def test_bidirectional_attention_is_detected_by_the_masks(named) -> None:
    name, folder = named
    encoder, mask = read(folder, layer=-1), torch.ones(1, 3, dtype=torch.int64)
    one, other = (encoder(torch.tensor([ids]), mask).reps_BPE for ids in ([9, 40, 200], [9, 40, 7]))
    sees_ahead = bool((one[0, 0] - other[0, 0]).abs().max() > 1e-6)
    assert sees_ahead == (name in BOTH_WAYS) == (not encoder.decoder_only)


@pytest.mark.parametrize("layer", representatives([0, 1, -1], [1]))
def test_only_the_used_part_is_built_and_it_has_the_saved_weights(named, layer) -> None:
    name, folder = named
    encoder, oracle = read(folder, layer=layer), dict(whole(folder).named_parameters())
    kept = DEPTH.get(name, 4) if layer == -1 else 1
    stack = {"gpt2": "h", "bert": "encoder.layer", "opt": "decoder.layers"}
    stack |= dict.fromkeys(("t5", "flan", "mt5", "umt5"), "block")
    prefix = f"{stack.get(name, 'layers')}."

    def is_read(tensor: str) -> bool:
        if tensor.startswith(prefix):
            return int(tensor.removeprefix(prefix).partition(".")[0]) < kept
        return not tensor.startswith("pooler.")

    expected = {tensor for tensor in oracle if is_read(tensor)}
    own = dict(encoder.body.named_parameters())
    assert own.keys() == expected
    assert sum(p.numel() for p in encoder.parameters()) == sum(oracle[t].numel() for t in expected)
    saved = list(load_file(folder / "model.safetensors").values())
    for tensor, value in own.items():
        assert any(value.shape == other.shape and torch.equal(value, other) for other in saved), tensor


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (5, r"model.llm.layer=5: the LLM has layers 0 to 4 \(or -5 to -1\)"),
        (-6, "model.llm.layer=-6: the LLM has layers 0 to 4"),
        (1.5, "model.llm.layer=1.5: give a whole number, a fraction"),
        ("last", "model.llm.layer=last: give a whole number"),
        (True, "model.llm.layer=True: give a whole number"),
        ([], "at least one layer"),
        ([2, 0.5], r"none twice \(they are \[2, 2\]\)"),
    ],
)
def test_invalid_layers_are_refused(layer, message) -> None:
    with pytest.raises(UserError, match=message):
        chosen_layers(layer, 4, bidirectional=False)


def test_layers_are_chosen_by_fraction() -> None:
    assert chosen_layers([0.0, 0.25, 0.6, 1.0], 8, bidirectional=True) == [0, 2, 5, 8]
    assert chosen_layers(1, 8, bidirectional=True) == [1]  # an integer is a number of a layer, never a fraction


def test_an_encoder_with_a_missing_tensor_is_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    folder = write_tiny("bert", tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its weights do not fit its config, as encoder.layer.1.output.dense.weight"):
        read(folder)
    read(folder, layer=1)  # this block is not used


def test_attention_implementation_is_passed_on(tmp_path) -> None:
    folder = write_tiny("llama", tmp_path / "llama")
    eager, own = read(folder, attn_implementation="eager"), read(folder)
    assert eager.body.config._attn_implementation == "eager" != own.body.config._attn_implementation
    ids, mask = torch.tensor([ROWS[0]]), torch.ones(1, 6, dtype=torch.int64)
    torch.testing.assert_close(eager(ids, mask).reps_BPE, own(ids, mask).reps_BPE, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"cannot be read.*nonsense"):
        read(folder, attn_implementation="nonsense")


# Quantization


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_a_quantized_encoder_is_close_and_its_matrices_are_int8(tmp_path, name) -> None:
    pytest.importorskip("optimum.quanto")
    folder = write_tiny(name, tmp_path / name)
    quantized = read(folder, quantization={"quant_method": "quanto", "weights": "int8"})
    plain = read(folder)
    linear = [m for m in quantized.modules() if type(m).__name__ == "QLinear"]
    kept = 2 if name == "t5" else 0  # transformers does not quantize T5's `wo`
    assert len(linear) == sum(isinstance(m, torch.nn.Linear) for m in plain.modules()) - kept > 0
    assert all(m.weight._data.dtype == torch.int8 for m in linear)
    ids, mask = torch.tensor([ROWS[0]]), torch.ones(1, 6, dtype=torch.int64)
    one, other = quantized(ids, mask).reps_BPE, plain(ids, mask).reps_BPE
    assert 0 < float((one - other).norm() / other.norm()) < 0.05
    assert not any(p.requires_grad for p in quantized.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quant_method": "quantoo"}, "quant_method=quantoo is unknown; nearest: quanto"),
        ({"weights": "int8"}, "quant_method=None is unknown"),
        ({"quant_method": "quanto", "weights": "int7"}, "quanto: .*int8"),
        ({"quant_method": "eetq", "weights": "int8"}, "cannot be read: .*EETQ"),
    ],
)
def test_unsupported_quantization_is_refused(tmp_path, values, message) -> None:
    folder = write_tiny("t5", tmp_path / "t5")
    with pytest.raises(UserError, match=message):
        read(folder, quantization=values)


# Memory

PEAK = """
import json, sys
from llm2slm.config import LLMConfig
from llm2slm.evaluation.benchmark.peak_memory import peak_resident_mb
from llm2slm.models.loading.pretrained import load_encoder
from llm2slm.testing import tiny_tokenizer
import transformers.models.t5.modeling_t5, torch
tokenizer = tiny_tokenizer()
torch.zeros(8, 8) @ torch.zeros(8, 8)
before = peak_resident_mb()
encoder = load_encoder(LLMConfig(name=sys.argv[1]), tokenizer)
ids = torch.tensor([[5, 9, 40, 1]])
encoder(ids, torch.ones_like(ids))  # loading maps the file; a weight takes memory when it is first used
print(json.dumps([1e6 * (peak_resident_mb() - before), sum(p.nbytes for p in encoder.parameters())]))
"""


@pytest.mark.slow
def test_peak_memory_of_loading_is_that_of_the_encoder(tmp_path) -> None:
    config = T5Config(vocab_size=512, d_model=768, d_kv=64, d_ff=3072, num_layers=6, num_decoder_layers=6)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], check=True, capture_output=True, text=True)
    peak, weights = json.loads(done.stdout.splitlines()[-1])
    assert weights > 150e6
    assert 0.9 * weights < peak < 1.1 * weights + 20e6
