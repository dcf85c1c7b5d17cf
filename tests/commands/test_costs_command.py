"""`llm2slm costs`: predictions from configs alone, against short formulas, built models and counted operations."""

from __future__ import annotations

import csv
import json
import re
from itertools import product
from math import ceil

import pytest
import yaml
from command_line import ROOT, mistake, without_next
from documented import calls
from sampling import first_of_each
from transformers import LlamaConfig

from llm2slm.cli import main
from llm2slm.commands.costs import cells
from llm2slm.decoding.decoder import GenerateDecoder
from llm2slm.evaluation.benchmark import ceilings
from llm2slm.evaluation.benchmark.costs import Cost, Work
from llm2slm.evaluation.benchmark.pairs import configured, recorded
from llm2slm.evaluation.benchmark.predictions import HYBRID, Assumptions, Predictor
from llm2slm.evaluation.benchmark.roofline import DEVICES, LONGEST, PRECISIONS, Device, break_even, least_times
from llm2slm.evaluation.benchmark.workload import Condition, Request
from llm2slm.evaluation.benchmark.workload_costs import guidance, workload_cost
from llm2slm.models import families
from llm2slm.models.build import build_model
from llm2slm.models.known_configs import known
from llm2slm.testing import LLM_TEXTS, tiny_model_config
from llm2slm.types import Tokenizers, UserError

PAIR = ["model/llm=t5_large", "model/slm=t5_small"]


def predicted(folder, *overrides):
    assert main(["costs", *overrides, f"hydra.run.dir={folder}"]) == 0
    return json.loads((folder / "costs.json").read_text("utf-8"))


def by_system(result):
    return {row["system"]: row for row in result["rows"]}


def test_a_pair_is_predicted_from_shipped_configs(tmp_path, capsys):
    """T5-large and T5-small, by hand: on this device every decoding step reads all weights of the decoder."""
    prompt, response, bandwidth = 64, 33, 2000
    found = predicted(
        tmp_path, *PAIR, f"bandwidth={bandwidth}", "tflops=1000000", f"prompt_tokens={prompt}",
        f"response_tokens={response}", "accepted_tokens=3", "draft_tokens=4", "rewritten=0.5",
    )  # fmt: skip
    rows, shown = by_system(found), capsys.readouterr().out
    assert list(rows) == ["llm", "slm", "llm2slm", "lossless", "cascade"]
    assert found["models"]["llm"] == {"name": "google-t5/t5-large", "model_type": "t5", "config": "shipped"}

    def step(width, inner, feed_forward, layers, keys):
        """Elements read by a decoding step: self-attention, queries and outputs of cross-attention, the head, cache."""
        weights = layers * (4 * width * inner + 2 * width * inner + 2 * width * feed_forward) + 32128 * width
        return weights + 2 * layers * inner * (keys + prompt)

    def cross(width, inner, layers):
        return 2 * layers * width * inner

    def encoder(width, inner, feed_forward, layers):
        return layers * (4 * width * inner + 2 * width * feed_forward)

    def ms(elements):
        return 1e3 * 2 * elements / (1e9 * bandwidth)

    large, small = (1024, 1024, 4096, 24), (512, 512, 2048, 6)
    mean = 1 + (response - 1 + 1) / 2
    token = {name: ms(step(*shape, mean)) for name, shape in (("llm", large), ("slm", small))}
    assert rows["llm"]["ms_per_token"] == pytest.approx(token["llm"])
    assert rows["slm"]["ms_per_token"] == rows["llm2slm"]["ms_per_token"] == pytest.approx(token["slm"])
    projector = 1024 * 512 + 512 * 512
    first = step(*small, 0) - 2 * 6 * 512 * prompt  # keys and values of the prompt are computed, not read
    before = encoder(*large) + projector + encoder(*small) + cross(512, 512, 6) + first
    assert rows["llm2slm"]["prefill_ms"] == pytest.approx(ms(before))
    assert rows["llm2slm"]["total_ms"] == pytest.approx(ms(before) + 32 * token["slm"])
    for row in rows.values():
        assert row["speedup"] == pytest.approx(rows["llm"]["total_ms"] / row["total_ms"])
    assert rows["llm"]["weights_mb"] == pytest.approx(2 * 737_668_096 / 1e6, rel=1e-3)
    held = encoder(*large) + 32128 * 1024 + projector + 60_506_624
    assert rows["llm2slm"]["weights_mb"] == pytest.approx(2 * held / 1e6, rel=1e-3)
    assert rows["llm2slm"]["cache_mb"] == pytest.approx(2 * 2 * 6 * 512 * (response + prompt) / 1e6)
    verifications = response / 4
    # weights read: the LLM's decoder per verification, the SLM's for three of four drafted tokens and one more
    most = verifications * token["llm"] + (4 * verifications - 1) * token["slm"] + ms(before)
    assert rows["lossless"]["total_ms"] == pytest.approx(most + ms(cross(1024, 1024, 24)), rel=0.01)
    anew = rows["llm"]["total_ms"] - ms(encoder(*large))
    assert rows["cascade"]["total_ms"] == pytest.approx(rows["llm2slm"]["total_ms"] + 0.5 * anew)
    assert rows["llm2slm"]["break_even_tokens"] == 1
    assert "h100, changed: 2,000 GB/s" in " ".join(shown.split())
    assert shown.rstrip().endswith(str(tmp_path / "costs.json"))


