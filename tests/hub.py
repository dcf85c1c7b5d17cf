"""A small Hugging Face Hub on a local server: model repositories, so that tests push and load as users do.

It implements the requests of huggingface_hub 2.4 and transformers 5.23, with the status codes and headers by which they
distinguish a missing file from a missing commit or repository. All files are sent inline: no LFS and no Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

MODEL = r"/api/models/(?P<id>[^/]+(?:/[^/]+)??)"  # one part if the rest of the address fits (gpt2), else two
ROUTES = {
    "GET /api/whoami-v2": "whoami",
    "POST /api/validate-yaml": "validate",
    "POST /api/repos/create": "create",
    rf"GET {MODEL}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?": "tree",
    rf"POST {MODEL}/preupload/(?P<revision>[^/]+)": "preupload",
    rf"POST {MODEL}/commit/(?P<revision>[^/]+)": "commit",
    rf"POST {MODEL}/branch/(?P<branch>[^/]+)": "branch",
    rf"GET {MODEL}(?:/revision/(?P<revision>[^/]+))?": "model",
    r"(?:GET|HEAD) /(?P<id>[^/]+(?:/[^/]+)??)/resolve/(?P<revision>[^/]+)/(?P<path>.+)": "resolve",
}  # the first match is used
NEEDS_TOKEN = ("whoami", "create", "preupload", "commit", "branch")


@dataclass(frozen=True)
class Commit:
    """All the files of a repository at one moment."""

    id: str
    message: str
    files: dict[str, bytes]


class Repository:
    """Commits of all branches, oldest first; and the last commit of each branch."""

    def __init__(self, id: str, private: bool = False) -> None:
        self.id, self.private = id, private
        self.commits: list[Commit] = []
        self.branches: dict[str, str] = {}
        self.add("initial commit", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})

    def at(self, revision: str = "main") -> Commit | None:
        """The commit of a branch or a commit id; None: no such revision."""
        wanted = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit.id == wanted), None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Contents by path."""
        return commit.files if (commit := self.at(revision)) else {}

    def add(self, message: str, files: dict[str, bytes], revision: str = "main") -> Commit:
        """Adds a commit to a branch; `files` are its complete contents."""
        told = [self.id, len(self.commits), message, {path: blob_id(content) for path, content in files.items()}]
        commit = Commit(blob_id(json.dumps(told).encode()), message, dict(sorted(files.items())))
        self.commits.append(commit)
        self.branches[revision] = commit.id
        return commit


class LocalHub:
    """The server: `with LocalHub() as hub`.

    Attributes:
        url: the value of HF_ENDPOINT; token: the value of HF_TOKEN, the only token with write access.
        repos: the repositories by id.
        requests: all requests in order, as "GET /api/models/me/tiny".
        unknown: requests without a route; the client receives status 501.
    """

    def __init__(self, token: str = "hf_of_a_test") -> None:
        self.token = token
        self.repos: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfThis", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self, *_: object) -> None:
        """Stops the server: connections are refused afterwards. The repositories remain for assertions."""
        self.server.shutdown()
        self.server.server_close()

    __exit__ = stop

    def publish(self, repo_id: str, folder: Path, message: str = "publish", revision: str = "main") -> str:
        """Commits a folder's files on top of the existing ones, without a client; returns the commit's id."""
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repository(repo_id))
            files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            return repo.add(message, repo.files(revision) | files, revision).id

    def environment(self, home: Path) -> dict[str, str]:
        """The variables that a child process needs in addition; an empty `home` is a machine without downloads."""
        own = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "0")
        disabled = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"), "1")
        return own | offline | disabled | dict.fromkeys(("NO_PROXY", "no_proxy"), "*")


class Refusal(Exception):
    """An error response: X-Error-Code and X-Error-Message, other headers, and JSON."""

    def __init__(self, status: int, code: str, message: str, headers: Any = None, **body: Any) -> None:
        self.status, self.body = status, json.dumps({"error": message, **body}).encode()
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} | (headers or {})


