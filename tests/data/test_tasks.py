"""Tasks: prompts, targets and defaults."""

from __future__ import annotations

import pytest

from llm2slm.config import TaskConfig
from llm2slm.data.tasks import TASKS, resolve
from llm2slm.types import Example, UserError


def test_example_has_prefix_and_keeps_inner_white_space():
    row = {"source": " Amanda: hi  there\nJerry:\thello\n", "target": "\nThey greet.\n "}
    assert TASKS["summarization"].example(row, 7) == Example(
        index=7,
        source="Amanda: hi  there\nJerry:\thello",
        prompt="summarize: Amanda: hi  there\nJerry:\thello",
        target="They greet.",
    )


@pytest.mark.parametrize(
    ("name", "prefix", "metrics", "tokens"),
    [
        ("translation", "translate English to German: ", ("bleu", "chrf"), 64),
        ("summarization", "summarize: ", ("rougeL", "rouge1", "rouge2", "rougeLsum"), 96),
        ("instruction", "", ("rougeL", "exact_match"), 128),
        ("text", "", ("rougeL", "chrf", "exact_match"), 128),
        ("mixture", "", ("bleu", "rougeL"), 128),
    ],
)
def test_tasks_have_default_prefixes_metrics_and_lengths(name, prefix, metrics, tokens):
    task = resolve(TaskConfig(name=name))
    assert (task.prefix, task.metrics, task.max_new_tokens, task.num_beams) == (prefix, metrics, tokens, 1)


def test_settings_override_the_defaults_of_a_task():
    task = resolve(TaskConfig(name="translation", prefix="", metrics=["ter"], max_new_tokens=9, num_beams=4))
    assert (task.prefix, task.metrics, task.max_new_tokens, task.num_beams) == ("", ("ter",), 9, 4)


def test_languages_set_the_default_prefix_of_translation_only():
    pair = ("English", "French")
    assert resolve(TaskConfig("translation"), pair).prefix == "translate English to French: "
    assert resolve(TaskConfig("translation", prefix="x "), pair).prefix == "x "
    assert resolve(TaskConfig(), pair).prefix == ""
    assert resolve(TaskConfig(name="summarization"), pair).prefix == "summarize: "


def test_a_mixture_uses_the_prefix_of_the_task_of_each_row():
    task = resolve(TaskConfig(name="mixture"))
    names = ("translation", "summarization", "instruction")
    prompts = [task.example({"task": name, "source": "s", "target": "t"}, 0).prompt for name in names]
    assert prompts == ["translate English to German: s", "summarize: s", "s"]


@pytest.mark.parametrize(
    ("row", "found"), [({}, "row 3 has no task"), ({"task": "poetry"}, "row 3 has the task 'poetry'")]
)
def test_mixture_without_a_known_task_is_an_error(row, found):
    with pytest.raises(UserError, match=found):
        resolve(TaskConfig(name="mixture")).example({"source": "s", "target": "t", **row}, 3)


def test_an_unknown_task_is_reported_with_the_nearest_name():
    with pytest.raises(UserError, match=r"task\.name=summarisation: unknown; did you mean summarization\?"):
        resolve(TaskConfig(name="summarisation"))
