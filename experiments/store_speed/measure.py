"""The time that training from a store of representations saves: `python experiments/store_speed/measure.py --data DIR`.

Random weights: speed does not depend on them. The same training (initial weights, batches, order, dropout) runs with
the LLM live and from stores of float32, bfloat16 and int8, in one process: in each round every system takes the same
few steps, in rotated order. The steps are those of Lightning with the `TrainingModule` of the project. Writes
result.json (every round) and table.md.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from rich.progress import track
from transformers import T5Config, T5ForConditionalGeneration

from llm2slm import runs
from llm2slm.commands import silence_libraries
from llm2slm.commands.device import device_type, move_to_device
from llm2slm.commands.tokenizer import train as train_tokenizer
from llm2slm.config import (
    DataConfig,
    LLMConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SLMConfig,
    TaskConfig,
    TrainerConfig,
)
from llm2slm.data.batches import TrainLoader
from llm2slm.data.datamodule import DataModule
from llm2slm.data.reps.store import RepsStore, llm_prompt
from llm2slm.data.sources.sources import task_of
from llm2slm.data.tokenization.tokenizer import load_tokenizer
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.saving import own_fingerprint
from llm2slm.offline import batches, encode, open_writer
from llm2slm.training.fit import build_trainer
from llm2slm.training.module import TrainingModule
from llm2slm.types import IGNORE_INDEX, Init, Overlong, StoreDtype, SystemKind

LIVE = "live"
DTYPES = [dtype.value for dtype in (StoreDtype.float32, StoreDtype.bfloat16, StoreDtype.int8)]
TITLES = {
    "memory": "`memory`: the SLM's own encoder is left out",
    "add": "`add`: the SLM reads the prompt as well",
}


@dataclass(frozen=True)
class Size:
    """Shapes of both models, and their numbers of tokens. `llm`: one decoder layer, as a hybrid drops them all."""

    llm: dict[str, int]
    slm: dict[str, int]
    vocabulary: int
    rows: int
    batch_tokens: int


STUDY = Size(
    {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 1, "num_heads": 12, "d_kv": 64},
    {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8, "d_kv": 64},
    vocabulary=8000, rows=360, batch_tokens=2000,
)  # fmt: skip
LARGER = {
    "t5_large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16, "d_kv": 64},
    "t5_3b": {"d_model": 1024, "d_ff": 16384, "num_layers": 24, "num_heads": 32, "d_kv": 128},
}
"""Other LLMs for the study, with the shapes of T5's encoders."""
SMALL = Size(
    {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2, "d_kv": 16},
    {"d_model": 16, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 8},
    vocabulary=400, rows=60, batch_tokens=300,
)  # fmt: skip


class Training(TrainingModule):
    """Continues with its optimizer and schedule from one `Trainer.fit` to the next."""

    _made: Any = None

    def configure_optimizers(self) -> Any:
        """Those of the first call."""
        self._made = self._made or super().configure_optimizers()
        return self._made


class Clock(Checkpoint):
    """Times a round, from before its first batch is fetched to after its last step, and records its contents.

    It is a `Checkpoint` so that Lightning adds no checkpoint callback.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]] = []
        self._begun = self._ended = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Waits for all kernels."""
        del trainer
        wait(pl_module.device)
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps the loss on the device: reading it would synchronize a GPU."""
        del trainer, pl_module, batch_idx
        targets = (batch.labels_BT != IGNORE_INDEX).sum()
        self._steps.append((outputs["loss"].detach(), targets, batch.llm_mask_BP.sum(), len(batch.indices)))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Waits for all kernels."""
        del trainer
        wait(pl_module.device)
        self._ended = time.perf_counter()

    def round(self) -> dict[str, Any]:
        """Seconds, rows, tokens (of prompts and responses), and the mean loss of a response token at each step."""
        return {
            "seconds": self._ended - self._begun,
            "rows": sum(rows for *_, rows in self._steps),
            "tokens": sum(int(targets + prompt) for _, targets, prompt, _ in self._steps),
            "losses": [float(loss / targets) for loss, targets, _, _ in self._steps],
        }


