"""Full and read-only disks, for every verb that writes: one line, no partial files, and the same command completes.

The disk is a small tmpfs, which only root may mount; otherwise the tests are skipped (tests/commands/test_train_resume
limits the size of files instead).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import files_of, tiny_overrides
from sampling import representatives

from llm2slm.cli import main


class Disk:
    """A mounted file system of a given size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    found = Disk(folder)
    if os.geteuid() != 0 or not shutil.which("mount") or not found.mount("size=64m"):
        pytest.skip("only root can mount a file system of a chosen size")
    yield found
    subprocess.run(["umount", str(folder)], check=True)


ANSWERS = ["data.train_size=8", "data.validation_size=4", "data.test_size=4", "trainer.progress=false"]
CPU = "trainer.accelerator=cpu"


def commands(disk: Path, llm: Path, run: Path) -> dict[str, list[str]]:
    """A command of each verb; its output is on the disk."""
    out = disk / "out"
    return {
        "train": ["train", *tiny_overrides(llm), f"hydra.run.dir={out}"],
        "resume": ["train", f"run={disk / 'run'}", "trainer.max_steps=4"],
        "evaluate": ["evaluate", f"run={run}", CPU, "trainer.progress=false", f"hydra.run.dir={out}"],
        "label": ["label", f"model.llm.name={llm}", *ANSWERS, CPU, f"hydra.run.dir={out}"],
        "encode": ["encode", f"model.llm.name={llm}", *ANSWERS, CPU, f"hydra.run.dir={out}"],
        "benchmark": ["benchmark", f"run={run}", CPU, "benchmark.prompts=1", "benchmark.repeats=1",
                      "benchmark.warmup=0", "benchmark.response_tokens=[2]", "benchmark.memory=false",
                      f"hydra.run.dir={out}"],
        "generate": ["generate", f"run={run / 'model'}", f"input={run.parent / 'texts.txt'}",
                     f"output={out / 'answers.jsonl'}", "max_new_tokens=2"],
        "export": ["export", f"run={run}", f"out={out}"],
        "report": ["report", f"runs=[{run}]", f"out={out}"],
        "compare": ["compare", f"runs=[{run},{run.parent / 'other'}]", "resamples=100", f"out={out}"],
        "tokenizer": ["tokenizer", "data.train_size=50", "vocab_size=300", f"out={out}"],
    }  # fmt: skip


VERBS = list(commands(Path(), Path(), Path()))


@pytest.fixture(scope="module")
def inputs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run, another one with its predictions, and texts."""
    root = tmp_path_factory.mktemp("inputs")
    shutil.copytree(trained, root / "run")
    shutil.copytree(trained, root / "other")
    (root / "texts.txt").write_text("a dog\nthe house\n" * 200)
    return root


def prepared(verb: str, disk: Disk, tiny_llm: Path, inputs: Path) -> list[str]:
    if verb == "resume":
        shutil.copytree(inputs / "run", disk.folder / "run")
    return commands(disk.folder, tiny_llm, inputs / "run")[verb]


def failed(words: list[str], capsys: pytest.CaptureFixture[str], *reasons: str) -> None:
    """Runs a command that must end with one line that names a path on the disk."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("llm2slm: error: ") and "/disk" in last, last
    assert any(reason in last for reason in reasons), last


def no_partial_files(folder: Path) -> None:
    """No partial file under the name of a complete one, and no stage folder."""
    assert not [p for p in folder.rglob("*") if p.name.startswith(".") and p.name.endswith((".part", ".lock"))]


@pytest.mark.parametrize("verb", representatives(VERBS, ["resume", "label"]))
@pytest.mark.parametrize("free", representatives([0, 12, 60], [12]))
def test_a_full_disk_is_reported_on_one_line_and_the_same_command_completes(disk, tiny_llm, inputs, capsys, verb, free):
    """`free`: KiB."""
    words = prepared(verb, disk, tiny_llm, inputs)
    used = shutil.disk_usage(disk.folder).used
    before = files_of(disk.folder)
    filler = disk.folder / "filler"
    disk.remount(f"size={(used + 4095) // 4096 * 4 + 512}k")
    filler.write_bytes(b"0" * max(0, shutil.disk_usage(disk.folder).free - free * 1024))
    capsys.readouterr()
    code = main(words)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if code:  # a small output may fit
        assert code == 2
        last = said.splitlines()[-1]
        assert last.startswith("llm2slm: error: ") and "/disk" in last, last
        assert "space" in last or "free on this disk" in last, last
    else:
        assert free, f"{verb} writes nothing"
    no_partial_files(disk.folder)
    if verb == "resume":
        kept = files_of(disk.folder)
        assert all(kept[name] == content for name, content in before.items() if name.endswith("best.ckpt"))
    filler.unlink()
    disk.remount("size=64m")
    begun = verb == "train" and (disk.folder / "out" / "config.yaml").is_file()
    assert main(["train", f"run={disk.folder / 'out'}"] if begun else words) == 0


@pytest.mark.parametrize("verb", representatives(VERBS, ["label", "generate"]))
def test_a_read_only_disk_is_reported_on_one_line(disk, tiny_llm, inputs, capsys, verb):
    words = prepared(verb, disk, tiny_llm, inputs)
    before = files_of(disk.folder)
    disk.remount("ro")
    failed(words, capsys, "ead-only", "no permission to write")
    assert files_of(disk.folder) == before
    disk.remount("rw")
    assert main(words) == 0


@pytest.mark.slow
def test_a_complete_run_on_a_read_only_disk_is_shown(disk, inputs, capsys):
    shutil.copytree(inputs / "run", disk.folder / "run")
    disk.remount("ro")
    assert main(["train", f"run={disk.folder / 'run'}"]) == 0
    assert "nothing is missing" in capsys.readouterr().err
    disk.remount("rw")
