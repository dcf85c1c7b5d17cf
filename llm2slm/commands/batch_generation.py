"""Batch generation of `llm2slm generate input=FILE`: reads texts, generates answers in order, writes and resumes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm import runs
from llm2slm.config import GenerateConfig, PlainLLMConfig
from llm2slm.data.sources.rows import READERS, open_table, suffix_of
from llm2slm.data.sources.rows.table import LINE, check_once, no_column, path_in, text_in
from llm2slm.data.sources.rows.text import lines
from llm2slm.out_of_memory import explained
from llm2slm.resumable import ResumableLines, other_settings
from llm2slm.shown_text import in_terminal
from llm2slm.types import Decoding, UserError

if TYPE_CHECKING:
    from llm2slm.decoding.decoder import Decoder

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class BatchGeneration:
    """The decoder and its settings: text before and after every input, and arguments of transformers' `generate`."""

    decoder: Decoder
    config: GenerateConfig
    prefix: str
    arguments: dict[str, Any]
    suffix: str = ""


def check_writable(path: Path) -> None:
    """Raises UserError if the output cannot be written; creates nothing."""
    if path.is_dir():
        raise UserError(f"output={path}: is a folder; give a file")
    if path.exists() and not path.is_file():
        raise UserError(f"output={path}: is not a regular file; leave output out to print the answers")
    home = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if not home.is_dir():
        raise UserError(f"output={path}: {home} is not a folder")
    if not os.access(path if path.exists() else home, os.W_OK):
        raise UserError(f"output={path}: no permission to write there")


def read(path: Path, fields: tuple[str, ...] = ("source", "prompt")) -> list[tuple[str, str]]:
    """The texts of a file, each with its location (`line 3`).

    Args:
        path: json, jsonl, csv, tsv or parquet, as for `data.train`; any other file has one text on each line.
        fields: column names, nested ones as dotted paths; the first one that a row has is used.

    Returns:
        The texts in order. A blank line is an empty text, which gets an empty answer.

    Raises:
        UserError: the file cannot be read, or a row has no text; the message names the line (for parquet, the row).
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
    """The texts in the first column of `fields` that a row has, each with its location."""
    table = open_table(path)
    needed = {found[0] for name in fields if (found := path_in(table.names or (), name)) is not None}
    if table.names is not None and not needed:
        raise UserError(_no_field(table.label, fields, table.names))
    for column in needed:
        check_once(table, column, "field")
    for number, row in table.read(sorted(needed), 0):
        name = next((name for name in fields if path_in(row, name) is not None), None)
        if name is None:
            raise UserError(_no_field(table.location(number), fields, list(row)))
        yield table.unit.format(number), text_in(table, number, row, name, "field")


def _no_field(location: str, fields: tuple[str, ...], names: Sequence[str]) -> str:
    if len(fields) == 1:
        return no_column(location, fields[0], "field", names)
    return f"{location}: no text in the field {' or '.join(fields)}; has: {', '.join(names)}; name it by field=NAME"


def generate_batches(job: BatchGeneration, texts: list[str], done: int = 0) -> Iterator[list[str]]:
    """Answers in the order of the texts, batch by batch, with a progress bar. The answer to an empty text is "".

    Args:
        done: number of texts with an answer from an earlier job, a multiple of the batch size.
    """
    import torch

    from llm2slm.decoding.decoder import generate_text
    from llm2slm.progress import progress_bar

    with progress_bar(shown=True, transient=True) as bar:
        task = bar.add_task("generating", total=len(texts), completed=done, speed="")
        started = time.perf_counter()
        for start in range(done, len(texts), job.config.batch_size):
            part = texts[start : start + job.config.batch_size]
            prompts = [job.prefix + text.strip() + job.suffix for text in part if text.strip()]
            torch.manual_seed(job.config.seed + start)  # a resumed job samples the same answers
            with explained(f"a batch of {len(prompts)} answers", "lower batch_size"):
                found = generate_text(job.decoder, prompts, job.config.batch_size, **job.arguments)
            answers = iter(found)
            yield [next(answers) if text.strip() else "" for text in part]
            rate = (start + len(part) - done) / max(time.perf_counter() - started, 1e-9)
            bar.update(task, advance=len(part), speed=f"{rate:.1f} texts/s")


def generate_file(job: BatchGeneration, texts: list[str]) -> list[str]:
    """Generates the answers to a file of texts and writes them to `output`: JSON rows, or one answer on each line, with
    line ends replaced by spaces; without `output` to the terminal. An unfinished output of the same settings is
    continued; a finished one is kept.

    Returns:
        All answers in the order of the texts, each as a line of the output has it.

    Raises:
        UserError: the output was finished by a command with other settings.
    """
    if job.config.output is None:
        found: list[str] = []
        for answers in generate_batches(job, texts):
            lines = [" ".join(answer.splitlines()) for answer in answers]
            print("\n".join(map(in_terminal, lines)))
            found += lines
        return found
    path = Path(job.config.output)
    path = path.resolve() if path.is_symlink() else path  # the target of a link is written, not the link
    decisive = json.loads(json.dumps(settings(job, texts)))  # as it will be read
    count = f"{len(texts)} answer{'s' if len(texts) != 1 else ''}"
    part = path.with_name(path.name + ".part")
    if not part.is_file() and finished(path, decisive):
        print(f"{job.config.output}: {count}, already complete with the same settings")
        return answers_in(path)
    with closing(ResumableLines(path, decisive, job.config.batch_size, len(texts))) as file:
        _generate_missing(job, texts, file)
        content = "".join(f"{line}\n" for line in file.lines()).encode()
        file.put(path, content)
        record = json.dumps({"settings": decisive, "sha256": sha256(content).hexdigest()}, ensure_ascii=False)
        file.put(record_of(path), f"{record}\n".encode())
        file.discard()
    print(f"{job.config.output}: {count}")
    return answers_in(path)


def _generate_missing(job: BatchGeneration, texts: list[str], file: ResumableLines) -> None:
    """Generates the answers that the file lacks, and appends them batch by batch."""
    if file.done:
        print(f"llm2slm: {file.partial} holds {file.done} of {len(texts)} answers: continuing", file=sys.stderr)
    try:
        for answers in generate_batches(job, texts, file.done):
            rows = zip(texts[file.done :], answers, strict=False)
            if file.path.suffix == ".jsonl":
                file.append([json.dumps({"source": s, "prediction": a}, ensure_ascii=False) for s, a in rows])
            else:
                file.append([" ".join(a.splitlines()) for _, a in rows])
    except (KeyboardInterrupt, UserError):
        print(f"llm2slm: {file.done} of {len(texts)} answers are in {file.partial}; run the same command to continue",
              file=sys.stderr)  # fmt: skip
        raise


def answers_in(path: Path) -> list[str]:
    """The answers in a finished output."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line)["prediction"] for line in lines] if path.suffix == ".jsonl" else lines


