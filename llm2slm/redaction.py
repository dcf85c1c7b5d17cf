"""Removes secrets (API keys, tokens, passwords) from what is logged or uploaded; `credentials` refuses them in
configurations."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from llm2slm.credentials import FORMS

HIDDEN = "[redacted]"
NAME = re.compile(r"(?:^|[_.-])(?:api_?key|(?:access|auth|bearer)?_?token|secret|password|passwd|authorization)$", re.I)
"""Names of keys and environment variables whose values are secrets. (`tokens` and `tokenizer` are none, nor is
`key_env`, the name of a variable.)"""
VARIABLE = re.compile(r"(?:_|^)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")
"""Names of further environment variables whose values are secrets."""
SHORTEST = 8
"""Shorter values of environment variables are not searched for: they occur in other words."""
ASSIGNMENT = re.compile(r"(?P<name>[\w.\"'-]+?)(?P<mark>[\"']?\s*[=:]\s*)(?P<value>[^\s,}\]]+)")


def redact_text(text: str) -> str:
    """As `redact_known`, and without values that are assigned to a secret name (`api_key=VALUE`, `api_key: VALUE`)."""
    return ASSIGNMENT.sub(_hide_assigned, redact_known(text))


def redact_known(text: str) -> str:
    """A text without the values of secret environment variables, keys of known services, and passwords in URLs."""
    for value in _secrets():
        text = text.replace(value, HIDDEN)
    for pattern in FORMS.values():
        text = pattern.sub(HIDDEN, text)
    return text


def redact(value: Any, name: str = "") -> Any:
    """Nested plain values with each secret replaced: values of secret names, and secrets within texts."""
    if isinstance(value, Mapping):
        return {key: redact(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, name) for inner in value]
    if isinstance(value, str):
        return HIDDEN if value and NAME.search(name) else redact_text(value)
    return value


def _secrets() -> list[str]:
    """The values of secret environment variables, the longest first."""
    found = {
        value.strip()
        for name, value in os.environ.items()
        if (NAME.search(name) or VARIABLE.search(name)) and len(value.strip()) >= SHORTEST
    }
    return sorted(found, key=len, reverse=True)


def _hide_assigned(found: re.Match[str]) -> str:
    secret = NAME.search(found["name"].strip("\"'")) and found["value"] not in ("null", "None", HIDDEN)
    return f"{found['name']}{found['mark']}{HIDDEN}" if secret else found[0]
