"""Quality by length: cut points by hand, every row in one bucket, and the json's figures on page and terminal."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import re
from itertools import pairwise

import pytest
from rich.console import Console
from test_metrics import corpus
from test_report import Page, drawing, make_result, points, up, value

from llm2slm.evaluation.metrics.buckets import SMALLEST, by_length, quality_by_length
from llm2slm.evaluation.metrics.metric import Measured
from llm2slm.evaluation.metrics.scores import measure, score
from llm2slm.evaluation.metrics.words import words
from llm2slm.evaluation.report.report import bucket_table, render, terminal_table
from llm2slm.runs import Bucket, read_result, write_result
from llm2slm.types import Example


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \n", 0),
        ("two words", 2),
        ("it's one,two\tthree", 3),
        ("犬が好き", 4),
        ("LLM は 2つ", 4),
        ("né à", 2),
    ],
)
def test_words_are_separated_by_spaces_and_japanese_characters_count_as_words(text, count):
    assert len(words(text)) == count


def sizes(lengths):
    """(shortest length, longest length, number of rows) of each bucket."""
    found = [sorted(lengths[row] for row in rows) for rows in by_length(lengths)]
    return [(bucket[0], bucket[-1], len(bucket)) for bucket in found]


@pytest.mark.parametrize(
    ("lengths", "wanted"),
    [
        # quartiles of 1 to 100: the 25th, 50th and 75th from 0 are 26, 51, 76
        (list(range(1, 101)), [(1, 25, 25), (26, 50, 25), (51, 75, 25), (76, 100, 25)]),
        # of 103 rows those at 25, 51 and 77
        (list(range(103)), [(0, 24, 25), (25, 50, 26), (51, 76, 26), (77, 102, 26)]),
        # equal lengths stay together: the second and the third cut point are one
        ([1] * 30 + [5] * 60 + [9] * 30, [(1, 1, 30), (5, 5, 60), (9, 9, 30)]),
        # 12 of length 1 would be a separate bucket, and join the smaller neighbour
        ([1] * 12 + [2] * 40 + [3] * 40, [(1, 2, 52), (3, 3, 40)]),
        # 15 of length 2 have two neighbours: they join the smaller one
        ([1] * 40 + [2] * 15 + [3] * 25, [(1, 1, 40), (2, 3, 40)]),
        ([1] * 25 + [2] * 15 + [3] * 40, [(1, 2, 40), (3, 3, 40)]),
        # 2 is no quartile of these 90, so no cut point either
        ([1] * 60 + [2] * 5 + [3] * 25, [(1, 2, 65), (3, 3, 25)]),
        # 60 rows in four buckets of 15 are too few each: the first two join, then the last two
        (list(range(60)), [(0, 29, 30), (30, 59, 30)]),
        (list(range(40)), [(0, 19, 20), (20, 39, 20)]),
        (list(range(39)), []),
        ([4] * 500, []),
        ([], []),
    ],
)
def test_cut_points_are_quartiles_and_small_buckets_join_their_neighbours(lengths, wanted):
    assert sizes(lengths) == wanted
    shuffled = random.Random(1).sample(lengths, len(lengths))
    assert sizes(shuffled) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_bucket_and_no_bucket_is_small(seed):
    draw = random.Random(seed)
    lengths = [int(draw.expovariate(1 / draw.choice([3, 40]))) for _ in range(draw.randint(40, 400))]
    found = by_length(lengths)
    if not found:
        return
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    assert min(map(len, found)) >= SMALLEST
    ends = [(min(lengths[row] for row in rows), max(lengths[row] for row in rows)) for rows in found]
    assert all(high < low for (_, high), (low, _) in pairwise(ends))


def test_each_bucket_has_the_scores_of_its_rows():
    predictions, references = corpus(90)
    sources = [" ".join(reference.split() * (1 + n % 3)) for n, reference in enumerate(references)]
    rows = list(zip(sources, references, predictions, strict=True))
    examples = [Example(i, source, f"a b c d {source}", target) for i, (source, target, _) in enumerate(rows)]
    names = ["bleu", "chrf++", "rougeL", "length_ratio"]
    found = quality_by_length(examples, measure(names, predictions, references))
    assert {bucket.by for bucket in found} == {"prompt", "response"}
    for side, by in enumerate(("prompt", "response")):
        buckets = [bucket for bucket in found if bucket.by == by]
        assert len(buckets) > 2
        assert sum(bucket.n for bucket in buckets) == len(rows)
        for bucket in buckets:
            own = [row for row in rows if bucket.low <= len(row[side].split()) <= bucket.high]
            apart = score(names, [row[2] for row in own], [row[1] for row in own])
            assert bucket.n == len(own)
            assert bucket.quality == pytest.approx({name: each.value for name, each in apart.items()}, abs=1e-9)
            assert {len(row[side].split()) for row in own} >= {bucket.low, bucket.high}


def test_a_metric_without_a_value_is_left_out_of_that_bucket_only():
    examples = [Example(i, "x", "x", "" if i < 30 else "two words") for i in range(60)]
    texts = ["two words"] * 60, [example.target for example in examples]
    empty, full = quality_by_length(examples, measure(["length_ratio", "exact_match"], *texts))
    assert empty == Bucket("response", 0, 0, 30, {"exact_match": 0})
    assert full == Bucket("response", 2, 2, 30, {"length_ratio": 1, "exact_match": 100})


# Page and terminal


@pytest.fixture
def result(tmp_path):
    """A result of three systems, two of them with buckets."""
    made = make_result()
    made.systems[0].buckets = []
    for number, system in enumerate(made.systems[1:], 1):
        system.buckets = [
            Bucket(by, low, high, 25 + low, {"bleu": 90.125 - low - number, "exact_match": 40.5 + high})
            for by, ends in (("prompt", [(1, 4), (5, 9), (10, 30)]), ("response", [(2, 2), (3, 40)]))
            for low, high in ends
        ]
    return read_result(write_result(tmp_path, made))


def test_the_page_lists_every_bucket_with_the_figures_of_the_json(result):
    table = Page(render([result], "t")).tables["buckets"]
    assert [cell["text"] for cell in table[0]] == ["System", "Length of", "Words", "Rows", "BLEU", "Exact match"]
    rows = [(system["name"], bucket) for system in result["systems"] for bucket in system["buckets"]]
    assert len(table) == 1 + len(rows) == 11
    for cells, (name, bucket) in zip(table[1:], rows, strict=True):
        low, high = bucket["low"], bucket["high"]
        assert [cell["text"].strip() for cell in cells[:3]] == [
            name, bucket["by"], str(low) if low == high else f"{low}–{high}"
        ]  # fmt: skip
        assert [float(cell["data-value"]) for cell in cells[2:]] == [low, bucket["n"], *bucket["quality"].values()]


def test_points_of_the_plot_are_at_the_values_of_the_json(result):
    """Inverts the axes by their printed ticks: heights are linear in the metric, abscissas linear in the logarithm."""
    page = render([result], "t")
    svg, hybrid = drawing(page, "BLEU by prompt length"), result["systems"][2]
    wanted = [bucket["quality"]["bleu"] for bucket in hybrid["buckets"] if bucket["by"] == "prompt"]
    found = points(svg, "Hybrid")
    assert [value(y, up(svg)) for _, y in found] == pytest.approx(wanted, abs=0.05)
    bars = re.findall(r'<path [^>]*stroke-opacity="0.65"[^>]* d="M ([\d.]+) ([\d.]+) L ([\d.]+) \2"', svg)
    bars = [(float(a), float(b)) for a, y, b in bars if float(y) in [y for _, y in found]]
    assert [sum(bar) / 2 for bar in bars] == pytest.approx([x for x, _ in found], abs=0.01)
    (a, b), _, (c, d) = bars
    assert (b - a) / (d - c) == pytest.approx(math.log(4 / 1) / math.log(30 / 10), abs=0.01)
    assert "Hybrid: BLEU 87.12 on 26 rows of 1 to 4 words" in svg
    assert "BLEU by response length" in page


def test_a_result_without_buckets_has_no_buckets_on_the_page(result):
    with_them = render([result], "t")
    for system in result["systems"]:
        del system["buckets"]  # as in results of versions without buckets
    page = render([result], "t")
    assert "Quality by length" in with_them
    assert "Quality by length" not in page
    assert bucket_table([result]) is None


def test_figures_that_are_not_numbers_and_lengths_of_zero_do_not_break_the_plot(result):
    buckets = result["systems"][2]["buckets"]
    buckets[0]["low"] = buckets[0]["high"] = 0
    buckets[1]["quality"]["bleu"] = float("nan")
    del buckets[2]["quality"]["bleu"]
    page = render([result], "t")
    assert not re.search(r'(transform|d|x|y)="[^"]*(nan|inf)', page)
    result["systems"][1]["buckets"] = []
    result["systems"][2]["buckets"] = buckets[1:3]
    assert "BLEU by prompt length" not in render([result], "t")  # no value is left


def test_the_terminal_shows_buckets_in_a_separate_table(result):
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(bucket_table([result], 120))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["Hybrid", "prompt", "5–9", "30", "83.12", "49.50"] in lines
    assert sum("response" in line for line in lines) == 4
    one = copy.deepcopy(result | {"systems": result["systems"][2:]})
    for bucket in one["systems"][0]["buckets"]:
        bucket["quality"] |= dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 1.0)
    narrow = io.StringIO()
    Console(file=narrow, width=70, color_system=None).print(bucket_table([one], 70))
    lines = [" ".join(line.split()) for line in narrow.getvalue().splitlines()]
    assert {"Words 1–4 5–9 10–30 2 3–40", "BLEU 87.12 83.12 78.12 86.12 85.12"} <= set(lines)
    cut = io.StringIO()
    Console(file=cut, width=48, color_system=None).print(bucket_table([result], 48))
    lines = [line.split() for line in cut.getvalue().splitlines()]
    assert [line for line in lines if line[:3] == ["Hybrid", "prompt", "5–9"]] == [
        ["Hybrid", "prompt", "5–9", "30", "83.12"],
        ["Hybrid", "prompt", "5–9", "49.50"],
    ]
    plain = io.StringIO()
    Console(file=plain, width=220, color_system=None).print(terminal_table([result], width=220))
    assert "5–9" not in plain.getvalue()


def test_all_metrics_are_computed_once_for_all_buckets():
    """Buckets require sums of row statistics only: the metrics are computed once."""
    asked = []

    def value(sums):
        asked.append(sums)
        return sums[0] / sums[1]

    examples = [Example(i, "w " * (i % 8 + 1), "", "w") for i in range(160)]
    metric = Measured([(i, 1) for i in range(160)], value, "")
    found = quality_by_length(examples, {"mean": metric})
    assert [bucket.n for bucket in found] == [40] * 4
    assert [sums[1] for sums in asked] == [40] * 4
    assert json.loads(json.dumps([bucket.quality["mean"] for bucket in found])) == [76.5 + 2 * n for n in range(4)]
