"""The report shows the contents of result.json and hostile text as text, and works without faults in a real browser.

Oracles: Python's HTML parser for the page's text, and Chromium (where installed) for the rendered page.
"""

import copy
import io
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from html import escape
from html.parser import HTMLParser

import pytest
from rich.console import Console
from sampling import representatives

from llm2slm.evaluation.report.entries import entries, metric_keys, metric_name
from llm2slm.evaluation.report.report import render, terminal_table, write_report
from llm2slm.evaluation.report.tables import differences, number, times
from llm2slm.runs import Baseline, Bucket, Result, Score, SpeedRow, Spread, System, plain, read_result, write_result
from llm2slm.types import UserError

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(2)>",
    "&lt;b&gt; &amp; \"double\" 'single' `back`",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "--> ]]> </table></main>",
    "שלום עולם, this is right to left",
    "Donaudampfschifffahrtsgesellschaftskapitän" * 6,
]
PAIRS = [
    ("The teacher gives the small child an apple.", "Der Lehrer gibt dem kleinen Kind einen Apfel."),
    ("We must leave because the train arrives.", "Wir müssen gehen, weil der Zug ankommt."),
    ("Yesterday the dog did not see the cat.", "Gestern sah der Hund die Katze nicht."),
]


def spread(median, width=0.04):
    return Spread(median, median * (1 - width), median * (1 + width * 1.7))


def speed(name, lengths, response, prefill, per_token, factor):
    total = prefill + per_token * (response - 1)
    return SpeedRow(
        batch=1,
        prompt_tokens=17.25,
        response_tokens=response,
        lengths=lengths,
        dtype="float32",
        threads=2,
        decoding="greedy",
        warmup=2,
        repeats=5,
        prefill_ms=spread(prefill),
        ms_per_token=spread(per_token),
        total_ms=spread(total),
        tokens_per_s=spread(response / total * 1000),
        peak_memory_mb=412.5 if name == "LLM" else None,
        flops=3.1e8,
        speedup=None if factor is None else Spread(factor, factor * 0.95, factor * 1.06),
    )


def curve(last, bleu):
    points = [{"step": step, "train/loss": 6.5 / (1 + step / 60) + last * 0.9} for step in range(10, 1001, 10)]
    points += [
        {"step": s, "val/loss": 6.2 / (1 + s / 70) + last, "val/bleu": bleu * s / (s + 90)}
        for s in range(100, 1001, 100)
    ]
    return points


def sample_rows(prediction):
    rows = [{"source": source, "target": target, "prediction": prediction(target)} for source, target in PAIRS]
    return rows + [{"source": text, "target": text, "prediction": prediction(text)} for text in HOSTILE]


def make_system(name, kind, total, bleu, prefill, per_token, change):
    """One plausible system; `change` turns a reference into its prediction."""
    factors = {n: (6.0 + 1.9 * (n - 1)) / (prefill + per_token * (n - 1)) for n in (8, 16, 32, 64, 23.5)}
    rows = [speed(name, "test", 23.5, prefill, per_token, factors[23.5])]
    rows += [speed(name, "grid", n, prefill, per_token, factors[n]) for n in (8, 16, 32, 64)]
    return System(
        name=name,
        kind=kind,
        parameters={"total": total, "trainable": 0 if kind == "llm" else 171_904},
        quality={
            "bleu": Score(bleu, "nrefs:1|case:mixed|tok:13a|v:2.5", 1000),
            "exact_match": Score(bleu / 130, "strict", 1000),
        },
        speed=rows,
        quality_kept={"bleu": bleu / 97.31, "exact_match": bleu / 97.31},
        samples=sample_rows(change),
        curve=[] if kind == "llm" else curve(0.2 if kind == "llm2slm" else 0.9, bleu),
        buckets=[
            Bucket(by, low, high, 250, {"bleu": bleu - low / 3, "exact_match": bleu / 130})
            for by, ends in (("prompt", [(3, 8), (9, 12), (13, 16), (17, 310)]), ("response", [(2, 9), (10, 280)]))
            for low, high in ends
        ],
        notes={} if kind == "llm" else {"training_seconds": 118.42, "steps": 1000, "lr": 0.003, "note": HOSTILE[0]},
    )


