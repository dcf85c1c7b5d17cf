"""`llm2slm export run=DIR out=DIR`: a trained model as a folder for distribution, or as a Hub repository."""

from __future__ import annotations

import filecmp
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm import runs
from llm2slm.atomic import STAGE, writing
from llm2slm.commands import silence_libraries
from llm2slm.commands.card import card_of_run
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.output_folder import check_folder
from llm2slm.config import ExportConfig
from llm2slm.config.choices import DTYPES, check_choice
from llm2slm.tracking.session import Tracking, track
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.summary import numbers, of_system, sample_table
from llm2slm.types import UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

ADVICE = "give a folder that does not exist, or an empty one"


def run(config: ExportConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Loads the model (which verifies it), writes it with its card, and pushes it.

    A repeated command leaves `out` unchanged and pushes again.

    Raises:
        UserError: no model given, `out` holds other files, or the Hub refuses.
    """
    out = check(config)
    home = runs.home(str(config.run))
    results = [(path, runs.read_result(Path(path))) for path in config.results]
    model = load(config)
    check_measured(model, results)
    if config.dtype is not None:
        cast_weights(model, config.dtype)
    show_held()
    llm = str((model.config.llm or {}).get("name"))
    if not config.with_llm and config.push is None and Path(llm).is_absolute():
        print(f"llm2slm: the LLM {llm} is local: with_llm=true exports its encoder too", file=sys.stderr)
    with track("export", config, None) as tracking:
        unchanged = write(model, home, config, [result for _, result in results])
        megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
        print(f"{out}: {megabytes:.1f} MB{', unchanged' if unchanged else ''}")
        log(tracking, home, out, {"megabytes": megabytes} | numbers({"parameters": model.parameter_counts()}))
        if config.push is not None:
            from llm2slm.models.saving import push

            try:
                print(push(out, config.push, private=config.private, message=f"Upload {out.name}"))
            except UserError as error:
                raise UserError(f"{error} (the model is in {out}; the same command tries again)") from None
            tracking.summary({"repository": config.push})


def log(tracking: Tracking, home: Path | None, out: Path, values: dict[str, Any]) -> None:
    """Logs the exported model, with quality and samples of its run."""
    if home is not None and (home / "result.json").is_file():
        systems = runs.read_result(home)["systems"][:1]
        values = values | {name: value for system in systems for name, value in of_system(system).items()}
        samples = {system["name"]: system["samples"] for system in systems if system.get("samples")}
        tracking.table("samples", sample_table(samples, tracking.cfg.samples))
    tracking.summary(values)
    if "model" in tracking.cfg.artifacts:
        tracking.files("model", {path.name: path for path in sorted(out.iterdir()) if path.is_file()})


def write(model: LLM2SLM, home: Path | None, config: ExportConfig, results: list[dict[str, Any]]) -> bool:
    """Writes the model and its card; returns whether `out` already held the same model."""
    out = Path(config.out)
    staged = staging(out)
    try:
        model.save_pretrained(staged, with_llm=config.with_llm)
        if home is not None:
            source = config.push or out.resolve().name  # the name of config.name is no address
            card_of_run(staged, config.name or source, source, home, results, license=config.license)
        elif model.card is None:
            print(f"llm2slm: {config.run} is no run directory: no model card is written", file=sys.stderr)
        return move_into(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def check(config: ExportConfig) -> Path:
    """Checks the configuration before the model is loaded; returns the output folder."""
    if config.run is None:
        raise UserError("export needs run=DIR: a run directory, or a model's folder or Hub id")
    if runs.home(config.run) is None and (config.results or config.license or config.name):
        raise UserError(
            f"run={config.run}: records no configuration to write a model card from; give the run directory, or leave "
            "results, license and name out"
        )
    check_choice("dtype", config.dtype, DTYPES)
    if config.push is not None and config.push.count("/") > 1:
        raise UserError(f"push={config.push}: give a repository of the Hub, as me/my-model")
    check_loggers(config.logger)
    out = Path(config.out)
    check_folder("out", out)
    if held(out) and not (out / "config.json").is_file():
        raise UserError(f"out={out}: is not empty; {ADVICE}")
    return out


def held(out: Path) -> bool:
    """Whether a folder exists and holds more than the partial files of an interrupted export."""
    return out.is_dir() and any(path.name != STAGE for path in out.iterdir())


def staging(out: Path) -> Path:
    """A temporary folder next to `out` for the model, so that `out` is complete or missing."""
    whole = out.resolve()
    found = whole.with_name(f".{whole.name}.llm2slm-export")
    shutil.rmtree(found, ignore_errors=True)  # of an interrupted export
    return found


def move_into(staged: Path, out: Path) -> bool:
    """Moves the finished model into `out`; returns whether `out` already held the same model, which then stays.

    Raises:
        UserError: `out` holds other files; names the first differing file.
    """
    if not held(out):
        shutil.rmtree(out / STAGE, ignore_errors=True)
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            for path in sorted(staged.iterdir()):
                path.replace(out / path.name)
        return False
    here, there = files(staged), files(out)
    for name in sorted(here.keys() | there.keys()):
        if name not in here or name not in there or not filecmp.cmp(here[name], there[name], shallow=False):
            state = (
                "is not in it" if name not in there else "is no part of this model" if name not in here else "differs"
            )
            raise UserError(f"out={out}: holds another model or other files ({name} {state}); {ADVICE}")
    return True


def files(folder: Path) -> dict[str, Path]:
    """All files of a folder by relative path."""
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def load(config: ExportConfig) -> LLM2SLM:
    """The trained model, with its LLM verified."""
    from llm2slm.commands.loaded_models import model_path
    from llm2slm.models.hybrid import LLM2SLM

    silence_libraries()
    return LLM2SLM.from_pretrained(model_path(str(config.run)), llm=config.llm)


def check_measured(model: LLM2SLM, results: list[tuple[str, dict[str, Any]]]) -> None:
    """Refuses a result that does not include this model."""
    from llm2slm.models.saving import own_fingerprint

    weights = own_fingerprint(model)
    for path, result in results:
        if weights not in [system.get("weights") for system in result["systems"]]:
            raise UserError(f"results={path}: measured other models, none with the weights of this one ({weights})")


def cast_weights(model: LLM2SLM, dtype: str) -> None:
    """Casts the weights for storage; the model is still loaded in the dtype of its training."""
    import torch

    for part in model.children():  # the SLM and the modules of the conditioning
        if part is not model.encoder:
            part.to(getattr(torch, dtype))
