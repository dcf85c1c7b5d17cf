"""What the report shows of a benchmark of decoders: noisy rows, failures, targets, throughput, break-even."""

from dataclasses import replace

import pytest

from llm2slm.evaluation.report import plots, tables
from llm2slm.evaluation.report.entries import entries
from llm2slm.evaluation.report.report import render, terminal_table
from llm2slm.runs import Failure, Result, SpeedRow, Spread, System, Target, plain


def spread(value):
    return Spread(value, value * 0.9, value * 1.1)


def row(decoding, batch, response, total, **more):
    return SpeedRow(
        batch, 20, response, "grid", "float32", 1, decoding, 2, 3, spread(total / 10), spread(total / response),
        spread(total), spread(batch * response / total * 1e3), None, None, **more,
    )  # fmt: skip


@pytest.fixture
def result():
    slow = [row("transformers generate", batch, n, 10.0 * n * batch) for batch in (1, 8) for n in (8, 32)]
    fast = [
        row("captured", batch, n, 2.0 * n * batch, speedup=spread(5.0), break_even_tokens=3, noisy=True,
            share_of_bandwidth=0.25, speedup_same_decoding=spread(4.0), step_p95_ms=spread(1.5))
        for batch in (1,) for n in (8, 32)
    ]  # fmt: skip
    lost = Failure(8, 20, 32, "grid", "captured", "out of memory")
    systems = [
        System("llm", "llm", {"total": 10, "trainable": 0}, speed=slow),
        System("llm2slm (captured)", "llm2slm", {"total": 12, "trainable": 2}, speed=fast, failures=[lost]),
    ]
    found = Result("benchmark", 1, "0" * 12, 1.0, systems, targets=[Target("four times", "at least 4", 5.0, True)])
    return plain(found)


def test_the_terminal_marks_noise_and_states_failures(result):
    from rich.console import Console

    console = Console(width=200, record=True)
    console.print(terminal_table([result], 200))
    text = " ".join(console.export_text().split())
    assert "64.0 ~" in text and "25.0 %" in text and "5.00×" in text and "4.00×" in text
    assert "~: the rounds span more than a fifth of their median" in text
    assert "llm2slm (captured): out of memory (batch 8, 20 prompt and 32 response tokens)" in text
    assert "decoding, float32" not in text  # the rows differ in it


def test_the_page_has_failures_and_targets(result):
    page = render([result], "Benchmark")
    assert "out of memory" in page and "four times" in page and "at least 4" in page and ">met<" in page


def test_results_of_earlier_versions_are_still_shown(result):
    new = ("speedup_same_decoding", "step_p95_ms", "rounds_ms", "noisy", "break_even_tokens", "share_of_bandwidth")
    for system in result["systems"]:
        del system["failures"]
        for each in system["speed"]:
            for key in (*new, "share_of_product"):
                del each[key]
    del result["targets"]
    page = render([result], "Benchmark")
    assert "Same decoder</th>" not in page.split('data-name="timings"')[0] and "Targets" not in page
    assert terminal_table([result], 200)


def test_throughput_is_drawn_over_batches_at_the_longest_response(result):
    (plot,) = plots.by_batch(entries([result]))
    assert plot.title == "Throughput by batch size"
    assert "32 response tokens" in plot.caption
    assert "llm: 100 tokens per second at batch 8" in plot.drawing
    one = {**result, "systems": [s | {"speed": [r for r in s["speed"] if r["batch"] == 1]} for s in result["systems"]]}
    assert plots.by_batch(entries([one])) == []


def test_speedup_by_length_states_the_break_even(result):
    shown = [replace(each) for each in entries([result])]
    first = next(plot for plot in plots.by_length(shown) if plot.title.startswith("Speedup"))
    assert "Faster: llm2slm (captured) from 3 tokens." in first.caption


def test_targets_of_a_result_without_any():
    assert tables.target_lines({}) == []