class Handler(BaseHTTPRequestHandler):
    """One request. The methods named in ROUTES return JSON, or bytes and headers, or raise a Refusal."""

    hub: LocalHub

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urlsplit(self.path)
        self.query, status, headers = parse_qs(address.query), 200, {}
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {self.path}")
            try:
                found = self.dispatch(address.path)
                content, headers = found if isinstance(found, tuple) else (json.dumps(found).encode(), {})
            except Refusal as refusal:
                status, content, headers = refusal.status, refusal.body, refusal.headers
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value).encode("ascii", "replace").decode())
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Suppresses the log: pytest's output is for tests."""

    def dispatch(self, path: str) -> Any:
        given = self.headers.get("Authorization")
        self.known = given == f"Bearer {self.hub.token}"
        if given and not self.known:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        for pattern, name in ROUTES.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                if name in NEEDS_TOKEN and not self.known:
                    raise Refusal(401, "", "Invalid username or password.")
                return getattr(self, name)(**{k: unquote(v) for k, v in match.groupdict().items() if v is not None})
        self.hub.unknown.append(f"{self.command} {self.path}")
        raise Refusal(501, "", f"tests/hub.py has no answer to {self.command} {self.path}")

    def at(self, name: str, revision: str) -> tuple[Repository, Commit]:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.known):  # without access (401) both cases are indistinguishable
            raise Refusal(404 if self.known else 401, "RepoNotFound", "Repository not found")
        if (commit := repo.at(revision)) is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit

    def whoami(self) -> Any:
        return {"type": "user", "id": "me", "name": "me", "orgs": [], "auth": {"type": "access_token"}}

    def validate(self) -> Any:
        return {"errors": [], "warnings": []}  # any model card is valid

    def create(self) -> Any:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        told = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            raise Refusal(409, "", "You already created this model repo", **told)
        self.hub.repos[name] = Repository(name, private=asked.get("visibility") == "private")
        return told

    def model(self, id: str, revision: str = "main") -> Any:
        repo, commit = self.at(id, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        return {"id": id, "sha": commit.id, "private": repo.private, "gated": False, "tags": [], "siblings": siblings}

    def tree(self, id: str, revision: str, path: str = "") -> Any:
        _, commit = self.at(id, revision)
        start, deep = f"{path}/" if path else "", self.query.get("recursive") == ["true"]
        found: dict[str, Any] = {}
        for name, content in commit.files.items():
            if name.startswith(start):
                ends = [i for i in range(len(start), len(name)) if name[i] == "/"]  # one for each folder of the path
                for end in ends if deep else ends[:1]:
                    found[name[:end]] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": name[:end]}
                if deep or not ends:
                    found[name] = {"type": "file", "oid": blob_id(content), "size": len(content), "path": name}
        if path and not found:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist", {"X-Repo-Commit": commit.id})
        return list(found.values())

    def resolve(self, id: str, revision: str, path: str) -> Any:
        _, commit = self.at(id, revision)
        if path not in commit.files:  # the client records that this commit has no such file
            raise Refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.id})
        return commit.files[path], {"X-Repo-Commit": commit.id, "ETag": f'"{blob_id(commit.files[path])}"'}

    def preupload(self, id: str, revision: str) -> Any:
        """The upload mode of each file: inline. The id of the stored file identifies unchanged files."""
        _, commit = self.at(id, revision)
        files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(self.body)["files"]]
        oids = {path: {"oid": blob_id(content)} for path, content in commit.files.items()}
        return {"files": [file | {"shouldIgnore": False} | oids.get(file["path"], {}) for file in files]}

    def commit(self, id: str, revision: str) -> Any:
        repo, before = self.at(id, revision)
        if revision not in repo.branches or "create_pr" in self.query:
            raise Refusal(400, "", "commits go to the end of a branch; there are no pull requests")
        files, summary = before.files.copy(), ""
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                summary = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key in ("deletedFile", "deletedFolder"):
                gone = value["path"].rstrip("/") + "/"
                files = {path: content for path, content in files.items() if not f"{path}/".startswith(gone)}
            else:
                raise Refusal(400, "", f"tests/hub.py takes no {key}")
        new = repo.add(summary, files, revision).id
        return {"success": True, "commitOid": new, "commitUrl": f"{self.hub.url}/{id}/commit/{new}"}

    def branch(self, id: str, branch: str) -> Any:
        repo, commit = self.at(id, json.loads(self.body or b"{}").get("startingPoint", "main"))
        if branch in repo.branches:
            raise Refusal(409, "", f"Reference already exists: {branch}")
        repo.branches[branch] = commit.id
        return {}


def blob_id(content: bytes) -> str:
    """Git's id of a file, which is its ETag."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
