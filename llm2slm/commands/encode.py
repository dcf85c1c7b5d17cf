"""`llm2slm encode`: the LLM reads a corpus once, and its representations are kept for training (`data.reps=DIR`).

They are what a hybrid with the same LLM, layer, tokenizers, frame and limits would compute anew in every epoch. Ended
at any moment, the same command with the same run directory goes on.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from llm2slm import runs
from llm2slm.commands.evaluate import final_split
from llm2slm.commands.place import device_type, place
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources import task_of
from llm2slm.models.build import build_model
from llm2slm.offline import encode, open_writer, put_embeddings
from llm2slm.types import SystemKind, Tokenizers, UserError

STORE = "reps"


def run(config: RunConfig, folder: Path) -> None:
    """Fills a store with the train, validation and test split (so that training, and its test, need no LLM).

    Raises:
        UserError: no hybrid, or the folder holds a store of other representations.
    """
    if config.model.kind is not SystemKind.llm2slm:
        raise UserError(f"encode keeps what an LLM says beside an SLM; model.kind={config.model.kind}: use llm2slm")
    device_type(config.trainer.accelerator)
    task = task_of(config.task, config.data)
    model = place(build_model(config.model, replace(config.data, reps=None)), config.trainer.accelerator).eval()
    data = DataModule(config.data, task, model.collator, config.seed)
    splits = list(dict.fromkeys(("train", "validation", final_split(config.data))))
    for split in splits:  # bad data is found before anything is written
        data.encoded(split)
    runs.write_config(folder, config)
    with open_writer(folder / STORE, model, config.encode.dtype) as store:
        try:
            rows = [row for split in splits for row in data.encoded(split)]
            filled = encode(model, rows, store, config.encode.batch_tokens, config.trainer.progress)
        except KeyboardInterrupt:
            print(f"llm2slm: to go on, give the same command with hydra.run.dir={folder}", file=sys.stderr)
            raise
        if config.model.tokenizers is Tokenizers.llm_tokens:
            put_embeddings(model, store)
    size = sum(path.stat().st_size for path in (folder / STORE).rglob("*") if path.is_file()) / 1e6
    print(
        f"{folder / STORE}: {filled.prompts} prompts of {filled.rows} rows, {size:.1f} MB; {filled.new} of them new, "
        f"in {filled.seconds:.1f} s; train with data.reps={folder / STORE}"
    )
