"""A hybrid's folder: with and without the used part of its LLM, and with its model card; errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from sampling import representatives
from transformers import AutoModel

from llm2slm.models import saving
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import labelled, tiny_model_config, tiny_rows
from llm2slm.types import SystemKind, Tokenizers, UserError

TEXTS = [row["source"] for row in tiny_rows()]
EIGHT = {"max_new_tokens": 8, "min_new_tokens": 8}


def hybrid(folder: Path, llm: str = "t5", **reader: Any) -> LLM2SLM:
    config = tiny_model_config(folder, llm, "gpt2", tokenizers=Tokenizers.offsets)
    for key, value in reader.items():
        setattr(config.llm, key, value)
    torch.manual_seed(2)
    return build_model(config).eval()


def logits(model: LLM2SLM) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(labelled(model, [0, 1, 2]))


def numbers(path: Path) -> dict[str, int]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118  not a mapping


@pytest.mark.parametrize(
    ("llm", "reader", "gone"),
    representatives(
        [
            ("t5", {}, "decoder."),
            ("bart", {}, "decoder."),
            ("t5gemma", {}, "decoder."),
            ("bert", {}, "pooler."),
            ("gpt2", {"layer": 2}, "h.2."),
            ("llama", {"layer": [1, 0.5]}, "layers.2."),
            ("gemma2", {"layer": -2}, "layers.3."),
            ("pythia", {"layer": 0}, "layers.1."),
        ],
        lambda case: case[0] in ("t5", "bert", "llama"),
    ),
)
def test_a_folder_saved_with_the_llm_needs_nothing_else(
    tmp_path: Path, llm: str, reader: dict[str, Any], gone: str
) -> None:
    model = hybrid(tmp_path / "zoo", llm, **reader)
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved", with_llm=True)
    found = numbers(tmp_path / "saved" / "llm" / "model.safetensors")
    assert not [tensor for tensor in found if gone in tensor]  # unused parts are not saved
    own = {id(p): p.numel() for p in model.encoder.parameters()}
    final = (
        "norm.",
        "ln_f.",
    )  # after the last block: transformers' class keeps it, and nothing uses it if layers were removed
    read = sum(n for tensor, n in found.items() if not any(f in tensor for f in final))
    assert read <= sum(own.values()) <= sum(found.values())
    shutil.rmtree(tmp_path / "zoo")

    moved = shutil.move(tmp_path / "saved", tmp_path / "elsewhere")
    again = LLM2SLM.from_pretrained(moved)
    assert torch.equal(logits(again), expected)
    assert again.generate_text(TEXTS, **EIGHT) == model.generate_text(TEXTS, **EIGHT)
    again.save_pretrained(tmp_path / "third", with_llm=True)  # from one folder with an LLM to another
    assert torch.equal(logits(LLM2SLM.from_pretrained(tmp_path / "third")), expected)
    again.save_pretrained(tmp_path / "without")
    record = json.loads((tmp_path / "without" / "config.json").read_text())["llm"]
    assert record == model.config.llm | {"name": str(Path(moved).resolve() / "llm"), "config": {}}
    assert not (tmp_path / "without" / "llm").exists()  # the record contains the path of the loaded LLM
    assert torch.equal(logits(LLM2SLM.from_pretrained(tmp_path / "without")), expected)
    shutil.rmtree(moved)
    with pytest.raises(UserError, match=r"its LLM cannot be loaded.*llm=PATH"):
        LLM2SLM.from_pretrained(tmp_path / "without")
    loaded = AutoModel.from_pretrained(tmp_path / "without", llm=str(tmp_path / "third" / "llm"))
    assert torch.equal(logits(loaded), expected)
    found = LLM2SLM.from_pretrained(tmp_path / "without", llm=tmp_path / "third" / "llm")
    assert torch.equal(logits(found), expected)


def test_a_moved_llm_is_saved_from_its_new_path(tmp_path: Path) -> None:
    model = hybrid(tmp_path / "zoo")
    model.save_pretrained(tmp_path / "saved")
    moved = shutil.move(model.config.llm["name"], tmp_path / "moved")
    loaded = LLM2SLM.from_pretrained(tmp_path / "saved", llm=moved)
    loaded.save_pretrained(tmp_path / "whole", with_llm=True)
    assert torch.equal(logits(LLM2SLM.from_pretrained(tmp_path / "whole")), logits(model))


def test_a_changed_config_of_the_llm_is_saved_with_it(tmp_path: Path) -> None:
    model = hybrid(tmp_path / "zoo", config={"num_layers": 1})
    model.save_pretrained(tmp_path / "saved", with_llm=True)
    again = LLM2SLM.from_pretrained(tmp_path / "saved")
    assert len(again.encoder.body.block) == 1
    assert torch.equal(logits(again), logits(model))


def test_a_quantized_llm_is_saved_unquantized_and_quantized_on_loading(tmp_path: Path) -> None:
    pytest.importorskip("optimum.quanto")
    model = hybrid(tmp_path / "zoo", quantization={"quant_method": "quanto", "weights": "int8"})
    plain = hybrid(tmp_path / "zoo")
    assert not torch.equal(logits(model), logits(plain))
    model.save_pretrained(tmp_path / "saved", with_llm=True)
    with safe_open(tmp_path / "saved" / "llm" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    assert torch.equal(logits(LLM2SLM.from_pretrained(tmp_path / "saved")), logits(model))


def test_another_llm_in_the_folder_is_refused(tmp_path: Path) -> None:
    one, other = hybrid(tmp_path / "one"), hybrid(tmp_path / "two", "bart")
    one.save_pretrained(tmp_path / "a", with_llm=True)
    other.save_pretrained(tmp_path / "b", with_llm=True)
    shutil.rmtree(tmp_path / "a" / "llm")
    shutil.copytree(tmp_path / "b" / "llm", tmp_path / "a" / "llm")
    with pytest.raises(UserError, match="was trained on an LLM of width 24"):
        LLM2SLM.from_pretrained(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "llm")
    with pytest.raises(UserError, match="its LLM cannot be loaded"):
        LLM2SLM.from_pretrained(tmp_path / "a")


def test_with_llm_is_refused_for_a_system_without_an_llm(zoo: Path, tmp_path: Path) -> None:
    alone = build_model(tiny_model_config(zoo, kind=SystemKind.slm))
    with pytest.raises(UserError, match=r"this system \(slm\) has no LLM encoder"):
        alone.save_pretrained(tmp_path / "a", with_llm=True)
    assert not (tmp_path / "a").exists()


def test_the_card_is_saved_with_the_model(zoo: Path, tmp_path: Path) -> None:
    for kind in ("llm2slm", "slm"):
        folder = tmp_path / kind
        build_model(tiny_model_config(zoo, kind=SystemKind(kind))).save_pretrained(folder / "first")
        assert not (folder / "first" / "README.md").exists()  # no card is generated
        (folder / "first" / "README.md").write_text("# a card\n")
        model = LLM2SLM.from_pretrained(folder / "first")
        model.save_pretrained(folder / "second")
        assert (folder / "second" / "README.md").read_text() == "# a card\n"
        shutil.rmtree(folder / "first")
        model.save_pretrained(folder / "moved")
        assert (folder / "moved" / "README.md").read_text() == "# a card\n"
        (folder / "second" / "README.md").write_text("# a newer one\n")
        model.save_pretrained(folder / "second")
        assert (folder / "second" / "README.md").read_text() == "# a newer one\n"
        next(model.slm.parameters()).data.add_(1.0)
        model.save_pretrained(folder / "third")
        assert not (folder / "third" / "README.md").exists()  # the card describes other weights


def test_a_hybrid_with_a_local_llm_is_not_pushed(zoo: Path) -> None:
    with pytest.raises(UserError, match=r"me/model: not pushed: its LLM is the folder .*with_llm"):
        build_model(tiny_model_config(zoo)).push_to_hub("me/model")


def test_no_local_path_is_saved(tmp_path: Path) -> None:
    """LLM and SLM were local folders; a folder saved with the LLM does not contain their paths."""
    model = hybrid(tmp_path / "zoo")
    model.save_pretrained(tmp_path / "saved", with_llm=True)
    for path in (tmp_path / "saved").rglob("*.json"):
        if "tokenizer" not in path.name:
            assert str(tmp_path) not in path.read_text("utf-8"), path


def test_weight_files_have_the_permissions_of_the_umask(zoo: Path, tmp_path: Path) -> None:
    for kind, files in (("llm2slm", 2), ("slm", 1)):
        model = build_model(tiny_model_config(zoo, kind=SystemKind(kind)))
        model.save_pretrained(tmp_path / kind, with_llm=kind == "llm2slm")
        weights = list((tmp_path / kind).rglob("*.safetensors"))
        own = (tmp_path / kind / "config.json").stat().st_mode
        assert [path.stat().st_mode for path in weights] == [own] * files


def test_an_interrupted_save_leaves_the_previous_model(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files are written to a hidden folder first; the temporary directory is not used."""
    model, folder = hybrid(zoo), tmp_path / "saved"
    model.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with torch.no_grad():
        next(model.projector.parameters()).add_(1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("No space left on device")))
        with pytest.raises(OSError, match="No space"):
            model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    child = os.fork()
    if child == 0:
        try:
            Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            model.save_pretrained(folder)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    model.save_pretrained(folder)
    assert {path.name for path in folder.iterdir() if path.is_file()} == before.keys()
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert torch.equal(logits(LLM2SLM.from_pretrained(folder)), logits(model))


def test_shards_of_an_earlier_save_are_removed(zoo: Path, tmp_path: Path) -> None:
    """transformers saves plain models, and would load the old shards by their index."""
    config = tiny_model_config(zoo, "t5", "gpt2", kind=SystemKind.slm)
    model, folder = build_model(config).eval(), tmp_path / "saved"
    model.slm.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    (folder / "model_notes.safetensors").write_bytes(b"mine")
    model.save_pretrained(folder)
    assert {p.name for p in folder.glob("model*")} == {"model.safetensors", "model_notes.safetensors"}
