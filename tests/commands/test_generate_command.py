"""`llm2slm generate`: a prompt, a file of lines or rows, or typed lines; compared with the model's answers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import mistake
from sampling import representatives

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands.generate import defaults, read
from llm2slm.config import GenerateConfig, RunConfig
from llm2slm.decoding import decoder
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.resumable import ResumableLines
from llm2slm.testing import tiny_model_config
from llm2slm.types import Overlong, UserError

PREFIX = "translate English to German: "
LIMIT = "max_new_tokens=6"
TEXTS = ["The old teacher reads a book.", "two dogs", "it sees the little house, no?"]


@pytest.fixture(scope="module", params=representatives(["t5", "gpt2"], ["gpt2"]))
def answering(request, tmp_path_factory):
    """A run directory with a hybrid whose random weights give each prompt a different answer."""
    folder = tmp_path_factory.mktemp(request.param)
    config = RunConfig(model=tiny_model_config(folder / "zoo", slm=request.param))
    config.data.max_prompt_tokens = config.data.max_response_tokens = 200
    torch.manual_seed(3)
    model = build_model(config.model, config.data)
    if request.param == "t5":  # whose random weights are too small for prompts to determine the first words
        wide = [p for name, p in model.slm.named_parameters() if "EncDecAttention" in name or "DenseRelu" in name]
        for parameter in [*wide, *model.projector.parameters()]:
            parameter.data.mul_(4)
    model.save_pretrained(folder / "run" / "model")
    runs.write_config(folder / "run", config)
    return folder / "run"


@pytest.fixture(scope="module")
def expected(answering):
    """Answers of the model without the command, which the command must reproduce."""
    model = LLM2SLM.from_pretrained(answering / "model")
    answers = [model.generate_text([PREFIX + text], max_new_tokens=6)[0] for text in TEXTS]
    assert len(set(answers)) == 3  # else the order of answers could not be checked
    assert all(answer.strip() for answer in answers)
    return answers


@pytest.fixture
def generate(answering, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["generate", *run.run, *arguments])
        return code, capsys.readouterr().out

    run.run = [f"run={answering}", LIMIT]
    return run


@pytest.mark.parametrize("stream", ["stream=true", "stream=false"])
def test_streaming_does_not_change_the_answer(generate, expected, stream):
    for text, answer in zip(TEXTS, expected, strict=True):
        code, shown = generate(f"prompt={text}", stream)
        assert (code, shown.removesuffix("\n")) == (0, answer)


@pytest.mark.parametrize("decoding", ["eager", "captured"])
def test_other_decoders_give_the_same_responses(generate, expected, tmp_path, decoding):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    for text, answer in zip(TEXTS, expected, strict=True):
        assert generate(f"prompt={text}", f"decoding={decoding}") == (0, answer + "\n")
    one_line = [" ".join(answer.splitlines()) for answer in expected]
    assert generate("input=texts.txt", f"decoding={decoding}") == (0, "\n".join(one_line) + "\n")


def test_lossless_gives_the_responses_of_the_llm(generate, answering, tmp_path, capsys):
    config = runs.read_config(answering)["model"]["llm"]
    wanted = []
    for text in TEXTS[1:]:
        llm = [f"run={config['name']}", f"prefix={PREFIX}", f"prompt={text}", "max_new_tokens=40"]
        assert main(["generate", *llm, "overlong=truncate"]) == 0
        wanted.append(capsys.readouterr().out)
        assert generate(f"prompt={text}", "max_new_tokens=40", "decoding=lossless") == (0, wanted[-1])
    assert len(set(wanted)) > 1
    assert generate(f"prompt={TEXTS[-1]}", "max_new_tokens=40")[1] != wanted[-1]
    copy = tmp_path / "copy"  # a model without a run directory: its config records the prefix
    shutil.copytree(answering / "model", copy)
    saved = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(saved | {"prefix": PREFIX}))
    lossless = [f"run={copy}", f"prompt={TEXTS[-1]}", "max_new_tokens=40", "overlong=truncate", "decoding=lossless"]
    assert main(["generate", *lossless, f"llm={config['name']}"]) == 0
    assert capsys.readouterr().out == wanted[-1]


def test_an_output_of_another_decoder_is_not_accepted_as_complete(generate, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    given = ["input=texts.txt", "output=out.txt"]
    assert generate(*given)[0] == 0
    assert "already complete" in generate(*given, "decoding=captured")[1]  # the same responses
    for other in (["decoding=cascade", "cascade=inf"], ["decoding=lossless"], ["decoding=int8"]):
        assert main(["generate", *generate.run, *given, *other]) == 2
        assert "other settings" in mistake(capsys)
    assert generate("input=texts.txt", "output=second.txt", "decoding=cascade", "cascade=-1.5")[0] == 0
    assert (
        main(["generate", *generate.run, "input=texts.txt", "output=second.txt", "decoding=cascade", "cascade=-2"]) == 2
    )
    assert "cascade" in mistake(capsys)


@pytest.mark.parametrize(
    "decoding", representatives([["decoding=lossless"], ["decoding=cascade", "cascade=inf"]], [["decoding=lossless"]])
)
def test_the_llm_has_the_limits_of_the_run(generate, decoding):
    """The run's limit is 200 tokens; longer prompts are truncated for both models on request."""
    text = "dog " * 300
    assert generate(f"prompt={text}", *decoding)[0] == 2
    assert generate(f"prompt={text}", "overlong=truncate", *decoding)[0] == 0


