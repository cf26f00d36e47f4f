"""Credentials: from the URL and from Docker's configuration, sent to their registry, and seen nowhere else."""

from __future__ import annotations

import base64
import json
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import ERROR, Modelstore, Result, digests, key_of, visible
from tests.support.registry import PASSWORD, USER, Registry, basic, config, image, ollama
from tests.support.tokenregistry import Cdn, TokenRegistry

TINY = image(config(), ollama("model", b"GGUF tiny"), ollama("system", "Say bye!"))
FILES = {"model.gguf": TINY.blobs[1].hex, "system": TINY.blobs[2].hex}
NAME = "library/tiny"
USERINFO = f"{USER}:canary-p%40ss"
BASIC = basic(f"{USER}:{PASSWORD}").removeprefix("Basic ")
WRONG = base64.b64encode(b"canary-user:canary-wrong").decode()
IDENTITY, REGISTRY_TOKEN = "canary-identity", "canary-registry-token"
SECRETS = (PASSWORD, "canary-p%40ss", BASIC, WRONG, "canary-wrong", IDENTITY, REGISTRY_TOKEN, "canary-token")
HELPER = """#!{python}
import json, pathlib, sys
server = sys.stdin.read()
pathlib.Path({log!r}).open("a").write(json.dumps([sys.argv[1:], server]) + "\\n")
if server.strip() not in {servers!r}:
    print("credentials not found in native keychain")
    sys.exit(1)
print(json.dumps({{"ServerURL": server.strip(), "Username": {name!r}, "Secret": {secret!r}}}))
"""


@dataclass
class Docker:
    """DOCKER_CONFIG and a directory of credential helpers, for a command that is watched for secrets."""

    cli: Modelstore
    home: Path  # DOCKER_CONFIG
    programs: Path
    store_root: Path

    def config(self, **value: Any) -> None:
        self.home.mkdir(exist_ok=True)
        (self.home / "config.json").write_text(json.dumps(value))

    def helper(self, host: str, name: str = USER, secret: str = PASSWORD) -> Path:
        """`docker-credential-canary`, which knows one host; the log of what it was asked."""
        self.programs.mkdir(exist_ok=True)
        program, log = self.programs / "docker-credential-canary", self.programs / "asked"
        servers = [host, f"http://{host}", f"https://{host}"]
        values = {"python": sys.executable, "log": str(log), "servers": servers, "name": name, "secret": secret}
        program.write_text(HELPER.format(**values))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return log

    def refused(self, url: str, *args: str, codes: tuple[int, ...] = (4,)) -> None:
        """The fetch fails with one sentence, below the traceback that -v asked for."""
        result = self.fetch(url, *args)
        assert result.returncode in codes, result
        assert (result.stdout, result.stderr.count(f"\n{ERROR}")) == ("", 1), result
        assert result.stderr.splitlines()[-1].startswith(ERROR), result

    def fetch(self, url: str, *args: str, env: dict[str, str | None] | None = None, cwd: Path | None = None) -> Result:
        """With -v; nothing secret is said or left behind."""
        path = f"{self.programs}:{sys.exec_prefix}/bin:/usr/bin:/bin"
        settings = {**self.cli.env, "PATH": path, **(env or {})}
        settings = {name: value for name, value in settings.items() if value is not None}
        command = Modelstore(self.cli.home, (*self.cli.options, "-v"), settings)
        result = command("fetch", *args, url, cwd=cwd)
        said = [result.stdout.encode(), result.stderr.encode()]
        left = [path for place in (self.store_root, self.cli.home) for path in place.rglob("*")]
        left = [path for path in left if self.home not in path.parents]
        said += [str(path).encode() for path in left] + [path.read_bytes() for path in left if path.is_file()]
        for secret in SECRETS:
            assert not any(secret.encode() in text for text in said), (secret, result)
        return result


@pytest.fixture
def docker(cli: Modelstore, tmp_path: Path, store_root: Path) -> Docker:
    return Docker(cli, tmp_path / "docker", tmp_path / "programs", store_root)


