"""Tasks: what the models are asked, and how the answer is judged. A row of a table each, not a class each.

White space: the ends of a source and a target are stripped (so that every prompt ends alike and eos follows the last
word); within the text nothing is touched, so that the turns of a dialogue stay on lines of their own wherever the
tokenizer can write a newline (T5's own cannot; those of `train_tokenizer` can).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm2slm.config import TaskConfig
from llm2slm.data.languages import known
from llm2slm.data.templates import Template, parse
from llm2slm.types import Example, UserError, nearest


@dataclass(frozen=True)
class Task:
    """A task and its decoding defaults.

    Attributes:
        prefix: put in front of every source.
        metrics: names of evaluation/metrics/scores.py; the first is the main one.
        max_new_tokens: response tokens at most.
        num_beams: beams of the search; 1 is greedy.
        prefixes: prefix by the row's own `task` (a mixture only).
        language: code of the targets' language (data/languages.py); None: not known.
        languages: the same by the row's own `task`, where that decides it; `language` holds for any other.
        templates: word the source from fields of a row; none: it is one column.
        text: there is no source: `templates` word the text that is written, with a loss on each of its tokens.
        parts: of a mixture of corpora, name and task of each; its rows name their part as `task`.
    """

    name: str
    prefix: str
    metrics: tuple[str, ...]
    max_new_tokens: int
    num_beams: int = 1
    prefixes: tuple[tuple[str, str], ...] = ()
    templates: tuple[Template, ...] = ()
    parts: tuple[tuple[str, Task], ...] = ()
    language: str | None = None
    languages: tuple[tuple[str, str | None], ...] = ()
    text: bool = False

    def around(self) -> tuple[str, str] | None:
        """What stands before and after a text of one's own when it is asked like a row; None: no single answer to that
        (rows of several tasks, or templates of several fields each)."""
        if self.prefixes:
            return None
        if not self.templates or self.text:
            return self.prefix, ""
        single = next((found for template in self.templates if (found := template.around())), None)
        return None if single is None else (self.prefix + single[0].lstrip(), single[1].rstrip())

    def example(self, row: dict[str, str], index: int) -> Example:
        """The row as prompt and target. `index` is its number within its split.

        Raises:
            UserError: a mixture's row does not say its task, or one that is not known.
        """
        prefix = self.prefix
        if self.prefixes:
            name = row.get("task")
            by_name = dict(self.prefixes)
            if name is None or name not in by_name:
                found = "has no task" if name is None else f"has the task {name!r}"
                raise UserError(f"row {index} {found}; with task=mixture its `task` is one of {', '.join(by_name)}")
            prefix += by_name[name]
        source, target = row["source"].strip(), row["target"].strip()
        language = dict(self.languages).get(row.get("task", ""), self.language)
        return Example(index=index, source=source, prompt=prefix + source, target=target, language=language)


WHOLE = ["{target}"]
"""The template of a text that is one column."""
TEXT = "text"
"""The task of rows of which nothing is known: no prefix, and metrics that fit any text."""

_SINGLE = (
    Task("translation", "translate English to German: ", ("bleu", "chrf"), 64),
    Task("summarization", "summarize: ", ("rougeL", "rouge1", "rouge2", "rougeLsum"), 96),
    Task("instruction", "", ("rougeL", "exact_match"), 128),
    Task(TEXT, "", ("rougeL", "chrf", "exact_match"), 128),
)
_MIXTURE = Task("mixture", "", ("bleu", "rougeL"), 128, prefixes=tuple((task.name, task.prefix) for task in _SINGLE))
LM = Task("lm", "", ("perplexity",), 128, text=True)
"""Language modelling: an empty prompt, and plain text to be written."""

TASKS: dict[str, Task] = {task.name: task for task in (*_SINGLE, LM, _MIXTURE)}


def resolve(
    config: TaskConfig,
    languages: tuple[str, str] | None = None,
    templates: Sequence[str] = (),
    target_language: str | None = None,
) -> Task:
    """The task of a configuration: the table's, with what the configuration overrides.

    Args:
        config: its empty fields take the table's values (without a name those of `TEXT`). With a mixture, `prefix`
            comes before each row's own.
        languages: English names of a corpus' source and target language (`sources.languages`); they word the
            default prefix of translation.
        templates: the corpus' own.
        target_language: code of the language of the corpus' targets, where it is known.

    Raises:
        UserError: no such task, no such language, or something that is no template.
    """
    name = TEXT if config.name is None else config.name
    if name not in TASKS:
        raise UserError(f"task.name={name}: unknown; did you mean {nearest(name, TASKS)}? (tasks: {', '.join(TASKS)})")
    task = TASKS[name]
    prefix = task.prefix
    if languages and task.name == "translation":
        prefix = f"translate {languages[0]} to {languages[1]}: "
    return replace(
        task,
        prefix=prefix if config.prefix is None else config.prefix,
        metrics=tuple(config.metrics) if config.metrics else task.metrics,
        max_new_tokens=config.max_new_tokens or task.max_new_tokens,
        num_beams=config.num_beams,
        templates=parse((templates if config.template is None else config.template) or WHOLE * task.text, task.text),
        language=target_language if config.language is None else known(config.language, "task.language"),
    )


def mixed(config: TaskConfig, parts: Sequence[tuple[str, Task]]) -> Task:
    """The task of a mixture of corpora: each row is asked as its part says. Judged by the main metric of each task that
    occurs in it (where there is only one, by all of its metrics), over all rows.

    Args:
        config: its prefix comes before each part's own; metrics, max_new_tokens and num_beams as for any task.
        parts: name and task of each.
    """
    tasks = {task.name: task for _, task in parts}
    main = [metric for task in tasks.values() for metric in (task.metrics if len(tasks) == 1 else task.metrics[:1])]
    return replace(
        _MIXTURE,
        prefix=config.prefix or "",
        prefixes=tuple((name, task.prefix) for name, task in parts),
        metrics=tuple(config.metrics) if config.metrics else tuple(dict.fromkeys(main)),
        max_new_tokens=config.max_new_tokens or max(task.max_new_tokens for _, task in parts),
        num_beams=config.num_beams,
        parts=tuple(parts),
        languages=tuple((name, task.language) for name, task in parts),
    )
