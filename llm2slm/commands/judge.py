"""`llm2slm judge runs=[A,B]`: another model rates the answers of a run, or compares those of two.

DIR/
  replies.jsonl    the judge log: all replies, in no order; a resumed job requests only the missing ones
  verdicts.jsonl   row, order, verdict and reply of each question, in the order of the rows
  lost.jsonl       the rows that were lost most clearly (or rated lowest), the worst first
  judge.json       all results, with the judge, the settings and the usage
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.atomic import write_text
from llm2slm.commands import silence_libraries
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.judge_rows import instruction_of, read_rows
from llm2slm.commands.output_folder import check_folder
from llm2slm.config import JudgeConfig
from llm2slm.config.ranges import check_ranges
from llm2slm.evaluation.judge.client import EndpointClient, JudgeClient, Reply, base_url
from llm2slm.evaluation.judge.log import JudgeLog, Record, ReplyParser, missing_replies, request_replies, verdict
from llm2slm.evaluation.judge.verdicts import (
    PROMPTS,
    Question,
    Row,
    compared,
    cost,
    key,
    most_lost,
    preference,
    questions,
    rated,
    rating,
    winner,
    worst_rated,
)
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.tracking.summary import numbers
from llm2slm.tracking.tracker import Table
from llm2slm.types import UserError

SCHEMA = 1
"""Version of judge.json; raised when a field changes its meaning."""
OF_ENDPOINT = ("model", "key_env", "temperature", "parameters", "workers", "timeout", "retries", "wait")
OF_LOCAL = ("revision", "dtype", "attn_implementation", "quantization")
RESERVED = ("model", "messages", "stream", "n")
"""Request fields that the user cannot set: the job reads one complete reply."""


def run(config: JudgeConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Requests the missing verdicts; writes and prints the results of all of them.

    Raises:
        UserError: the predictions cannot be read or have different sources, or the judge fails.
    """
    started, out = time.perf_counter(), Path(config.out)
    check(config)
    rows = read_rows(config)
    judge, identity = local_client(config) if config.local is not None else endpoint_client(config)
    check_out(config, out)
    instruction = instruction_of(config)
    all_questions = questions(rows, config.reference, instruction)
    keys = [key(identity, question.prompt) for question in all_questions]
    parse: ReplyParser = rating if len(config.runs) == 1 else preference
    show_held()
    with track("judge", config, None) as tracking:
        with JudgeLog(out / "replies.jsonl") as log:
            prompts = {name: question.prompt for name, question in zip(keys, all_questions, strict=True)}
            refused = collect_replies(judge, prompts, parse, log, config)
            records = {name: log.replies.get(name, []) for name in keys}
        verdicts = [
            verdict_line(question, records[name], refused.get(name), parse)
            for question, name in zip(all_questions, keys, strict=True)
        ]
        scores = summary(config, verdicts)
        effort = usage(config, records, refused, parse, len(all_questions))
        result = {
            **provenance(config, judge, identity, records, instruction),
            **scores,
            "asked": effort | {"wall_seconds": time.perf_counter() - started},
        }
        write_lines(out / "verdicts.jsonl", verdicts)
        write_lines(out / "lost.jsonl", lost_lines(scores["lost"], rows, verdicts))
        write_text(out / "judge.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        tracking.summary(numbers({**scores, "asked": result["asked"]}))
        tracking.table("samples", verdict_table(verdicts[: config.logger.samples], rows))
        tracking.outputs(out)
    from llm2slm.evaluation.judge.table import show

    show(result, {row.number: row.source for row in rows})
    print(out / "judge.json")
    if all(line["verdict"] is None for line in verdicts):
        raise UserError(
            f"{out / 'verdicts.jsonl'}: none of {len(verdicts)} questions has a verdict; the first: "
            f"{verdicts[0]['why']}"
        )


def check(config: JudgeConfig) -> None:
    """Checks the configuration before anything is read, loaded or requested."""
    if len(config.runs) not in (1, 2):
        raise UserError("judge needs one run (ratings) or two (comparison): llm2slm judge RUN RUN ...")
    if (config.endpoint is None) == (config.local is None):
        raise UserError("judge needs endpoint=http://HOST:PORT/v1 model=NAME, or local=FOLDER_OR_ID: one of the two")
    if len({os.path.abspath(name) for name in config.runs}) < len(config.runs):  # noqa: PTH100  resolve() follows links
        raise UserError(f"runs=[{','.join(config.runs)}]: the same run twice; give two, or one to have it rated")
    defaults = JudgeConfig()
    for name in OF_LOCAL if config.local is None else OF_ENDPOINT:
        if getattr(config, name) != getattr(defaults, name):
            raise UserError(f"{name} is for {'local' if config.local is None else 'endpoint'}=...; leave it out")
    check_ranges(config)
    check_loggers(config.logger)
    if (config.price_in is None) != (config.price_out is None):
        raise UserError("price_in and price_out: give both, or neither")
    check_folder("out", Path(config.out))
    for name in RESERVED:
        if name in config.parameters:
            raise UserError(f"parameters.{name}: cannot be set; leave it out")


def endpoint_client(config: JudgeConfig) -> tuple[JudgeClient, dict[str, Any]]:
    """The client of the endpoint, and the settings that determine its replies.

    Raises:
        UserError: `model` is missing, the address is invalid, or the key is missing or malformed.
    """
    if not config.model:
        raise UserError("endpoint needs model=NAME: the endpoint's name of the judge model")
    given = {"temperature": config.temperature, "max_tokens": config.max_tokens, **config.parameters}
    parameters = {name: value for name, value in given.items() if value is not None}
    client = EndpointClient(
        base_url(str(config.endpoint)), config.model, parameters, api_key(config.key_env),
        timeout=config.timeout, retries=config.retries, wait=config.wait,
    )  # fmt: skip
    return client, {"model": config.model, "parameters": parameters}


def api_key(key_env: str | None) -> str | None:
    """The key in an environment variable. Messages repeat neither the key nor a value that may be a key."""
    if key_env is None:
        return None
    if not key_env.isidentifier():
        raise UserError("key_env: give the name of an environment variable, not the key itself")
    value = os.environ.get(key_env, "").strip()
    if not value:
        raise UserError(f"key_env={key_env}: this environment variable is not set")
    if not all("!" <= character <= "~" for character in value):
        raise UserError(f"key_env={key_env}: its value is no key (it holds a space, or a character beyond ASCII)")
    return value


def local_client(config: JudgeConfig) -> tuple[JudgeClient, dict[str, Any]]:
    """The client of a local model, on the GPU if there is one, and the settings that determine its replies."""
    from llm2slm.commands.device import device_type
    from llm2slm.config import LLMConfig
    from llm2slm.data.tokenization.tokenizer import load_tokenizer
    from llm2slm.evaluation.judge.local import LocalClient
    from llm2slm.models.hybrid import LLM2SLM
    from llm2slm.models.loading.configs import commit, locate, read_config
    from llm2slm.models.loading.pretrained import load_language_model
    from llm2slm.models.slm import contiguous_head

    silence_libraries()
    name = str(config.local)
    path = locate(name)
    if read_config(name, config.revision).model_type == LLM2SLM.config_class.model_type:
        raise UserError(f"local={name}: is a hybrid or has soft prompts; give a plain transformers model")
    tokenizer = load_tokenizer(path, config.revision)
    loaded = {key: getattr(config, key) for key in OF_LOCAL}
    model = load_language_model(LLMConfig(name, **loaded), tokenizer, frozen=True)
    contiguous_head(model).to(device_type("auto"))
    version = fingerprint(Path(path)) if Path(path).exists() else commit(name, config.revision)
    identity: dict[str, Any] = {
        "local": name,
        "version": version,
        "dtype": config.dtype,
        "max_tokens": config.max_tokens,
    }
    if config.quantization:  # earlier versions had no such field: their replies keep their keys
        identity["quantization"] = config.quantization
    return LocalClient(name, model, tokenizer, config.max_tokens), identity


def fingerprint(folder: Path) -> str:
    """A hash of names, sizes and modification times of a model folder's files, or of a GGUF file."""
    found = [folder] if folder.is_file() else folder.iterdir()
    files = sorted((path.name, path.stat()) for path in found if path.is_file())
    entries = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:12]


