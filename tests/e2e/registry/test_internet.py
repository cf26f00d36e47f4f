"""Registries by their public names, over https: which host is asked, and which hosts belong together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import Modelstore, Result, digests, visible
from tests.support.internet import Internet, internet_tls
from tests.support.registry import PASSWORD, USER, basic, config, image, ollama
from tests.support.tokenregistry import Answer, Request, TokenRegistry, refusal

TINY = image(config(), ollama("model", b"GGUF tiny"))
FILES = {"model.gguf": TINY.blobs[1].hex}
HF_TOKEN = "hf_canaryTOKEN"
Serve = Callable[..., Internet]


@pytest.fixture
def registry() -> Iterator[TokenRegistry]:
    with TokenRegistry(tls=internet_tls()) as found:
        yield found


@pytest.fixture
def other() -> Iterator[TokenRegistry]:
    """A second host: a token service, a CDN, or somebody else."""
    with TokenRegistry(tls=internet_tls()) as found:
        yield found


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve({"hf.co": registry})`: an internet of these hosts."""
    with ExitStack() as stack:
        yield lambda hosts: stack.enter_context(Internet(hosts))


def fetch(cli: Modelstore, internet: Internet, url: str, **env: str) -> Result:
    return cli.with_env(**internet.env, **env)("-v", "fetch", url)


@pytest.mark.parametrize(
    ("url", "host", "name", "tag"),
    [
        ("ollama://tiny", "registry.ollama.ai", "library/tiny", "latest"),
        ("ollama://tiny:1b", "registry.ollama.ai", "library/tiny", "1b"),
        ("ollama://user/tiny:1b", "registry.ollama.ai", "user/tiny", "1b"),
        ("ollama://registry.ollama.ai/library/tiny", "registry.ollama.ai", "library/tiny", "latest"),
        ("ollama://hf.co/User/Tiny-GGUF:Q4_K_M", "hf.co", "User/Tiny-GGUF", "Q4_K_M"),
        ("ollama://huggingface.co/User/Tiny-GGUF", "huggingface.co", "User/Tiny-GGUF", "latest"),
        ("ollama://docker.io/ai/smollm2:135M", "registry-1.docker.io", "ai/smollm2", "135M"),
        ("ollama://registry.example/a/b/c:v1", "registry.example", "a/b/c", "v1"),
    ],
)
def test_which_host_is_asked(
    cli: Modelstore, serve: Serve, registry: TokenRegistry, url: str, host: str, name: str, tag: str
) -> None:
    registry.push(name, tag, TINY)
    internet = serve({host: registry})
    assert digests(fetch(cli, internet, url).path) == FILES
    assert internet.asked == {host}
    assert registry.requests[0].path == f"/v2/{name}/manifests/{tag}"


@pytest.mark.parametrize(
    ("host", "asked", "token_host"),
    [
        ("registry.example", "registry.example", "registry.example"),
        ("registry.ollama.ai", "registry.ollama.ai", "ollama.com"),
        ("hf.co", "hf.co", "huggingface.co"),
        ("docker.io", "registry-1.docker.io", "auth.docker.io"),
        ("registry.gitlab.com", "registry.gitlab.com", "gitlab.com"),
    ],
)
def test_hosts_that_belong_together(
    cli: Modelstore, serve: Serve, registry: TokenRegistry, other: TokenRegistry,
    host: str, asked: str, token_host: str,
) -> None:  # fmt: skip
    registry.push("u/tiny", "latest", TINY)
    registry.challenge, registry.realm = "bearer", f"https://{token_host}/token"
    other.good = registry.good
    internet = serve({token_host: other, asked: registry})
    assert digests(fetch(cli, internet, f"ollama://{host}/u/tiny").path) == FILES
    assert internet.asked == {asked, token_host}
    assert (registry if asked == token_host else other).of("/token")


REALMS = [
    "https://evil.example/token",
    "http://registry.example/token",
    "http://{own}/token",
    "https://evil.{own}/token",
]
REALMS += [
    "https://{own}.evil.example/token",
    "https://{own}@evil.example/token",
    "https://{own}:444@evil.example/token",
]


