"""Tasks: prompt prefix, metrics and decoding defaults, as rows of a table.

White space at the ends of a source and a target is removed, so that every prompt ends alike and eos follows the last
word. White space within a text is unchanged: the turns of a dialogue remain on separate lines, if the tokenizer has a
newline token (T5's has none; those of `train_tokenizer` have one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm2slm.config import TaskConfig
from llm2slm.data.languages import known
from llm2slm.data.templates import Template, parse
from llm2slm.nearest_names import nearest
from llm2slm.types import Example, UserError


@dataclass(frozen=True)
class Task:
    """A task and its decoding defaults.

    Attributes:
        prefix: text before every source.
        metrics: names in evaluation/metrics/scores.py; the first is the main metric.
        max_new_tokens: maximum number of response tokens.
        num_beams: number of beams; 1 is greedy.
        prefixes: (only for a mixture) prefix by the field `task` of a row.
        language: code of the targets' language (data/languages.py); None: unknown.
        languages: language by the field `task` of a row; `language` is used for all other rows.
        templates: make the source from fields of a row; without templates, the source is one column.
        text: language modelling: the source is empty, `templates` make the target, every token has a loss.
        parts: of a mixture of corpora, name and task of each; the field `task` of a row is the name of its part.
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
        """The text before and after a source in a prompt; None if it is not unique (several tasks, or templates with
        several fields)."""
        if self.prefixes:
            return None
        if not self.templates or self.text:
            return self.prefix, ""
        single = next((found for template in self.templates if (found := template.around())), None)
        return None if single is None else (self.prefix + single[0].lstrip(), single[1].rstrip())

    def example(self, row: dict[str, str], index: int) -> Example:
        """The row as prompt and target. `index`: number of the row in its split.

        Raises:
            UserError: a row of a mixture has no task, or an unknown one.
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
"""The template of a target that is one column."""
TEXT = "text"
"""The default task: no prefix, and metrics for any text."""

_SINGLE = (
    Task("translation", "translate English to German: ", ("bleu", "chrf"), 64),
    Task("summarization", "summarize: ", ("rougeL", "rouge1", "rouge2", "rougeLsum"), 96),
    Task("instruction", "", ("rougeL", "exact_match"), 128),
    Task(TEXT, "", ("rougeL", "chrf", "exact_match"), 128),
)
_MIXTURE = Task("mixture", "", ("bleu", "rougeL"), 128, prefixes=tuple((task.name, task.prefix) for task in _SINGLE))
LM = Task("lm", "", ("perplexity",), 128, text=True)
"""Language modelling: an empty prompt, and a plain text as target."""

TASKS: dict[str, Task] = {task.name: task for task in (*_SINGLE, LM, _MIXTURE)}


def resolve(
    config: TaskConfig,
    languages: tuple[str, str] | None = None,
    templates: Sequence[str] = (),
    target_language: str | None = None,
) -> Task:
    """The task of a configuration: a row of the table, with the values that the configuration overrides.

    Args:
        config: empty fields get the values of the table (without `name`, those of `TEXT`). In a mixture, `prefix`
            precedes the prefix of each row.
        languages: English names of a corpus' source and target language (`corpora.languages`), for the default prefix
            of translation.
        templates: templates of the corpus.
        target_language: code of the language of the corpus' targets, if known.

    Raises:
        UserError: the task or the language is unknown, or a template is invalid.
    """
    name = TEXT if config.name is None else config.name
    if name not in TASKS:
        raise UserError(
            f"task.name={name}: unknown; did you mean {nearest(name, TASKS)[0]}? (tasks: {', '.join(TASKS)})"
        )
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
    """The task of a mixture of corpora: each row has the prompt of its part. The metrics, over all rows, are the main
    metric of each task in it (all metrics, if there is one task).

    Args:
        config: its prefix is put before each part's; metrics, max_new_tokens and num_beams as for any task.
        parts: name and task of each part.
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
