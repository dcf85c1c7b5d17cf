"""`llm2slm export run=DIR out=DIR`: a trained model as a folder to give away, or as a repository of the Hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm import runs
from llm2slm.commands import hush
from llm2slm.commands.generate import recorded
from llm2slm.config import DataConfig, ExportConfig, TaskConfig
from llm2slm.types import UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

CARD = "README.md"
DTYPES = ("float32", "bfloat16", "float16")


def run(config: ExportConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Loads the model (so that what is given away is known to load), writes it with its card, and pushes it.

    Raises:
        UserError: no model named, `out` holds something already, or the Hub refuses.
    """
    out = check(config)
    results = [runs.read_result(Path(place)) for place in config.results]
    model = load(config)
    if config.dtype is not None:
        narrowed(model, config.dtype)
    model.save_pretrained(out, with_llm=config.with_llm)
    card(config, out, results)
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{out}: {megabytes:.1f} MB")
    if config.push is not None:
        from llm2slm.models.saving import push

        print(push(out, config.push, private=config.private, message=f"Upload {out.name}"))


def check(config: ExportConfig) -> Path:
    """What is wrong is said before the model is loaded. Returns the folder to write."""
    if config.run is None:
        raise UserError("export needs run=DIR: a run directory, or a model's folder or Hub id")
    if runs.home(config.run) is None and (config.results or config.license):
        raise UserError(
            f"run={config.run}: records no configuration to write a model card from; give the run directory, or leave "
            "results and license out"
        )
    if config.dtype is not None and config.dtype not in DTYPES:
        raise UserError(f"dtype={config.dtype} is unknown; possible: {', '.join(DTYPES)}")
    if config.push is not None and config.push.count("/") > 1:
        raise UserError(f"push={config.push}: give a repository of the Hub, as me/my-model")
    out = Path(config.out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"out={out}: holds something already; give a folder that does not exist, or an empty one")
    return out


def load(config: ExportConfig) -> LLM2SLM:
    """The trained model, its LLM checked."""
    from llm2slm.commands.evaluate import model_place
    from llm2slm.models.hybrid import LLM2SLM

    hush()
    return LLM2SLM.from_pretrained(model_place(str(config.run)), llm=config.llm)


def narrowed(model: LLM2SLM, dtype: str) -> None:
    """Rounds what is stored to another dtype; it is still loaded in the one that it was trained in."""
    import torch

    for part in (model.slm, model.projector, model.crossing):
        if part is not None:
            part.to(getattr(torch, dtype))


def card(config: ExportConfig, out: Path, results: list[dict[str, Any]]) -> None:
    """The model card, from the run's record and results; where there is none, the card that came with the model."""
    home = runs.home(str(config.run))
    if home is None:
        if not (out / CARD).is_file():
            print(f"llm2slm: {config.run} is no run directory: no model card is written", file=sys.stderr)
        return
    own = [runs.read_result(home)] if (home / "result.json").is_file() else []
    name = config.push or config.name or out.resolve().name
    write_card(out, name, home, [*own, *results], license=config.license)


def write_card(
    model: Path, name: str, home: Path, results: Sequence[Mapping[str, Any]], license: str | None = None
) -> None:
    """Writes the card of a saved model into its folder.

    Args:
        name: what the card calls it. home: the run directory, whose configuration the card tells of.
    """
    from llm2slm.data.sources import languages
    from llm2slm.data.tasks import resolve
    from llm2slm.evaluation.card import model_card

    config = runs.read_config(home)
    task = resolve(recorded(home, "task", TaskConfig), languages(recorded(home, "data", DataConfig)))
    config["task"] = config["task"] | {"prefix": task.prefix}
    llm = json.loads((model / "config.json").read_text(encoding="utf-8")).get("llm")
    (model / CARD).write_text(model_card(name, config, results, license=license, llm=llm), encoding="utf-8")
