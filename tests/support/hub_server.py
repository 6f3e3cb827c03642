"""A Hub on loopback for the real ``huggingface_hub`` client: repositories in memory, faults on demand.

Imports nothing of the client: the environment that points the client here must be set before that is imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "tester"
TOKEN = "hf_" + "LoopbackTestToken" * 2
OTHER_TOKEN = "hf_" + "AnotherPersonsToken" * 2
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_LICENSES = {
    "apache-2.0",
    "mit",
    "llama2",
    "llama3.1",
    "gemma",
    "cc-by-nc-4.0",
    "gpl-3.0",
    "other",
    "unknown",
    "bsd-3-clause",
}
_REPO_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Blob:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        return hashlib.sha256(self.content).hexdigest() if self.lfs else git_oid(self.content)


@dataclass
class Repo:
    id: str
    type: str = "model"
    private: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, Blob], branch: str = "main", title: str = "") -> str:
        content = sorted((path, blob.oid) for path, blob in files.items())
        oid = hashlib.sha1(f"{self.id}{len(self.commits)}{content}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.titles.append(title)
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path -> content at a revision."""
        return {path: blob.content for path, blob in self.commits[self.resolve(revision)].items()}


@dataclass
class Fault:
    """What to do instead of answering, for the next ``times`` requests that match.

    ``status``: answer so; None: break the connection, half-way through the request's body.
    """

    method: str
    path: str
    status: int | None = None
    times: int = 1
    message: str = "fault"


