"""Data-parallel commands: two processes write the files of one, one can resume them, and they stop together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import ROOT, python
from safetensors.torch import load_file
from sampling import representatives
from tiny_runs import SIZES, write_rows

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.cli.stored import with_stored
from llm2slm.config import RunConfig, TrainerConfig
from llm2slm.processes import Processes
from llm2slm.training.launch import check_parallel, in_processes, several
from llm2slm.types import UserError

TWO = ["trainer.devices=2", "trainer.strategy=ddp"]
DATA = ["data.train_size=21", "data.validation_size=6", "data.test_size=9", "trainer.accelerator=cpu",
        "trainer.progress=false"]  # fmt: skip
ANSWERS = [*DATA, "data.eval_batch_size=2", "task.max_new_tokens=5"]


def two(verb: str, *overrides: str, ok: int = 0) -> subprocess.CompletedProcess[str]:
    done = python("-m", "llm2slm", verb, *overrides, *TWO, OMP_NUM_THREADS="1")
    assert done.returncode == ok, done.stderr
    return done


# Division of the items


SHARES = """
import os, sys
from torch import distributed
from llm2slm.processes import Processes
from llm2slm.types import UserError
rank, port, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
group = Processes(rank, 3)

def mine():
    for i in range(11)[rank::3]:
        if kind == "fails" and i == 7:
            raise ValueError("seven\\nand more") if rank == 1 else None
        if kind == "dies" and i == 7:
            os._exit(9)
        yield i * i

assert group.from_first("first" if rank == 0 else "other") == "first"
try:
    print(list(group.in_order(mine(), 11)))
except (UserError, ValueError) as error:
    print(type(error).__name__, error)
