"""The environment of every test, independent of the user's: variables that change the behaviour of this project or of a
library are removed, those that all tests need are set."""

from __future__ import annotations

from collections.abc import Mapping

KEPT = ("LLM2SLM_SHARED_DATA", "LLM2SLM_MATRIX", "LLM2SLM_GOLDEN")
"""Options of the tests: the folder of the real corpora, and the extent of the tests."""
PREFIXES = (
    "ACCELERATE_", "CLICOLOR", "DATASETS_", "FSDP_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "HYDRA_", "JUPYTER_",
    "LC_", "LIGHTNING_", "LLM2SLM_", "MLFLOW_", "OPENAI_", "PEFT_", "PL_", "PYTORCH_", "SACREBLEU", "SLURM_",
    "TOKENIZERS_", "TORCH", "TQDM_", "TRANSFORMERS_", "TTY_", "WANDB_", "XDG_",
)  # fmt: skip
NAMES = (
    "COLUMNS", "FORCE_COLOR", "GLOBAL_RANK", "GROUP_RANK", "LANG", "LANGUAGE", "LINES", "LOCAL_RANK",
    "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "NO_COLOR", "PYTHONIOENCODING", "PYTHONOPTIMIZE",
    "PYTHONUTF8", "PYTHONWARNINGS", "PY_COLORS", "RANK", "TERM", "WORLD_SIZE",
)  # fmt: skip
"""Removed variables. The GPU (CUDA_VISIBLE_DEVICES) and the number of threads remain the user's choice."""
ADDRESSES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
"""Removed too, in upper or lower case: the tests' servers are on this machine."""


def own_environment(given: Mapping[str, str], folder: str) -> dict[str, str]:
    """The environment of the tests.

    Args:
        given: the user's environment.
        folder: a new folder, for the caches of the tests.
    """
    kept = {
        name: value
        for name, value in given.items()
        if name in KEPT or not (name.startswith(PREFIXES) or name in NAMES or name.upper() in ADDRESSES)
    }
    return kept | {
        "COLUMNS": "80",
        "HF_DATASETS_CACHE": folder,
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": f"{folder}/hub",
        "HF_HUB_OFFLINE": "1",
        "LC_ALL": "C.UTF-8",
        "LLM2SLM_CACHE": f"{folder}/tokens",
        "NETRC": f"{folder}/netrc",
        "TERM": "dumb",
        "TOKENIZERS_PARALLELISM": "false",
    }