def record_of(path: Path) -> Path:
    """The file next to the answers with the settings that determined them."""
    return path.with_name(path.name + ".settings")


def finished(path: Path, decisive: Mapping[str, Any]) -> bool:
    """Whether a file is the unchanged output of an earlier command with the same settings.

    Raises:
        UserError: it is the output of a command with other settings; the message lists them.
    """
    try:
        record = json.loads(record_of(path).read_text(encoding="utf-8"))
        known, digest = dict(record["settings"]), record["sha256"]
        if sha256(path.read_bytes()).hexdigest() != digest:
            return False  # changed since: treated as any other existing file
    except (OSError, ValueError, TypeError, KeyError):
        return False
    if other := other_settings(known, decisive):
        raise UserError(
            f"{path}: holds the answers to an earlier command with other settings ({other}); remove it, or write to "
            "another file"
        )
    return True


def settings(job: BatchGeneration, texts: list[str]) -> dict[str, Any]:
    """The settings that determine the answers; an unfinished output is resumed only with the same ones."""
    from llm2slm.commands.cascade_rule import number_or_text
    from llm2slm.decoding.cascade import CascadeDecoder
    from llm2slm.decoding.choose import EXACT
    from llm2slm.models.saving import own_fingerprint

    decisive = {
        "weights": own_fingerprint(job.decoder.model),
        "texts": runs.text_hash(texts),
        "prefix": job.prefix,
        **({"suffix": job.suffix} if job.suffix else {}),
        "overlong": None if job.config.overlong is None else job.config.overlong.value,
        **job.arguments,
    }
    if job.config.decoding not in EXACT or (job.config.do_sample and job.config.decoding != Decoding.generate):
        decisive["decoding"] = job.config.decoding.value
    if isinstance(job.decoder, CascadeDecoder):
        rule = job.decoder.rule
        decisive["cascade"] = [number_or_text(rule.threshold), rule.confidence.value]
    if job.config.model.llm != PlainLLMConfig():
        decisive["llm"] = runs.plain(job.config.model.llm)
    if job.config.do_sample:
        decisive |= {"seed": job.config.seed, "batch_size": job.config.batch_size}
    return decisive
