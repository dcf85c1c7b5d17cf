"""The rules of the architecture, checked on the syntax trees of the package; each rule is also tested on violations."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator

import pytest
from package_sources import PACKAGE, SOURCES, Source, imports, within

from llm2slm.evaluation.metrics import scores as registry

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

SMALL = {"types", "child_processes", "json_lines", "nearest_names", "out_of_memory", "processes"} | {
    "progress",
    "ranks",
    "shown_text",
    "speeds",
    "stops",
}
BASE = SMALL | {"config", "runs", "atomic", "gguf_files"}
LIBRARY = BASE | {"builtin", "models", "data", "decoding"}
MAY_IMPORT: dict[str, set[str]] = {
    # package -> what it may import in addition to itself: packages, or single modules of a package ("data.collate")
    "types": set(),
    "nearest_names": set(),
    "stops": set(),
    "out_of_memory": {"types"},
    "processes": {"types"},
    "progress": set(),
    "ranks": set(),
    "shown_text": set(),
    "speeds": set(),
    "typed_command": set(),
    "credentials": set(),
    "json_lines": {"types", "atomic"},
    "atomic": {"types"},
    "gguf_files": {"types"},
    "child_processes": set(),
    "config": {"types", "gguf_files", "credentials"},
    "runs": {"types", "config", "atomic", "speeds", "typed_command"},
    "resumable": {"types", "atomic"},
    "redaction": {"credentials"},
    "tracking": BASE | {"redaction"},
    "models": BASE | {"data.interface"},
    "builtin": BASE,
    "data": BASE | {"builtin"},
    "decoding": BASE | {"models", "data"},
    "offline": LIBRARY | {"resumable"},
    "training": LIBRARY | {"tracking"},
    "evaluation": LIBRARY,
    "testing": LIBRARY,
    "sweeps": BASE | {"evaluation", "tracking"},
    "commands": LIBRARY | {"tracking", "resumable", "offline", "training", "evaluation", "sweeps", "__init__"},
    "cli": LIBRARY | {"tracking", "offline", "training", "evaluation", "sweeps", "commands", "__init__"},
    "__main__": {"cli"},
    "__init__": {"types", "models"},  # for type checkers; at run time both are imported on first use
}
CONDITIONINGS = {path.stem for path in (PACKAGE.parent / "conf" / "model" / "conditioning").glob("*.yaml")}
METHOD = (  # a conditioning that changes the modules or the cache of a transformers model may import transformers
    "models.projector",
    "models.sequences",
    "models.families",
    "models.matrix_shapes",
    "models.conditioning",
    *(f"models.conditioning.{name}" for name in sorted(CONDITIONINGS - {"cross_attention", "kv"})),
    "training.objectives",
    "evaluation.metrics.scores",
    "evaluation.metrics.text_metrics",
    "evaluation.benchmark.costs",
    "evaluation.benchmark.mode_costs",
    "evaluation.benchmark.roofline",
    "evaluation.compare.significance",
)


METRICS = set(registry.METRICS) - {"chrf", "ter", "repetition", "perplexity", "bertscore:"}
"""Names of metrics without another meaning, so that any other module that contains one depends on it."""
METRICS_ALLOWED = ("evaluation.metrics", "data.tasks")
"""Modules that define metrics, or choose the default metrics of tasks."""
DIALECT = re.compile(
    r"\b(told|tells?|owed|whoever|those who|in force|beside|of (its|their|his) own|gone on with|(goes|went|go) on"
    r"|the (reader|writer)('s|s)?|(no|has|have|had) room|room for|says|said|asks|asked)\b",
    re.IGNORECASE,
)
"""Words for which a standard term exists (CONTRIBUTING.md, "Language")."""
SHOWN = ("print", "hold_warning", "UserError", "warn", "warning", "info", "error")
"""Functions whose string arguments users read."""


# Each rule takes a module and yields its violations.


def imports_one_way(source: Source) -> Iterator[str]:
    """types -> config, runs -> models || data -> decoding -> offline || training || evaluation -> commands -> cli."""
    if source.package not in MAY_IMPORT:
        yield f"{source.name}: package {source.package} is not in MAY_IMPORT"
        return
    for full in imports(source):
        if not within(full, "llm2slm"):
            continue
        inner = full.removeprefix("llm2slm").removeprefix(".") or "__init__"
        if inner.partition(".")[0] not in MAY_IMPORT:  # a name of llm2slm itself: `from llm2slm import __version__`
            inner = "__init__"
        if inner.partition(".")[0] != source.package and not any(
            within(inner, to) for to in MAY_IMPORT[source.package]
        ):
            yield f"{source.name} imports {full}"


def confines_frameworks(source: Source) -> Iterator[str]:
    """Lightning only in training and the data module, Hydra only in cli; neither, and no transformers, in METHOD."""
    for full in imports(source):
        library = full.partition(".")[0]
        if library in ("lightning", "pytorch_lightning") and not (
            source.package == "training" or source.name == "data.datamodule"
        ):
            yield f"{source.name} imports {library}"
        if library == "hydra" and source.package != "cli":
            yield f"{source.name} imports hydra"
        if within(full, "hydra._internal") and source.name != "cli.hydra_internals":
            yield f"{source.name} imports {full}; only cli.hydra_internals may"
        if library in ("transformers", "lightning", "pytorch_lightning", "hydra") and source.name in METHOD:
            yield f"{source.name}, part of the method, imports {library}"


def runs_on_every_system(source: Source) -> Iterator[str]:
    """No module that only Unix has; locks are `atomic.WriteLock`."""
    for full in imports(source):
        if full.partition(".")[0] in ("fcntl", "pwd", "grp", "termios"):
            yield f"{source.name} imports {full}"


def has_a_docstring(source: Source) -> Iterator[str]:
    """Every module starts with a docstring."""
    if not (ast.get_docstring(source.tree()) or "").strip():
        yield f"{source.name}: no docstring"


def stays_short(source: Source) -> Iterator[str]:
    """At most 400 lines per file and 80 per function."""
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{source.name}: {lines} lines, {MAX_FILE_LINES} at most"
    for node in ast.walk(source.tree()):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{source.name}.{node.name}: {length} lines, {MAX_FUNCTION_LINES} at most"


def is_no_utils(source: Source) -> Iterator[str]:
    """No module named utils, helpers, ...: a helper is defined in the module that uses it."""
    for part in source.name.split("."):
        if part.strip("_") in ("util", "utils", "helper", "helpers", "misc", "common"):
            yield f"{source.name}: name it after what it does"


def suppresses_no_failure(source: Source) -> Iterator[str]:
    """No bare except, and no `except Exception` that ignores the exception."""
    for node in ast.walk(source.tree()):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"{source.name}, line {node.lineno}: bare except"
                continue
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(isinstance(c, ast.Name) and c.id in ("Exception", "BaseException") for c in caught)
            if broad and all(isinstance(s, ast.Pass | ast.Continue) or is_constant(s) for s in node.body):
                yield f"{source.name}, line {node.lineno}: every exception is ignored"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            arguments = {ast.unparse(argument) for argument in node.args}
            if arguments & {"Exception", "BaseException"}:
                yield f"{source.name}, line {node.lineno}: every exception is suppressed"


def is_constant(statement: ast.AST) -> bool:
    """`...` or a string as a statement."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def decides_by_no_conditioning(source: Source) -> Iterator[str]:
    """A conditioning is one module of `models.conditioning`; no other module compares with the name of one."""
    if within(source.name, "models.conditioning"):
        return
    for node in ast.walk(source.tree()):
        if isinstance(node, ast.Compare):
            text, constants = ast.unparse(node), {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            found = set(re.findall(r"\bConditioning\.(\w+)", text)) & CONDITIONINGS
            if "conditioning" in text.lower():
                found |= constants & CONDITIONINGS
            if found - {"none"}:
                yield f"{source.name}, line {node.lineno}: compares with a conditioning, {text}"


def decides_by_no_metric(source: Source) -> Iterator[str]:
    """A metric is one entry of `evaluation.metrics`; no other module contains the name of one."""
    if any(within(source.name, package) for package in METRICS_ALLOWED):
        return
    for node in ast.walk(source.tree()):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in METRICS:
            yield f"{source.name}, line {node.lineno}: names the metric {node.value}"


def uses_standard_terms(source: Source) -> Iterator[str]:
    """No word of DIALECT in docstrings, comments and messages."""
    for line, text in texts(source):
        if found := DIALECT.search(" ".join(text.split())):
            yield f"{source.name}, line {line}: {found[0]!r}"


def texts(source: Source) -> Iterator[tuple[int, str]]:
    """Docstrings (of fields too), messages (raised, or arguments of SHOWN) and comments, with their line numbers."""
    for node in ast.walk(source.tree()):
        if is_constant(node):
            yield node.lineno, str(node.value.value)
        called = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Raise) or called in SHOWN:
            strings = (n for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))
            yield from ((string.lineno, string.value) for string in strings)
    yield from comments(source.text)


