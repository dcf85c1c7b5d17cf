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
    """Rows with the given numbers of words in prompt and target; all prompts differ."""
    return [
        Example(i, "s", " ".join(["x" * (i + 1)] * prompt), " ".join(["y"] * target))
        for i, (prompt, target) in enumerate(pairs)
    ]


ROWS = examples((3, 4), (5, 9), (4, 2))


class Bench:
    """Two systems on one clock: an LLM of 10 ms + 4 ms per token, a hybrid of 12 ms + 1 ms per token."""

    def __init__(self, **hybrid) -> None:
        self.clock, self.log = FakeClock(), []
        self.systems = {
            "llm": FakeSystem("llm", self.clock, self.log, 0.010, 0.004, SystemKind.llm),
            "hybrid": FakeSystem("hybrid", self.clock, self.log, 0.012, 0.001, SystemKind.llm2slm, **hybrid),
        }

    def time(self, rows=ROWS, **config):
        seed, memory, same = config.pop("seed", 1), config.pop("memory_of", None), config.pop("same", None)
        baseline = "llm" if "llm" in self.systems else None
        cfg = BenchmarkConfig(**{"response_tokens": [], "repeats": 3, "warmup": 1, "max_warmup": 1, **config})
        clock = Clock(self.clock, lambda: None)
        self.timings = time_systems(
            self.systems, rows, cfg, baseline=baseline, same=same, seed=seed, memory=memory, clock=clock,
            progress=False,
        )  # fmt: skip
        return {name: timings.rows for name, timings in self.timings.items()}


def all_equal(spread, value: float) -> bool:
    return [spread.median, spread.min, spread.max] == pytest.approx([value] * 3)


def test_grid_timings_equal_the_analytic_ones():
    rows = Bench().time(prompts=0, batch=[1, 2], response_tokens=[8, 16])
    assert {name: [(r.batch, r.response_tokens) for r in own] for name, own in rows.items()} == {
        name: [(1, 8), (1, 16), (2, 8), (2, 16)] for name in ("llm", "hybrid")
    }
    row = rows["hybrid"][3]
    assert (row.lengths, row.dtype, row.warmup, row.repeats) == ("grid", "float32", 1, 3)
    assert row.decoding == "fake of hybrid"
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
        [(name, tokens) for name in ("llm", "hybrid") for tokens in (5, 10)]
    )
    (row,) = rows["hybrid"]
    assert (row.lengths, row.batch, row.response_tokens) == ("test", 1, 7.5)
    assert row.prompt_tokens == ((3 + 1) + (5 + 1)) / 2
    assert all_equal(row.prefill_ms, 12)
    assert all_equal(row.total_ms, ((12 + 4) + (12 + 9)) / 2)
    assert all_equal(row.ms_per_token, 1)
    assert all_equal(row.tokens_per_s, 15 / 0.037)
    assert all_equal(row.speedup, ((10 + 16) + (10 + 36)) / 37)


def test_prompt_lengths_are_counted_by_the_llm_tokenizer_of_the_first_system():
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


def test_an_empty_reference_has_two_tokens():
    bench = Bench()
    (condition,) = plan(bench.systems["llm"], examples((3, 0)), BenchmarkConfig(response_tokens=[]))
    assert condition.requests[0].response_tokens == 2


def test_warm_up_calls_are_run_but_not_timed():
    # the hybrid's first two calls are 100 times slower
    slow = {"slow": lambda call: 100.0 if call < 2 else 1.0}
    bench = Bench(**slow)
    (row,) = bench.time(prompts=0, response_tokens=[8], warmup=2, repeats=3)["hybrid"]
    assert bench.systems["hybrid"].calls == 2 + 3
    assert row.warmup == 2 and not row.noisy
    assert all_equal(row.total_ms, 12 + 7)
    (row,) = Bench(**slow).time(prompts=0, response_tokens=[8], warmup=1, repeats=3)["hybrid"]
    assert row.total_ms.max == pytest.approx(100 * 19)
    assert row.total_ms.median == pytest.approx(19)
    assert row.noisy


