"""Shell completion in real shells: the text before the tab key becomes the argument of a command."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, mistake
from sampling import representatives

from llm2slm.cli import VERBS, main
from llm2slm.cli.completion import complete
from llm2slm.cli.reads import ADDED
from llm2slm.cli.schema import SCHEMAS, keys
from llm2slm.commands.costs import MEASURE
from llm2slm.config.choices import ACCELERATORS, DTYPES, FORMATS, LOGGER_MODES, MATMUL_PRECISIONS, OPTIMIZERS, SCHEDULES
from llm2slm.data.tasks import TASKS
from llm2slm.evaluation.benchmark.contestants import OF_LLMS
from llm2slm.evaluation.benchmark.roofline import DEVICES
from llm2slm.evaluation.metrics.scores import METRICS, of_texts
from llm2slm.tracking.artifacts import KINDS
from llm2slm.tracking.session import NAMES
from llm2slm.types import Decoding

READY, END = "ready> ", "the end of this test"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs and a file, and a program `llm2slm` first on PATH."""
    program = tmp_path / "bin" / "llm2slm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m llm2slm "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    home = tmp_path / "home"
    for name in ("run_one", "run_two", ".hidden"):
        (home / name).mkdir(parents=True)
    (home / "rows of mine.jsonl").write_text("")
    monkeypatch.chdir(home)
    return home