def make_result(**changes):
    """A three-system result as `read_result` would return it, hostile text included."""
    systems = [
        make_system("LLM", "llm", 3_012_480, 97.31, 6.0, 1.9, lambda text: text),
        make_system(
            "SLM alone", "slm", 171_904, 71.04, 1.1, 0.41, lambda text: text.replace("den", "die").replace("dem", "der")
        ),
        make_system("Hybrid", "llm2slm", 1_523_712, 96.48, 2.9, 0.42, lambda text: text.rpartition(" ")[0]),
    ]
    fields = {"verb": "demo", "seed": 1, "config_hash": "0123456789ab", "wall_seconds": 412.7, "systems": systems}
    fields["baseline"] = Baseline("LLM", "llm")
    stated = {
        "created": "2025-01-31T12:00:00+00:00",
        "git_commit": "c0ffee" * 6 + "c0ff",
        "command": f"llm2slm demo note='{HOSTILE[0]}'",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.1.0"},
        "device": "A processor, 2 cores",
    }
    return Result(**(fields | stated | changes))


@pytest.fixture
def result(tmp_path):
    return read_result(write_result(tmp_path / "run", make_result()))


class Page(HTMLParser):
    """Cells of the page's tables by table, and all text outside style and script."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.words, self.tags, self.stack = {}, [], [], []
        self.table = self.cell = None
        self.feed(page)
        self.close()
        self.text = "".join(self.words)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        self.stack.append(tag)
        if tag == "table":
            self.table = self.tables.setdefault(values["data-name"], [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.cell = {"text": "", "small": "", **values}
            self.table[-1].append(self.cell)

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if {"style", "script"} & set(self.stack):
            return
        self.words.append(data)
        if self.cell is not None:
            self.cell["small" if "small" in self.stack else "text"] += data


def read_number(text):
    """A printed figure: its value and the unit of its last digit."""
    digits, unit = re.fullmatch(r"([\d.,]+)\s?([%×kMB]?)", text).groups()
    scale = {"%": 0.01, "k": 1e3, "M": 1e6, "B": 1e9}.get(unit, 1)
    decimals = len(digits.partition(".")[2])
    return float(digits.replace(",", "")) * scale, scale * 10.0**-decimals


def test_every_figure_of_the_table_of_systems_equals_that_of_the_json(result):
    table = Page(render([result], "t")).tables["systems"]
    assert len(table) == 1 + len(result["systems"])
    for system, cells in zip(result["systems"], table[1:], strict=True):
        test_row = next(row for row in system["speed"] if row["lengths"] == "test")
        expected = {key: system["parameters"][key] for key in ("total", "trainable")}
        expected |= {f"quality/{key}": score["value"] for key, score in system["quality"].items()}
        expected["quality_kept"] = system["quality_kept"]["bleu"]
        expected |= {key: test_row[key]["median"] for key in ("prefill_ms", "ms_per_token", "total_ms", "speedup")}
        expected["peak_memory_mb"] = test_row["peak_memory_mb"]
        assert cells[0]["text"].strip() == system["name"]
        found = {cell["data-key"]: cell for cell in cells if "data-key" in cell}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if value is None:
                assert (found[key]["text"], found[key]["data-value"]) == ("–", "")
                continue
            assert float(found[key]["data-value"]) == value
            shown, step = read_number(found[key]["text"])
            assert abs(shown - value) <= step / 2 * 1.0001, key
        for key in ("prefill_ms", "ms_per_token", "total_ms", "speedup"):
            for text, end in zip(found[key]["small"].split("–"), ("min", "max"), strict=True):
                shown, step = read_number(text)
                assert abs(shown - test_row[key][end]) <= step / 2 * 1.0001, key


def test_all_timings_are_listed(result):
    table = Page(render([result], "t")).tables["timings"]
    shown = [[float(cell["data-value"]) for cell in row if cell.get("data-value")] for row in table[1:]]
    for row, speed_row in zip(shown, (row for system in result["systems"] for row in system["speed"]), strict=True):
        expected = [speed_row[key] for key in ("batch", "prompt_tokens", "response_tokens")]
        expected += [
            speed_row[key]["median"] for key in ("prefill_ms", "ms_per_token", "total_ms", "tokens_per_s", "speedup")
        ]
        expected += [value for value in (speed_row["peak_memory_mb"], speed_row["flops"]) if value is not None]
        assert row == expected


def test_the_verdict_quotes_fields_and_leaves_out_missing_ones(result):
    page = Page(render([result], "t")).text
    assert "Hybrid keeps 99.1 % of the BLEU of LLM and generates 3.95× as fast" in page.replace("\u00a0", " ")
    for system in result["systems"]:
        system["quality_kept"], system["speed"] = {}, []
    bare = Page(render([result], "t")).text
    assert "Hybrid reaches 96.48 BLEU" in bare
    assert "as fast" not in bare.partition("Terms")[0]


def drawing(page, title):
    """The SVG of the plot of that title."""
    return re.search(rf"<h3>{re.escape(title)}</h3>.*?(<svg viewBox.*?</svg>)", page, re.DOTALL)[1]


def across(svg):
    """Tick labels of the x axis: (position, text)."""
    found = re.findall(r'<text [^>]*text-anchor="middle"[^>]* x="([\d.]+)" y="([\d.]+)">([−\d.,]+)<', svg)
    level = Counter(y for _, y, _ in found).most_common(1)[0][0]
    return [(float(x), label.replace("−", "-").replace(",", "")) for x, y, label in found if y == level]


def up(svg):
    """Grid lines of the y axis with the numbers of their labels: (position, value), from the bottom."""
    grid = re.findall(r'<path [^>]*stroke="var\(--grid\)"[^>]* d="M [\d.]+ ([\d.]+) L [\d.]+ \1"', svg)
    labels = re.findall(r'<text [^>]*text-anchor="end"[^>]* x="([\d.]+)" y="[\d.]+">([−\d.,]+)×?<', svg)
    return list(zip(map(float, grid), (float(label.replace("−", "-")) for _, label in labels), strict=True))


def value(position, marks):
    """The value at a position, by the first and last tick of a linear axis."""
    (a, low), (b, high) = [(at, float(label)) for at, label in (marks[0], marks[-1])]
    return low + (position - a) / (b - a) * (high - low)


def points(svg, name):
    """Positions of a system's markers."""
    found = re.findall(rf"<title>{re.escape(name)}: [^<]*</title><path [^>]*translate\(([\d.]+) ([\d.]+)\)", svg)
    return [(float(x), float(y)) for x, y in found]