def check_out(config: JudgeConfig, out: Path) -> None:
    """Raises UserError if the folder holds verdicts of other runs or of another judge, which would be overwritten."""
    path = out / "judge.json"
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        other = found["runs"], found["judge"].get("model", found["judge"].get("local"))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: not written by llm2slm judge; give another out") from None
    if other != (list(config.runs), config.local or config.model):
        raise UserError(f"out={out}: holds the verdicts of {other[1]} on {', '.join(other[0])}; give another out")


def collect_replies(
    judge: JudgeClient, prompts: Mapping[str, str], parse: ReplyParser, log: JudgeLog, config: JudgeConfig
) -> dict[str, str]:
    """Requests the missing replies, with a progress bar. Returns the reason for each refused question, by key."""
    from llm2slm.progress import progress_bar

    total = len(prompts)
    done = total - len(missing_replies(prompts, parse, log, judge.attempts, config.again))
    if done:
        others = {record.place for name in prompts for record in log.replies.get(name, [])} - {judge.location}
        source = f" (some of them from {', '.join(sorted(others))})" if others else ""
        print(f"llm2slm: {log.path} holds the replies to {done} of {total} questions{source}", file=sys.stderr)
    started, new, tokens = time.perf_counter(), 0, 0
    with progress_bar(shown=True, transient=True) as bar:
        task = bar.add_task("judging", total=total, completed=done, speed="")

        def count(reply: Reply, finished: bool) -> None:
            nonlocal new, tokens
            new, tokens = new + finished, tokens + (reply.reply_tokens or 0)
            seconds = max(time.perf_counter() - started, 1e-9)
            bar.update(
                task, advance=int(finished), speed=f"{new / seconds:.1f} questions/s, {tokens / seconds:.0f} tokens/s"
            )

        workers = 0 if config.local is not None else config.workers
        try:
            return request_replies(judge, prompts, parse, log, workers=workers, again=config.again, on_reply=count)
        except KeyboardInterrupt:
            print(f"llm2slm: {done + new} of {total} questions are answered in {log.path}; run the same command "
                  "to continue", file=sys.stderr)  # fmt: skip
            raise
        except UserError as error:
            kept = f"; {done + new} of {total} questions are answered; run the same command to continue"
            raise UserError(f"{error}{kept if done + new else ''}") from None


