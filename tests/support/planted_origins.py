"""Small origins for the tests of planted secrets: a web server, a Hub, a bucket and a registry, good and bad.

Each has one model per behaviour, and shows what it was asked (`FaultServer.log`). Not complete: the stand-ins that real
clients accept are elsewhere. A refusal quotes the request, credentials and all, as servers do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote

from tests.faults.server import FaultServer, Resource
from tests.support import sha256_of
from tests.support.httpserver import PatternBody

if TYPE_CHECKING:
    from tests.faults.wire import Answer, Request

Script = Callable[["Request", "Answer"], None]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZE = 40_000
CHUNK = 16 << 20
LARGE = 2 * CHUNK + 77  # of a model whose name begins so
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def echo(status: int) -> Script:
    """A refusal that quotes what was asked, in its text and in a header."""

    def script(request: Request, answer: Answer) -> None:
        asked = f"{request.path}?{request.query} {request.headers}"
        code = {401: "InvalidToken", 403: "SignatureDoesNotMatch", 404: "NoSuchKey"}.get(status, "InternalError")
        page = f"<Error><Code>{code}</Code><Message>{quote(asked)}</Message><Asked>{asked}</Asked></Error>"
        headers = {"WWW_Authenticate": f"Custom said={json.dumps(asked)}"} if status == 401 else {}
        answer.replace(status, page.encode(), Content_Type="application/xml", Set_Cookie="a=b", **headers)

    return script


def struck(how: str, at: int = 1000) -> Script:
    """The body never comes any further than this; that of a small document not even so far."""

    def script(request: Request, answer: Answer) -> None:
        answer.strike, answer.at = how, at if answer.body.size > at else 20  # type: ignore[assignment]

    return script


def held(free: Event) -> Script:
    """What comes after the first chunk waits until it is set free."""

    def script(request: Request, answer: Answer) -> None:
        if answer.stop > CHUNK + 1000 and not free.is_set():
            answer.strike, answer.at = "stall", max(CHUNK + 1000, answer.start)

    return script


def silent(request: Request, answer: Answer) -> None:
    answer.silent = "reset"


def garbage(request: Request, answer: Answer) -> None:
    answer.preface = b"SSH-2.0-OpenSSH_9.2p1\r\n"


def to(location: str) -> Script:
    return lambda request, answer: answer.replace(302, b"elsewhere\n", Location=location)


def loop(request: Request, answer: Answer) -> None:
    answer.replace(302, b"again\n", Location=f"{request.path}?{request.query}")


def flipped(request: Request, answer: Answer) -> None:
    """One bit is wrong: found out where a digest is known, and nowhere else."""
    answer.flip = 10


def changed(request: Request, answer: Answer) -> None:
    if request.nth > 1:
        answer.replace(412)


def behaviours(other: FaultServer, secret: str) -> dict[str, Script | None]:
    """By name. `other` is another host, to which redirects lead with a signature of their own."""
    query = f"Policy={secret}&Signature={secret}&Key-Pair-Id={secret}&token={secret}"
    other.add("/200", body("elsewhere"))
    for code in (403, 500):
        other.add(f"/{code}", script=echo(code))
    other.add("/reset", PatternBody(SIZE), script=silent)
    return {
        "good": None,
        "n404": echo(404),
        "n401": echo(401),
        "n403": echo(403),
        "n500": echo(500),
        "reset": silent,
        "cut": struck("close"),
        "stall": struck("stall"),
        "garbage": garbage,
        "changed": changed,
        "loop": loop,
        "elsewhere": to(f"{other.url}/200?{query}"),
        "elsewhere403": to(f"{other.url}/403?{query}"),
        "elsewhere500": to(f"{other.url}/500?{query}"),
        "elsewhere-reset": to(f"{other.url}/reset?{query}"),
        "nowhere": to(f"http://me:{secret}@127.0.0.1:1/x?{query}"),
        "malformed": to(f"http://me:{secret}@[127.0.0.1/x?{query}"),
        "other-scheme": to(f"ftp://me:{secret}@127.0.0.1/x?{query}"),
    }


def share(scripts: dict[str, Script | None], voice: str, every: int = 2) -> dict[str, Script | None]:
    """All for the loudest voice. The other two say the same of what goes wrong: one in `every` for each of them."""
    if voice == "api":
        return scripts
    bad = [name for name in scripts if name not in ("good", "elsewhere")]
    chosen = {"good", "elsewhere", *bad[("text", "json").index(voice) :: every]}
    return {name: script for name, script in scripts.items() if name in chosen}


def body(name: str) -> PatternBody:
    """Other bytes for each model: what is known by its digest is not asked for twice."""
    size = LARGE if name.startswith("large") else SIZE
    return PatternBody(size, seed=int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))


def web(server: FaultServer, scripts: dict[str, Script | None]) -> dict[str, str]:
    """URLs by behaviour; "pinned" is one whose bytes are not those of its pin."""
    for name, script in scripts.items():
        server.add(f"/{name}/m.gguf", body(name), script=script)
    server.add("/pinned/m.gguf", body("pinned"))
    return {name: f"{server.url}/{name}/m.gguf" for name in [*scripts, "pinned"]}


def hub(server: FaultServer, scripts: dict[str, Script | None], *, first: str = "data") -> dict[str, str]:
    """A model per behaviour, called "behaviour.first"; `first` behaves so: the revision, the tree or the data."""
    for name, script in scripts.items():
        weights, repo = body(name), f"me/{name}.{first}"
        digest = weights.sha256
        text = f"config of {name}".encode()
        blob = hashlib.sha1(b"blob %d\0%b" % (len(text), text), usedforsecurity=False).hexdigest()
        lfs = {"oid": digest, "size": weights.size, "pointerSize": 134}
        listed = [
            {"type": "file", "path": "config.json", "size": len(text), "oid": blob},
            {"type": "file", "path": "m.gguf", "size": weights.size, "oid": COMMIT, "lfs": lfs},
        ]
        places: dict[str, Resource] = {
            "revision": server.add(f"/api/models/{repo}/revision/main", json.dumps({"sha": COMMIT}).encode()),
            "tree": server.add(f"/api/models/{repo}/tree/{COMMIT}", json.dumps(listed).encode()),
            "data": server.add(f"/{repo}/resolve/{COMMIT}/m.gguf", weights),
        }
        server.add(f"/{repo}/resolve/{COMMIT}/config.json", text)
        for resource in places.values():
            resource.ranges = resource is places["data"]
        places[first].script = script
    return {f"{name}.{first}": f"hf://me/{name}.{first}" for name in scripts}


def bucket(server: FaultServer, scripts: dict[str, Script | None], name: str = "planted-bucket") -> dict[str, str]:
    """Objects of one bucket, path style, and its listing (version 2)."""
    sizes = {f"{key}/m.gguf": body(key).size for key in scripts}
    for key, script in scripts.items():
        server.add(f"/{name}/{key}/m.gguf", body(key), etag=f'"{sha256_of(key.encode())[:32]}"', script=script)

    def listing(request: Request, answer: Answer) -> None:
        prefix = parse_qs(request.query).get("prefix", [""])[0]
        rows = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;"
            f"{sha256_of(key.partition('/')[0].encode())[:32]}&quot;</ETag><Size>{size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key, size in sorted(sizes.items())
            if key.startswith(prefix)
        )
        head = f"<Name>{name}</Name><Prefix>{prefix}</Prefix><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>"
        page = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{head}{rows}</ListBucketResult>'
        answer.replace(200, page.encode(), Content_Type="application/xml")

    for path in (f"/{name}", f"/{name}/"):
        server.add(path, script=listing)
    return {key: f"s3://{name}/{key}/m.gguf" for key in scripts}


def registry(
    server: FaultServer, scripts: dict[str, Script | None], *, flow: str, token: str, first: str = "data"
) -> dict[str, str]:
    """Ollama-shaped models behind Basic or Bearer; `token` is what the Bearer flow gives out, once it is asked."""
    realm = {"basic": 'Basic realm="here"', "bearer": f'Bearer realm="{server.url}/token",service="here"'}[flow]

    def guarded(script: Script | None) -> Script:
        def answer_to(request: Request, answer: Answer) -> None:
            given = request.headers.get("authorization", "")
            if not given or (flow == "bearer" and not given.endswith(token)):
                answer.replace(401, b"{}", WWW_Authenticate=realm, Content_Type="application/json")
            elif script:
                script(request, answer)

        return answer_to

    def give(request: Request, answer: Answer) -> None:
        if not request.headers.get("authorization", "").startswith("Basic "):
            echo(401)(request, answer)
        else:
            answer.replace(200, json.dumps({"token": token, "expires_in": 300}).encode())

    server.add("/token", script=give)
    for behaviour, script in scripts.items():
        name = f"{behaviour}.{first}"
        weights, config = body(behaviour), json.dumps({"model_format": "gguf", "name": name}).encode()
        media = "application/vnd.ollama.image.model"
        layer = {"mediaType": media, "digest": f"sha256:{weights.sha256}", "size": weights.size}
        described = {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": f"sha256:{sha256_of(config)}",
            "size": len(config),
        }
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": described, "layers": [layer]}
        places = {
            "manifest": _typed(server.add(f"/v2/me/{name}/manifests/latest", json.dumps(manifest).encode())),
            "data": server.add(f"/v2/me/{name}/blobs/sha256:{weights.sha256}", weights),
            "config": server.add(f"/v2/me/{name}/blobs/sha256:{sha256_of(config)}", config),
        }
        for place, resource in places.items():
            own = resource.script
            resource.script = guarded(script if place == first else own)
    server.add("/v2/", script=guarded(None))
    return {f"{name}.{first}": f"ollama://{server.host}:{server.port}/me/{name}.{first}" for name in scripts}


def _typed(resource: Resource) -> Resource:
    resource.ranges = False
    resource.script = lambda request, answer: answer.set("Content-Type", MANIFEST_TYPE)
    return resource


def signatures(log: list[Request]) -> set[str]:
    """What was signed on the way: the signatures, and the tokens that came along with them."""
    names = r"(?:X-Amz-Signature|X-Amz-Security-Token|Signature)"
    found: set[str] = set()
    for request in log:
        text = f"{request.query}&{request.headers.get('authorization', '')}"
        found.update(re.findall(rf"(?i)\b{names}=([^&,\s]+)", text))
    return {value for value in found if len(value) >= 16}