def test_decoders_that_do_not_fit_are_refused(generate, answering, capsys):
    def error(*arguments):
        assert main(["generate", "prompt=a", *arguments]) == 2
        return mistake(capsys)

    trained, llm = f"run={answering}", f"run={runs.read_config(answering)['model']['llm']['name']}"
    assert error(trained, "decoding=lossless", "num_beams=2") == (
        "decoding=lossless: beam search is not supported; use num_beams=1 instead of 2, or decoding=captured"
    )
    assert error(llm, "decoding=lossless") == (
        "decoding=lossless: needs a hybrid, whose drafts its LLM verifies; this is llm; use decoding=captured"
    )


@pytest.mark.slow
def test_beam_search_with_captured_steps_equals_generate(generate, answering):
    model = LLM2SLM.from_pretrained(answering / "model")
    limits = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    for text in TEXTS[:2]:
        code, out = generate(f"prompt={text}", "decoding=captured", "num_beams=3")[:2]
        assert (code, out) == (0, model.generate_text([PREFIX + text], **limits)[0] + "\n")


def test_streaming_prints_more_than_once(generate, monkeypatch):
    from transformers import TextStreamer

    written = []
    monkeypatch.setattr(TextStreamer, "on_finalized_text", lambda self, text, stream_end=False: written.append(text))
    prompt = f"prompt={TEXTS[0]}"
    assert generate(prompt, "max_new_tokens=40")[0] == 0
    assert len(written) > 1
    pieces, written[:] = "".join(written), []
    assert generate(prompt, "max_new_tokens=40", "stream=false")[1] == pieces + "\n"
    assert generate(prompt, "num_beams=2")[0] == 0  # beams cannot be streamed
    assert not written


def test_lines_of_a_file_are_answered_in_order_and_empty_lines_by_empty_lines(generate, expected, tmp_path):
    (tmp_path / "texts.txt").write_text(f"{TEXTS[0]}\n\n  {TEXTS[1]}  \n \n{TEXTS[2]}\n")
    one_line = [" ".join(answer.splitlines()) for answer in expected]
    lines = [one_line[0], "", one_line[1], "", one_line[2]]
    for size in (1, 2, 32):
        code, shown = generate("input=texts.txt", "output=out/answers.txt", f"batch_size={size}")
        there = "" if size == 1 else ", already complete with the same settings"  # independent of the batch size
        assert (code, shown) == (0, f"out/answers.txt: 5 answers{there}\n")
        assert (tmp_path / "out" / "answers.txt").read_text("utf-8").split("\n") == [*lines, ""]
    assert generate("input=texts.txt") == (0, "\n".join(lines) + "\n")


def interrupted(monkeypatch, after):
    """Interrupts the program within a file, after the given number of batches."""
    whole, calls = decoder.generate_text, []

    def generate_text(*arguments, **more):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return whole(*arguments, **more)

    monkeypatch.setattr(decoder, "generate_text", generate_text)
    return calls


