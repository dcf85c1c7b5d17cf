"""The task that rows are asked as: the one that the user chose, else the own one of the corpus, which is printed."""

from __future__ import annotations

import sys
from dataclasses import replace

from llm2slm.config import DataConfig, RunConfig, TaskConfig
from llm2slm.data.sources.corpora import CORPORA
from llm2slm.data.sources.sources import chosen_task, task_of
from llm2slm.data.tasks import LM, TEXT, Task


def with_task(config: RunConfig) -> RunConfig:
    """The configuration with its task named, so that a run records the task it was asked as.

    Raises:
        UserError: as `task_of`.
    """
    task, data = chosen_task(config.task, config.data)
    task_of(task, data)
    return replace(config, task=task, data=data)


def tell_task(task: TaskConfig, data: DataConfig) -> None:
    """Prints which task is taken where none is chosen. To be called with what was given once nothing of it is found
    wrong any more: a mistake stands alone."""
    if task.name is None and (data.name, data.corpus) != (DataConfig().name, DataConfig().corpus):
        named, parts = chosen_task(task, data)
        for line in _lines(parts, task_of(named, parts)):
            print(f"llm2slm: {line}", file=sys.stderr)


def _lines(data: DataConfig, task: Task) -> list[str]:
    """Which task was taken; of a mixture, for the parts of which nothing is known."""
    if data.name == "mixture":
        return [
            f"data.parts[{number}] ({label}) without task: asked as text ({_asked(own)})"
            for number, (label, own) in enumerate(task.parts)
            if own.name == TEXT
        ]
    why = "" if task.name == TEXT else ", which it is made for"
    other = "; choose another by task=translation, summarization or instruction" if task.name == TEXT else ""
    return [f"data={data.name} without task: asked as task={task.name}{why} ({_asked(task)}){other}"]


def _asked(task: Task) -> str:
    prefix = f"prefix {task.prefix!r}" if task.prefix else "no prefix"
    return f"{prefix}; {', '.join(task.metrics)}"


def warn_task(config: RunConfig) -> None:
    """Warns where a known corpus is asked as another task than it is made for, in the words of that task."""
    corpus, task = CORPORA.get(config.data.name), config.task
    worded = task.prefix is not None or task.template is not None
    if corpus is None or task.name in (None, corpus.task, LM.name) or worded:
        return
    print(
        f"llm2slm: warning: data={config.data.name} is made for {corpus.task}, and is asked as {task.name}; set "
        f"task={corpus.task} (or task.prefix, to ask in words of your own)",
        file=sys.stderr,
    )
