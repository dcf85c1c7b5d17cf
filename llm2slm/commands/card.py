"""The model card of a run, written when `train` saves its model and when the model is exported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.atomic import write_text
from llm2slm.commands.generate import recorded
from llm2slm.config import DataConfig, TaskConfig


def card_of_run(
    model: Path,
    name: str,
    source: str,
    home: Path,
    others: Sequence[Mapping[str, Any]] = (),
    *,
    license: str | None = None,
) -> None:
    """Writes the card of a saved model into its folder.

    Args:
        name: the model's name in the card. source: the folder or Hub id that its code example loads.
        home: the run directory of its training.
        others: further results that include the model.
    """
    from llm2slm.data.sources.sources import task_of
    from llm2slm.evaluation.report.model_card import model_card
    from llm2slm.models import conditioning
    from llm2slm.models.saving import CARD

    config = runs.read_config(home)
    task = task_of(recorded(home, "task", TaskConfig), recorded(home, "data", DataConfig))
    prefix, suffix = task.around() or (task.prefix, "")
    config["task"] = config["task"] | {"prefix": prefix, "suffix": suffix}
    result = runs.read_result(home) if (home / "result.json").is_file() else None
    result = result if result is not None and result["verb"] == "train" else None
    saved = json.loads((model / "config.json").read_text(encoding="utf-8"))
    llm, slm, reach = saved.get("llm"), saved.get("slm", saved), None
    if llm is not None:
        mode = conditioning.get(saved["conditioning"])
        reach = mode.in_words(saved)
        llm = llm | {"layer": None} if mode.uses_llm_cache else llm  # the output of no layer is read
    card = model_card(name, config, result, others, source=source, license=license, llm=llm, slm=slm, reach=reach)
    write_text(model / CARD, card)


def card_in_run(home: Path) -> None:
    """Writes the card of the model in the run directory of its training."""
    name = home.resolve().name
    card_of_run(home / "model", name, f"{name}/model", home)
