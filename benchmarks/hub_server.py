"""A Hub of one repository: nginx answers about it and redirects to another nginx server for the content.

It says what the Hub's own client wants to hear, without Xet: the commit, the tree with LFS digests and git's names of
plain files, a 302 with its headers for an LFS file, a plain file as it is. All of it without a program that would take
the cores from those who are measured, and every request is written down.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Final
from urllib.parse import quote

from benchmarks.payload import Payload
from benchmarks.server import COMMIT, OWNER, WORKER, free_ports, run_nginx

__all__ = ["Hub", "Requests", "is_lfs", "serve_hub"]

_CONFIG: Final = """\
{user}daemon off;
worker_processes auto;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 2048; }}
http {{
    log_format asked '$server_port $request_method $status $uri';
    access_log {work}/access.log asked;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests 1000000;
    default_type application/octet-stream;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    server {{
        listen 127.0.0.1:{content};
        root {work}/content;
    }}
    server {{
        listen 127.0.0.1:{hub};
        etag off;
        add_header X-Repo-Commit {commit} always;
        location /api/ {{
            default_type application/json;
            location ~ ^/api/models/[^/]+/[^/]+(/revision/[^/]+)?$ {{ alias {work}/info.json; }}
            location ~ ^/api/models/[^/]+/[^/]+/tree/ {{ alias {work}/tree.json; }}
        }}
{places}
    }}
}}
"""
_PLAIN: Final = """\
        location = "{path}" {{
            add_header X-Repo-Commit {commit};
            add_header ETag '"{name}"';
            alias "{file}";
        }}"""
_LFS: Final = """\
        location = "{path}" {{
            add_header X-Repo-Commit {commit} always;
            add_header Accept-Ranges bytes always;
            add_header X-Linked-Size {size} always;
            add_header X-Linked-ETag '"{sha256}"' always;
            add_header ETag '"{sha256}"' always;
            return 302 http://127.0.0.1:{content}/{sha256};
        }}"""
#: What the Hub sends to LFS by its name; and by its size, whatever it is called.
_LARGE: Final = (".safetensors", ".bin", ".gguf", ".model", ".png")
_MOST_PLAIN: Final = 10_000_000


@dataclass(frozen=True)
class Requests:
    """What was asked: for the commit, for lists of files, with HEAD, answered by a redirect, and for content."""

    commit: int
    trees: int
    heads: int
    redirected: int
    content: int

    @property
    def metadata(self) -> int:
        """Requests that bring no content, nor lead to it."""
        return self.commit + self.trees + self.heads

    def __str__(self) -> str:
        of = f"{self.commit} commit, {self.trees} tree, {self.heads} HEAD"
        return f"{self.metadata} for metadata ({of}), {self.redirected} redirected, {self.content} for content"


@dataclass(frozen=True)
class Hub:
    """Where it answers, and what its repository is called."""

    endpoint: str
    repository: str
    log: Path

    def requests(self) -> Requests:
        """Those since the last time."""
        sleep(0.2)  # a request is written down after its answer is sent
        lines = [line.split(" ", 3) for line in self.log.read_text().splitlines()]
        self.log.write_text("")
        kinds = Counter(_kind(method, status, path) for _, method, status, path in lines)
        return Requests(*(kinds[kind] for kind in ("commit", "tree", "head", "redirect", "content")))


def _kind(method: str, status: str, path: str) -> str:
    if path.startswith("/api/"):
        return "tree" if "/tree/" in path else "commit"
    if method == "HEAD":
        return "head"
    return "redirect" if status == "302" else "content"


def is_lfs(name: str, size: int) -> bool:
    """Whether the Hub would have a file in LFS, so that it has a SHA-256 there."""
    return name.endswith(_LARGE) or size > _MOST_PLAIN


@contextmanager
def serve_hub(payload: Payload, work: Path) -> Iterator[Hub]:
    """Serve a payload as a repository as long as the block lasts; ``work`` is for the server's own files."""
    work.mkdir()
    content, port = free_ports(2)
    (work / "content").mkdir()
    places, tree = [], []
    for file in payload.files:
        path = payload.directory / file.name
        asked = f"/{OWNER}/{payload.name}/resolve/{COMMIT}/{quote(file.name)}"
        entry: dict[str, object] = {"type": "file", "path": file.name, "size": file.size}
        if is_lfs(file.name, file.size):
            (work / "content" / file.sha256).symlink_to(path)
            places.append(_LFS.format(path=asked, commit=COMMIT, content=content, size=file.size, sha256=file.sha256))
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
            entry["oid"] = _git_name(pointer.encode())
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer)}
        else:
            entry["oid"] = name = _git_name(path.read_bytes())
            places.append(_PLAIN.format(path=asked, commit=COMMIT, name=name, file=path))
        tree.append(entry)
    repository = f"{OWNER}/{payload.name}"
    names = {"id": repository, "modelId": repository, "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
    siblings = [{"rfilename": file.name} for file in payload.files]
    (work / "info.json").write_text(json.dumps({**names, "likes": 0, "siblings": siblings}))
    (work / "tree.json").write_text(json.dumps(tree))
    ports = {"content": content, "hub": port}
    config = _CONFIG.format(user=WORKER, work=work, commit=COMMIT, places="\n".join(places), **ports)
    with run_nginx(config, work, ports.values()):
        yield Hub(f"http://127.0.0.1:{port}", repository, work / "access.log")


def _git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
