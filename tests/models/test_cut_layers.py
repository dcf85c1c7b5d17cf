"""An SLM cut from a pretrained one, against a transformers model whose blocks are deleted by hand."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from deep_models import DEPTH, LLAMA, ONE_STACK, TWO_STACKS, WINDOWS, write
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sampling import representatives
from tiny_runs import tiny_run
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm2slm.commands.train import run as train
from llm2slm.config import LLMConfig, SLMConfig
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.loading.configs import read_config
from llm2slm.models.loading.cut_config import chosen_blocks
from llm2slm.models.loading.pretrained import load_language_model
from llm2slm.testing import tiny_model_config, tiny_rows, tiny_tokenizer
from llm2slm.types import Init, SystemKind, Tokenizers, UserError

STACKS = {"gpt2": "transformer.h", "pythia": "gpt_neox.layers", "opt": "model.decoder.layers"} | dict.fromkeys(
    ("gpt_neo", "gptj", "bloom", "falcon"), "transformer.h"
)
"""Paths of the blocks; otherwise model.layers, or encoder.block or model.encoder.layers of an encoder-decoder."""
DEPTH_KEYS = {"gpt2": "n_layer", "gptj": "n_layer", "bloom": "n_layer", "gpt_neo": "num_layers"}
PER_BLOCK = ("layer_types", "no_rope_layers", "attention_layers", "mlp_layer_types")


def by_hand(folder: Path, family: str, kept: dict[str, list[int]]) -> PreTrainedModel:
    """The transformers model at full depth, from which all other blocks are deleted.

    Args:
        kept: side ("" of a decoder-only model) -> 0-based numbers.
    """
    sided = family in TWO_STACKS
    model = (AutoModelForSeq2SeqLM if sided else AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32)
    for side, numbers in kept.items():
        t5 = family in ("t5", "flan", "mt5", "umt5", "longt5")
        path = f"{side}.block" if t5 else f"model.{side}.layers" if sided else STACKS.get(family, "model.layers")
        stack = model.get_submodule(path)
        assert isinstance(stack, nn.ModuleList)
        if t5 and family != "umt5" and numbers[0] != 0:
            name = next(n for n in ("SelfAttention", "LocalSelfAttention") if hasattr(stack[0].layer[0], n))
            first, other = (getattr(stack[i].layer[0], name) for i in (0, numbers[0]))
            other.relative_attention_bias, other.has_relative_attention_bias = first.relative_attention_bias, True
        setattr(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2],
                nn.ModuleList([stack[i] for i in numbers]))  # fmt: skip
        for number, block in enumerate(model.get_submodule(path)):
            for module in block.modules():
                for name in ("layer_idx", "layer_id"):
                    if hasattr(module, name):
                        setattr(module, name, number)
        config = getattr(model.config, side) if family == "t5gemma" else model.config
        for key in PER_BLOCK:
            if getattr(config, key, None) is not None:
                setattr(config, key, [getattr(config, key)[i] for i in numbers])
        if family != "t5gemma" and sided:
            keys = {"encoder": ["num_layers"], "decoder": ["num_decoder_layers"]} if t5 else {
                "encoder": ["encoder_layers"], "decoder": ["decoder_layers"]}  # fmt: skip
        else:
            keys = {side: [DEPTH_KEYS.get(family, "num_hidden_layers")]}
        for key in keys[side]:
            setattr(config, key, len(numbers))
    if t5:
        model.config.decoder_layers = model.config.num_decoder_layers  # `generate` sizes its cache by it
    return model.eval()


def logits(model: PreTrainedModel) -> Tensor:
    """Of two rows of unequal length; the second one is padded."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 40, (2, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 40, (2, 9), generator=generator)
    with torch.no_grad():
        found: Tensor = model.eval()(**inputs).logits
    return found if model.config.is_encoder_decoder else torch.cat([found[0], found[1, :8]])