def test_userinfo(docker: Docker, locked: Registry) -> None:
    locked.push(NAME, "latest", TINY)
    found = docker.fetch(locked.source(NAME, userinfo=USERINFO), "--json").json
    clean = locked.source(NAME)
    assert (found["source"], found["key"], found["manifest"]) == (clean, key_of(clean)[:16], TINY.digest)
    assert digests(Path(found["path"])) == FILES
    assert docker.fetch(clean).path == Path(found["path"]), "the same model, and it is there"


def with_auths(docker: Docker, host: str) -> None:
    docker.config(auths={"other.example": {"auth": WRONG}, host: {"auth": BASIC}})


def with_names(docker: Docker, host: str) -> None:
    docker.config(auths={host: {"username": USER, "password": PASSWORD}})


def with_scheme(docker: Docker, host: str) -> None:
    docker.config(auths={f"http://{host}": {"auth": BASIC}})


def with_path(docker: Docker, host: str) -> None:
    docker.config(auths={f"https://{host}/v1/": {"auth": BASIC}})


def with_helper(docker: Docker, host: str) -> None:
    docker.helper(host)
    docker.config(credHelpers={host: "canary", "other.example": "no-such-helper"})


def with_store(docker: Docker, host: str) -> None:
    docker.helper(host)
    docker.config(credsStore="canary", auths={host: {}})


def with_helper_before_auths(docker: Docker, host: str) -> None:
    docker.helper(host)
    docker.config(credHelpers={host: "canary"}, credsStore="no-such-store", auths={host: {"auth": WRONG}})


@pytest.mark.parametrize(
    "given",
    [with_auths, with_names, with_scheme, with_path, with_helper, with_store, with_helper_before_auths],
    ids=lambda given: given.__name__,
)
def test_docker_config(docker: Docker, locked: Registry, given: Callable[[Docker, str], None]) -> None:
    locked.push(NAME, "latest", TINY)
    given(docker, locked.host)
    assert digests(docker.fetch(locked.source(NAME)).path) == FILES


@pytest.mark.parametrize("variable", [None, ""], ids=["unset", "empty"])
def test_docker_config_in_the_home(docker: Docker, locked: Registry, variable: str | None) -> None:
    locked.push(NAME, "latest", TINY)
    at_home = replace(docker, home=docker.cli.home / ".docker")
    with_auths(at_home, locked.host)
    assert digests(at_home.fetch(locked.source(NAME), env={"DOCKER_CONFIG": variable}).path) == FILES


def test_the_helper_is_asked_as_docker_asks_it(docker: Docker, locked: Registry) -> None:
    locked.push(NAME, "latest", TINY)
    log = docker.helper(locked.host)
    docker.config(credHelpers={locked.host: "canary"})
    docker.fetch(locked.source(NAME)).ok()
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    assert {tuple(arguments) for arguments, _ in asked} == {("get",)}
    assert {server.strip() for _, server in asked} == {locked.host}
    assert len(asked) <= 2, "not for every request"


def test_the_url_counts_first(docker: Docker, locked: Registry) -> None:
    locked.push(NAME, "latest", TINY)
    docker.config(auths={locked.host: {"auth": WRONG}})
    docker.fetch(locked.source(NAME, userinfo=USERINFO)).ok()


def nothing(docker: Docker, host: str) -> None:
    """No configuration at all."""


def another_host(docker: Docker, host: str) -> None:
    docker.config(auths={"other.example": {"auth": BASIC}, f"{host}0": {"auth": BASIC}, "127.0.0.2": {"auth": BASIC}})


def wrong_password(docker: Docker, host: str) -> None:
    docker.config(auths={host: {"auth": WRONG}})


def unknown_to_the_store(docker: Docker, host: str) -> None:
    docker.helper("other.example")
    docker.config(credsStore="canary")


