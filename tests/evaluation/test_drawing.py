"""Plots: ticks, names next to points, and files for papers that are the same bytes in every process."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_report import HOSTILE, make_result

from llm2slm.evaluation import report
from llm2slm.evaluation.report.drawing import COLOURS, canvas, tick_texts, ticks, write_plots
from llm2slm.evaluation.report.entries import Entry
from llm2slm.evaluation.report.report import page_and_plots, write_report
from llm2slm.runs import plain


@pytest.mark.parametrize(
    ("low", "high"), [(0, 49.8), (71.04, 97.31), (-3, 0.2), (5, 5), (0, 0), (1e-7, 3e-7), (0, 123456)]
)
def test_ticks_are_round_enclose_the_range_and_differ(low, high):
    values = ticks(low, high)
    assert values[0] <= low
    assert values[-1] >= high
    assert 2 <= len(values) <= 8
    assert len(set(tick_texts(values))) == len(values)
    assert [float(text.replace(",", "").replace("−", "-")) for text in tick_texts(values)] == pytest.approx(
        values, abs=1e-12
    )


def named(count, words="name"):
    """Whether the names of this many adjacent points fit, and the boxes of the drawn names."""
    with canvas() as plot:
        plot.frame(("x", "y"), [0, 10])
        plot.x_axis(0, 10, [(0, "0"), (10, "10")])
        fitted = plot.name_points([(words, 5 + n / 100, 5) for n in range(count)])
        return fitted, [text.get_window_extent() for text in plot.axes.texts]


def test_names_next_to_points_do_not_overlap():
    fitted, boxes = named(4)
    assert fitted and len(boxes) == 4
    assert not any(a.overlaps(b) for a in boxes for b in boxes if a is not b)
    assert named(40)[0] is False
    assert named(1, "far too long for this plot" * 5) == (False, [])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a report with figures for papers."""
    folder = tmp_path_factory.mktemp("written")
    write_report([plain(make_result())], folder, "t", plots=True)
    return folder


def test_figures_for_papers_have_the_legend_and_no_date(written):
    _, plots = page_and_plots([plain(make_result())], "t")
    folder = written / "plots"
    paths = list(folder.iterdir())
    stems = {path.stem for path in paths}
    assert {path.name for path in paths} == {stem + form for stem in stems for form in (".svg", ".pdf")}
    assert len(stems) == len(plots) >= 7
    text = (folder / "speedup-by-response-length.svg").read_text("utf-8")
    words = [node.text for node in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"LLM", "SLM alone", "Hybrid", "response length, tokens (log scale)"} <= set(words)
    for path in paths:
        assert b"Date" not in path.read_bytes()
    assert b"/FontFile2" in (folder / "training-loss.pdf").read_bytes()  # TrueType


@pytest.mark.slow
def test_names_in_any_script_and_with_markup_are_drawn_verbatim(tmp_path):
    result = plain(make_result())
    for system, name in zip(result["systems"], (HOSTILE[3], "教師 \ufffe\n$x_1$", HOSTILE[1]), strict=True):
        system["name"] = name
    page, plots = page_and_plots([result], "t")
    write_plots(tmp_path, plots)
    [text] = re.findall(r'<text [^>]*class="label">([^<]*x_1[^<]*)<', page) or [""]
    assert text in ("", "教師 � $x_1$")
    assert "$x_1$" in (tmp_path / "training-loss.svg").read_text("utf-8")


@pytest.mark.slow
def test_the_same_results_give_identical_bytes_in_another_process(written, tmp_path):
    code = (
        "import sys; from pathlib import Path; from test_report import make_result; from llm2slm.runs import plain\n"
        "from llm2slm.evaluation.report.report import write_report\n"
        "write_report([plain(make_result())], Path(sys.argv[1]), 't', plots=True)"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    code_with_path = f"import sys; sys.path[:0] = {paths!r}\n{code}"
    subprocess.run([sys.executable, "-c", code_with_path, str(tmp_path)], check=True)
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in (written, tmp_path)
    )
    assert len(one) > 10
    assert one == two


def test_colours_of_files_equal_those_of_the_light_page():
    style = (Path(report.__file__).parent / "report_page.css").read_text("utf-8")
    light = dict(re.findall(r"--(\w+): (#\w{6});", style.partition("@media")[0]))
    assert {kind: COLOURS[f"k-{kind} s0"] for kind in ("llm", "slm", "llm2slm", "other")} == {
        kind: light[kind] for kind in ("llm", "slm", "llm2slm", "other")
    }
    assert len(set(COLOURS.values())) == len(COLOURS) == 20
    assert Entry("a", "<i>", 3, 0, {}, None).style in COLOURS