def written(model: PreTrainedModel) -> list[list[int]]:
    ids = torch.tensor([[5, 7, 9, 11, 30, 31, 32]])
    found: Tensor = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False
    )
    return found.tolist()  # type: ignore[no-any-return]


def cut(folder: Path, layers: Any, **more: Any) -> PreTrainedModel:
    return load_language_model(SLMConfig(name=str(folder), layers=layers, **more), tiny_tokenizer())


def refused(cfg: SLMConfig, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_language_model(cfg, tiny_tokenizer())
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a GPT-2."""
    return write("gpt2", tmp_path_factory.mktemp("cut"))


def check_saved(model: PreTrainedModel, oracle: PreTrainedModel, tmp_path: Path) -> None:
    """The saved folder is a plain one, which transformers alone loads; it computes and generates the same."""
    model.save_pretrained(tmp_path / "saved")
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    again, report = auto.from_pretrained(tmp_path / "saved", output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(logits(again), logits(oracle))
    assert written(again) == written(model) == written(oracle)


# Against a model cut by hand


@pytest.mark.parametrize("family", representatives(ONE_STACK, ["gpt2", "llama"]))
def test_a_decoder_only_model_is_cut_like_by_hand(tmp_path, family) -> None:
    folder = write(family, tmp_path / "whole")
    whole = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    for layers, kept in ((3, [0, 3, 5]), (1, [0]), ([3, -2], [2, 4])):
        model, oracle = cut(folder, layers), by_hand(folder, family, {"": kept})
        assert torch.equal(logits(model), logits(oracle))
        assert not torch.allclose(logits(model), whole, atol=1e-3)
        assert model.num_parameters() == oracle.num_parameters()
        assert model.config.llm2slm_cut == {"blocks": [number + 1 for number in kept], "depth": DEPTH}
    check_saved(model, oracle, tmp_path)


@pytest.mark.parametrize(
    "family",
    representatives(
        ["gpt2", "gemma3", "qwen2_windows", "smollm3", "gpt_neo", "deepseek_v3", "qwen3_moe"], ["gpt2", "gemma3"]
    ),
)
@pytest.mark.parametrize("side", [SLMConfig, LLMConfig])
def test_a_smaller_depth_in_the_config_keeps_the_first_blocks(tmp_path, family, side) -> None:
    """Pretrained and random weights: lists with a value per block are cut accordingly."""
    folder = write(family, tmp_path / "whole")
    depth = {"num_hidden_layers": 3}
    model = load_language_model(side(name=str(folder), config=depth), tiny_tokenizer())
    oracle = by_hand(folder, family, {"": [0, 1, 2]})
    assert torch.equal(logits(model), logits(oracle))
    drawn = load_language_model(side(name=str(folder), config=depth, init=Init.random), tiny_tokenizer())
    for key in PER_BLOCK:
        assert getattr(drawn.config, key, None) == getattr(oracle.config, key, None)
    check_saved(model, oracle, tmp_path)


def test_a_smaller_depth_of_a_cut_model_is_recorded(tmp_path) -> None:
    folder = write("llama", tmp_path / "whole")
    cut(folder, [2, 4, 5]).save_pretrained(tmp_path / "cut")
    model = cut(tmp_path / "cut", None, config={"num_hidden_layers": 2})
    assert model.config.llm2slm_cut == {"blocks": [2, 4], "depth": DEPTH}
    assert torch.equal(logits(model), logits(by_hand(folder, "llama", {"": [1, 3]})))


@pytest.mark.parametrize("family", representatives(TWO_STACKS, ["t5"]))
def test_an_encoder_decoder_is_cut_like_by_hand(tmp_path, family) -> None:
    folder = write(family, tmp_path / "whole")
    for layers, encoder, decoder in (
        (2, [0, 3], [0, 5]),
        ({"decoder": 0.5}, [0, 1, 2, 3], [0, 3, 5]),
        ({"encoder": [-1]}, [3], [0, 1, 2, 3, 4, 5]),
        ({"encoder": [2, 4], "decoder": [3, -2, -1]}, [1, 3], [2, 4, 5]),
    ):
        model, oracle = cut(folder, layers), by_hand(folder, family, {"encoder": encoder, "decoder": decoder})
        assert torch.equal(logits(model), logits(oracle))
        assert model.num_parameters() == oracle.num_parameters()
        assert model.config.llm2slm_cut == {
            "encoder": {"blocks": [number + 1 for number in encoder], "depth": 4},
            "decoder": {"blocks": [number + 1 for number in decoder], "depth": DEPTH},
        }
    check_saved(model, oracle, tmp_path)


def test_the_text_model_of_a_multimodal_model_is_cut(tmp_path) -> None:
    """Its depth is in a sub-config, and here its image encoder is equally deep."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
    text = sizes | {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 40, "initializer_range": 0.3} | WINDOWS
    vision = sizes | {"image_size": 28, "patch_size": 14}
    whole = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING["gemma3"](text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )
    whole.save_pretrained(tmp_path)
    model = cut(tmp_path, [2, 5, 6])
    assert len(model.model.language_model.layers) == 3 and len(list(model.model.vision_tower.parameters())) > 10
    whole.model.language_model.layers = nn.ModuleList([whole.model.language_model.layers[i] for i in (1, 4, 5)])
    whole.config.text_config.layer_types = ["full_attention", "full_attention", "sliding_attention"]
    ids = torch.randint(3, 40, (1, 12))
    with torch.no_grad():
        found, expected = (each.eval()(input_ids=ids, use_cache=False).logits for each in (model, whole))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("family", "layers"), [("t5", {"encoder": [2, 3], "decoder": [3, 6]}), ("mistral", [3, 6])])