def verdict_table(verdicts: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> Table:
    """The first verdicts with prompt, reference and answers, for the loggers."""
    by_number = {row.number: row for row in rows}
    count = len(rows[0].answers)
    columns = ["prompt", "reference", *(f"answer {n}" for n in range(1, count + 1)), "order", "verdict", "reply"]
    found = []
    for line in verdicts:
        row = by_number[line["row"]]
        verdict = None if line["verdict"] is None else str(line["verdict"])
        found.append([row.source, row.reference, *row.answers, line["order"], verdict, line["reply"]])
    return Table(columns, found)


def verdict_line(
    question: Question, records: Sequence[Record], refusal: str | None, parse: ReplyParser
) -> dict[str, Any]:
    """A line of verdicts.jsonl. Without a verdict, `verdict` is null and `why` gives the fault of the last reply."""
    found = next((record for record in records if verdict(record, parse) is not None), None)
    line = {"row": question.row, "order": question.order, "verdict": None, "letter": None, "reply": None, "why": None}
    if found is not None and found.text is not None:
        value = parse(found.text)
        line["verdict"] = value
        if isinstance(value, str):
            line |= {"verdict": winner(value, question.order), "letter": value}
        return line | {"reply": found.text}
    last = records[-1] if records else None
    why = refusal or (last.fault if last is not None else "") or "no verdict in its reply"
    return line | {"reply": None if last is None else last.text, "why": why}


def summary(config: JudgeConfig, verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of all verdicts, and the rows that were lost."""
    if len(config.runs) == 1:
        ratings = {line["row"]: line["verdict"] for line in verdicts}
        return {"ratings": rated(ratings, config.seed), "lost": worst_rated(ratings)}
    letters: dict[int, tuple[str | None, str | None]] = {}
    for ab, ba in zip(verdicts[::2], verdicts[1::2], strict=True):
        letters[ab["row"]] = (ab["letter"], ba["letter"])
    return {"pairs": compared(letters, config.seed), "lost": most_lost(letters)}


def usage(
    config: JudgeConfig,
    records: Mapping[str, Sequence[Record]],
    refused: Mapping[str, str],
    parse: ReplyParser,
    count: int,
) -> dict[str, Any]:
    """Requests, tokens and cost of all verdicts, earlier jobs included. Identical questions share one reply."""
    replies = [record for found in records.values() for record in found]
    silent = [r for r in replies if r.prompt_tokens is None or r.reply_tokens is None]
    tokens = sum(r.prompt_tokens or 0 for r in replies), sum(r.reply_tokens or 0 for r in replies)
    unread = {name: [r for r in found if verdict(r, parse) is None] for name, found in records.items()}
    failures = [name for name, found in unread.items() if found and len(found) == len(records[name])]
    priced = config.price_in is not None and config.price_out is not None
    return {
        "questions": count,
        "distinct": len(records),
        "replies": len(replies),
        "requests": sum(r.requests for r in replies),
        "prompt_tokens": tokens[0],
        "reply_tokens": tokens[1],
        "replies_without_usage": len(silent),
        "cost": cost(*tokens, config.price_in or 0.0, config.price_out or 0.0) if priced else None,
        "replies_without_verdict": sum(map(len, unread.values())),
        "parse_failures": len(failures),
        "refused": len(set(refused) - set(failures)),
        "judge_seconds": sum(r.seconds for r in replies),
    }


def provenance(
    config: JudgeConfig,
    judge: JudgeClient,
    identity: Mapping[str, Any],
    records: Mapping[str, Sequence[Record]],
    instruction: str,
) -> dict[str, Any]:
    """The judge, prompts and settings that produced the verdicts."""
    replies = [record for found in records.values() for record in found]
    settings = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("endpoint", "key_env", "logger")
    }
    endpoint = {"endpoint": judge.location} if config.local is None else {}
    return {
        "schema": SCHEMA,
        "verb": "judge",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": runs.git_commit(),
        "versions": runs.versions(),
        "runs": list(config.runs),
        "judge": {
            **identity,
            **endpoint,
            "answered_by": sorted({r.model for r in replies if r.model is not None}),
            "places": sorted({r.place for r in replies}),
            "first_reply": min((r.at for r in replies), default=None),
            "last_reply": max((r.at for r in replies), default=None),
        },
        "prompts": {"version": PROMPTS, "kind": "rating" if len(config.runs) == 1 else "comparison",
                    "reference": config.reference, "instruction": instruction,
                    "after": "Zheng et al. 2023, arXiv 2306.05685"},
        "settings": settings,
    }  # fmt: skip


def lost_lines(lost: Sequence[int], rows: Sequence[Row], verdicts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of lost.jsonl: the lost rows with their verdicts."""
    by_number = {row.number: row for row in rows}
    by_row: dict[int, list[Mapping[str, Any]]] = {}
    for line in verdicts:
        by_row.setdefault(line["row"], []).append({name: line[name] for name in ("order", "verdict", "reply")})
    return [
        {
            "row": number,
            "source": by_number[number].source,
            "target": by_number[number].reference,
            "predictions": list(by_number[number].answers),
            "verdicts": by_row[number],
        }
        for number in lost
    ]


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines atomically."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