def test_all_conditions_are_written_as_csv(tmp_path, capsys):
    found = predicted(tmp_path, *PAIR, "batch=1,8", "response_tokens=1,16", "dtype=int8", "device=rtx4090")
    rows = list(csv.DictReader((tmp_path / "costs.csv").open(encoding="utf-8")))
    assert len(rows) == len(found["rows"]) == 2 * 2 * 5
    for row, each in zip(rows, found["rows"], strict=True):
        assert row == {key: "" if value is None else str(value) for key, value in each.items()}
    one, eight = (
        next(r for r in found["rows"] if (r["system"], r["batch"], r["response_tokens"]) == ("llm2slm", batch, 16))
        for batch in (1, 8)
    )
    assert eight["cache_mb"] == 8 * one["cache_mb"] and eight["weights_mb"] == one["weights_mb"]
    assert one["total_ms"] < eight["total_ms"] < 8 * one["total_ms"]
    shown = capsys.readouterr().out
    assert "batch" in shown and "response" in shown and max(map(len, shown.splitlines()[:-1])) <= 80


def test_models_larger_than_the_memory_are_reported(tmp_path, capsys):
    found = by_system(predicted(tmp_path, "model/llm=t5_11b", "model/slm=t5_small", "dtype=float32", "device=rtx4090"))
    assert [name for name, row in found.items() if not row["fits"]] == ["llm", "lossless", "cascade"]
    assert "larger than the memory of the device: cascade, llm, lossless" in " ".join(capsys.readouterr().out.split())


UNKNOWN = ["model.llm.name=null", "model.llm.config={model_type: mamba}"]


def test_an_unknown_family_is_reported_and_the_rest_is_predicted(tmp_path, capsys):
    found = predicted(tmp_path, *UNKNOWN, "model/slm=t5_small", "model.tokenizers=offsets")
    assert list(by_system(found)) == ["slm"]
    assert by_system(found)["slm"]["speedup"] is None
    shown = without_next(capsys.readouterr().err)
    assert shown == ("llm2slm: warning: cost unknown: LLM mamba (mamba), so without llm, llm2slm, lossless, cascade\n")
    assert found["unknown"][0]["model_type"] == "mamba"


def test_systems_in_which_an_encoder_only_llm_would_generate_are_left_out(tmp_path, capsys):
    bert = ["model.llm.name=null", "model.llm.config={model_type: bert}"]
    found = predicted(tmp_path, *bert, "model/slm=t5_small", "model.tokenizers=offsets")
    assert list(by_system(found)) == ["slm", "llm2slm"]
    assert "LLM bert (bert), so without llm, lossless, cascade" in capsys.readouterr().err


