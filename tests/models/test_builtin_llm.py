"""The LLM in the package is small enough, and has the properties that its README states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file
from sampling import representatives

from llm2slm.builtin.corpora import corpus_rows
from llm2slm.data.tasks import TASKS
from llm2slm.evaluation.metrics.scores import score
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.loading.configs import locate

FOLDER = Path(locate("builtin/llm"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_weights_are_as_the_readme_states_and_small_enough_to_ship():
    weights = load_file(FOLDER / "model.safetensors")
    size = (FOLDER / "model.safetensors").stat().st_size / 1e6
    parameters, megabytes = re.search(r"^\* ([\d,]+) parameters, ([\d.]+) MB", README, re.MULTILINE).groups()
    assert sum(tensor.numel() for tensor in weights.values()) == int(parameters.replace(",", ""))
    assert float(megabytes) == pytest.approx(size, abs=0.06)
    assert size <= 12


@pytest.mark.parametrize(
    ("corpus", "metric", "rows", "slack"),
    representatives(
        [("translation", "bleu", 100, 3), ("summarization", "rougeL", 40, 6), ("instruction", "exact_match", 80, 15)],
        lambda case: case[0] == "instruction",
    ),
)
def test_scores_in_the_readme_are_reproduced(corpus, metric, rows, slack):
    """On fewer rows than the README's 1,000, hence within about three standard errors for this number of rows."""
    told = float(re.search(rf"\| {corpus} \| {metric} \| ([\d.]+) \|", README).group(1))
    drawn = corpus_rows(corpus, "test", rows, 1)
    model = LLM2SLM.from_pretrained("builtin/llm")
    prompts = [TASKS[corpus].example(row, 0).prompt for row in drawn]
    answers = model.generate_text(prompts, max_new_tokens=TASKS[corpus].max_new_tokens)
    assert score((metric,), answers, [row["target"] for row in drawn])[metric].value == pytest.approx(told, abs=slack)
