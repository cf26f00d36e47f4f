"""The server of the downloads: nginx on loopback, which plays a web server, a bucket and the Hub at once."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from benchmarks.payload import Payload

__all__ = ["COMMIT", "OWNER", "WORKER", "Far", "Server", "free_ports", "publish", "run_nginx", "serve"]

#: The revision that every repository of the played Hub has.
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
OWNER: Final = "bench"
#: Of nginx's configuration: as root, since another worker could not read what only its owner may.
WORKER: Final = "user root;\n" if os.geteuid() == 0 else ""

_CONFIG: Final = """\
{user}daemon off;
worker_processes auto;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 2048; }}
http {{
    access_log off;
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
    ssl_certificate {work}/certificate.pem;
    ssl_certificate_key {work}/key.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:bench:1m;
    map $connection_requests $trips {{ 1 2; default 1; }}
    server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{tls} ssl;
{places}
    }}
    server {{
        listen 127.0.0.1:{far};
        limit_rate {rate};
        auth_request /wait;
        location = /wait {{
            internal;
            proxy_pass http://127.0.0.1:{waiter}/$trips;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }}
{places}
    }}
}}
"""

#: A bucket's listing; the Hub's answers about a repository; the Hub's files; all other paths are files as they are.
_PLACES: Final = """\
        root {root};
        location ~ ^/([a-z]+)/?$ {{
            default_type application/xml;
            alias {answers}/$1.xml;
        }}
        location ~ ^/api/models/{owner}/([a-z]+)(/revision/[^/]+)?$ {{
            default_type application/json;
            alias {answers}/$1-info.json;
        }}
        location ~ ^/api/models/{owner}/([a-z]+)/tree/ {{
            default_type application/json;
            alias {answers}/$1-tree.json;
        }}
        location ~ ^/{owner}/([a-z]+)/resolve/[^/]+/(.+)$ {{
            add_header X-Repo-Commit {commit};
            alias {root}/$1/$2;
        }}"""


@dataclass(frozen=True)
class Far:
    """How far away the distant server plays to be: seconds of a round trip, bytes per second of one connection."""

    trip: float = 0.050
    rate: int = 80_000_000


@dataclass(frozen=True)
class Server:
    """Where it answers: as it can, over TLS, and as if it were far away."""

    root: Path
    answers: Path
    plain: str
    tls: str
    far: str
    certificate: Path


@contextmanager
def serve(root: Path, work: Path, far: Far | None = None) -> Iterator[Server]:
    """Serve what is below ``root`` as long as the block lasts; ``work`` is for the server's own files."""
    far = far or Far()
    answers = work / "answers"
    answers.mkdir()
    _certify(work)
    plain, tls, distant, waiter = free_ports(4)
    places = _PLACES.format(root=root, answers=answers, owner=OWNER, commit=COMMIT)
    ports = {"plain": plain, "tls": tls, "far": distant, "waiter": waiter}
    config = _CONFIG.format(user=WORKER, work=work, places=places, rate=far.rate, **ports)
    with run_nginx(
        config, work, ports.values(), [sys.executable, "-m", "benchmarks.waiter", str(waiter), str(far.trip)]
    ):
        certificate = work / "certificate.pem"
        here = "http://127.0.0.1"
        yield Server(root, answers, f"{here}:{plain}", f"https://localhost:{tls}", f"{here}:{distant}", certificate)


@contextmanager
def run_nginx(config: str, work: Path, ports: Iterable[int], *others: Sequence[str]) -> Iterator[None]:
    """nginx, with other commands beside it, for as long as the block lasts, which begins when all ports answer."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if nginx is None:
        raise RuntimeError("nginx is not installed; it serves what is downloaded here")
    (work / "nginx.conf").write_text(config)
    commands = [[nginx, "-c", str(work / "nginx.conf"), "-e", str(work / "error.log")], *others]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with (work / "output.log").open("wb") as log:
        started = [subprocess.Popen(command, env=environ, stdout=log, stderr=log) for command in commands]
    try:
        for port in ports:
            _await(port, started, work)
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def publish(server: Server, payload: Payload) -> None:
    """Let the server list a payload as a bucket and as a repository."""
    stamp = "2026-01-01T00:00:00.000Z"
    items = "".join(
        f"<Contents><Key>{escape(file.name)}</Key><LastModified>{stamp}</LastModified><ETag>{escape(file.etag)}</ETag>"
        f"<Size>{file.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for file in payload.files
    )
    (server.answers / f"{payload.name}.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{payload.name}</Name><Prefix></Prefix><KeyCount>{len(payload.files)}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
    )
    repository = {"id": f"{OWNER}/{payload.name}", "modelId": f"{OWNER}/{payload.name}", "sha": COMMIT}
    siblings = [{"rfilename": file.name} for file in payload.files]
    info = {**repository, "private": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
    (server.answers / f"{payload.name}-info.json").write_text(json.dumps(info))
    tree = [{"type": "file", "path": file.name, "size": file.size, "oid": COMMIT} for file in payload.files]
    (server.answers / f"{payload.name}-tree.json").write_text(json.dumps(tree))


def _certify(work: Path) -> None:
    """A certificate of this machine by itself, for a month."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-days", "30", "-keyout", str(work / "key.pem"), "-out", str(work / "certificate.pem")]
    subprocess.run([*command, *names, *files], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; held together, so that no two are the same."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return ports


def _await(port: int, started: list["subprocess.Popen[bytes]"], work: Path) -> None:
    for _ in range(500):
        if any(process.poll() is not None for process in started):
            break
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    said = "".join((work / name).read_text() for name in ("error.log", "output.log") if (work / name).exists())
    raise RuntimeError(f"the server did not start: {said[-500:]}")
