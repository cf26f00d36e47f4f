"""A stand-in for the Hugging Face Hub that the real `huggingface_hub` accepts, with a "CDN" on another port.

    with Hub() as hub:
        commit = hub.repo("acme/tiny", {"config.json": b"{}", "model.safetensors": weights}).refs["main"]
        ... HF_ENDPOINT=hub.url, snapshot_download("acme/tiny") ...
        assert [request.path for request in hub.log] == [...]

It answers as the Hub does: the revision and the tree under /api/models, files under /resolve/, a plain file by itself
and an LFS file by a 302 with its metadata to a signed address on the CDN, errors by `X-Error-Code`. `hub.script` and
`hub.cdn.script` are given every request with its healthy answer and may bend the answer, or change what is held.
With `content_base`, LFS files are redirected to `<content_base>/<sha256>` instead. Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import parse_qs, quote, unquote, urlencode

from tests.faults.server import FaultServer, Resource, Script, healthy
from tests.faults.wire import Answer, Request
from tests.support.httpserver import Body, BytesBody
from tests.support.hub_repo import Commit, HubFile, Repo

VERBS = {"revision", "tree", "paths-info", "xet-read-token", "resolve"}
INVALID_TOKEN = "Invalid credentials in Authorization header"


class Refused(Exception):
    """An error as the Hub words it; the client goes by the code."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str) -> None:
        super().__init__(message)
        known = {"X_Error_Code": code, "X_Error_Message": message}
        self.status, self.headers = status, {name: value for name, value in known.items() if value} | headers

    def answer(self) -> Answer:
        return _json({"error": str(self)}, self.status, **self.headers)


class Scripted(FaultServer):
    """A server with one script for all paths."""

    script: Script | None = None

    def respond(self, request: Request) -> Answer:
        raise NotImplementedError

    def _answer(self, request: Request) -> Answer:
        with self._lock:  # scripts count and decide; one at a time
            answer = self.respond(request)
            request.start, request.stop, body = answer.start, answer.stop, answer.body
            if self.script:
                self.script(request, answer)
            request.genuine = answer.body is body
        return answer


