"""How a GGUF file is named, and found: a path of this machine, or OWNER/REPOSITORY/FILE.gguf on the Hub."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from llm2slm.types import UserError, reason_of

SUFFIX = ".gguf"


def is_gguf(name: str | None) -> bool:
    """Whether a model's name is that of a GGUF file: on this machine, or in a repository of the Hub."""
    return name is not None and name.lower().endswith(SUFFIX)


def on_hub(name: str) -> tuple[str, str] | None:
    """Repository and file of OWNER/REPOSITORY/FILE.gguf; None where the name is that of a file here, or can only be."""
    parts = name.split("/")
    local = name.startswith((".", "/", "~")) or Path(name).is_file() or Path(name).parent.is_dir()
    return None if local or len(parts) < 3 else ("/".join(parts[:2]), "/".join(parts[2:]))


def find(name: str, revision: str | None = None) -> Path:
    """The absolute path of a GGUF file; one of the Hub is downloaded if it is not in the cache.

    Raises:
        UserError: no such file.
    """
    repository = on_hub(name)
    if repository is None:
        try:
            path = Path(name).expanduser()
        except RuntimeError:  # ~someone that this machine does not know
            path = Path(name)
        if not path.is_file():
            raise UserError(
                f"model {name!r}: no such file; give a GGUF file, or beside a Hub id or a folder the file's name by "
                "gguf_file"
            )
        return path.resolve()
    from transformers.utils import cached_file

    try:
        found = cached_file(*repository, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"model {name!r} cannot be read: {reason_of(error)}") from error
    return Path(str(found)).absolute()  # not resolved: the cache links from a commit's folder to a file without suffix


def commit(path: Path) -> str | None:
    """The commit that a file in the Hub's cache is of."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def neutral_folder() -> str:
    """A folder without any file of a model, for arguments of transformers that must be a folder: beside a GGUF file may
    lie config and tokenizer of another model."""
    return str(files("llm2slm") / "builtin")