def wait(device: torch.device) -> None:
    """Waits until all kernels are complete."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Models and data


def prepared(asked: argparse.Namespace, size: Size, folder: Path) -> RunConfig:
    """The configuration of all systems; its LLM is written to `folder`, with a tokenizer."""
    data = DataConfig(batch_tokens=size.batch_tokens, overlong=Overlong.truncate, cache=None)
    if asked.data is None:
        data.name, data.corpus, data.train_size = "builtin", asked.corpus, 50 * size.rows
    else:
        data.name, data.root = asked.corpus, str(asked.data)
    task = TaskConfig(name=asked.task)
    print(train_tokenizer(data, task, asked.seed, size.vocabulary, folder / "llm"), file=sys.stderr)
    tokenizer = load_tokenizer(str(folder / "llm"))
    torch.manual_seed(asked.seed)
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    llm = T5ForConditionalGeneration(
        T5Config(**size.llm, **special, vocab_size=len(tokenizer), decoder_start_token_id=tokenizer.pad_token_id)
    )
    llm.save_pretrained(folder / "llm")
    model = ModelConfig(
        llm=LLMConfig(name=str(folder / "llm")),
        slm=SLMConfig(init=Init.random, config={"model_type": "t5", **size.slm}),
    )
    steps = asked.steps * (asked.warmup + asked.rounds)
    return RunConfig(
        model=model, data=replace(data, train_size=asked.rows or size.rows), task=task, seed=asked.seed,
        optim=OptimConfig(warmup_steps=max(1, steps // 4), lr=1e-3),
        trainer=TrainerConfig(
            accelerator=asked.device, precision=asked.precision, max_steps=steps, progress=False, threads=asked.threads,
            log_every_n_steps=10,
        ),
    )  # fmt: skip


def built(config: RunConfig, conditioning: str, store: Path | None = None) -> tuple[LLM2SLM, DataModule]:
    """A hybrid with the initial weights of the seed, and its data; with `store` instead of the LLM, or with the LLM."""
    data = replace(config.data, reps=None if store is None else str(store))
    torch.manual_seed(config.seed)
    model = build_model(replace(config.model, conditioning=conditioning), data)
    return model, DataModule(data, task_of(config.task, data), model.collator, config.seed)


def kept(config: RunConfig, folder: Path) -> dict[str, dict[str, Any]]:
    """Fills a store of each dtype, and returns its cost. The LLM encodes once, into float32, and is timed. The narrower
    stores are made from the same values."""
    model, data = built(config, "memory")
    move_to_device(model, config.trainer.accelerator).eval()
    rows, facts = data.encoded("train"), {}
    for dtype in DTYPES:
        begun = time.perf_counter()
        with open_writer(folder / dtype, model, StoreDtype(dtype)) as store:
            if dtype == DTYPES[0]:
                encode(model, rows, store, config.encode.batch_tokens, progress=False)
            else:
                exact = RepsStore(folder / DTYPES[0])
                for batch in batches(store.prompts_to_fill(map(llm_prompt, rows)), config.encode.batch_tokens):
                    store.append(batch, exact.reps_of(batch))
                store.finish()
        seconds = time.perf_counter() - begun
        opened = RepsStore(folder / dtype)
        size = sum(path.stat().st_size for path in (folder / dtype).iterdir())
        facts[dtype] = {"bytes": size, "prompts": len(opened), "prompt_tokens": opened.tokens}
        facts[dtype] |= {"encode_seconds": seconds} if dtype == DTYPES[0] else {}
    return facts


# The measurement


def measured(config: RunConfig, conditioning: str, stores: Path, asked: argparse.Namespace) -> list[runs.System]:
    """The same training by each system, interleaved round by round; `notes` contain every round."""
    systems: dict[str, tuple[Training, TrainLoader]] = {}
    counts: dict[str, dict[str, int]] = {}
    starts = set()
    for name in (LIVE, *DTYPES):
        model, data = built(config, conditioning, None if name == LIVE else stores / name)
        starts.add(own_fingerprint(model))
        model.train()
        systems[name] = Training(model, config.optim, config.trainer.max_steps), data.train_dataloader()
        counts[name] = model.parameter_counts()
    if len(starts) != 1:
        raise SystemExit("the systems do not start from the same weights")
    epoch = sum(len(llm_prompt(row)) + len(row.response) for row in data.encoded("train"))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    names = list(systems)
    for number in track(range(asked.warmup + asked.rounds), conditioning, console=Console(stderr=True)):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            rounds[name].append(stepped(config, *systems[name], asked.steps, number))
    kind = SystemKind.llm2slm.value
    notes = {"conditioning": conditioning, "warmup": asked.warmup, "epoch_tokens": epoch}
    return [
        runs.System(
            f"{conditioning} | {name}", kind, counts[name], notes=notes | {"reads": name, "rounds": rounds[name]}
        )
        for name in names
    ]


def stepped(config: RunConfig, module: Training, loader: TrainLoader, steps: int, number: int) -> dict[str, Any]:
    """One round of one system, with the dropout of that round."""
    clock = Clock()
    with TemporaryDirectory() as folder:
        trainer = build_trainer(replace(config.trainer, max_steps=steps), Path(folder), [clock], [])
        torch.manual_seed(1000 * config.seed + number)
        trainer.fit(module, train_dataloaders=loader)
    return clock.round()


# The table, from the contents of result.json only


def counted(system: dict[str, Any]) -> list[dict[str, Any]]:
    """The rounds of a system without those for warm-up."""
    rounds: list[dict[str, Any]] = system["notes"]["rounds"]
    return rounds[system["notes"]["warmup"] :]


def spread(values: list[float], digits: int) -> str:
    """Median (min-max)."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def loss_difference(system: dict[str, Any], live: dict[str, Any]) -> str:
    """Differences of a system's losses from the live one's, warm-up included: first step, largest, and number equal."""
    own, other = ([loss for r in s["notes"]["rounds"] for loss in r["losses"]] for s in (system, live))
    apart = [abs(a - b) / b for a, b in zip(own, other, strict=True)]
    equal = sum(a == b for a, b in zip(own, other, strict=True))
    return f"{apart[0]:.1e} | {max(apart):.1e} | {equal} of {len(own)}"