def test_a_pair_without_any_prediction_is_refused(tmp_path, capsys):
    slm = ["model/slm=t5_small", "model.slm.name=null", "model.slm.config={model_type: mamba}"]
    assert main(["costs", *UNKNOWN, *slm, f"hydra.run.dir={tmp_path / 'new'}"]) == 2
    assert "cost unknown: LLM mamba (mamba), so without llm, llm2slm, lossless, cascade; SLM mamba" in mistake(capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["device=h10"], "device=h10 is unknown; nearest: h100; possible: a100, h100, h200, rtx4090, cpu-2-cores"),
        (["dtype=fp8"], "dtype=fp8 is unknown; possible: float32, bfloat16, float16, int8"),
        (["dtype=float16", "device=cpu-2-cores"], "dtype=float16: the rate of float16 products on device=cpu-2-cores"),
        (["draft_tokens=4", "accepted_tokens=5"], "accepted_tokens=5: no more than draft_tokens=4 can be accepted"),
        (["rewritten=1.5"], "rewritten=1.5: must be between 0 and 1"),
        (["model.slm.vocab=corpus"], "model.slm.vocab=corpus: its size depends on a corpus; give it by slm_vocab=N"),
        (["model/slm=smollm2", "model.conditioning=memory"], "model.conditioning=memory does not fit a llama"),
        (["model.conditioning=kv", "model/slm=gpt2"], "kv needs a decoder-only LLM, and google-t5/t5-large is a"),
        (["model.slm.layers=99"], "model.slm.layers=99: the encoder has 6 blocks"),
        (["model.llm.layer=99"], "model.llm.layer=99: the LLM has layers 0 to 24"),
        (["run=nowhere", "model.llm.name=x/y"], "model.llm.name=x/y: not read by costs here"),
        (["llm=x/y", "run=builtin/llm"], "llm=x/y: builtin/llm has no LLM that could have moved"),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
def test_mistakes_are_reported_on_one_line(tmp_path, capsys, overrides, message):
    pair = [] if "run" in overrides[0] + overrides[-1] else PAIR
    assert main(["costs", *pair, *overrides, f"hydra.run.dir={tmp_path / 'new'}"]) == 2
    assert message in mistake(capsys)


MODES = [
    {"mode": "add"}, {"mode": "replace"}, {"mode": "memory"}, {"mode": "cross_attention", "cross_every": 2},
    {"mode": "prepend", "pool": 0.3}, {"mode": "prepend", "pool": 4}, {"mode": "prepend"}, {"mode": "kv"},
]  # fmt: skip
PAIRS = [
    ("flan", "gpt2"),
    ("gpt2", "t5"),
    ("opt", "llama"),
    ("llama", "llama"),
    ("t5gemma", "t5gemma"),
    ("bert", "opt"),
]


def fits(pair, mode):
    llm, slm = pair
    decoders = {"gpt2", "llama", "opt"}
    if mode == "memory":
        return slm in ("gpt2", "t5", "t5gemma")
    return (mode != "cross_attention" or slm in decoders) and (mode != "kv" or {llm, slm} <= decoders)


CASES = [case for case in product(PAIRS, MODES, Tokenizers) if fits(case[0], case[1]["mode"])]
CASES = [case for case in CASES if not (case[1]["mode"] == "kv" and case[2] is Tokenizers.llm_tokens)]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


def config(folder, pair, mode, tokenizers, **changes):
    cfg = tiny_model_config(folder, *pair, mode["mode"], tokenizers)
    for name, value in (mode | changes).items():
        if name != "mode":
            setattr(cfg, name, value)
    return cfg


