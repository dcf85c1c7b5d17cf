"""The recorded command line: a shell reads it as the same arguments, and it is one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llm2slm.redaction import redact_text
from llm2slm.typed_command import command

ARGUMENTS = [
    "train", "task.prefix=a b", "run=it's", 'data.source="x"', "task.template=[a]\nb\\", "logger.tags=[a,b]", "$HOME",
    "q=\u00e9\u4e00", "t=\t'\u00e9'", "",
]  # fmt: skip


def test_bash_reads_the_same_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["entry", *ARGUMENTS])
    line = command()
    assert "\n" not in line and line.startswith("llm2slm train 'task.prefix=a b' ")
    show = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    script = f'llm2slm() {{ "{show[0]}" -c "{show[2]}" "$@"; }}; {line}'
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == ARGUMENTS


def test_secrets_are_replaced_before_they_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "it's a secret")
    monkeypatch.setattr(sys, "argv", ["entry", "judge", "a=it's a secret", "b.api_key=x$y"])
    assert command(redact_text) == "llm2slm judge 'a=[redacted]' 'b.api_key=[redacted]'"
