"""`llm2slm judge runs=[A,B]`: another model rates the answers of a run, or compares those of two.

DIR/
  replies.jsonl    every reply as it came, in no order; a job that is begun again asks only for what is missing here
  verdicts.jsonl   row, order, verdict and reply of each question, in the order of the rows
  lost.jsonl       the rows that were lost most clearly (or rated lowest), the worst first
  judge.json       all numbers, and how they came about
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
from llm2slm.commands import hush
from llm2slm.commands.held import show_held
from llm2slm.commands.judged import asked_with, read_rows
from llm2slm.commands.out import check_folder
from llm2slm.config import JudgeConfig
from llm2slm.config.ranges import check_ranges
from llm2slm.evaluation import judge as judging
from llm2slm.evaluation.asking import Endpoint, Judge, LocalJudge, Reply, address
from llm2slm.evaluation.judge import (
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
from llm2slm.evaluation.replies import Reader, Record, ReplyLog, ask_all, open_questions, verdict
from llm2slm.types import UserError

SCHEMA = 1
"""Version of judge.json; raised when a field changes its meaning."""
OF_ENDPOINT = ("model", "key_env", "temperature", "parameters", "workers", "timeout", "retries", "wait")
OF_LOCAL = ("revision", "dtype", "attn_implementation", "quantization")
DTYPES = ("float32", "bfloat16", "float16")
OURS = ("model", "messages", "stream", "n")
"""Fields of a request that are not for the user: one whole reply is read."""


def run(config: JudgeConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Asks for the verdicts that are missing, and writes and prints what all of them say.

    Raises:
        UserError: answers that cannot be read or are not to the same questions; a judge that cannot be asked.
    """
    started, out = time.perf_counter(), Path(config.out)
    check(config)
    rows = read_rows(config)
    judge, identity = local(config) if config.local is not None else remote(config)
    check_out(config, out)
    instruction = asked_with(config)
    asked = questions(rows, config.reference, instruction)
    keys = [key(identity, question.prompt) for question in asked]
    read: Reader = rating if len(config.runs) == 1 else preference
    show_held()
    with ReplyLog(out / "replies.jsonl") as log:
        refused = ask(judge, dict(zip(keys, (q.prompt for q in asked), strict=True)), read, log, config)
        records = {name: log.replies.get(name, []) for name in keys}
    verdicts = [
        verdict_line(question, records[name], refused.get(name), read)
        for question, name in zip(asked, keys, strict=True)
    ]
    found = summary(config, verdicts)
    result = {
        **about(config, judge, identity, records, instruction),
        **found,
        "asked": usage(config, records, refused, read, len(asked)) | {"wall_seconds": time.perf_counter() - started},
    }
    write_lines(out / "verdicts.jsonl", verdicts)
    write_lines(out / "lost.jsonl", lost_lines(found["lost"], rows, verdicts))
    write_text(out / "judge.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    from llm2slm.evaluation.judge_table import show

    show(result, {row.number: row.source for row in rows})
    print(out / "judge.json")
    if all(line["verdict"] is None for line in verdicts):
        raise UserError(
            f"{out / 'verdicts.jsonl'}: none of {len(verdicts)} questions has a verdict; the first: "
            f"{verdicts[0]['why']}"
        )


def check(config: JudgeConfig) -> None:
    """What is wrong is said before anything is read, loaded or asked."""
    if len(config.runs) not in (1, 2):
        raise UserError("judge needs one run (ratings) or two (comparison): llm2slm judge RUN RUN ...")
    if (config.endpoint is None) == (config.local is None):
        raise UserError("judge needs endpoint=http://HOST:PORT/v1 model=NAME, or local=FOLDER_OR_ID: one of the two")
    if len({os.path.abspath(place) for place in config.runs}) < len(config.runs):  # noqa: PTH100  resolve() follows links
        raise UserError(f"runs=[{','.join(config.runs)}]: the same run twice; give two, or one to have it rated")
    silent = JudgeConfig()
    for name in OF_LOCAL if config.local is None else OF_ENDPOINT:
        if getattr(config, name) != getattr(silent, name):
            raise UserError(f"{name} is for {'local' if config.local is None else 'endpoint'}=...; leave it out")
    check_ranges(config)
    if (config.price_in is None) != (config.price_out is None):
        raise UserError("price_in and price_out: give both, or neither")
    if config.dtype not in DTYPES:
        raise UserError(f"dtype={config.dtype} is unknown; possible: {', '.join(DTYPES)}")
    check_folder("out", Path(config.out))
    for name in OURS:
        if name in config.parameters:
            raise UserError(f"parameters.{name}: is not to be set; leave it out")


def remote(config: JudgeConfig) -> tuple[Judge, dict[str, Any]]:
    """The endpoint, and what of it decides a reply.

    Raises:
        UserError: no model named, an address that is none, or no key where one is named.
    """
    if not config.model:
        raise UserError("endpoint needs model=NAME: what the endpoint calls the judge")
    given = {"temperature": config.temperature, "max_tokens": config.max_tokens, **config.parameters}
    parameters = {name: value for name, value in given.items() if value is not None}
    endpoint = Endpoint(
        address(str(config.endpoint)), config.model, parameters, secret(config.key_env),
        timeout=config.timeout, retries=config.retries, wait=config.wait,
    )  # fmt: skip
    return endpoint, {"model": config.model, "parameters": parameters}


def secret(key_env: str | None) -> str | None:
    """The key in an environment variable. No message repeats it, nor what may be a key in the variable's place."""
    if key_env is None:
        return None
    if not key_env.isidentifier():
        raise UserError("key_env: give the name of an environment variable, not the key itself")
    found = os.environ.get(key_env, "").strip()
    if not found:
        raise UserError(f"key_env={key_env}: this environment variable is not set")
    if not all("!" <= character <= "~" for character in found):
        raise UserError(f"key_env={key_env}: what it holds is no key (it has a space, or a character beyond ASCII)")
    return found


def local(config: JudgeConfig) -> tuple[Judge, dict[str, Any]]:
    """The model on this machine, on the GPU where there is one, and what of it decides a reply."""
    from llm2slm.commands.place import device_type
    from llm2slm.config import LLMConfig
    from llm2slm.data.tokenizer import load_tokenizer
    from llm2slm.models.hybrid import LLM2SLM
    from llm2slm.models.pretrained import commit, load_language_model, locate, read_config
    from llm2slm.models.slm import contiguous_head

    hush()
    name = str(config.local)
    place = locate(name)
    if read_config(name, config.revision).model_type == LLM2SLM.config_class.model_type:
        raise UserError(f"local={name}: is a hybrid, or has virtual tokens; a judge is a plain model of transformers")
    tokenizer = load_tokenizer(place, config.revision)
    loaded = {key: getattr(config, key) for key in OF_LOCAL}
    model = load_language_model(LLMConfig(name, **loaded), tokenizer, frozen=True)
    contiguous_head(model).to(device_type("auto"))
    version = fingerprint(Path(place)) if Path(place).exists() else commit(name, config.revision)
    identity: dict[str, Any] = {
        "local": name,
        "version": version,
        "dtype": config.dtype,
        "max_tokens": config.max_tokens,
    }
    if config.quantization:  # not asked for in earlier versions, whose replies are found by the rest
        identity["quantization"] = config.quantization
    return LocalJudge(name, model, tokenizer, config.max_tokens), identity


def fingerprint(folder: Path) -> str:
    """Changes when a file of a model's folder, or its GGUF file, is written anew."""
    found = [folder] if folder.is_file() else folder.iterdir()
    files = sorted((path.name, path.stat()) for path in found if path.is_file())
    told = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def check_out(config: JudgeConfig, out: Path) -> None:
    """Refuses a folder with the verdicts of other runs, or of another judge: they would be written over."""
    path = out / "judge.json"
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        other = found["runs"], found["judge"].get("model", found["judge"].get("local"))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: no verdicts of llm2slm judge; give another out") from None
    if other != (list(config.runs), config.local or config.model):
        raise UserError(f"out={out}: holds the verdicts of {other[1]} on {', '.join(other[0])}; give another out")


def ask(judge: Judge, prompts: Mapping[str, str], read: Reader, log: ReplyLog, config: JudgeConfig) -> dict[str, str]:
    """Asks what is missing, under a progress bar. Returns why questions were refused, by key."""
    from llm2slm.evaluation.predict import progress_bar

    total = len(prompts)
    done = total - len(open_questions(prompts, read, log, judge.tries, config.again))
    if done:
        others = {record.place for name in prompts for record in log.replies.get(name, [])} - {judge.place}
        whose = f" (some of them from {', '.join(sorted(others))})" if others else ""
        print(f"llm2slm: {log.path} holds the replies to {done} of {total} questions{whose}", file=sys.stderr)
    started, new, tokens = time.perf_counter(), 0, 0
    with progress_bar(shown=sys.stderr.isatty(), transient=True) as bar:
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
            return ask_all(judge, prompts, read, log, workers=workers, again=config.again, on_reply=count)
        except KeyboardInterrupt:
            print(f"llm2slm: {done + new} of {total} questions are answered in {log.path}; to go on, give the same "
                  "command", file=sys.stderr)  # fmt: skip
            raise
        except UserError as error:
            kept = (
                f"; {done + new} of {total} questions are answered, and the same command goes on" if new + done else ""
            )
            raise UserError(f"{error}{kept}") from None


def verdict_line(question: Question, records: Sequence[Record], refusal: str | None, read: Reader) -> dict[str, Any]:
    """A line of verdicts.jsonl. Without a verdict it is null, and `why` says what was wrong with the last reply."""
    found = next((record for record in records if verdict(record, read) is not None), None)
    line = {"row": question.row, "order": question.order, "verdict": None, "letter": None, "reply": None, "why": None}
    if found is not None and found.text is not None:
        said = read(found.text)
        both = {"verdict": winner(said, question.order), "letter": said} if isinstance(said, str) else {"verdict": said}
        return line | both | {"reply": found.text}
    last = records[-1] if records else None
    why = refusal or (last.fault if last is not None else "") or "no verdict in its reply"
    return line | {"reply": None if last is None else last.text, "why": why}


def summary(config: JudgeConfig, verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of all verdicts, and the rows that were lost."""
    if len(config.runs) == 1:
        ratings = {line["row"]: line["verdict"] for line in verdicts}
        return {"ratings": rated(ratings, config.seed), "lost": worst_rated(ratings)}
    letters: dict[int, tuple[str | None, str | None]] = {}
    for ab, ba in zip(verdicts[::2], verdicts[1::2], strict=True):
        letters[ab["row"]] = (ab["letter"], ba["letter"])
    return {"pairs": compared(letters, config.seed), "lost": most_lost(letters)}


def usage(
    config: JudgeConfig, records: Mapping[str, Sequence[Record]], refused: Mapping[str, str], read: Reader, asked: int
) -> dict[str, Any]:
    """What the verdicts took, those of earlier calls included. Questions of the same words are one."""
    replies = [record for found in records.values() for record in found]
    silent = [r for r in replies if r.prompt_tokens is None or r.reply_tokens is None]
    tokens = sum(r.prompt_tokens or 0 for r in replies), sum(r.reply_tokens or 0 for r in replies)
    unread = {name: [r for r in found if verdict(r, read) is None] for name, found in records.items()}
    failures = [name for name, found in unread.items() if found and len(found) == len(records[name])]
    priced = config.price_in is not None and config.price_out is not None
    return {
        "questions": asked,
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


def about(
    config: JudgeConfig,
    judge: Judge,
    identity: Mapping[str, Any],
    records: Mapping[str, Sequence[Record]],
    instruction: str,
) -> dict[str, Any]:
    """How the verdicts came about."""
    replies = [record for found in records.values() for record in found]
    settings = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in ("endpoint", "key_env")
    }
    asked = {"endpoint": judge.place} if config.local is None else {}
    return {
        "schema": SCHEMA,
        "verb": "judge",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": runs.git_commit(),
        "versions": runs.versions(),
        "runs": list(config.runs),
        "judge": {
            **identity,
            **asked,
            "answered_by": sorted({r.model for r in replies if r.model is not None}),
            "places": sorted({r.place for r in replies}),
            "first_reply": min((r.at for r in replies), default=None),
            "last_reply": max((r.at for r in replies), default=None),
        },
        "prompts": {"version": judging.PROMPTS, "kind": "rating" if len(config.runs) == 1 else "comparison",
                    "reference": config.reference, "instruction": instruction,
                    "after": "Zheng et al. 2023, arXiv 2306.05685"},
        "settings": settings,
    }  # fmt: skip


def lost_lines(lost: Sequence[int], rows: Sequence[Row], verdicts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of lost.jsonl: the rows with what was said of them."""
    by_number = {row.number: row for row in rows}
    said: dict[int, list[Mapping[str, Any]]] = {}
    for line in verdicts:
        said.setdefault(line["row"], []).append({name: line[name] for name in ("order", "verdict", "reply")})
    return [
        {
            "row": number,
            "source": by_number[number].source,
            "target": by_number[number].reference,
            "predictions": list(by_number[number].answers),
            "verdicts": said[number],
        }
        for number in lost
    ]


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A file of JSON lines, in one step."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
