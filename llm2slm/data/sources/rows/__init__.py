"""Readers of json, csv and parquet files, without inference or conversion of types; only needed columns are read.

A csv field is its text, a JSON string is that string, a parquet column has the type recorded in the file. Rows are
read one by one.
"""

from __future__ import annotations

from pathlib import Path, PurePath

from llm2slm.data.sources.rows.csv_rows import csv_table
from llm2slm.data.sources.rows.json_rows import json_table
from llm2slm.data.sources.rows.parquet_rows import parquet_table
from llm2slm.data.sources.rows.table import Table
from llm2slm.types import UserError

READERS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Suffixes (in any case, before an optional .gz) of supported files."""


def suffix_of(path: PurePath) -> str:
    """The suffix that determines the format: `.csv` for `a.CSV.gz`; a gzipped parquet file is not supported."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = len(suffixes) > 1 and suffixes[-1] == ".gz" and suffixes[-2] != ".parquet"
    return (suffixes or [""])[-2 if packed else -1]


def open_table(path: Path, delimiter: str | None = None) -> Table:
    """The table in a json, jsonl, csv, tsv or parquet file; all but parquet may be gzipped.

    Args:
        delimiter: of a csv file; None: a comma, for .tsv a tab.

    Raises:
        UserError: the file is missing, empty or of another format, or its header cannot be read.
    """
    suffix = suffix_of(path)
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise UserError(f"{path}: unsupported kind of file {path.suffix!r}; use {known} (all but .parquet also as .gz)")
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {found}; give a json, jsonl, csv, tsv or parquet file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    if suffix == ".parquet":
        return parquet_table(path)
    if suffix in (".csv", ".tsv"):
        return csv_table(path, delimiter or ("\t" if suffix == ".tsv" else ","))
    return json_table(path)
