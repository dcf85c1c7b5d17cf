"""Systems under decoders: which ones fit, their names, and that baselines generate exactly the tokens of the LLM."""

import pytest
import torch
from sampling import representatives

from llm2slm.cli.schema import keys
from llm2slm.config import BenchmarkConfig, LLMConfig, ModelConfig, RunConfig, SLMConfig
from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.evaluation.benchmark import contestants as module
from llm2slm.evaluation.benchmark.contestants import contestants, same_decoding
from llm2slm.evaluation.benchmark.ctranslate2_int8 import CTranslate2Decoder
from llm2slm.evaluation.benchmark.roofline import Device
from llm2slm.evaluation.benchmark.timing import time_systems
from llm2slm.evaluation.benchmark.workload import plan
from llm2slm.evaluation.benchmark.workload_costs import workload_cost
from llm2slm.models.build import build_model
from llm2slm.models.llm import use_weights
from llm2slm.types import Decoding, Example, Init, SystemKind, UserError

TEXT = "the quick brown fox jumps over the lazy dog and away"
T5 = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 4,
    "num_heads": 2,
    "d_ff": 20,
    "num_layers": 2,
    "num_decoder_layers": 2,
}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 300}
WINDOW = {
    "model_type": "gpt_neo", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "window_size": 4,
    "attention_types": [[["local"], 1]], "max_position_embeddings": 300,
}  # fmt: skip
ROWS = [Example(i, "", " ".join(TEXT.split()[: 3 + i]), TEXT[: 5 + 4 * i]) for i in range(4)]


def systems(folder, llm=T5, slm=T5, **kinds):
    """An LLM, a hybrid of it, and an SLM alone, with random weights."""
    train_tokenizer([TEXT] * 4, 280).save_pretrained(folder)
    sides = {
        "llm": LLMConfig(init=Init.random, config=llm, tokenizer=str(folder)),
        "slm": SLMConfig(init=Init.random, config=slm, tokenizer=str(folder)),
    }
    torch.manual_seed(0)
    found = {
        kind: build_model(
            ModelConfig(kind=SystemKind(kind), conditioning="none" if kind != "llm2slm" else "add", **sides)
        )
        for kind in ("llm2slm", "llm", "slm")
    }
    for model in found.values():
        model.eval()
    use_weights(found["llm2slm"], found["llm"])
    return found


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    return systems(tmp_path_factory.mktemp("trio"))


OF = {"llm2slm": "llm"}


def test_every_decoder_of_every_system_is_listed(trio):
    names = ["generate", "eager", "captured", "lossless", "assisted", "prompt_lookup"]
    found = contestants(trio, names, OF)
    assert [(each.name, each.kind.value) for each in found] == [
        ("llm", "llm"), ("llm (eager)", "llm"), ("llm (captured)", "llm"), ("llm (assisted)", "llm"),
        ("llm (prompt_lookup)", "llm"),
        ("llm2slm", "llm2slm"), ("llm2slm (eager)", "llm2slm"), ("llm2slm (captured)", "llm2slm"),
        ("llm2slm (lossless)", "llm"),
        ("slm", "slm"), ("slm (eager)", "slm"), ("slm (captured)", "slm"),
    ]  # fmt: skip
    assert same_decoding(found, OF, "llm") == {
        "llm2slm": "llm", "slm": "llm", "llm2slm (eager)": "llm (eager)", "slm (eager)": "llm (eager)",
        "llm2slm (captured)": "llm (captured)", "slm (captured)": "llm (captured)",
        "llm2slm (lossless)": "llm (captured)",
    }  # fmt: skip


