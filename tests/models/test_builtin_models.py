"""The models that the package ships: they fit together, are small enough, and know what their README says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llm2slm.data.builtin import corpus_rows
from llm2slm.evaluation.metrics import score
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.pretrained import locate, read_config

MODELS = ("llm", "slm")


def folder(name):
    return Path(locate(f"builtin/{name}"))


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_what_the_readme_says_and_small_enough_to_ship(name):
    weights = load_file(folder(name) / "model.safetensors")
    size = (folder(name) / "model.safetensors").stat().st_size / 1e6
    text = (folder(name) / "README.md").read_text(encoding="utf-8")
    parameters, megabytes = re.search(r"^\* ([\d,]+) parameters, ([\d.]+) MB", text, re.MULTILINE).groups()
    assert sum(tensor.numel() for tensor in weights.values()) == int(parameters.replace(",", ""))
    assert float(megabytes) == pytest.approx(size, abs=0.06)
    assert size <= 12


def test_both_read_with_one_tokenizer():
    first, second = (json.loads((folder(name) / "tokenizer.json").read_text(encoding="utf-8")) for name in MODELS)
    assert first == second


def test_the_slm_is_the_small_one():
    llm, slm = (read_config(f"builtin/{name}") for name in MODELS)
    assert slm.num_decoder_layers <= llm.num_decoder_layers / 8  # what makes it quick
    assert slm.num_layers < llm.num_layers


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_the_readme_are_those_of_the_weights(name):
    """On the first 60 test rows instead of 1,000: within what so few rows vary."""
    text = (folder(name) / "README.md").read_text(encoding="utf-8")
    told = float(re.search(r"\| translation \| chrf \| ([\d.]+) \|", text).group(1))
    rows = corpus_rows("translation", "test", 60, 1)
    model = LLM2SLM.from_pretrained(f"builtin/{name}")
    answers = model.generate_text(["translate English to German: " + row["source"] for row in rows], max_new_tokens=64)
    assert score(("chrf",), answers, [row["target"] for row in rows])["chrf"].value == pytest.approx(told, abs=6)
