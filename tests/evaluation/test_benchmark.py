"""Timing with systems that advance a clock by known amounts: every figure is known beforehand."""

import gc
from collections import Counter

import pytest
import torch
from evaluation.fakes import EOS, FakeClock, FakeSystem, Words

from llm2slm.config import BenchmarkConfig
from llm2slm.evaluation.benchmark.timing import Clock, time_systems
from llm2slm.evaluation.benchmark.workload import cut_prompt, plan
from llm2slm.types import Example, SystemKind, UserError


def examples(*pairs: tuple[int, int]) -> list[Example]:
    """Rows with so many words in the prompt and in the target; no two prompts alike."""
    return [
        Example(i, "s", " ".join(["x" * (i + 1)] * prompt), " ".join(["y"] * target))
        for i, (prompt, target) in enumerate(pairs)
    ]


ROWS = examples((3, 4), (5, 9), (4, 2))


class Bench:
    """Two systems on one clock: an LLM of 10 ms + 4 ms a token, a hybrid of 12 ms + 1 ms a token."""

    def __init__(self, **hybrid) -> None:
        self.clock, self.log = FakeClock(), []
        self.systems = {
            "llm": FakeSystem("llm", self.clock, self.log, 0.010, 0.004, SystemKind.llm),
            "hybrid": FakeSystem("hybrid", self.clock, self.log, 0.012, 0.001, SystemKind.llm2slm, **hybrid),
        }

    def time(self, rows=ROWS, **config):
        seed, memory, engines = config.pop("seed", 1), config.pop("memory_of", None), config.pop("engines", None)
        baseline = "llm" if "llm" in self.systems else None
        cfg = BenchmarkConfig(**{"response_tokens": [], "repeats": 3, "warmup": 1, **config})
        clock = Clock(self.clock, lambda: None)
        return time_systems(
            self.systems, rows, cfg, baseline=baseline, engines=engines, seed=seed, memory=memory, clock=clock,
            progress=False,
        )  # fmt: skip


def all_equal(spread, value: float) -> bool:
    return [spread.median, spread.min, spread.max] == pytest.approx([value] * 3)


def test_grid_figures_are_the_analytic_ones():
    rows = Bench().time(prompts=0, batch=[1, 2], response_tokens=[8, 16])
    assert {name: [(r.batch, r.response_tokens) for r in own] for name, own in rows.items()} == {
        name: [(1, 8), (1, 16), (2, 8), (2, 16)] for name in ("llm", "hybrid")
    }
    row = rows["hybrid"][3]
    assert (row.lengths, row.dtype, row.warmup, row.repeats) == ("grid", "float32", 1, 3)
    assert row.decoding == "transformers generate, greedy"
    assert all_equal(row.prefill_ms, 12)
    assert all_equal(row.ms_per_token, 1)
    assert all_equal(row.total_ms, 12 + 15)
    assert all_equal(row.tokens_per_s, 2 * 16 / 0.027)
    assert all_equal(row.speedup, (10 + 15 * 4) / (12 + 15))
    assert all_equal(rows["llm"][3].speedup, 1)
    assert row.flops is None  # a model type without a cost model


def test_test_lengths_are_means_over_prompts_with_their_references_lengths():
    bench = Bench()
    rows = bench.time(prompts=2, warmup=0, repeats=1)
    # references of 4 and 9 words, each with its end: 5 and 10 tokens
    assert Counter((name, tokens) for name, _, _, tokens in bench.log) == Counter(
        {(name, tokens): 2 if tokens == 1 else 1 for name in ("llm", "hybrid") for tokens in (1, 5, 10)}
    )
    (row,) = rows["hybrid"]
    assert (row.lengths, row.batch, row.response_tokens) == ("test", 1, 7.5)
    assert row.prompt_tokens == ((3 + 1) + (5 + 1)) / 2
    assert all_equal(row.prefill_ms, 12)
    assert all_equal(row.total_ms, ((12 + 4) + (12 + 9)) / 2)
    assert all_equal(row.ms_per_token, 1)
    assert all_equal(row.tokens_per_s, 15 / 0.037)
    assert all_equal(row.speedup, ((10 + 16) + (10 + 36)) / 37)


def test_the_llm_tokenizer_of_the_first_system_counts():
    class Letters(Words):
        def __call__(self, text, add_special_tokens=True, **_: bool):
            ids = [3] * len(text.replace(" ", ""))
            return {"input_ids": [*ids, EOS] if add_special_tokens else ids}

    bench = Bench()
    bench.systems["llm"].collator.llm_tokenizer = Letters()
    rows = examples((3, 4), (5, 9))
    (condition,) = plan(bench.systems["llm"], rows, BenchmarkConfig(response_tokens=[]))
    assert condition.prompt_tokens == ((3 * 1 + 1) + (5 * 2 + 1)) / 2
    assert [request.response_tokens for request in condition.requests] == [5, 10]


