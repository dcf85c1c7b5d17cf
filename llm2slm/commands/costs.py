"""`llm2slm costs`: speed, memory and break-even length of an LLM, an SLM and their hybrid, predicted from configs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.atomic import write_text
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.config import CostsConfig
from llm2slm.nearest_names import nearest_hint
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.tracking.tracker import Table
from llm2slm.types import SystemKind, UserError

SCHEMA = 1
"""Version of costs.json."""
MEASURE = "measure"
"""Value of `device` that measures this machine."""
CONDITIONS = ("batch", "prompt_tokens", "response_tokens")
HEADS = ("prefill\nms", "ms per\ntoken", "total\nms", "speedup", "break-\neven", "weights\nGB", "cache\nMB")


def run(config: CostsConfig, folder: Path) -> None:
    """Writes costs.json and costs.csv, and prints a table. Reads configs only: no weights, no tokenizer.

    Raises:
        UserError: a config cannot be read, the models do not fit together, the cost of no model is known, or the device
            is unknown.
    """
    from rich.console import Console

    from llm2slm.evaluation.benchmark import predictions
    from llm2slm.evaluation.benchmark.pairs import configured, recorded
    from llm2slm.evaluation.benchmark.roofline import PRECISIONS

    if config.accepted_tokens > config.draft_tokens:
        raise UserError(
            f"accepted_tokens={config.accepted_tokens:g}: no more than draft_tokens={config.draft_tokens} can be "
            "accepted"
        )
    if config.dtype not in PRECISIONS:
        raise UserError(f"dtype={config.dtype} is unknown; possible: {', '.join(PRECISIONS)}")
    check_loggers(config.logger)
    pair = configured(config.model, config.slm_vocab) if config.run is None else recorded(config.run, config.llm)
    guided = config.run is not None or config.model.kind is SystemKind.llm2slm
    missing, precision = predictions.unknown(pair, guided=guided), PRECISIONS[config.dtype]
    if not predictions.systems(pair):
        raise UserError(f"cost unknown: {'; '.join(map(str, missing))}; docs/costs.md lists the known families")
    device = device_of(config, precision.product)
    show_held()
    assumptions = predictions.Assumptions(
        config.draft_tokens, config.accepted_tokens, config.rewritten, config.shared_encoding, config.slm_tokens
    )
    predictor = predictions.Predictor(pair, assumptions, device, precision)
    rows = list(predictor.rows(config.batch, config.prompt_tokens, config.response_tokens))
    figures = (config.bandwidth, config.tflops, config.overhead)
    name = config.device if figures == (None, None, None) else f"{config.device}, changed"
    models = {side: model for side, model in (("llm", pair.llm), ("slm", pair.slm)) if model is not None}
    written = {
        "schema": SCHEMA, "created": runs.now(), "command": runs.command(), "git_commit": runs.git_commit(),
        "models": {
            side: {"name": model.name, "model_type": model.config.model_type, "config": model.source}
            for side, model in models.items()
        },
        "conditioning": pair.conditioning, "device": {"name": name} | runs.plain(device), "dtype": config.dtype,
        "assumptions": runs.plain(assumptions), "unknown": runs.plain(missing),
        "rows": runs.plain(rows),
    }  # fmt: skip
    with track("costs", config, folder) as tracking:
        write_text(folder / "costs.csv", predictions.csv_text(rows))
        path = write_text(folder / "costs.json", json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        tracking.table("systems", Table(list(written["rows"][0]), [list(row.values()) for row in written["rows"]]))
        tracking.outputs(folder)
    Console().print(table(written, precision.product))
    if missing:
        print(f"llm2slm: warning: cost unknown: {'; '.join(map(str, missing))}", file=sys.stderr)
    print(path)


def device_of(config: CostsConfig, product: str) -> Any:
    """The device of `device`, with the figures that are set.

    Args:
        product: dtype of matrix products.

    Raises:
        UserError: it is unknown, or has no rate for this dtype.
    """
    from llm2slm.evaluation.benchmark.roofline import DEVICES

    if config.device == MEASURE:
        from llm2slm.evaluation.benchmark.ceilings import measure

        device = measure(product)
    elif config.device in DEVICES:
        device = DEVICES[config.device]
    else:
        names = [*DEVICES, MEASURE]
        hint = nearest_hint(config.device, names)
        raise UserError(f"device={config.device} is unknown{hint}; possible: {', '.join(names)}")
    if config.bandwidth is not None:
        device = replace(device, bandwidth=config.bandwidth)
    if config.tflops is not None:
        device = replace(device, tflops={product: config.tflops})
    if product not in device.tflops:
        raise UserError(
            f"dtype={config.dtype}: the rate of {product} products on device={config.device} is not known (known: "
            f"{', '.join(device.tflops)}); give it by tflops=N, or choose another dtype"
        )
    return replace(device, overhead=device.overhead if config.overhead is None else config.overhead)


def table(written: dict[str, Any], product: str) -> Any:
    """The terminal table of a costs.json.

    Args:
        product: dtype of matrix products.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as TerminalTable

    device, rows = written["device"], written["rows"]
    models = " + ".join(f"{side.upper()} {model['name']}" for side, model in written["models"].items())
    guided = "" if written["conditioning"] == "none" else f" by {written['conditioning']}"
    title = (
        f"{models}{guided}; {written['dtype']} on {device['name']}: {device['bandwidth']:,.4g} GB/s, "
        f"{device['tflops'][product]:,.4g} TFLOP/s"
    )
    varied = [name for name in CONDITIONS if len({row[name] for row in rows}) > 1]
    padding = (0, 0 if len(varied) > 1 else 1, 0, 0)
    found = TerminalTable(title=title, caption=caption(written), box=SIMPLE_HEAD, pad_edge=False, padding=padding)
    found.add_column("system", no_wrap=True)
    for head in [*(name.partition("_")[0] for name in varied), *HEADS]:
        found.add_column(head, justify="right")
    for row in rows:
        found.add_row(row["system"], *(str(row[name]) for name in varied), *cells(row))
    return found


def caption(written: dict[str, Any]) -> str:
    """The conditions that all rows share, and the assumptions of the systems in the table."""
    rows, given = written["rows"], written["assumptions"]
    parts = [
        f"{name.replace('_', ' ')} {rows[0][name]:,}" for name in CONDITIONS if len({row[name] for row in rows}) == 1
    ]
    named = {row["system"] for row in rows}
    if "lossless" in named:
        parts.append(f"lossless accepts {given['accepted']:g} of {given['drafted']:g} drafted tokens")
    if "cascade" in named:
        parts.append(f"cascade rewrites {given['rewritten']:.0%}")
    if large := {row["system"] for row in rows if row["fits"] is False}:
        parts.append(f"larger than the memory of the device: {', '.join(sorted(large))}")
    return "Lower bounds. " + "; ".join(parts)


def cells(row: dict[str, Any]) -> list[str]:
    """The numbers of a row of the table, in the order of `HEADS`."""
    compared = row["speedup"] is not None and row["system"] != "llm"
    never = "never" if compared else ""
    return [
        *(shown(row[name]) for name in ("prefill_ms", "ms_per_token", "total_ms")),
        "" if row["speedup"] is None else f"{row['speedup']:.2f}",
        never if row["break_even_tokens"] is None else f"{row['break_even_tokens']:,}",
        shown(row["weights_mb"] / 1e3),
        shown(row["cache_mb"]),
    ]


def shown(value: float | None) -> str:
    """A number with three significant digits; "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