def test_warm_up_continues_until_two_rounds_of_each_system_agree():
    slow = [9.0, 5.0, 3.0, 2.0, 1.95]
    bench = Bench(slow=lambda call: slow[call] if call < len(slow) else 1.95)
    rows = bench.time(prompts=0, response_tokens=[8], warmup=1, max_warmup=9, repeats=2)
    assert {row.warmup for own in rows.values() for row in own} == {5}  # 2.0 and 1.95 differ by 2.5 %
    assert bench.systems["llm"].calls == bench.systems["hybrid"].calls == 5 + 2
    bench = Bench(slow=lambda call: 2.0**call)  # the rounds never agree
    (row,) = bench.time(prompts=0, response_tokens=[8], warmup=1, max_warmup=4, repeats=1)["hybrid"]
    assert row.warmup == 4
    assert Bench().time(prompts=0, response_tokens=[8], warmup=0, max_warmup=4)["llm"][0].warmup == 0


@pytest.mark.parametrize(("slowest", "noisy"), [(1.19, False), (1.25, True)])
def test_a_row_is_noisy_above_a_spread_of_a_fifth(slowest, noisy):
    bench = Bench(slow=lambda call: slowest if call == 2 else 1.0)
    (row,) = bench.time(prompts=0, response_tokens=[8], warmup=0, repeats=5)["hybrid"]
    assert row.noisy is noisy
    assert row.rounds_ms == pytest.approx([19, 19, slowest * 19, 19, 19])


def test_speedup_is_paired_within_rounds():
    # the machine is three times slower for all systems in the second round: the ratio is constant
    bench = Bench(slow=lambda call: 3.0 if call == 1 else 1.0)
    bench.systems["llm"].slow = bench.systems["hybrid"].slow
    (row,) = bench.time(prompts=0, response_tokens=[8], warmup=0, repeats=3)["hybrid"]
    assert (row.total_ms.min, row.total_ms.max) == pytest.approx((19, 57))
    assert all_equal(row.speedup, 38 / 19)
    # slow in different rounds: the spread is that of the ratios of the rounds
    bench = Bench(slow=lambda call: 2.0 if call == 0 else 1.0)
    bench.systems["llm"].slow = lambda call: 3.0 if call == 2 else 1.0
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


def test_systems_alternate_prompt_by_prompt_at_test_lengths():
    bench = Bench()
    bench.time(prompts=3, warmup=0, repeats=1)
    prompts = [(name, length) for name, _, length, tokens in bench.log if tokens > 1]
    assert [length for _, length in prompts] == [4, 4, 6, 6, 5, 5]
    assert [{name for name, _ in prompts[i : i + 2]} for i in (0, 2, 4)] == [{"llm", "hybrid"}] * 3
    assert prompts[0][0] != prompts[2][0]


@pytest.mark.parametrize("fault", [{"stops_at": 5}, {"ends_at": 3}])
def test_a_system_that_stops_early_is_refused(fault):
    with pytest.raises(UserError, match=r"hybrid: generated .* where exactly 8 were required"):
        Bench(**fault).time(prompts=0, response_tokens=[8])
    Bench(stops_at=8).time(prompts=0, response_tokens=[8])
    Bench(ends_at=7).time(prompts=0, response_tokens=[8])  # an eos at the last position is not too early


def test_without_a_baseline_there_is_no_speedup():
    bench = Bench()
    del bench.systems["llm"]
    (row,) = bench.time(prompts=0, response_tokens=[8])["hybrid"]
    assert row.speedup is None


def test_tokens_that_arrive_together_are_counted_one_by_one():
    bench = Bench(at_once=3)
    (row,) = bench.time(prompts=0, batch=[2], response_tokens=[9])["hybrid"]  # 1, 3, 3 and 2 tokens
    assert all_equal(row.prefill_ms, 12)
    assert all_equal(row.ms_per_token, 1)
    assert all_equal(row.total_ms, 12 + 8)
    assert all_equal(row.step_p95_ms, 3)
    assert all_equal(row.tokens_per_s, 2 * 9 / 0.020)


