"""Every option of `data=`, composed as on the command line and read offline from a miniature with the true schema."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import hub_tables
import pytest
from hub_tables import LOCAL, TABLES, text
from sampling import first_few, representatives

from llm2slm.cli.compose import Composer
from llm2slm.cli.folders import conf_folder
from llm2slm.data.sources.corpora import CORPORA, LANGUAGES, PARQUET
from llm2slm.data.sources.hub import hub_location
from llm2slm.data.sources.sources import languages, load_rows, task_of
from llm2slm.types import Overlong, UserError

OPTIONS = {path.stem for path in (conf_folder() / "data").glob("*.yaml")}
ELSEWHERE = {
    "builtin": "test_sources.py and tests/data/builtin",
    "json": "test_sources.py",
    "hub": "below",
    "mixture": "test_mixture.py",
}
"""Options without a corpus in the table, and the files that test them."""

COLUMNS = {
    "wmt14_en_de": ("en", "de"),
    "wmt14_en_fr": ("en", "fr"),
    "wmt16_en_ro": ("en", "ro"),
    "iwslt2017_en_de": ("en", "de"),
    "multi30k": ("en", "de"),
    "cnn_dailymail": ("article", "highlights"),
    "xsum": ("document", "summary"),
    "samsum": ("dialogue", "summary"),
    "dialogsum": ("dialogue", "summary"),
    "alpaca": ("instruction", "output"),
    "dolly": ("instruction", "response"),
}
"""Columns of source and target by their names on the Hub."""

CONTEXT = {"alpaca": "input", "dolly": "context"}
"""The column that every second row has in addition to its instruction."""

HUB = {
    "wmt14_en_de": ("wmt/wmt14", {"name": "de-en", "revision": None}),
    "wmt14_en_fr": ("wmt/wmt14", {"name": "fr-en", "revision": None}),
    "wmt16_en_ro": ("wmt/wmt16", {"name": "ro-en", "revision": None}),
    "iwslt2017_en_de": ("IWSLT/iwslt2017", {"data_dir": "iwslt2017-en-de", "revision": PARQUET}),
    "multi30k": ("bentrevett/multi30k", {"name": None, "revision": None}),
    "cnn_dailymail": ("abisee/cnn_dailymail", {"name": "3.0.0", "revision": None}),
    "xsum": ("EdinburghNLP/xsum", {"data_dir": "default", "revision": PARQUET}),
    "samsum": ("knkarthick/samsum", {"name": None, "revision": None}),
    "dialogsum": ("knkarthick/dialogsum", {"name": None, "revision": None}),
    "alpaca": ("tatsu-lab/alpaca", {"name": None, "revision": None}),
    "dolly": ("databricks/databricks-dolly-15k", {"name": None, "revision": None}),
}
"""Path and arguments of `datasets.load_dataset`."""

HELD_OUT = {"train": (1_000, 6), "validation": (0, 500), "test": (500, 500)}
"""First row and number of rows of each split, for corpora with a train split only."""


@cache
def composer() -> Composer:
    return Composer("train")


@cache
def run_config(*overrides):
    """A configuration as `llm2slm train` gets it; composed once and not changed."""
    prepared = [composer().prepare(override, sweeping=False) for override in overrides]
    return composer().typed(composer().compose(prepared))


def config(*overrides):
    return run_config(*overrides).data


def rows(split, *overrides):
    """The rows that `train` loads of a split."""
    found = run_config(*overrides)
    return load_rows(found.data, split, 1, task_of(found.task, found.data).templates)


@pytest.fixture(scope="session")
def tables(tmp_path_factory) -> Path:
    """A folder with the miniature of every corpus that comes from the Hub."""
    folder = tmp_path_factory.mktemp("hub")
    for corpus in TABLES:
        hub_tables.write(corpus, folder / corpus)
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A folder of corpora, as `data.root` names one."""
    folder = tmp_path_factory.mktemp("root")
    for corpus in LOCAL:
        hub_tables.write_local(corpus, folder)
    return folder


def test_no_option_is_left_untested():
    assert set(TABLES) | set(LOCAL) | set(ELSEWHERE) == OPTIONS
    assert set(TABLES) == set(COLUMNS) == set(HUB) == {name for name, corpus in CORPORA.items() if corpus.hub}
    assert set(LOCAL) == {name for name, corpus in CORPORA.items() if corpus.files}


@pytest.mark.parametrize("split", representatives(["train", "validation", "test"], ["train"]))
@pytest.mark.parametrize("corpus", TABLES)
def test_columns_of_the_hub_are_mapped_to_rows(tables, corpus, split):
    found = rows(split, f"data={corpus}", f"data.path={tables / corpus}")
    source, target = COLUMNS[corpus]
    if len(TABLES[corpus][3]) == 3:
        numbers, where = range(TABLES[corpus][3][split]), split
    else:
        numbers, where = range(HELD_OUT[split][0], sum(HELD_OUT[split])), "train"
    want = [{"source": text(source, where, n), "target": text(target, where, n)} for n in numbers]
    if corpus in CONTEXT:
        for n, row in zip(numbers, want, strict=True):
            row["source"] += "\n\n" + text(CONTEXT[corpus], where, n) if n % 2 else ""
    assert found == want


