"""Labels that an LLM wrote (`llm2slm label`) in place of a corpus' own answers, or of a share of them.

The method trains its translation models on the LLM's own answers (Bergner et al. 2024), which is sequence-level
distillation (Kim and Rush 2016, arXiv 1606.07947).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm2slm.config import DataConfig
from llm2slm.data.sources.rows import open_table
from llm2slm.data.sources.rows.table import check_once, text_in, value_in
from llm2slm.types import Labels, UserError

NAMES = ("labels.jsonl", "labels.parquet")
"""What `llm2slm label` leaves in its run directory."""
FIELDS = ("index", "source", "prediction")
"""What a label is made of: number of its row, the row's source, the LLM's answer."""
PART = "of a label"


def relabelled(rows: list[dict[str, str]], config: DataConfig, seed: int) -> list[dict[str, str]]:
    """The training rows with the targets that `data.labels` asks for.

    Args:
        seed: draws the rows of `mix`; a row's lot does not depend on how many rows there are.

    Raises:
        UserError: no file of labels, or one that is not of these rows.
    """
    if config.labels is Labels.gold:
        return rows
    if not 0 <= config.labels_share <= 1:
        raise UserError(f"data.labels_share={config.labels_share}: must be between 0 and 1")
    path = labels_file(config)
    labels = read_labels(path)
    found = []
    for index, row in enumerate(rows):
        label = labels.get(index)
        if label is None:
            raise UserError(
                f"{path}: holds {len(labels)} labels, none of row {index} (from 0) of the {len(rows)} training rows; "
                "label the whole split (with the same data, and data.overlong=truncate), or set data.train_size"
            )
        if label["source"] != row["source"].strip():
            by_seed = f" with the seed of this run ({seed}), which draws its rows" if config.name == "builtin" else ""
            raise UserError(
                f"{path}: the label of row {index} (from 0) is of another text ({label['source'][:40]!r}, the row is "
                f"{row['source'].strip()[:40]!r}); label the split that you train on{by_seed}"
            )
        theirs = config.labels is Labels.llm or np.random.default_rng((seed, index)).random() < config.labels_share
        found.append(row | {"target": label["prediction"]} if theirs else row)
    return found


def labels_file(config: DataConfig) -> Path:
    """The file of labels that a configuration names.

    Raises:
        UserError: none is named, or none is there.
    """
    if config.labels_from is None:
        raise UserError(
            f"data.labels={config.labels}: set data.labels_from=DIR, the run directory of `llm2slm label split=train`"
        )
    place = Path(config.labels_from)
    if place.is_file():
        return place
    for name in NAMES:
        if (place / name).is_file():
            return place / name
    unfinished = next((place / f"{name}.part" for name in NAMES if (place / f"{name}.part").is_file()), None)
    if unfinished is not None:
        raise UserError(f"{unfinished}: labelling is not finished; go on with it first (hydra.run.dir={place})")
    raise UserError(f"data.labels_from={place}: no {' or '.join(NAMES)} there; `llm2slm label` writes one")


def read_labels(path: Path) -> dict[int, dict[str, str]]:
    """Labels by the number of their row.

    Returns:
        source and prediction by number.

    Raises:
        UserError: the file cannot be read, a row is no label, or its number occurs twice; names the line or row.
    """
    table = open_table(path)
    for name in FIELDS:
        check_once(table, name, PART)
    labels: dict[int, dict[str, str]] = {}
    for number, row in table.read([name for name in FIELDS if name in (table.names or FIELDS)], 0):
        place = table.place(number)
        index = value_in(table, number, row, "index", PART) if row.keys() >= set(FIELDS) else None
        if not isinstance(index, int):
            raise UserError(f"{place}: no label; expected index, source and prediction")
        if index in labels:
            raise UserError(f"{place}: row {index} has a label already; label again into a new folder")
        labels[index] = {name: text_in(table, number, row, name, PART) for name in ("source", "prediction")}
    return labels
