"""Peak memory of a system on a CPU: a fresh process loads it, generates once, and reports its peak.

In the process of the benchmark all systems are loaded, so their peaks cannot be separated. The reported figure is the
peak of loading the folder and generating once, minus the peak after importing torch, transformers and this package:
weights, temporary copies made by loading, cache and activations.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm.config import DataConfig, LLMConfig
from llm2slm.evaluation.benchmark.timing import Memory
from llm2slm.runs import plain
from llm2slm.types import Init, UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


def peak_memory_mb(
    folder: str | Path | LLMConfig,
    llm: str | None,
    prompts: Sequence[str],
    response_tokens: int,
    threads: int | None = None,
    *,
    limits: dict[str, Any] | None = None,
) -> float:
    """Peak resident memory, in megabytes (1e6 bytes), of loading a system and generating for one batch.

    Args:
        folder: what `LLM2SLM.from_pretrained` reads; or the configuration of an LLM that generates alone.
        llm: folder or id of a hybrid's LLM, if it has moved.
        prompts: one batch.
        response_tokens: tokens generated for every row.
        threads: CPU threads; None: torch's own choice.
        limits: on lengths, as `LLM2SLMConfig.limits`; None: the saved ones.

    Raises:
        UserError: the process failed; the message holds the last line of its stderr.
    """
    request = {
        "folder": plain(folder) if isinstance(folder, LLMConfig) else str(folder),
        "llm": llm,
        "prompts": list(prompts),
        "response_tokens": response_tokens,
        "threads": threads,
        "limits": limits,
    }
    package_home = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, [package_home, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "llm2slm.evaluation.benchmark.peak_memory"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
    if done.returncode:
        why = f"its peak memory could not be measured ({lines[-1]})"
        named = folder.name if isinstance(folder, LLMConfig) else folder
        raise UserError(f"{named}: {why}; benchmark.memory=false skips it")
    return float(json.loads(lines[-1])["peak_mb"])


def folder_memory(
    folders: Mapping[str, str | Path | LLMConfig],
    llms: Mapping[str, str | None] | None = None,
    threads: int | None = None,
    limits: dict[str, Any] | None = None,
) -> Memory:
    """The `memory` argument of `time_systems`: peak memory of the systems that have a folder, None for the others.

    The arguments are those of `peak_memory_mb`, by system.
    """

    def memory(name: str, prompts: Sequence[str], response_tokens: int) -> float | None:
        if name not in folders:
            return None
        llm = (llms or {}).get(name)
        return peak_memory_mb(folders[name], llm, prompts, response_tokens, threads, limits=limits)

    return memory


def peak_resident_mb() -> float:
    """Peak resident memory of this process so far, in megabytes.

    On Linux VmHWM instead of ru_maxrss: the latter survives exec, so a child would start at its parent's peak.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource  # Windows has none; the other parts of a benchmark run there with benchmark.memory=false

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _load(source: str | dict[str, Any], llm: str | None, limits: dict[str, Any] | None) -> LLM2SLM:
    """Loads the system of a request."""
    from llm2slm.models.build import build_llm
    from llm2slm.models.hybrid import LLM2SLM
    from llm2slm.models.processing import attach_processor

    model: LLM2SLM
    if isinstance(source, dict):
        config = LLMConfig(**source | {"init": source["init"] and Init(source["init"])})
        data = DataConfig() if limits is None else DataConfig(max_response_tokens=limits["max_response_tokens"])
        model = build_llm(config, data)
    else:
        model = LLM2SLM.from_pretrained(source, llm=llm)
    if limits is not None:
        model.config.limits = limits
        attach_processor(model, model.collator.slm_tokenizer, model.collator.llm_tokenizer)
    model.eval()
    return model


def _measure() -> None:
    """The child process: request on standard input, {"peak_mb": ...} as the last line of standard output."""
    request = json.load(sys.stdin)
    import torch

    import llm2slm.models.build as _  # noqa: F401  imported before the first reading, so that it does not count

    if request["threads"] is not None:
        torch.set_num_threads(request["threads"])
    before = peak_resident_mb()
    model = _load(request["folder"], request["llm"], request["limits"])
    batch = model.collator.batch_of_texts(request["prompts"])
    with torch.inference_mode():
        tokens = request["response_tokens"]
        model.generate(batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, num_beams=1)
    print(json.dumps({"peak_mb": peak_resident_mb() - before}))


if __name__ == "__main__":
    _measure()