def test_dtype_and_attention_implementation_are_kept(tmp_path, family, layers) -> None:
    folder = write(family, tmp_path)
    exact = logits(cut(folder, layers))
    model = cut(folder, layers, dtype="bfloat16", attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager" and not model.training
    found = logits(model).float()
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.1


# Only the kept blocks are read


class Noting:
    """Replaces safetensors files and their slices, as transformers opens them: records the tensors that are read."""

    def __init__(self, inner: Any, seen: set[str], name: str = "") -> None:
        self.inner, self.seen, self.name = inner, seen, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def get_slice(self, name: str) -> Noting:
        return Noting(self.inner.get_slice(name), self.seen, name)

    def __getitem__(self, key: Any) -> Tensor:
        self.seen.add(self.name)
        found: Tensor = self.inner[key]
        return found


@pytest.mark.parametrize("shard", representatives(["1GB", "8KB"], ["8KB"]))
@pytest.mark.parametrize(
    ("family", "layers", "unread"),
    [
        ("qwen3", 3, ("layers.1.", "layers.2.", "layers.4.")),
        ("t5", {"encoder": [2, 4], "decoder": [3]},
         ("encoder.block.0.", "encoder.block.2.", "decoder.block.0.", "decoder.block.1.", "decoder.block.3.",
          "decoder.block.4.", "decoder.block.5.")),
    ],
)  # fmt: skip
def test_tensors_of_other_blocks_are_not_read(tmp_path, monkeypatch, family, layers, unread, shard) -> None:
    folder = write(family, tmp_path)
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    auto.from_pretrained(folder).save_pretrained(folder, max_shard_size=shard)
    if shard == "8KB":
        (folder / "model.safetensors").unlink()
    assert (len(list(folder.glob("*.safetensors"))) > 3) == (shard == "8KB")
    seen: set[str] = set()
    monkeypatch.setattr("transformers.modeling_utils.safe_open", lambda *a, **k: Noting(safe_open(*a, **k), seen))
    load_language_model(SLMConfig(name=str(folder)), tiny_tokenizer())
    all_names = set(seen)
    seen.clear()
    cut(folder, layers)
    left = {name for name in all_names if any(part in name for part in unread)}
    bias = {name for name in left if "relative_attention_bias" in name}  # of the first block, for all blocks
    assert len(bias) == (2 if family == "t5" else 0)
    assert seen == all_names - (left - bias)
    assert len(left) > len(unread) and len(seen) > 5


# Valid and invalid values


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        (2, [1, 6]),
        (4, [1, 3, 4, 6]),
        (5, [1, 2, 4, 5, 6]),
        (0.1, [1, 6]),
        (0.5, [1, 4, 6]),
        (0.99, None),
        (6, None),
        (None, None),
        ([1, 2], [1, 2]),
        ([-3], [4]),
        ([-6, 3, -1], [1, 3, 6]),
    ],
    ids=str,
)
def test_layers_select_evenly_spaced_or_listed_blocks(zoo, layers, kept) -> None:
    found = getattr(cut(zoo, layers).config, "llm2slm_cut", None)
    assert found == (None if kept is None else {"blocks": kept, "depth": DEPTH})