def test_points_of_plots_are_at_the_values_of_the_json(result):
    """Inverts the scatter plot's axes from its printed ticks, and reads the points back."""
    page = render([result], "t")
    svg = drawing(page, "Quality against latency")
    for system in result["systems"]:
        [(x, y)] = points(svg, system["name"])
        assert value(x, across(svg)) == pytest.approx(system["speed"][0]["total_ms"]["median"], rel=0.002)
        assert value(y, up(svg)) == pytest.approx(system["quality"]["bleu"]["value"], rel=0.002)
    svg = drawing(page, "Speedup by response length")
    grid = [row for row in result["systems"][2]["speed"] if row["lengths"] == "grid"]
    assert [value(y, up(svg)) for _, y in points(svg, "Hybrid")] == pytest.approx(
        [row["speedup"]["median"] for row in grid], rel=0.002
    )
    assert {"Where the time goes", "Training loss"} <= set(Page(page).words)


def test_data_statistics_are_a_table_with_a_column_for_each_system_and_split(result):
    parts = [{"name": name, "metrics": ["bleu", "chrf"], "rows": rows} for name, rows in (("news", 600), ("chat", 400))]
    test = {"rows": 1000, "overlong": "error", "tokens": {"prompt": {"median": 17, "max": 310}}, "parts": parts}
    for system in result["systems"][1:]:
        system["notes"]["data"] = {"train": {"rows": 20_000, "repeated": 3}, "test": test}
    page = Page(render([result], "t"))
    head, *rows = [[cell["text"].strip() for cell in row] for row in page.tables["data"]]
    assert head == ["", *["SLM alone"] * 2, *["Hybrid"] * 2]
    assert [cell["small"] for cell in page.tables["data"][0][1:]] == ["train", "test"] * 2
    assert {row[0]: row[1:3] for row in rows} == {
        "rows": ["20,000", "1,000"],
        "repeated": ["3", "–"],
        "overlong": ["–", "error"],
        "tokens, prompt, median": ["–", "17"],
        "tokens, prompt, max": ["–", "310"],
        "parts, news, metrics": ["–", "bleu, chrf"],
        "parts, news, rows": ["–", "600"],
        "parts, chat, metrics": ["–", "bleu, chrf"],
        "parts, chat, rows": ["–", "400"],
    }
    assert all(row[1:3] == row[3:] for row in rows)
    assert "data" not in [row[0]["text"] for row in page.tables["notes"]]
    assert "data" not in Page(render([json.loads(json.dumps(plain(make_result())))], "t")).tables