@pytest.mark.parametrize("corpus", first_few(TABLES, 5))
def test_without_a_path_a_corpus_is_loaded_from_the_hub(corpus):
    chosen = config(f"data={corpus}")
    path, arguments, part = hub_location(chosen, "validation")
    assert (path, arguments) == HUB[corpus]
    assert part == ("train[:500]" if corpus in ("alpaca", "dolly") else "validation")
    with pytest.raises(
        UserError, match=rf"^{path}, split .*: not loaded \(.*\); without the Hub give a copy of it as "
    ):
        load_rows(chosen, "validation", 1)
    mirror = config(f"data={corpus}", "data.path=me/mirror", "data.revision=abc", "data.validation=dev")
    name = HUB[corpus][1].get("name", HUB[corpus][1].get("data_dir"))
    assert hub_location(mirror, "validation") == ("me/mirror", {"name": name, "revision": "abc"}, "dev")


@pytest.mark.parametrize("split", representatives(["train", "validation", "test"], ["train"]))
@pytest.mark.parametrize("corpus", LOCAL)
def test_the_folder_of_corpora_gives_rows_of_the_same_form(root, corpus, split):
    found = load_rows(config(f"data={corpus}", f"data.root={root}"), split, 1)
    pair = ("en", "de") if corpus in ("multi30k", "wmt_news") else ("source", "target")
    assert found == [{"source": text(pair[0], split, n), "target": text(pair[1], split, n)} for n in range(len(found))]
    assert len(found) == hub_tables.SIZES[split]


def test_the_languages_of_each_corpus_are_known():
    named = {corpus: languages(config(f"data={corpus}")) for corpus in CORPORA if CORPORA[corpus].task == "translation"}
    english = {"multi30k": "German", "wmt_news": "German", "tatoeba_en_fr": "French", "small_parallel_enja": "Japanese"}
    english |= {
        "wmt14_en_de": "German",
        "wmt14_en_fr": "French",
        "wmt16_en_ro": "Romanian",
        "iwslt2017_en_de": "German",
    }
    assert named == {corpus: ("English", other) for corpus, other in english.items()}
    assert {languages(config(f"data={corpus}")) for corpus in CORPORA if CORPORA[corpus].task != "translation"} == {
        None
    }
    back = ("data.source=translation.ro", "data.target=translation.en")
    assert languages(config("data=wmt16_en_ro", *back)) == ("Romanian", "English")
    assert languages(config("data=hub", "data.path=x", *back)) == ("Romanian", "English")
    assert languages(config("data=hub", "data.path=x", "data.source=a.ro", "data.target=a.xx")) is None
    assert all(len(code) == 2 and name.istitle() for code, name in LANGUAGES.items())


def test_corpora_with_long_rows_set_overlong():
    ways = {corpus: config(f"data={corpus}").overlong for corpus in CORPORA}
    assert {c for c, way in ways.items() if way is Overlong.truncate} == {"cnn_dailymail", "xsum", "dolly"}
    assert {c for c, way in ways.items() if way is Overlong.drop} == {
        "wmt14_en_de", "wmt14_en_fr", "wmt16_en_ro", "iwslt2017_en_de"
    }  # fmt: skip


# Folders and nested fields


def test_a_clone_and_a_single_subset_are_read_identically(tables, tmp_path):
    """README.md names the subsets of a clone; a folder may also hold the files of the one subset."""
    other = {"translation": {"cs": "x", "en": "y"}}
    for name, row in (("cs-en", other), ("de-en", None)):
        for split in ("train", "test"):
            rows = [row or TABLES["wmt14_en_de"][1](split, 0)]
            path = tmp_path / "clone" / "files" / name / f"{split}-0.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            hub_tables.write_file(path, rows)
    lines = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: files/{name}/train-*\n"
        f"  - split: test\n    path: files/{name}/test-*\n"
        for name in ("cs-en", "de-en")
    )
    (tmp_path / "clone" / "README.md").write_text(f"---\nconfigs:\n{lines}---\n# wmt14\n")
    alone = tables / "wmt14_en_de" / "de-en"
    for folder, size in ((tmp_path / "clone", 1), (alone, 2)):
        found = load_rows(config("data=wmt14_en_de", f"data.path={folder}"), "test", 1)
        assert found == [{"source": f"en test {n}", "target": f"de test {n}"} for n in range(size)]
    place = f"data.path={tmp_path / 'clone'}"
    czech = config("data=hub", place, "data.subset=cs-en", "data.source=translation.en", "data.target=translation.cs")
    assert load_rows(czech, "train", 1) == [{"source": "y", "target": "x"}]
    with pytest.raises(UserError, match=r"clone, split train: not loaded \(.*: no subset 'ru-en'; did you mean "):
        load_rows(config("data=wmt14_en_de", place, "data.subset=ru-en"), "train", 1)


