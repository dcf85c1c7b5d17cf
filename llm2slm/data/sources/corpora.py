"""The table of known corpora: source, columns, languages and task of each.

A corpus is read from the Hub (`data.path` may give a local copy with the same files, or another id with the same
columns), or from the folder of corpora `data.root=DIR`.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm2slm.config import CorpusConfig
from llm2slm.data.languages import NAMES, primary
from llm2slm.data.sources.columns import Columns
from llm2slm.nearest_names import nearest
from llm2slm.types import UserError

SPLITS = ("train", "validation", "test")

_NAMED = "ar cs de en es et fi fr hi it ja ko lv nl pl pt ro ru tr zh"
LANGUAGES = {code: NAMES[code] for code in _NAMED.split()}
"""English name by language code in a column name (`de`, `translation.de`), for the prefix of translation."""

BUILTIN_LANGUAGES = {"translation": "de", "summarization": "en", "instruction": "en"}
"""Language of the targets by built-in corpus, or by task of the row in the built-in mixture."""

PARQUET = "refs/convert/parquet"
"""Branch with the Hub's Parquet conversion of a data set that has a loading script: one folder for each subset."""


@dataclass(frozen=True)
class Hub:
    """A data set of the Hub: id, columns (nested ones as dotted paths), subset, revision and splits.

    If a data set has only a train split, its first rows are used for validation and test.

    Attributes:
        templates: make the source, if it consists of several columns.
    """

    id: str
    source: str
    target: str
    subset: str | None = None
    revision: str | None = None
    splits: tuple[str, str, str] = SPLITS
    templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """Files train, validation and test (.jsonl.gz) in a folder with the name of the corpus.

    Attributes:
        test: name of the test file; `{other}` is the code of the language that is not English.
        source, target: names of the columns.
    """

    test: str = "test"
    source: str = "source"
    target: str = "target"


@dataclass(frozen=True)
class Corpus:
    """A corpus: on the Hub, in files below `data.root`, or both.

    Attributes:
        task: the default task.
        near: for a corpus that is not on the Hub, the most similar data set there, with other columns.
        languages: language codes of source and target, if the column names do not end with them.
    """

    task: str
    hub: Hub | None = None
    files: Files | None = None
    near: str = ""
    languages: tuple[str, str] | None = None


def _pair(id: str, source: str, target: str, subset: str, revision: str | None = None) -> Corpus:
    hub = Hub(id, f"translation.{source}", f"translation.{target}", subset, revision)
    return Corpus("translation", hub)


def _instructions(id: str, target: str, context: str) -> Hub:
    """Instructions, some with a context: instruction and context, with a blank line between them."""
    splits = ("train[1000:]", "train[:500]", "train[500:1000]")
    templates = (f"{{instruction}}\n\n{{{context}}}", "{instruction}")
    return Hub(id, "instruction", target, splits=splits, templates=templates)


CORPORA = {
    "wmt14_en_de": _pair("wmt/wmt14", "en", "de", "de-en"),
    "wmt14_en_fr": _pair("wmt/wmt14", "en", "fr", "fr-en"),
    "wmt16_en_ro": _pair("wmt/wmt16", "en", "ro", "ro-en"),
    "iwslt2017_en_de": _pair("IWSLT/iwslt2017", "en", "de", "iwslt2017-en-de", PARQUET),
    "multi30k": Corpus(
        "translation", Hub("bentrevett/multi30k", "en", "de"), Files("test_2016_flickr", source="en", target="de")
    ),
    "wmt_news": Corpus("translation", files=Files("test_2014_en{other}", source="en", target="de"), near="wmt/wmt14"),
    "tatoeba_en_fr": Corpus("translation", files=Files(), near="Helsinki-NLP/tatoeba_mt", languages=("en", "fr")),
    "small_parallel_enja": Corpus("translation", files=Files(), languages=("en", "ja")),
    "cnn_dailymail": Corpus("summarization", Hub("abisee/cnn_dailymail", "article", "highlights", "3.0.0")),
    "xsum": Corpus("summarization", Hub("EdinburghNLP/xsum", "document", "summary", "default", PARQUET)),
    "samsum": Corpus("summarization", Hub("knkarthick/samsum", "dialogue", "summary"), Files()),
    "dialogsum": Corpus("summarization", Hub("knkarthick/dialogsum", "dialogue", "summary"), Files()),
    "alpaca": Corpus("instruction", _instructions("tatsu-lab/alpaca", "output", "input"), Files()),
    "dolly": Corpus("instruction", _instructions("databricks/databricks-dolly-15k", "response", "context")),
    "dolly_3k": Corpus("instruction", files=Files(), near="databricks/databricks-dolly-15k"),
    "t0_mixture": Corpus("instruction", files=Files(), near="yizhongw/self_instruct"),
}


def columns_of(config: CorpusConfig) -> Columns:
    """The columns of a configuration; by default those of the corpus."""
    corpus = CORPORA.get(config.name)
    named = corpus and (corpus.files if config.root is not None or corpus.hub is None else corpus.hub)
    source, target = (named.source, named.target) if named else ("source", "target")
    return Columns(config.source or source, config.target or target)


def languages(config: CorpusConfig) -> tuple[str, str] | None:
    """English names of source and target language, if the corpus or its column names have them."""
    source, target = _codes(config)
    return (LANGUAGES[source], LANGUAGES[target]) if {source, target} <= set(LANGUAGES) else None


def target_language(config: CorpusConfig) -> str | None:
    """Code of the targets' language, if the corpus or both column names give it (en and zh-CN do; source and zh are
    ambiguous)."""
    if config.name == "builtin":
        return BUILTIN_LANGUAGES.get(config.corpus)
    source, target = (primary(code) for code in _codes(config))
    return target if {source, target} <= set(NAMES) else None


def _codes(config: CorpusConfig) -> tuple[str, str]:
    """Candidate language codes of source and target: of the corpus, or the last parts of its column names."""
    corpus, columns = CORPORA.get(config.name), columns_of(config)
    if corpus is not None and corpus.languages and not (config.source or config.target):
        return corpus.languages
    return columns.source.rpartition(".")[2], columns.target.rpartition(".")[2]


def known_corpus(name: str) -> Corpus:
    """The corpus with a name.

    Raises:
        UserError: unknown corpus; the message has a suggestion.
    """
    if name not in CORPORA:
        known = ("builtin", "json", "hub", "mixture", *CORPORA)
        raise UserError(f"data={name}: unknown corpus; did you mean {nearest(name, known)}? ({', '.join(known)})")
    return CORPORA[name]
