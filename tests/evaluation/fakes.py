"""Systems whose calls take known times on a clock that only these calls advance."""

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
    """Records texts: `seen` are the requested batches."""

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
    """A system and its decoder: takes `prefill` + (T - 1) x `step` seconds (times `slow(call)`), and generates exactly
    the forced tokens: one by one, or after the first `at_once` at a time.

    Args:
        log: a list shared by systems; each call adds (name, rows, prompt length of row 0, tokens).
        stops_at: generates at most this many tokens.
        ends_at: position of an eos within the answer.
        full_at: raises torch's out-of-memory error for batches of this many rows.
    """

    token_by_token = streams = True

    training = False
    encoder = None
    projector = crossing = None
    config = SimpleNamespace(pool=None)
    generation_config = SimpleNamespace(eos_token_id=EOS)
    device = torch.device("cpu")

    def __init__(self, name, clock, log, prefill=0.0, step=0.0, kind=SystemKind.slm, slow=None, **faults) -> None:
        self.name, self.clock, self.log = f"fake of {name}", clock, log
        self.system = name
        self.prefill, self.step, self.kind, self.faults = prefill, step, kind, faults
        self.slow = slow or (lambda call: 1.0)
        self.collator = FakeCollator()
        self.slm = nn.Linear(2, 2)
        self.slm.config = SimpleNamespace(to_dict=lambda: {"model_type": "fake"})
        self.calls = 0
        self.at_once = faults.pop("at_once", 1)
        self.modes = []

    def eval(self):
        return self.train(False)

    def train(self, mode=True):
        self.training = mode
        return self

    @property
    def model(self):
        return self

    def batch(self, texts):
        return self.collator.batch_of_texts(list(texts))

    def generate(
        self, batch: Batch, max_new_tokens: int, min_new_tokens: int, do_sample: bool, num_beams: int, on_tokens
    ) -> Tensor:
        assert max_new_tokens == min_new_tokens and not do_sample and num_beams == 1
        self.modes.append((self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        tokens = min(max_new_tokens, self.faults.get("stops_at", max_new_tokens))
        rows, slow, done = batch.slm_ids_BQ.shape[0], self.slow(self.calls), 1
        self.calls += 1
        if rows >= self.faults.get("full_at", rows + 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.log.append((self.system, rows, int(batch.slm_mask_BQ[0].sum()), max_new_tokens))
        self.clock.now += self.prefill * slow
        done = done if self.streams else max_new_tokens
        self.deliver(on_tokens, rows, done)
        while done < max_new_tokens:
            now = min(self.at_once, max_new_tokens - done)
            self.clock.now += now * self.step * slow
            self.deliver(on_tokens, rows, now)
            done += now
        ids = torch.full((rows, tokens), 7)
        if (end := self.faults.get("ends_at")) is not None and end < tokens:
            ids[-1, end] = EOS
        return ids

    def deliver(self, on_tokens, rows, tokens):
        on_tokens(torch.arange(rows), torch.full((rows, tokens), 7), torch.full((rows,), tokens))


class FakeClock:
    """Seconds that pass only while a fake system generates."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