class HubServer:
    """The server's state; ``url`` is where it listens once started."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        # Bound but not listening: the port is ours, and nothing answers until a test asks for the server.
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server: ThreadingHTTPServer | None = None
        self.reset()

    def reset(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.collections: dict[str, list[str]] = {}
        self.faults: list[Fault] = []
        self.hooks: list[tuple[str, str, Callable[[], None]]] = []
        self.requests: list[tuple[str, str]] = []
        self.received = 0
        self.tokens = {TOKEN: USER, OTHER_TOKEN: "stranger"}

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = self._socket
        self._server.server_address = self._socket.getsockname()
        self._server.daemon_threads = True
        self._socket.listen(16)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], *, repo_type: str = "model", private: bool = False) -> Repo:
        """A repository with one commit."""
        repo = self.repos.setdefault((repo_type, repo_id), Repo(repo_id, repo_type, private))
        repo.commit({path: Blob(content, path.endswith(".safetensors")) for path, content in files.items()})
        return repo

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id]

    def fail(self, method: str, path: str, status: int | None = None, times: int = 1, message: str = "fault") -> None:
        self.faults.append(Fault(method, path, status, times, message))

    def before(self, method: str, path: str, action: Callable[[], None]) -> None:
        """Run an action once, before the next request that matches is answered."""
        self.hooks.append((method, path, action))

    def count(self, method: str, path: str) -> int:
        return sum(1 for asked, where in self.requests if asked == method and re.search(path, where))


class _Stop(Exception):
    """An answer that ends the request."""

    def __init__(self, status: int, message: str, code: str | None = None, **extra: Any):
        super().__init__(message)
        self.status, self.code, self.extra = status, code, extra


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    # One packet for head and body, at once: the system's delayed acknowledgements cost 40 ms a request otherwise.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        path, query = parts.path, parse_qs(parts.query)
        self.hub.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        if self._faulty(path, length):
            return
        body = self.rfile.read(length)
        self.hub.received += length
        for hook in [hook for hook in self.hub.hooks if hook[0] == self.command and re.search(hook[1], path)]:
            self.hub.hooks.remove(hook)
            hook[2]()
        try:
            for method, pattern, answer in _ROUTES:
                found = re.fullmatch(pattern, path)
                if method == self.command and found:
                    groups = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
                    answer(self, query, body, **groups)
                    return
            raise _Stop(404, f"no route {self.command} {path}")
        except _Stop as stop:
            headers = {"X-Error-Code": stop.code} if stop.code else {}
            headers["X-Error-Message"] = str(stop)
            self._send(stop.status, {"error": str(stop), **stop.extra}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _faulty(self, path: str, length: int) -> bool:
        fault = next((f for f in self.hub.faults if f.method == self.command and re.search(f.path, path)), None)
        if fault is None:
            return False
        fault.times -= 1
        if fault.times <= 0:
            self.hub.faults.remove(fault)
        if fault.status is None:
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return True
        self.rfile.read(length)
        self._send(fault.status, {"error": fault.message}, {"X-Error-Message": fault.message})
        return True

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    # ---- Who asks for what ----

    def _user(self) -> str | None:
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if sent and sent not in self.hub.tokens:
            raise _Stop(401, "Invalid username or password.")
        return self.hub.tokens.get(sent)

    def _repo(self, repo_type: str, repo_id: str, write: bool = False) -> Repo:
        user = self._user()
        repo = self.hub.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and user != repo_id.split("/")[0]):
            raise _Stop(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise _Stop(401, "Invalid username or password.")
        if write and user != repo_id.split("/")[0]:
            raise _Stop(403, "You have no write access to this repository")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        oid = repo.resolve(revision)
        if oid is None:
            raise _Stop(404, f"Revision {revision} not found", "RevisionNotFound")
        return oid

    # ---- Answers ----

    def whoami(self, query: Any, body: bytes) -> None:
        user = self._user()
        if user is None:
            raise _Stop(401, "Invalid username or password.")
        self._send(200, {"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self, query: Any, body: bytes) -> None:
        asked, user = json.loads(body), self._user()
        if user is None:
            raise _Stop(401, "Invalid username or password.")
        if (asked.get("organization") or user) != user:
            raise _Stop(403, f"You don't have the rights to create a repository under {asked['organization']}")
        repo_type, repo_id = asked.get("type") or "model", f"{user}/{asked['name']}"
        prefix = "" if repo_type == "model" else f"{repo_type}s/"
        url = f"{self.hub.url}/{prefix}{repo_id}"
        if (repo_type, repo_id) in self.hub.repos:
            raise _Stop(409, "You already created this repository", url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = Repo(repo_id, repo_type, private, {"sdk": asked.get("sdk")})
        repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, title="initial commit")
        self.hub.repos[repo_type, repo_id] = repo
        self._send(200, {"url": url, "id": repo_id})

    def branch(self, query: Any, body: bytes, type: str, id: str, branch: str) -> None:
        repo = self._repo(type, id, write=True)
        if branch in repo.branches:
            raise _Stop(409, "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self._send(200, {})

    def validate_yaml(self, query: Any, body: bytes) -> None:
        errors = card_errors(json.loads(body)["content"])
        self._send(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def preupload(self, query: Any, body: bytes, type: str, id: str, rev: str) -> None:
        repo = self._repo(type, id, write=True)
        there = repo.commits[self._commit_of(repo, rev)]
        answer = []
        for file in json.loads(body)["files"]:
            lfs = file["path"].endswith(".safetensors") or file["size"] > 10_000_000
            known = there.get(file["path"])
            answer.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    **({"oid": known.oid} if known else {}),
                }
            )
        self._send(200, {"files": answer})

    def lfs_batch(self, query: Any, body: bytes, id: str) -> None:
        self._user()
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.uploads:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{wanted['oid']}"}}
            objects.append(entry)
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, query: Any, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Stop(400, "content does not match its hash")
        self.hub.uploads[oid] = body
        self._send(200, {})

    def commit(self, query: Any, body: bytes, type: str, id: str, rev: str) -> None:
        repo = self._repo(type, id, write=True)
        head = self._commit_of(repo, rev)
        files, title = dict(repo.commits[head]), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    raise _Stop(412, "A commit has happened since. Please refresh and try again.")
            elif entry["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.uploads:
                    raise _Stop(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = Blob(self.hub.uploads[value["oid"]], True)
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _Stop(400, f"unknown operation {entry['key']}")
        oid = repo.commit(files, rev, title)
        self._send(200, {"commitOid": oid, "commitUrl": f"{self.hub.url}/{id}/commit/{oid}"})

    def info(self, query: Any, body: bytes, type: str, id: str, rev: str = "main") -> None:
        repo = self._repo(type, id)
        self._send(200, describe(repo, self._commit_of(repo, rev)))

    def listing(self, query: Any, body: bytes, type: str) -> None:
        user = self._user()
        found = []
        for (repo_type, repo_id), repo in self.hub.repos.items():
            if repo_type != type or (repo.private and user != repo_id.split("/")[0]):
                continue
            described = describe(repo, repo.branches["main"])
            tagged = all(tag in described["tags"] for tag in query.get("filter", []))
            named = query.get("search", [""])[0] in repo_id
            authored = query.get("author", [repo_id.split("/")[0]])[0] == repo_id.split("/")[0]
            if tagged and named and authored:
                found.append(described)
        self._send(200, found[: int(query.get("limit", ["1000"])[0])])

    def collection(self, query: Any, body: bytes, slug: str) -> None:
        if slug not in self.hub.collections:
            raise _Stop(404, "Collection not found")
        items = [
            {"_id": str(place), "type": "model", "id": repo_id, "position": place}
            for place, repo_id in enumerate(self.hub.collections[slug])
        ]
        described = {"slug": slug, "title": slug, "owner": {}, "items": items, "position": 0, "private": False}
        described |= {"theme": "blue", "upvotes": 0, "lastUpdated": "2026-01-01T00:00:00.000Z"}
        self._send(200, described)

    def tree(self, query: Any, body: bytes, type: str, id: str, rev: str, sub: str = "") -> None:
        repo = self._repo(type, id)
        files = repo.commits[self._commit_of(repo, rev)]
        inside = {path: blob for path, blob in files.items() if not sub or path.startswith(f"{sub}/")}
        if sub and not inside:
            raise _Stop(404, f"{sub} does not exist", "EntryNotFound")
        self._send(200, [tree_entry(path, blob) for path, blob in inside.items()])

    def resolve(self, query: Any, body: bytes, id: str, rev: str, path: str, type: str = "model") -> None:
        repo = self._repo(type.removesuffix("s"), id)
        oid = self._commit_of(repo, rev)
        blob = repo.commits[oid].get(path)
        if blob is None:
            raise _Stop(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.oid}"', "Content-Type": "application/octet-stream"}
        self._send(200, blob.content, headers)


_ID = r"(?P<id>[\w.-]+(?:/[\w.-]+)?)"
_TYPE = r"/api/(?P<type>model|dataset|space)s"
_REV = r"(?P<rev>[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", f"{_TYPE}/{_ID}/preupload/{_REV}", _Handler.preupload),
    ("POST", f"{_TYPE}/{_ID}/commit/{_REV}", _Handler.commit),
    ("POST", f"{_TYPE}/{_ID}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("POST", rf"/(?:spaces/)?{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/upload/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    ("GET", _TYPE, _Handler.listing),
    ("GET", "/api/collections/(?P<slug>.+)", _Handler.collection),
    ("GET", f"{_TYPE}/{_ID}/tree/{_REV}(?:/(?P<sub>.+))?", _Handler.tree),
    ("GET", f"{_TYPE}/{_ID}/revision/{_REV}", _Handler.info),
    ("GET", f"{_TYPE}/{_ID}", _Handler.info),
    *(
        (method, f"/(?:(?P<type>spaces|datasets)/)?{_ID}/resolve/{_REV}/(?P<path>.+)", _Handler.resolve)
        for method in ("GET", "HEAD")
    ),
]


def front_matter(text: str) -> Any:
    found = _FRONT_MATTER.match(text)
    return yaml.safe_load(found[1]) if found else {}


def card_errors(text: str) -> list[str]:
    """What the Hub's validation of a card's metadata complains about, as far as cards of adapters go."""
    try:
        data = front_matter(text)
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata is no mapping"]
    errors = []
    if data.get("license") is not None and data["license"] not in _LICENSES:
        errors.append(f'"license" must be one of {sorted(_LICENSES)}')
    if data.get("license") == "other" and not (data.get("license_name") or data.get("license_link")):
        errors.append('"license_name" is required for license "other"')
    bases = data.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str) or not _REPO_NAME.match(base):
            errors.append(f'"base_model" is no repository id: {base!r}')
    if data.get("base_model_relation") not in (None, "adapter", "finetune", "merge", "quantized"):
        errors.append('"base_model_relation" is unknown')
    for key in ("tags", "language", "datasets"):
        value = data.get(key)
        values = [value] if isinstance(value, str) else value or []
        if not all(isinstance(entry, str) for entry in values):
            errors.append(f'"{key}" must hold strings')
        if key == "language" and not all(re.fullmatch("[a-z]{2,3}|multilingual|code", entry) for entry in values):
            errors.append('"language" must hold ISO 639 codes')
    for entry in data.get("model-index") or []:
        for result in entry.get("results", []):
            dataset = result.get("dataset") or {}
            if not entry.get("name") or not (result.get("task") or {}).get("type"):
                errors.append('"model-index" needs names and task types')
            if not dataset.get("type") or not dataset.get("name"):
                errors.append('"model-index" needs dataset types and names')
            for metric in result.get("metrics", []):
                if not metric.get("type") or not isinstance(metric.get("value"), (int, float)):
                    errors.append('"model-index" needs metric types and values')
    return errors


def tree_entry(path: str, blob: Blob) -> dict[str, Any]:
    size = len(blob.content)
    entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": git_oid(blob.content)}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.oid, "size": size, "pointerSize": 130}
    return entry


def describe(repo: Repo, commit: str) -> dict[str, Any]:
    files = repo.commits[commit]
    card = files.get("README.md")
    try:
        data = front_matter(card.content.decode()) if card else {}
    except yaml.YAMLError:
        data = {}
    tags = list(data.get("tags") or [])
    if isinstance(data.get("base_model"), str):
        tags += [f"base_model:{data['base_model']}", f"base_model:adapter:{data['base_model']}"]
    return {
        "_id": commit[:24],
        "id": repo.id,
        "modelId": repo.id,
        "sha": commit,
        "private": repo.private,
        "tags": tags,
        "cardData": data,
        "siblings": [{"rfilename": path} for path in files],
        "downloads": 0,
        "likes": 0,
    }


def point_client_here(server: HubServer) -> None:
    """Set the environment so that every Hub client in this process and its children talks to the server alone."""
    os.environ.update(
        HF_ENDPOINT=server.url,
        HF_HOME=tempfile.mkdtemp(prefix="muscle-hf-tests-"),
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
    )
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        os.environ.pop(name, None)
