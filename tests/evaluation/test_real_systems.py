"""Benchmark, prediction and memory with real (tiny, random) systems of every kind, against independent counts."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llm2slm.config import BenchmarkConfig, LLMConfig, ModelConfig, SLMConfig
from llm2slm.data.tasks import Task
from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.decoding.decoder import GenerateDecoder
from llm2slm.evaluation.benchmark.peak_memory import folder_memory, peak_memory_mb
from llm2slm.evaluation.benchmark.timing import time_systems
from llm2slm.evaluation.benchmark.workload import plan
from llm2slm.evaluation.predict import predict
from llm2slm.models.build import build_model
from llm2slm.types import Example, Init, SystemKind, UserError

TEXT = "the quick brown fox jumps over the lazy dog and away"
LLM = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 4,
    "num_heads": 2,
    "d_ff": 20,
    "num_layers": 3,
    "num_decoder_layers": 3,
}
T5 = {**LLM, "d_model": 12, "num_layers": 1, "num_decoder_layers": 2}
GPT2 = {"model_type": "gpt2", "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 600}
ROWS = [Example(i, "", " ".join(TEXT.split()[: 2 + i]), TEXT[: 5 + 4 * i]) for i in range(5)]
HYBRIDS = [(T5, mode) for mode in ("memory", "add", "prepend")]
HYBRIDS += [(GPT2, mode) for mode in ("replace", "prepend", "memory")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([TEXT] * 4, 280).save_pretrained(folder)
    return str(folder)


def build(tokenizer, kind, slm=T5, mode="none", llm=LLM):
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(
            kind=SystemKind(kind),
            llm=LLMConfig(init=Init.random, config=llm, tokenizer=tokenizer),
            slm=SLMConfig(init=Init.random, config=slm, tokenizer=tokenizer),
            conditioning=mode,
        )
    )
    for body in (model.slm, *((model.encoder.body,) if model.encoder is not None else ())):
        body.set_attn_implementation("eager")  # whose products torch counts
    return model.eval()


@pytest.fixture(scope="module")
def systems(tokenizer):
    alone = {"llm": build(tokenizer, "llm"), "t5": build(tokenizer, "slm"), "gpt2": build(tokenizer, "slm", GPT2)}
    guided = {f"{slm['model_type']}-{mode}": build(tokenizer, "llm2slm", slm, mode) for slm, mode in HYBRIDS}
    return {**alone, **guided}


def test_every_kind_of_system_is_timed_and_its_flops_equal_torchs_count(systems):
    cfg = BenchmarkConfig(repeats=1, warmup=0, prompts=2, response_tokens=[6], prompt_tokens=[20], memory=False)
    decoders = {name: GenerateDecoder(model) for name, model in systems.items()}
    rows = time_systems(decoders, ROWS, cfg, baseline="llm", progress=False)
    _, grid = plan(systems["llm"], ROWS, cfg)
    for name, model in systems.items():
        at_test, at_grid = rows[name].rows
        assert (at_test.lengths, at_grid.lengths, at_grid.prompt_tokens) == ("test", "grid", 20)
        assert at_grid.total_ms.median > at_grid.prefill_ms.median > 0
        batch = model.collator.batch_of_texts(list(grid.requests[0].prompts))
        with FlopCounterMode(display=False) as counter:
            model.generate(batch, max_new_tokens=6, min_new_tokens=6)
        assert at_grid.flops == counter.get_total_flops(), name


def test_predictions_equal_those_of_one_row_at_a_time(systems):
    task = Task("translation", "", ("bleu",), max_new_tokens=6)
    for name, model in systems.items():
        alone = [model.generate_text([example.prompt], max_new_tokens=6)[0] for example in ROWS]
        assert predict(model, ROWS, task, 3, progress=False) == alone, name


def test_peak_memory_is_that_of_the_system_alone(tokenizer, tmp_path):
    model = build(tokenizer, "slm", {**T5, "d_ff": 500_000})
    weights = sum(p.nbytes for p in model.parameters()) / 1e6
    model.save_pretrained(tmp_path)
    held = torch.ones(150_000_000)  # 600 MB of the parent process, which the child must neither add nor subtract
    memory = folder_memory({"slm": tmp_path}, threads=1)
    found = memory("slm", [TEXT], 4)
    assert held.sum() == 150_000_000
    assert 100 < weights < 200
    assert 0.9 * weights < found < 2.5 * weights
    assert memory("without a folder", [TEXT], 4) is None


@pytest.mark.slow
def test_the_memory_of_a_broken_folder_is_reported_on_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(UserError, match="peak memory could not be measured") as caught:
        peak_memory_mb(tmp_path, None, [TEXT], 4)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_peak_memory_is_measured_for_an_llm_given_by_name_alone():
    """As the demo requests it: a name, without the source of its weights."""
    memory = folder_memory({"llm": LLMConfig(name="builtin/llm")}, threads=1)
    assert memory("llm", ["a"], 1) > 10  # its weights alone are 20 MB
