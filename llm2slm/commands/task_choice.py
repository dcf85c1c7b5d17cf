"""The choice of the task: the user's, else that of the corpus, which is then printed."""

from __future__ import annotations

import sys
from dataclasses import replace

from llm2slm.config import DataConfig, RunConfig, TaskConfig
from llm2slm.data.sources.corpora import CORPORA
from llm2slm.data.sources.sources import task_of, with_default_tasks
from llm2slm.data.tasks import LM, TEXT, Task


def with_task(config: RunConfig) -> RunConfig:
    """The configuration with its task named, so that a run records the task.

    Raises:
        UserError: as `task_of`.
    """
    task, data = with_default_tasks(config.task, config.data)
    task_of(task, data)
    return replace(config, task=task, data=data)


def print_task(task: TaskConfig, data: DataConfig) -> None:
    """Prints the task if the user chose none. Call it with the user's configuration after all checks, so that an error
    message stands alone."""
    if task.name is None and (data.name, data.corpus) != (DataConfig().name, DataConfig().corpus):
        named, parts = with_default_tasks(task, data)
        for line in _lines(parts, task_of(named, parts)):
            print(f"llm2slm: {line}", file=sys.stderr)


def _lines(data: DataConfig, task: Task) -> list[str]:
    """The lines that state the task; for a mixture, of the parts without a known task."""
    if data.name == "mixture":
        return [
            f"data.parts[{number}] ({label}) without task: task=text is used ({_summary(part)})"
            for number, (label, part) in enumerate(task.parts)
            if part.name == TEXT
        ]
    why = "" if task.name == TEXT else ", the task of this corpus,"
    other = "; choose another by task=translation, summarization or instruction" if task.name == TEXT else ""
    return [f"data={data.name} without task: task={task.name}{why} is used ({_summary(task)}){other}"]


def _summary(task: Task) -> str:
    prefix = f"prefix {task.prefix!r}" if task.prefix else "no prefix"
    return f"{prefix}; {', '.join(task.metrics)}"


def warn_task(config: RunConfig) -> None:
    """Warns if a known corpus is used with another task and the default prompt of that task."""
    corpus, task = CORPORA.get(config.data.name), config.task
    worded = task.prefix is not None or task.template is not None
    if corpus is None or task.name in (None, corpus.task, LM.name) or worded:
        return
    print(
        f"llm2slm: warning: data={config.data.name} is a corpus for {corpus.task}, and is used for {task.name}; "
        f"set task={corpus.task} (or task.prefix, for another prompt)",
        file=sys.stderr,
    )
