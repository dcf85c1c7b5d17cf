"""The part of `llm2slm generate` that answers a file of texts: reads it, answers in order, writes, resumes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm import runs
from llm2slm.config import GenerateConfig, PlainLLMConfig
from llm2slm.data.sources.rows import READERS, open_table, suffix_of
from llm2slm.data.sources.rows.table import LINE, check_once, no_column, path_in, text_in
from llm2slm.data.sources.rows.text import lines
from llm2slm.resumable import ResumableLines, other_settings
from llm2slm.types import UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM


@dataclass(frozen=True)
class Answering:
    """Who answers, and how: what stands around every text, and arguments of transformers' `generate`."""

    model: LLM2SLM
    config: GenerateConfig
    prefix: str
    arguments: dict[str, Any]
    suffix: str = ""


def check_writable(path: Path) -> None:
    """Refuses an output that could not be written once all is answered; makes nothing."""
    if path.is_dir():
        raise UserError(f"output={path}: is a folder; give a file")
    if path.exists() and not path.is_file():
        raise UserError(f"output={path}: is no ordinary file; leave output out to see the answers in the terminal")
    home = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if not home.is_dir():
        raise UserError(f"output={path}: {home} is no folder")
    if not os.access(path if path.exists() else home, os.W_OK):
        raise UserError(f"output={path}: no permission to write there")


def read(path: Path, fields: tuple[str, ...] = ("source", "prompt")) -> list[tuple[str, str]]:
    """The texts of a file, each with its place (`line 3`).

    Args:
        path: json, jsonl, csv, tsv or parquet, as `data.train` takes them; any other file holds a text a line.
        fields: of rows the first of these columns that a row has; nested ones by a dotted path.

    Returns:
        The texts in order. A blank line of a file of lines is an empty text, which gets an empty answer.

    Raises:
        UserError: a file that cannot be read, or a row without a text; names the line (of parquet the row).
    """
    if not path.is_file():
        raise UserError(f"input={path}: {'is a folder; give a file' if path.is_dir() else 'no such file'}")
    if suffix_of(path) in READERS:
        texts = list(_column(path, fields))
    else:
        texts = [(LINE.format(n), line.removesuffix("\n").removesuffix("\r")) for n, line in lines(path)]
    if not any(text.strip() for _, text in texts):
        raise UserError(f"{path}: holds no text")
    return texts


