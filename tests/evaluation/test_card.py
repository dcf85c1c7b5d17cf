"""The model card: each figure is from a result, with its conditions; the metadata is valid for the Hub."""

from __future__ import annotations

import ast
import copy
import re
from typing import Any

import pytest
from huggingface_hub import ModelCard

from llm2slm import runs
from llm2slm.config import RunConfig
from llm2slm.evaluation.report.model_card import model_card
from llm2slm.runs import Score, SpeedRow, Spread, System
from llm2slm.types import Init, SystemKind

LLM = {
    "name": "google/flan-t5-base",
    "layer": None,
    "dtype": "bfloat16",
    "fingerprint": "0123456789ab",
    "revision": "c" * 40,
}
COMMIT = "f" * 40


def speed(total: float, speedup: float) -> SpeedRow:
    one = Spread(total, total - 1, total + 1)
    return SpeedRow(
        1, 21.5, 17.25, "test", "float32", 2, "transformers generate, greedy", 2, 5, Spread(12.25, 12.0, 13.0),
        Spread(3.5, 3.25, 3.75), one, one, 99.0, 1e9, Spread(speedup, speedup - 0.25, speedup + 0.25),
    )  # fmt: skip


def result(*systems: System, verb: str = "train") -> dict[str, Any]:
    made = runs.Result(verb, 7, "abc", 12.0, list(systems), device="a processor, 2 cores", git_commit=COMMIT)
    return runs.plain(made)


@pytest.fixture
def config() -> dict[str, Any]:
    run = RunConfig()
    run.model.llm.name, run.model.slm.name = "google/flan-t5-base", "/home/somebody/private/slm"
    run.data.name, run.data.train = "json", "/home/somebody/private/train.jsonl"
    run.task.name, run.task.prefix = "summarization", "summarize: "
    return runs.plain(run)


def trained() -> dict[str, Any]:
    quality = {"rouge1": Score(41.5, "rouge|stemmer", 819), "rougeL": Score(33.25, "rouge|stemmer", 819)}
    system = System("llm2slm", "llm2slm", {"total": 250_000_000, "trainable": 60_500_000}, quality)
    system.notes = {
        "split": "validation", "training_seconds": 90.0, "optimizer_steps": 3000,
        "data": {"train": {"rows": 12_000, "dropped": 3, "overlong_prompts": 0, "overlong_responses": 3}},
    }  # fmt: skip
    return result(system)


def timed() -> dict[str, Any]:
    systems = [System(k, k, {"total": 1, "trainable": 1}) for k in ("llm", "llm2slm")]
    systems[0].speed, systems[1].speed = [speed(400.0, 1.0)], [speed(100.0, 4.0)]
    return result(*systems, verb="benchmark")


def test_a_control_is_stated_first(config: dict[str, Any]) -> None:
    del config["model"]["control"]  # a run of a version without controls
    plain = model_card("m", config, trained(), llm=LLM)
    assert "control" not in plain
    for control, words in [("constant", "constant representations replace"), ("zero", "zeros replace"),
                           ("shuffled", "of another prompt of the batch replace")]:  # fmt: skip
        config["model"]["control"] = control
        said = model_card("m", config, trained(), llm=LLM)
        new = said.replace(plain.partition("# m\n\n")[2], "").partition("# m\n\n")[2]
        assert new.startswith(f"**A control (`model.control={control}`) for comparison") and words in new
        assert len(new.splitlines()) == 2  # the rest is unchanged


def test_a_cut_is_described(config: dict[str, Any]) -> None:
    plain = model_card("m", config, trained(), llm=LLM, slm={"model_type": "llama"})
    one = {
        "llm2slm_cut": {"blocks": [1, 3, 6], "depth": 6},
        "llm2slm_vocab": {"kept": 14926, "of": 49152, "sha256": "0"},
    }
    two = {"llm2slm_cut": {"encoder": {"blocks": [1, 4], "depth": 4}, "decoder": {"blocks": [2], "depth": 3}}}
    for slm, kept in [
        (one, "blocks 1, 3, 6 of 6 and 14,926 of 49,152 vocabulary entries"),
        (two, "encoder blocks 1, 4 of 4 and decoder blocks 2 of 3"),
    ]:
        card = model_card("m", config, trained(), llm=LLM, slm=slm)
        line = f"The small model is cut from its pretrained model; it keeps {kept}."
        assert card.replace(f"{line}\n\n", "") == plain and line in card


