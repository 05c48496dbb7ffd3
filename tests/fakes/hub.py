"""A Hugging Face Hub on loopback: enough of its HTTP API for the real ``huggingface_hub`` to list and download models.

Its answers are what ``huggingface_hub`` 2.4.0 reads (1.33.0 as well) and what the Hub is known to send; it has no
datasets, Spaces, uploads or Xet storage. It is built from Python data, and may be changed while it runs::

    with Hub() as hub, isolated_client(tmp_path):
        commit = hub.push("acme/sam", "main", {"config.json": b"{}", "model.safetensors": File(data, lfs=True)})
        assert HfApi(endpoint=hub.url).model_info("acme/sam", files_metadata=True).sha == commit
        hub.seen                                    # every request, and the Authorization that it carried

There are two hosts. The Hub answers at 127.0.0.1 and sends large files on to its CDN, an `Origin` at 127.0.0.2 with all
of that one's faults. A mere other port would not do: requests and huggingface_hub 2 compare ports before they forward
a token, but huggingface_hub 1 and much else compare host names alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import pytest

from origin import Origin
from origin import Request as CdnRequest

SIGNATURE = "a-secret-that-belongs-in-no-log"  # what makes a URL of the CDN as good as a token
DATE = "2026-01-02T03:04:05.000Z"  # of every commit


def git_oid(data: bytes, kind: str = "blob") -> str:
    """The name that git gives to an object."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """What git holds instead of a file of Git LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class File:
    """One file of a commit; with ``lfs`` it lies on the CDN, in Git LFS and Xet, and git has a pointer to it."""

    def __init__(self, body: bytes, *, lfs: bool = False) -> None:
        self.body, self.lfs, self.size = body, lfs, len(body)
        self.sha256 = hashlib.sha256(body).hexdigest()
        self.xet_hash = self.sha256[::-1]  # Xet's own hash is not the sha256; only Xet storage can use it
        blob = pointer(self.sha256, self.size) if lfs else body
        self.oid, self._blob_size = git_oid(blob), len(blob)

    def described(self, digest: str) -> dict[str, Any]:
        """What listings say of a file in Git LFS; they differ in what they call its sha256."""
        return {"lfs": {digest: self.sha256, "size": self.size, "pointerSize": self._blob_size}} if self.lfs else {}


Files = dict[str, File]


def tree(files: Files, folder: str = "", *, recursive: bool) -> list[dict[str, Any]]:
    """What lies in a folder of a commit, sorted by path; empty where there is no such folder."""
    prefix, entries = f"{folder}/" if folder else "", {}
    for path, file in files.items():
        entries[path] = {"type": "file", "oid": file.oid, "size": file.size, "path": path, **file.described("oid")}
        if file.lfs:
            entries[path]["xetHash"] = file.xet_hash
        for parent in map(str, list(PurePosixPath(path).parents)[:-1]):
            oid = git_oid(parent.encode(), "tree")  # not git's own id, which no client can check
            entries[parent] = {"type": "directory", "oid": oid, "size": 0, "path": parent}
    below = sorted(path for path in entries if path.startswith(prefix))
    return [entries[path] for path in below if recursive or "/" not in path.removeprefix(prefix)]


@dataclass
class Repository:
    """One model.

    Attributes:
        name: ``owner/name``, or a bare name as the oldest models have it.
        private: Whether it is there only for its readers.
        gated: Whether its files are only for its readers (they accepted the licence). Listings are public.
        readers: Tokens.
        commits: Commit → files.
        branches: Branch → commit.
        tags: Tag → commit.
    """

    name: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Seen(NamedTuple):
    """One request as it arrived."""

    method: str
    host: str  #: ``hub`` or ``cdn``
    path: str  #: with its query
    authorization: str | None


@dataclass
class Answer:
    status: int
    headers: dict[str, object]
    body: bytes = b""


