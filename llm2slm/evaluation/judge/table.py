"""The results of the LLM judge in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm2slm.evaluation.report.page import clean
from llm2slm.evaluation.report.tables import number, percent, score, seconds

SHOWN = 5
"""Number of lost rows listed."""
WIDTH = 72
"""Characters shown of the source of a lost row."""


def show(result: Mapping[str, Any], sources: Mapping[int, str]) -> None:
    """Prints the content of judge.json.

    Args:
        sources: the sources by row.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    head, *lines = rows(result)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column, heading in enumerate(head):
        table.add_column(Text(heading), justify="right" if column else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(clean(words)) for words in line))
    console = Console()
    console.print(table)
    for sentence in [*facts(result), *lost(result, sources)]:
        console.print(Text(clean(sentence)), soft_wrap=True)


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table: header, then one line for each statistic with its interval."""
    if "ratings" in result:
        found = result["ratings"]
        line = (result["runs"][0], score(found["mean"]["value"]), _range(found["mean"], score), str(found["judged"]))
        return [("Run", "Mean rating", "95 % interval", "Rows"), line]
    pairs = result["pairs"]
    lines = [
        (name, percent(pairs[key]["value"]), _range(pairs[key], percent), str(pairs[key]["count"]))
        for name, key in (
            (f"{result['runs'][0]} better", "wins"),
            ("tie", "ties"),
            (f"{result['runs'][1]} better", "losses"),
        )
    ]
    return [("Pairs", "Share", "95 % interval", "Rows"), *lines]


def facts(result: Mapping[str, Any]) -> list[str]:
    """Sentences on the significance test, the consistency of the judge, and the effort."""
    judge, effort = result["judge"], result["asked"]
    sentences = []
    if "pairs" in result:
        pairs = result["pairs"]
        split, position = pairs["inconsistent"], pairs["position"]
        sentences = [
            f"Sign test: p = {pairs['sign_test']['p']:.3g}, over {pairs['sign_test']['decided']} decided pairs.",
            f"Inconsistent: {split['count']} of {pairs['judged']} pairs ({percent(split['share'])}), which count as "
            f"ties. Of all verdicts {percent(position['first']['share'])} chose the answer shown first, "
            f"{percent(position['second']['share'])} the second.",
        ]
    figures = result["pairs"] if "pairs" in result else result["ratings"]
    missing = (
        f"; {figures['rows'] - figures['judged']} rows have no verdict" if figures["rows"] > figures["judged"] else ""
    )
    sentences.append(
        f"Judge: {judge.get('model', judge.get('local'))}; parse failures: {effort['parse_failures']}, refused: "
        f"{effort['refused']} of {effort['distinct']} questions{missing}."
    )
    least = "at least " if effort["replies_without_usage"] else ""
    price = "" if effort["cost"] is None else f", cost: {least}{number(effort['cost'])}"
    sentences.append(
        f"Requests: {effort['requests']:,}, tokens: {least}{effort['prompt_tokens']:,} of prompts, "
        f"{least}{effort['reply_tokens']:,} of replies{price}; {seconds(effort['wall_seconds'])}."
    )
    return sentences


def lost(result: Mapping[str, Any], sources: Mapping[int, str]) -> list[str]:
    """The rows lost most clearly, one on each line."""
    if not result["lost"]:
        return []
    what = "Lost most clearly" if "pairs" in result else "Rated lowest"
    lines = [f"{what} ({len(result['lost'])} in lost.jsonl):"]
    for row in result["lost"][:SHOWN]:
        source = " ".join(sources[row].split())
        lines.append(f"  row {row}: {source if len(source) <= WIDTH else source[: WIDTH - 1] + '…'}")
    return lines


def _range(figure: Mapping[str, float | None], write: Any) -> str:
    return "" if figure["low"] is None else f"{write(figure['low'])} – {write(figure['high'])}"
