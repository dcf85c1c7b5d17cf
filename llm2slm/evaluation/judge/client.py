"""Judge clients: the interface, and the client of an OpenAI-compatible chat-completions endpoint.

A client sends one prompt as a user message and returns a `Reply`. A failed request has one of four outcomes: it is
retried (server busy, server error, timeout), the reply is counted as malformed, this prompt is refused, or the job ends
with a `UserError`. The API key is sent in the Authorization header only; it is removed from all text that the server
returns.
"""

from __future__ import annotations

import email.utils
import json
import random
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from llm2slm.types import UserError

if TYPE_CHECKING:
    import httpx2
    import openai

MAX_WAIT = 60.0
"""Maximum number of seconds between two attempts."""
MAX_REPLY_BYTES = 1 << 24
RETRIED = frozenset({408, 409, 425, 429})
"""HTTP status codes below 500 that are retried; all codes from 500 are retried too."""
REFUSALS = frozenset({400, 413, 422})
HINTS = {401: "; check key_env", 403: "; check key_env", 404: "; check endpoint and model"}
REDIRECT = "; redirects are not followed: give the target address as endpoint"
HEADERS = (
    "Host",
    "Content-Type",
    "Content-Length",
    "Accept",
    "Accept-Encoding",
    "Connection",
    "X-Stainless-Raw-Response",  # makes `openai` return the response unparsed
)
"""Request headers that are sent, besides Authorization and User-Agent."""
MIN_SECRET_LENGTH = 8
"""Characters. Shorter values are placeholders for servers without keys ("EMPTY", "none") and may be ordinary words."""


@dataclass(frozen=True)
class Reply:
    """One reply of a judge. `text` is None if the reply holds no text; `fault` then gives the reason.

    Attributes:
        prompt_tokens, reply_tokens: token counts reported by the judge; None if it reports none.
        requests: number of requests sent for this reply. seconds: from the first request to the end of the last.
        model: the model name that the endpoint returned.
    """

    text: str | None
    fault: str = ""
    prompt_tokens: int | None = None
    reply_tokens: int | None = None
    requests: int = 1
    seconds: float = 0.0
    model: str | None = None


class Refused(Exception):
    """The judge rejects this prompt, for example because of its length; other prompts may be accepted."""


class Stopped(Exception):
    """The job ended while a prompt was waiting."""


class JudgeClient(Protocol):
    """Interface of a judge."""

    location: str
    """Address of the endpoint, or name of the local model, for files and messages."""
    attempts: int
    """Maximum number of replies requested for one prompt if the replies hold no verdict."""

    def complete(self, prompt: str, stop: threading.Event) -> Reply:
        """Returns the reply to one prompt. Raises Refused, UserError, or Stopped once `stop` is set."""


