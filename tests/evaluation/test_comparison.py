"""The comparison's numbers against the functions and texts that they come from, and the page against the numbers."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from compared_runs import GOOD, METRICS, POOR, SOURCES, TARGETS, speed, write_demo, write_run
from rich.console import Console
from sacrebleu.metrics import BLEU
from sampling import representatives
from test_report import HOSTILE, Page, across, browser, drawing, probe, value

from llm2slm import runs
from llm2slm.evaluation.compare.page import csv_text, probability, render, terminal_table, verdict
from llm2slm.evaluation.compare.significance import bootstrap, bootstrap_p, holm, interval, randomization_p
from llm2slm.evaluation.compare.statistics import Settings, compare
from llm2slm.evaluation.compare.systems import label_systems, read_run, set_speeds
from llm2slm.evaluation.metrics.row_statistics import row_statistics
from llm2slm.evaluation.metrics.scores import METRICS as METRICS_BY_NAME
from llm2slm.evaluation.metrics.scores import score

__all__ = ["browser"]  # a fixture

RESAMPLES, SEED = 200, 3
MIDDLE = [*TARGETS[:3], "the house is new", "I read a book", *GOOD[5:]]


def compared(*places, baseline=0, metrics=METRICS, rows=10, seen=None, named=False):
    systems = [system for place in places for system in read_run(str(place))]
    label_systems(systems)
    timing = set_speeds(systems, systems[baseline], None)

    def progress(name, total):
        done = []
        if seen is not None:
            seen[name] = (total, done)
        return done.append

    return runs.plain(
        compare(systems, baseline, Settings(metrics, RESAMPLES, SEED, rows, named=named), timing, progress)
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    answers = {"llm": GOOD, "slm": POOR, "llm2slm": MIDDLE}
    return write_demo(tmp_path_factory.mktemp("runs") / "demo", answers), answers


@pytest.fixture(scope="module")
def found(demo):
    return compared(demo[0], baseline=1)


# Numbers


@pytest.mark.parametrize("metric", METRICS)
def test_every_number_is_that_of_its_function(demo, found, metric):
    """Baseline: the SLM. Quality kept is relative to another system, the LLM."""
    answers = demo[1]
    statistics = {name: row_statistics(metric, texts, TARGETS)[1] for name, texts in answers.items()}
    scores = dict(zip(answers, bootstrap(list(statistics.values()), RESAMPLES, SEED), strict=True))
    value = {name: score([metric], texts, TARGETS)[metric].value for name, texts in answers.items()}
    p = {"bootstrap": [], "randomization": []}
    for system in found["systems"]:
        name, own = system["name"], system["compared"][metric]
        assert system["quality"][metric]["value"] == value[name]
        assert (own["low"], own["high"]) == interval(scores[name])
        assert own["kept"]["value"] == pytest.approx(value[name] / value["llm"])
        assert (own["kept"]["low"], own["kept"]["high"]) == pytest.approx(interval(scores[name] / scores["llm"]))
        assert system["quality_kept"][metric] == own["kept"]["value"]
        if name == "slm":
            assert own["difference"] is None
            continue
        difference, values = own["difference"], scores[name] - scores["slm"]
        assert difference["value"] == pytest.approx(value[name] - value["slm"])
        assert (difference["low"], difference["high"]) == interval(values)
        p["bootstrap"].append((difference["p_bootstrap"], difference["p_bootstrap_holm"]))
        p["randomization"].append((difference["p_randomization"], difference["p_randomization_holm"]))
        assert difference["p_bootstrap"] == bootstrap_p(values)
        tested = randomization_p(statistics[name], statistics["slm"], RESAMPLES, SEED)
        assert difference["p_randomization"] == tested
    for pairs in p.values():
        assert [corrected for _, corrected in pairs] == holm([plain for plain, _ in pairs])
        assert [corrected for _, corrected in pairs] != [plain for plain, _ in pairs]


def test_measurements_of_other_runs_are_read(demo, found):
    result = runs.read_result(demo[0])
    for system, read in zip(found["systems"], result["systems"], strict=True):
        assert system["parameters"] == read["parameters"]
        assert system["speed"] == read["speed"]
        assert system["run"] == str(demo[0] / read["name"])
        assert system["origin"] == {key: result[key] for key in system["origin"]}
    assert found["timed_in"] == str(demo[0])
    assert found["conditions"].startswith(
        "batch 1, the texts' own lengths (on average 12.5 prompt and 8 response tokens)"
    )
    assert (found["baseline"], found["llm"], found["rows"]) == ("slm", "llm", len(TARGETS))
    assert (found["seed"], found["resamples"], found["verb"]) == (SEED, RESAMPLES, "compare")


def test_the_progress_bar_is_complete_at_the_end(demo):
    seen = {}
    compared(demo[0], seen=seen)
    assert list(seen) == ["scoring", "resampling"]
    for total, done in seen.values():
        assert sum(done) == total > 0


def test_notes_state_methods_and_limits(demo, found):
    notes = "\n".join(found["notes"])
    for words in (
        f"95 % intervals, percentiles of {RESAMPLES} bootstrap resamples of the 8 rows",
        f"(seed {SEED})",
        "after Holm’s correction over the 2 systems compared with the baseline",
        "not due to the training seed",
        "Kept: the metric over that of llm (LLM).",
        "Speedup over llm (LLM) and peak memory are from",
        f"from one interleaved run, {demo[0]}: batch 1, ",
    ):
        assert words in notes


def test_llms_that_were_prompted_differently_are_named(tmp_path):
    """The quality kept relative to an LLM without its chat template would flatter a hybrid whose LLM has one."""
    plain = {"name": "some/llm", "prefix": "", "chat": False, "quantization": {}, "frame": None}
    said = {"hybrid": plain | {"chat": True}, "llm": plain, "chatting": plain | {"chat": True}, "slm": None}
    for name, note in said.items():
        write_run(tmp_path / name, {"hybrid": "llm2slm", "chatting": "llm"}.get(name, name), GOOD)
        result = runs.read_result(tmp_path / name)
        result["systems"][0]["notes"] = {} if note is None else {"llm": note}
        (tmp_path / name / "result.json").write_text(json.dumps(result), encoding="utf-8")

    def notes_of(*names):
        notes = compared(*(tmp_path / name for name in names))["notes"]
        return [note for note in notes if note.startswith("LLMs prompted")]

    assert notes_of("hybrid", "llm", "slm") == ["LLMs prompted differently: chat=True of hybrid; chat=False of llm."]
    assert notes_of("hybrid", "chatting", "slm") == []


def test_systems_that_decoded_differently_are_named(tmp_path):
    greedy = {"do_sample": False, "num_beams": 1}
    said = {"a": greedy, "b": greedy | {"num_beams": 4}, "c": greedy | {"min_length": 9}, "d": None}
    for name, decoding in said.items():
        write_run(tmp_path / name, "slm", GOOD)
        result = runs.read_result(tmp_path / name)
        result["systems"][0]["notes"] = {} if decoding is None else {"decoding": decoding}
        (tmp_path / name / "result.json").write_text(json.dumps(result), encoding="utf-8")

    def notes_of(*names):
        notes = compared(*(tmp_path / name for name in names))["notes"]
        return [note for note in notes if note.startswith("Decoded")]

    assert notes_of("a", "b", "c", "d") == [
        "Decoded differently: num_beams=1 of a, c; num_beams=4 of b.",
        "Decoded differently: no min_length of a, b; min_length=9 of c.",
    ]
    assert notes_of("a", "d") == []


def test_without_an_llm_there_is_no_quality_kept_and_one_system_needs_no_correction(tmp_path):
    write_run(tmp_path / "a", "slm", POOR)
    write_run(tmp_path / "b", "llm2slm", GOOD)
    found = compared(tmp_path / "a", tmp_path / "b")
    assert found["llm"] is None
    for system in found["systems"]:
        assert system["quality_kept"] == {}
        assert {own["kept"] for own in system["compared"].values()} == {None}
    difference = found["systems"][1]["compared"]["bleu"]["difference"]
    assert difference["p_bootstrap_holm"] == difference["p_bootstrap"]
    notes = "\n".join(found["notes"])
    assert "so no correction is needed" in notes
    assert "Kept" not in notes and "interleaved" not in notes


def test_with_several_llms_quality_kept_is_relative_to_the_named_baseline_only(tmp_path):
    for name, kind, answers in [("one", "llm", GOOD), ("hybrid", "llm2slm", MIDDLE), ("two", "llm", POOR)]:
        write_run(tmp_path / name, kind, answers)
    places = [tmp_path / name for name in ("one", "hybrid", "two")]
    bleu = {name: score(["bleu"], answers, TARGETS)["bleu"].value for name, answers in [("h", MIDDLE), ("two", POOR)]}
    found = compared(*places, baseline=2, named=True)
    assert found["llm"] == "two"
    assert found["systems"][1]["quality_kept"]["bleu"] == pytest.approx(bleu["h"] / bleu["two"])
    assert "Kept: the metric over that of two (LLM)." in found["notes"]
    line = "Quality kept is left out, since there are several LLMs (one, two): name one by baseline=LLM."
    assert line not in found["notes"]
    for baseline, named in [(0, False), (2, False), (1, True)]:  # not named, or no LLM
        found = compared(*places, baseline=baseline, named=named)
        assert found["llm"] is None and {len(system["quality_kept"]) for system in found["systems"]} == {0}
        assert found["notes"].count(line) == 1 and not any("Kept" in note for note in found["notes"])


def test_quality_kept_is_undefined_if_the_llm_scores_zero(tmp_path):
    write_run(tmp_path / "a", "llm", ["wrong"] * 8)
    write_run(tmp_path / "b", "slm", GOOD)
    found = compared(tmp_path / "a", tmp_path / "b", metrics=["exact_match"])
    assert found["systems"][1]["compared"]["exact_match"]["kept"] is None
    write_run(tmp_path / "a", "llm", [*TARGETS[:1], *["wrong"] * 7])  # some resamples lack its single right answer
    kept = compared(tmp_path / "a", tmp_path / "b", metrics=["exact_match"])["systems"][1]["compared"]["exact_match"][
        "kept"
    ]
    assert (kept["value"], kept["low"], kept["high"]) == (pytest.approx(6), None, None)


def test_a_result_that_contradicts_its_predictions_is_noted(tmp_path):
    write_run(tmp_path / "a", "slm", POOR)
    run = write_run(tmp_path / "b", "slm", GOOD)
    assert not [note for note in compared(tmp_path / "a", run)["notes"] if "in its result" in note]
    result = runs.read_result(run)
    result["systems"][0]["quality"]["bleu"]["value"] += 0.5
    result["systems"][0]["quality"]["chrf"] |= {"value": 0.0, "signature": "another package"}  # not comparable: no note
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    [note] = [note for note in compared(tmp_path / "a", run)["notes"] if "in its result" in note]
    value = score(["bleu"], GOOD, TARGETS)["bleu"].value
    assert note == (
        f"b: BLEU is {value + 0.5:.4f} over 8 rows in its result, {value:.4f} over 8 from its predictions; "
        "the latter is used."
    )


# Rows that differ most


def test_rows_are_ordered_by_the_size_of_their_difference(demo, found):
    """Oracle: sacrebleu's sentence BLEU of every row."""
    answers, metric = demo[1], BLEU(effective_order=True)
    own = {
        name: [metric.sentence_score(p, [t]).score for p, t in zip(texts, TARGETS, strict=True)]
        for name, texts in answers.items()
    }
    assert [(part["system"], part["metric"]) for part in found["row_differences"]] == [
        ("llm", "bleu"),
        ("llm2slm", "bleu"),
    ]
    for part in found["row_differences"]:
        name = part["system"]
        gained = [(one - two, row) for row, (one, two) in enumerate(zip(own[name], own["slm"], strict=True), 1)]
        for direction, sign in (("worse", -1), ("better", 1)):
            expected = sorted(((-sign * d, row) for d, row in gained if sign * d > 1e-9))
            assert [row["row"] for row in part[direction]] == [row for _, row in expected]
            assert [row["difference"] for row in part[direction]] == pytest.approx([-sign * d for d, _ in expected])
            for row in part[direction]:
                place = row["row"] - 1
                assert (row["source"], row["target"]) == (SOURCES[place], TARGETS[place])
                assert (row["baseline"], row["prediction"]) == (POOR[place], answers[name][place])
                assert (row["baseline_score"], row["score"]) == pytest.approx((own["slm"][place], own[name][place]))
    assert found["row_differences"][1]["worse"]  # rows 4 and 5
    assert len(found["row_differences"][0]["better"]) > 3