@pytest.mark.parametrize("host", ["registry.example", "registry.ollama.ai", "hf.co"])
@pytest.mark.parametrize("realm", REALMS)
def test_hosts_that_do_not(
    cli: Modelstore, serve: Serve, registry: TokenRegistry, other: TokenRegistry, store_root: Path,
    host: str, realm: str,
) -> None:  # fmt: skip
    """CVE-2025-51471, and a token service without TLS: neither is even connected to."""
    registry.push("u/tiny", "latest", TINY)
    registry.challenge, registry.users = "bearer", {USER: PASSWORD}
    registry.realm = realm.format(own=host)
    internet = serve({host: registry, "evil.example": other, f"evil.{host}": other, f"{host}.evil.example": other})
    result = fetch(cli, internet, f"ollama://{USER}:canary-p%40ss@{host}/u/tiny", HF_TOKEN=HF_TOKEN)
    assert result.returncode == 4, result
    assert internet.asked == {host}
    assert (other.requests, visible(store_root)) == ([], {})
    assert not any(secret in result.stdout + result.stderr for secret in (PASSWORD, "canary-p%40ss", HF_TOKEN))


@pytest.mark.parametrize("host", ["hf.co", "huggingface.co"])
def test_the_hub_gets_its_token(
    cli: Modelstore, serve: Serve, registry: TokenRegistry, other: TokenRegistry, host: str
) -> None:
    """HF_TOKEN opens private repos; where the Hub redirects to has no use for it."""
    registry.push("u/tiny", "latest", TINY)
    registry.challenge, registry.anonymous, registry.good = "bearer", False, {HF_TOKEN: 0}
    other.push("u/tiny", "latest", TINY)

    def script(request: Request) -> Answer | None:
        if "/blobs/" not in request.path:
            return None
        return Answer(307, {"Location": f"https://cdn.example{request.path}?Signature=x"})

    registry.script = script
    internet = serve({host: registry, "cdn.example": other})
    result = fetch(cli, internet, f"ollama://{host}/u/tiny", HF_TOKEN=HF_TOKEN)
    assert digests(result.path) == FILES
    assert other.requests
    assert not any("authorization" in request.headers for request in other.requests)
    assert HF_TOKEN not in result.stderr


@pytest.mark.parametrize("host", ["registry.ollama.ai", "registry.example", "docker.io"])
def test_nobody_else_gets_it(cli: Modelstore, serve: Serve, registry: TokenRegistry, host: str) -> None:
    registry.push("u/tiny", "latest", TINY)
    internet = serve({"registry-1.docker.io" if host == "docker.io" else host: registry})
    assert digests(fetch(cli, internet, f"ollama://{host}/u/tiny", HF_TOKEN=HF_TOKEN).path) == FILES
    assert not any("authorization" in request.headers for request in registry.requests)


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io"])
def test_docker_hub_credentials(
    cli: Modelstore, serve: Serve, registry: TokenRegistry, other: TokenRegistry, tmp_path: Path, key: str
) -> None:
    """`docker login` keeps those of Docker Hub under an address of old."""
    registry.push("u/tiny", "latest", TINY)
    registry.challenge, registry.realm = "bearer", "https://auth.docker.io/token"
    other.good, other.anonymous, other.users = registry.good, False, {USER: PASSWORD}
    (tmp_path / "docker").mkdir()
    auths = {key: {"auth": basic(f"{USER}:{PASSWORD}").removeprefix("Basic ")}}
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": auths}))
    internet = serve({"registry-1.docker.io": registry, "auth.docker.io": other})
    assert digests(fetch(cli, internet, "ollama://docker.io/u/tiny").path) == FILES


def test_what_a_missing_repository_looks_like(cli: Modelstore, serve: Serve, registry: TokenRegistry) -> None:
    registry.script = lambda _: refusal(404, "MANIFEST_UNKNOWN")
    fetch_error = fetch(cli, serve({"registry.ollama.ai": registry}), "ollama://no-such-model")
    assert fetch_error.returncode == 3, fetch_error


def test_a_certificate_of_somebody_else(cli: Modelstore, serve: Serve, registry: TokenRegistry) -> None:
    """https means that it is checked."""
    registry.push("u/tiny", "latest", TINY)
    internet = serve({"not-in-the-certificate.example": registry})
    result = fetch(cli, internet, "ollama://not-in-the-certificate.example/u/tiny")
    assert result.returncode == 5, result
    assert registry.requests == []


@pytest.mark.parametrize("plain", [True, False])
def test_plain_http_is_asked_for(cli: Modelstore, serve: Serve, tmp_path: Path, plain: bool) -> None:
    """Only with `plain_http`, and never as a way out when https fails."""
    internet = serve({})
    settings = tmp_path / "settings.toml"
    settings.write_text(f'[hosts."registry.example:5000"]\nplain_http = {str(plain).lower()}\n')
    result = cli.with_env(**internet.env)("--config", settings, "fetch", "ollama://registry.example:5000/u/tiny")
    assert result.returncode == 5, result
    assert {tunnel.startswith("http://registry.example:5000/v2/") for tunnel in internet.tunnels} == {plain}
