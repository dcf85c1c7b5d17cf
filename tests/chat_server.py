"""A small chat-completions endpoint on a local server: it judges by a rule, and fails in any configured way.

`with ChatServer() as server`. Each request is recorded. `server.plan` gives the steps for the requests of a prompt;
requests without a step get a good reply.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

GOOD = "good"
MODEL = "tiny-judge"
USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


@dataclass(frozen=True)
class Step:
    """How the server responds to a request.

    Attributes:
        kind: good; status (`status`, `headers`, `body`); body (200 with `body`); text (a reply with the text `body`);
            hang (no reply for `seconds`); drip (bytes one by one, without end); half (a truncated body); close (the
            connection is closed without a reply).
    """

    kind: str = GOOD
    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def rule(prompt: str) -> str:
    """A verdict determined by the prompt alone, in the format that the prompt requests."""
    draw = hashlib.sha256(prompt.encode()).digest()[0]
    if "Rating: [[5]]" in prompt:
        return f"It says something.\nRating: [[{draw % 10 + 1}]]"
    return f"One is better, or not.\n[[{'ABC'[draw % 3]}]]"


class ChatServer:
    """The server.

    Attributes:
        say: prompt -> the text of a good reply.
        plan: prompt -> steps for its first, second, ... request; all other requests get good replies.
        always: a step for every request, instead of `plan`.
        usage: the token usage that a good reply states; None: no usage.
        prompts: prompts of all requests in order of their arrival. bodies: the received requests, with headers.
        delay: seconds before each reply.
    """

    def __init__(self, say: Callable[[str], str] = rule) -> None:
        self.say, self.usage, self.always, self.delay = say, dict(USAGE), None, 0.0  # type: ignore[var-annotated]
        self.plan: Callable[[str], list[Step]] = lambda prompt: []
        self.prompts: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.most_at_once = self.under_way = 0
        self.asked: Counter[str] = Counter()
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfThis", (Handler,), {"chat": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self, *_: object) -> None:
        """Stops the server: connections are refused afterwards."""
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()

    __exit__ = stop

    def forget(self) -> None:
        """Clears the recorded requests."""
        with self.lock:
            self.prompts, self.bodies, self.times = [], [], []
            self.asked.clear()

    def step(self, prompt: str) -> Step:
        """Records a request, and returns the step for it."""
        with self.lock:
            self.prompts.append(prompt)
            self.times.append(time.monotonic())
            count = self.asked[prompt]
            self.asked[prompt] += 1
        if self.always is not None:
            return self.always
        steps = self.plan(prompt)
        return steps[count] if count < len(steps) else Step()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    chat: ChatServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.chat.lock:
            self.chat.bodies.append({"path": self.path, "headers": dict(self.headers), "json": asked})
            self.chat.under_way += 1
            self.counted = True
            self.chat.most_at_once = max(self.chat.most_at_once, self.chat.under_way)
        try:
            self.act(self.chat.step(asked["messages"][0]["content"]), asked)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone, or was killed
        finally:
            self.done()

    def done(self) -> None:
        """The request is no longer under way: counted before the client can receive the reply."""
        with self.chat.lock:
            self.chat.under_way -= self.counted
            self.counted = False

    def act(self, step: Step, asked: dict[str, Any]) -> None:
        self.chat.stopping.wait(self.chat.delay)
        match step.kind:
            case "good":
                self.completion(self.chat.say(asked["messages"][0]["content"]), asked["model"])
            case "text":
                self.completion(step.body, asked["model"])
            case "body" | "status":
                self.send(step.status, step.body.encode(), step.headers)
            case "hang":
                self.chat.stopping.wait(step.seconds)
            case "half":
                self.send(200, b'{"choices": [{"mess', {"Content-Length": "4000"})
            case "drip":
                self.send(200, b"{", {"Content-Length": "100000"})
                while not self.chat.stopping.wait(0.02):
                    self.wfile.write(b" ")
                    self.wfile.flush()
            case "close":
                self.close_connection = True

    def completion(self, text: str, model: str) -> None:
        message = {"role": "assistant", "content": text}
        body: dict[str, Any] = {"model": f"{model}-2026", "choices": [{"index": 0, "message": message}]}
        if self.chat.usage is not None:
            body["usage"] = self.chat.usage
        self.send(200, json.dumps(body).encode(), {})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.done()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(content))} | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Suppresses the log: pytest's output is for tests."""