@pytest.mark.parametrize(
    ("pair", "mode", "tokenizers"),
    first_of_each(CASES, lambda case: (case[1]["mode"], "kv" in case[1]["mode"] and case[0])),
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_predictions_from_configs_equal_those_of_the_built_hybrid(zoo, pair, mode, tokenizers):
    """FLOPs of the same prompt and response by the configs alone, and by the modules of the built model."""
    cfg = config(zoo, pair, mode, tokenizers)
    planned, model = configured(cfg), build_model(cfg).eval()
    assert_same(planned, model)


LEFT_OUT = ("position", "wpe", "relative_attention_bias", "token_type", "virtual_tokens")
"""Parts of the names of matrices that the memory of the cost model omits, like norms, biases and gates."""


def assert_same(planned, model, tokens=6):
    batch = model.collator.batch_of_texts([LLM_TEXTS[0]])
    q, p = batch.slm_mask_BQ.sum().item(), batch.llm_mask_BP.sum().item()
    built = guidance(model)
    for name in ("llm_layers", "projector_shape", "embedding_width", "cross_every", "kv_mapped"):
        assert planned.settings.get(name) == built.get(name), name
    condition = Condition("grid", 1, p, (Request((LLM_TEXTS[0],), tokens),))
    ratio = 1.0 if planned.same_prompt else q / p
    assumptions = Assumptions(4, 2, 0.1, slm_tokens=ratio)
    predictor = Predictor(planned, assumptions, DEVICES["h100"], PRECISIONS["float32"])
    response = tokens if planned.same_response else tokens / ratio
    assert predictor.cost(HYBRID, p, response).flops == pytest.approx(
        workload_cost(GenerateDecoder(model), condition).flops, rel=1e-9
    )
    weights = {name: tensor.numel() for name, tensor in model.named_parameters() if tensor.dim() > 1}
    left_out = {name: count for name, count in weights.items() if any(part in name for part in LEFT_OUT)}
    assert predictor.cost(HYBRID, p, tokens).weights == sum(weights.values()) - sum(left_out.values())


CHANGES = [{"layer": 1}, {"layer": [0, 2]}, {"tune": "prompt"}, {"tune": "prefix"}, {"layers": 2}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_settings_of_the_models_change_the_prediction_as_the_built_hybrid(zoo, changes):
    cfg = config(zoo, ("llama", "gpt2"), {"mode": "add"}, Tokenizers.offsets)
    for name, value in changes.items():
        setattr(cfg.llm if name == "layer" else cfg.slm, name, value)
    assert_same(configured(cfg), build_model(cfg).eval())


def test_a_cut_vocabulary_changes_only_its_size(zoo):
    cfg = config(zoo, ("llama", "gpt2"), {"mode": "add"}, Tokenizers.offsets)
    whole, cut = configured(cfg), configured(cfg, vocabulary=100)
    assert cut.slm.values == whole.slm.values | {"vocab_size": 100}


def test_costs_of_a_saved_model_are_predicted(trained, tmp_path, capsys):
    found = predicted(tmp_path, f"run={trained}")
    from llm2slm import LLM2SLM

    assert list(by_system(found)) == ["llm", "slm", "llm2slm", "lossless", "cascade"]
    assert_same(recorded(str(trained / "model")), LLM2SLM.from_pretrained(trained / "model"))
    alone = predicted(tmp_path / "alone", "run=builtin/llm")
    assert list(by_system(alone)) == ["llm"]


def test_only_the_config_is_read(tmp_path):
    for name in ("llm", "slm"):
        LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4).save_pretrained(
            tmp_path / name
        )
    models = [f"model.{side}.name={tmp_path / side}" for side in ("llm", "slm")]
    found = predicted(tmp_path / "out", *models, "model.slm.layers=2", "model.tokenizers=offsets", "slm_vocab=500")
    llm, slm = by_system(found)["llm"], by_system(found)["slm"]
    block = 4 * 64 * 64 + 3 * 64 * 96
    assert llm["weights_mb"] == pytest.approx(2 * (4 * block + 2 * 32_000 * 64) / 1e6)
    assert slm["weights_mb"] == pytest.approx(2 * (2 * block + 2 * 500 * 64) / 1e6)
    assert found["models"]["llm"]["config"] == "folder"


@pytest.mark.parametrize("path", sorted((ROOT / "conf/model").glob("*lm/*.yaml")), ids=lambda path: path.stem)
def test_the_model_of_every_group_has_a_shipped_config(path):
    values = yaml.safe_load(path.read_text("utf-8"))
    name = values.get(path.parent.name, values).get("name")
    assert name is None or name == "builtin/llm" or name in known()


def test_times_are_the_maximum_of_memory_and_compute_time():
    device = Device(bandwidth=100, tflops={"float32": 2}, overhead=50)
    work = Work(passes=3, blocks=4, flops=4e9, weights=1e8, cache=1e6)
    cost = Cost((work,), (), 1e8, 1e6, 4, 4)
    assert cost.bytes_of(work, batch=2) == 3 * 1e8 * 4 + 2 * 1e6 * 4
    launched = 1e-3 * 50 * 3 * 4
    assert least_times(cost, device, "float32").total == pytest.approx(1e3 * (1.2e9 + 4e6) / 100e9 + launched)
    assert least_times(cost, device, "float32", batch=8).total == pytest.approx(1e3 * 8 * 4e9 / 2e12 + launched)


@pytest.mark.parametrize(("fixed", "slope"), [(10, 1), (0.5, 1), (100, 1.9), (0, 3), (1000, 1.99)])
def test_break_even_is_the_first_length_that_is_faster(fixed, slope):
    found = break_even(lambda tokens: fixed + slope * tokens, lambda tokens: 2 * tokens)
    assert found == (next((n for n in range(1, LONGEST) if fixed + slope * n < 2 * n), None))
    if fixed > 0 and slope < 2:
        assert found == max(1, ceil(fixed / (2 - slope) + 1e-9))


def test_this_machine_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(ceilings, "SECONDS", 0.01)
    device = predicted(tmp_path, *PAIR, "device=measure", "dtype=float32")["device"]
    assert device["bandwidth"] > 0.01 and device["tflops"]["float32"] > 1e-5
    assert device["source"] == "measured on this machine"


def test_settings_of_unbuilt_pairs_are_checked(zoo):
    with pytest.raises(UserError, match=r"model.pool=4 is for model.conditioning=prepend; it is add"):
        configured(config(zoo, ("flan", "gpt2"), {"mode": "add", "pool": 4}, Tokenizers.offsets))


def test_the_example_in_the_documentation_is_reproduced(tmp_path):
    """Its command gives the numbers of its table, and those in the text below."""
    page = (ROOT / "docs" / "costs.md").read_text("utf-8")
    [command] = [call for call in calls(page) if "device=cpu-2-cores" in call]
    example, text = page.partition("<!-- example: begin")[2].split("<!-- example: end -->")
    found = predicted(tmp_path, *command[1:])
    rows = [[each.strip() for each in line.strip("|").split("|")] for line in example.splitlines() if line[:1] == "|"]
    assert rows[2:] == [[str(row["response_tokens"]), row["system"], *cells(row)] for row in found["rows"]]
    speedups = [row["speedup"] for row in found["rows"] if row["system"] == "llm2slm"]
    assert "from {:.1f} for 8 tokens to {:.1f} for 64".format(*speedups) in text
    long = by_system(predicted(tmp_path / "long", *command[1:], "prompt_tokens=512", "response_tokens=64"))
    assert f"`prompt_tokens=512` it is {long['llm2slm']['speedup']:.1f} for 64 tokens" in " ".join(text.split())


def test_the_documentation_lists_the_families():
    page = (ROOT / "docs" / "costs.md").read_text("utf-8").partition("## Families")[2]
    assert set(re.findall(r"`(\w+)`", page)) - {"costs"} == set(families.FAMILIES) - {"t5_gemma_module"}
