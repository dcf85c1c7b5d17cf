"""Credentials in texts: a configuration that contains one is refused, so that no file, log or report ever holds it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

FORMS = {
    "a token of the Hugging Face Hub": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an API key": re.compile(r"\b(sk-[A-Za-z0-9_-]{20,}|AIza[\w-]{35}|wandb_v\d_\w{20,}|xox[abprs]-[\w-]{20,})"),
    "an access key": re.compile(r"\b(AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,})"),
    "a password in a URL": re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),
    "a key in a URL": re.compile(r"(?i)[?&](api[_-]?key|access[_-]?token|token|key|password|secret)=[^&\s]+"),
    "an authorization header": re.compile(r"(?i)(?<=\bbearer )\S{8,}"),
}
"""Kind of credential -> its form."""
NAMES = re.compile(r"(api[_-]?key|access[_-]?token|auth[_-]?token|authorization|password|secret)$", re.IGNORECASE)
"""Names of entries that hold a credential."""
VARIABLES = re.compile(r"_(API_KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD)$")
"""Environment variables that hold one."""
LEAST = 12
"""Characters of the shortest value of a variable that is searched for: shorter ones occur by chance."""


def credential_in(value: Any, name: str = "") -> str | None:
    """The kind of credential in a text, or in nested mappings and lists; None: there is none.

    Args:
        name: of the entry that holds the value.
    """
    if isinstance(value, Mapping):
        found = (credential_in(inner, str(key)) for key, inner in value.items())
        return next((kind for kind in found if kind), None)
    if isinstance(value, list | tuple):
        return next((kind for inner in value if (kind := credential_in(inner, name))), None)
    if not isinstance(value, str) or not value:
        return None
    if NAMES.search(name):
        return f"a credential ({name})"
    for kind, form in FORMS.items():
        if form.search(value):
            return kind
    held = (key for key, secret in os.environ.items() if VARIABLES.search(key) and len(secret) >= LEAST)
    return next((f"the value of ${key}" for key in held if os.environ[key] in value), None)
