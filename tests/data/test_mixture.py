"""data=mixture: shares exact to the row, the same rows for the same seed, each part prompted as its task."""

from __future__ import annotations

import json
from collections import Counter

import hub_tables
import pytest
from command_line import mistake, tiny_overrides
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from llm2slm.cli import main
from llm2slm.cli.compose import Composer
from llm2slm.config import DataConfig, PartConfig, TaskConfig
from llm2slm.data.sources.mixture import drawn, labels, shares
from llm2slm.data.sources.sources import read_split, task_of
from llm2slm.types import UserError


def parts(*values):
    return [PartConfig(name="json", **({"weight": v} if isinstance(v, int | float) else v)) for v in values]


AGAIN = {"weight": 1.0, "repeat": True}


# Shares and draws


@pytest.mark.parametrize(
    ("sizes", "weights", "limit", "counts"),
    [
        ((100, 100), (1, 1), None, (100, 100)),
        ((100, 30), (2, 1), None, (60, 30)),  # the second runs out first
        ((50, 30), (2, 1), None, (50, 25)),  # the first does
        ((100, 100, 100), (3, 2, 1), None, (100, 67, 33)),
        ((100, 100), (2, 1), 10, (7, 3)),
        ((100, 100), (0.5, 0.25), 9, (6, 3)),
        ((100, 10), (1, AGAIN), None, (100, 100)),  # the small one is repeated
        ((10, 100), (1, AGAIN), None, (10, 10)),  # not necessary
        ((100, 10), (AGAIN, AGAIN), None, (100, 100)),  # until each was used completely
        ((7, 3), (AGAIN, {"weight": 2, "repeat": True}), None, (7, 14)),
        ((100, 10), (AGAIN, AGAIN), 30, (15, 15)),
        ((1, 1), (1, 1), None, (1, 1)),
    ],
)
def test_shares_follow_sizes_weights_and_limit(sizes, weights, limit, counts):
    assert shares(sizes, parts(*weights), limit) == list(counts)


@examples(200)
@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0.5, 4), st.booleans()), min_size=1, max_size=5),
    st.one_of(st.none(), st.integers(60, 1000)),
)
def test_shares_keep_the_proportion_and_do_not_exceed_the_sizes(given_parts, limit):
    mixed = parts(*({"weight": weight, "repeat": repeat} for _, weight, repeat in given_parts))
    sizes = [size for size, *_ in given_parts]
    try:
        counts = shares(sizes, mixed, limit)
    except UserError as error:
        assert "less than one" in str(error)
        return
    total, weights = sum(counts), [part.weight for part in mixed]
    assert limit is None or total <= limit
    for size, count, part in zip(sizes, counts, mixed, strict=True):
        assert part.repeat or count <= size
        assert abs(count - total * part.weight / sum(weights)) < 1.001
    # one more row would exceed some part, or the limit
    if limit is None and not all(part.repeat for part in mixed):
        short = [(total + 1) * p.weight / sum(weights) - n for n, p in zip(sizes, mixed, strict=True) if not p.repeat]
        assert max(short) > -1e-3


def test_draws_depend_on_seed_and_part_and_repeat_evenly():
    rows = [str(n) for n in range(50)]
    assert drawn(rows, 20, 1, 0) == drawn(rows, 20, 1, 0) == drawn(rows, 50, 1, 0)[:20]
    assert len({tuple(drawn(rows, 20, seed, part)) for seed in (1, 2) for part in (0, 1)}) == 4
    assert sorted(drawn(rows, 50, 1, 0)) == sorted(rows)
    often = Counter(drawn(rows, 120, 3, 0))
    assert set(often.values()) == {2, 3} and sum(often.values()) == 120  # all are drawn before any is repeated
    assert drawn(rows, 120, 3, 0)[:50] != drawn(rows, 120, 3, 0)[50:100]


def test_parts_have_distinct_labels():
    same = [PartConfig(name="samsum"), PartConfig(name="samsum"), PartConfig(name="builtin"), PartConfig(name="samsum")]
    assert labels([*same, PartConfig(name="hub", path="me/set")]) == [
        "samsum", "samsum-2", "translation", "samsum-3", "me/set"
    ]  # fmt: skip


# Rows


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    for corpus in ("samsum", "multi30k", "alpaca"):
        hub_tables.write_local(corpus, folder)
    hub_tables.write("dolly", folder / "hub")
    return folder


def mixture(*mixed, **values):
    return DataConfig(name="mixture", parts=[PartConfig(**part) for part in mixed], **values)


def read(data, split="train", seed=1, task=None):
    own = task_of(task or TaskConfig(), data)
    found, notes = read_split(data, own, split, seed)
    return [own.example(row, n) for n, row in enumerate(found)], notes, own


