"""Shares of changed tokens and responses, counted by hand, and changes of metrics by the package of the metric."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sacrebleu
import torch

from llm2slm.data.tasks import Task
from llm2slm.evaluation.decoder_changes import changed, changes, line
from llm2slm.types import Example

END, WORDS = 1, ["", "", "a", "dog", "cat", "runs", "sleeps"]


class Fixed:
    """A decoder with known responses."""

    def __init__(self, name: str, responses: dict[str, list[int]]) -> None:
        self.name, self.responses, self.batches = name, responses, []  # type: ignore[var-annotated]
        collator = SimpleNamespace(decode=lambda rows: [" ".join(WORDS[i] for i in row if i > 1) for row in rows])
        self.model: Any = SimpleNamespace(
            collator=collator, generation_config=SimpleNamespace(eos_token_id=END, pad_token_id=0)
        )

    def batch(self, texts: Any) -> list[str]:
        return list(texts)

    def generate(self, batch: list[str], *_: Any, **arguments: Any) -> torch.Tensor:
        assert arguments == {"max_new_tokens": 8, "num_beams": 1}
        self.batches.append(len(batch))
        rows = [self.responses[text] for text in batch]
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


@pytest.mark.parametrize(
    ("found", "exact", "responses", "tokens"),
    [
        ([[2, 3, 1]], [[2, 3, 1]], 0, 0),
        ([[2, 4, 1]], [[2, 3, 1]], 1, 1 / 3),
        ([[2, 1]], [[2, 3, 1]], 1, 2 / 3),  # the end token at another position, and one token fewer
        ([[2, 3, 5, 1], [2, 1]], [[2, 3, 1], [2, 1]], 1 / 2, 2 / 6),
        ([[]], [[]], 0, 0),
    ],
)
def test_shares_of_changed_responses_and_tokens(
    found: list[list[int]], exact: list[list[int]], responses: float, tokens: float
) -> None:
    assert changed(found, exact) == pytest.approx({"responses": responses, "tokens": tokens})
    assert changed(exact, found) == changed(found, exact)


def test_changes_of_metrics_and_their_line() -> None:
    targets = {"p": "a dog runs", "q": "a cat sleeps", "r": "a cat runs"}
    exact = Fixed("captured", {"p": [2, 3, 5, 1], "q": [2, 4, 6, 1], "r": [2, 1]})
    other = Fixed("int8", exact.responses | {"q": [2, 4, 5, 1]})
    examples = [Example(i, text, text, target) for i, (text, target) in enumerate(targets.items())]
    task = Task(name="text", prefix="", metrics=("chrf", "perplexity"), max_new_tokens=8)
    found = changes(other, exact, examples, task, batch_size=2)
    assert other.batches == exact.batches == [2, 1]
    references = [list(targets.values())]
    scores = [
        sacrebleu.corpus_chrf(answers, references).score
        for answers in (["a dog runs", "a cat runs", "a"], ["a dog runs", "a cat sleeps", "a"])
    ]
    assert found == {
        "against": "captured",
        "rows": 3,
        "responses": pytest.approx(1 / 3),
        "tokens": pytest.approx(1 / 10),
        "metrics": {"chrf": pytest.approx(scores[0] - scores[1], abs=1e-5)},
    }
    assert line(found, "int8") == (
        "decoding=int8 against captured, 3 rows: 10.00% of the tokens and 33.33% of the responses changed; "
        f"chrF {scores[0] - scores[1]:+.2f}"
    )
