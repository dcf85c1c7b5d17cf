"""Tests of SECURITY.md: no code from files, no credentials in files, and text that remains text."""

from __future__ import annotations

import ast
import csv
import io
import json

import pytest
from command_line import mistake
from package_sources import SOURCES

from llm2slm.cli import main
from llm2slm.credentials import credential_in
from llm2slm.data.reps.files import read_index
from llm2slm.evaluation.compare.rows import as_csv
from llm2slm.evaluation.report.page import clean
from llm2slm.shown_text import BIDI, cell, in_terminal, on_one_line, visible
from llm2slm.sweeps.table import write_table
from llm2slm.types import UserError

OVERRIDE = "\u202egnp.exe\u202c"
ESCAPE = "\x1b]0;title\x07\x1b[31mred"
TOKEN = "hf_" + "a1B2" * 9

UNSAFE = ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen")
FROM_AUTO = ("AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained")
"""transformers would prompt in the terminal whether to run the code of the repository."""
OWN_PIPE = "commands.side_by_side"
"""A process that the command itself starts reads its request from a pipe."""


def unsafe_calls(name: str, tree: ast.AST) -> list[str]:
    """Calls that run, or may run, code from a file."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        wrong = (
            (called in UNSAFE and not (called == "pickle.load" and name == OWN_PIPE))
            or (called == "torch.load" and given.get("weights_only") != "True")
            or (called.endswith((".extractall", ".extract")))
            or given.get("shell") == "True"
            or given.get("allow_pickle") == "True"
            or given.get("trust_remote_code", "False") != "False"
            or (called in FROM_AUTO and "trust_remote_code" not in given)
        )
        if wrong:
            found.append(f"{name}, line {node.lineno}: {called}")
    return found


def test_no_module_runs_code_from_files() -> None:
    assert [fault for source in SOURCES.values() for fault in unsafe_calls(source.name, source.tree())] == []


@pytest.mark.parametrize(
    "code",
    ["torch.load(a)", "torch.load(a, weights_only=False)", "pickle.load(a)", "yaml.load(a)", "eval(a)",
     "z.extractall(a)",
     "subprocess.run(a, shell=True)", "np.load(a, allow_pickle=True)", "AutoConfig.from_pretrained(a)",
     "AutoTokenizer.from_pretrained(a, trust_remote_code=True)"],
)  # fmt: skip
def test_the_check_finds_unsafe_calls(code: str) -> None:
    assert unsafe_calls("a", ast.parse(code))


# Text


@pytest.mark.parametrize("code", [0x00, 0x07, 0x08, 0x1B, 0x7F, 0x85, 0x9B, *BIDI, 0xD800])
def test_no_terminal_executes_a_visible_text(code: int) -> None:
    text = f"a{chr(code)}b"
    assert chr(code) not in visible(text) and chr(code) not in clean({"x": [text]})["x"][0]
    assert visible(text)[0] + visible(text)[-1] == "ab" and len(visible(text)) >= 3


def test_other_text_is_unchanged() -> None:
    for text in ("Füße, 犬, שלום, سلام, 👩‍👩‍👧", "two\nlines\tand a tab", "=1", ""):
        assert visible(text) == text
    assert visible("a\r\nb") == "a\nb" and on_one_line(" a\n b ") == "a b"


def test_control_characters_are_replaced_in_a_terminal_only(monkeypatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert in_terminal(ESCAPE) == ESCAPE  # a pipe gets the unchanged text
    monkeypatch.setattr("sys.stdout", Screen())
    assert in_terminal(ESCAPE) == "␛]0;title␇␛[31mred"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"), ("@SUM(1)", "'@SUM(1)"), ("+1+1", "'+1+1"), ("-a", "'-a"),
        ("\t=1", "'\t=1"), ("＝1", "'＝1"), ("-0.5", "-0.5"), ("+3", "+3"), (-0.5, "-0.5"), (3, "3"), ("a=b", "a=b"),
        (OVERRIDE, "⟨U+202E⟩gnp.exe⟨U+202C⟩"), ("", ""),
    ],
)  # fmt: skip
def test_cells_are_not_formulas(value, written) -> None:
    assert cell(value) == written


def test_tables_of_a_comparison_and_of_a_sweep_contain_no_formula(tmp_path) -> None:
    text = as_csv(["a", "b"], [{"a": "=1+1", "b": -0.25}, {"a": f"x{ESCAPE}\n{OVERRIDE}", "b": None}])
    assert list(csv.reader(io.StringIO(text))) == [
        ["a", "b"], ["'=1+1", "-0.25"], ["x␛]0;title␇␛[31mred\n⟨U+202E⟩gnp.exe⟨U+202C⟩", ""],
    ]  # fmt: skip
    write_table(tmp_path, [{"job": "0", "task.prefix": "=1+1", "bleu": -1.5, "error": "<script>|\x1b[2J"}])
    [row] = csv.DictReader(io.StringIO((tmp_path / "sweep.csv").read_text("utf-8")))
    assert row == {"job": "0", "task.prefix": "'=1+1", "bleu": "-1.5", "error": "<script>|␛[2J"}
    assert "&lt;script>\\|␛[2J" in (tmp_path / "sweep.md").read_text("utf-8")


def test_a_message_is_on_one_line_without_control_codes(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"trainer.profiler=a{ESCAPE}\nb{OVERRIDE}"]) == 2
    told = mistake(capsys)
    assert "␛]0;title␇" in told and "⟨U+202E⟩" in told and told.isprintable()


# Credentials


@pytest.mark.parametrize(
    ("verb", "override", "kind"),
    [
        ("train", f"data.path={TOKEN}", "a token of the Hugging Face Hub"),
        ("train", "data.path=https://me:secret@example.org/data", "a password in a URL"),
        ("train", f"+model.llm.config.a={TOKEN}", "a token of the Hugging Face Hub"),
        ("train", "logger.entity=fifteen-characters-of-a-key", "the value of $WANDB_API_KEY"),
        ("judge", "endpoint=https://example.org/v1?api_key=12345", "a key in a URL"),
        ("judge", "parameters={api_key: abc}", "a credential (api_key)"),
        ("judge", "parameters={extra: {Authorization: abc}}", "a credential (Authorization)"),
        ("judge", "instruction=sk-proj-abcdefghijklmnopqrstu", "an API key"),
    ],
)
def test_a_credential_in_the_configuration_is_refused(tmp_path, monkeypatch, capsys, verb, override, kind) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "fifteen-characters-of-a-key")
    assert main([verb, override]) == 2
    told = mistake(capsys)
    assert f": contains {kind}, which files would record" in told
    assert TOKEN not in told and "secret@" not in told and "12345" not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    ["http://localhost:8000/v1", "builtin/llm", "translate sk-1 to German: ", "a@b:c", {"max_tokens": 5}, ["hf_x"]],
)
def test_ordinary_values_contain_no_credentials(value) -> None:
    assert credential_in(value) is None


# Paths


def test_a_store_contains_names_of_files_in_its_folder_only(tmp_path) -> None:
    entry = {"file": "../other.safetensors", "prompts": 1, "tokens": 1, "bytes": 1, "sha256": ""}
    (tmp_path / "index.jsonl").write_text(json.dumps(entry) + "\n")
    with pytest.raises(UserError, match=r"line 1: names a file outside of the store \(\.\./other"):
        read_index(tmp_path)