def test_every_figure_is_stated_with_its_conditions(config: dict[str, Any]) -> None:
    text = model_card("me/model", config, trained(), [timed()], license="apache-2.0", llm=LLM)
    for said in (
        "| llm2slm | 41.50 | 33.25 | 819 |", "ROUGE-1: `rouge|stemmer`", "On the validation split", "12000 rows",
        "overlong responses 3, dropped 3", "250 M parameters", "60.5 M trained", "3000 steps in 1 min 30 s", "seed 7",
        f"commit `{COMMIT}`", "a processor, 2 cores", "| llm | float32 | 1 | 21.5 | 17.2 | 12.2 (12.0–13.0) |",
        "| 4.00× (3.75–4.25) |",
        "100 (99.0–101)", "| llm2slm | float32 | 1 | 21.5 | 17.2 |", "transformers generate, greedy decoding",
        "medians of 5 rounds after 2 of warm-up", "2 threads", "`google/flan-t5-base`", "`0123456789ab`", "(bfloat16)",
        "* texts longer than 512 (prompt) or 256 (response) tokens: error\n",
        "'summarize: '", "License: apache-2.0", "from_pretrained('me/model')",
    ):  # fmt: skip
        assert said in text.replace("\u00a0", " "), said


def test_the_teacher_of_a_distillation_is_stated(config: dict[str, Any]) -> None:
    """Also if the teacher is not a part of the model."""
    config["model"]["kind"] = "slm"
    assert "distilled" not in model_card("me/model", config, trained())
    config["optim"] |= {"distill": 0.25, "distill_temperature": 2.0}
    text = model_card("me/model", config, trained())
    assert "the next-token distribution of `google/flan-t5-base` (weight 0.25, temperature 2)" in text
    assert "made with `slm` (a local folder) and `google/flan-t5-base`" in text
    config["model"]["llm"]["name"] = "/home/somebody/private/teacher"
    assert "private" not in model_card("me/model", config, trained())
    for key in ("distill", "distill_temperature"):  # a run of an earlier version
        del config["optim"][key]
    assert "distilled" not in model_card("me/model", config, trained())


def test_metadata_for_the_hub_has_license_base_model_and_scores(config: dict[str, Any]) -> None:
    card = ModelCard(model_card("me/model", config, trained(), [timed()], license="apache-2.0", llm=LLM))
    assert card.data.license == "apache-2.0"
    assert (card.data.library_name, card.data.pipeline_tag) == ("llm2slm", "summarization")
    assert card.data.base_model == ["google/flan-t5-base"]  # not the folder of the SLM
    scores = {score.metric_type: (score.metric_value, score.metric_config) for score in card.data.eval_results}
    assert scores == {"rouge1": (41.5, "rouge|stemmer"), "rougeL": (33.25, "rouge|stemmer")}
    assert {score.dataset_split for score in card.data.eval_results} == {"validation"}


def test_a_score_by_a_local_model_states_no_folder(config: dict[str, Any]) -> None:
    run = trained()
    score = {"value": 91.25, "signature": "BERTScore F1, bert (a local folder)", "n": 819}
    run["systems"][0]["quality"]["bertscore:/home/somebody/bert:9"] = score
    text = model_card("m", config, run, llm=LLM)
    assert "/home" not in text and "somebody" not in text
    assert "BERTScore (bert:9)" in text and "91.25" in text
    assert "bertscore" in {score.metric_type for score in ModelCard(text).data.eval_results}


def test_no_local_path_is_stated(config: dict[str, Any]) -> None:
    own = trained() | {"command": "llm2slm train model.llm.name=/home/somebody/llm hydra.run.dir=~/private/runs/x"}
    text = model_card("m", config, own, llm=LLM | {"name": "/home/somebody/private/llm"})
    assert "/home" not in text and "somebody" not in text and "private" not in text
    assert "`llm` (a local folder)" in text and "`slm` (a local folder)" in text and "train.jsonl" in text
    assert "`llm2slm train model.llm.name=llm hydra.run.dir=x`" in text
    config["model"]["slm"]["name"] = "models/mine"  # a folder at the time of training, but not when the card is written
    own["systems"][0]["notes"]["folders"] = ["models/mine"]
    told = model_card("m", config, own, llm=LLM)
    assert "`mine` (a local folder)" in told and ModelCard(told).data.base_model == ["google/flan-t5-base"]


