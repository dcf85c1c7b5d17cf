"""Models on the Hub: pushed, loaded at a commit, recorded with it in a saved hybrid, and loaded without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from command_line import ROOT, python, tiny_overrides
from hub import LocalHub
from transformers import AutoTokenizer, T5ForConditionalGeneration

from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_model_config, tiny_rows, write_tiny, write_tiny_t5
from llm2slm.types import Tokenizers

TEXTS = [row["source"] for row in tiny_rows()]


@pytest.fixture
def server() -> Iterator[LocalHub]:
    """An empty Hub. The client must not send requests that it does not implement."""
    with LocalHub() as hub:
        yield hub
    assert hub.unknown == []


def child(code: str, *arguments: object, **environment: str) -> str:
    """Standard output of a program; the Hub's address is read when its client is imported."""
    done = python("-c", code, *map(str, arguments), **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


PLAIN = """
import sys, torch
from huggingface_hub import HfApi
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5ForConditionalGeneration
old, new, out, text = sys.argv[1:]
def push(folder):
    AutoTokenizer.from_pretrained(folder).push_to_hub("me/tiny")
    return T5ForConditionalGeneration.from_pretrained(folder).push_to_hub("me/tiny").oid
def load(revision):
    return AutoModelForSeq2SeqLM.from_pretrained("me/tiny", revision=revision).state_dict()
commit = push(old)
found = {"commit": commit, "pushed": load(None), "tokens": AutoTokenizer.from_pretrained("me/tiny")(text)["input_ids"]}
push(new)
found |= {"old": load(commit), "main": load("main")}
HfApi().upload_file(path_or_fileobj=bytes(6_000_000), path_in_repo="deep/in/it/large.bin", repo_id="me/tiny")
HfApi().delete_file("deep/in/it/large.bin", "me/tiny")
torch.save(found, out)
"""


@pytest.mark.slow
def test_transformers_pushes_and_loads(server, tmp_path) -> None:
    old, new = (write_tiny("t5", tmp_path / name, seed) for seed, name in enumerate(("old", "new"), 1))
    child(PLAIN, old, new, tmp_path / "found.pt", TEXTS[0], **server.environment(tmp_path / "home"))
    found = torch.load(tmp_path / "found.pt")
    weights = {folder: T5ForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (old, new)}
    assert not torch.equal(weights[old]["shared.weight"], weights[new]["shared.weight"])
    for name, folder in {"pushed": old, "old": old, "main": new}.items():
        torch.testing.assert_close(found[name], weights[folder], rtol=0, atol=0)
    assert found["tokens"] == AutoTokenizer.from_pretrained(old)(TEXTS[0])["input_ids"]

    repo = server.repos["me/tiny"]
    done = [
        "initial commit",
        "Upload tokenizer",
        "Upload T5ForConditionalGeneration",
        "Upload T5ForConditionalGeneration",
    ]
    assert [commit.message for commit in repo.commits][:4] == done  # the tokenizers are identical: one commit
    assert repo.commits[2].id == found["commit"]
    assert repo.commits[-2].files["deep/in/it/large.bin"] == bytes(6_000_000)
    own = {path.name: path.read_bytes() for path in new.iterdir()}
    files = repo.files()
    assert files.keys() == own.keys() | {".gitattributes", "README.md"}
    assert {name: files[name] for name in ("model.safetensors", "tokenizer.json")}.items() <= own.items()


OURS = """
import json, sys, torch
from llm2slm.config import LLMConfig, ModelConfig, ProjectorConfig, SLMConfig
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import Start, Tokenizers, UserError
folder, *steps = sys.argv[1:]
def build():
    torch.manual_seed(3)
    parts = {"llm": LLMConfig(name="me/llm"), "slm": SLMConfig(name="me/slm")}
    parts["projector"] = ProjectorConfig(start=Start.random)
    return build_model(ModelConfig(**parts, tokenizers=Tokenizers.offsets))
found = {}
if "build" in steps:
    model = build()
    model.save_pretrained(folder)
    found["built"] = model.generate_text(TEXTS, max_new_tokens=8, min_new_tokens=8)
if "load" in steps:
    model = LLM2SLM.from_pretrained(folder)
    found["loaded"] = model.generate_text(TEXTS, max_new_tokens=8, min_new_tokens=8)
if "others" in steps:
    try:
        LLM2SLM.from_pretrained(folder, llm="me/other")
    except UserError as error:
        found["refused"] = str(error)
    found["record"] = build().config.llm
print(json.dumps(found))
""".replace("TEXTS", repr(TEXTS))


@pytest.mark.slow
def test_a_hybrid_keeps_the_commit_of_its_llm(server, tmp_path) -> None:
    """On a machine without downloads, after main has moved on; and then without a network."""
    cfg = tiny_model_config(tmp_path / "zoo", tokenizers=Tokenizers.offsets)
    server.publish("me/slm", Path(cfg.slm.name))
    commit = server.publish("me/llm", Path(cfg.llm.name))
    saved, here, there = tmp_path / "saved", *(server.environment(tmp_path / name) for name in ("here", "there"))
    built = json.loads(child(OURS, saved, "build", **here))["built"]
    assert len(set(built)) == len(TEXTS)
    record = json.loads((saved / "config.json").read_text("utf-8"))["llm"]
    assert (record["name"], record["revision"]) == ("me/llm", commit)

    other = write_tiny_t5(tmp_path / "other", seed=9, width=24)
    server.publish("me/other", other)
    changed = server.publish("me/llm", other)
    found = json.loads(child(OURS, saved, "load", "others", **there))
    assert found["loaded"] == built
    assert found["refused"].startswith(f"{saved}: the LLM at me/other is not the one it was trained with")
    assert found["record"]["revision"] == changed
    assert found["record"]["fingerprint"] != record["fingerprint"]

    server.stop()
    assert json.loads(child(OURS, saved, "load", "others", **there | {"HF_HUB_OFFLINE": "1"})) == found


@pytest.mark.slow
def test_a_missing_llm_is_reported_on_one_line(server, tmp_path) -> None:
    environment = server.environment(tmp_path / "home")
    done = python("-m", "llm2slm", "train", *tiny_overrides("me/none"), cwd=tmp_path, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("llm2slm: error: ")
    assert "me/none" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "GET /api/models/me/none" in server.requests


PUSHED = """
import json, sys
from transformers import AutoModelForSeq2SeqLM, AutoProcessor
from llm2slm import LLM2SLM
length = {"max_new_tokens": 8, "min_new_tokens": 8}
model, processor = (auto.from_pretrained("me/whole") for auto in (AutoModelForSeq2SeqLM, AutoProcessor))
found = {"text": processor.batch_decode(model.generate(**processor(TEXTS), **length))}
found["commit"] = model.push_to_hub("me/again", with_llm=True, revision="dev", commit_message="once more")
again = LLM2SLM.from_pretrained("me/again", revision="dev")
found["again"] = again.generate_text(TEXTS, **length)
print(json.dumps(found))
""".replace("TEXTS", repr(TEXTS))


EXPORTS = """
import json, sys
from llm2slm.cli import main
for line in sys.stdin:
    code = main(["export", *json.loads(line)])
    print(f"exit code {code}", flush=True)
    print(f"exit code {code}", file=sys.stderr, flush=True)
"""


@pytest.fixture
def export(server, tmp_path) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs `export` with the arguments in a process of one machine; returns its exit code and its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **server.environment(tmp_path / "here")}
    command, pipe = [sys.executable, "-c", EXPORTS], subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def run(*arguments: str) -> tuple[int, str, str]:
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
        shown = []
        for stream in (process.stdout, process.stderr):
            lines: list[str] = []
            while not (line := stream.readline()).startswith("exit code "):
                assert line, "the process ended"
                lines.append(line)
            shown.append("".join(lines))
        return int(line.split()[-1]), *shown

    yield run
    process.stdin.close()
    assert process.wait() == 0


def test_an_exported_hybrid_is_pushed_and_used_elsewhere(server, tmp_path, trained, export) -> None:
    there = server.environment(tmp_path / "there")
    arguments = [f"run={trained}", "with_llm=true", "license=mit"]
    code, out, err = export(*arguments, f"out={tmp_path / 'out'}", "push=me/whole", "private=true", "name=Whole")
    assert code == 0, err
    repo = server.repos["me/whole"]
    assert repo.private and repo.commits[-1].id in out
    own = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert own.items() <= repo.files().items() and {"README.md", "llm/model.safetensors"} <= own.keys()
    assert b"license: mit" in own["README.md"] and b"# Whole\n" in own["README.md"]
    assert b"from_pretrained('me/whole')" in own["README.md"]

    expected = LLM2SLM.from_pretrained(trained / "model").generate_text(TEXTS, max_new_tokens=8, min_new_tokens=8)
    found = json.loads(child(PUSHED, **there))
    assert found["text"] == found["again"] == expected
    again = server.repos["me/again"]
    assert again.commits[-1].message == "once more" and again.commits[-1].id in found["commit"]
    assert again.files("dev")["README.md"] == own["README.md"]  # the card is pushed with the model
    assert again.files().keys() == {".gitattributes"}  # main is unchanged

    server.stop()
    code, _, err = export(*arguments, f"out={tmp_path / 'more'}", "push=me/more")
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("llm2slm: error: me/more: cannot be pushed to the Hub: ")