class EndpointClient:
    """Client of a chat-completions endpoint, by the package `openai`; thread-safe.

    Retries are made here, not by `openai`: they end when the job stops, a Retry-After header delays all threads, and
    the requests are counted.

    Args:
        location: base URL including the version, for example http://localhost:8000/v1, without credentials.
        parameters: request fields in addition to model and messages.
        key: API key, sent as a bearer token. None: no Authorization header.
        timeout: seconds for one request. retries: attempts after the first one. wait: seconds before the first retry;
            doubled for each further retry, or the Retry-After header if that is longer; at most `MAX_WAIT`.
    """

    attempts = 2

    def __init__(
        self,
        location: str,
        model: str,
        parameters: Mapping[str, Any],
        key: str | None = None,
        *,
        timeout: float = 120.0,
        retries: int = 6,
        wait: float = 1.0,
    ) -> None:
        self.location, self.model, self.parameters = location, model, dict(parameters)
        self.timeout, self.retries, self.wait = timeout, retries, wait
        self._key = key
        self._opened: openai.OpenAI | None = None
        self._opening = threading.Lock()
        self._reached = False  # once the server has replied, a lost connection no longer means a wrong address
        self._not_before = 0.0  # monotonic time before which the server accepts no request

    def complete(self, prompt: str, stop: threading.Event) -> Reply:
        """Returns the reply to a prompt.

        Raises:
            Refused: the endpoint rejects this prompt.
            UserError: the endpoint cannot be reached, rejects all requests, or failed in every attempt; or the package
                `openai` is not installed.
            Stopped: `stop` was set.
        """
        self._client()
        import httpx2
        import openai

        started = time.monotonic()
        for attempt in range(1, self.retries + 2):
            self._pause(self._not_before - time.monotonic(), stop)
            try:
                content = self._post(prompt)
                return self._parsed(content, requests=attempt, seconds=time.monotonic() - started)
            except openai.APIStatusError as error:
                self._reached = True
                failure, header = self._status_failure(error), error.response.headers.get("retry-after")
            except (openai.APIConnectionError, httpx2.HTTPError, TimeoutError) as error:
                failure, header = self._connection_failure(error), None
            if attempt <= self.retries:
                self._back_off(attempt, retry_after(header), stop)
        times = f"{self.retries + 1} requests in a row" if self.retries else "a request"
        raise UserError(f"{self.location}: {times} failed, the last one with: {failure}")

    def _client(self) -> openai.OpenAI:
        """The client of `openai`, created at the first request: replies that are stored already need none.

        Proxy and certificates are those that `urllib` takes from the environment and the system: HTTP_PROXY,
        HTTPS_PROXY, NO_PROXY, and the system's certificates.

        Raises:
            UserError: `openai` is not installed, or the proxy cannot be used.
        """
        with self._opening:
            if self._opened is None:
                try:
                    import openai
                except ImportError:
                    raise UserError("endpoint=... needs openai: pip install 'llm-to-slm[judge]'") from None
                target = urlsplit(self.location)
                proxy = None if proxy_bypass(target.netloc) else getproxies().get(target.scheme)
                try:
                    transport = openai.DefaultHttpxClient(
                        follow_redirects=False,  # a redirect would send the key to another server
                        timeout=self.timeout,
                        event_hooks={"request": [self._restrict_headers]},
                        trust_env=False,
                        proxy=proxy,
                        verify=ssl.create_default_context(),
                    )
                except (ImportError, ValueError) as error:
                    raise UserError(
                        f"{self.location}: the proxy of the environment cannot be used ({error}); change "
                        f"{target.scheme}_proxy, or add the host to no_proxy"
                    ) from None
                self._opened = openai.OpenAI(
                    api_key=self._key or "none",  # None: openai would send the key of OPENAI_API_KEY
                    base_url=self.location,
                    timeout=self.timeout,
                    max_retries=0,
                    http_client=transport,
                )
        return self._opened

    def _restrict_headers(self, request: httpx2.Request) -> None:
        """Removes the headers that `openai` adds: platform details, and values of OPENAI_* environment variables."""
        headers = {name: request.headers[name] for name in HEADERS if name in request.headers}
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        request.headers.clear()
        request.headers.update(headers | {"User-Agent": "llm2slm"} | key)

    def _post(self, prompt: str) -> bytes:
        """Sends one request; returns the body of a successful response.

        Raises:
            openai.APIStatusError, openai.APIConnectionError, httpx2.HTTPError: the request failed.
            TimeoutError: the body is incomplete after `timeout`.
            UserError: the body is too long.
        """
        deadline, content = time.monotonic() + self.timeout, bytearray()
        with self._client().chat.completions.with_streaming_response.create(
            model=self.model, messages=[{"role": "user", "content": prompt}], extra_body=self.parameters
        ) as response:
            self._reached = True
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(content) > MAX_REPLY_BYTES:
                    raise UserError(f"{self.location}: the reply exceeds {MAX_REPLY_BYTES} bytes")
        return bytes(content)

    def _status_failure(self, error: openai.APIStatusError) -> str:
        """Describes an HTTP error that can be retried.

        Raises:
            Refused: the endpoint rejects this prompt.
            UserError: the endpoint rejects all requests.
        """
        status = error.status_code
        failure = f"HTTP {status}{self._detail(error.response.content)}"
        if status in REFUSALS:
            raise Refused(failure) from None
        if status not in RETRIED and status < 500:
            hint = HINTS.get(status, "") if status >= 400 else REDIRECT
            raise UserError(f"{self.location}: {failure}{hint}") from None
        return failure

    def _connection_failure(self, error: Exception) -> str:
        """Describes a connection error that can be retried.

        Raises:
            UserError: a retry cannot succeed: no connection was ever made, or the certificate is invalid.
        """
        import httpx2
        import openai

        if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException | TimeoutError):
            return f"no reply within {self.timeout:g} s"
        causes = list(_causes(error))
        reason = next((c.strerror for c in causes if isinstance(c, OSError) and c.strerror), None) or str(causes[-1])
        reason = self._clean(reason or type(causes[-1]).__name__)
        unreachable = any(isinstance(cause, httpx2.ConnectError) for cause in causes) and not self._reached
        if unreachable or any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            raise UserError(
                f"{self.location}: cannot be reached ({reason}); check endpoint and that the server is running"
            ) from None
        return f"a lost connection ({reason})"

    def _back_off(self, attempt: int, server_wait: float | None, stop: threading.Event) -> None:
        """Waits before the next attempt; a wait that the server requests holds for all threads."""
        if server_wait is not None:
            self._not_before = max(self._not_before, time.monotonic() + min(server_wait, MAX_WAIT))
        seconds = self.wait * 2 ** min(attempt - 1, 30) * random.uniform(0.75, 1.25)  # spreads the threads' retries
        self._pause(min(seconds, MAX_WAIT), stop)

    def _pause(self, seconds: float, stop: threading.Event) -> None:
        if stop.wait(max(seconds, 0.0)):
            raise Stopped

    def _parsed(self, content: bytes, **effort: Any) -> Reply:
        """Parses the body of a successful response. Every field may be missing or of another type."""
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            return Reply(None, f"not JSON{self._detail(content)}", **effort)
        body = body if isinstance(body, dict) else {}
        usage = body.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        effort |= {"prompt_tokens": _count(usage, "prompt_tokens"), "reply_tokens": _count(usage, "completion_tokens")}
        model = body.get("model")
        effort["model"] = self._clean(model) if isinstance(model, str) else None
        try:
            text = body["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return Reply(None, f"no choices{self._detail(content)}", **effort)
        if not isinstance(text, str):
            return Reply(None, "no text", **effort)
        return Reply(self._clean(text), **effort)

    def _detail(self, content: bytes) -> str:
        """The server's error message on one short line, after a colon; "" if there is none."""
        text = content[: 1 << 16].decode("utf-8", "replace")
        try:
            value = json.loads(text)
            for name in ("error", "message", "detail"):
                value = value.get(name, value) if isinstance(value, dict) else value
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass  # not JSON: used as it is
        line = " ".join(self._clean(text).split())[:300]
        return f": {line}" if line and line != "{}" else ""

    def _clean(self, text: str) -> str:
        """Text of the server without the API key and without lone surrogates."""
        if self._key is not None and len(self._key) >= MIN_SECRET_LENGTH:
            text = text.replace(self._key, "***")
        return without_surrogates(text)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and the exceptions that caused it, outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def without_surrogates(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot encode, replaced by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def retry_after(value: str | None) -> float | None:
    """Seconds given by a Retry-After header (a number or a date); None if there is none or it cannot be parsed."""
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
    return max(seconds, 0.0) if seconds < float("inf") else None  # False for nan, too


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def base_url(endpoint: str) -> str:
    """The base URL of an endpoint, which may be written to files.

    Raises:
        UserError: it is no HTTP address, or it holds credentials (which the message does not repeat).
    """
    rule = "give http://HOST:PORT/v1 or https://HOST/v1"
    try:
        parts = urlsplit(endpoint.strip())
        _ = parts.port  # raises ValueError if it is no number
    except ValueError:
        raise UserError(f"endpoint: not an HTTP address; {rule}") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(f"endpoint: {rule}, without user, password, query or fragment; key_env=NAME names the key")
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-~]+", endpoint.strip()):
        raise UserError(f"endpoint: not an HTTP address; {rule}")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/chat/completions")