def test_a_reference_of_nothing_still_has_two_tokens():
    bench = Bench()
    (condition,) = plan(bench.systems["llm"], examples((3, 0)), BenchmarkConfig(response_tokens=[]))
    assert condition.requests[0].response_tokens == 2


def test_warm_up_is_run_and_not_counted():
    # of the hybrid's calls (prefill, total per round), those of the first two rounds are 100 times slower
    bench = Bench(slow=lambda call: 100.0 if call < 4 else 1.0)
    (row,) = bench.time(prompts=0, response_tokens=[8], warmup=2, repeats=3)["hybrid"]
    assert bench.systems["hybrid"].calls == 2 * (2 + 3)
    assert all_equal(row.total_ms, 12 + 7)
    (row,) = Bench(slow=lambda call: 100.0 if call < 4 else 1.0).time(
        prompts=0, response_tokens=[8], warmup=1, repeats=3
    )["hybrid"]
    assert row.total_ms.max == pytest.approx(100 * 19)
    assert row.total_ms.median == pytest.approx(19)


def test_speedup_is_paired_within_rounds():
    # a machine that slows down threefold for everybody in the second round: the ratio never moves
    bench = Bench(slow=lambda call: 3.0 if call in (2, 3) else 1.0)
    bench.systems["llm"].slow = bench.systems["hybrid"].slow
    (row,) = bench.time(prompts=0, response_tokens=[8], warmup=0, repeats=3)["hybrid"]
    assert (row.total_ms.min, row.total_ms.max) == pytest.approx((19, 57))
    assert all_equal(row.speedup, 38 / 19)
    # slow in different rounds: the spread is that of the rounds' own ratios
    bench = Bench(slow=lambda call: 2.0 if call in (0, 1) else 1.0)
    bench.systems["llm"].slow = lambda call: 3.0 if call in (4, 5) else 1.0
    (row,) = bench.time(prompts=0, response_tokens=[8], warmup=0, repeats=3)["hybrid"]
    assert (row.speedup.min, row.speedup.median, row.speedup.max) == pytest.approx((1, 2, 6))


