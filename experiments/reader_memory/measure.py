"""Peak memory of loading a T5-large-shaped LLM as a reader: `python experiments/reader_memory/measure.py FOLDER`.

FOLDER gets the model (3 GB, random weights). Prints JSON: bytes of the encoder's own weights, and by how much the peak
resident memory of a fresh process grows while it loads the reader, and while it loads the whole model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import T5Config, T5ForConditionalGeneration

from llm2slm.testing import tiny_tokenizer

SHAPE = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16, "vocab_size": 32128}
LOAD = """
import json, resource, sys, time
from transformers import AutoModel
from llm2slm.config import LLMConfig
from llm2slm.models.pretrained import load_encoder
from llm2slm.testing import tiny_tokenizer
import transformers.models.t5.modeling_t5
tokenizer = tiny_tokenizer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
if sys.argv[2] == "reader":
    model = load_encoder(LLMConfig(name=sys.argv[1]), tokenizer)
else:
    model = AutoModel.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - started
peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(json.dumps({"weights": sum(p.nbytes for p in model.parameters()), "peak": peak, "seconds": seconds}))
"""


def main(folder: Path) -> None:
    """Writes the model where it is not there yet, and measures."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(1)
        T5ForConditionalGeneration(T5Config(**SHAPE)).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    found = {}
    for what in ("reader", "whole"):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(folder), what], capture_output=True, text=True, check=True
        )
        found[what] = json.loads(done.stdout.splitlines()[-1])
        found[what]["peak over weights"] = found[what]["peak"] / found[what]["weights"]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