def test_nested_facts_of_a_run_are_rows(result):
    for system, beams in zip(result["systems"][1:], (1, 4), strict=True):
        system["notes"] = {"steps": 1000, "decoding": {"num_beams": beams}, "data": {"train": {"rows": 5}}}
    result["systems"][2]["notes"]["llm"] = {"name": "big", "chat": True, "prefix": ""}
    table = [[cell["text"].strip() for cell in row] for row in Page(render([result], "t")).tables["notes"]]
    assert table == [
        ["", "SLM alone", "Hybrid"],
        ["steps", "1,000", "1,000"],
        ["decoding, num_beams", "1", "4"],
        ["llm, name", "–", "big"],
        ["llm, chat", "–", "yes"],
        ["llm, prefix", "–", ""],
    ]


def test_the_baseline_of_ratios_is_named(result):
    """By the result; in a result of an earlier version, which names none, it is the first LLM."""
    result["systems"].insert(0, result["systems"][0] | {"name": "another LLM", "speed": [], "quality_kept": {}})
    named = "Speedup and quality kept are relative to LLM."
    assert named in Page(render([result], "t")).text
    result["baseline"] = {"name": "another", "kind": "slm"}
    assert named.replace("LLM", "another (SLM)") in Page(render([result], "t")).text
    del result["baseline"]
    assert named.replace("LLM", "another LLM (LLM)") in Page(render([result], "t")).text


def test_hostile_text_is_parsed_as_text(result):
    source = render([result], HOSTILE[1], configs=[f"a: {HOSTILE[1]}"])
    page = Page(source)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "form", "b") and tag != "b"]
    for text in HOSTILE:
        assert text in page.text
    assert not [values for _, values in page.tags if any(name.startswith("on") or name == "style" for name in values)]
    loads = [
        values[name] for _, values in page.tags for name in ("src", "href", "xlink:href", "action") if name in values
    ]
    assert loads == ["data:,"]
    assert not re.search(r"<svg viewBox[^>]*>(?:(?!</svg>).)*( id=| style=|url)", source, re.DOTALL)


def test_text_that_cannot_be_encoded_is_written(result, tmp_path):
    result["systems"][0]["samples"][0]["prediction"] = "half \ud83d pair, bell \x07, null \x00"
    page = write_report([result], tmp_path, "t").read_text(encoding="utf-8")
    assert "\ufffd" in page
    assert "␇" in page
    assert "␀" in page


def test_missing_parts_cause_no_error():
    bare = Result("evaluate", 1, "0", 1.0, [System("A", "slm", {"total": 5, "trainable": 5})])
    page = Page(render([json.loads(json.dumps(bare, default=vars))], "Bare"))
    assert [cell["text"] for cell in page.tables["systems"][1] if "data-key" in cell] == ["5", "5", *["–"] * 5]
    assert "None" not in page.text
    assert "nan" not in page.text.lower()


def test_a_benchmark_without_quality_has_a_page_with_its_speedup(result):
    for system in result["systems"]:
        system["quality"], system["quality_kept"] = {}, {}
    hybrid = next(system for system in result["systems"] if system["kind"] == "llm2slm")
    speedup = next(row for row in hybrid["speed"] if row["lengths"] == "test")["speedup"]["median"]
    assert f"<strong>{times(speedup)}</strong>" in render([result], "t")


def test_figures_that_are_not_numbers_do_not_break_plots(result):
    result["systems"][1]["curve"][3]["train/loss"] = float("nan")
    result["systems"][1]["quality"]["bleu"]["value"] = float("nan")
    page = render([result], "t")
    assert not re.search(r'(transform|d|x|y)="[^"]*(nan|inf)', page)
    assert "nan" in Page(page).text


def test_a_sweep_has_one_row_for_each_run_and_its_overrides(result, tmp_path):
    other = json.loads(json.dumps(result))
    other["systems"][2]["quality"]["bleu"]["value"] = 55.5
    overrides = [{"model.conditioning": "add"}, {"model.conditioning": "<i>memory</i>", "seed": "2"}]
    table = Page(write_report([result, other], tmp_path, "Sweep", overrides).read_text(encoding="utf-8")).tables[
        "systems"
    ]
    assert [cell["text"] for cell in table[0]][2:4] == ["model.conditioning", "seed"]
    assert [[cell["text"] for cell in row[2:4]] for row in table[1:]] == [["add", "–"]] * 3 + [
        ["<i>memory</i>", "2"]
    ] * 3
    bleu = [cell["data-value"] for row in table[1:] for cell in row if cell.get("data-key") == "quality/bleu"]
    assert [float(value) for value in bleu] == [97.31, 71.04, 96.48, 97.31, 71.04, 55.5]
    with pytest.raises(UserError, match="2 results, but overrides for 1"):
        render([result, other], "Sweep", overrides[:1])


