"""Names of GGUF files: a local path, or OWNER/REPOSITORY/FILE.gguf on the Hub."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from llm2slm.types import UserError, reason_of

SUFFIX = ".gguf"


def is_gguf(name: str | None) -> bool:
    """Whether a model's name is that of a GGUF file, local or on the Hub."""
    return name is not None and name.lower().endswith(SUFFIX)


def on_hub(name: str) -> tuple[str, str] | None:
    """Repository and file of OWNER/REPOSITORY/FILE.gguf; None for the name of a local file."""
    parts = name.split("/")
    local = name.startswith((".", "/", "~")) or Path(name).is_file() or Path(name).parent.is_dir()
    return None if local or len(parts) < 3 else ("/".join(parts[:2]), "/".join(parts[2:]))


def find(name: str, revision: str | None = None) -> Path:
    """The absolute path of a GGUF file; a Hub file is downloaded unless it is cached.

    Raises:
        UserError: the file does not exist or cannot be downloaded.
    """
    repository = on_hub(name)
    if repository is None:
        try:
            path = Path(name).expanduser()
        except RuntimeError:  # ~user without a known home folder
            path = Path(name)
        if not path.is_file():
            raise UserError(
                f"model {name!r}: no such file; give a GGUF file, or a Hub id or folder together with the file's name "
                "in gguf_file"
            )
        return path.resolve()
    from transformers.utils import cached_file

    try:
        found = cached_file(*repository, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"model {name!r} cannot be read: {reason_of(error)}") from error
    return Path(str(found)).absolute()  # not resolved: the cache's links lead to files without suffix


def commit(path: Path) -> str | None:
    """The commit of a file in the Hub's cache; None for other files."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def neutral_folder() -> str:
    """A folder without model files, for transformers arguments that must be a folder. (The folder of a GGUF file may
    hold the config and tokenizer of another model.)"""
    return str(files("llm2slm") / "builtin")
