"""`llm2slm export run=DIR out=DIR`: a trained model as a folder to give away, or as a repository of the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm import runs
from llm2slm.atomic import STAGE
from llm2slm.commands import hush
from llm2slm.commands.card import card_of_run
from llm2slm.config import ExportConfig
from llm2slm.types import UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


def run(config: ExportConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Loads the model (so that what is given away is known to load), writes it with its card, and pushes it.

    Raises:
        UserError: no model named, `out` holds something already, or the Hub refuses.
    """
    out = check(config)
    home = runs.home(str(config.run))
    results = [(place, runs.read_result(Path(place))) for place in config.results]
    model = load(config)
    check_measured(model, results)
    if config.dtype is not None:
        narrowed(model, config.dtype)
    model.save_pretrained(out, with_llm=config.with_llm)
    place = str((model.config.llm or {}).get("name"))
    if not config.with_llm and config.push is None and Path(place).is_absolute():
        print(f"llm2slm: others will not have {place}: with_llm=true brings the LLM's part along", file=sys.stderr)
    name = config.push or config.name or out.resolve().name
    if home is not None:
        card_of_run(out, name, home, [result for _, result in results], license=config.license)
    elif model.card is None:
        print(f"llm2slm: {config.run} is no run directory: no model card is written", file=sys.stderr)
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{out}: {megabytes:.1f} MB")
    if config.push is not None:
        from llm2slm.models.saving import push

        try:
            print(push(out, config.push, private=config.private, message=f"Upload {out.name}"))
        except UserError as error:
            raise UserError(f"{error} (the model is in {out}; remove it to try again, or give another out=)") from None


def check(config: ExportConfig) -> Path:
    """What is wrong is said before the model is loaded. Returns the folder to write."""
    if config.run is None:
        raise UserError("export needs run=DIR: a run directory, or a model's folder or Hub id")
    if runs.home(config.run) is None and (config.results or config.license or config.name):
        raise UserError(
            f"run={config.run}: records no configuration to write a model card from; give the run directory, or leave "
            "results, license and name out"
        )
    from llm2slm.models.pretrained import DTYPES

    if config.dtype is not None and config.dtype not in DTYPES:
        raise UserError(f"dtype={config.dtype} is unknown; possible: {', '.join(DTYPES)}")
    if config.push is not None and config.push.count("/") > 1:
        raise UserError(f"push={config.push}: give a repository of the Hub, as me/my-model")
    out = Path(config.out)
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise UserError(f"out={out}: {above} is no folder")
    if out.is_dir() and any(path.name != STAGE for path in out.iterdir()):  # left by an export that was killed
        raise UserError(f"out={out}: holds something already; give a folder that does not exist, or an empty one")
    return out


def load(config: ExportConfig) -> LLM2SLM:
    """The trained model, its LLM checked."""
    from llm2slm.commands.writers import model_place
    from llm2slm.models.hybrid import LLM2SLM

    hush()
    return LLM2SLM.from_pretrained(model_place(str(config.run)), llm=config.llm)


def check_measured(model: LLM2SLM, results: list[tuple[str, dict[str, Any]]]) -> None:
    """Refuses a result that measured other models only: its figures would be told of this one."""
    from llm2slm.models.saving import own_fingerprint

    own = own_fingerprint(model)
    for place, result in results:
        if own not in [system.get("weights") for system in result["systems"]]:
            raise UserError(f"results={place}: measured other models, none with the weights of this one ({own})")


def narrowed(model: LLM2SLM, dtype: str) -> None:
    """Rounds what is stored to another dtype; it is still loaded in the one that it was trained in."""
    import torch

    for part in (model.slm, model.projector, model.crossing):
        if part is not None:
            part.to(getattr(torch, dtype))
