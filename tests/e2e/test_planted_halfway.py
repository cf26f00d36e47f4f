"""Planted secrets while a download is under way, and after it was killed: none in a journal, lock, ref or file."""

from __future__ import annotations

import base64
import json
import os
from functools import partial
from threading import Event
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.faults.server import FaultServer
from tests.support import Modelstore, finish, staged, wait_until
from tests.support.planted import Watched, canary, files, find, forms
from tests.support.planted_origins import CHUNK, LARGE, bucket, held, hub, registry, signatures, to, web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from subprocess import Popen

    from tests.faults.wire import Answer, Request
    from tests.support.planted_origins import Script

    Place = Callable[["Watched", FaultServer, Script], tuple["Watched", dict[str, str]]]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as origin:
        yield origin


@pytest.fixture
def elsewhere() -> Iterator[FaultServer]:
    """Another host."""
    with FaultServer("127.0.0.2") as other:
        yield other


def on_the_web(watched: Watched, server: FaultServer, script: Script) -> tuple[Watched, dict[str, str]]:
    """Userinfo, a cookie and a signature at once."""
    user, cookie, signature = canary("userinfo", "/@"), canary("cookie"), canary("signature", "/+=")
    watched.needles += [user, cookie, signature]
    settings = watched.plant(".config.toml", '[hosts."127.0.0.1"]\nheaders = { Cookie = "s=${SECRET_COOKIE}" }\n')
    query = f"X-Amz-Security-Token={quote(signature, safe='')}&X-Amz-Signature={quote(signature, safe='')}"
    plain = web(server, {"large": script})["large"]
    account = f"://me:{quote(user, safe='')}@"
    url = f"{plain.replace('://', account)}?{query}"
    return watched.with_env(MODELSTORE_CONFIG=str(settings), SECRET_COOKIE=cookie), {"large": url}


def with_netrc(watched: Watched, server: FaultServer, script: Script) -> tuple[Watched, dict[str, str]]:
    secret = canary("netrc")
    watched.needles.append(secret)
    watched.plant(".netrc", f"machine 127.0.0.1 login me password {secret}\n")
    return watched, {"large": web(server, {"large": script})["large"]}


def on_the_hub(watched: Watched, server: FaultServer, script: Script) -> tuple[Watched, dict[str, str]]:
    token = canary("hf")
    watched.needles.append(token)
    return watched.with_env(HF_ENDPOINT=server.url, HF_TOKEN=token), hub(server, {"large": script})


def in_a_bucket(watched: Watched, server: FaultServer, script: Script) -> tuple[Watched, dict[str, str]]:
    key, secret, token = canary("aws-key"), canary("aws-secret", "/+="), canary("aws-token", "/+=")
    watched.needles += [key, secret, token]
    env = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_SESSION_TOKEN": token,
    }
    return watched.with_env(**env), bucket(server, {"large": script})


def in_a_registry(watched: Watched, server: FaultServer, script: Script) -> tuple[Watched, dict[str, str]]:
    password, token = canary("registry"), canary("registry-token")
    watched.needles += [password, token]
    auth = base64.b64encode(f"me:{password}".encode()).decode()
    watched.plant(".docker/config.json", json.dumps({"auths": {f"127.0.0.1:{server.port}": {"auth": auth}}}))
    return watched, registry(server, {"large": script}, flow="bearer", token=token)


PLACES: dict[str, Place] = {
    "web": on_the_web,
    "netrc": with_netrc,
    "hub": on_the_hub,
    "bucket": in_a_bucket,
    "registry": in_a_registry,
}


def has_journal(root: Path) -> bool:
    """A journal has a chunk in it."""
    if not staged(root):
        return False
    found = files(root / ".modelstore" / "ingest")
    return any(text.startswith(b'{"chunk_size"') and text.count(b"\n") > 1 for text in found.values())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("redirected", [False, True], ids=["direct", "redirected"])
def test_nothing_is_left_by_a_killed_process(
    cli: Modelstore, server: FaultServer, elsewhere: FaultServer, store_root: Path, tmp_path: Path,
    place: str, redirected: bool,
) -> None:  # fmt: skip
    """Looked at while it waits, when it is gone, and when another has finished what it began."""
    free, hop = Event(), canary("hop")
    watched, urls = PLACES[place](Watched(cli, store_root, tmp_path / "work", [hop]), server, held(free))
    if redirected:
        _send_on(server, elsewhere, held(free), hop)
    process = watched.start(urls, "-v")
    try:
        wait_until(lambda: has_journal(store_root), process)
        watched.needles += signatures([*server.log, *elsewhere.log])
        watched.look()
        assert process.poll() is None
        _look_at_arguments(watched, process)
    finally:
        process.kill()
        result = finish(process)
    watched.look({"stdout": result.stdout.encode(), "stderr": result.stderr.encode()})
    assert has_journal(store_root), "what was looked at is still there"
    free.set()
    assert set(watched.run(urls, "-v", "--log-format", "json").values()) == {0}
    watched.needles += signatures([*server.log, *elsewhere.log])
    watched.look()
    assert _heard(server, watched.needles[1]), "it was asked with the secret"
    resumed = [request for request in [*server.log, *elsewhere.log] if request.body_bytes > CHUNK]
    assert sum(request.body_bytes for request in resumed) <= 2 * LARGE


def _send_on(server: FaultServer, elsewhere: FaultServer, script: Script, hop: str) -> None:
    """The large file is elsewhere, at a signed address; what is asked about it is still answered here."""
    for path, resource in list(server.resources.items()):
        if resource.body.size == LARGE:
            target = elsewhere.add(path, resource.body, etag=resource.etag, script=script)
            away, own = to(f"{target.url}?Policy={hop}&Signature={hop}&Key-Pair-Id={hop}"), resource.script
            resource.script = partial(_by_method, away, own)


def _by_method(away: Script, own: Script, request: Request, answer: Answer) -> None:
    own(request, answer)
    if request.method == "GET" and answer.status < 300:
        away(request, answer)


def _look_at_arguments(watched: Watched, process: Popen[str]) -> None:
    own = b"\0".join(os.fsencode(part) for part in process.args)  # type: ignore[union-attr]
    assert not find(watched.needles, {"own arguments": own})


def _heard(server: FaultServer, secret: str) -> bool:
    heard = "\n".join(f"{request.query} {request.headers}" for request in server.log).encode()
    return any(form in heard for form in forms(secret))
