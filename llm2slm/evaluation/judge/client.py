"""Those who can be asked: a chat-completions endpoint over HTTP, or a model on this machine.

Both take one prompt, as a user's turn, and give a `Reply`. What a server does wrong ends in one of four ways: it is
tried again (busy, failing, too slow), the reply is malformed and counted as such, the one question is refused, or the
job ends with a `UserError`. A key goes into the header of a request and nowhere else: what comes back is searched for
it before anybody sees it.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from llm2slm.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST_WAIT = 60.0
"""Seconds between two tries at most."""
LARGEST_REPLY = 1 << 24
"""Bytes of a reply at most."""
TRY_AGAIN = frozenset({408, 409, 425, 429})  # and all from 500
REFUSALS = frozenset({400, 413, 422})
HINTS = {
    401: "; is key_env set, and right?",
    403: "; is key_env set, and right?",
    404: "; are endpoint and model right?",
}
MOVED = "; it sends requests on to another address, which are not followed: give that address as endpoint"
SHORTEST_SECRET = 8
"""Characters. What local servers are given for want of a key ("EMPTY", "none") is no secret, but may be a word."""
_BROKEN = (OSError, http.client.HTTPException)  # no connection, none to the end, or nothing that is HTTP


@dataclass(frozen=True)
class Reply:
    """What came back. `text` is None where nothing did that could be a verdict; `fault` then says why.

    Attributes:
        prompt_tokens, reply_tokens: as the judge itself counts them; None where it does not say.
        requests: how many it took. seconds: from the first to the end of the last one.
        model: what an endpoint says has answered.
    """

    text: str | None
    fault: str = ""
    prompt_tokens: int | None = None
    reply_tokens: int | None = None
    requests: int = 1
    seconds: float = 0.0
    model: str | None = None


class Refused(Exception):
    """The judge takes no such question, as one that is too long for it; others may do."""


class Stopped(Exception):
    """The job ended while a question waited."""


class Judge(Protocol):
    """Whoever can be asked."""

    place: str
    """Where it is, as files and messages may say it."""
    tries: int
    """How often the same question is asked where a reply holds no verdict."""

    def ask(self, prompt: str, stop: threading.Event) -> Reply:
        """Its reply to one prompt. Raises Refused, UserError, or Stopped once `stop` is set."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A request carries a key: it goes where the user said, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """A chat-completions endpoint. May be asked by several threads at once.

    Args:
        address: up to its version, as http://localhost:8000/v1, without credentials.
        parameters: fields of a request beside model and messages.
        key: sent as a bearer token. None: no key.
        timeout: seconds for one request. retries: further tries of a failed one. wait: seconds before the first of
            them, doubled for each next one up to `LONGEST_WAIT`; as long as the server says where that is longer, up to
            the same.
    """

    tries = 2

    def __init__(
        self,
        address: str,
        model: str,
        parameters: Mapping[str, Any],
        key: str | None = None,
        *,
        timeout: float = 120.0,
        retries: int = 6,
        wait: float = 1.0,
    ) -> None:
        self.place, self.model, self.parameters = address, model, dict(parameters)
        self.timeout, self.retries, self.wait = timeout, retries, wait
        self._key = key
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._reached = False  # by any request: from then on a lost connection is not a wrong address
        self._not_before = 0.0  # the time until which the server has asked all to wait

    def ask(self, prompt: str, stop: threading.Event) -> Reply:
        """The reply to a prompt.

        Raises:
            Refused: the endpoint takes no such question.
            UserError: it cannot be reached, refuses all, or has failed too often.
            Stopped: `stop` was set.
        """
        message = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.parameters}
        body = json.dumps(message).encode()
        started, failure = time.monotonic(), ""
        for tried in range(1, self.retries + 2):
            self._pause(self._not_before - time.monotonic(), stop)
            try:
                status, headers, content = self._post(body)
                self._reached = True
            except _BROKEN as error:
                failure, headers = self._broken(error), None
            else:
                if 200 <= status < 300:
                    return self._reply(content, tried, time.monotonic() - started)
                failure = f"HTTP {status}{self._complaint(content)}"
                if status in REFUSALS:
                    raise Refused(failure)
                if status not in TRY_AGAIN and status < 500:
                    hint = HINTS.get(status, "") if status >= 400 else MOVED
                    raise UserError(f"{self.place}: {failure}{hint}")
            if tried <= self.retries:
                self._back_off(tried, headers, stop)
        times = f"{self.retries + 1} requests in a row" if self.retries else "a request"
        raise UserError(f"{self.place}: {times} failed, the last one with: {failure}")

    def _post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """One request: status, headers and content of whatever is answered before the time is over."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "llm2slm"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.place}/chat/completions", body, headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            response = self._opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:  # an answer too
            with error:
                return error.code, dict(error.headers), error.read(1 << 16)
        with response:
            parts, size, expected = [], 0, response.length  # None: to the end of the connection
            while (expected is None or size < expected) and (part := response.read1(1 << 16)):
                parts.append(part)
                size += len(part)
                if time.monotonic() > deadline:
                    raise TimeoutError
                if size > LARGEST_REPLY:
                    raise UserError(f"{self.place}: a reply of more than {LARGEST_REPLY} bytes; that is no judge")
            if expected is not None and size < expected:
                raise http.client.IncompleteRead(b"", expected - size)
            return response.status, dict(response.headers), b"".join(parts)

    def _broken(self, error: Exception) -> str:
        """What broke a connection, in words.

        Raises:
            UserError: waiting will not mend it: there has never been one, or the server cannot be trusted.
        """
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            return f"no reply within {self.timeout:g} s"
        said = self._safe(str(getattr(reason, "strerror", None) or reason or type(reason).__name__))
        unreachable = isinstance(error, urllib.error.URLError) and not self._reached
        if isinstance(reason, ssl.SSLCertVerificationError) or unreachable:
            raise UserError(
                f"{self.place}: cannot be reached ({said}); is endpoint right, and the server up?"
            ) from None
        return f"a lost connection ({said})"

    def _back_off(self, tried: int, headers: Mapping[str, str] | None, stop: threading.Event) -> None:
        """Waits before the next try; where the server says how long, its other askers wait as well."""
        told = retry_after(next((v for k, v in (headers or {}).items() if k.lower() == "retry-after"), None))
        if told is not None:
            self._not_before = max(self._not_before, time.monotonic() + min(told, LONGEST_WAIT))
        seconds = self.wait * 2 ** min(tried - 1, 30) * random.uniform(0.75, 1.25)  # not all at the same moment
        self._pause(min(seconds, LONGEST_WAIT), stop)

    def _pause(self, seconds: float, stop: threading.Event) -> None:
        if stop.wait(max(seconds, 0.0)):
            raise Stopped

    def _reply(self, content: bytes, requests: int, seconds: float) -> Reply:
        """What a successful answer holds; its shape is the server's word, so nothing of it is taken for granted."""
        taken: dict[str, Any] = {"requests": requests, "seconds": seconds}
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            return Reply(None, f"not JSON{self._complaint(content)}", **taken)
        body = body if isinstance(body, dict) else {}
        usage = body.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        taken |= {"prompt_tokens": _count(usage, "prompt_tokens"), "reply_tokens": _count(usage, "completion_tokens")}
        model = body.get("model")
        taken["model"] = self._safe(model) if isinstance(model, str) else None
        try:
            text = body["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return Reply(None, f"no choices{self._complaint(content)}", **taken)
        if not isinstance(text, str):
            return Reply(None, "no text", **taken)
        return Reply(self._safe(text), **taken)

    def _complaint(self, content: bytes) -> str:
        """What the server itself says is wrong, on one short line, with a colon in front; "" where it says nothing."""
        text = content.decode("utf-8", "replace")
        try:
            told = json.loads(text)
            for name in ("error", "message", "detail"):
                told = told.get(name, told) if isinstance(told, dict) else told
            text = told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass  # not JSON: as it stands
        line = " ".join(self._safe(text).split())[:300]
        return f": {line}" if line and line != "{}" else ""

    def _safe(self, text: str) -> str:
        """A server's words without the key, should it repeat it, and without half characters (lone surrogates)."""
        if self._key is not None and len(self._key) >= SHORTEST_SECRET:
            text = text.replace(self._key, "***")
        return whole(text)


def whole(text: str) -> str:
    """The text with half characters (lone surrogates), which no file can hold, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header says, as a number or as a date; None where it says nothing that can be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if seconds < float("inf") else None  # nan is not below either


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def address(endpoint: str) -> str:
    """An endpoint's address as requests go to it, and as it may be written down.

    Raises:
        UserError: it is none, or it carries credentials (which are not repeated).
    """
    rule = "give http://HOST:PORT/v1 or https://HOST/v1"
    try:
        parts = urlsplit(endpoint.strip())
        _ = parts.port  # refuses one that is no number
    except ValueError:
        raise UserError(f"endpoint: that is no address; {rule}") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(f"endpoint: {rule}, with nothing before an @ or after a ?; the key's place is key_env=NAME")
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-~]+", endpoint.strip()):
        raise UserError(f"endpoint: that is no address; {rule}")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/chat/completions")


class LocalJudge:
    """A model on this machine, greedy. A decoder-only one is asked in its chat template, where it has one.

    Args:
        model, tokenizer: a language model that writes, on the device where it shall do so.
        max_tokens: of a reply.
    """

    tries = 1  # the same question has the same reply

    def __init__(self, place: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        from llm2slm.data.tokenization.plain_text import PlainText

        self.place, self.model, self.tokenizer, self.max_tokens = place, model.eval(), tokenizer, max_tokens
        self._encode = PlainText(tokenizer)
        self._in_template: PlainText | None = None
        self.model.generation_config = self._greedy()  # set, not handed over: what a call leaves out is taken from here

    def ask(self, prompt: str, stop: threading.Event) -> Reply:  # noqa: ARG002 - nothing here waits
        """The reply to a prompt.

        Raises:
            Refused: the model has no positions for the prompt and a reply.
        """
        import torch

        started = time.monotonic()
        ids = self._ids(prompt)
        joined = not self.model.config.is_encoder_decoder
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        needed = len(ids) + self.max_tokens if joined else max(len(ids), self.max_tokens)
        if positions is not None and needed > positions:
            raise Refused(
                f"{len(ids)} prompt tokens and up to {self.max_tokens} of a reply, where the judge has {positions} "
                "positions"
            )
        prompt_ids = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            written = self.model.generate(prompt_ids, attention_mask=torch.ones_like(prompt_ids))[0]
        written = written[len(ids) :] if joined else written[1:]  # an encoder-decoder's begin with its start token
        text = whole(str(self.tokenizer.decode(written, skip_special_tokens=True)))
        return Reply(text, prompt_tokens=len(ids), reply_tokens=len(written), seconds=time.monotonic() - started)

    def _ids(self, prompt: str) -> list[int]:
        """The prompt in the chat template; without one as it is, but with no eos where the reply goes on from it.

        Control tokens come from the template alone, whatever the answers in the prompt hold.
        """
        if getattr(self.tokenizer, "chat_template", None):
            turns = [{"role": "user", "content": prompt}]
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
            return self._framed(text, prompt)
        ids = self._encode([prompt])[0][0]
        ends = not self.model.config.is_encoder_decoder and ids[-1] == self.tokenizer.eos_token_id
        return ids[:-1] if ends else ids

    def _framed(self, text: str, prompt: str) -> list[int]:
        """A text that a chat template made of a prompt; the prompt in it is plain text.

        Raises:
            Refused: the prompt holds a control token, and the template changed it, so that it cannot be found.
        """
        from llm2slm.data.tokenization.plain_text import PlainText, control_tokens

        content = prompt.strip()
        before, content, after = text.partition(content) if text.count(content) == 1 else (text, "", "")
        if not content and any(name in prompt for name in control_tokens(self.tokenizer)):
            raise Refused("the question holds a control token, and the judge's chat template changes the question")
        encode = self._in_template
        if encode is None or (before, after) != (encode.before, encode.after):
            encode = self._in_template = PlainText(self.tokenizer, before, after, special_tokens=False)
        return encode([content])[0][0]

    def _greedy(self) -> Any:
        """The likeliest token each time, whatever the model's own settings say; its special tokens are its own."""
        from transformers import GenerationConfig

        own = self.model.generation_config
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        special = {name: getattr(own, name, None) for name in names}
        if special["eos_token_id"] is None:
            special["eos_token_id"] = self.tokenizer.eos_token_id
        if special["pad_token_id"] is None:
            eos = special["eos_token_id"]
            special["pad_token_id"] = eos[0] if isinstance(eos, list) else eos
        return GenerationConfig(max_new_tokens=self.max_tokens, do_sample=False, num_beams=1, **special)
