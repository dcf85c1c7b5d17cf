"""Systems whose every call takes a known time on a clock that only they advance."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from llm2slm.types import Batch, SystemKind

EOS = 1


class Words:
    """A tokenizer of white-space words: id = 2 + length of the word; ends a prompt with eos."""

    eos_token_id = EOS

    def __call__(self, text: str, add_special_tokens: bool = True, **_: bool) -> dict[str, list[int]]:
        ids = [2 + len(word) for word in text.split()]
        return {"input_ids": [*ids, EOS] if add_special_tokens else ids}


@dataclass
class FakeCollator:
    """Remembers texts: `seen` are the batches that were asked for."""

    slm_tokenizer: Words = field(default_factory=Words)
    llm_tokenizer: Words | None = None
    seen: list[list[str]] = field(default_factory=list)
    max_prompt_tokens: int = 512

    def batch_of_texts(self, texts: list[str]) -> Batch:
        self.seen.append(list(texts))
        rows = [torch.tensor(self.slm_tokenizer(text)["input_ids"]) for text in texts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Batch(ids, (ids != 0).long())

    def decode(self, ids_BT: Tensor) -> list[str]:
        return [" ".join(str(i) for i in row if i > EOS) for row in ids_BT.tolist()]


class FakeSystem:
    """Takes `prefill` + (T - 1) x `step` seconds (times `slow(call)`), and writes exactly what is forced.

    Args:
        log: a list shared by systems; each call adds (name, rows, prompt length of row 0, tokens).
        stops_at: writes at most so many tokens.
        ends_at: position of an eos within the answer.
    """

    training = False
    encoder = None
    projector = crossing = None
    config = SimpleNamespace(pool=None)
    generation_config = SimpleNamespace(eos_token_id=EOS)
    device = torch.device("cpu")

    def __init__(self, name, clock, log, prefill=0.0, step=0.0, kind=SystemKind.slm, slow=None, **faults) -> None:
        self.name, self.clock, self.log = name, clock, log
        self.prefill, self.step, self.kind, self.faults = prefill, step, kind, faults
        self.slow = slow or (lambda call: 1.0)
        self.collator = FakeCollator()
        self.slm = nn.Linear(2, 2)
        self.slm.config = SimpleNamespace(to_dict=lambda: {"model_type": "fake"})
        self.calls = 0
        self.modes = []

    def eval(self):
        return self.train(False)

    def train(self, mode=True):
        self.training = mode
        return self

    def generate(
        self, batch: Batch, max_new_tokens: int, min_new_tokens: int, do_sample: bool, num_beams: int
    ) -> Tensor:
        assert max_new_tokens == min_new_tokens and not do_sample and num_beams == 1
        self.modes.append((self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        tokens = min(max_new_tokens, self.faults.get("stops_at", max_new_tokens))
        self.clock.now += (self.prefill + (max_new_tokens - 1) * self.step) * self.slow(self.calls)
        self.calls += 1
        rows = batch.slm_ids_BQ.shape[0]
        self.log.append((self.name, rows, int(batch.slm_mask_BQ[0].sum()), max_new_tokens))
        ids = torch.full((rows, tokens), 7)
        if (end := self.faults.get("ends_at")) is not None and end < tokens:
            ids[-1, end] = EOS
        return ids


class FakeClock:
    """Seconds that pass only where a fake system spends them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
