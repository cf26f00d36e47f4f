"""Planted secrets of the Hub, of S3 and of registries: in no log, no error, no file, no process list.

HF token; AWS keys and token, and the signatures made with them; a registry's password from each place where it may be,
and the token that it is exchanged for. See test_planted_secrets.py for those of the web.
"""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.faults.server import FaultServer
from tests.support import Modelstore
from tests.support.planted import VOICES, Watched, canary, find, forms
from tests.support.planted_origins import behaviours, bucket, echo, flipped, hub, registry, share, signatures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.wire import Request

LOUD = pytest.mark.parametrize("voice", VOICES)
HELPER = """#!/bin/sh
echo "$0 $@" >> "$HOME/helper.log"
cat >> "$HOME/helper.log"
cat "$HOME/helper.json"
"""


@pytest.fixture
def watched(cli: Modelstore, store_root: Path, tmp_path: Path) -> Watched:
    return Watched(cli, store_root, tmp_path / "work")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as origin:
        yield origin


@pytest.fixture
def elsewhere() -> Iterator[FaultServer]:
    """Another host."""
    with FaultServer("127.0.0.2") as other:
        yield other


def fine(urls: dict[str, str], *names: str) -> set[str]:
    return {name for name in urls if name in names}


def asked_with(log: list[Request], secret: str) -> bool:
    heard = "\n".join(f"{request.query} {request.headers}" for request in log).encode()
    return any(form in heard for form in forms(secret))


# -- the Hub -----------------------------------------------------------------------------------------------------------


@LOUD
@pytest.mark.parametrize("where", ["HF_TOKEN", "HF_TOKEN_PATH", "home"])
def test_the_hubs_token(watched: Watched, server: FaultServer, elsewhere: FaultServer, voice: str, where: str) -> None:
    token, hop = canary("hf"), canary("hop")
    watched.needles += [token, hop]
    env = {"HF_ENDPOINT": server.url}
    if where == "home":
        watched.plant(".cache/huggingface/token", f"{token}\n")
        env["HF_HOME"] = str(watched.cli.home / ".cache" / "huggingface")
    else:
        env[where] = token if where == "HF_TOKEN" else str(watched.plant("token", token))
    scripts = share(behaviours(elsewhere, hop), voice)
    urls: dict[str, str] = {}
    scripts["flipped"] = flipped
    for first in ("revision", "tree", "data"):
        urls |= hub(server, scripts if where == "HF_TOKEN" else {"good": None, "n403": echo(403)}, first=first)
    good = fine(urls, *(f"good.{first}" for first in ("revision", "tree", "data")), "elsewhere.data")
    watched.with_env(**env).endure(urls, voice, good)
    assert asked_with(server.log, token)
    assert not find([token], {"elsewhere": repr(elsewhere.log).encode()})


# -- S3 ----------------------------------------------------------------------------------------------------------------


@LOUD
@pytest.mark.parametrize("where", ["environment", "userinfo", "file"])
def test_the_keys_of_a_bucket(
    watched: Watched, server: FaultServer, elsewhere: FaultServer, voice: str, where: str
) -> None:
    key, secret, token, hop = (
        canary("aws-key"),
        canary("aws-secret", "/+="),
        canary("aws-token", "/+="),
        canary("hop"),
    )
    watched.needles += [key, secret, token, hop]
    env = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }
    if where == "environment":
        env |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": token}
    elif where == "file":
        names = {"aws_access_key_id": key, "aws_secret_access_key": secret, "aws_session_token": token}
        lines = "\n".join(f"{name} = {value}" for name, value in names.items())
        watched.plant(".aws/credentials", f"[default]\n{lines}\n")
    scripts = share(behaviours(elsewhere, hop), voice, every=4)
    urls = bucket(server, scripts if where == "environment" else {"good": None, "n403": echo(403)})
    if where == "userinfo":
        account = f"://{key}:{quote(secret, safe='')}@"
        urls = {name: url.replace("://", account) for name, url in urls.items()}
    options = VOICES[voice]
    result = watched.with_env(**env).command(urls, *(options or ()), api=options is None)()
    watched.needles += signatures(server.log)
    codes = watched.judge(result)
    assert codes["good"] == 0
    assert codes.get("n403", 4) == 4
    assert all(code == 0 or 3 <= code <= 7 for code in codes.values()), codes
    assert asked_with(server.log, key)
    assert where == "userinfo" or asked_with(server.log, token)
    assert len(signatures(server.log)) > 2
    assert not find([key, secret, token], {"elsewhere": repr(elsewhere.log).encode()})


