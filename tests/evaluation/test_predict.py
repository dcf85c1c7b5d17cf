"""Prediction over a split with a fake model: order, exactly once, batches of similar length."""

from types import SimpleNamespace

import pytest
import torch
from evaluation.fakes import EOS, FakeCollator

from llm2slm.data.tasks import Task
from llm2slm.evaluation.predict import predict, prediction_rows
from llm2slm.types import Batch, Example

TASK = Task("translation", "", ("bleu",), max_new_tokens=9, num_beams=3)
LENGTHS = [3, 1, 7, 2, 7, 5, 1]
EXAMPLES = [Example(10 + i, f"s{i}", " ".join(["w"] * n), f"t{i}") for i, n in enumerate(LENGTHS)]


class Echo:
    """Answers with the number of tokens in the prompt, and records its calls."""

    generation_config = SimpleNamespace(eos_token_id=EOS)

    def __init__(self) -> None:
        self.collator, self.device, self.training = FakeCollator(), torch.device("cpu"), True
        self.calls = []

    def train(self, mode=True):
        self.training = mode
        return self

    def eval(self):
        return self.train(False)

    def generate(self, batch: Batch, generation_config=None, *, reps=None, **arguments):
        assert generation_config is None and reps is None
        lengths = batch.slm_mask_BQ.sum(1)
        self.calls.append(SimpleNamespace(arguments=arguments, lengths=lengths.tolist(), training=self.training))
        return torch.stack([lengths + 100, torch.full_like(lengths, EOS), torch.full_like(lengths, 0)], 1)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_order_is_kept_and_each_example_is_answered_once(batch_size):
    model = Echo()
    assert predict(model, EXAMPLES, TASK, batch_size, progress=False) == [str(n + 1 + 100) for n in LENGTHS]
    asked = [text for texts in model.collator.seen for text in texts]
    assert sorted(asked) == sorted(example.prompt for example in EXAMPLES)
    assert all(len(texts) <= batch_size for texts in model.collator.seen)


def test_batches_are_of_similar_length_longest_first():
    model = Echo()
    predict(model, EXAMPLES, TASK, 2, progress=False)
    assert [call.lengths for call in model.calls] == [[8, 8], [6, 4], [3, 2], [2]]


def test_decoding_defaults_of_the_task_are_used_in_eval_mode_and_the_mode_is_restored():
    model = Echo()
    predict(model, EXAMPLES, TASK, 4, progress=False)
    assert all(call.arguments == {"max_new_tokens": 9, "num_beams": 3} for call in model.calls)
    assert not any(call.training for call in model.calls)
    assert model.training


def test_on_text_receives_every_answer_with_its_example():
    heard = {}
    predict(
        Echo(), EXAMPLES, TASK, 2, progress=False, on_text=lambda example, text: heard.update({example.index: text})
    )
    assert heard == {10 + i: str(n + 101) for i, n in enumerate(LENGTHS)}


def test_the_bar_shows_rows_and_tokens_per_second(capsys):
    predict(Echo(), EXAMPLES, TASK, 2, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "7/7" in captured.err and "rows/s" in captured.err and "tokens/s" in captured.err


def test_without_examples_there_are_no_answers():
    assert predict(Echo(), [], TASK, 2, progress=False) == []


def test_prediction_rows_are_paired_in_order():
    rows = prediction_rows(EXAMPLES[:2], ["a", "b"])
    assert rows == [
        {"source": "s0", "target": "t0", "prediction": "a"},
        {"source": "s1", "target": "t1", "prediction": "b"},
    ]
    with pytest.raises(ValueError):
        prediction_rows(EXAMPLES[:2], ["a"])