@pytest.mark.parametrize("shape", [T5, pytest.param(GPT2, marks=pytest.mark.slow)], ids=["t5", "gpt2"])
def test_all_are_timed_and_lossless_responses_equal_those_of_the_llm(shape, tmp_path):
    trio = systems(tmp_path, shape, shape)
    names = ["generate", "eager", "captured", "lossless", "prompt_lookup", "assisted"]
    found = contestants(trio, names, OF)
    seen = {}

    class Noting:
        def __init__(self, each):
            self.each, self.name, self.model = each, each.decoder.name, each.decoder.model
            self.most_rows = getattr(each.decoder, "most_rows", None)
            self.token_by_token, self.streams = each.decoder.token_by_token, each.decoder.streams
            self.batch = each.decoder.batch

        def generate(self, batch, **given):
            ids_BT = self.each.decoder.generate(batch, **given)
            seen.setdefault(self.each.name, []).append(ids_BT.tolist())
            return ids_BT

    cfg = BenchmarkConfig(repeats=1, warmup=0, prompts=1, batch=[2], response_tokens=[6], memory=False)
    timings = time_systems({each.name: Noting(each) for each in found}, ROWS, cfg, baseline="llm", progress=False)
    for name, own in timings.items():
        single = name.endswith(("(assisted)", "(prompt_lookup)"))
        assert len(own.rows) == (1 if single else 2), name
        assert [failure.batch for failure in own.failures] == ([2] if single else [])
        for row in own.rows:
            assert row.total_ms.median > row.prefill_ms.median > 0
            assert row.step_p95_ms.median > 0
            assert (row.flops is None) == (single or "lossless" in name)
    by_kind = {each.name: each.kind for each in found}
    for name, kind in by_kind.items():
        reference = seen[{"llm": "llm", "llm2slm": "llm2slm", "slm": "slm"}[kind.value]]
        assert seen[name] == (reference if len(timings[name].rows) == 2 else [r for r in reference if len(r) == 1]), (
            name
        )


def test_lossless_rows_of_a_batch_deliver_every_token_once(trio):
    (lossless,) = [each for each in contestants(trio, ["lossless"], OF) if each.decoding == "lossless"]
    batch, parts = lossless.decoder.batch([row.prompt for row in ROWS]), [[] for _ in ROWS]

    def on_tokens(rows_K, ids_KN, counts_K):
        for row, ids, count in zip(rows_K.tolist(), ids_KN.tolist(), counts_K.tolist(), strict=True):
            parts[row] += ids[:count]

    lengths = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "num_beams": 1}
    ids_BT = lossless.decoder.generate(batch, on_tokens=on_tokens, **lengths)
    assert parts == ids_BT.tolist()
    assert all(len(part) == 12 for part in parts)


def test_decoders_that_do_not_fit_are_left_out_and_reported_on_one_line(tmp_path, capsys):
    trio = systems(tmp_path, T5, WINDOW)
    del trio["llm2slm"]
    found = contestants(trio, ["generate", "captured", "assisted"], {})
    assert [each.name for each in found] == ["llm", "llm (captured)", "llm (assisted)", "slm"]
    assert capsys.readouterr().err.splitlines() == [
        "llm2slm: benchmark.decoders=captured: without slm: transformers does not support a static cache for gpt_neo"
    ]


@pytest.mark.parametrize(
    ("left", "names", "message"),
    [
        ("llm slm llm2slm", ["captred"], "captred is unknown; nearest: captured"),
        ("llm slm llm2slm", [], r"decoders=\[\]: give one or more"),
        ("slm", ["lossless"], "decoders=lossless: needs a hybrid and its LLM"),
        ("slm", ["prompt_lookup"], "prompt_lookup: needs an LLM"),
        ("llm", ["assisted"], "assisted generation needs an SLM alone"),
    ],
)
def test_decoders_that_fit_no_system_are_reported_on_one_line(trio, left, names, message):
    with pytest.raises(UserError, match=message) as caught:
        contestants({name: trio[name] for name in left.split()}, names, {})
    assert "\n" not in str(caught.value)


def test_a_hybrid_without_its_llm_has_no_lossless_decoding(trio):
    with pytest.raises(UserError, match="llm2slm: its LLM is not among the systems"):
        contestants(trio, ["lossless"], {})