def test_each_part_is_prompted_as_its_task(root):
    data = mixture(
        {"name": "samsum", "root": str(root), "weight": 2},
        {"name": "multi30k", "root": str(root), "target": "fr"},
        {"name": "hub", "path": str(root / "hub"), "source": "instruction", "target": "response", "task": "instruction",
         "prefix": "do: ", "template": ["{instruction} ({context})", "{instruction}"], "train_size": 8},
    )  # fmt: skip
    examples, notes, task = read(data)
    assert len(examples) == 12
    asked = Counter(example.prompt.partition(" train")[0] for example in examples)
    assert asked == {
        "summarize: source": 6,
        "translate English to French: en": 3,
        "do: instruction": 3,
    }
    assert {e.target for e in examples if "French" in e.prompt} <= {f"fr train {n}" for n in range(6)}
    assert all(("(context train" in e.prompt) == (int(e.target.split()[-1]) % 2) for e in examples if "do:" in e.prompt)
    # evenly distributed: half of each third of the mixture is of the heavier part
    assert [sum(e.prompt.startswith("summ") for e in examples[i : i + 4]) for i in (0, 4, 8)] == [2, 2, 2]
    assert (task.name, task.metrics, task.max_new_tokens) == ("mixture", ("rougeL", "bleu"), 128)
    assert notes[0] == {
        "name": "samsum", "task": "summarization", "prefix": "summarize: ", "weight": 2, "rows": 6, "of": 6,
        "metrics": ["rougeL", "rouge1", "rouge2", "rougeLsum"],
    }  # fmt: skip
    assert [(note["name"], note["rows"], note["of"]) for note in notes[1:]] == [
        ("multi30k", 3, 6),
        (str(root / "hub"), 3, 8),
    ]
    assert len({example.prompt for example in examples}) == 12


def test_the_same_seed_draws_the_same_rows(root):
    data = mixture({"name": "samsum", "root": str(root), "weight": 3}, {"name": "multi30k", "root": str(root)})
    assert read(data)[0] == read(data)[0]
    drawn_by = {
        seed: frozenset(e.prompt for e in read(data, seed=seed)[0] if "German" in e.prompt) for seed in range(9)
    }
    assert len(set(drawn_by.values())) > 2


def test_only_parts_with_repeat_are_repeated(root):
    small = {"name": "multi30k", "root": str(root), "train_size": 2}
    big = {"name": "samsum", "root": str(root)}
    examples, notes, _ = read(mixture(big, small))
    assert [note["rows"] for note in notes] == [2, 2]
    examples, notes, _ = read(mixture(big, small | {"repeat": True}))
    assert [(note["rows"], note["of"]) for note in notes] == [(6, 6), (6, 2)]
    assert sorted(Counter(e.prompt for e in examples if "German" in e.prompt).values()) == [3, 3]
    examples, notes, _ = read(mixture(big, small | {"repeat": True}, train_size=4))
    assert len(examples) == 4 and [note["rows"] for note in notes] == [2, 2]


@pytest.mark.parametrize(("split", "size"), [("validation", 3), ("test", 2)])
def test_evaluation_uses_every_row_of_every_part_once(root, split, size):
    data = mixture(
        {"name": "samsum", "root": str(root), "weight": 9}, {"name": "multi30k", "root": str(root), "repeat": True}
    )
    examples, notes, _ = read(data, split)
    kinds = ["summarize: source", "translate English to German: en"]
    assert sorted(e.prompt for e in examples) == [f"{kind} {split} {n}" for kind in kinds for n in range(size)]
    assert [note["rows"] for note in notes] == [size, size]
    setattr(data, f"{split}_size", 2)
    assert [e.prompt.partition(":")[0] for e in read(data, split)[0]] == ["summarize", "translate English to German"]


def test_root_and_task_of_the_mixture_apply_to_its_parts(root):
    data = mixture({"name": "samsum"}, {"name": "alpaca"}, {"name": "builtin", "corpus": "translation"}, root=str(root))
    data.parts[2].train_size = 6
    examples, notes, task = read(data, task=TaskConfig(name="mixture", prefix="please ", metrics=["chrf"]))
    assert [note["task"] for note in notes] == ["summarization", "instruction", "translation"]
    assert all(example.prompt.startswith("please ") for example in examples)
    assert task.metrics == ("chrf",)
    assert read(mixture({"name": "samsum"}, {"name": "samsum"}, root=str(root)))[2].metrics[:2] == ("rougeL", "rouge1")