SAMPLED = ["do_sample=true", "temperature=2.0"]
EVERY = range(5) if os.environ.get("LLM2SLM_MATRIX") else None


@pytest.mark.parametrize(
    ("name", "decoding", "places"),
    representatives(
        [("answers.jsonl", SAMPLED, range(5)), ("answers.jsonl", [], EVERY or (2,)),
         ("answers.txt", SAMPLED, EVERY or (1,)), ("answers.txt", [], EVERY or (0, 4))],
        lambda case: case[0] == "answers.txt" and case[1] == SAMPLED,
    ),
)  # fmt: skip
def test_a_partial_file_is_resumed(generate, tmp_path, monkeypatch, name, decoding, places):
    (tmp_path / "texts.txt").write_text("".join(f"{text} {n}\n" for n in range(3) for text in TEXTS))
    arguments = ["input=texts.txt", "batch_size=2", *decoding]
    assert generate(*arguments, f"output=whole/{name}")[0] == 0
    for after in places:
        output, part = tmp_path / f"{after}" / name, tmp_path / f"{after}" / f"{name}.part"
        with monkeypatch.context() as patch:
            interrupted(patch, after)
            assert generate(*arguments, f"output={output}")[0] == 130
        assert part.is_file() and not output.exists()
        part.write_bytes(part.read_bytes() + b'{"source": "half of a r')  # as after a power failure
        with monkeypatch.context() as patch:
            calls = interrupted(patch, 99)
            assert generate(*arguments, f"output={output}")[0] == 0
        assert len(calls) == 5 - after  # existing answers are not generated again
        assert output.read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert {path.name for path in output.parent.iterdir()} == {name, f"{name}.settings"}


def test_a_file_with_other_settings_is_not_resumed(generate, answering, tmp_path, monkeypatch, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    arguments = ["input=texts.txt", "output=answers.txt", "batch_size=1"]
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        generate(*arguments)
    before = (tmp_path / "answers.txt.part").read_bytes()
    assert main(["generate", f"run={answering}", LIMIT, *arguments, "num_beams=2"]) == 2
    said = mistake(capsys)
    assert (
        said.startswith("answers.txt.part: was begun with other settings (num_beams 1, now 2)") and "remove it" in said
    )
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:2]))
    assert main(["generate", f"run={answering}", LIMIT, *arguments]) == 2
    assert "other settings (texts " in mistake(capsys)
    assert (tmp_path / "answers.txt.part").read_bytes() == before


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize("name", representatives(["answers.jsonl", "answers.txt"], ["answers.jsonl"]))
def test_the_same_command_on_finished_answers_changes_nothing(generate, answering, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    arguments = ["input=texts.txt", f"output=out/{name}"]
    assert generate(*arguments) == (0, f"out/{name}: 3 answers\n")
    before = contents(tmp_path / "out")
    with monkeypatch.context() as patch:
        calls = interrupted(patch, 0)
        assert generate(*arguments) == (0, f"out/{name}: 3 answers, already complete with the same settings\n")
        assert not calls
        assert main(["generate", f"run={answering}", LIMIT, *arguments, "num_beams=2"]) == 2
        assert mistake(capsys) == (
            f"out/{name}: holds the answers to an earlier command with other settings (num_beams 1, now 2); remove it, "
            "or write to another file"
        )
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / name).write_text("the user's own\n")  # overwritten like any file that output= names
    assert generate(*arguments)[0] == 0
    assert {key: data for key, (data, _) in contents(tmp_path / "out").items()} == {
        key: data for key, (data, _) in before.items()
    }
    (tmp_path / "out" / name).unlink()
    assert generate(*arguments, "num_beams=2")[0] == 0


