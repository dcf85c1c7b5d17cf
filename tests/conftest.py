"""Fixtures of the whole suite: no network, one thread, and the folder of the real corpora."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder that holds the real corpora (multi30k/, samsum/, ...); the test is skipped where it is absent."""
    checkout = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("LLM2SLM_SHARED_DATA", checkout.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no corpora at {folder}; set LLM2SLM_SHARED_DATA")
    return folder