def labels(result, names, overrides):
    """Of hybrids with these names, each the only system of a run."""
    systems = [dict(result["systems"][2], name=name, kind="llm2slm") for name in names]
    return [entry.label for entry in entries([dict(result, systems=[system]) for system in systems], overrides)]


def test_a_control_is_named_once_in_a_label(result):
    names = ["llm2slm", "llm2slm, constant", "llm2slm, zero"]
    swept = [{"model.control": value} for value in ("none", "constant", "zero")]
    assert labels(result, names, swept) == names
    seeds = [chosen | {"seed": str(n)} for chosen in swept for n in (1, 2)]
    assert labels(result, [name for name in names for _ in (1, 2)], seeds) == [
        f"{name}: seed={n}" for name in names for n in (1, 2)
    ]
    assert labels(result, names[:2], [{"seed": "1"}, {"model.control": "constant", "seed": "1"}]) == names[:2]
    mine = [{"model.control": "zero"}, {"model.control": "constant"}]  # the user names the systems of a demo
    assert labels(result, ["mine", "mine"], mine) == ["zero", "constant"]
    assert labels(result, names[:2], None) == ["llm2slm: run 1", "llm2slm, constant: run 2"]


@pytest.mark.parametrize("results", [[], [{"systems": []}], [{"systems": [{"name": "A"}]}], [{}]])
def test_an_empty_report_is_stated(results):
    with pytest.raises(UserError, match="report: "):
        terminal_table(results)


def test_the_terminal_table_shows_the_figures(result):
    result["systems"][0]["name"] = "[bold]LLM[/bold]"
    out = io.StringIO()
    Console(file=out, width=220, color_system=None).print(terminal_table([result], width=220))
    line = next(line for line in out.getvalue().splitlines() if "Hybrid" in line)
    assert re.findall(r"[^\s│]+(?: [%kM])?", line) == [
        "Hybrid", "llm2slm", "1.52 M", "172 k", "96.48", "0.742", "99.1 %", "2.90", "0.420", "12.3", "3.95×", "–"
    ]  # fmt: skip
    assert "[bold]LLM[/bold]" in out.getvalue()


def test_a_result_that_lacks_a_field_is_refused(result):
    del result["device"], result["seed"]
    with pytest.raises(UserError, match="result 1 lacks device, seed"):
        render([result], "t")


def test_the_terminal_table_is_transposed_on_a_narrow_terminal(result):
    out = io.StringIO()
    Console(file=out, width=60, color_system=None).print(terminal_table([result], width=60))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["System", "LLM", "SLM", "alone", "Hybrid"] in lines
    assert ["Total", "ms", "48.8", "10.3", "12.3"] in lines
    assert ["BLEU", "97.31", "71.04", "96.48"] in lines


