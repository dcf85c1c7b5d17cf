"""The files of artifacts: source code, configuration, results, and the trained model without its LLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm2slm.redaction import redact_known
from llm2slm.types import UserError

KINDS = ("config", "code", "results", "model")
"""Values of `logger.artifacts`."""
PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = (".py", ".yaml", ".html", ".css", ".js")
RESULTS = ("result.json", "predictions.jsonl", "metrics.csv", "compare.json", "judge.json", "costs.json", "report.html")


def check(kinds: Sequence[str]) -> None:
    """Refuses an unknown kind.

    Raises:
        UserError: names it, and the known ones.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"logger.artifacts: {kind} is unknown; choose among {', '.join(KINDS)}")


def conf_folder() -> Path:
    """The configuration files: in the package of an installed wheel, else in the checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def code() -> dict[str, Path]:
    """The sources of this package and its configuration files; no weights, no data."""
    conf = conf_folder()
    found = {path.relative_to(PACKAGE.parent): path for path in PACKAGE.rglob("*") if path.suffix in SOURCES}
    found |= {Path("conf") / path.relative_to(conf): path for path in conf.rglob("*.yaml")}
    return {name.as_posix(): found[name] for name in sorted(found) if "__pycache__" not in name.parts}


def results(folder: Path) -> dict[str, Path | str]:
    """The files of results in a folder, without secrets."""
    return {name: without_secrets(folder / name) for name in RESULTS if (folder / name).is_file()}


def without_secrets(path: Path) -> Path | str:
    """A text file, or its redacted text if it contains secrets."""
    text = path.read_text(encoding="utf-8", errors="replace")
    redacted = redact_known(text)
    return path if redacted == text else redacted


def model(folder: Path) -> dict[str, Path]:
    """The files of `model/` in a run directory: SLM and projector, tokenizers, card. It has no file of the LLM, only
    its id."""
    home = folder / "model"
    files = (path for path in sorted(home.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(home).as_posix(): path for path in files}