@LOUD
def test_keys_that_cannot_be_used(watched: Watched, server: FaultServer, voice: str) -> None:
    """Half of them, and a file that is none: said without showing them."""
    secret = canary("aws-secret", "/+=")
    watched.needles.append(secret)
    urls = bucket(server, {"good": None})
    env = {"AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true", "AWS_SECRET_ACCESS_KEY": secret}
    watched.plant(".aws/credentials", f"[default\naws_secret_access_key = {secret}\n")
    options = VOICES[voice]
    codes = watched.with_env(**env).run(urls, *(options or ()), api=options is None)
    assert set(codes.values()) <= {2, 4}


# -- registries --------------------------------------------------------------------------------------------------------


def account(watched: Watched, server: FaultServer, where: str, password: str) -> dict[str, str]:
    """Put name and password where `where` says; the environment that goes with it."""
    host = f"{server.host}:{server.port}"
    encoded = base64.b64encode(f"me:{password}".encode()).decode()
    if where == "userinfo":
        return {}
    if where == "auth":
        folder = watched.plant("docker/config.json", json.dumps({"auths": {host: {"auth": encoded}}})).parent
        return {"DOCKER_CONFIG": str(folder)}
    if where == "home":
        account_of = {"username": "me", "password": password}
        watched.plant(".docker/config.json", json.dumps({"auths": {f"https://{host}/v2/": account_of}}))
        return {}
    helper = watched.plant("bin/docker-credential-planted", HELPER)
    helper.chmod(0o755)
    watched.planted.remove(helper)
    watched.plant("helper.json", json.dumps({"ServerURL": host, "Username": "me", "Secret": password}))
    watched.plant(".docker/config.json", json.dumps({"credHelpers": {host: "planted"}}))
    return {"PATH": f"{helper.parent}:{os.environ['PATH']}"}


@LOUD
@pytest.mark.parametrize(
    ("where", "flow"),
    [("userinfo", "basic"), ("userinfo", "bearer"), ("auth", "bearer"), ("home", "basic"), ("helper", "bearer")],
)
def test_the_password_of_a_registry(
    watched: Watched, server: FaultServer, elsewhere: FaultServer, voice: str, where: str, flow: str
) -> None:
    password, token, hop = canary("registry", "/@"), canary("registry-token"), canary("hop")
    watched.needles += [password, token, hop]
    env = account(watched, server, where, password)
    scripts = share(behaviours(elsewhere, hop), voice)
    if (where, flow) not in (("userinfo", "basic"), ("auth", "bearer")):
        scripts = {"good": None, "n403": echo(403), "n500": echo(500)}
    urls, scripts = {}, {**scripts, "flipped": flipped}
    for first in ("manifest", "data"):
        urls |= registry(server, scripts, flow=flow, token=token, first=first)
    if where == "userinfo":
        urls = {name: url.replace("://", f"://me:{quote(password, safe='')}@") for name, url in urls.items()}
    good = fine(urls, "good.manifest", "good.data", "elsewhere.data")
    watched.with_env(**env).endure(urls, voice, good)
    assert asked_with(server.log, password)
    assert asked_with(server.log, token) == (flow == "bearer")
    assert not find([password, token], {"elsewhere": repr(elsewhere.log).encode()})


@LOUD
@pytest.mark.parametrize("kind", ["refuses", "garbage", "fails", "broken config"])
def test_a_helper_that_is_no_help(watched: Watched, server: FaultServer, voice: str, kind: str) -> None:
    """What it says may hold the password, and so may a config that cannot be read."""
    password = canary("registry")
    watched.needles.append(password)
    env = account(watched, server, "helper", password)
    told = watched.cli.home / "helper.json"
    if kind == "refuses":
        urls = registry(server, {"good": None}, flow="bearer", token=canary("another"))
        server.resources["/token"].script = lambda request, answer: answer.replace(403, repr(request.headers).encode())
    else:
        urls = registry(server, {"good": None}, flow="basic", token="")
    if kind == "garbage":
        told.write_text(f"error: no such secret {password}\n")
    if kind == "fails":
        script = watched.cli.home / "bin" / "docker-credential-planted"
        script.write_text(f'#!/bin/sh\necho "{password}" >&2\nexit 1\n')
        watched.planted.append(script)
    if kind == "broken config":
        (watched.cli.home / ".docker" / "config.json").write_text(f'{{"auths": {{"x": {{"auth": "{password}"')
    options = VOICES[voice]
    codes = watched.with_env(**env).run(urls, *(options or ()), api=options is None)
    assert set(codes.values()) <= {0, 2, 4}, codes