def test_the_reach_of_the_representations_is_stated(config: dict[str, Any]) -> None:
    assert "a projector maps its representations into a small language model" in model_card("m", config, None, llm=LLM)
    text = model_card("m", config, None, llm=LLM, reach="its keys and values are the cache of")
    assert "; its keys and values are the cache of a small language model (initialized from" in text
    assert "projector" not in text


def test_numbers_have_the_right_plural(config: dict[str, Any]) -> None:
    run, bench = trained(), timed()
    run["systems"][0]["notes"] |= {"optimizer_steps": 1, "data": {"train": {"rows": 1}}}
    for system in bench["systems"]:
        for row in system["speed"]:
            row |= {"threads": 1, "repeats": 1}
    text = model_card("m", config, run, [bench], llm=LLM)
    for said in ("* 1 step in", "train: 1 row\n", "greedy decoding, 1 thread;", "medians of 1 round after 2"):
        assert said in text, said


def test_unknown_facts_are_left_out(config: dict[str, Any]) -> None:
    text = model_card("m", config, None, llm=LLM)
    assert "License: not stated" in text and "license:" not in text
    for heading in ("## Quality", "## Speed", "## Training"):
        assert heading not in text
    assert "## Speed" not in model_card("m", config, trained(), llm=LLM)
    assert "## Training" not in model_card("m", config, None, [timed()], llm=LLM)


def test_the_card_describes_this_model_and_not_another_one_in_the_same_result(config: dict[str, Any]) -> None:
    both = result(
        System("slm", "slm", {"total": 7, "trainable": 7}, {"rouge1": Score(1.5, "rouge|stemmer", 819)}),
        System("last", "llm2slm", {"total": 9, "trainable": 9}, {"rouge1": Score(2.5, "rouge|stemmer", 819)}),
        verb="demo",
    )
    card = ModelCard(model_card("m", config, trained(), [both], llm=LLM))
    assert {score.metric_value for score in card.data.eval_results} == {41.5, 33.25}
    assert "250" in card.text and "| last | 2.50 | 819 |" in card.text  # next to the others, by name


def test_llm_origin_random_weights_and_slm_alone_are_stated(config: dict[str, Any]) -> None:
    inside = model_card("m", config, None, llm=LLM | {"name": "./llm", "origin": {"name": "google/flan-t5-base"}})
    assert "`google/flan-t5-base`" in inside and "./llm" not in inside
    fresh = copy.deepcopy(config)
    fresh["model"]["slm"] |= {"init": Init.random.value, "name": "google/t5-small"}
    text = model_card("m", fresh, None, llm=LLM)
    assert "(initialized from random weights)" in text and "t5-small" not in text
    fresh["model"]["kind"] = SystemKind.slm.value
    alone = model_card("m", fresh, None, llm=None)
    assert "The shape of `google/t5-small`, trained alone" in alone and "flan" not in alone
    fresh["model"]["slm"] |= {"init": None, "name": "me/T5-Mine", "tune": "prefix"}
    text = model_card("m", fresh, None, llm=None)
    assert "`me/T5-Mine`, frozen; only a prefix of keys and values was trained" in text


@pytest.mark.parametrize("awkward", ['say "no": ', "it's ", "a\\nb\n", "`x` "])
def test_special_characters_in_texts_are_preserved(config: dict[str, Any], awkward: str) -> None:
    config["task"]["prefix"] = awkward
    text = model_card('my "model"\n# not a heading', config, trained(), llm=LLM)
    [block] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Constant)]
    assert awkward + "..." in [node.value for node in calls]
    assert "\n# not" not in text
    ModelCard(text)
    config["task"]["name"] = "mixture"
    assert "each with the prefix of its task" in model_card("m", config, trained(), llm=LLM)