def test_a_metric_of_which_less_is_better_is_ordered_inversely(demo, monkeypatch):
    """A lower score is better, and quality kept is not defined."""
    monkeypatch.setitem(METRICS_BY_NAME, "chrf", replace(METRICS_BY_NAME["chrf"], lower_is_better=True))
    many = compared(demo[0], baseline=1, metrics=["chrf", "bleu"])
    monkeypatch.undo()
    plain = compared(demo[0], baseline=1, metrics=["chrf", "bleu"])
    for turned, part in zip(many["row_differences"], plain["row_differences"], strict=True):
        assert [row["row"] for row in turned["worse"]] == [row["row"] for row in part["better"]]
        assert [row["difference"] for row in turned["better"]] == [row["difference"] for row in part["worse"]]
    assert list(many["systems"][0]["quality_kept"]) == ["bleu"]
    assert list(plain["systems"][0]["quality_kept"]) == ["chrf", "bleu"]


def test_the_requested_number_of_rows_is_listed_by_the_first_metric_that_orders_rows(demo):
    found = compared(demo[0], baseline=1, metrics=["length_ratio", "exact_match"], rows=2)
    assert {part["metric"] for part in found["row_differences"]} == {"exact_match"}
    assert [row["row"] for row in found["row_differences"][0]["better"]] == [1, 2]  # ties keep their order
    assert compared(demo[0], rows=0)["row_differences"] == []
    assert compared(demo[0], metrics=["length_ratio"])["row_differences"] == []


