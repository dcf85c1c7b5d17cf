"""The folder of the YAML files: within an installed package, or next to the package in a checkout."""

from __future__ import annotations

from pathlib import Path

from llm2slm.types import UserError


def conf_folder() -> Path:
    """The folder of the YAML files.

    Raises:
        UserError: neither folder exists.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"{package}: no conf/ folder in the package or next to it; install llm-to-slm again")