@pytest.mark.parametrize("step", representatives([1, 2, 3], [2]))
def test_a_command_interrupted_after_the_last_answer_is_completed(generate, tmp_path, monkeypatch, step):
    """Interrupted before the answers are written, before the settings are, and before the partial file is removed."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    assert generate("input=texts.txt", "output=whole/a.txt")[0] == 0
    steps = [(ResumableLines, "put"), (ResumableLines, "put"), (ResumableLines, "discard")]
    owner, name = steps[step - 1]
    original, seen = getattr(owner, name), []

    def ended(*arguments):
        seen.append(1)
        if name == "put" and len(seen) < step:
            return original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, ended)
        assert generate("input=texts.txt", "output=a/a.txt")[0] == 130
    assert (tmp_path / "a" / "a.txt.part").is_file()
    with monkeypatch.context() as patch:
        calls = interrupted(patch, 0)
        assert generate("input=texts.txt", "output=a/a.txt") == (0, "a/a.txt: 3 answers\n")
        assert not calls  # the last batch, which is not full, is not generated again
    assert {key: data for key, (data, _) in contents(tmp_path / "a").items()} == {
        key: data for key, (data, _) in contents(tmp_path / "whole").items()
    }


@pytest.mark.parametrize("field", ["source", "prompt"])
def test_rows_of_a_file_are_answered_in_order(generate, expected, tmp_path, field):
    rows = [{field: text, "other": 1} for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert generate("input=rows.jsonl", "output=answers.jsonl")[0] == 0
    found = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert found == [{"source": text, "prediction": answer} for text, answer in zip(TEXTS, expected, strict=True)]


ROWS = [{"n": n, "question": text, "prompt": "no"} for n, text in enumerate(["007", "2024-01-15", "null", "a\nb", ""])]


def rows_file(path, rows):
    """Writes rows in the format of the suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    text = io.StringIO()
    if ".csv" in path.name.lower():
        csv.writer(text).writerows([list(rows[0]), *(row.values() for row in rows)])
    elif ".jsonl" in path.name:
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        json.dump(rows, text, indent=1)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


KINDS = ["q.json", "q.jsonl", "q.csv", "q.CSV", "q.parquet", "q.json.gz", "q.jsonl.gz", "q.csv.gz", "q[1] *.csv"]


@pytest.mark.parametrize("name", KINDS)
def test_files_of_rows_are_read_by_column_and_never_by_line(tmp_path, name):
    rows_file(tmp_path / name, ROWS)
    found = read(tmp_path / name, ("question",))
    assert [text for _, text in found] == [row["question"] for row in ROWS]
    kind = name.lower().removesuffix(".gz").rpartition(".")[2]
    assert found[1][0] == {"parquet": "row 1 (from 0)", "csv": "line 3", "jsonl": "line 2", "json": "line 7"}[kind]
    assert [text for _, text in read(tmp_path / name)] == ["no"] * 5
    with pytest.raises(
        UserError, match=r"no column 'qestion' \(field\); did you mean 'question'\? columns: n, question"
    ):
        read(tmp_path / name, ("qestion",))
    with pytest.raises(UserError, match=r"no text in the field source or text; has: n, question, prompt; name it by"):
        read(tmp_path / name, ("source", "text"))


@pytest.mark.slow
@pytest.mark.parametrize("name", representatives(["q.json", "q.csv.gz", "q.parquet"], ["q.csv.gz"]))
def test_files_of_rows_are_answered_and_resumed(generate, expected, tmp_path, monkeypatch, name):
    rows_file(tmp_path / name, [{"n": n, "question": text} for n, text in enumerate(TEXTS)])
    arguments = [f"input={name}", "field=question", "output=answers.jsonl", "batch_size=1"]
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        assert generate(*arguments)[0] == 130
    assert generate(*arguments) == (0, "answers.jsonl: 3 answers\n")
    found = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert found == [{"source": text, "prediction": answer} for text, answer in zip(TEXTS, expected, strict=True)]


def test_a_number_is_refused_as_text(tmp_path):
    (tmp_path / "q.json").write_text('[{"source": "a"},\n{"source": 5}]')
    with pytest.raises(UserError, match=r"q.json, line 2, column 'source': expected text, found int 5"):
        read(tmp_path / "q.json")
    (tmp_path / "q.json").write_text('{"a": {"text": "x"}}')
    assert read(tmp_path / "q.json", ("a.text",)) == [("line 1", "x")]
    (tmp_path / "q.txt.gz").write_bytes(gzip.compress(b"one\n{two}\n"))
    assert read(tmp_path / "q.txt.gz") == [("line 1", "one"), ("line 2", "{two}")]


