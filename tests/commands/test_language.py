"""task.language on the command line: tokenization of scores, warnings, and refusal of an unknown code."""

from __future__ import annotations

import json

import pytest
import sacrebleu
from command_line import files_of, mistake, tiny_overrides
from sampling import representatives

from llm2slm import runs
from llm2slm.cli import main

CHINESE = ["我们在北京的餐馆里吃了晚饭。", "他每天早上去公园跑步。", "老师在教室里读一本旧书。"]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with rows of Chinese answers."""
    monkeypatch.chdir(tmp_path)
    for split, size in {"train": 8, "validation": 4, "test": 4}.items():
        rows = [{"en": f"the dog sees {n}", "answer": CHINESE[n % 3]} for n in range(size)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def rows_and_quality(folder):
    lines = (folder / "predictions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines], runs.read_result(folder)["systems"][0]


@pytest.mark.parametrize(
    ("arguments", "warned", "note"),
    representatives(
        [
            (
                [],
                ["task.language is not set, and the references are in Han script: tokenized as zh (Chinese) for bleu;"],
                None,
            ),
            (["task.language=zh-CN"], [], "zh"),
        ],
        lambda case: not case[0],
    ),
)
def test_training_and_its_test_tokenize_by_the_language_and_warn_once(
    workspace, tiny_llm, capsys, arguments, warned, note
):
    files = [f"data.{split}={split}.jsonl" for split in ("train", "validation", "test")]
    columns = ["data.source=en", "data.target=answer", "task=instruction", "task.metrics=[bleu,chrf]"]
    slm = ["model.slm.tokenizer=train:300", "model.tokenizers=offsets"]
    command = ["train", *tiny_overrides(tiny_llm), "data=json", *files, *columns, *slm, *arguments]
    assert main([*command, "hydra.run.dir=run"]) == 0
    shown = [line for line in capsys.readouterr().err.splitlines() if "language" in line or "script" in line]
    assert len(shown) == len(warned)
    assert all(f"llm2slm: warning: {text}" in line for line, text in zip(shown, warned, strict=True))
    rows, system = rows_and_quality(workspace / "run")
    targets = [[row["target"] for row in rows]]
    wanted = sacrebleu.corpus_bleu([row["prediction"] for row in rows], targets, tokenize="zh", force=True)
    assert system["quality"]["bleu"]["value"] == wanted.score
    assert "|tok:zh|" in system["quality"]["bleu"]["signature"]
    assert system["notes"].get("language") == note
    assert all(set(row) == {"source", "target", "prediction"} for row in rows)
    # evaluate takes it from the run
    assert main(["evaluate", "run=run", "split=validation", "trainer.progress=false", "hydra.run.dir=again"]) == 0
    assert runs.read_result(workspace / "again")["systems"][0]["notes"].get("language") == note


@pytest.mark.parametrize("verb", representatives(["train", "evaluate", "label", "demo"], ["train", "label"]))
def test_an_unknown_language_is_refused_before_anything_is_read_or_written(workspace, capsys, verb):
    before = files_of(workspace)
    run = ["run=builtin/llm"] if verb == "evaluate" else []
    assert main([verb, *run, "task.language=chinese", "hydra.run.dir=run"]) == 2
    assert mistake(capsys) == (
        "task.language=chinese: unknown language; did you mean zh (Chinese)? Give a code of ISO 639-1, for "
        "example en, de, ru, ar, hi, zh, ja, ko, th"
    )
    assert files_of(workspace) == before


@pytest.mark.slow
def test_rows_of_a_mixture_keep_their_language(workspace, tiny_llm):
    """In predictions.jsonl too, for `compare`."""
    texts = [{"de": f"der Hund {n}", "en": "the dog"} for n in range(8)]
    (workspace / "german.jsonl").write_text("".join(json.dumps({"en": t["en"], "de": t["de"]}) + "\n" for t in texts))
    chinese = (
        "name: json, train: train.jsonl, validation: validation.jsonl, test: test.jsonl, source: en, target: answer"
    )
    german = ", ".join(f"{split}: german.jsonl" for split in ("train", "validation", "test"))
    parts = f"[{{{chinese}, language: zh}}, {{name: json, {german}, source: en, target: de}}]"
    slm = [
        "model.slm.tokenizer=train:300",
        "model.tokenizers=offsets",
        "task=instruction",
        "task.metrics=[rougeL,bleu]",
    ]
    command = ["train", *tiny_overrides(tiny_llm), "data=mixture", f"data.parts={parts}", *slm, "data.test_size=8"]
    assert main([*command, "hydra.run.dir=run"]) == 0
    rows, system = rows_and_quality(workspace / "run")
    assert {(row["target"][:3], row["language"]) for row in rows} == {
        ("der", "de"), *((text[:3], "zh") for text in CHINESE)
    }  # fmt: skip
    signature = system["quality"]["bleu"]["signature"]
    assert signature.startswith("de: sacrebleu nrefs:1|case:mixed|eff:no|tok:13a|")
    assert "; zh: sacrebleu nrefs:1|case:mixed|eff:no|tok:zh|" in signature