@pytest.mark.parametrize(
    "given", [nothing, another_host, wrong_password, unknown_to_the_store], ids=lambda given: given.__name__
)
def test_refused(docker: Docker, locked: Registry, given: Callable[[Docker, str], None]) -> None:
    locked.push(NAME, "latest", TINY)
    given(docker, locked.host)
    docker.refused(locked.source(NAME))
    assert visible(docker.store_root) == {}


def test_a_wrong_password_in_the_url(docker: Docker, locked: Registry) -> None:
    locked.push(NAME, "latest", TINY)
    before = len(locked.requests)
    docker.refused(locked.source(NAME, userinfo="canary-user:canary-wrong"))
    assert len(locked.requests) - before <= 4, "asking again and again locks accounts"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"x"', '{"auths": []}', '{"auths": {"HOST": []}}', '{"auths": {"HOST": {"auth": 7}}}',
     '{"auths": {"HOST": {"auth": "canary-p@ss"}}}', '{"credHelpers": {"HOST": "../canary"}}',
     '{"credHelpers": {"HOST": "no-such-helper"}}', '{"credsStore": 7}', "\xff\xfe", "[" * 100_000],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_damaged_docker_config(docker: Docker, locked: Registry, text: str) -> None:
    """A registry that wants a password: it is an error, and one sentence."""
    locked.push(NAME, "latest", TINY)
    docker.home.mkdir()
    (docker.home / "config.json").write_text(text.replace("HOST", locked.host), "latin-1")
    docker.refused(locked.source(NAME), codes=(2, 4))


def test_a_helper_is_not_a_path(docker: Docker, locked: Registry, tmp_path: Path) -> None:
    """Docker joins `docker-credential-` and the name; a slash in it would run another program."""
    locked.push(NAME, "latest", TINY)
    marker = tmp_path / "ran"
    program = tmp_path / "evil"
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    program.chmod(0o755)
    (docker.programs / "docker-credential-").mkdir(parents=True)
    docker.config(credHelpers={locked.host: "/../../evil"}, credsStore="/../../evil")
    docker.fetch(locked.source(NAME), cwd=docker.programs)
    assert not marker.exists()


def test_nothing_is_sent_to_an_open_registry_elsewhere(
    docker: Docker, stand_in: TokenRegistry, foreign: TokenRegistry
) -> None:
    """Nobody's password goes to somebody else, whatever Docker's configuration holds."""
    foreign.push(NAME, "latest", TINY)
    docker.config(auths={stand_in.host: {"auth": BASIC}, "registry.ollama.ai": {"auth": BASIC}})
    docker.fetch(foreign.source(NAME), env={"HF_TOKEN": REGISTRY_TOKEN}).ok()
    assert foreign.requests
    assert not any("authorization" in request.headers for request in foreign.requests)


def test_headers_of_the_config(docker: Docker, stand_in: TokenRegistry, cdn: Cdn, tmp_path: Path) -> None:
    """With each request to the registry, and none elsewhere."""
    stand_in.push(NAME, "latest", TINY)
    stand_in.cdn = cdn
    (tmp_path / "settings.toml").write_text(f'[hosts."{stand_in.host}"]\nheaders = {{ X-Team = "${{TEAM_TOKEN}}" }}\n')
    at = replace(docker.cli, options=(*docker.cli.options, "--config", str(tmp_path / "settings.toml")))
    result = replace(docker, cli=at).fetch(stand_in.source(NAME), env={"TEAM_TOKEN": REGISTRY_TOKEN})
    assert digests(result.path) == FILES
    assert {request.headers.get("x-team") for request in stand_in.requests} == {REGISTRY_TOKEN}
    assert cdn.requests
    assert not any("x-team" in request.headers for request in cdn.requests)