def test_typed_lines_are_answered_until_an_empty_line(generate, expected, monkeypatch, capsys):
    typed = f"{TEXTS[1]}\n{'long ' * 600}\n{TEXTS[0]}\n\n{TEXTS[2]}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert generate("stream=false") == (0, f"{expected[1]}\n{expected[0]}\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXTS[2]))
    assert generate("stream=false") == (0, f"{expected[2]}\n")


@pytest.mark.slow
def test_the_prefix_is_that_of_the_run_unless_given(generate, answering, expected):
    assert generate(f"prompt={PREFIX}{TEXTS[0]}", "prefix=")[1] == expected[0] + "\n"
    model = LLM2SLM.from_pretrained(answering / "model")
    [bare] = model.generate_text([TEXTS[0]], max_new_tokens=6)
    assert generate(f"prompt={TEXTS[0]}", "prefix=")[1] == bare + "\n"
    assert bare != expected[0]


def test_sampling_excludes_no_token(generate, monkeypatch):
    """By default, transformers samples among the 50 most likely tokens."""
    warper = "transformers.generation.utils.TopKLogitsWarper"
    monkeypatch.setattr(warper, lambda *_, **__: pytest.fail("some are left out"))
    assert generate(f"prompt={TEXTS[0]}", "do_sample=true", "temperature=50")[0] == 0


def test_sampling_is_seeded(generate):
    def draw(seed):
        return generate(f"prompt={TEXTS[0]}", "do_sample=true", "temperature=2", f"seed={seed}")[1]

    first = draw(1)
    assert draw(1) == first
    assert len({first, draw(2), draw(3)}) > 1