def test_evenly_spaced_blocks_for_any_depth() -> None:
    for depth in range(2, 40):
        for count in range(2, depth + 1):
            found = chosen_blocks(count, GPT2Config(n_layer=depth))[""]
            ideal = [1 + i * (depth - 1) / (count - 1) for i in range(count)]
            assert len(found) == count and (found[0], found[-1]) == (1, depth)
            assert found == sorted(set(found))
            assert all(abs(number - wanted) <= 0.5 for number, wanted in zip(found, ideal, strict=True))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (0, "layers=0: the SLM has 6 blocks, so give 1 to 6"),
        (7, "layers=7: the SLM has 6 blocks, so give 1 to 6"),
        (-1, "layers=-1: the SLM has 6 blocks"),
        (1.0, "layers=1.0: give a whole number of blocks, a fraction between"),
        (0.0, "layers=0.0: give a whole number"),
        (True, "layers=True: give a whole number"),
        ("six", "layers=six: give a whole number"),
        ([], r"layers=\[\]: give one block or more"),
        ([0, 2], r"layers=\[0,2\]: 0: the SLM has blocks 1 to 6"),
        ([7], r"layers=\[7\]: 7: the SLM has blocks 1 to 6"),
        ([2, 0.5], r"layers=\[2,0.5\]: 0.5: the SLM has blocks"),
        ([3, 2], r"layers=\[3,2\]: give one block or more, in ascending order"),
        ([6, -1], r"layers=\[6,-1\]: .*none twice \(they are \[6, 6\]\)"),
        ({"decoder": 2}, "a gpt2 has one stack of blocks"),
    ],
    ids=str,
)
def test_values_that_select_no_blocks_are_refused(zoo, layers, words) -> None:
    refused(SLMConfig(name=str(zoo), layers=layers), words)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"encoder": 2, "deocder": 1}, "give encoder and decoder, not deocder"),
        ({}, "give encoder and decoder, not nothing"),
        ({"encoder": 5}, r"layers\.encoder=5: the encoder has 4 blocks"),
        ({"decoder": [7]}, r"layers\.decoder=\[7\]: 7: the decoder has blocks 1 to 6"),
        (5, "layers=5: the encoder has 4 blocks"),
    ],
    ids=str,
)
def test_values_that_select_no_blocks_of_an_encoder_decoder_are_refused(tmp_path, layers, words) -> None:
    refused(SLMConfig(name=str(write("t5", tmp_path)), layers=layers), words)


