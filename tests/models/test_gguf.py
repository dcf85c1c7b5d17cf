"""Models in GGUF files: config, tokenizer and weights against a transformers model with the dequantized weights."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_models import TEMPLATE, gguf_vocabulary, hidden_states, write_gguf
from sampling import representatives
from transformers import AutoModelForCausalLM, PreTrainedModel

from llm2slm.config import LLMConfig, ModelConfig, SLMConfig
from llm2slm.data.tokenization.tokenizer import load_tokenizer
from llm2slm.gguf_files.header import read_header
from llm2slm.gguf_files.names import find, on_hub
from llm2slm.models.build import build_llm, build_model
from llm2slm.models.encoder import fingerprint
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.llm import found_as
from llm2slm.models.loading.configs import read_config
from llm2slm.models.loading.gguf import plain_tensors, weights_in
from llm2slm.models.loading.pretrained import load_encoder, load_language_model
from llm2slm.models.saving import own_fingerprint
from llm2slm.models.stored_encoder import settings_hash, weights_hash
from llm2slm.testing import labelled, tiny_tokenizer, write_tiny
from llm2slm.types import Tokenizers, UserError

ROWS = [[5, 9, 40, 200, 7, 1], [33, 1], [70, 71, 72, 73]]
FILES = [("llama", "Q8_0"), ("llama", "Q4_0"), ("llama", "F16"), ("qwen2", "Q8_0"), ("qwen2", "BF16")]


@pytest.fixture(scope="module", params=FILES, ids="-".join)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return path, write_gguf(path, *request.param)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "m" / "model.gguf")
    return tmp_path / "m" / "model.gguf"


def padded(rows: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ids = [p + r if left else r + p for p, r in zip(pads, rows, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p) for p, r in zip(pads, rows, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("layer", representatives([0, 1, 0.5, -1, [1, 3]], [1, [1, 3]]), ids=str)
def test_every_layer_equals_that_of_the_dequantized_model(written, layer) -> None:
    path, oracle = written
    encoder = load_encoder(LLMConfig(name=str(path), layer=layer), gguf_vocabulary())
    for left in (False, True):
        ids, mask = padded(ROWS, left)
        found = encoder(ids, mask).reps_BPE
        wanted = [hidden_states(oracle, ROWS, number) for number in encoder.layers]
        for b in range(len(ROWS)):
            expected = torch.cat([states[b] for states in wanted], -1)
            torch.testing.assert_close(found[b][mask[b] == 1], expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_whole_model_has_the_weights_and_logits_of_the_dequantized_one(written, tmp_path: Path) -> None:
    path, oracle = written
    model = load_language_model(SLMConfig(name=str(path)), gguf_vocabulary())
    own, wanted = model.state_dict(), oracle.state_dict()
    assert own.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(own[name], tensor, rtol=0, atol=1e-6 if "norm" in name else 0)
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, oracle(ids).logits, rtol=1e-5, atol=1e-5)
    # a plain model from here on: it is trained, and saved as a transformers folder
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_the_dtype_is_applied(written) -> None:
    path, oracle = written
    encoder = load_encoder(LLMConfig(name=str(path), layer=2, dtype="bfloat16"), gguf_vocabulary())
    own = dict(encoder.body.named_parameters())
    for name, tensor in own.items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, oracle.model.get_parameter(name).bfloat16())


def test_only_the_used_tensors_are_dequantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "model.gguf", "llama", "Q8_0")
    shapes: list[tuple[int, ...]] = []
    plain = gguf.dequantize
    monkeypatch.setattr(
        gguf, "dequantize", lambda data, kind: shapes.append(plain(data, kind).shape) or plain(data, kind)
    )
    encoder = load_encoder(LLMConfig(name=str(tmp_path / "model.gguf"), layer=1), gguf_vocabulary())
    # embeddings, final norm, and of one block: two norms, four matrices of attention, three of the MLP
    assert len(shapes) == 2 + 9 and len(list(encoder.parameters())) == 2 + 9
    assert shapes.count((len(gguf_vocabulary()), 64)) == 1  # the head, untied in this model, has the same shape


def test_patched_functions_of_transformers_are_restored(written) -> None:
    from transformers import modeling_gguf_pytorch_utils as loader

    before = gguf.GGUFReader, gguf.get_tensor_name_map, loader.tqdm
    load_encoder(LLMConfig(name=str(written[0]), layer=1), gguf_vocabulary())
    assert (gguf.GGUFReader, gguf.get_tensor_name_map, loader.tqdm) == before


def test_the_config_equals_that_of_transformers_reader(written) -> None:
    """Read by transformers, without the patches of this package."""
    from transformers import AutoConfig

    path, _ = written
    whole = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    own = read_config(str(path)).to_dict()
    for config in (whole, own):
        config.pop("_name_or_path", None)
    assert own == whole and own["vocab_size"] == len(gguf_vocabulary())


def test_tokenizer_and_chat_template_are_read_from_the_file(written) -> None:
    path, _ = written
    tokenizer, wanted = load_tokenizer(str(path)), gguf_vocabulary()
    assert tokenizer.is_fast and tokenizer.get_vocab() == wanted.get_vocab()
    assert (tokenizer.eos_token, tokenizer.pad_token) == (wanted.eos_token, wanted.pad_token)
    assert tokenizer.chat_template == TEMPLATE
    text = "the little dog sees it"
    assert tokenizer(text).input_ids[:5] == wanted(text).input_ids[:5]
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.name_or_path == str(path)


def test_the_tokenizer_of_another_model_next_to_the_file_is_not_used(file: Path) -> None:
    other = write_tiny("gpt2", file.parent.parent / "other", vocabulary="slm")
    for path in other.iterdir():
        shutil.copy(path, file.parent / path.name)
    assert load_tokenizer(str(file)).get_vocab() == gguf_vocabulary().get_vocab()
    assert read_config(str(file)).model_type == "llama"


def test_answers_of_an_llm_alone_equal_those_of_the_dequantized_model(written) -> None:
    path, oracle = written
    model = build_llm(LLMConfig(name=str(path)))
    batch = model.collator.batch_of_texts(["the little dog"])
    found = model.generate(batch, max_new_tokens=6, min_new_tokens=6)
    wanted = oracle.generate(
        batch.slm_ids_BQ, attention_mask=batch.slm_mask_BQ, max_new_tokens=6, min_new_tokens=6, do_sample=False
    )
    assert found[0].tolist() == wanted[0, batch.slm_ids_BQ.shape[1] :].tolist()
    assert not model.trainable_names()


def test_from_pretrained_loads_a_file_like_a_folder(written) -> None:
    path, oracle = written
    model = LLM2SLM.from_pretrained(path)
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        torch.testing.assert_close(model.slm(ids).logits, oracle(ids).logits, rtol=1e-5, atol=1e-5)


# Names


def hybrid_config(llm: LLMConfig, slm: str) -> ModelConfig:
    return ModelConfig(llm=llm, slm=SLMConfig(name=slm), conditioning="add", tokenizers=Tokenizers.offsets)


@pytest.fixture
def slm(tmp_path: Path) -> str:
    return str(write_tiny("gpt2", tmp_path / "slm", seed=3, vocabulary="slm"))


def logits(model: LLM2SLM) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().logits(labelled(model, [0, 1, 2]))


def test_a_saved_hybrid_finds_its_file(file: Path, slm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    model = build_model(hybrid_config(LLMConfig(name="model.gguf", layer=2), slm))
    model.save_pretrained(tmp_path / "saved")
    record = json.loads((tmp_path / "saved" / "config.json").read_text())["llm"]
    assert record["name"] == str(file.resolve()) and "gguf_file" not in record
    monkeypatch.chdir(tmp_path)
    again = LLM2SLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))
    moved = tmp_path / "elsewhere" / "renamed.gguf"
    moved.parent.mkdir()
    shutil.move(file, moved)
    with pytest.raises(UserError, match=r"no such file.*llm=PATH"):
        LLM2SLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(LLM2SLM.from_pretrained(tmp_path / "saved", llm=moved)), logits(model))
    write_gguf(file, seed=9)
    with pytest.raises(UserError, match="is not the one it was trained with: its weights"):
        LLM2SLM.from_pretrained(tmp_path / "saved")


def test_with_llm_saves_the_used_part_dequantized(file: Path, slm: str, tmp_path: Path) -> None:
    model = build_model(hybrid_config(LLMConfig(name=str(file), layer=1), slm))
    model.save_pretrained(tmp_path / "saved", with_llm=True)
    file.unlink()
    config = json.loads((tmp_path / "saved" / "llm" / "config.json").read_text())
    assert "quantization_config" not in config
    again = LLM2SLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))


def test_a_folder_with_the_same_weights_is_the_same_llm(file: Path, slm: str, tmp_path: Path) -> None:
    """The fingerprint is that of the weights, not of the file."""
    model = build_model(hybrid_config(LLMConfig(name=str(file), layer=2), slm))
    model.save_pretrained(tmp_path / "saved")
    load_language_model(SLMConfig(name=str(file)), gguf_vocabulary()).save_pretrained(tmp_path / "folder")
    assert torch.equal(logits(LLM2SLM.from_pretrained(tmp_path / "saved", llm=tmp_path / "folder")), logits(model))


def test_a_file_in_a_folder_is_given_by_gguf_file(file: Path) -> None:
    cfg = LLMConfig(name=str(file.parent), gguf_file="model.gguf")
    assert cfg.source == str(file) and found_as(cfg)["name"] == str(file.resolve())
    assert read_config(str(cfg.source)).model_type == "llama"


def test_a_file_on_the_hub_is_recorded_by_its_commit(
    file: Path, slm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, commit = tmp_path / "cache", "a" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    place = cache / "models--someone--llm"
    (place / "snapshots" / commit / "q8").mkdir(parents=True)
    shutil.copy(file, place / "snapshots" / commit / "q8" / "model.gguf")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    model = build_model(hybrid_config(LLMConfig(name="someone/llm", gguf_file="q8/model.gguf", layer=2), slm))
    record = dict(model.config.llm or {})
    assert (record["name"], record["gguf_file"], record["revision"]) == ("someone/llm", "q8/model.gguf", commit)
    model.save_pretrained(tmp_path / "saved")
    (place / "refs" / "main").write_text("b" * 40)  # the branch has a newer commit
    assert torch.equal(logits(LLM2SLM.from_pretrained(tmp_path / "saved")), logits(model))


def test_local_paths_and_hub_names_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert on_hub("me/repo/a.gguf") == ("me/repo", "a.gguf")
    assert on_hub("me/repo/sub/a.gguf") == ("me/repo", "sub/a.gguf")
    for local in ("a.gguf", "./me/repo/a.gguf", "/me/repo/a.gguf", "~/x/y/a.gguf"):
        assert on_hub(local) is None
    (tmp_path / "me" / "repo").mkdir(parents=True)
    assert on_hub("me/repo/a.gguf") is None


# Stores of representations


def test_a_store_identifies_weights_and_settings_of_a_file(file: Path, tmp_path: Path) -> None:
    weights, settings = weights_hash(str(file)), settings_hash(str(file))
    assert weights is not None and settings is not None
    copy = tmp_path / "copy.gguf"
    shutil.copy(file, copy)
    assert settings_hash(str(copy)) == settings
    data = bytearray(file.read_bytes())
    tensor = read_header(file).tensors[1]
    data[tensor.start + 40] ^= 1
    file.write_bytes(data)
    assert weights_hash(str(file)) != weights and settings_hash(str(file)) == settings
    at = bytes(data).index(b"llama.rope.freq_base") + len("llama.rope.freq_base") + 4
    data[at + 2] ^= 1
    file.write_bytes(data)
    assert settings_hash(str(file)) != settings


# Errors


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"PK\x03\x04" + data[4:], "is no GGUF file"),
        (lambda data: b"", "is no GGUF file"),
        (lambda data: data[:10], "is cut off"),
        (lambda data: data[:3000], "is cut off"),
        (lambda data: data[:-100], "is cut off"),
        (lambda data: data[:4] + b"\x00\x00\x00\x03" + data[8:], "version 50331648 of the GGUF format"),
        (lambda data: data.replace(b"llama", b"lamma"), "transformers cannot read the architecture 'lamma'"),
    ],
)
def test_an_unreadable_file_is_reported_on_one_line(file: Path, damage: Callable[[bytes], bytes], words) -> None:
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=words) as caught:
        read_config(str(file))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_one_of_several_parts_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a-00001-of-00003.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="one of 3 parts"):
        read_config(str(tmp_path / "a-00001-of-00003.gguf"))


def test_a_file_without_a_vocabulary_needs_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, vocabulary=False)
    with pytest.raises(UserError, match="no vocabulary; name the folder or Hub id of its tokenizer"):
        load_tokenizer(str(path))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named_on_one_line(file: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else found(name, *more)
    )
    for load in (read_config, load_tokenizer):
        with pytest.raises(UserError, match=f"is read with the package {package}: pip install {package}$"):
            load(str(file))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gguf_file": "a.gguf"}, "model.llm.gguf_file=a.gguf: needs model.llm.name"),
        ({"name": "me/llm", "gguf_file": "a.bin"}, "must end in .gguf"),
        ({"name": "x.gguf", "gguf_file": "a.gguf"}, "leave one of them out"),
    ],
)
def test_invalid_names_of_a_file_are_refused(values: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _ = LLMConfig(**values).source


def test_a_missing_file_and_a_second_quantization_are_refused(file: Path) -> None:
    for name in ("nope.gguf", str(file.parent / "nope.gguf")):
        with pytest.raises(UserError, match="no such file"):
            read_config(name)
    with pytest.raises(UserError, match="is quantized already"):
        load_encoder(
            LLMConfig(name=str(file), quantization={"quant_method": "quanto", "weights": "int8"}), tiny_tokenizer()
        )


def test_the_cost_of_unpacking_is_reported_if_nothing_is_trained(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_language_model(SLMConfig(name=str(file)), gguf_vocabulary())
    assert "unpacked" not in capsys.readouterr().err
    load_encoder(LLMConfig(name=str(file), layer=1), gguf_vocabulary())
    told = capsys.readouterr().err
    assert told.count("llm2slm: ") == 1
    assert "model.gguf: its Q8_0 weights were unpacked to float32, because transformers has no packed layers" in told
    write_gguf(file, kind="F16")
    load_encoder(LLMConfig(name=str(file), layer=1), gguf_vocabulary())
    assert "unpacked" not in capsys.readouterr().err


# Packed


class FakeKernel:
    """A kernel with the interface of transformers, which unpacks with torch: packed layers run on a CPU."""

    def supports(self, kind: int) -> bool:
        return True

    def mul_mat_vec(self, weight: Any, x: Any, kind: int, rows: int) -> Any:
        from transformers.integrations.gguf.dequant import dequantize

        return x @ dequantize(weight, kind, x.dtype).reshape(rows, -1).T


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, PreTrainedModel]:
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_conversion_mapping")
    if "lfm2" not in mapping.GGUF_ARCHS:
        pytest.skip("this version of transformers packs no architecture that the test can write")
    from transformers.integrations.gguf import kernels

    monkeypatch.setattr(kernels, "_gguf_kernel", FakeKernel())
    return tmp_path / "model.gguf", write_gguf(tmp_path / "model.gguf", "lfm2", "Q8_0")


def test_weights_stay_packed_if_a_kernel_is_available(packed, capsys: pytest.CaptureFixture[str]) -> None:
    path, oracle = packed
    cfg = LLMConfig(name=str(path), layer=2)
    encoder = load_encoder(cfg, gguf_vocabulary())
    assert "unpacked" not in capsys.readouterr().err
    blocks = [p for p in encoder.parameters() if p.dtype == torch.uint8]
    assert len(blocks) == 1 + 2 + 4 + 2 * 3  # embeddings; a convolution's two, attention's four; three of each MLP
    for left in (False, True):
        ids, mask = padded(ROWS, left)
        found = encoder(ids, mask).reps_BPE
        for b, wanted in enumerate(hidden_states(oracle, ROWS, 2)):
            torch.testing.assert_close(found[b][mask[b] == 1], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.embed(ids), oracle.get_input_embeddings()(ids))


def test_fingerprint_and_size_are_independent_of_packing(packed, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.gguf import kernels

    path, _ = packed
    cfg = LLMConfig(name=str(path), layer=2)
    encoder = load_encoder(cfg, gguf_vocabulary())
    monkeypatch.setattr(kernels, "_gguf_kernel", False)
    plain = load_encoder(cfg, gguf_vocabulary())
    assert not any(parameter.dtype == torch.uint8 for parameter in plain.parameters())
    ids, mask = padded(ROWS, left=True)
    torch.testing.assert_close(encoder(ids, mask).reps_BPE, plain(ids, mask).reps_BPE, rtol=1e-4, atol=1e-4)
    assert {name for name, _ in plain_tensors(encoder.body)} == plain.body.state_dict().keys()
    assert encoder.fingerprint() == plain.fingerprint()
    assert sum(n for _, n in weights_in(encoder)) == sum(p.numel() for p in plain.parameters())


def own_named(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """A model's tensors; a tied one is listed under its first name only."""
    return [(name, tensor) for name, tensor in model.state_dict().items() if name != "lm_head.weight"]


def test_trained_weights_are_unpacked(packed, capsys: pytest.CaptureFixture[str]) -> None:
    path, oracle = packed
    model = load_language_model(SLMConfig(name=str(path)), gguf_vocabulary())
    assert all(parameter.is_floating_point() for parameter in model.parameters())
    for name, tensor in oracle.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=1e-6)
    assert "unpacked" not in capsys.readouterr().err
    alone = build_llm(LLMConfig(name=str(path)))
    assert any(parameter.dtype == torch.uint8 for parameter in alone.slm.parameters())
    assert own_fingerprint(alone) == fingerprint((f"slm.{name}", tensor) for name, tensor in own_named(oracle))
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        torch.testing.assert_close(alone.slm(ids).logits, oracle(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_file_is_found_by_an_extension_in_upper_case(file: Path) -> None:
    upper = file.with_name("M.GGUF")
    shutil.move(file, upper)
    assert find(str(upper)) == upper.resolve()
    assert sys.getsizeof(read_config(str(upper)))