class Refused(Exception):  # noqa: N818 - an answer, not a failure of the server
    """An error as the Hub words it: the code and the message in headers of their own."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, object] | None = None) -> None:
        described = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message}).encode()
        self.answer = Answer(status, {**described, "X-Error-Message": message, **JSON, **(headers or {})}, body)


JSON = {"Content-Type": "application/json; charset=utf-8"}


@dataclass
class Call:
    """What a request asks for: of a repository, at a commit, a path; and its query and form."""

    repository: Repository
    token: str | None
    commit: str
    path: str
    ask: dict[str, list[str]]


class Hub:
    """The Hub and its CDN, each on a free port of loopback; a context manager.

    Attributes:
        url: The endpoint.
        cdn: The other host; a file lies at ``hub.at_cdn(file)`` there, and takes faults.
        seen: Every request so far, to either host, in order.
        repositories: By name; may be changed at any time.
        tokens: The valid ones; with any other, all is refused.
        page: How many entries of a tree make a page.
        resolve_cache: Whether small files too are redirected, to a path on the Hub, as hf.co does today.
    """

    def __init__(self, *, page: int = 1000, resolve_cache: bool = False) -> None:
        self.page, self.resolve_cache = page, resolve_cache
        self.seen: list[Seen] = []
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()
        self._renamed: dict[str, str] = {}
        self._faults: list[tuple[str, Refused]] = []
        self._lock = threading.Lock()
        self.cdn = Origin(host="127.0.0.2")
        self.cdn.on_request = self._saw_cdn
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        self.cdn.__enter__()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.cdn.__exit__()

    def create(self, name: str, *, private: bool = False, gated: bool = False) -> Repository:
        """Add a repository with an empty ``main``; `push` adds a public one if it is missing."""
        self.repositories[name] = Repository(name, private, gated)
        self.push(name, "main", {})
        return self.repositories[name]

    def push(self, name: str, branch: str, files: Mapping[str, bytes | File | None]) -> str:
        """Commit to a branch and return the commit; ``None`` removes a file, and what is not named stays as it was."""
        repository = self.repositories.get(name) or self.create(name)
        parent = repository.branches.get(branch, repository.branches.get("main", ""))
        after: dict[str, bytes | File | None] = {**repository.commits.get(parent, {}), **files}
        kept = {
            path: File(file) if isinstance(file, bytes) else file for path, file in after.items() if file is not None
        }
        for file in kept.values():
            if file.lfs and self.at_cdn(file) not in self.cdn.files:
                self.cdn.put(self.at_cdn(file), file.body, etag=f'"{file.xet_hash}"')
        listing = [f"{file.oid} {path}" for path, file in sorted(kept.items())]
        commit = git_oid("\n".join([f"parent {parent}", *listing]).encode(), "commit")
        repository.commits[commit] = kept
        repository.branches[branch] = commit
        return commit

    def rename(self, old: str, new: str) -> None:
        """Move a repository; its old name redirects from now on."""
        repository = self.repositories.pop(old)
        repository.name, self.repositories[new], self._renamed[old] = new, repository, new

    def grant(self, token: str, *names: str) -> None:
        """Make a token valid, and its owner a reader of these repositories."""
        self.tokens.add(token)
        for name in names:
            self.repositories[name].readers.add(token)

    def fail(self, times: int = 1, status: int = 429, *, path: str = "", wait: int = 0) -> None:
        """Refuse the next requests to the Hub whose path contains ``path``; a 429 asks to wait ``wait`` seconds."""
        limits = {"Retry-After": wait, "RateLimit": f'"api";r=0;t={wait}'} if status == 429 else {}
        self._faults += [(path, Refused(status, "", "Refused, as the test asked", limits))] * times

    def at_cdn(self, file: File) -> str:
        """The path of a file on the CDN."""
        return f"/{file.sha256}"

    def environment(self, home: Path) -> dict[str, str]:
        """What `isolated_client` does, for a child process; and this is its Hub."""
        switches = dict.fromkeys(("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"), "1")
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "*", **switches}

    def answer(self, method: str, target: str, authorization: str | None, form: str) -> Answer:
        """Answer one request to the Hub."""
        self.seen.append(Seen(method, "hub", target, authorization))
        try:
            answer = self._route(target, authorization.removeprefix("Bearer ") if authorization else None, form)
        except Refused as refused:
            answer = refused.answer
        # The Hub sends its limits in every answer, not only where one was exceeded.
        limits = {"RateLimit": '"api";r=2998;t=172', "RateLimit-Policy": '"fixed window";"api";q=3000;w=300'}
        return Answer(answer.status, {**limits, **answer.headers}, answer.body)

    def _saw_cdn(self, request: CdnRequest) -> None:
        self.seen.append(Seen("GET", "cdn", request.path, request.headers.get("Authorization")))

    def _route(self, target: str, token: str | None, form: str) -> Answer:
        url = urlsplit(target)
        with self._lock:
            for index, (part, refused) in enumerate(self._faults):
                if part in url.path:
                    del self._faults[index]
                    raise refused
        if token is not None and token not in self.tokens:  # also where no token is needed
            raise Refused(401, "", "Invalid credentials in Authorization header")
        if url.path == "/api/whoami-v2":
            if token is None:
                raise Refused(401, "", "Invalid username or password.")
            return _json({"type": "user", "name": "somebody"})
        routes = ((view, pattern.fullmatch(url.path)) for pattern, view in self._ROUTES)
        view, match = next((found for found in routes if found[1]), (None, None))
        if view is None or match is None:
            raise Refused(404, "", "No such page")
        if new := self._renamed.get(match["repo"]):
            start, end = match.span("repo")
            moved = url._replace(path=url.path[:start] + new + url.path[end:])
            return Answer(307, {"Location": moved.geturl()})  # relative, as the Hub's is
        repository = self.repositories.get(match["repo"])
        if repository is None or (repository.private and token not in repository.readers):
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        named = {name: unquote(value) for name, value in match.groupdict().items() if value}
        commit = self._commit(repository, named.get("revision", "main"))
        return view(self, Call(repository, token, commit, named.get("path", ""), parse_qs(f"{url.query}&{form}")))

    def _commit(self, repository: Repository, revision: str) -> str:
        if revision in repository.commits:
            return revision
        if commit := repository.branches.get(revision) or repository.tags.get(revision):
            return commit
        raise Refused(404, "RevisionNotFound", f"Invalid revision {revision}")

    def _info(self, call: Call) -> Answer:
        model, siblings = call.repository, []
        for path, file in sorted(model.commits[call.commit].items()):
            blob = {"blobId": file.oid, "size": file.size, **file.described("sha256")}
            siblings.append({"rfilename": path, **(blob if call.ask.get("blobs") == ["true"] else {})})
        about = {"id": model.name, "private": model.private, "gated": "auto" if model.gated else False}
        return _json({**about, "sha": call.commit, "lastModified": DATE, "tags": [], "siblings": siblings})

    def _tree(self, call: Call) -> Answer:
        """One page of a tree; with ``expand`` every entry is said to come from the commit that was asked for."""
        files, page = call.repository.commits[call.commit], self.page
        entries = tree(files, call.path, recursive=call.ask.get("recursive") == ["true"])
        if call.path and not entries:
            raise Refused(404, "EntryNotFound", f"{call.path} is no folder")
        if call.ask.get("expand") == ["true"]:
            page, last = min(page, 50), {"id": call.commit, "title": "A commit", "date": DATE}
            entries = [{**each, "lastCommit": last} for each in entries]
        end, headers = int(call.ask.get("cursor", ["0"])[0]) + page, {}
        if end < len(entries):
            below = quote(f"{call.repository.name}/tree/{call.commit}/{call.path}".rstrip("/"))
            query = urlencode({**call.ask, "cursor": end}, doseq=True)
            headers["Link"] = f'<{self.url}/api/models/{below}?{query}>; rel="next"'
        return _json(entries[end - page : end], headers)

    def _paths(self, call: Call) -> Answer:
        entries = {each["path"]: each for each in tree(call.repository.commits[call.commit], recursive=True)}
        return _json([entries[path] for path in call.ask.get("paths", []) if path in entries])

    def _refs(self, call: Call) -> Answer:
        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": refs[name]} for name in sorted(refs)]

        refs = {"branches": listed("heads", call.repository.branches), "tags": listed("tags", call.repository.tags)}
        return _json({**refs, "converts": [], "pullRequests": []})

    def _resolve(self, call: Call) -> Answer:
        """Where a file is: on the CDN, at the path of small files, or here."""
        file, at = self._file(call), f"{call.repository.name}/{call.commit}/{quote(call.path)}"
        headers: dict[str, object] = {"X-Repo-Commit": call.commit}
        if file.lfs:
            token_url = f"{self.url}/api/models/{call.repository.name}/xet-read-token/{call.commit}"
            headers |= {"X-Linked-Size": file.size, "X-Linked-Etag": f'"{file.sha256}"', "X-Xet-Hash": file.xet_hash}
            headers["Link"] = f'<{token_url}>; rel="xet-auth"'
            signed = f"{self.at_cdn(file)}?Expires=4102444800&Signature={SIGNATURE}"
            return Answer(302, {**headers, "Location": self.cdn.url(signed)})
        if self.resolve_cache:
            return Answer(307, {**headers, "Location": f"/api/resolve-cache/models/{at}"})
        return self._content(call)

    def _content(self, call: Call) -> Answer:
        file = self._file(call)
        return Answer(200, {"X-Repo-Commit": call.commit, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}, file.body)

    def _file(self, call: Call) -> File:
        repository = call.repository
        if repository.gated and call.token not in repository.readers:
            lacking = "accept its licence" if call.token else "log in"
            raise Refused(403 if call.token else 401, "GatedRepo", f"{repository.name} is restricted: {lacking}")
        if call.path not in repository.commits[call.commit]:
            raise Refused(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": call.commit})
        return repository.commits[call.commit][call.path]

    # A revision is one segment (`/` in a branch is quoted); a name may be one or two, so the longer routes come first.
    _REPO, _REVISION = "(?P<repo>[^/]+(?:/[^/]+)?)", "(?P<revision>[^/]+)"
    _ROUTES: tuple[tuple[re.Pattern[str], Callable[[Hub, Call], Answer]], ...] = (
        (re.compile(f"/api/models/{_REPO}/refs"), _refs),
        (re.compile(f"/api/models/{_REPO}/tree/{_REVISION}(?:/(?P<path>.+))?"), _tree),
        (re.compile(f"/api/models/{_REPO}/paths-info/{_REVISION}"), _paths),
        (re.compile(f"/api/models/{_REPO}/revision/{_REVISION}"), _info),
        (re.compile(f"/api/models/{_REPO}"), _info),
        (re.compile(f"/api/resolve-cache/models/{_REPO}/{_REVISION}/(?P<path>.+)"), _content),
        (re.compile(f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)"), _resolve),
    )


def _json(data: Any, headers: Mapping[str, object] | None = None) -> Answer:
    return Answer(200, {**JSON, **(headers or {})}, json.dumps(data).encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def do_GET(self) -> None:
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        answer = self.hub.answer(self.command, self.path, self.headers.get("Authorization"), form)
        self.narrow(answer)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": len(answer.body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names of http.server

    def narrow(self, answer: Answer) -> None:
        """Honour a range, where the answer is a file."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        etag = answer.headers.get("ETag")
        if wanted is None or etag is None or self.headers.get("If-Range", etag) != etag:
            return
        first, total = int(wanted[1]), len(answer.body)
        answer.body = answer.body[first : int(wanted[2]) + 1 if wanted[2] else total]
        answer.status, span = (206, f"{first}-{first + len(answer.body) - 1}") if answer.body else (416, "*")
        answer.headers["Content-Range"] = f"bytes {span}/{total}"

    def log_message(self, *_: object) -> None:
        """Say nothing: requests are kept in `Hub.seen`."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def isolated_client(home: Path) -> Iterator[None]:
    """Let ``huggingface_hub`` in this process see nothing of the user's settings, token, cache and proxies.

    It reads most of its environment once, at import, hence the constants. Pass ``endpoint=`` to every call: the default
    endpoint is spread over several constants, and stays the real Hub.
    """
    from huggingface_hub import close_session, constants

    settings = {
        "HF_HUB_DISABLE_TELEMETRY": True,  # else a process's first request asks the default endpoint about agents
        "HF_HUB_DISABLE_XET": True,  # else hf_xet asks for Xet storage; without it, large files come from the CDN
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
                patch.delenv(name)
        patch.setenv("HF_HOME", str(home))  # for code that reads it later, such as our search for a token
        for name, value in settings.items():
            patch.setattr(constants, name, value)
        close_session()  # one client serves the whole process, and has the proxies that it found when it was made
        try:
            yield
        finally:
            close_session()