def test_blocks_are_selected_from_pretrained_weights_and_by_one_key_only(zoo) -> None:
    refused(
        SLMConfig(name=str(zoo), layers=2, init=Init.random), r"layers=2: .*init=random .*config \(n_layer, num_hid"
    )
    for key in ("n_layer", "num_hidden_layers"):
        refused(SLMConfig(name=str(zoo), layers=2, config={key: 3}), rf"layers=2 and model\.slm\.config\.{key}=3 both")
    whole = {"model_type": "gpt2", "n_layer": 2}
    refused(SLMConfig(layers=2, config=whole), "layers=2: .*init=random draws new weights")
    changed = load_language_model(SLMConfig(name=str(zoo), layers=2, config={"resid_pdrop": 0.7}), tiny_tokenizer())
    assert changed.config.resid_pdrop == 0.7 and changed.config.llm2slm_cut["blocks"] == [1, 6]


def test_a_cut_of_a_cut_model_records_blocks_of_the_original(zoo, tmp_path) -> None:
    first = cut(zoo, [1, 3, 5, 6])
    first.save_pretrained(tmp_path / "first")
    second = cut(tmp_path / "first", [2, -1])
    assert second.config.llm2slm_cut == {"blocks": [3, 6], "depth": DEPTH}
    assert torch.equal(logits(second), logits(cut(zoo, [3, 6])))
    whole = load_language_model(SLMConfig(name=str(tmp_path / "first")), tiny_tokenizer())
    assert whole.config.llm2slm_cut == {"blocks": [1, 3, 5, 6], "depth": DEPTH}
    drawn = load_language_model(SLMConfig(name=str(tmp_path / "first"), init=Init.random), tiny_tokenizer())
    assert drawn.config.n_layer == 4 and not hasattr(drawn.config, "llm2slm_cut")


def test_a_cut_of_a_cut_encoder_decoder_records_blocks_of_the_original(tmp_path) -> None:
    cut(write("t5", tmp_path / "whole"), {"encoder": [1, 3, 4]}).save_pretrained(tmp_path / "first")
    record = cut(tmp_path / "first", {"encoder": [2], "decoder": [4, 5]}).config.llm2slm_cut
    assert record == {"encoder": {"blocks": [3], "depth": 4}, "decoder": {"blocks": [4, 5], "depth": DEPTH}}


# Models that cannot be cut


@pytest.mark.parametrize(
    ("model_type", "values", "words"),
    [
        ("diffllama", LLAMA | {"num_key_value_heads": 2},
         r"block 3 of a diffllama .* self_attn\.lambda_init is 0\.\d+, and would be 0\.\d+"),
        ("gpt2", {"n_embd": 16, "n_layer": DEPTH, "n_head": 2, "scale_attn_by_inverse_layer_idx": True},
         r"block 3 of a gpt2 differs from block 2 .* attn\.scaling is .*keep other blocks"),
        ("jamba", LLAMA | {"num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
                           "attn_layer_period": 2, "attn_layer_offset": 1}, "a jamba cannot be cut so: model.layers.2"),
        ("lfm2", LLAMA | {"layer_types": ["conv", "full_attention", *4 * ["conv"]]},
         "no kept block of this lfm2 has full attention.*keep one of 2"),
        ("falcon_h1", LLAMA | {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4},
         "a falcon_h1 cannot be cut"),
    ],
)  # fmt: skip
def test_a_cut_that_would_change_the_computation_is_refused(tmp_path, model_type, values, words) -> None:
    tokens = {"vocab_size": 40, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    depth = {} if model_type == "gpt2" else {"num_hidden_layers": DEPTH}
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**tokens | values | depth)).save_pretrained(tmp_path)
    refused(SLMConfig(name=str(tmp_path), layers=[1, 3, 5]), words)