@pytest.mark.parametrize(
    ("mixed", "found"),
    [
        ([], "data=mixture: no parts; give data.parts=["),
        ([{}], "data.parts[0]: has no name"),
        ([{"name": "mixture"}], "data.parts[0]: is a mixture; give its parts instead"),
        ([{"name": "builtin", "corpus": "mixture"}], "data.parts[0]: is a mixture; give its parts instead"),
        (
            [{"name": "builtin"}, {"name": "samsum", "weight": 0.0}],
            "data.parts[1]: weight=0.0: must be a number above 0",
        ),
        ([{"name": "samsum", "weight": float("nan")}], "data.parts[0]: weight=nan: must be"),
        ([{"name": "samsum", "task": "summary"}], "data.parts[0]: its task is one of translation, summarization, "),
        ([{"name": "samsun"}], "data.parts[0]: data=samsun: unknown corpus; did you mean samsum?"),
        ([{"name": "json"}], "data.parts[0]: data.train is not set"),
        (
            [{"name": "builtin", "train_size": 9}, {"name": "builtin", "train_size": 9, "weight": 100.0}],
            "data.parts[0]: its share of the 9 rows is less than one",
        ),
    ],
)
def test_invalid_mixtures_are_refused(mixed, found):
    with pytest.raises(UserError) as caught:
        read(mixture(*mixed))
    assert str(caught.value).startswith(found)
    assert "\n" not in str(caught.value)


def test_a_part_without_a_task_is_refused(tmp_path):
    data = mixture({"name": "json", "train": "x.jsonl"})
    with pytest.raises(UserError, match=r"^data\.parts\[0\]: its task is one of .*; it is mixture$"):
        task_of(TaskConfig(name="mixture"), data)
    assert task_of(TaskConfig(name="summarization"), data).prefixes == (("json", "summarize: "),)


def test_each_part_has_a_separate_language():
    """That of the part, else task.language, else that of its corpus."""
    given = ({"name": "multi30k"}, {"name": "samsum"}, {"name": "samsum", "language": "zh-CN"})
    for language, codes in ((None, ["de", None, "zh"]), ("ja", ["ja", "ja", "zh"])):
        task = task_of(TaskConfig(language=language), mixture(*given))
        rows = [task.example({"task": name, "source": "s", "target": "t"}, 0) for name, _ in task.prefixes]
        assert [row.language for row in rows] == codes
    with pytest.raises(UserError, match=r"^data\.parts\[1\]\.language=chinese: .*did you mean zh \(Chinese\)\?"):
        task_of(TaskConfig(), mixture({"name": "samsum"}, {"name": "samsum", "language": "chinese"}))


def test_a_part_of_an_unknown_corpus_is_reported_as_such(tmp_path):
    """Independent of the task; task=mixture is not valid for a part."""
    for task in ("mixture", "translation"):
        with pytest.raises(UserError, match=r"^data\.parts\[0\]: data=samsun: unknown corpus; did you mean samsum\?"):
            task_of(TaskConfig(name=task), mixture({"name": "samsun"}))


# The command line


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("[{name: samsum, wieght: 2}]", "data.parts[0]: unknown key 'wieght'; did you mean weight?"),
        ("[{name: samsum},{name: samsum, weight: x}]", "data.parts[1].weight=x: expected a number"),
        ("[samsum]", "data.parts=['samsum']: expected a list of {KEY: VALUE}, [A,B]"),
        ("[{name: samsum, template: '{a}'}]", "data.parts[0].template={a}: expected a list of texts, [A,B] or null"),
    ],
)
def test_a_wrong_part_on_the_command_line_is_reported(capsys, value, found):
    assert main(["train", "data=mixture", f"data.parts={value}"]) == 2
    assert mistake(capsys) == found


def test_training_on_a_mixture_records_its_parts(root, tmp_path, tiny_llm, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mixed = f"[{{name: samsum, weight: 2}}, {{name: multi30k, root: {root}}}]"
    arguments = ["train", *tiny_overrides(tiny_llm), "data=mixture", f"data.parts={mixed}", f"data.root={root}"]
    assert main([*arguments, "model.slm.tokenizer=train:300", "model.tokenizers=offsets", "hydra.run.dir=run"]) == 0
    [system] = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["systems"]
    told = system["notes"]["data"]
    assert [(p["name"], p["task"], p["rows"], p["of"]) for p in told["train"]["parts"]] == [
        ("samsum", "summarization", 5, 6),
        ("multi30k", "translation", 3, 6),
    ]
    assert sum(part["rows"] for part in told["test"]["parts"]) == told["test"]["rows"] == 4
    assert set(system["quality"]) == {"rougeL", "bleu"}
    card = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    assert "a mixture of samsum, multi30k" in card
    capsys.readouterr()
    assert main(["generate", "run=run", "prompt=hello"]) == 2
    assert mistake(capsys).startswith("run=run was trained on several tasks; choose one by prefix=TEXT (samsum: 'summ")
    assert main(["train", "run=run", "trainer.max_steps=3"]) == 0


def test_the_shipped_example_is_a_list_of_parts():
    """The keys that conf/data/mixture.yaml shows are those of a part."""
    composer = Composer("train")
    value = "[{name: samsum, root: DIR, weight: 2}, {name: json, train: FILE, validation: FILE, task: instruction}]"
    found = composer.typed(composer.compose(["data=mixture", composer.prepare(f"data.parts={value}", sweeping=False)]))
    assert [part.name for part in found.data.parts] == ["samsum", "json"]
    assert found.data.parts[0].weight == 2.0