def test_systems_take_turns_in_a_rotating_seeded_order():
    bench = Bench()
    bench.systems["slm"] = FakeSystem("slm", bench.clock, bench.log, 0.001, 0.001)
    bench.time(prompts=0, response_tokens=[8], warmup=0, repeats=6)
    order = [name for name, _, _, tokens in bench.log if tokens == 8]
    rounds = [tuple(order[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(names) == ["hybrid", "llm", "slm"] for names in rounds)
    assert Counter(names[0] for names in rounds) == {"llm": 2, "hybrid": 2, "slm": 2}
    first = rounds[0]
    assert rounds[1] == (*first[1:], first[0])
    assert rounds[3] == first
    seen = set()
    for seed in range(8):
        other = Bench()
        other.time(prompts=0, response_tokens=[8], warmup=0, repeats=1, seed=seed)
        seen.add(other.log[0][0])
    assert seen == {"llm", "hybrid"}


def test_at_test_lengths_systems_alternate_prompt_by_prompt():
    bench = Bench()
    bench.time(prompts=3, warmup=0, repeats=1)
    prompts = [(name, length) for name, _, length, tokens in bench.log if tokens > 1]
    assert [length for _, length in prompts] == [4, 4, 6, 6, 5, 5]
    assert [{name for name, _ in prompts[i : i + 2]} for i in (0, 2, 4)] == [{"llm", "hybrid"}] * 3
    assert prompts[0][0] != prompts[2][0]


@pytest.mark.parametrize("fault", [{"stops_at": 5}, {"ends_at": 3}])
def test_a_system_that_stops_early_makes_the_comparison_void(fault):
    with pytest.raises(UserError, match=r"hybrid: generated .* where exactly 8 were required"):
        Bench(**fault).time(prompts=0, response_tokens=[8])
    Bench(stops_at=8).time(prompts=0, response_tokens=[8])
    Bench(ends_at=7).time(prompts=0, response_tokens=[8])  # an end in the last place is none too early


def test_without_a_baseline_there_is_no_speedup():
    bench = Bench()
    del bench.systems["llm"]
    (row,) = bench.time(prompts=0, response_tokens=[8])["hybrid"]
    assert row.speedup is None


class SteppingEngine:
    """Prefill of 5 ms and steps of 2 ms, whatever the system; streams token by token."""

    name = "steps"

    def prefill(self, model, batch):
        model.clock.now += 0.005
        return torch.full((len(batch.slm_ids_BQ), 1), 7), model

    def step(self, state):
        state.clock.now += 0.002
        return torch.full((1, 1), 7)

    def stream(self, model, batch, tokens):
        first_B1, state = self.prefill(model, batch)
        yield first_B1
        for _ in range(tokens - 1):
            yield self.step(state)


def test_a_system_is_timed_with_its_engine():
    bench = Bench()
    bench.systems["stepped"] = bench.systems["hybrid"]
    rows = bench.time(prompts=0, response_tokens=[8], engines={"stepped": SteppingEngine()})
    (stepped,), (hybrid,) = rows["stepped"], rows["hybrid"]
    assert (stepped.decoding, hybrid.decoding) == ("steps", "transformers generate, greedy")
    assert all_equal(stepped.prefill_ms, 5)
    assert all_equal(stepped.ms_per_token, 2)
    assert all_equal(stepped.speedup, 38 / 19)
    assert all_equal(hybrid.total_ms, 19)


def test_the_environment_is_set_while_timing_and_restored():
    bench = Bench()
    bench.systems["llm"].training = True
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = bench.time(prompts=1, threads=2)
        assert set(bench.systems["llm"].modes) == {(False, True, 2)}
        assert rows["llm"][0].threads == 2
        assert torch.get_num_threads() == 1
        assert bench.systems["llm"].training and not bench.systems["hybrid"].training
        assert gc.isenabled()
        bench.systems["hybrid"].faults["stops_at"] = 1
        with pytest.raises(UserError):
            bench.time(prompts=1, threads=2)
        assert torch.get_num_threads() == 1 and gc.isenabled()
    finally:
        torch.set_num_threads(before)


def test_no_garbage_is_collected_while_timing():
    bench = Bench(slow=lambda call: 1.0 / (not gc.isenabled()))  # divides by zero where it were
    bench.time(prompts=1)


def test_memory_is_asked_once_for_the_longest_answer():
    asked = []

    def memory(name, prompts, tokens):
        asked.append((name, len(prompts), tokens))
        return 5.0 if name == "llm" else None

    rows = Bench().time(prompts=3, response_tokens=[8], memory_of=memory)
    assert asked == [("llm", 1, 10), ("hybrid", 1, 10)]
    assert [row.peak_memory_mb for row in rows["llm"]] == [5.0, None]
    assert [row.peak_memory_mb for row in rows["hybrid"]] == [None, None]
    asked.clear()
    Bench().time(prompts=3, memory_of=memory, memory=False)
    assert not asked


def test_the_grid_takes_prompts_of_median_length():
    bench = Bench()
    rows = examples((2, 1), (30, 1), (6, 1), (7, 1), (8, 1))
    (condition,) = plan(bench.systems["llm"], rows, BenchmarkConfig(batch=[3], prompts=0, response_tokens=[8]))
    assert sorted(len(prompt.split()) for prompt in condition.requests[0].prompts) == [6, 7, 8]
    (condition,) = plan(bench.systems["llm"], rows[:2], BenchmarkConfig(batch=[3], prompts=0, response_tokens=[8]))
    assert len(condition.requests[0].prompts) == 3


@pytest.mark.parametrize("tokens", [3, 8, 40])
def test_the_grid_cuts_and_joins_prompts_to_the_length_asked(tokens):
    bench = Bench()
    cfg = BenchmarkConfig(batch=[2], prompts=0, prompt_tokens=[tokens], response_tokens=[8])
    (condition,) = plan(bench.systems["llm"], ROWS, cfg)
    assert condition.prompt_tokens == tokens
    prompts = condition.requests[0].prompts
    assert [len(prompt.split()) + 1 for prompt in prompts] == [tokens, tokens]
    assert prompts[0] != prompts[1]


def test_cut_prompt_goes_below_where_no_cut_fits():
    pairs = lambda text: 2 * len(text.split())  # noqa: E731
    assert cut_prompt(["a b", "c d"], 5, pairs).split() == ["a", "b"]
    assert cut_prompt(["a b", "c d"], 6, pairs).split() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("config", "rows", "message"),
    [
        ({"response_tokens": [1, 8]}, ROWS, "give lengths >= 2"),
        ({"batch": [0]}, ROWS, "give numbers >= 1"),
        ({"repeats": 0}, ROWS, "benchmark.repeats=0"),
        ({}, [], "the test split is empty"),
        ({"prompts": 0}, ROWS, "nothing to time"),
        ({"prompt_tokens": [4], "prompts": 0, "response_tokens": [8]}, examples((0, 1)), "prompts are empty"),
    ],
)
def test_bad_input_is_told_in_one_line(config, rows, message):
    with pytest.raises(UserError, match=message):
        Bench().time(rows=rows, **config)
    with pytest.raises(UserError, match="no systems"):
        time_systems({}, ROWS, BenchmarkConfig(), baseline=None, progress=False)