def _column(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The texts in the first of the columns that a row has, each with its place."""
    table = open_table(path)
    needed = {found[0] for name in fields if (found := path_in(table.names or (), name)) is not None}
    if table.names is not None and not needed:
        raise UserError(_no_field(table.label, fields, table.names))
    for column in needed:
        check_once(table, column, "field")
    for number, row in table.read(sorted(needed), 0):
        name = next((name for name in fields if path_in(row, name) is not None), None)
        if name is None:
            raise UserError(_no_field(table.place(number), fields, list(row)))
        yield table.unit.format(number), text_in(table, number, row, name, "field")


def _no_field(place: str, fields: tuple[str, ...], names: Sequence[str]) -> str:
    if len(fields) == 1:
        return no_column(place, fields[0], "field", names)
    said = " or ".join(fields)
    return f"{place}: no text in the field {said}; has: {', '.join(names)}; name it by field=NAME"


def answers(job: Answering, texts: list[str], done: int = 0) -> Iterator[list[str]]:
    """Answers in the order of the texts, batch by batch, "" to an empty one; a progress bar on stderr.

    Args:
        done: texts that are answered already, a multiple of the batch size.
    """
    import torch

    from llm2slm.data.progress import progress_bar

    with progress_bar(shown=True, transient=True) as bar:
        task = bar.add_task("generating", total=len(texts), completed=done, speed="")
        started = time.perf_counter()
        for start in range(done, len(texts), job.config.batch_size):
            part = texts[start : start + job.config.batch_size]
            prompts = [job.prefix + text.strip() + job.suffix for text in part if text.strip()]
            torch.manual_seed(job.config.seed + start)  # so that sampling goes on as if it had never been interrupted
            found = iter(job.model.generate_text(prompts, job.config.batch_size, **job.arguments) if prompts else [])
            yield [next(found) if text.strip() else "" for text in part]
            rate = (start + len(part) - done) / max(time.perf_counter() - started, 1e-9)
            bar.update(task, advance=len(part), speed=f"{rate:.1f} texts/s")


def answer_file(job: Answering, texts: list[str]) -> None:
    """Answers to a file of texts, where `output` says: rows, lines (a newline within an answer as a space), or the
    terminal. A file that an earlier call of the same settings left half-written is continued, a finished one is kept.

    Raises:
        UserError: the file is one that an earlier call finished with other settings.
    """
    if job.config.output is None:
        for found in answers(job, texts):
            print("\n".join(" ".join(answer.splitlines()) for answer in found))
        return
    path = Path(job.config.output)
    path = path.resolve() if path.is_symlink() else path  # what a link points to is written, not the link
    decisive = json.loads(json.dumps(settings(job, texts)))  # as it is read again
    count = f"{len(texts)} answer{'s' if len(texts) != 1 else ''}"
    part = path.with_name(path.name + ".part")
    if not part.is_file() and finished(path, decisive):
        print(f"{job.config.output}: {count}, there already by the same settings")
        return
    file = ResumableLines(path, decisive, job.config.batch_size, len(texts))
    if file.done:
        print(f"llm2slm: {file.partial} holds {file.done} of {len(texts)} answers: going on", file=sys.stderr)
    try:
        for found in answers(job, texts, file.done):
            rows = zip(texts[file.done :], found, strict=False)
            if path.suffix == ".jsonl":
                file.append([json.dumps({"source": s, "prediction": a}, ensure_ascii=False) for s, a in rows])
            else:
                file.append([" ".join(a.splitlines()) for _, a in rows])
    except KeyboardInterrupt:
        print(f"llm2slm: {file.done} of {len(texts)} answers are in {file.partial}; to go on, give the same command",
              file=sys.stderr)  # fmt: skip
        file.close()
        raise
    content = "".join(f"{line}\n" for line in file.lines()).encode()
    file.put(path, content)
    record = json.dumps({"settings": decisive, "sha256": sha256(content).hexdigest()}, ensure_ascii=False)
    file.put(record_of(path), f"{record}\n".encode())
    file.discard()
    print(f"{job.config.output}: {count}")


def record_of(path: Path) -> Path:
    """The file beside the answers that holds what decided them."""
    return path.with_name(path.name + ".settings")


def finished(path: Path, decisive: Mapping[str, Any]) -> bool:
    """Whether a file holds the answers that these settings give, as an earlier call wrote them.

    Raises:
        UserError: it holds those of other settings; names them.
    """
    try:
        record = json.loads(record_of(path).read_text(encoding="utf-8"))
        known, digest = dict(record["settings"]), record["sha256"]
        if sha256(path.read_bytes()).hexdigest() != digest:
            return False  # it was written by somebody else since: as any other file that is there
    except (OSError, ValueError, TypeError, KeyError):
        return False
    if other := other_settings(known, decisive):
        raise UserError(
            f"{path}: holds the answers to an earlier command with other settings ({other}); remove it, or write to "
            "another file"
        )
    return True


def settings(job: Answering, texts: list[str]) -> dict[str, Any]:
    """What decides the answers to a file: one left half-written under other settings is not resumed."""
    from llm2slm.models.saving import own_fingerprint

    decisive = {
        "weights": own_fingerprint(job.model),
        "texts": runs.text_hash(texts),
        "prefix": job.prefix,
        **({"suffix": job.suffix} if job.suffix else {}),
        "overlong": None if job.config.overlong is None else job.config.overlong.value,
        **job.arguments,
    }
    if job.config.model.llm != PlainLLMConfig():
        decisive["llm"] = runs.plain(job.config.model.llm)
    if job.config.do_sample:
        decisive |= {"seed": job.config.seed, "batch_size": job.config.batch_size}
    return decisive