class Cdn(Scripted):
    """Holds LFS files by their SHA-256, for whoever has a signed address."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__(host)
        self.files: dict[str, Body] = {}
        self.live: set[str] = set()
        self._signed = 0

    def sign(self, sha256: str) -> str:
        """An address that is good until `expire`."""
        with self._lock:
            self._signed += 1
            signature = hashlib.sha256(f"{self._signed} {sha256}".encode()).hexdigest()[:40]
            self.live.add(signature)
        query = {"Expires": "4102444800", "Policy": "eyJTdGF0ZW1lbnQ", "Signature": signature, "Key-Pair-Id": "KTEST"}
        return f"{self.url}/repos/{sha256[:2]}/{sha256}?{urlencode(query)}"

    def expire(self) -> None:
        """No address given out so far is good any more."""
        with self._lock:
            self.live.clear()

    def respond(self, request: Request) -> Answer:
        sha256 = request.path.rpartition("/")[2]
        signature = parse_qs(request.query).get("Signature", [""])[0]
        if "authorization" in request.headers:
            return _xml(400, "InvalidArgument")  # as S3: only one auth mechanism allowed
        if request.method != "GET" or signature not in self.live:
            return _xml(403, "AccessDenied")  # signed for GET only
        if sha256 not in self.files:
            return _xml(404, "NoSuchKey")
        tag = hashlib.sha256(f"etag {sha256}".encode()).hexdigest()[:32]  # not the Hub's: that of a multipart upload
        answer = healthy(Resource(self.url + request.path, self.files[sha256], f'"{tag}-3"'), request)
        answer.set("Content-Disposition", "attachment")
        return answer


class Hub(Scripted):
    """The Hub. `page_size` is that of the tree's pages; `resolve_cache`: plain files by a 307 on the same host.

    As on a mirror: `prefix` is a path below which it all is, and `endpoint` the URL with it; `inline`: LFS files are
    served where they are, without a redirect.
    """

    def __init__(
        self,
        *,
        page_size: int = 1000,
        content_base: str | None = None,
        resolve_cache: bool = False,
        prefix: str = "",
        inline: bool = False,
    ) -> None:
        super().__init__()
        self.cdn = Cdn("127.0.0.2")  # the Hub's client before 2.0 takes another port for the same place
        self.prefix, self.endpoint = prefix, self.url + prefix
        self.page_size = page_size
        self.content_base = content_base
        self.resolve_cache, self.inline = resolve_cache, inline
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}  # names that repositories had before
        self.tokens: set[str] = set()
        self._forms: dict[int, str] = {}

    def repo(self, name: str, files: Mapping[str, Body | bytes] | None = None, **fields: Any) -> Repo:
        """A repository, with a first commit of `files`; keywords are fields of `Repo`, and `xet`."""
        xet = bool(fields.pop("xet", False))
        self.repos[name] = repo = Repo(name, **fields, added=self._publish)
        self.tokens |= repo.readers
        if files is not None:
            repo.commit(files, xet=xet)
        return repo

    def api(self) -> list[str]:
        """What was asked under /api/, in order: method, path and query."""
        return [_line(request) for request in self.log if "/api/models/" in request.path]

    def lines(self) -> list[str]:
        return [_line(request) for request in self.log]

    def __enter__(self) -> Self:
        self.cdn.__enter__()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.cdn.__exit__(kind, error, tb)
        finally:
            super().__exit__(kind, error, tb)

    # -- answers ----------------------------------------------------------------------------------------------------

    def respond(self, request: Request) -> Answer:
        try:
            return self._route(request)
        except Refused as refused:
            return refused.answer()

    def _route(self, request: Request) -> Answer:
        if not request.path.startswith(f"{self.prefix}/"):
            raise Refused(404, None, "Not found")
        path = request.path.removeprefix(self.prefix)
        prefix = next(start for start in ("/api/resolve-cache/models/", "/api/models/", "/") if path.startswith(start))
        parts = [unquote(part) for part in path[len(prefix) :].split("/")]
        words = 1 if len(parts) == 1 or parts[1] in VERBS else 2
        name, rest = "/".join(parts[:words]), parts[words:]
        if name in self.moved:
            return _redirect(307, request.path.replace(name, self.moved[name], 1) + f"?{request.query}".rstrip("?"))
        if prefix == "/api/resolve-cache/models/":
            repo = self._admit(request, name, content=True)
            return self._plain(request, *self._file(repo, rest))
        if prefix == "/" and rest[:1] == ["resolve"]:
            repo = self._admit(request, name, content=True)
            return self._resolve(request, *self._file(repo, rest[1:]))
        if prefix == "/":
            raise Refused(404, None, "Not found")
        return self._api(request, self._admit(request, name), rest)

    def _api(self, request: Request, repo: Repo, rest: list[str]) -> Answer:
        match rest:
            case [] | ["revision", _]:
                return _json(_information(repo, _commit(repo, rest[1] if rest else "main"), request.query))
            case ["tree", revision, *path]:
                return self._tree(request, _commit(repo, revision), "/".join(path))
            case ["paths-info", revision]:
                commit, wanted = _commit(repo, revision), parse_qs(self._forms.get(request.number, "")).get("paths", [])
                everything = commit.listing("", recursive=True) or []
                return _json([entry for entry in everything if entry["path"] in wanted])
        raise Refused(404, None, "Not found")

    def _tree(self, request: Request, commit: Commit, folder: str) -> Answer:
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        entries = commit.listing(folder, recursive=query.get("recursive", "").lower() in ("true", "1"))
        if entries is None:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist", X_Repo_Commit=commit.id)
        size = min(int(query.get("limit", self.page_size)), self.page_size)
        start = int(base64.urlsafe_b64decode(query.get("cursor", "MA==")))
        answer = _json(entries[start : start + size])
        if start + size < len(entries):
            cursor = base64.urlsafe_b64encode(b"%d" % (start + size)).decode()
            more = f"{self.url}{request.path}?{urlencode({**query, 'cursor': cursor})}"
            answer.set("Link", f'<{more}>; rel="next"')
        return answer

    def _resolve(self, request: Request, repo: Repo, commit: Commit, path: str, file: HubFile) -> Answer:
        if self.inline or not (file.lfs or self.resolve_cache):
            return self._plain(request, repo, commit, path, file)
        if not file.lfs:
            place = (
                f"{self.prefix}/api/resolve-cache/models/{repo.name}/{commit.id}/{quote(path)}?{quote(path, safe='')}="
            )
            return _redirect(307, place, X_Repo_Commit=commit.id, ETag=file.etag)
        sha256 = file.body.sha256
        location = f"{self.content_base}/{sha256}" if self.content_base else self.cdn.sign(sha256)
        answer = _redirect(302, location, X_Repo_Commit=commit.id, Accept_Ranges="bytes", ETag=file.etag)
        answer.set("X-Linked-Size", str(file.body.size))
        answer.set("X-Linked-ETag", file.etag)
        if file.xet:
            answer.set("X-Xet-Hash", file.xet_hash)
            token = f"{self.endpoint}/api/models/{repo.name}/xet-read-token/{commit.id}"
            answer.set("Link", f'<{token}>; rel="xet-auth", <{self.endpoint}/cas>; rel="xet-reconstruction-info"')
        return answer

    def _plain(self, request: Request, repo: Repo, commit: Commit, path: str, file: HubFile) -> Answer:
        answer = healthy(Resource(self.url + request.path, file.body, file.etag, last_modified=None), request)
        answer.set("X-Repo-Commit", commit.id)
        name = quote(path.rpartition("/")[2])
        answer.set("Content-Disposition", f"inline; filename*=UTF-8''{name}; filename=\"{name}\";")
        return answer

    # -- what is there, and for whom --------------------------------------------------------------------------------

    def _admit(self, request: Request, name: str, *, content: bool = False) -> Repo:
        token = request.headers.get("authorization", "").removeprefix("Bearer ") or None
        if token and token not in self.tokens:
            raise Refused(401, None, INVALID_TOKEN)
        repo = self.repos.get(name)
        if repo is None or (repo.private and token not in repo.readers):
            missing = "Repository not found" if token else "Invalid username or password."
            raise Refused(404 if token else 401, "RepoNotFound", missing)
        if content and repo.gated and token not in repo.readers:
            raise Refused(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        return repo

    def _file(self, repo: Repo, rest: list[str]) -> tuple[Repo, Commit, str, HubFile]:
        commit, path = _commit(repo, rest[0]), "/".join(rest[1:])
        if path not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit.id)
        return repo, commit, path, commit.files[path]

    def _publish(self, commit: Commit) -> None:
        self.cdn.files |= {file.body.sha256: file.body for file in commit.files.values() if file.lfs}

    def _read(self, stream: BinaryIO, connection: int) -> Request | None:
        request = super()._read(stream, connection)
        if request and request.method == "POST":
            self._forms[request.number] = stream.read(int(request.headers.get("content-length", "0"))).decode()
        return request


@contextmanager
def scripted(server: Scripted, script: Script) -> Iterator[None]:
    """The script for a while."""
    server.script = script
    try:
        yield
    finally:
        server.script = None


def _line(request: Request) -> str:
    return f"{request.method} {request.path}{'?' if request.query else ''}{request.query}"


def _commit(repo: Repo, revision: str) -> Commit:
    found = repo.find(revision)
    if found is None:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return found


def _information(repo: Repo, commit: Commit, query: str) -> dict[str, object]:
    blobs = re.search(r"(^|&)blobs=(true|1)", query, re.IGNORECASE)
    siblings = [file.sibling(path) if blobs else {"rfilename": path} for path, file in sorted(commit.files.items())]
    flags = {"private": repo.private, "gated": "auto" if repo.gated else False, "disabled": False}
    when = "2026-01-02T03:04:05.000Z"
    names = {"_id": commit.id[:24], "id": repo.name, "modelId": repo.name, "sha": commit.id, "lastModified": when}
    return {**names, **flags, "tags": [], "downloads": 0, "likes": 0, "createdAt": when, "siblings": siblings}


def _json(value: object, status: int = 200, **headers: str) -> Answer:
    return _whole(status, json.dumps(value).encode(), Content_Type="application/json; charset=utf-8", **headers)


def _xml(status: int, code: str) -> Answer:
    return _whole(status, f"<Error><Code>{code}</Code></Error>".encode(), Content_Type="application/xml")


def _redirect(status: int, location: str, **headers: str) -> Answer:
    return _whole(status, f"Redirecting to {location}".encode(), Location=location, **headers)


def _whole(status: int, page: bytes, **headers: str) -> Answer:
    answer = Answer(status, [], BytesBody(page))
    answer.replace(status, page, **headers)
    return answer