@pytest.mark.parametrize("width", [80, 50])
def test_many_systems_are_split_into_several_tables(result, width):
    """No heading and no name is broken, no line is too long, and each figure occurs once."""
    result["systems"] = [result["systems"][2] | {"name": f"System{n}"} for n in range(6)]
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(terminal_table([result], width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    tables = text.count("System  ")
    assert tables >= 2
    for heading in (
        "Kind",
        "Parameters",
        "Trainable",
        "BLEU kept",
        "Prefill ms",
        "ms per token",
        "Total ms",
        "Speedup",
    ):
        assert text.count(heading) == 1
    assert text.count("System5") == tables
    assert text.count("96.48") == text.count("3.95×") == 6
    assert " ".join(text.split()).endswith("of warm-up; speedup and quality kept are relative to LLM.")


def test_scores_of_different_signatures_are_never_in_one_column(result):
    """BLEU over words between spaces next to BLEU over characters, on the page, in the terminal and in sentences."""
    other = copy.deepcopy(result)
    for n, system in enumerate(other["systems"]):
        system["quality"]["bleu"] = {"value": 99.25 - n, "signature": "sacrebleu tok:zh", "n": 5}
        system["buckets"] = [{"by": "prompt", "low": 1, "high": 9, "n": 5, "quality": {"bleu": 99.25 - n}}]
    names = len(result["systems"])
    table = Page(render([result, other], "t")).tables["systems"]
    heads = [cell["text"].strip() for cell in table[0]]
    ours, theirs = heads.index("BLEU"), heads.index("BLEU (2)")
    values = [(cells[ours]["data-value"], cells[theirs]["data-value"]) for cells in table[1:]]
    assert values == [
        *((str(system["quality"]["bleu"]["value"]), "") for system in result["systems"]),
        *(("", str(99.25 - n)) for n in range(names)),
    ]
    shown = entries([result, other])
    assert [list(bucket["quality"]) for entry in shown[names:] for bucket in entry.system["buckets"]] == [
        ["bleu (2)"]
    ] * names
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(terminal_table([result, other], 200))
    assert "BLEU (2)" in out.getvalue()
    assert "metrics with a number have another signature (see result.json) and are not comparable" in " ".join(
        out.getvalue().split()
    )
    same = copy.deepcopy(result)
    assert "(2)" not in "".join(metric_name(key) for key in metric_keys(entries([result, same])))


def test_differences_contain_every_word_of_the_prediction():
    pieces = differences("the old dog did not see it", "the dog has not see it all")
    assert pieces == [
        ("same", "the"), ("gap", " old"), ("same", " dog"), ("other", " has"), ("same", " not see it"),
        ("other", " all"),
    ]  # fmt: skip
    assert differences("a b", "") == [("gap", "a b")]
    assert differences("a b", "b") == [("gap", "a"), ("same", " b")]
    assert differences("我们", "们") == [("gap", "我"), ("same", "们")]
    assert differences("我喜欢猫。", "我很喜欢狗。") == [
        ("same", "我"), ("other", "很"), ("same", "喜欢"), ("other", "狗"), ("same", "。")
    ]  # fmt: skip
    assert differences("GPT-4 是模型", "  GPT-4\n不是 模") == [
        ("same", "GPT-4"), ("other", " 不"), ("same", "是 模"), ("gap", "型")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (1.9, "1.90"),
        (49.66, "49.7"),
        (9.999, "10.0"),
        (1234567, "1,234,567"),
        (0, "0"),
        (None, "–"),
    ],
)
def test_numbers_have_three_digits_and_complete_integer_parts(value, text):
    assert number(value) == text


# A real browser ------------------------------------------------------------------------------------------------------

COLLECTOR = """<script nonce="probe">
window.problems = [];
window.alert = (words) => window.problems.push("alert " + words);
addEventListener("error", (event) => window.problems.push("error " + (event.message || event.target.outerHTML)), true);
addEventListener("unhandledrejection", (event) => window.problems.push("rejection " + event.reason));
addEventListener("securitypolicyviolation", (event) => window.problems.push(
  `policy ${event.violatedDirective} ${document.readyState} ${event.originalPolicy}`));
addEventListener("load", () => setTimeout(() => {  // reports of violations may come after the load event
  const out = document.createElement("output");
  const root = document.documentElement;
  const heads = [...document.querySelectorAll("table[data-name=systems] thead button")];
  heads.find((button) => button.textContent === "BLEU")?.click();
  out.id = "probe";
  out.textContent = JSON.stringify({
    problems: window.problems, view: root.clientWidth, page: root.scrollWidth,
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
    bleu: [...document.querySelectorAll("td[data-key='quality/bleu']")].map((cell) => cell.textContent),
    samples: [...document.querySelectorAll("table[data-name=samples] td.target div")].map((div) => div.innerText),
  });
  document.body.append(out);
}, 200));
</script>"""


FRAME = """<!DOCTYPE html><body><iframe width="{width}" height="800" frameborder="0" srcdoc="{page}"></iframe>
<script>
setInterval(() => {{
  const found = document.querySelector("iframe").contentDocument?.querySelector("#probe");
  if (found) document.body.append(found);
}}, 50);
</script>"""


@pytest.fixture(scope="module")
def browser():
    names = [os.environ.get("CHROME"), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome on PATH and none named by $CHROME")
    return found


def probe(browser, page, folder, width):
    """Opens a copy of the page that carries the collector; returns its findings and the browser's console lines."""
    outer = folder / f"probe-{width}.html"
    instrumented = page.replace("script-src ", "script-src 'nonce-probe' ", 1).replace(
        "<title>", COLLECTOR + "<title>", 1
    )
    # a headless window is never narrower than 500 px, so the page is shown in a frame of a phone's width
    outer.write_text(FRAME.format(width=width, page=escape(instrumented)), encoding="utf-8")
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    flags += [
        "disable-component-update",
        "disable-sync",
        "disable-extensions",
        "hide-scrollbars",
        "dump-dom",
        "enable-logging=stderr",
    ]
    flags += [f"user-data-dir={folder / 'profile'}", "window-size=1400,1000", "virtual-time-budget=2000"]
    done = subprocess.run(
        [browser, *(f"--{flag}" for flag in flags), outer.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<output id="probe">(.*?)</output>', done.stdout, re.DOTALL)
    assert found, f"the page did not finish loading: {done.stderr[-2000:]}"
    reader = HTMLParser(convert_charrefs=True)
    words = []
    reader.handle_data = words.append
    reader.feed(found[1])
    reader.close()
    return json.loads("".join(words)), console


@pytest.mark.parametrize("width", representatives([390, 1280], [390]))
def test_the_page_has_no_faults_in_a_browser(browser, result, tmp_path, width):
    for system, name in zip(result["systems"][1:], (HOSTILE[1], HOSTILE[6]), strict=True):
        system["name"] = name
        system["notes"][name] = name
    result["device"] = result["command"] = result["systems"][0]["quality"]["bleu"]["signature"] = HOSTILE[6]
    page = write_report([result], tmp_path, HOSTILE[1], configs=[f"a: {HOSTILE[1]}"]).read_text(encoding="utf-8")
    found, console = probe(browser, page, tmp_path, width)
    assert found["problems"] == []
    assert console == []
    assert found["requests"] == []
    assert found["view"] == width
    assert found["page"] <= width
    assert found["samples"] == [target for _, target in PAIRS] + HOSTILE


@pytest.mark.parametrize("width", representatives([390, 1280], [390]))
def test_a_sweep_in_a_browser_is_sorted_by_clicking_a_heading(browser, result, tmp_path, width):
    runs = [json.loads(json.dumps(result)) for _ in range(7)]
    for run, value in zip(runs, (9.5, 88.0, 100.0, None, 70.25, 6.0, 0.5), strict=True):
        run["systems"] = run["systems"][2:]
        run["systems"][0]["quality"] = {} if value is None else {"bleu": {"value": value, "signature": "s", "n": 5}}
    overrides = [{"optim.lr": str(n), HOSTILE[n]: HOSTILE[n]} for n in range(7)]
    found, console = probe(browser, render(runs, "Sweep", overrides), tmp_path, width)
    assert found["problems"] == []
    assert console == []
    assert found["requests"] == []
    assert found["page"] <= found["view"] == width
    assert found["bleu"] == ["0.500", "6.00", "9.50", "70.25", "88.00", "100.00", "–"]


def test_the_nonce_of_the_style_sheet_depends_on_the_whole_page(result):
    def nonce(page):
        (allowed,) = re.findall(r"style-src &#39;nonce-([^&]+)&#39;", page)
        assert page.count(allowed) == 2
        assert f'<style nonce="{allowed}">' in page
        return allowed

    first = render([result], "t")
    assert render([result], "t") == first
    # a title that contains the nonce of a page changes the nonce
    assert nonce(render([result], nonce(first))) != nonce(first)


def test_the_probe_finds_planted_faults(browser, result, tmp_path):
    """A page with each fault planted: the browser test fails on it."""
    page = render([result], "t")
    faults = '<script nonce="probe">alert(3); document.title.no.such</script><p style="color: red">x'
    faults += '<style nonce="sha256-x">p { color: red }</style>'
    faults += '<img src="http://127.0.0.1:9/x.png"><svg width="3000" height="5"></svg>'
    found, console = probe(browser, page.replace("</main>", faults + "</main>"), tmp_path, 1280)
    assert [word.partition(" ")[0] for word in found["problems"]].count("alert") == 1
    assert any("TypeError" in word for word in found["problems"])
    assert any(word.startswith("policy img-src") for word in found["problems"])
    assert any(word.startswith("policy style-src-attr") for word in found["problems"])
    assert any(word.startswith("policy style-src-elem") for word in found["problems"])
    assert found["page"] > found["view"]
    assert console