WRONG = {
    "no such file": (["input=none.txt"], "input=none.txt: no such file"),
    "both": (["prompt=a", "input=texts.txt"], "prompt and input are both given; give one of them"),
    "output of a prompt": (["prompt=a", "output=b"], "output is for the answers to a file; give input=FILE with it"),
    "output is input": (["input=long.txt", "output=./long.txt"], "output=./long.txt: is the input; give another file"),
    "not a regular file": (["input=long.txt", "output=/dev/null"], "output=/dev/null: is not a regular file"),
    "half a character": (["input=half.jsonl"], "half.jsonl, line 1, column 'source': half a character (\\ud83d)"),
    "drop": (["prompt=a", "overlong=drop"], "overlong=drop: every input needs an answer; use truncate or error"),
    "no text": (["input=blank.txt"], "blank.txt: holds no text"),
    "no JSON": (["input=bad.jsonl"], "bad.jsonl, line 2: not JSON ("),
    "no field": (["input=field.jsonl"], "field.jsonl, line 1: no text in the field source or prompt; has: text"),
    "bytes": (["input=bytes.txt"], "bytes.txt, line 1: not UTF-8 (byte 2: 0xff)"),
    "output folder": (["input=texts.txt", "output=."], "output=.: is a folder"),
    "bytes of rows": (["input=bytes.jsonl"], "bytes.jsonl, line 1: not UTF-8 (byte 2: 0xff)"),
    "beams": (["prompt=a", "num_beams=0"], "num_beams=0: must be between 1 and"),
    "temperature": (["prompt=a", "do_sample=true", "temperature=0"], "temperature=0.0: must be above 0"),
    "prompt too long": ([f"prompt={'long ' * 600}"], "prompt: its prompt has "),
    "line too long": (["input=long.txt", "output=answers.txt"], "long.txt, line 2: its prompt has "),
    "model": (["run=nowhere/model/x", "prompt=a"], "model 'nowhere/model/x': no such folder"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=list(WRONG))
def test_mistakes_are_reported_on_one_line(trained, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("a\n")
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "bad.jsonl").write_text('{"source": "a"}\n{"source"\n')
    (tmp_path / "field.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "half.jsonl").write_text('{"source": "\\ud83d hi"}\n')
    (tmp_path / "bytes.txt").write_bytes(b"a\xff\n")
    (tmp_path / "bytes.jsonl").write_bytes(b"a\xff\n")
    (tmp_path / "long.txt").write_text("short\n" + "long " * 600 + "\nshort\n")
    run = [] if any(a.startswith("run=") for a in arguments) else [f"run={trained}"]
    assert main(["generate", *run, *arguments]) == 2
    assert mistake(capsys).startswith(message)
    assert not (tmp_path / "answers.txt").exists()


def test_truncated_prompts_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = RunConfig(model=tiny_model_config(tmp_path / "zoo"))
    config.data.max_prompt_tokens, config.data.overlong = 60, Overlong.truncate
    build_model(config.model, config.data).save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text(f"{'long ' * 99}\nshort\n{'more ' * 99}\n")
    assert main(["generate", "run=model", "input=texts.txt", LIMIT]) == 0
    shown = capsys.readouterr()
    assert shown.err.strip().splitlines() == [
        "llm2slm: model records no prefix: none is used; prefix=TEXT sets one",
        "llm2slm: prompts longer than 60 tokens, cut to that length: 2",
    ]
    assert shown.out.count("\n") == 3


def test_lines_end_at_newlines_only_and_blank_rows_are_skipped(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028two\x0c\r\nthree\n".encode())
    assert read(tmp_path / "a.txt") == [("line 1", "one\u2028two\x0c"), ("line 2", "three")]
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"source": "one"}\r\n\n{"source": "two"}'.encode())
    assert read(tmp_path / "a.jsonl") == [("line 1", "one"), ("line 3", "two")]


def test_the_model_folder_of_a_run_uses_the_configuration_of_the_run(tmp_path):
    (tmp_path / "model").mkdir()
    assert runs.home(str(tmp_path / "model")) is None
    (tmp_path / "config.yaml").write_text("task: {prefix: 'say: ', max_new_tokens: 7}\n")
    assert defaults(GenerateConfig(run=str(tmp_path / "model"))) == (("say: ", ""), 7)
    (tmp_path / "config.yaml").write_text("task: {prefix: [\n")
    with pytest.raises(UserError, match=r"config\.yaml, line 2: not YAML"):
        defaults(GenerateConfig(run=str(tmp_path)))
    (tmp_path / "config.yaml").write_text("task: {prefx: a}\n")
    with pytest.raises(UserError, match=r"config\.yaml: task: .*prefx"):
        defaults(GenerateConfig(run=str(tmp_path)))


def test_a_run_is_required(capsys):
    assert main(["generate", "prompt=a"]) == 2
    assert mistake(capsys).startswith("generate needs run=DIR")


def test_a_symbolic_link_is_followed_on_writing(generate, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "answers.txt").write_text("old\n")
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "answers.txt")
    assert generate("input=texts.txt", "output=link.txt") == (0, "link.txt: 3 answers\n")
    assert (tmp_path / "link.txt").is_symlink()
    assert len((tmp_path / "there" / "answers.txt").read_text("utf-8").splitlines()) == 3


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_duplicate_column_is_refused(answering, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    if name == "rows.csv":
        (tmp_path / name).write_text("source,source,target\na,b,c\n")
    else:
        pq.write_table(pa.table([["a"], ["b"]], names=["source", "source"]), name)
    assert main(["generate", f"run={answering}", LIMIT, f"input={name}"]) == 2
    assert mistake(capsys) == f"{name}: column 'source' (field) occurs twice; rename one of them"


def test_a_prompt_with_a_lone_surrogate_is_refused(answering, capsys):
    """Python decodes arguments that are not UTF-8 so."""
    assert main(["generate", f"run={answering}", LIMIT, "prompt=a\udcffb"]) == 2
    assert mistake(capsys).endswith("half a character (\\udcff); write the whole one")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # by the locale
def test_a_typed_lone_surrogate_is_refused_and_the_next_line_answered(answering, capsys, monkeypatch, errors):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xed\xa0\x80b\nit\n"), "utf-8", errors))
    assert main(["generate", f"run={answering}", LIMIT]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and shown.err.startswith("llm2slm: error: prompt: half a character (\\udced);")
    assert shown.out.count("\n") == 1
