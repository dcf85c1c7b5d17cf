"""GGUF files in every verb: as the LLM that encodes, generates or teaches, and as the SLM."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import gguf_vocabulary, write_gguf
from sampling import representatives
from tiny_runs import tiny_run
from transformers import PreTrainedModel

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands import label
from llm2slm.commands.benchmark import run as benchmark
from llm2slm.commands.encode import run as encode
from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.train import run as train
from llm2slm.config import LLMConfig, RunConfig, SLMConfig
from llm2slm.data.tokenization.tokenizer import cut_of
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import Start, StoreDtype, SystemKind, Tokenizers, UserError, Vocab


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, PreTrainedModel]]:
    """An LLM and an SLM of one vocabulary, and the oracle of the LLM."""
    folder = tmp_path_factory.mktemp("files")
    oracle = write_gguf(folder / "llm.gguf", "qwen2", "Q8_0", seed=1)
    write_gguf(folder / "slm.gguf", "llama", "Q4_0", seed=2)
    yield folder / "llm.gguf", folder / "slm.gguf", oracle


def run_of(root: Path, files: Any, **trainer: Any) -> RunConfig:
    config = tiny_run(root, **trainer)
    config.model.projector.start = Start.random
    config.model.llm = LLMConfig(name=str(files[0]), layer=2)
    config.model.slm = SLMConfig(name=str(files[1]))
    return config


def llm_config(root: Path, files: Any) -> RunConfig:
    config = tiny_run(root)
    config.run, config.split = str(files[0]), "test"
    return config


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def expected(files: Any, texts: list[str]) -> list[str]:
    """Answers of the dequantized LLM by transformers."""
    tokenizer, found = gguf_vocabulary(), []
    for text in texts:
        ids = torch.tensor([tokenizer(f"{text}\n", add_special_tokens=False).input_ids])  # a line break ends a prompt
        written = files[2].generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        found.append(tokenizer.decode(written, skip_special_tokens=True).strip())
    return found


def sources(root: Path) -> list[str]:
    return [json.loads(line)["source"] for line in (root / "rows" / "test.jsonl").read_text().splitlines()]


def test_a_hybrid_of_two_files_is_trained_with_the_llm_as_its_teacher(files, tmp_path: Path) -> None:
    config = run_of(tmp_path, files)
    config.optim.distill = 0.5
    before = files[1].read_bytes()
    result = train(config, tmp_path / "run")
    assert files[1].read_bytes() == before
    model = LLM2SLM.from_pretrained(tmp_path / "run" / "model")
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["llm"]["name"] == str(files[0])
    assert result.systems[0].notes["folders"] == [str(files[0]), str(files[1])]
    answers = model.generate_text(["the little dog"], max_new_tokens=4)
    assert LLM2SLM.from_pretrained(tmp_path / "run" / "model").generate_text(["the little dog"], max_new_tokens=4) == (
        answers
    )
    config = run_of(tmp_path, files, max_steps=9)
    config.optim.distill, config.run = 0.5, str(tmp_path / "run")
    assert train(config, tmp_path / "run").systems[0].notes["optimizer_steps"] == 9


@pytest.mark.slow
def test_an_slm_system_and_an_llm_system_are_trained(files, tmp_path: Path) -> None:
    for kind in ("slm", "llm"):
        config = run_of(tmp_path, files, max_steps=2)
        config.model.kind = SystemKind(kind)
        train(config, tmp_path / kind)
        saved = json.loads((tmp_path / kind / "model" / "config.json").read_text())
        assert saved["model_type"] == {"slm": "llama", "llm": "qwen2"}[kind] and "quantization_config" not in saved
        assert LLM2SLM.from_pretrained(tmp_path / kind / "model").generate_text(["two dogs"], max_new_tokens=3)


@pytest.mark.slow
def test_training_from_a_store_equals_live_training_and_refuses_other_weights(files, tmp_path: Path) -> None:
    llm = tmp_path / "llm.gguf"
    shutil.copy(files[0], llm)
    own = (llm, *files[1:])
    config = run_of(tmp_path, own)
    config.trainer.threads = 1
    train(config, tmp_path / "live")
    kept = run_of(tmp_path, own)
    kept.encode.dtype = StoreDtype.float32
    encode(kept, tmp_path / "kept")
    stored = run_of(tmp_path, own)
    stored.data.reps, stored.trainer.threads = str(tmp_path / "kept" / "reps"), 1
    train(stored, tmp_path / "stored")
    assert losses(tmp_path / "stored") == pytest.approx(losses(tmp_path / "live"), rel=1e-4)
    write_gguf(llm, "qwen2", "Q8_0", seed=7)
    with pytest.raises(UserError, match="weights"):
        train(stored, tmp_path / "refused")


@pytest.mark.parametrize("verb", representatives(["evaluate", "label"], ["evaluate"]))
def test_the_answers_are_those_of_the_dequantized_model(files, tmp_path: Path, verb: str) -> None:
    run = {"evaluate": evaluate, "label": label.run}[verb]
    run(llm_config(tmp_path, files), tmp_path / "out")
    system = runs.read_result(tmp_path / "out")["systems"][0]
    answers = [row["prediction"].strip() for row in system["samples"]]
    assert answers == expected(files, sources(tmp_path)) and len(set(answers)) > 1
    assert system["notes"]["llm"]["name"] == str(files[0])


def test_generate_loads_a_gguf_file(files, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([f"run={files[0]}"], [f"run={files[0].parent}", "model.llm.gguf_file=llm.gguf"]):
        assert main(["generate", *arguments, "prompt=the little dog", "max_new_tokens=6"]) == 0
        assert capsys.readouterr().out.strip() == expected(files, ["the little dog"])[0]


@pytest.mark.slow
def test_a_trained_model_refuses_the_gguf_key(files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(run_of(tmp_path, files, max_steps=2), tmp_path / "run")
    for run in (tmp_path / "run", tmp_path / "run" / "model"):
        assert main(["generate", f"run={run}", "model.llm.gguf_file=other.gguf", "prompt=x"]) != 0
        assert "model.llm.gguf_file=other.gguf: " in capsys.readouterr().err


@pytest.mark.slow
def test_benchmark_times_a_gguf_llm_and_its_hybrid(files, tmp_path: Path) -> None:
    config = run_of(tmp_path, files)
    config.benchmark.batch, config.benchmark.prompt_tokens, config.benchmark.response_tokens = [1], [8], [2]
    config.benchmark.repeats = config.benchmark.warmup = 1
    config.benchmark.memory = False
    result = benchmark(config, tmp_path / "timed")
    assert [system.name for system in result.systems] == ["llm", "llm2slm"]
    assert all(system.speed for system in result.systems)


def test_a_truncated_file_is_reported_on_one_line(files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(files[0].read_bytes()[:5000])
    assert main(["generate", f"run={broken}", "prompt=x"]) != 0
    error = capsys.readouterr().err
    assert "is cut off" in error and "Traceback" not in error


def test_a_cut_vocabulary_keeps_the_dequantized_embeddings(tmp_path: Path, files: Any) -> None:
    """The rows of the embeddings are those of transformers' dequantized model."""
    config = run_of(tmp_path, files)
    oracle = write_gguf(tmp_path / "slm.gguf", "llama", "Q4_0", seed=2)
    config.model.slm = SLMConfig(name=str(tmp_path / "slm.gguf"), tune="none", vocab=Vocab.corpus)
    config.model.tokenizers = Tokenizers.offsets
    train(config, tmp_path / "run")
    model = LLM2SLM.from_pretrained(tmp_path / "run" / "model")
    kept = cut_of(model.collator.slm_tokenizer)
    assert kept is not None and kept.of == len(gguf_vocabulary()) > len(kept.ids)
    assert torch.equal(model.slm.get_input_embeddings().weight, oracle.get_input_embeddings().weight[kept.ids])
    assert torch.equal(model.slm.get_output_embeddings().weight, oracle.get_output_embeddings().weight[kept.ids])
