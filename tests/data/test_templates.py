"""task.template: prompts from fields of a row; the template of a row; errors of rows that fit no template."""

from __future__ import annotations

import json
import shutil

import pytest
from command_line import mistake, tiny_overrides

from llm2slm.cli import main
from llm2slm.cli.compose import Composer
from llm2slm.config import DataConfig, TaskConfig
from llm2slm.data.sources.sources import load_rows, task_of
from llm2slm.data.tasks import resolve
from llm2slm.data.templates import TEMPLATES, Template, fields, parse
from llm2slm.decoding import decoder
from llm2slm.types import UserError

ROWS = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3", "meta": {"topic": "sums"}},
    {"instruction": "Greet.", "input": "", "output": "Hi.", "meta": {"topic": "life"}},
    {"instruction": "Wait.", "input": None, "output": "…", "meta": {"topic": "time"}},
]


def read(tmp_path, templates, rows=ROWS, **values):
    """Sources of rows by `task.template`."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(name="json", train=str(path), target="output", **values)
    task = task_of(TaskConfig(name="instruction", template=templates), data)
    found = load_rows(data, "train", 1, task.templates)
    assert [row["target"] for row in found] == [row["output"] for row in rows]
    return [row["source"] for row in found]


def complaint(tmp_path, templates, rows=ROWS, **values):
    with pytest.raises(UserError) as caught:
        read(tmp_path, templates, rows, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_row_takes_the_first_template_whose_fields_it_has(tmp_path):
    pair = ["{instruction} ({input})", "{instruction}!"]
    assert read(tmp_path, pair) == ["Add. (1 and 2)", "Greet.!", "Wait.!"]


def test_the_alpaca_template_is_that_of_stanford_alpaca(tmp_path):
    with_input, without, _ = read(tmp_path, ["alpaca"])
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n"
        "### Response:"
    )
    assert without == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nGreet.\n\n### Response:"
    )


def test_nested_fields_doubled_braces_and_the_source_column_are_supported(tmp_path):
    assert read(tmp_path, ["{{{meta.topic}}} {source}:"], source="instruction") == [
        "{sums} Add.:",
        "{life} Greet.:",
        "{time} Wait.:",
    ]
    assert read(tmp_path, [], source="instruction") == ["Add.", "Greet.", "Wait."]


def test_a_template_of_the_user_replaces_that_of_the_corpus():
    alpaca = DataConfig(name="alpaca")
    assert fields(task_of(TaskConfig(), alpaca).templates) == ["instruction", "input"]
    assert fields(task_of(TaskConfig(), DataConfig(name="dolly")).templates) == ["instruction", "context"]
    assert task_of(TaskConfig(template=["{text}"]), alpaca).templates == (Template("{text}"),)
    assert task_of(TaskConfig(template=[]), alpaca).templates == ()
    assert task_of(TaskConfig(), DataConfig(name="alpaca", source="text")).templates == ()
    assert (
        task_of(TaskConfig(), DataConfig(name="alpaca", root="x")).templates == ()
    )  # its source column has the same text


def test_the_template_gives_the_sources_of_the_folder_of_corpora(shared_data):
    """alpaca of the Hub with the template of the corpus has exactly the sources of the local copy."""
    local = DataConfig(name="alpaca", root=str(shared_data), validation_size=300)
    sources = [row["source"] for row in load_rows(local, "validation", 1)]
    own = task_of(TaskConfig(), DataConfig(name="alpaca")).templates
    assert [row["source"].strip() for row in load_rows(local, "validation", 1, own)] == sources
    assert 0 < sum("\n\n" in source for source in sources) < 300


def test_a_template_is_applied_to_built_in_rows():
    found = load_rows(DataConfig(train_size=3), "train", 1, parse(["Say it in German: {source}"]))
    plain = load_rows(DataConfig(train_size=3), "train", 1)
    assert [row["source"] for row in found] == ["Say it in German: " + row["source"] for row in plain]
    with pytest.raises(UserError, match=r"^data\.corpus=translation, train: no column 'topic' \(task\.template\)"):
        load_rows(DataConfig(train_size=3), "train", 1, parse(["{topic}"]))


def test_the_texts_around_a_prompt_follow_prefix_and_template():
    def around(*templates, prefix=""):
        return resolve(TaskConfig(name="instruction", prefix=prefix, template=list(templates))).around()

    assert around(prefix="ask: ") == ("ask: ", "")
    assert around("{a}\n\n{b}", "{a}", prefix="ask: ") == ("ask: ", "")
    assert around("{a} {b}", " Q: {a}\nA: ", prefix="ask: ") == ("ask: Q: ", "\nA:")
    assert around("{a} {b}") is None
    assert around("{a} {a}") is None
    assert around("alpaca")[0].endswith("### Instruction:\n")
    assert around("alpaca")[1] == "\n\n### Response:"
    assert resolve(TaskConfig(name="mixture")).around() is None


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("Answer.", "names no field; write columns in braces, as {instruction}, or the name of one: alpaca"),
        ("{", "single '{' encountered in format string; write a literal brace twice"),
        ("a}", "single '}' encountered in format string; write a literal brace twice"),
        ("{}", "a field is the name of a column in braces, as {instruction}"),
        ("{a:>3}", "a field is the name of a column in braces, as {instruction}"),
        ("{a!r}", "a field is the name of a column in braces, as {instruction}"),
        ("{a} {target}", "{target} would show the answer in the prompt"),
    ],
)
def test_invalid_templates_are_refused(template, found):
    with pytest.raises(UserError) as caught:
        resolve(TaskConfig(template=[template]))
    assert str(caught.value).startswith(f"task.template={template!r}: {found}")


def test_a_row_that_fits_no_template_is_reported_with_the_field(tmp_path):
    assert complaint(tmp_path, ["{instruction} {input}"]) == (
        "rows.jsonl, line 2: the field 'input' has no text, and every task.template uses it; add a template without it"
    )
    rows = [ROWS[0], ROWS[0] | {"instruction": " "}]
    assert complaint(tmp_path, ["{instruction} {input}", "{instruction}"], rows).startswith(
        "rows.jsonl, line 2: the field 'instruction' has no text"
    )
    assert complaint(tmp_path, ["{instruction} {inputs}", "{instruction}"]) == (
        "rows.jsonl: no column 'inputs' (task.template) in any row; did you mean 'input'? "
        "columns: instruction, input, output, meta"
    )
    assert complaint(tmp_path, ["{meta.topics}"]).startswith(
        "rows.jsonl, line 1: no field 'meta.topics' (task.template); did you mean 'meta.topic'?"
    )
    rows = [ROWS[0], ROWS[0] | {"input": 5}]
    assert complaint(tmp_path, ["{input}"], rows) == (
        "rows.jsonl, line 2, column 'input': expected text, found int 5; write it as text, or name another column"
    )


@pytest.mark.slow
def test_templates_are_parsed_on_the_command_line():
    composer = Composer("train")

    def given(text):
        return composer.typed(composer.compose([composer.prepare(text, sweeping=False)])).task.template

    assert given("task.template=alpaca") == ["alpaca"]
    assert given("task.template=Question: {q}\nAnswer, briefly:") == ["Question: {q}\nAnswer, briefly:"]
    assert given("task.template={q}") == ["{q}"]
    assert given("task.template=['{a} {b}','{a}']") == ["{a} {b}", "{a}"]
    assert given("task.template=[]") == []
    assert given("task.template=null") is None
    assert TEMPLATES.keys() == {"alpaca"}
    with pytest.raises(UserError, match="is malformed"):
        given("task.template=[{a} {b}]")


def test_a_model_trained_on_a_template_is_prompted_with_it(tmp_path, tiny_llm, monkeypatch, capsys):
    """By the record of its run, or that of the model; the model card states the template."""
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"why {n}", "hint": "", "a": "so"} for n in range(4)]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["data=json", *(f"data.{split}={split}.jsonl" for split in ("train", "validation", "test"))]
    words = ["task=instruction", "data.target=a", "task.template=['{q} ({hint})','Q: {q}\nA:']", "task.prefix=say: "]
    assert main(["train", *tiny_overrides(tiny_llm), *data, *words, "hydra.run.dir=run"]) == 0
    predicted = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [row["source"] for row in predicted] == [f"Q: why {n}\nA:" for n in range(4)]
    assert "'say: Q: ...\\nA:'" in (tmp_path / "run" / "model" / "README.md").read_text()
    asked = []
    monkeypatch.setattr(
        decoder, "generate_text", lambda _, texts, *__, **___: asked.extend(texts) or ["x"] * len(texts)
    )
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "alone")
    (tmp_path / "texts.txt").write_text("how\n")
    for run in ("run", "alone"):
        assert main(["generate", f"run={run}", "prompt=why", "stream=false"]) == 0
        assert main(["generate", f"run={run}", "input=texts.txt"]) == 0
        assert asked == ["say: Q: why\nA:", "say: Q: how\nA:"]
        asked.clear()
    assert main(["generate", "run=run", "prompt=why", "prefix=ask: ", "stream=false"]) == 0
    assert asked == ["ask: why"]
    capsys.readouterr()
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("  - '{q} ({hint})'\n", "").replace("Q: {q}", "{q} {hint}"))
    assert main(["generate", "run=run", "prompt=why"]) == 2
    assert mistake(capsys).startswith("run=run was trained on prompts of several fields ({q} {hint}); set the text")