def comments(text: str) -> Iterator[tuple[int, str]]:
    """The comments of Python code, with their line numbers."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_tests_and_configs_use_standard_terms() -> None:
    """Names, docstrings and comments of tests and experiments, and comments of configs."""
    found = []
    for path in sorted([*PACKAGE.parent.glob("tests/**/*.py"), *PACKAGE.parent.glob("experiments/**/*.py")]):
        source = Source(str(path.relative_to(PACKAGE.parent)), path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(source.tree()) if isinstance(node, ast.FunctionDef)]
        named = [(node.lineno, node.name.replace("_", " ")) for node in functions if node.name.startswith("test_")]
        documented = [(node.lineno, ast.get_docstring(node) or "") for node in functions]
        for line, text in [*named, *documented, *comments(source.text)]:
            if match := DIALECT.search(" ".join(text.split())):
                found.append(f"{source.name}, line {line}: {match[0]!r}")
    for path in sorted(PACKAGE.parent.glob("conf/**/*.yaml")):
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "#" in text and (match := DIALECT.search(text.partition("#")[2])):
                found.append(f"{path.relative_to(PACKAGE.parent)}, line {line}: {match[0]!r}")
    assert found == []


Rule = Callable[[Source], Iterator[str]]
RULES: list[Rule] = [
    imports_one_way,
    confines_frameworks,
    runs_on_every_system,
    has_a_docstring,
    stays_short,
    is_no_utils,
    suppresses_no_failure,
    decides_by_no_conditioning,
    decides_by_no_metric,
    uses_standard_terms,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_follows_the_rule(rule: Rule) -> None:
    assert len(SOURCES) > 10
    assert [fault for source in SOURCES.values() for fault in rule(source)] == []


def cycles(sources: dict[str, Source]) -> list[list[str]]:
    """Groups of modules that import each other, directly or by way of others; imports within functions count."""
    graph: dict[str, set[str]] = {name: set() for name in sources}
    for name, source in sources.items():
        for full in imports(source):
            inner = full.removeprefix("llm2slm.")
            target = next((t for t in (inner, inner.rpartition(".")[0]) if t in sources), None)
            if target is not None and target != name:
                graph[name].add(target)
    reached = {name: _reached(graph, name) for name in graph}
    groups = {frozenset(n for n in reached[name] if name in reached[n]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found, new = set(), set(graph[start])
    while new:
        found |= new
        new = set().union(*(graph[name] for name in new)) - found
    return found


def test_modules_of_models_do_not_import_each_other_in_a_circle() -> None:
    assert cycles({name: source for name, source in SOURCES.items() if source.package == "models"}) == []


def test_the_circle_check_finds_imports_within_functions() -> None:
    texts = {"models.a": "from llm2slm.models.b import x", "models.b": "def f():\n    from llm2slm.models import a"}
    assert cycles({name: Source(name, text) for name, text in texts.items()}) == [["models.a", "models.b"]]


def test_modules_that_rules_name_exist() -> None:
    """A renamed module must be renamed in the rules too."""
    assert [name for name in (*METHOD, "data.interface", "data.datamodule") if name not in SOURCES] == []
    assert set(MAY_IMPORT) - {source.package for source in SOURCES.values()} <= {"decoding", "offline", "testing"}


BAD: list[tuple[Rule, str, str]] = [
    (imports_one_way, "types", "from llm2slm.config import RunConfig"),
    (imports_one_way, "config", "import llm2slm.runs"),
    (imports_one_way, "data.sources.sources", "from llm2slm.models.hybrid import LLM2SLM"),
    (imports_one_way, "data.sources.sources", "from llm2slm import models"),
    (imports_one_way, "data.sources.sources", "from ...models import hybrid"),
    (imports_one_way, "data.sources.sources", "def f():\n    from llm2slm.models import hybrid"),
    (imports_one_way, "data.sources.sources", "if TYPE_CHECKING:\n    from llm2slm.models.hybrid import LLM2SLM"),
    (imports_one_way, "data.sources.sources", 'importlib.import_module("llm2slm.models.hybrid")'),
    (imports_one_way, "data.sources.sources", "from llm2slm import LLM2SLM"),
    (imports_one_way, "models.build", "from llm2slm.data.sources.sources import load_rows"),
    (imports_one_way, "models.build", "from llm2slm.data import sources"),
    (imports_one_way, "models.build", "from llm2slm.data.interface_more import x"),
    (imports_one_way, "models.build", "from llm2slm.data.collate import Collator"),
    (imports_one_way, "models.build", "from llm2slm.decoding.cache import Cache"),
    (imports_one_way, "evaluation.predict", "from llm2slm.training.fit import fit"),
    (imports_one_way, "training.fit", "from llm2slm.evaluation.predict import predict"),
    (imports_one_way, "training.fit", "from llm2slm.offline import label"),
    (imports_one_way, "training.fit", "from llm2slm.commands import train"),
    (imports_one_way, "commands.train", "from llm2slm.cli import main"),
    (imports_one_way, "commands.train", "from llm2slm.testing import tiny_llm"),
    (imports_one_way, "elsewhere", "import os"),
    (confines_frameworks, "evaluation.predict", "from lightning.pytorch import Trainer"),
    (confines_frameworks, "data.collate", "import pytorch_lightning as pl"),
    (confines_frameworks, "commands.train", "def f():\n    import hydra"),
    (confines_frameworks, "config", "from hydra.core.config_store import ConfigStore"),
    (confines_frameworks, "training.objectives", "import lightning"),
    (confines_frameworks, "cli.launch", "from hydra._internal.hydra import Hydra"),
    (confines_frameworks, "cli.launch", "from hydra import _internal"),
    *((confines_frameworks, name, "from transformers import T5Config") for name in METHOD),
    (runs_on_every_system, "resumable", "import fcntl"),
    (has_a_docstring, "config", "import os\n'''late'''"),
    (has_a_docstring, "config", "'''   '''"),
    (stays_short, "config", "'''x'''\n" + "a = 1\n" * MAX_FILE_LINES),
    (stays_short, "config", "def f():\n" + "    a = 1\n" * MAX_FUNCTION_LINES),
    (stays_short, "config", "class A:\n    async def f(self):\n" + "        a = 1\n" * MAX_FUNCTION_LINES),
    (is_no_utils, "data.utils", ""),
    (is_no_utils, "utils.data", ""),
    (is_no_utils, "models._helpers", ""),
    (suppresses_no_failure, "config", "try:\n    f()\nexcept:\n    raise"),
    (suppresses_no_failure, "config", "try:\n    f()\nexcept Exception:\n    pass"),
    (
        suppresses_no_failure,
        "config",
        "for _ in x:\n    try:\n        f()\n    except (OSError, Exception) as e:\n        continue",
    ),
    (suppresses_no_failure, "config", "try:\n    f()\nexcept BaseException:\n    ..."),
    (suppresses_no_failure, "config", "with contextlib.suppress(Exception):\n    f()"),
    (decides_by_no_conditioning, "decoding.cache", "if mode is Conditioning.kv:\n    f()"),
    (decides_by_no_conditioning, "decoding.cache", 'f() if config.conditioning in ("add", "replace") else g()'),
    (decides_by_no_metric, "decoding.cache", 'better = {"bleu": max}'),
    (decides_by_no_metric, "runs", 'if name == "token_f1":\n    f()'),
    (uses_standard_terms, "cli.help", '"""What the verb is told."""'),
    (uses_standard_terms, "cli.help", 'a: int = 1\n"""As the reader\nof it says."""'),
    (uses_standard_terms, "cli.help", "a = 1  # goes on"),
    (uses_standard_terms, "cli.help", 'raise UserError(f"{name}: no room for {count} more")'),
    (uses_standard_terms, "cli.help", 'hold_warning("not what was asked")'),
]
GOOD: list[tuple[Rule, str, str]] = [
    (
        imports_one_way,
        "models.build",
        "from llm2slm.data.interface import Collator\nfrom llm2slm.data import interface",
    ),
    (imports_one_way, "models.build", "from .hybrid import LLM2SLM\nfrom ..types import Batch\nimport torch"),
    (imports_one_way, "commands.train", "from llm2slm import __version__\nfrom llm2slm.training.fit import fit"),
    (imports_one_way, "cli.launch", "from llm2slm.commands import train\nfrom llm2slm.cli import compose"),
    (confines_frameworks, "data.datamodule", "from lightning import LightningDataModule"),
    (confines_frameworks, "cli.launch", "import hydra"),
    (confines_frameworks, "evaluation.predict", "import transformers\nimport lightning_like"),
    (stays_short, "config", "a = 1\n" * MAX_FILE_LINES),
    (stays_short, "config", "def f():\n" + "    a = 1\n" * (MAX_FUNCTION_LINES - 1)),
    (suppresses_no_failure, "config", "try:\n    f()\nexcept OSError:\n    pass"),
    (suppresses_no_failure, "config", "try:\n    f()\nexcept Exception as error:\n    raise E from error"),
    (decides_by_no_conditioning, "models.conditioning.kv", 'x = cfg.conditioning == "kv"'),
    (decides_by_no_conditioning, "decoding.cache", 'x = name == "add"\ny = cfg.conditioning == other.conditioning'),
    (decides_by_no_metric, "evaluation.metrics.scores", 'METRICS = {"bleu": 1}'),
    (decides_by_no_metric, "decoding.cache", 'x = "the bleu of a run"'),
    (uses_standard_terms, "cli.help", '"""A reading of the prompt; tellurium."""\nsaid = ask("told")'),
]


@pytest.mark.parametrize(("rule", "name", "text"), BAD)
def test_rule_finds_the_violation(rule: Rule, name: str, text: str) -> None:
    assert len(list(rule(Source(name, text)))) >= 1


@pytest.mark.parametrize(("rule", "name", "text"), GOOD)
def test_rule_accepts_valid_code(rule: Rule, name: str, text: str) -> None:
    assert list(rule(Source(name, text))) == []
