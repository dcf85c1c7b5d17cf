"""Peak memory of loading a T5-large-shaped LLM as an encoder: `python experiments/reader_memory/measure.py FOLDER`.

FOLDER gets the model (3 GB, random weights). Prints JSON: the size of the loaded part, and by how much the peak
resident memory of a new process grows while it loads the encoder, or the complete model, and encodes a short text.
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
import json, sys, time, torch
from transformers import AutoModel
from llm2slm.evaluation.benchmark.peak_memory import peak_resident_mb
from llm2slm.config import LLMConfig
from llm2slm.models.loading.pretrained import load_encoder
from llm2slm.testing import tiny_tokenizer
import transformers.models.t5.modeling_t5
tokenizer = tiny_tokenizer()
before = peak_resident_mb()
started = time.perf_counter()
if sys.argv[2] == "reader":
    model = load_encoder(LLMConfig(name=sys.argv[1]), tokenizer)
else:
    model = AutoModel.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - started
ids = torch.tensor([[5, 9, 40, 1]])
with torch.no_grad():  # loading maps the file; a weight takes memory when it is first used
    model(ids, torch.ones_like(ids)) if sys.argv[2] == "reader" else model(input_ids=ids, decoder_input_ids=ids)
peak = peak_resident_mb() - before
print(json.dumps({"weights_mb": sum(p.nbytes for p in model.parameters()) / 1e6, "peak_mb": peak, "seconds": seconds}))
"""


def main(folder: Path) -> None:
    """Writes the model if it does not exist, and measures."""
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
        found[what]["peak_over_weights"] = found[what]["peak_mb"] / found[what]["weights_mb"]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