def payback(system: dict[str, Any], live: dict[str, Any], seconds: float) -> str:
    """Epochs until the cost of encoding is saved: rounds are paired, since both had the same batches in each."""
    tokens = system["notes"]["epoch_tokens"]
    saved = [
        (b["seconds"] - a["seconds"]) / a["tokens"] * tokens
        for a, b in zip(counted(system), counted(live), strict=True)
    ]
    epoch = statistics.median(saved)
    return f"{seconds / epoch:.1f}" if epoch > 0 else "never"


def line(system: dict[str, Any], live: dict[str, Any], seconds: float) -> str:
    """The row of one system."""
    rounds = counted(system)
    row = [
        system["notes"]["reads"],
        spread([r["rows"] / r["seconds"] for r in rounds], 2),
        spread([r["tokens"] / r["seconds"] for r in rounds], 0),
        spread([b["seconds"] / a["seconds"] for a, b in zip(rounds, counted(live), strict=True)], 2),
    ]
    stored = system is not live
    row += [payback(system, live, seconds), loss_difference(system, live)] if stored else ["-", "- | - | -"]
    return f"| {' | '.join(row)} |"


def table(result: dict[str, Any]) -> str:
    """result.json as Markdown."""
    trained = [system for system in result["systems"] if "rounds" in system["notes"]]
    facts = next(system["notes"] for system in result["systems"] if "stores" in system["notes"])
    stores, seconds = facts["stores"], facts["stores"][DTYPES[0]]["encode_seconds"]
    tokens, prompts = stores[DTYPES[0]]["prompt_tokens"], stores[DTYPES[0]]["prompts"]
    rounds = trained[0]["notes"]["rounds"]
    lines = [
        f"`{result['command']}`, {result['created'][:10]}, commit {result['git_commit'] or 'unknown'}, "
        f"{result['device']}, {facts['threads']} threads, seed {result['seed']}, {result['wall_seconds']:.0f} s; "
        f"torch {result['versions']['torch']}, transformers {result['versions']['transformers']}, LLM of the shape of "
        f"{facts.get('llm_name', 't5_base')}, {facts.get('precision', '32-true')}.",
        "",
        f"{facts['rows']} rows of {facts['corpus']}; batches of at most {facts['batch_tokens']} padded tokens; rounds "
        f"of {len(rounds[0]['losses'])} steps, {len(counted(trained[0]))} after {facts['warmup']} for warming up. "
        "Median (min-max) of rounds. Tokens are those of prompts and responses. Times live: seconds of the live "
        "training over this one's, paired within rounds.",
        "",
        f"The LLM read {prompts} prompts of {tokens} tokens into the store of float32 in {seconds:.1f} s "
        f"({tokens / seconds:.0f} tokens/s). An epoch of training goes over {trained[0]['notes']['epoch_tokens']} "
        "tokens.",
        "",
        "| store | MB | bytes per token |",
        "|---|---|---|",
        *(f"| {name} | {s['bytes'] / 1e6:.1f} | {s['bytes'] / s['prompt_tokens']:.1f} |" for name, s in stores.items()),
    ]
    for conditioning in dict.fromkeys(system["notes"]["conditioning"] for system in trained):
        rows = [system for system in trained if system["notes"]["conditioning"] == conditioning]
        live = next(system for system in rows if system["notes"]["reads"] == LIVE)
        lines += ["", f"## {TITLES[conditioning]}", ""]
        lines += [
            "| representations | samples/s | tokens/s | times live | epochs until encoding is paid for | loss apart, "
            "first step | at most | equal to the last bit |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [line(system, live, seconds) for system in rows]
    return "\n".join(lines) + "\n"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults are the study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--data", type=Path, help="folder that holds samsum/, multi30k/, ...; else built-in corpora")
    parser.add_argument("--corpus", help="one in it (samsum); without --data: a built-in one (summarization)")
    parser.add_argument("--task", default="summarization", help="summarization, translation or instruction")
    parser.add_argument("--rows", type=int, help="of the corpus, from the first; default: one epoch of the study")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (odd, so that a median is a round's own)")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of a round")
    parser.add_argument("--warmup", type=int, default=1, help="rounds that are not timed")
    parser.add_argument("--conditionings", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--llm", default="t5_base", choices=["t5_base", *LARGER], help="its shape")
    parser.add_argument("--batch-tokens", type=int, help="padded tokens of a batch; default: the study's 2,000")
    parser.add_argument("--precision", default="32-true", help="of training, as trainer.precision")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU where there is one")
    parser.add_argument("--threads", type=int, default=cores, help="of torch; default: the cores of this process")
    parser.add_argument("--seed", type=int, default=1, help="of weights, batches and dropout")
    parser.add_argument("--small", action="store_true", help="toy shapes: to see that it works")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for result.json and table.md")
    asked = parser.parse_args(given)
    asked.corpus = asked.corpus or ("summarization" if asked.data is None else "samsum")
    return asked


def command(words: list[str], data: Path | None) -> str:
    """The command line, without the local path of the corpora."""
    return " ".join(["python", *(word if data is None else word.replace(str(data), "DIR") for word in words)])


def main(asked: argparse.Namespace) -> None:
    """Encodes, trains and writes the results."""
    started, size = time.perf_counter(), SMALL if asked.small else STUDY
    size = replace(size, llm=size.llm | LARGER.get(asked.llm, {}), batch_tokens=asked.batch_tokens or size.batch_tokens)
    silence_libraries()
    torch.set_num_threads(asked.threads)
    device = device_type(asked.device)
    systems: list[runs.System] = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = prepared(asked, size, folder)
        stores = kept(config, folder / "stores")
        for conditioning in asked.conditionings:
            gc.collect()
            systems += measured(config, conditioning, folder / "stores", asked)
    facts = {"stores": stores, "rows": config.data.train_size, "corpus": asked.corpus, "threads": asked.threads}
    facts |= {"llm_name": asked.llm, "precision": asked.precision}
    facts |= {"batch_tokens": size.batch_tokens, "warmup": asked.warmup, "llm": size.llm, "slm": size.slm}
    systems.append(runs.System("stores", "store", {"total": 0, "trainable": 0}, notes=facts))
    hashed = runs.config_hash(replace(config, model=ModelConfig(), data=replace(config.data, root=None)))
    result = runs.Result(
        "store_speed", asked.seed, hashed, time.perf_counter() - started, systems, command=command(sys.argv, asked.data)
    )
    result.device = runs.device_name(device)
    runs.write_result(asked.out, result)
    (asked.out / "table.md").write_text(table(runs.read_result(asked.out)), encoding="utf-8")
    print(asked.out / "table.md")


if __name__ == "__main__":
    main(arguments())
