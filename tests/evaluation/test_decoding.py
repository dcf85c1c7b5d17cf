"""The effective settings of decoding: transformers' `generate` itself shows which settings have no effect."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_runs import tiny_run
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from llm2slm.commands import label
from llm2slm.commands.benchmark import run as benchmark
from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.generate import run as generate
from llm2slm.commands.train import run as train
from llm2slm.config import GenerateConfig
from llm2slm.evaluation.decoding_settings import effective_settings, published_settings, sampling
from llm2slm.models.loading.published import NEUTRAL, OF_BEAMS, OF_SAMPLING
from llm2slm.testing import write_tiny_t5
from llm2slm.types import UserError

ASKED = {"max_new_tokens": 6, "num_beams": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("decoding")


@pytest.fixture(scope="module")
def model(root):
    place = write_tiny_t5(root / "t5", seed=3, decoder_layers=2)
    found = AutoModelForSeq2SeqLM.from_pretrained(place).eval()
    ids = AutoTokenizer.from_pretrained(place)(["two little dogs see it", "it"], return_tensors="pt", padding=True)
    return found, dict(ids)


KINDS = [(NEUTRAL, {"num_beams": 1}), (OF_BEAMS, {"num_beams": 3}), (OF_SAMPLING, {"num_beams": 1, "do_sample": True})]


@pytest.mark.parametrize(
    ("name", "neutral", "way"),
    [(name, value, way) for settings, way in KINDS for name, value in settings.items() if value is not None],
)
def test_a_neutral_value_has_no_effect(model, name, neutral, way):
    found, inputs = model

    def written(**settings):
        torch.manual_seed(1)
        drawn = {"top_k": 0} if way.get("do_sample") else {}
        return found.generate(**inputs, max_new_tokens=12, **way, **drawn | settings).tolist()

    assert written(**{name: neutral}) == written()


def test_arguments_override_the_settings_of_the_model():
    own = GenerationConfig(
        no_repeat_ngram_size=3, length_penalty=2.0, temperature=0.3, forced_bos_token_id=4, min_length=0
    )
    always = {"no_repeat_ngram_size": 3, "forced_bos_token_id": 4}
    assert published_settings(own, {"num_beams": 1}) == always
    assert published_settings(own, {"num_beams": 2}) == always | {"length_penalty": 2.0}
    assert published_settings(own, {"num_beams": 1, "no_repeat_ngram_size": 5}) == {"forced_bos_token_id": 4}
    drawn = {"num_beams": 1, "do_sample": True}
    assert published_settings(own, drawn) == always | {"temperature": 0.3}
    assert published_settings(own, drawn | sampling(0.9, 0.5)) == always
    assert effective_settings(own, drawn | sampling(0.9, 0.5)) == {
        "do_sample": True, "num_beams": 1, "temperature": 0.9, "top_p": 0.5, "top_k": 0, **always
    }  # fmt: skip
    assert published_settings(GenerationConfig(num_beams=4, length_penalty=2.0), {}) == {"length_penalty": 2.0}


def published(root, name, **settings):
    """A tiny T5 with published generation settings."""
    place = write_tiny_t5(root / name, seed=3, decoder_layers=2)
    path = place / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return str(place)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def test_a_result_records_the_settings_that_its_answers_were_generated_with(root, capsys):
    config = tiny_run(root)
    config.run = published(root, "plain")
    [system] = evaluate(config, root / "plain-run").systems
    assert system.notes["decoding"] == {"do_sample": False, **ASKED}
    assert "generation_config" not in capsys.readouterr().err
    config.run = published(root, "strict", no_repeat_ngram_size=1, length_penalty=3.0)
    [system] = evaluate(config, root / "strict-run").systems
    assert system.notes["decoding"] == {"do_sample": False, **ASKED, "no_repeat_ngram_size": 1}
    assert (
        capsys.readouterr().err.count(
            "also decodes with the settings of its generation_config.json: no_repeat_ngram_size=1\n"
        )
        == 1
    )
    config.task.num_beams = 2
    [system] = evaluate(config, root / "beams-run").systems
    assert system.notes["decoding"]["length_penalty"] == 3.0
    assert "no_repeat_ngram_size=1, length_penalty=3.0\n" in capsys.readouterr().err
    plain, strict = rows_of(root / "plain-run"), rows_of(root / "strict-run")
    assert [row["prediction"] for row in plain] != [row["prediction"] for row in strict]
    tokenizer = AutoTokenizer.from_pretrained(config.run)
    own = AutoModelForSeq2SeqLM.from_pretrained(config.run).eval()  # transformers itself with that file
    for row in strict:
        ids = tokenizer(row["source"], return_tensors="pt")
        written = own.generate(**ids, **ASKED, do_sample=False)
        assert tokenizer.decode(written[0], skip_special_tokens=True) == row["prediction"]


def test_unfinished_labels_are_not_resumed_with_other_settings(root, tmp_path, monkeypatch, capsys):
    config = tiny_run(root)
    config.run = published(root, "writer", repetition_penalty=1.5)
    with monkeypatch.context() as patch:
        patch.setattr(label, "answer_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            label.run(config, tmp_path)
    published(root, "writer", repetition_penalty=2.5)
    with pytest.raises(UserError, match=r"was begun with other settings .*repetition_penalty"):
        label.run(config, tmp_path)
    [system] = label.run(config, tmp_path / "new").systems
    assert system.notes["decoding"] == {"do_sample": False, **ASKED, "repetition_penalty": 2.5}
    assert "repetition_penalty=2.5" in capsys.readouterr().err


def interrupted(*_, **__):
    raise KeyboardInterrupt
    yield


BREAKING = {
    "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True, "output_attentions": True,
    "stop_strings": ["e"], "penalty_alpha": 0.6, "prompt_lookup_num_tokens": 3, "max_time": 1e-9, "num_beam_groups": 2,
    "cache_implementation": "static", "do_sample": True, "top_k": 4,
}  # fmt: skip
"""Settings with which `generate` does not return one row of ids for each prompt."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slm", "llm2slm", "llm"])
def test_every_verb_ignores_settings_that_would_break_its_output(tmp_path, capsys, kind):
    answers = {}
    for settings in ({}, BREAKING):
        config, place = tiny_run(tmp_path, kind), tmp_path / f"{len(settings)}"
        side = config.model.llm if kind == "llm" else config.model.slm
        side.name = published(place, "model", **settings)
        capsys.readouterr()
        train(config, place / "run")
        told = [line for line in capsys.readouterr().err.splitlines() if "generation_config.json not used" in line]
        assert len(told) == bool(settings)
        config.run = str(place / "run")
        evaluate(config, place / "evaluated")
        label.run(config, place / "labels")
        config.benchmark.prompts, config.benchmark.repeats, config.benchmark.memory = 2, 1, False
        config.systems = {"published": side.name}  # unchanged, in addition to the trained one
        benchmark(config, place / "timed")
        generate(GenerateConfig(run=side.name, input=config.data.test, output=str(place / "a.jsonl")), place)
        files = ("run/predictions.jsonl", "evaluated/predictions.jsonl", "labels/labels.jsonl", "a.jsonl")
        answers[len(settings)] = [(place / name).read_text("utf-8") for name in files]
        assert (place / "timed" / "result.json").is_file()
    assert answers[0] == answers[len(BREAKING)]
