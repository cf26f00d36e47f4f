"""A real registry (Debian's `docker-registry`) on a free port of 127.0.0.1, and what pushes to any registry.

    with serve(find_registry(), tmp_path) as registry:
        model = blob(b"...", "application/vnd.ollama.image.model")
        registry.push("library/tiny", "latest", image(config, [model]), [config, model])

Pushes go over plain HTTP with the standard library, so that what is pulled was not put there by our own code.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
BYTES = "application/octet-stream"
OLLAMA = "application/vnd.ollama.image."

#: Of the registry with passwords. The registry reads bcrypt only, which the standard library cannot write.
USER, PASSWORD = "canary-user", "canary-p@ss"
HTPASSWD = f"{USER}:$2y$04$abcdefghijklmnopqrstuuBo1tzib0tXIoLvb023u3Ip/O.F51Qf.\n"

CONFIG = """
version: 0.1
log: {{level: info, formatter: json, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: "{work}/data"}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}", secret: tests}}
"""
AUTH = """
auth:
  htpasswd: {{realm: tests, path: "{work}/htpasswd"}}
"""


def find_registry() -> str | None:
    return shutil.which("docker-registry") or shutil.which("docker-registry", path="/usr/bin:/usr/local/bin")


# -- what is pushed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """Bytes, and how a manifest lists them."""

    data: bytes
    media_type: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def hex(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data), **self.extra}

    def annotated(self, **annotations: str) -> Blob:
        """With annotations; `filepath` and `title` for the two that name a file."""
        names = {"filepath": "org.cncf.model.filepath", "title": "org.opencontainers.image.title"}
        found = {names.get(name, name): value for name, value in annotations.items()}
        return replace(self, extra={**self.extra, "annotations": found})


def ollama(kind: str, data: bytes | str) -> Blob:
    """A layer of an Ollama model: `model`, `template`, …"""
    return Blob(data.encode() if isinstance(data, str) else data, OLLAMA + kind)


def config(value: Mapping[str, Any] | None = None, media_type: str = DOCKER_CONFIG) -> Blob:
    default = {"model_format": "gguf", "model_family": "test", "architecture": "amd64", "os": "linux"}
    return Blob(json.dumps(default if value is None else value, separators=(",", ":")).encode() + b"\n", media_type)


@dataclass(frozen=True)
class Image:
    """A manifest as bytes, with the blobs that it lists."""

    raw: bytes
    media_type: str
    blobs: tuple[Blob, ...] = ()

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.raw).hexdigest()}"

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.raw)}


def image(config: Blob, *layers: Blob, media_type: str = DOCKER_MANIFEST, **extra: Any) -> Image:
    """Written in a way that no encoder has by default, so that bytes which were not kept show."""
    value: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type, **extra}
    value |= {"config": config.descriptor, "layers": [layer.descriptor for layer in layers]}
    return Image(json.dumps(value, indent=1).encode() + b"\n", media_type, (config, *layers))


def index(*children: tuple[Image, Mapping[str, Any]], media_type: str = OCI_INDEX) -> Image:
    """An index of images, each with what its entry has beside the descriptor (a platform, annotations)."""
    entries = [{**child.descriptor, **extra} for child, extra in children]
    value = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
    return Image(json.dumps(value, indent=1).encode(), media_type)


# -- where it is pushed to ------------------------------------------------------------------------------------------


@dataclass
class Registry:
    """Where it listens, and the log it writes: one line of JSON for every request, when it has been answered."""

    host: str  # host:port
    log: Path
    userinfo: str = ""  # user:password, if it wants one

    def source(self, name: str, tag: str = "latest", userinfo: str = "") -> str:
        """The URL that modelstore fetches; `userinfo` as in a URL."""
        return f"ollama://{userinfo and userinfo + '@'}{self.host}/{name}:{tag}"

    def push(self, name: str, tag: str, pushed: Image) -> Image:
        """Push the blobs, then the manifest. A child of an index has a digest for its tag."""
        for blob in {blob.digest: blob for blob in pushed.blobs}.values():
            self.push_blob(name, blob)
        self._ask("PUT", f"/v2/{name}/manifests/{tag}", pushed.raw, pushed.media_type)
        return pushed

    def push_blob(self, name: str, blob: Blob) -> None:
        location = self._ask("POST", f"/v2/{name}/blobs/uploads/").headers["Location"]
        joint = "&" if "?" in location else "?"
        self._ask("PUT", f"{location}{joint}digest={blob.digest}", blob.data)

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The GET and HEAD requests it has answered so far."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        answered = [line for line in lines if line.get("msg") == "response completed"]
        return [line for line in answered if line["http.request.method"] in ("GET", "HEAD")]

    def _ask(self, method: str, url: str, data: bytes = b"", media_type: str = BYTES) -> Any:
        url = url if url.startswith("http") else f"http://{self.host}{url}"
        request = urllib.request.Request(url, data, {"Content-Type": media_type}, method=method)
        if self.userinfo:
            request.add_header("Authorization", basic(self.userinfo))
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            answer.read()
            return answer


def basic(userinfo: str) -> str:
    return "Basic " + base64.b64encode(userinfo.encode()).decode()


@contextmanager
def serve(program: str, work: Path, *, auth: bool = False) -> Iterator[Registry]:
    """A registry that keeps everything in `work`; with `auth` it wants USER and PASSWORD for everything."""
    for _ in range(10):
        port = _free_port()
        text = CONFIG.format(work=work, port=port) + (AUTH.format(work=work) if auth else "")
        (work / "config.yml").write_text(text)
        (work / "htpasswd").write_text(HTPASSWD)
        log = work / "registry.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, "serve", str(work / "config.yml")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"HOME": str(work), "OTEL_TRACES_EXPORTER": "none"},
            )
        try:
            if _started(process, log, port):
                yield Registry(f"127.0.0.1:{port}", log, f"{USER}:{PASSWORD}" if auth else "")
                return
        finally:
            process.kill()
            process.wait(10)
    raise RuntimeError("docker-registry did not start:\n" + (work / "registry.log").read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(process: subprocess.Popen[bytes], log: Path, port: int) -> bool:
    """True once it says that it listens; False when it gave up (somebody else got the port)."""
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        if f"listening on 127.0.0.1:{port}" in log.read_text():
            return True
        time.sleep(0.01)
    return False