"""


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("kind", representatives(["whole", "fails", "dies"], ["whole"]))
def test_items_are_in_the_order_of_one_process(kind: str) -> None:
    port = str(free_port())
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SHARES, str(rank), port, kind], env=env, stdout=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    said = [each.communicate()[0].splitlines() for each in started]
    if kind == "whole":
        assert said == [[str([i * i for i in range(11)])], ["[]"], ["[]"]]
    elif kind == "fails":
        assert said[0] == ["UserError process 1 of 3 has failed: ValueError: seven"]
        assert said[1] == ["ValueError seven", "and more"]
    else:
        assert said[0][0].startswith("UserError the connection of the processes is lost")


def test_one_process_needs_no_process_group() -> None:
    assert in_processes(TrainerConfig(), lambda group: group) == Processes(0, 1)
    assert [*Processes().in_order(iter("abc"), 3)] == ["a", "b", "c"]
    assert Processes().from_first(4) == 4


@pytest.mark.parametrize(("devices", "nodes", "found"), [(1, 1, False), ("0,", 1, False), (2, 1, True), (-1, 1, True),
                                                         ("auto", 1, True), (1, 2, True)])  # fmt: skip
def test_several_processes_are_detected_by_devices_and_nodes(devices: int | str, nodes: int, found: bool) -> None:
    assert several(TrainerConfig(devices=devices, num_nodes=nodes)) == found


def test_a_strategy_of_training_is_refused_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^trainer.strategy=fsdp: is for train only; use trainer.strategy=ddp"):
        check_parallel(TrainerConfig(devices=2, strategy="fsdp"))
    for verb in ("label", "encode"):
        assert main([verb, "trainer.devices=2", "trainer.strategy=fsdp", "trainer.accelerator=cpu"]) == 2
        assert "trainer.strategy=fsdp: is for train only" in capsys.readouterr().err


def test_the_number_of_processes_of_a_training_is_not_used_by_other_commands(tmp_path: Path) -> None:
    """`evaluate run=RUN` of a run trained on eight GPUs uses one; a resumed training uses the recorded number."""
    recorded = RunConfig()
    recorded.trainer.devices, recorded.trainer.num_nodes, recorded.trainer.strategy = 4, 2, "fsdp"
    runs.write_config(tmp_path, recorded)
    config = RunConfig(run=str(tmp_path))
    config.trainer.devices = 3

    def found(verb: str, *overrides: str) -> tuple[object, ...]:
        trainer = with_stored(verb, config, list(overrides)).trainer
        return trainer.devices, trainer.num_nodes, trainer.strategy

    assert found("evaluate") == found("label") == (3, 1, "auto")
    assert found("train") == (4, 2, "fsdp")
    assert found("train", "trainer.devices=3") == (3, 2, "fsdp")


# The commands


def plain_result(folder: Path) -> dict[str, object]:
    """result.json without clock, command and devices."""
    found = json.loads((folder / "result.json").read_text())
    (system,) = found["systems"]
    system["notes"].pop("generation", None)  # a time, recorded with one process only
    for counts in system["notes"]["data"].values():
        del counts["seconds"]
    return {k: v for k, v in found.items() if k not in ("created", "command", "wall_seconds", "config_hash")}


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [True, False])
def test_labels_of_two_processes_equal_those_of_one(tmp_path: Path, tiny_llm: Path, sampled: bool) -> None:
    words = [f"model.llm.name={tiny_llm}", *ANSWERS, f"label.do_sample={str(sampled).lower()}"]
    assert main(["label", *words, f"hydra.run.dir={tmp_path / 'one'}"]) == 0
    done = two("label", *words, f"hydra.run.dir={tmp_path / 'two'}")
    assert done.stdout.count("result.json") == 1, "the second process prints nothing"
    assert {p.name for p in (tmp_path / "two").iterdir()} == {"labels.jsonl", "config.yaml", "result.json"}
    assert (tmp_path / "two/labels.jsonl").read_bytes() == (tmp_path / "one/labels.jsonl").read_bytes()
    assert plain_result(tmp_path / "two") == plain_result(tmp_path / "one")


@pytest.mark.slow
def test_evaluation_by_two_processes_equals_that_of_one(tmp_path: Path, trained: Path) -> None:
    words = [f"run={trained}", *ANSWERS]
    assert main(["evaluate", *words, f"hydra.run.dir={tmp_path / 'one'}"]) == 0
    two("evaluate", *words, f"hydra.run.dir={tmp_path / 'two'}")
    for name in ("predictions.jsonl",):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert plain_result(tmp_path / "two") == plain_result(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_store_of_two_processes_equals_that_of_one(tmp_path: Path, tiny_llm: Path, streaming: bool) -> None:
    words = [f"model.llm.name={tiny_llm}", *DATA, "encode.batch_tokens=64"]
    if streaming:
        write_rows(tmp_path / "rows")
        words = [word for word in words if not word.startswith("data.")]
        words += ["data=json", "data.source=source", "data.target=target", "task=instruction", "data.overlong=drop"]
        words += [f"data.{split}={tmp_path}/rows/{split}.jsonl" for split in SIZES]
        words += ["data.streaming=true", "data.buffer=8"]
    assert main(["encode", *words, f"hydra.run.dir={tmp_path / 'one'}"]) == 0
    two("encode", *words, f"hydra.run.dir={tmp_path / 'two'}")
    stores = [{p.name: p.read_bytes() for p in (tmp_path / name / "reps").iterdir()} for name in ("one", "two")]
    assert stores[0] == stores[1] and len(stores[0]) >= 3
    shard = load_file(next((tmp_path / "two/reps").glob("shard-*")))
    assert all(torch.isfinite(t).all() for t in shard.values() if t.is_floating_point())


@pytest.mark.slow
def test_two_processes_are_stopped_together_and_one_resumes(tmp_path: Path, tiny_llm: Path) -> None:
    """SIGTERM reaches the first process only; its output is the beginning of the same file."""
    words = [f"model.llm.name={tiny_llm}", *ANSWERS, "data.train_size=400", "data.eval_batch_size=4"]
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "llm2slm", "label", *words, *TWO, f"hydra.run.dir={folder}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    partial = folder / "labels.jsonl.part"
    while not partial.is_file() or partial.read_bytes().count(b"\n") < 9:
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.05)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    assert children
    started.send_signal(signal.SIGTERM)
    said = started.communicate()[1]
    assert started.returncode == 143 and "Traceback" not in said, said
    assert f"run the same command with hydra.run.dir={folder} to continue" in said
    for child in children:
        assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1]
    done = partial.read_bytes().count(b"\n") - 1
    assert 8 <= done < 400 and done % 4 == 0
    assert main(["label", *words, f"hydra.run.dir={folder}"]) == 0
    assert main(["label", *words, f"hydra.run.dir={tmp_path / 'one'}"]) == 0
    assert (folder / "labels.jsonl").read_bytes() == (tmp_path / "one/labels.jsonl").read_bytes()