# Output


def test_csv_equals_json(found):
    rows = list(csv.DictReader(io.StringIO(csv_text(found), newline="")))
    assert len(rows) == len(found["systems"]) * len(METRICS)
    by_key = {(row["system"], row["metric"]): row for row in rows}
    for system in found["systems"]:
        for metric, own in system["compared"].items():
            row = by_key[system["name"], metric]
            difference = own["difference"] or {}
            expected = {
                "value": system["quality"][metric]["value"],
                "low": own["low"],
                "high": own["high"],
                "difference": difference.get("value"),
                "difference_low": difference.get("low"),
                "difference_high": difference.get("high"),
                "p_bootstrap": difference.get("p_bootstrap"),
                "p_bootstrap_holm": difference.get("p_bootstrap_holm"),
                "p_randomization": difference.get("p_randomization"),
                "p_randomization_holm": difference.get("p_randomization_holm"),
                "kept": own["kept"]["value"],
                "kept_low": own["kept"]["low"],
                "kept_high": own["kept"]["high"],
                "speedup": system["speed"][0]["speedup"]["median"],
                "speedup_min": system["speed"][0]["speedup"]["min"],
                "speedup_max": system["speed"][0]["speedup"]["max"],
                "parameters": system["parameters"]["total"],
                "trainable": system["parameters"]["trainable"],
                "peak_memory_mb": system["speed"][0]["peak_memory_mb"],
                "rows": 8,
            }
            assert {key: row[key] for key in expected} == {
                key: "" if value is None else str(value) for key, value in expected.items()
            }
            assert row["signature"] == system["quality"][metric]["signature"]
            assert row["baseline"] == str(system["name"] == "slm")
            assert set(row) - set(expected) == {"system", "kind", "baseline", "metric", "signature", "run"}