def test_the_step_percentile_is_that_of_the_scripted_clock():
    bench = Bench()
    clock, fast = bench.clock, bench.systems["hybrid"].deliver

    def deliver(on_tokens, rows, tokens):
        count[0] += 1
        if count[0] % 41 in (5, 9, 30):  # three of 40 steps take 11 ms, the others 1 ms
            clock.now += 0.010
        fast(on_tokens, rows, tokens)

    count = [0]
    bench.systems["hybrid"].deliver = deliver
    (row,) = bench.time(prompts=0, response_tokens=[41], warmup=0)["hybrid"]
    assert all_equal(row.step_p95_ms, 11)
    assert all_equal(row.ms_per_token, (40 + 30) / 40)
    count[0], slow = 0, (5, 9)
    bench.systems["hybrid"].deliver = lambda *given: deliver(*given) if count[0] % 41 + 1 in slow else step(*given)

    def step(*given):
        count[0] += 1
        fast(*given)

    (row,) = bench.time(prompts=0, response_tokens=[41], warmup=0)["hybrid"]
    assert all_equal(row.step_p95_ms, 1)  # two of 40 are 5 %


def test_tokens_that_are_not_delivered_are_refused():
    bench = Bench()
    bench.systems["hybrid"].deliver = lambda on_tokens, rows, tokens: on_tokens(
        torch.arange(rows), torch.full((rows, 1), 7), torch.ones(rows)
    )
    bench.systems["hybrid"].at_once = 4
    with pytest.raises(UserError, match="hybrid: 3 tokens arrived of 8"):
        bench.time(prompts=0, response_tokens=[8])


def test_the_speedup_over_the_llm_under_the_same_decoder_is_recorded():
    bench = Bench()
    for name, system in list(bench.systems.items()):
        bench.systems[f"{name} (fast)"] = FakeSystem(
            f"{name} (fast)", bench.clock, bench.log, 0.005, 0.001, system.kind
        )
    rows = bench.time(prompts=0, response_tokens=[8], same={"hybrid": "llm", "hybrid (fast)": "llm (fast)"})
    (hybrid,), (fast,) = rows["hybrid"], rows["hybrid (fast)"]
    assert hybrid.speedup_same_decoding is None  # equals its speedup
    assert all_equal(fast.speedup_same_decoding, 1)
    assert all_equal(fast.speedup, 38 / 12)
    assert rows["llm"][0].speedup_same_decoding is None


def test_break_even_is_the_shortest_faster_response():
    bench = Bench()
    (row,) = bench.time(prompts=0, response_tokens=[8])["hybrid"]
    # 12 + (T - 1) < 10 + 4 (T - 1) from T = 2 on
    assert row.break_even_tokens == 2
    bench = Bench()
    bench.systems["hybrid"].prefill = 0.040
    (row,) = bench.time(prompts=0, response_tokens=[8])["hybrid"]
    assert row.break_even_tokens == 12  # 51 < 54; at 11 tokens both take 50
    bench.systems["hybrid"].step = 0.004
    assert bench.time(prompts=0, response_tokens=[8])["hybrid"][0].break_even_tokens is None
    assert bench.time(prompts=0, response_tokens=[8])["llm"][0].break_even_tokens is None


def test_systems_that_deliver_whole_responses_have_no_time_to_first_token():
    """As a cascade: all tokens at once, after 19 ms."""
    bench = Bench()
    hybrid = bench.systems["hybrid"]
    hybrid.streams, hybrid.prefill, hybrid.step = False, 0.019, 0.0
    (row,) = bench.time(prompts=0, response_tokens=[8])["hybrid"]
    assert row.total_ms.median == row.prefill_ms.median == pytest.approx(19)
    assert row.ms_per_token.median == pytest.approx(19 / 8)
    assert row.break_even_tokens is None and row.step_p95_ms is None
    assert row.speedup.median == pytest.approx((10 + 4 * 7) / 19)