def typed(shell: list[str], setup: str, keys: str) -> str:
    """Types a line into an interactive shell: tabs complete it, and `echo` prints the resulting words."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(shell[0], shell, {**os.environ, "PS1": "$ ", "TERM": "dumb"})
    shown = b""

    def until(mark: str) -> None:
        nonlocal shown
        while mark.encode() not in shown:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the shell has ended
                return

    # after the prompt at the end of the setup the shell reads keys, not lines; quotes distinguish it from its echo
    os.write(terminal, f"{setup}; PS1='{READY[:3]}''{READY[3:]}'\n".encode())
    until(READY)
    os.write(terminal, f"{keys}\x01printf '<%s>' \x05\nprintf '%s\\n' '{END[:4]}''{END[4:]}'; exit\n".encode())
    until(END)
    os.close(terminal)
    os.waitpid(child, 0)
    words = re.findall(r"<llm2slm>(?:<[^>]*>)*", shown.decode(errors="replace"))
    assert words, shown.decode(errors="replace")
    return str(words[-1])


LINES = {
    "ben\t": "<benchmark>",
    "train model.tok\t": "<train><model.tokenizers=>",
    "train model.tokenizers=off\t": "<train><model.tokenizers=offsets>",
    "train model/llm=flan_t5_l\t trainer.prog\tf\t": "<train><model/llm=flan_t5_large><trainer.progress=false>",
    "evaluate run=run_t\t": "<evaluate><run=run_two/>",
    "compare run_o\t": "<compare><run_one/>",
    "train data=json data.train=ro\t": "<train><data=json><data.train=rows of mine.jsonl>",
    "train --conf\t": "<train><--config->",
}
"""Keys typed after `llm2slm `, and the words that the command receives."""


@pytest.mark.parametrize("keys", representatives(LINES, list(LINES)[:3]))
def test_bash_completes(place: Path, keys: str) -> None:
    found = typed(["bash", "--norc", "--noprofile", "-i"], 'eval "$(llm2slm -sc install=bash)"', f"llm2slm {keys}")
    assert found == f"<llm2slm>{LINES[keys]}"


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
@pytest.mark.parametrize(
    "keys", representatives([keys for keys in LINES if "rows of" not in LINES[keys]], list(LINES)[:1])
)
def test_zsh_completes(place: Path, keys: str) -> None:
    setup = f'bindkey -e; export HOME={place}; eval "$(llm2slm train -sc install=zsh)"'
    found = typed(["zsh", "-f", "-i"], setup, f"llm2slm {keys}")
    assert found == f"<llm2slm>{LINES[keys]}"


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes(place: Path) -> None:
    script = (
        'llm2slm -sc install=fish | source; complete -C "llm2slm train model/llm=flan_t5_l"; complete -C "llm2slm ben"'
    )
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["model/llm=flan_t5_large", "benchmark"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("before", [[], ["train"]])
def test_an_installed_completion_can_be_uninstalled(
    capsys: pytest.CaptureFixture[str], shell: str, before: list[str]
) -> None:
    for command in ("install", "uninstall"):
        assert main([*before, "-sc", f"{command}={shell}"]) == 0
        assert "llm2slm" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["install", "install=tcsh", "remove=bash", ""])
def test_an_invalid_shell_is_reported(capsys: pytest.CaptureFixture[str], given: str) -> None:
    assert main(["train", "--shell-completion", *given.split()]) == 2
    assert "give install=SHELL or uninstall=SHELL, with one of bash, zsh, fish" in mistake(capsys)


def offered(line: str) -> list[str]:
    *before, word = line.split(" ")
    return complete(before, word, list(VERBS))


def test_completions_of_verbs_keys_values_and_paths(place: Path) -> None:
    assert offered("") == [*(f"{verb} " for verb in VERBS), "--help ", "--version "]
    assert offered("trian x") == []
    assert {"model=", "model.", "model/llm=", "experiment=", "seed=", "hydra."} <= set(offered("train "))
    assert "experiment=" not in offered("generate ") and "prompt=" in offered("generate ")
    assert offered("train optim.l") == ["optim.label_smoothing=", "optim.lr="]
    assert offered("train -m model.conditioning=add,repl") == ["model.conditioning=add,replace "]
    assert offered("train +model/slm=gpt2") == [f"+model/slm={name} " for name in ("gpt2", "gpt2_medium", "gpt2_mini")]
    assert offered("train model.llm.chat=") == ["model.llm.chat=false ", "model.llm.chat=true "]
    assert offered("train hydra.run.dir=run_") == ["hydra.run.dir=run_one/", "hydra.run.dir=run_two/"]
    assert offered("evaluate run=.h") == ["run=.hidden/"]
    assert offered("train optim.schedule=") == [f"optim.schedule={name} " for name in ("cosine", "linear", "constant")]
    assert offered("train optim.schedule=l") == ["optim.schedule=linear "]
    assert offered("train -m optim.name=adamw,") == ["optim.name=adamw,adamw ", "optim.name=adamw,muon "]
    assert offered("train task.metrics=[bleu,chrf+") == ["task.metrics=[bleu,chrf++"]
    assert offered("train task.metrics=[token") == ["task.metrics=[token_f1"]
    assert offered("train seed=") == [] and offered("train nothing=") == []
    assert offered("train --mu") == ["--multirun "]
    (place / "own" / "data").mkdir(parents=True)
    (place / "own" / "data" / "mine.yaml").write_text("name: json\n")
    assert offered(f"train --config-dir {place / 'own'} data=mi") == ["data=mine ", "data=mixture "]
    assert offered("train --config-dir ow") == ["own/"]


def choices() -> dict[str, list[str]]:
    found = {name: key.choices for schema in SCHEMAS.values() for name, key in keys(schema).items()}
    return {name: listed for name, listed in found.items() if listed and not name.startswith("model.llm.")}


def test_the_choices_of_a_text_equal_those_of_the_code() -> None:
    attention = ["eager", "sdpa", "flash_attention_2"]
    decoders = [each.value for each in Decoding]
    assert choices() == {
        "model.slm.dtype": [*DTYPES],
        "model.slm.attn_implementation": attention,
        "model.conditioning": sorted(path.stem for path in (ROOT / "conf/model/conditioning").glob("*.yaml")),
        "model.slm.tune": ["full", "none", *ADDED],
        "data.corpus": ["translation", "summarization", "instruction", "mixture"],
        "task.name": [*TASKS],
        "task.metrics": of_texts(METRICS),
        "metrics": of_texts(METRICS),
        "optim.name": [*OPTIMIZERS],
        "optim.schedule": [*SCHEDULES],
        "trainer.accelerator": [*ACCELERATORS],
        "trainer.precision": ["32-true", "bf16-mixed", "16-mixed", "auto"],
        "trainer.matmul_precision": [*MATMUL_PRECISIONS],
        "trainer.profiler": ["simple", "advanced", "pytorch"],
        "logger.name": [*NAMES],
        "logger.mode": [*LOGGER_MODES],
        "logger.artifacts": [*KINDS],
        "mode": [*LOGGER_MODES],
        "callbacks.mode": ["min", "max"],
        "label.format": [*FORMATS],
        "split": ["train", "validation", "test"],
        "benchmark.decoders": [*decoders, *OF_LLMS],
        "calibrate.metric": of_texts(METRICS),
        "device": [*DEVICES, MEASURE],
        "dtype": [*DTYPES],
        "attn_implementation": attention,
    }


def test_completion_loads_no_heavy_library() -> None:
    code = (
        "import sys; from llm2slm.cli import main\n"
        "assert main(['-sc', 'query=bash']) == 0\n"
        "print([name for name in ('torch', 'transformers', 'lightning', 'hydra', 'omegaconf') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COMP_LINE": "llm2slm train model.conditioning=", "COMP_POINT": "33"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines()[-1] == "[]"