def shown(table, width):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [70, 200])
def test_the_terminal_shows_scores_differences_and_p_values(found, width):
    """Wide terminal: a line for each system and metric. Narrow terminal: a column for each system."""
    text = shown(terminal_table(found, width), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for system in found["systems"]:
        own, value = system["compared"]["bleu"], system["quality"]["bleu"]["value"]
        assert f"{value:.2f}" in text
        assert f"[{own['low']:.2f}, {own['high']:.2f}]" in text
        if own["difference"]:
            assert f"{own['difference']['value']:+.2f}".replace("-", "−") in text
            assert probability(own["difference"]["p_randomization_holm"]) in text
        assert f"{system['speed'][0]['speedup']['median']:.2f}×" in text
    heads = [line.split() for line in text.splitlines() if "slm (baseline)" in line]
    assert len(heads) == 1
    assert ("Metric" in text) == (width == 200)
    assert "Holm’s correction over the 2 systems" in " ".join(text.split())


def test_many_systems_on_a_narrow_terminal_are_split_into_several_tables(tmp_path):
    for name in "abcde":
        write_run(tmp_path / f"system_{name}", "slm", POOR, row=speed(10.0, 30.5))
    found = compared(*sorted(tmp_path.iterdir()))
    text = shown(terminal_table(found, 80), 80)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    heads = [line for line in lines if line.startswith("System Metric")]
    assert len(heads) == 2 and max(map(len, text.splitlines())) <= 80
    for system in found["systems"]:
        own, value = system["compared"]["bleu"], system["quality"]["bleu"]["value"]
        name = system["name"] + (" (baseline)" if system["name"] == found["baseline"] else "")
        assert any(line.startswith(f"{name} BLEU {value:.2f} [{own['low']:.2f}, {own['high']:.2f}]") for line in lines)
        assert sum(line.startswith(f"{name} BLEU") for line in lines) == len(heads)
        assert sum(line.startswith(f"{name} 700 k") for line in lines) == 1  # a fact of the whole system is stated once
    assert "System Parameters Peak MB" in lines
    assert text.count("Brackets:") == 1


def test_empty_columns_are_left_out(tmp_path):
    write_run(tmp_path / "a", "slm", POOR)
    write_run(tmp_path / "b", "slm", GOOD)
    found = compared(tmp_path / "a", tmp_path / "b")
    head = shown(terminal_table(found, 200), 200)
    page = Page(render(found)).tables["systems"]
    for words, there in (("Kept", False), ("Speedup", False), ("Peak MB", False), ("Parameters", True)):
        assert (words in head.splitlines()[1]) == there
        assert (words in [cell["text"] for cell in page[0]]) == there


def test_the_page_shows_every_number_of_the_table(found):
    lines = Page(render(found)).tables["systems"][1:]
    assert len(lines) == len(found["systems"]) * len(METRICS)
    for number, cells in enumerate(lines):
        system = found["systems"][number // len(METRICS)]
        metric = METRICS[number % len(METRICS)]
        own = system["compared"][metric]
        values = {cell["data-key"]: cell["data-value"] for cell in cells if "data-key" in cell}
        expected = {"value": system["quality"][metric]["value"], "kept": own["kept"]["value"]}
        for key, name in (("difference", "value"), ("p_bootstrap_holm",) * 2, ("p_randomization_holm",) * 2):
            expected[key] = (own["difference"] or {name: ""})[name]
        if metric == METRICS[0]:
            expected |= {
                "speedup": system["speed"][0]["speedup"]["median"],
                "parameters": system["parameters"]["total"],
                "peak_memory_mb": system["speed"][0]["peak_memory_mb"],
            }
            assert cells[0]["text"].strip() == system["name"] + (" (baseline)" if system["name"] == "slm" else "")
        assert values == {key: str(value) for key, value in expected.items()}


def test_the_page_contains_escaped_texts(found):
    """Answers and references with markup: a parser reads it as text, and none of it is active."""
    source = render(found)
    page = Page(source)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<script>alert(1)</script>" not in source
    assert "<b>eats</b>" not in source
    texts = [
        cell["text"] for name, lines in page.tables.items() if name.startswith("rows-") for row in lines for cell in row
    ]
    assert any("<script>alert(1)</script>" in text for text in texts)
    assert any(TARGETS[1] in text for text in texts)
    assert any(SOURCES[1] in text for text in texts)
    assert not [values for _, values in page.tags if any(name.startswith("on") or name == "style" for name in values)]


def test_the_page_marks_the_differences_in_both_predictions(found):
    source = render(found)
    [part] = [part for part in found["row_differences"] if part["system"] == "llm2slm"]
    assert any(row["prediction"] == "the house is new" for row in part["worse"])
    assert "the house is <mark>new</mark>" in source
    baselines = 'two <span class="gap" title="left out: small">‸</span> birds <mark>sing</mark>'
    assert baselines in source  # of "two small birds are singing"


def test_hostile_names_are_shown_as_text(tmp_path):
    names = [HOSTILE[0].replace("/", ""), HOSTILE[3].replace("/", "")]
    for name, answers in zip(names, (POOR, GOOD), strict=True):
        write_run(tmp_path / name, HOSTILE[0], answers)
    found = compared(*(tmp_path / name for name in names))
    page = Page(render(found))
    assert all(name in page.text for name in names)
    assert [tag for tag, _ in page.tags].count("script") == 1
    text = shown(terminal_table(found, 300), 300)
    assert names[1] in text


def test_the_verdict_states_direction_and_significance(found, tmp_path, monkeypatch):
    """Both tests must be significant: here, of 8 rows, only the bootstrap is."""
    llm = found["systems"][0]["compared"]["bleu"]["difference"]
    assert llm["p_bootstrap_holm"] < 0.05 < llm["p_randomization_holm"]
    said = verdict(found)
    assert len(said) == 2
    assert said[0].startswith(
        f"No significant difference between llm and slm: +{llm['value']:.2f} BLEU [+{llm['low']:.2f}, "
    )
    assert llm["low"] > 0
    assert "leaves 0 out is a difference" not in render(found)  # the plot does not contradict its interval
    many = {"sources": SOURCES * 6, "targets": TARGETS * 6}
    write_run(tmp_path / "c", "slm", POOR * 6, **many)
    write_run(tmp_path / "d", "slm", GOOD * 6, **many)
    [better] = verdict(compared(tmp_path / "c", tmp_path / "d"))
    assert re.fullmatch(r"d is better than c: \+\d\d\.\d\d BLEU \[\+.*\], p = 0\.0\d\d\.", better)
    [worse] = verdict(compared(tmp_path / "c", tmp_path / "d", baseline=1))
    assert worse.startswith("c is worse than d: −")
    monkeypatch.setitem(METRICS_BY_NAME, "bleu", replace(METRICS_BY_NAME["bleu"], lower_is_better=True))
    [turned] = verdict(compared(tmp_path / "c", tmp_path / "d", baseline=1))
    assert turned == worse.replace("worse", "better")
    monkeypatch.undo()
    write_run(tmp_path / "a", "slm", GOOD)
    write_run(tmp_path / "b", "slm", GOOD)
    [same] = verdict(compared(tmp_path / "a", tmp_path / "b"))
    assert same.startswith("No significant difference between b and a: +0.00 BLEU [+0.00, +0.00], p = 1.000.")
    [other] = verdict(compared(tmp_path / "c", tmp_path / "d", metrics=["length_ratio"]))
    assert other.startswith("d differs from c: +0.")
    for name in "efghij":
        write_run(tmp_path / name, "slm", GOOD)
    names = [tmp_path / name for name in "abefghij"]
    assert len(verdict(compared(*names[:7]))) == 6
    said = verdict(compared(*names))
    assert (len(said), said[-1]) == (7, "The table has 1 more system.")


def test_points_of_the_plot_are_at_the_differences(found):
    source = render(found)
    for system in found["systems"]:
        if system["name"] != "slm":
            difference = system["compared"]["bleu"]["difference"]
            tip = f"{system['name']}: {difference['value']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"
            assert f"<title>{tip.replace('-', '−')}</title>" in source
    svg = drawing(source, "BLEU: difference to the baseline")
    bars = re.findall(r'<path [^>]*stroke-opacity="0.65"[^>]* d="M ([\d.]+) ([\d.]+) L ([\d.]+) \2"', svg)
    ends = [value(float(x), across(svg)) for a, _, b in bars for x in (a, b)]
    differences = [s["compared"]["bleu"]["difference"] for s in found["systems"] if s["name"] != "slm"]
    assert ends == pytest.approx([each[end] for each in differences for end in ("low", "high")], abs=0.05)


@pytest.mark.parametrize("p", [(1.0, "1.000"), (0.0499, "0.050"), (0.001, "0.001"), (0.00099, "<0.001"), (None, "–")])
def test_probabilities_are_formatted(p):
    assert probability(p[0]) == p[1]


@pytest.mark.parametrize("width", representatives([390, 1280], [390]))
def test_the_page_has_no_faults_in_a_browser(browser, found, tmp_path, width):
    page = json.loads(json.dumps(found))
    page["row_differences"][0]["better"][0]["prediction"] = HOSTILE[1]
    page["command"] = page["notes"][0] = HOSTILE[6]
    seen, console = probe(browser, render(page), tmp_path, width)
    assert (seen["problems"], console, seen["requests"]) == ([], [], [])
    assert seen["page"] <= seen["view"] == width


def test_speeds_of_another_timing_run_are_left_out_of_the_table(tmp_path):
    write_demo(tmp_path / "demo", {"llm": TARGETS, "slm": POOR})
    write_run(tmp_path / "other", "llm2slm", GOOD, row=speed(10.0, 987.25))
    found = compared(tmp_path / "demo", tmp_path / "other")
    assert [bool(system["speed"]) for system in found["systems"]] == [True, True, False]
    assert "987.25" not in csv_text(found) + shown(terminal_table(found, 200), 200)
    assert "other was timed in another run: its speed is left out." in found["notes"]