def test_periodic_block_kinds_are_cut_if_the_kept_blocks_follow_the_period(tmp_path) -> None:
    """Each kept block of a model with a period of two has the kind that its new number requires."""
    values = LLAMA | {"num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
    values |= {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": DEPTH, "vocab_size": 40}
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["jamba"](**values)).save_pretrained(tmp_path)
    model = cut(tmp_path, [1, 4, 5, 6])
    kinds = [type(block).__name__ for block in model.model.layers]
    assert kinds == 2 * ["JambaMambaDecoderLayer", "JambaAttentionDecoderLayer"]


def test_a_quantized_slm_is_not_cut(tmp_path) -> None:
    folder = write("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    refused(SLMConfig(name=str(folder), layers=2), r"layers=2: .* is quantized, and cannot be cut")


def test_a_missing_tensor_of_a_kept_block_is_refused(tmp_path) -> None:
    folder = write("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    cut(folder, [1, 2, 6])
    refused(SLMConfig(name=str(folder), layers=[1, 4]), rf"its weights do not fit its config, as {name}")


# The complete system


@pytest.mark.parametrize(
    ("kind", "slm"),
    representatives(
        [("llm2slm", "gpt2"), ("slm", "gpt2"), ("llm2slm", "t5")], [("llm2slm", "gpt2"), ("llm2slm", "t5")]
    ),
)
def test_a_system_with_a_cut_slm_is_built_saved_and_loaded(tmp_path, kind, slm) -> None:
    cfg = tiny_model_config(tmp_path, slm=slm, kind=SystemKind(kind))
    cfg.slm.layers = [1, 3] if slm == "gpt2" else {"decoder": [2]}
    record = {"blocks": [1, 3], "depth": 4}
    if slm == "t5":
        record = {"encoder": {"blocks": [1, 2], "depth": 2}, "decoder": {"blocks": [2], "depth": 3}}
    model = build_model(cfg).eval()
    assert model.config.slm.llm2slm_cut == record
    texts = [row["source"] for row in tiny_rows()]
    answers = model.generate_text(texts, max_new_tokens=8)
    model.save_pretrained(tmp_path / "saved")
    again = LLM2SLM.from_pretrained(tmp_path / "saved")
    assert again.generate_text(texts, max_new_tokens=8) == answers
    saved = read_config(str(tmp_path / "saved"))
    assert (saved if kind == "slm" else saved.slm).llm2slm_cut == record
    if kind == "slm":
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert len(alone.transformer.h) == 2 and alone.config.n_layer == 2


def test_new_layers_of_a_cut_slm_are_initialized(tmp_path) -> None:
    """Memory without the SLM's encoder, and new cross-attention: each kept block gets layers without saved weights."""
    cfg = tiny_model_config(tmp_path, slm="gpt2", conditioning="memory", tokenizers=Tokenizers.offsets)
    cfg.slm.layers = [2, 4]
    slm = build_model(cfg).slm
    assert [
        sorted({name.split(".")[0] for name, _ in block.named_parameters()}) for block in slm.transformer.h
    ] == 2 * [["attn", "crossattention", "ln_1", "ln_2", "ln_cross_attn", "mlp"]]
    assert all(parameter.isfinite().all() for parameter in slm.parameters())
    saved = load_file(Path(str(cfg.slm.name)) / "model.safetensors")
    assert torch.equal(slm.transformer.h[1].mlp.c_fc.weight, saved["transformer.h.3.mlp.c_fc.weight"])


def test_a_run_with_a_cut_slm_is_trained_resumed_and_evaluated(tmp_path) -> None:
    config = tiny_run(tmp_path, slm="gpt2", max_steps=4, val_every=2)
    config.model.slm.layers, config.model.slm.tune = 2, r"\.1\."  # frozen weights are read again on resuming
    train(deepcopy(config), tmp_path / "whole")
    stopped = deepcopy(config)
    stopped.trainer.max_steps = 2
    train(stopped, tmp_path / "parts")
    again = deepcopy(config)
    again.run = str(tmp_path / "parts")
    train(again, tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert sum(name.endswith("attn.c_attn.weight") for name in whole) == 2
    recorded = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text(encoding="utf-8"))
    assert recorded["model"]["slm"]["layers"] == 2