@pytest.mark.parametrize(
    "url",
    [
        "ollama://canary-user:canary-wrong/x@127.0.0.1:1/n/m",
        "ollama://canary-user:x/canary-wrong@127.0.0.1:1/n/m",
        "ollama://canary-user:canary-wrong?x@127.0.0.1:1/n/m",
        "ollama://canary-user:canary-wrong#x@127.0.0.1:1/n/m",
        "ollama://canary-user:canary-wrong@127.0.0.1:1/../m",
        "ollama://canary-user:canary-wrong@",
        "ollama://canary-user:canary-wrong@/n/m",
        "ollama://canary-user:canary-wrong@@127.0.0.1:1/n/m:",
        "ollama:/canary-user:canary-wrong@127.0.0.1:1/n/m",
        "ollama://canary-user:canary-wrong@127.0.0.1:1/n/m#sha256=x",
    ],
)
def test_passwords_that_break_the_url(docker: Docker, url: str) -> None:
    """A slash or a question mark that was not percent-encoded: an error, without what could be the password."""
    result = docker.fetch(url, env={"HTTPS_PROXY": "http://127.0.0.1:1"})  # nothing may go out, whatever is asked
    assert result.returncode == 2, result


# -- tokens of Docker's configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["auths", "helper"])
def test_identity_token(docker: Docker, stand_in: TokenRegistry, way: str) -> None:
    """What `docker login` leaves for a registry with OAuth: a refresh token, given by POST to the token service."""
    stand_in.push(NAME, "latest", TINY)
    stand_in.challenge, stand_in.anonymous, stand_in.refresh_token = "bearer", False, IDENTITY
    if way == "auths":
        docker.config(auths={stand_in.host: {"auth": "MDAwMDo=", "identitytoken": IDENTITY}})
    else:
        docker.helper(stand_in.host, "<token>", IDENTITY)
        docker.config(credHelpers={stand_in.host: "canary"})
    assert digests(docker.fetch(stand_in.source(NAME)).path) == FILES
    (request,) = stand_in.of("/token")
    assert (request.method, request.url) == ("POST", "/token"), "nothing secret in an address"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "scope=repository%3Alibrary%2Ftiny%3Apull" in request.body


def test_registry_token(docker: Docker, stand_in: TokenRegistry) -> None:
    """A token for the registry itself: no token service is asked."""
    stand_in.push(NAME, "latest", TINY)
    stand_in.challenge, stand_in.good = "bearer", {REGISTRY_TOKEN: 0}
    docker.config(auths={stand_in.host: {"registrytoken": REGISTRY_TOKEN}})
    assert digests(docker.fetch(stand_in.source(NAME)).path) == FILES
    assert stand_in.of("/token") == []


def test_a_refused_identity_token(docker: Docker, stand_in: TokenRegistry) -> None:
    stand_in.push(NAME, "latest", TINY)
    stand_in.challenge, stand_in.anonymous = "bearer", False
    docker.config(auths={stand_in.host: {"identitytoken": IDENTITY}})
    docker.refused(stand_in.source(NAME))
    assert all(request.method != "GET" or "token" not in request.url[6:] for request in stand_in.of("/token"))


@pytest.mark.parametrize("way", ["userinfo", "auths"])
def test_password_at_the_token_service(docker: Docker, stand_in: TokenRegistry, way: str) -> None:
    """Basic to the token service, and only the token to the registry."""
    stand_in.push(NAME, "latest", TINY)
    stand_in.challenge, stand_in.anonymous, stand_in.users = "bearer", False, {USER: PASSWORD}
    if way == "auths":
        docker.config(auths={stand_in.host: {"auth": BASIC}})
    url = stand_in.source(NAME, userinfo=USERINFO if way == "userinfo" else "")
    assert digests(docker.fetch(url).path) == FILES
    assert {request.headers["authorization"] for request in stand_in.of("/token")} == {f"Basic {BASIC}"}
    kinds = {request.headers.get("authorization", "none").split()[0] for request in stand_in.of("/v2/")}
    assert kinds <= {"none", "Bearer"}


def test_a_wrong_password_at_the_token_service(docker: Docker, stand_in: TokenRegistry) -> None:
    stand_in.push(NAME, "latest", TINY)
    stand_in.challenge, stand_in.users = "bearer", {USER: "another"}
    docker.refused(stand_in.source(NAME, userinfo=USERINFO))
    assert len(stand_in.of("/token")) <= 2