def test_out_of_memory_is_recorded_as_a_result():
    bench = Bench(full_at=4)
    rows = bench.time(prompts=0, batch=[1, 4, 2], response_tokens=[8])
    assert [row.batch for row in rows["llm"]] == [1, 4, 2]
    assert [row.batch for row in rows["hybrid"]] == [1, 2]
    (failure,) = bench.timings["hybrid"].failures
    assert (failure.batch, failure.response_tokens, failure.note) == (4, 8, "out of memory")
    assert bench.systems["hybrid"].calls == 2 * (1 + 3) + 1  # not called again after the first failure
    assert not bench.timings["llm"].failures


def test_there_is_no_speedup_if_the_baseline_runs_out_of_memory():
    bench = Bench()
    bench.systems["llm"].faults["full_at"] = 1
    (row,) = bench.time(prompts=0, response_tokens=[8])["hybrid"]
    assert row.speedup is row.break_even_tokens is None


def test_other_errors_are_not_treated_as_out_of_memory():
    bench = Bench()
    bench.systems["hybrid"].deliver = lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        bench.time(prompts=0, response_tokens=[8])


def test_a_decoder_of_single_rows_is_left_out_of_batches():
    bench = Bench()
    bench.systems["hybrid"].most_rows = 1
    rows = bench.time(prompts=0, batch=[1, 2], response_tokens=[8])
    assert [row.batch for row in rows["hybrid"]] == [1]
    assert [failure.note for failure in bench.timings["hybrid"].failures] == ["at most 1 row in a batch"]


def test_batches_at_test_lengths_contain_rows_of_similar_length():
    rows = examples((1, 8), (2, 2), (3, 3), (4, 9), (5, 20))
    cfg = BenchmarkConfig(prompts=5, test_batch=[1, 2], response_tokens=[])
    single, double = plan(Bench().systems["llm"], rows, cfg)
    assert [request.response_tokens for request in single.requests] == [9, 3, 4, 10, 21]
    lengths = [[len(prompt.split()) for prompt in request.prompts] for request in double.requests]
    assert lengths == [[2, 3], [1, 4], [4, 5]]  # the last one is filled up
    assert [request.response_tokens for request in double.requests] == [4, 10, 16]  # 3.5, 9.5, 15.5
    (tripled,) = plan(Bench().systems["llm"], rows[:2], BenchmarkConfig(test_batch=[3], response_tokens=[]))
    assert [len(request.prompts) for request in tripled.requests] == [3]


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


def test_garbage_collection_is_disabled_while_timing():
    bench = Bench(slow=lambda call: 1.0 / (not gc.isenabled()))  # divides by zero if it is enabled
    bench.time(prompts=1)


def test_peak_memory_is_measured_once_for_the_longest_answer():
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
def test_the_grid_cuts_and_joins_prompts_to_the_requested_length(tokens):
    bench = Bench()
    cfg = BenchmarkConfig(batch=[2], prompts=0, prompt_tokens=[tokens], response_tokens=[8])
    (condition,) = plan(bench.systems["llm"], ROWS, cfg)
    assert condition.prompt_tokens == tokens
    prompts = condition.requests[0].prompts
    assert [len(prompt.split()) + 1 for prompt in prompts] == [tokens, tokens]
    assert prompts[0] != prompts[1]


def test_cut_prompt_is_shorter_where_no_cut_has_the_exact_length():
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
def test_bad_input_is_reported_on_one_line(config, rows, message):
    with pytest.raises(UserError, match=message):
        Bench().time(rows=rows, **config)
    with pytest.raises(UserError, match="no systems"):
        time_systems({}, ROWS, BenchmarkConfig(), baseline=None, progress=False)