def test_nested_fields_of_lists_and_of_user_files_are_read(tmp_path):
    turns = [{"who": "a", "says": "Hello."}, {"who": "b", "says": "Hi."}]
    rows = [{"talk": {"turns": turns}, "a.b": "dotted"} for _ in range(2)]
    path = hub_tables.write_file(tmp_path / "train.jsonl", rows)
    want = [{"source": "Hello.", "target": "Hi."}] * 2
    nested = ("data.source=talk.turns.0.says", "data.target=talk.turns.1.says")
    assert load_rows(config("data=hub", f"data.path={tmp_path}", *nested), "train", 1) == want
    assert load_rows(config("data=json", f"data.train={path}", *nested), "train", 1) == want
    dotted = config("data=json", f"data.train={path}", nested[0], "data.target=a.b")
    assert load_rows(dotted, "train", 1)[0]["target"] == "dotted"


def complaint(*overrides):
    with pytest.raises(UserError) as caught:
        rows("train", *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors_in_a_nested_field_are_reported(tables, tmp_path):
    folder = tables / "wmt14_en_de"
    place = ("data=wmt14_en_de", f"data.path={folder}")
    where = folder / "de-en" / "train-00000-of-00001.parquet"
    assert complaint(*place, "data.source=translation.ed") == (
        f"{where}, row 0 (from 0): no field 'translation.ed' (data.source); did you mean 'translation.en'? "
        "fields: translation.de, translation.en"
    )
    assert complaint(*place, "data.target=translation").startswith(
        f"{where}, row 0 (from 0), column 'translation': expected text, found dict {{"
    )
    assert complaint(*place, "data.target=translations.de").startswith(f"{where}: no column 'translations.de'")
    rows = [{"t": {"a": "x", "b": ["y"]}}, {"t": {"a": None, "b": []}}, {"t": None}]
    path = hub_tables.write_file(tmp_path / "rows.jsonl", rows)
    own = ("data=json", f"data.train={path}", "data.source=t.a")
    assert (
        complaint(*own, "data.target=t.a")
        == f"{path}, line 2, column 't.a': expected text, found null; fill it in, or leave the row out"
    )
    assert complaint(*own, "data.target=t.b.0").startswith(f"{path}, line 2, column 't.a'")
    hub_tables.write_file(path, [rows[0], rows[0] | {"t": {"a": "x", "b": []}}])
    assert complaint(*own, "data.target=t.b.0") == (
        f"{path}, line 2: no field 't.b.0' (data.target); did you mean 't.b'? fields: t.a, t.b"
    )
    hub_tables.write_file(path, [rows[0], rows[2]])
    assert (
        complaint(*own, "data.target=t.a")
        == f"{path}, line 2, column 't.a': expected text, found null; fill it in, or leave the row out"
    )


def test_a_wrong_location_of_a_corpus_is_reported(tables, root, tmp_path):
    assert complaint("data=xsum", f"data.root={root}") == (
        f"data=xsum: is a data set of the Hub, without files for data.root={root}; leave data.root out, or give a "
        "local copy as data.path=FOLDER"
    )
    assert complaint("data=samsum", f"data.root={root}", "data.path=x").startswith("data.root and data.path are both")
    assert complaint("data=samsum", "data.path=./nowhere") == "data.path=./nowhere: no such folder"
    assert complaint("data=samsum").endswith("as data.path=FOLDER, or data.root=DIR, the folder that holds samsum/")
    assert "contain any data files" in complaint("data=samsum", f"data.path={tmp_path}")
    assert complaint("data=dolly", f"data.path={tables / 'samsum'}").startswith(
        f"{tables / 'samsum' / 'train.csv'}: no column 'instruction' (task.template)"
    )


def test_the_folder_of_one_corpus_is_refused_as_data_root_and_as_data_path(root):
    """The error suggests the correct key."""
    own, meant = root / "samsum", f"did you mean data.root={root}?"
    assert complaint("data=samsum", f"data.root={own}").endswith(f"data.root={own} must hold samsum/; {meant}")
    found = complaint("data=samsum", f"data.path={own}")
    assert "no column 'dialogue'" in found
    assert found.endswith(meant)
    assert "did you mean data.root" not in complaint("data=hub", f"data.path={own}", "data.source=a", "data.target=b")


def test_the_folder_of_a_corpus_that_is_not_on_the_hub_may_be_a_data_path(root):
    """Its columns apply to a folder with its files."""
    found = load_rows(config("data=wmt_news", f"data.path={root / 'wmt_news'}", "data.target=cs"), "train", 1)
    assert found[0] == {"source": "en train 0", "target": "cs train 0"}
