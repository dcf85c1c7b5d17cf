"""Tests do not depend on the user's environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import ROOT, python
from own_environment import own_environment

HOSTILE = {
    "WANDB_MODE": "disabled", "WANDB_DIR": "/nowhere", "HF_HOME": "/nowhere", "HF_TOKEN": "secret", "LANG": "C",
    "LC_ALL": "C", "COLUMNS": "40", "NO_COLOR": "1", "FORCE_COLOR": "1", "HYDRA_FULL_ERROR": "1", "RANK": "1",
    "LOCAL_RANK": "1", "WORLD_SIZE": "2", "SLURM_JOB_ID": "7", "LLM2SLM_CACHE": "/nowhere", "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error", "http_proxy": "http://nowhere:1", "PYTHONWARNINGS": "error", "TERM": "xterm",
}  # fmt: skip


def test_variables_that_change_the_behaviour_are_removed_and_the_others_remain() -> None:
    stays = {
        "PATH": "/bin",
        "LLM2SLM_MATRIX": "1",
        "LLM2SLM_SHARED_DATA": "/data",
        "CUDA_VISIBLE_DEVICES": "0",
        "N": "1",
    }
    own = own_environment({}, "/folder")
    assert own_environment(stays | HOSTILE, "/folder") == stays | own
    assert own["LLM2SLM_CACHE"].startswith("/folder") and own["HF_HOME"].startswith("/folder")


def test_this_process_has_the_clean_environment() -> None:
    folder = os.environ["HF_DATASETS_CACHE"]
    assert own_environment(os.environ, folder).items() <= os.environ.items()


@pytest.mark.parametrize("name", [*sorted(HOSTILE)])
def test_every_hostile_variable_is_replaced_or_removed(name: str) -> None:
    assert own_environment({name: "x"}, "/folder").get(name) != "x"


@pytest.mark.slow
def test_tests_pass_in_a_hostile_environment(tmp_path: Path) -> None:
    """One test for each of the variables that have made some fail."""
    chosen = ["tests/tracking/test_wandb.py::test_a_failed_run_is_closed_and_marked", "tests/test_environment.py"]
    done = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "closed or this_process",
        f"--basetemp={tmp_path / 'tests'}", *chosen, cwd=ROOT, **HOSTILE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(".. ")  # two tests
