"""Keys under `data` and `task`: which rows, how they become batches, prompts and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm2slm.types import Labels, Overlong


@dataclass
class CorpusConfig:
    """Which rows of which corpus."""

    name: str = "builtin"
    """builtin, json, hub, mixture, or a known corpus (data/sources/corpora.py): wmt14_en_de, multi30k,
    xsum, samsum, alpaca, ..."""
    corpus: str = "translation"
    """data=builtin: translation | summarization | instruction | mixture."""
    root: str | None = None
    """Folder that holds corpora (multi30k/, samsum/, ...). None: a known corpus comes from the Hub."""
    path: str | None = None
    """Id of a dataset of the Hub, or a folder with its files (a clone of it, or Parquet, JSON or CSV files named train,
    validation and test). With a known corpus: in place of the Hub's, with the same columns."""
    subset: str | None = None
    """Its configuration on the Hub. A known corpus knows its own."""
    revision: str | None = None
    """Its branch, tag or commit on the Hub."""
    train: str | None = None
    """data=json: file (json, jsonl, csv, tsv, parquet; all but parquet also as .gz); else name of the split, or a part
    of it as train[:1000]. A known corpus knows its own."""
    validation: str | None = None
    test: str | None = None
    source: str | None = None
    """Column that holds the source text; a field of a nested one by a dotted path, as translation.en."""
    target: str | None = None
    """Column that holds the target text. None: the corpus' own; of json and hub target, with task=lm text."""
    train_size: int | None = None
    """Rows of the split at most; for built-in corpora how many to generate. None: all (built-in: a default)."""
    validation_size: int | None = None
    test_size: int | None = None


@dataclass
class PartConfig(CorpusConfig):
    """A corpus that is part of a mixture, and what is asked of its rows."""

    name: str = ""
    weight: float = 1.0
    """Share of the training rows, in proportion to the other parts' weights."""
    repeat: bool = False
    """Use its training rows again where its share asks for more than it has; else the whole mixture is as small as to
    do without."""
    task: str | None = None
    """translation | summarization | instruction | text | lm. None: what the corpus is made for, else task.name; text
    where that is not set either."""
    prefix: str | None = None
    """As task.prefix, for these rows; task.prefix itself comes before it."""
    template: list[str] | None = None
    """As task.template, which holds where this is None."""
    language: str | None = None
    """As task.language, which holds where this is None."""


@dataclass
class DataConfig(CorpusConfig):
    """Which rows, how many, and how they become batches."""

    parts: list[PartConfig] = field(default_factory=list)
    """data=mixture: the corpora that it mixes, as [{name: samsum, root: DIR, weight: 2}, {name: multi30k, root: DIR}]:
    keys of `data` that say which rows, and weight, repeat, task, prefix, template,
    language."""
    batch_tokens: int = 2048
    """Padded tokens in a training batch at most (prompt + response, the longest row times the rows); a row that is
    longer is a batch of its own."""
    eval_batch_size: int = 32
    """Rows in a validation or generation batch."""
    max_prompt_tokens: int = 512
    """Longest prompt, in tokens, of either tokenizer; less where a model takes less."""
    max_response_tokens: int = 256
    """Longest target, in tokens, its eos included."""
    overlong: Overlong = Overlong.error
    """What to do with a longer one: error | truncate | drop | split (task=lm: into pieces of max_response_tokens, each
    a row with the start token before it)."""
    max_lossy_share: float = 1.0
    """Share (0 to 1) of a split's responses that may not be read back from the writer's tokens, which lack some of
    their characters or white space; more stop the training. 1: warn only."""
    workers: int = 0
    """DataLoader processes."""
    reps: str | None = None
    """What `llm2slm encode` left: a folder of the LLM's representations. They are read from there, and the LLM is never
    loaded."""
    labels: Labels = Labels.gold
    """Answers that are trained on: gold (the corpus') | llm (those that the LLM wrote) | mix."""
    labels_from: str | None = None
    """labels=llm or mix: what `llm2slm label` left for the training split: its run directory, or the file."""
    labels_share: float = 0.5
    """labels=mix: share of the rows that get the LLM's answer, drawn by the seed."""
    streaming: bool = False
    """Read training rows while training, over and over, to trainer.max_steps: for a corpus that fits into no memory.
    Validation and test rows are held in it all the same."""
    buffer: int = 10_000
    """data.streaming: rows that are held, and shuffled, at once."""
    cache: str | None = "~/.cache/llm2slm"
    """Folder that keeps tokenized rows for other runs on the same texts and tokenizers ($LLM2SLM_CACHE where that is
    set and this is not); entries unused for 90 days are removed. None: keep none."""


@dataclass
class TaskConfig:
    """What the models are asked, and how the answer is judged. Empty fields: the task's own (data/tasks.py)."""

    name: str | None = None
    """translation | summarization | instruction | text (no prefix) | lm (plain text: an empty prompt, a loss on every
    token) | mixture (each row says its own task). None: the task that a known or built-in corpus is made for; text for
    data=json and data=hub."""
    prefix: str | None = None
    """Put in front of every source; T5 models need theirs."""
    template: list[str] | None = None
    """Words the source from fields of the row, as "{question} {context}": the first one whose fields all have a text;
    or the name of such (alpaca). None: the corpus' own; []: the source column as it is. task=lm: words the text, in
    which {source} and {target} stand for these columns; None: both, where there is a source column, else the target."""
    metrics: list[str] | None = None
    """bleu | chrf | chrf++ | ter | rouge1 | rouge2 | rougeL | rougeLsum | token_f1 | exact_match | length_ratio |
    repetition (evaluation/metrics), logged while training too; and, in the end only, perplexity of the references
    and bertscore:MODEL[:layer], by any model. The first one is the main one."""
    language: str | None = None
    """Language of the targets, as de, ru, zh, ja, ko, th: by it the metrics tokenize. None: the corpus' own, where it
    or its columns' names (de, translation.de) state it; else English for Latin script, and a warning for another."""
    max_new_tokens: int | None = None
    """Response tokens at most."""
    num_beams: int = 1
