"""The lines above the data table before training: prefix, template, and one row as the models get it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_runs import tiny_run

from llm2slm.commands.data_report import SHOWN, example_lines, visible
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import task_of
from llm2slm.data.tokenization.prompts import Frame, PromptTokenizer
from llm2slm.models.build import build_model
from llm2slm.testing import tiny_tokenizer

TEMPLATE = "{% for m in messages %}user:\n{{ m['content'] }}\nanswer:{% endfor %}"


def lines_of(config: RunConfig) -> list[str]:
    model = build_model(config.model, config.data)
    return example_lines(DataModule(config.data, task_of(config.task, config.data), model.collator, config.seed))


def rows(folder: Path, text: str) -> None:
    (folder / "rows").mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        (folder / "rows" / f"{split}.jsonl").write_text(text, encoding="utf-8")


ROW = '{"source": "two\\ndogs\\u200b", "target": "it sees\\tthem"}\n'


def run_of(folder: Path, **changes: Any) -> RunConfig:
    rows(folder, ROW)
    return tiny_run(folder, **changes)


def test_a_prompt_of_both_models_is_shown_once(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    config.task.name = "summarization"
    assert lines_of(config) == [
        "task summarization: prefix 'summarize: '",
        "  prompt  'summarize: two\\ndogs\\u200b'",
        "  target  'it sees\\tthem'",
    ]


def test_a_separate_prompt_of_the_llm_is_shown(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    config.model.llm.tokenizer, config.model.slm.tokenizer = str(tmp_path / "chat"), None
    config.model.llm.chat, config.model.llm.prefix = True, "old: "
    assert lines_of(config) == [
        "task instruction: no prefix",
        "  prompt            'two\\ndogs\\u200b'",
        "  the LLM's prompt  'user:\\nold: two\\ndogs\\u200b\\nanswer:'",
        "  target            'it sees\\tthem'",
    ]


def test_the_prompt_of_an_llm_system_includes_its_frame(tmp_path: Path) -> None:
    config = run_of(tmp_path, kind="llm")
    config.model.llm.prefix = "old: "
    assert lines_of(config)[1] == "  prompt  'old: two\\ndogs\\u200b'"


def test_the_end_mark_is_part_of_the_rendered_prompt() -> None:
    assert PromptTokenizer(tiny_tokenizer(), Frame("a ", " b"), mark="\n").rendered("x") == "a x\n b"


def test_templates_are_shown(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    config.task.template = ["[b]Q: {source}"]
    assert lines_of(config)[:2] == [
        "task instruction: no prefix, template '[b]Q: {source}'",
        "  prompt  '[b]Q: two\\ndogs\\u200b'",
    ]


def test_a_long_text_is_shortened_with_a_mark() -> None:
    assert visible("a" * SHOWN) == repr("a" * SHOWN)
    assert visible("a" * 200 + "b" * 1234 + "c" * 100) == f"{'a' * 200!r} [... 1,234 characters ...] {'c' * 100!r}"