def test_shares_of_the_ceilings_follow_from_bytes_and_flops(trio):
    names = {each.name: each.decoder for each in contestants(trio, ["generate"], OF)}
    device = Device(bandwidth=2.0, tflops={"float32": 0.5})
    cfg = BenchmarkConfig(repeats=1, warmup=0, prompts=0, batch=[2], response_tokens=[5], memory=False)
    timings = time_systems(names, ROWS, cfg, baseline="llm", ceilings=lambda product: device, progress=False)
    for name, own in timings.items():
        (row,) = own.rows
        (condition,) = plan(trio["llm"], ROWS, cfg)
        cost = workload_cost(names[name], condition)
        assert row.share_of_bandwidth == pytest.approx(cost.step_bytes / 2e9 / (row.ms_per_token.median / 1e3))
        assert row.share_of_product == pytest.approx(cost.prefill_flops / 0.5e12 / (row.prefill_ms.median / 1e3))
        slm = trio[name].slm
        head = slm.lm_head.weight.numel()
        blocks = sum(p.numel() for p in slm.decoder.block.parameters() if p.dim() == 2)
        # keys and values of the prompt are cached, and their matrices are not read; position tables are small
        crossed = sum(
            getattr(block.layer[1].EncDecAttention, part).weight.numel() for block in slm.decoder.block for part in "kv"
        )
        bias = slm.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.numel()
        prompts = [
            len(ids) for ids in trio["llm"].collator.slm_tokenizer(list(condition.requests[0].prompts))["input_ids"]
        ]
        width, layers = 8, 2  # heads x d_kv
        values = sum(2 * layers * width * (p + t) for p in prompts for t in (1, 2, 3, 4)) / 4
        assert cost.step_bytes == pytest.approx(4 * (head + blocks - crossed - bias + values), rel=0.02)


def test_without_ctranslate2_the_extra_is_named_on_one_line(trio, monkeypatch):
    monkeypatch.setattr("llm2slm.evaluation.benchmark.ctranslate2_int8.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llm-to-slm\[ctranslate2\]'"):
        contestants(trio, ["ctranslate2"], OF)


@pytest.mark.parametrize("shape", representatives([T5, GPT2], [GPT2]), ids=["t5", "gpt2"])
def test_ctranslate2_generates_the_requested_number_of_tokens(shape, tmp_path):
    pytest.importorskip("ctranslate2")
    model = systems(tmp_path, shape, shape)["llm"]
    decoder, arrived = CTranslate2Decoder(model, threads=1), [[] for _ in ROWS]

    def on_tokens(rows_K, ids_KN, counts_K):
        for row, ids in zip(rows_K.tolist(), ids_KN.tolist(), strict=True):
            arrived[row] += ids

    batch = decoder.batch([row.prompt for row in ROWS])
    lengths = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "num_beams": 1}
    ids_BT = decoder.generate(batch, on_tokens=on_tokens, **lengths)
    assert arrived == ids_BT.tolist() and ids_BT.shape == (len(ROWS), 9)
    reference = model.generate(model.collator.batch_of_texts([row.prompt for row in ROWS]), **lengths)
    assert (ids_BT == reference).float().mean() > 0.7  # int8 changes some tokens


@pytest.mark.slow
def test_ctranslate2_ends_its_process_after_an_error_and_reports_a_killed_process(trio):
    model = trio["llm"]
    lengths = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 1}

    def fail(*_):
        raise KeyboardInterrupt

    decoder = CTranslate2Decoder(model, threads=1)
    batch = decoder.batch([row.prompt for row in ROWS])
    with pytest.raises(KeyboardInterrupt):
        decoder.generate(batch, on_tokens=fail, **lengths)
    assert not decoder.process.is_alive()  # no response to this request is taken for that to the next one
    killed = CTranslate2Decoder(model, threads=1)
    killed.process.kill()
    killed.process.join()
    with pytest.raises(UserError, match="its process ended with exit code -9"):
        killed.generate(batch, **lengths)


def test_only_known_decoders_are_in_the_help():
    text = keys(RunConfig)["benchmark.decoders"].help
    assert all(name in text for name in [*(each.value for each in Decoding), *module.OF_LLMS])
