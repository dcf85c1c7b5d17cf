"""`decoding=auto`: the fastest exact decoder of a system on this machine, measured once and remembered in a file.

Measured is one response of `TOKENS` tokens to one prompt, in rounds of one response by each decoder. Compiled steps and
int8 do not take part: compiling takes longer than many responses, and int8 changes responses.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import transformers

from llm2slm import atomic, runs
from llm2slm.data.token_cache import VARIABLE
from llm2slm.decoding.decoder import Decoder

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

PROMPT = "The committee will decide on Thursday whether the old bridge across the river is to be repaired or replaced."
TOKENS = 24
WARM_UPS = 2
"""Responses of each decoder before those that are timed; within them steps are captured."""
ROUNDS = 5
FILE = "decoding.json"
ENGINE = 2
"""Version of the decoders' speed: raised with a change after which older times do not hold (2: products by oneDNN)."""


def choices_file() -> Path:
    """The file of the choices: in $LLM2SLM_CACHE, else in the folder llm2slm of $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder).expanduser() / FILE
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = caches if caches.is_absolute() else Path.home() / ".cache"  # the variable excludes relative paths
    return home / "llm2slm" / FILE


def fastest(
    model: LLM2SLM,
    decoders: Mapping[str, Decoder],
    clock: Callable[[], float] = time.perf_counter,
    num_beams: int = 1,
) -> tuple[str, str]:
    """The name of the fastest decoder, and a line that states it with the times and how to repeat the measurement.

    Args:
        decoders: by name, with equal responses; of equally fast ones the first is chosen.
        clock: seconds.
        num_beams: of the responses.
    """
    path, system = choices_file(), described(model, decoders, num_beams)
    key = hashlib.sha256(json.dumps(system, sort_keys=True).encode()).hexdigest()[:16]
    entries = _read(path)
    ms = _times(entries.get(key), decoders)
    measured = "measured earlier"
    if ms is None:
        ms, measured = measure(decoders, clock, num_beams), "measured now"
        entries[key] = {"ms": ms, "system": system}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(path, json.dumps(entries, indent=1) + "\n")
        except (OSError, atomic.NotWritten) as error:
            measured = f"not remembered: {error}"
    name = min(ms, key=lambda each: ms[each])
    times = ", ".join(f"{each} {ms[each]:.0f}" for each in ms)
    tokens = f"{TOKENS} tokens" + (f" with num_beams={num_beams}" if num_beams > 1 else "")
    line = f"decoding=auto: {name} (ms for {tokens}: {times}; {measured}; to measure again, delete {path})"
    return name, line


def measure(decoders: Mapping[str, Decoder], clock: Callable[[], float], num_beams: int = 1) -> dict[str, float]:
    """Median milliseconds of a response by each decoder."""
    batch = next(iter(decoders.values())).batch([PROMPT])
    limits: dict[str, Any] = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    limits["num_beams"] = num_beams
    times: dict[str, list[float]] = {name: [] for name in decoders}
    with torch.inference_mode():
        for number in range(WARM_UPS + ROUNDS):
            for name, decoder in decoders.items():
                started = clock()
                decoder.generate(batch, **limits).cpu()  # which waits for the device
                if number >= WARM_UPS:
                    times[name].append(1000 * (clock() - started))
    return {name: round(median(each), 3) for name, each in times.items()}


def described(model: LLM2SLM, decoders: Mapping[str, Decoder], num_beams: int = 1) -> dict[str, Any]:
    """All that the times depend on: shapes of the system, dtype, device, threads, versions, beams if there are any."""
    kinds = [(name, list(each.shape), str(each.dtype)) for name, each in model.named_parameters()]
    if model.encoder is not None:
        kinds += [(f"llm.{name}", list(each.shape), str(each.dtype)) for name, each in model.encoder.named_parameters()]
    return {
        "slm": model.slm.config.model_type,
        "conditioning": str(model.config.conditioning),
        "shapes": hashlib.sha256(json.dumps(sorted(kinds)).encode()).hexdigest()[:16],
        "dtype": str(model.slm.dtype).removeprefix("torch."),
        "device": runs.device_name(model.device.type),
        "threads": torch.get_num_threads(),
        "engine": ENGINE,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "decoders": list(decoders),
    } | ({"num_beams": num_beams} if num_beams > 1 else {})


def _read(path: Path) -> dict[str, Any]:
    """The entries of the file; empty if there is none, or if it is damaged, which is reported."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict):
        return found
    print(f"llm2slm: decoding=auto: {path}: damaged; measuring again", file=sys.stderr)
    return {}


def _times(entry: Any, decoders: Mapping[str, Decoder]) -> dict[str, float] | None:
    """The times of an entry; None if it is missing or damaged."""
    ms = entry.get("ms") if isinstance(entry, dict) else None
    if not isinstance(ms, dict) or list(ms) != list(decoders):
        return None
    return ms if all(isinstance(each, int | float) and each > 0 for each in ms.values()) else None
