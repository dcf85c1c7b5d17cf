"""The architecture's rules, read off the package's syntax trees; each rule is itself tried on sources that break it."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = Path(__file__).resolve().parent.parent / "llm2slm"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

BASE = {"types", "config", "runs", "atomic", "gguf_files"}
LIBRARY = BASE | {"builtin", "models", "data", "decoding"}
ROOMS: dict[str, set[str]] = {
    # room -> what it may import, beside itself: rooms, or single modules of a room ("data.collate")
    "types": set(),
    "atomic": {"types"},
    "gguf_files": {"types"},
    "config": {"types", "gguf_files"},
    "runs": {"types", "config", "atomic"},
    "resumable": {"types", "atomic"},
    "models": BASE | {"data.interface"},
    "builtin": BASE,
    "data": BASE | {"builtin"},
    "decoding": BASE | {"models", "data"},
    "offline": LIBRARY | {"resumable"},
    "training": LIBRARY,
    "evaluation": LIBRARY,
    "testing": LIBRARY,
    "commands": LIBRARY | {"resumable", "offline", "training", "evaluation", "__init__"},
    "cli": LIBRARY | {"offline", "training", "evaluation", "commands", "__init__"},
    "__main__": {"cli"},
    "__init__": {"types", "models"},  # names for type checkers; at run time they arrive on first use
}
METHOD = (
    "models.projector",
    "models.conditioning",
    "training.objectives",
    "evaluation.metrics.scores",
    "evaluation.benchmark.costs",
    "evaluation.compare.significance",
)


@dataclass(frozen=True)
class Source:
    """A module: its dotted name within the package (`data.collate`; a package's `__init__` is `data`) and its text."""

    name: str
    text: str
    is_package: bool = False

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    def tree(self) -> ast.Module:
        return ast.parse(self.text)


def sources() -> dict[str, Source]:
    """Every module of the package by its dotted name; the package's own `__init__` is `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        is_package = parts[-1] == "__init__" and len(parts) > 1
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = Source(name, path.read_text(encoding="utf-8"), is_package)
    return found


SOURCES = sources()


def imports(source: Source) -> Iterator[str]:
    """Full dotted names of all that a module imports, wherever it stands: functions and TYPE_CHECKING included.

    `from a import b` gives `a.b`, since b may be a module; `import_module("a.b")` counts as well.
    """
    home = ["llm2slm", *source.name.split(".")]
    for node in ast.walk(source.tree()):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    up = node.level - 1 if source.is_package else node.level
                    base = ".".join([*home[: len(home) - up], *([base] if base else [])])
                yield from (f"{base}.{alias.name}" for alias in node.names)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
                    yield name


def within(name: str, folder: str) -> bool:
    """Whether a dotted name is a module or lies in it."""
    return name == folder or name.startswith(folder + ".")


# Each rule takes a module and yields what is wrong with it.


def goes_one_way(source: Source) -> Iterator[str]:
    """types -> config, runs -> models || data -> decoding -> offline || training || evaluation -> commands -> cli."""
    if source.room not in ROOMS:
        yield f"{source.name}: room {source.room} is in no list; give it its place in ROOMS"
        return
    for full in imports(source):
        if not within(full, "llm2slm"):
            continue
        inner = full.removeprefix("llm2slm").removeprefix(".") or "__init__"
        if inner.partition(".")[0] not in ROOMS:  # a name of the package itself: `from llm2slm import __version__`
            inner = "__init__"
        if inner.partition(".")[0] != source.room and not any(within(inner, to) for to in ROOMS[source.room]):
            yield f"{source.name} imports {full}"


def keeps_frameworks_in_their_rooms(source: Source) -> Iterator[str]:
    """Lightning in training and the data module, Hydra in cli, neither nor transformers in the method's own modules."""
    for full in imports(source):
        library = full.partition(".")[0]
        if library in ("lightning", "pytorch_lightning") and not (
            source.room == "training" or source.name == "data.datamodule"
        ):
            yield f"{source.name} imports {library}"
        if library == "hydra" and source.room != "cli":
            yield f"{source.name} imports hydra"
        if library in ("transformers", "lightning", "pytorch_lightning", "hydra") and source.name in METHOD:
            yield f"{source.name}, part of the method, imports {library}"


def runs_on_every_system(source: Source) -> Iterator[str]:
    """No module that only Unix has; locks are `atomic.WriteLock`."""
    for full in imports(source):
        if full.partition(".")[0] in ("fcntl", "pwd", "grp", "termios"):
            yield f"{source.name} imports {full}"


def says_what_it_is_for(source: Source) -> Iterator[str]:
    """Every module opens with a docstring."""
    if not (ast.get_docstring(source.tree()) or "").strip():
        yield f"{source.name}: no docstring"


def stays_short(source: Source) -> Iterator[str]:
    """Files of 400 lines, functions of 80, at most."""
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{source.name}: {lines} lines, {MAX_FILE_LINES} at most"
    for node in ast.walk(source.tree()):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{source.name}.{node.name}: {length} lines, {MAX_FUNCTION_LINES} at most"


def is_no_utils(source: Source) -> Iterator[str]:
    """A helper lives with its one user."""
    for part in source.name.split("."):
        if part.strip("_") in ("util", "utils", "helper", "helpers", "misc", "common"):
            yield f"{source.name}: name it after what it does"


def hides_no_failure(source: Source) -> Iterator[str]:
    """No bare except; no broad one that passes over what it caught."""
    for node in ast.walk(source.tree()):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"{source.name}, line {node.lineno}: bare except"
                continue
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(isinstance(c, ast.Name) and c.id in ("Exception", "BaseException") for c in caught)
            if broad and all(isinstance(s, ast.Pass | ast.Continue) or is_constant(s) for s in node.body):
                yield f"{source.name}, line {node.lineno}: every exception is passed over"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            arguments = {ast.unparse(argument) for argument in node.args}
            if arguments & {"Exception", "BaseException"}:
                yield f"{source.name}, line {node.lineno}: every exception is suppressed"


def is_constant(statement: ast.stmt) -> bool:
    """`...` or a string standing alone."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


Rule = Callable[[Source], Iterator[str]]
RULES: list[Rule] = [
    goes_one_way,
    keeps_frameworks_in_their_rooms,
    runs_on_every_system,
    says_what_it_is_for,
    stays_short,
    is_no_utils,
    hides_no_failure,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule: Rule) -> None:
    assert len(SOURCES) > 10
    assert [fault for source in SOURCES.values() for fault in rule(source)] == []


def test_method_modules_exist() -> None:
    """A renamed file must not slip out of the rule that names it."""
    assert [name for name in (*METHOD, "data.datamodule", "data.interface") if name not in SOURCES] == []
    assert set(ROOMS) - {source.room for source in SOURCES.values()} <= {"decoding", "offline", "testing"}


BAD: list[tuple[Rule, str, str]] = [
    (goes_one_way, "types", "from llm2slm.config import RunConfig"),
    (goes_one_way, "config", "import llm2slm.runs"),
    (goes_one_way, "data.sources.sources", "from llm2slm.models.hybrid import LLM2SLM"),
    (goes_one_way, "data.sources.sources", "from llm2slm import models"),
    (goes_one_way, "data.sources.sources", "from ...models import hybrid"),
    (goes_one_way, "data.sources.sources", "def f():\n    from llm2slm.models import hybrid"),
    (goes_one_way, "data.sources.sources", "if TYPE_CHECKING:\n    from llm2slm.models.hybrid import LLM2SLM"),
    (goes_one_way, "data.sources.sources", 'importlib.import_module("llm2slm.models.hybrid")'),
    (goes_one_way, "data.sources.sources", "from llm2slm import LLM2SLM"),
    (goes_one_way, "models.build", "from llm2slm.data.sources.sources import load_rows"),
    (goes_one_way, "models.build", "from llm2slm.data import sources"),
    (goes_one_way, "models.build", "from llm2slm.data.interface_more import x"),
    (goes_one_way, "models.build", "from llm2slm.data.collate import Collator"),
    (goes_one_way, "models.build", "from llm2slm.decoding.cache import Cache"),
    (goes_one_way, "evaluation.predict", "from llm2slm.training.fit import fit"),
    (goes_one_way, "training.fit", "from llm2slm.evaluation.predict import predict"),
    (goes_one_way, "training.fit", "from llm2slm.offline import label"),
    (goes_one_way, "training.fit", "from llm2slm.commands import train"),
    (goes_one_way, "commands.train", "from llm2slm.cli import main"),
    (goes_one_way, "commands.train", "from llm2slm.testing import tiny_llm"),
    (goes_one_way, "elsewhere", "import os"),
    (keeps_frameworks_in_their_rooms, "evaluation.predict", "from lightning.pytorch import Trainer"),
    (keeps_frameworks_in_their_rooms, "data.collate", "import pytorch_lightning as pl"),
    (keeps_frameworks_in_their_rooms, "commands.train", "def f():\n    import hydra"),
    (keeps_frameworks_in_their_rooms, "config", "from hydra.core.config_store import ConfigStore"),
    (keeps_frameworks_in_their_rooms, "training.objectives", "import lightning"),
    *((keeps_frameworks_in_their_rooms, name, "from transformers import T5Config") for name in METHOD),
    (runs_on_every_system, "resumable", "import fcntl"),
    (says_what_it_is_for, "config", "import os\n'''late'''"),
    (says_what_it_is_for, "config", "'''   '''"),
    (stays_short, "config", "'''x'''\n" + "a = 1\n" * MAX_FILE_LINES),
    (stays_short, "config", "def f():\n" + "    a = 1\n" * MAX_FUNCTION_LINES),
    (stays_short, "config", "class A:\n    async def f(self):\n" + "        a = 1\n" * MAX_FUNCTION_LINES),
    (is_no_utils, "data.utils", ""),
    (is_no_utils, "utils.data", ""),
    (is_no_utils, "models._helpers", ""),
    (hides_no_failure, "config", "try:\n    f()\nexcept:\n    raise"),
    (hides_no_failure, "config", "try:\n    f()\nexcept Exception:\n    pass"),
    (
        hides_no_failure,
        "config",
        "for _ in x:\n    try:\n        f()\n    except (OSError, Exception) as e:\n        continue",
    ),
    (hides_no_failure, "config", "try:\n    f()\nexcept BaseException:\n    ..."),
    (hides_no_failure, "config", "with contextlib.suppress(Exception):\n    f()"),
]
GOOD: list[tuple[Rule, str, str]] = [
    (
        goes_one_way,
        "models.build",
        "from llm2slm.data.interface import Collator\nfrom llm2slm.data import interface",
    ),
    (goes_one_way, "models.build", "from .hybrid import LLM2SLM\nfrom ..types import Batch\nimport torch"),
    (goes_one_way, "commands.train", "from llm2slm import __version__\nfrom llm2slm.training.fit import fit"),
    (goes_one_way, "cli.launch", "from llm2slm.commands import train\nfrom llm2slm.cli import compose"),
    (keeps_frameworks_in_their_rooms, "data.datamodule", "from lightning import LightningDataModule"),
    (keeps_frameworks_in_their_rooms, "cli.launch", "import hydra"),
    (keeps_frameworks_in_their_rooms, "evaluation.predict", "import transformers\nimport lightning_like"),
    (stays_short, "config", "a = 1\n" * MAX_FILE_LINES),
    (stays_short, "config", "def f():\n" + "    a = 1\n" * (MAX_FUNCTION_LINES - 1)),
    (hides_no_failure, "config", "try:\n    f()\nexcept OSError:\n    pass"),
    (hides_no_failure, "config", "try:\n    f()\nexcept Exception as error:\n    raise E from error"),
]


@pytest.mark.parametrize(("rule", "name", "text"), BAD)
def test_rule_sees_what_breaks_it(rule: Rule, name: str, text: str) -> None:
    assert len(list(rule(Source(name, text)))) >= 1


@pytest.mark.parametrize(("rule", "name", "text"), GOOD)
def test_rule_lets_pass_what_keeps_it(rule: Rule, name: str, text: str) -> None:
    assert list(rule(Source(name, text))) == []


def test_relative_imports_of_a_package_start_at_itself() -> None:
    assert list(imports(Source("data", "from . import collate\nfrom .. import types", is_package=True))) == [
        "llm2slm.data.collate",
        "llm2slm.types",
    ]
    assert list(imports(Source("data.collate", "from . import files\nfrom ..types import Batch"))) == [
        "llm2slm.data.files",
        "llm2slm.types.Batch",
    ]


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"__main__"}))
def test_module_imports(name: str) -> None:
    """Every module of the package can be imported: no missing name, no missing library."""
    importlib.import_module("llm2slm" if name == "__init__" else f"llm2slm.{name}")


# What is imported is declared, and the other way round.

PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [
    Requirement(line) for name, lines in PROJECT["optional-dependencies"].items() for line in lines if name != "dev"
]
PINNED = {
    canonicalize_name(name): version
    for name, _, version in (
        line.strip().partition("==") for line in (PACKAGE.parent / "constraints.txt").read_text().splitlines()
    )
    if version
}
DISTRIBUTIONS = packages_distributions()


def distributions(source: Source) -> set[str]:
    """What a module's imports need to have installed: names of distributions; of a package that none has, its own."""
    roots = {full.partition(".")[0] for full in imports(source)} - sys.stdlib_module_names - {"llm2slm"}
    return {canonicalize_name(dist) for root in roots for dist in DISTRIBUTIONS.get(root, [root])}


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    """A dependency of a dependency may be gone in its next version."""
    imported = set().union(*map(distributions, SOURCES.values()))
    assert imported - names(NEEDED) - names(EXTRAS) == set()
    assert names(NEEDED) - imported == set()


def test_an_import_is_known_by_its_distribution() -> None:
    text = "import os.path, yaml\nfrom rouge_score import scoring\ndef f():\n    import not_there.at_all"
    assert distributions(Source("config", text)) == {"pyyaml", "rouge-score", "not-there"}
    assert distributions(Source("config", 'importlib.import_module("hydra.core")\nfrom . import runs')) == {
        "hydra-core"
    }


@pytest.mark.parametrize("requirement", [*NEEDED, *EXTRAS], ids=str)
def test_the_version_that_is_tested_is_one_that_is_declared(requirement: Requirement) -> None:
    assert requirement.specifier
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)])


HEAVY = ("torch", "transformers", "lightning", "hydra", "datasets", "wandb", "matplotlib")


@pytest.mark.parametrize("statement", ["import llm2slm", "import llm2slm.types, llm2slm.config, llm2slm.runs"])
def test_light_import_loads_nothing_heavy(statement: str) -> None:
    assert heavy_after(statement) == []


def test_light_import_check_sees_a_heavy_one() -> None:
    """The check above can fail: touching the model class does load torch."""
    assert "torch" in heavy_after("from llm2slm import LLM2SLM")


def heavy_after(statement: str) -> list[str]:
    """Which heavy libraries a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return list(ast.literal_eval(done.stdout))
