"""Who may read what on the Hub: tokens and where they come from, gated and private models, what is absent, offline."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import Modelstore, Result, digests, sha256_of, visible
from tests.support.httpserver import HttpServer
from tests.support.hub import Hub

TOKEN = "hf_c4naryTokenOfAReader"
OTHER = "hf_c4naryTokenOfSomebody"
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 100_000}
SUMS = {path: sha256_of(body) for path, body in FILES.items()}


@pytest.fixture
def models(hub: Hub) -> Hub:
    """acme/open for everybody; acme/gated and acme/private for TOKEN, and not for OTHER."""
    hub.repo("acme/open", FILES)
    hub.repo("acme/gated", FILES, gated=True, readers={TOKEN})
    hub.repo("acme/private", FILES, private=True, readers={TOKEN})
    hub.tokens.add(OTHER)
    return hub


def authorizations(hub: Hub) -> set[str | None]:
    return {request.headers.get("authorization") for request in hub.log}


def assert_kept_secret(hub: Hub, result: Result, *places: Path) -> None:
    """The token went to the Hub only, and is neither in what was said nor in what was left."""
    for request in hub.cdn.log:
        assert "c4nary" not in f"{request.headers} {request.query}"
    assert "c4nary" not in result.stdout + result.stderr
    for place in places:
        for path in place.rglob("*"):
            assert "c4nary" not in str(path)
            assert not path.is_file() or b"c4nary" not in path.read_bytes(), path


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("name", ["gated", "private", "open"])
@pytest.mark.parametrize("options", [("-v",), ("-v", "--log-format", "json")], ids=["text", "json"])
def test_a_token_opens_and_stays_with_the_hub(
    hf: Modelstore, models: Hub, store_root: Path, name: str, options: tuple[str, ...]
) -> None:
    loud = Modelstore(hf.home, (*hf.options, *options), {**hf.env, "HF_TOKEN": TOKEN})
    result = loud("fetch", f"hf://acme/{name}")
    assert digests(result.path) == SUMS
    assert authorizations(models) == {f"Bearer {TOKEN}"}
    assert models.cdn.log
    assert_kept_secret(models, result, store_root, hf.home)


def test_a_redirect_to_another_host_does_not_get_the_token(hf: Modelstore, models: Hub) -> None:
    with HttpServer("127.0.0.2") as far:
        weights = far.add("/far", FILES["model.safetensors"])
        models.cdn.script = lambda _, answer: answer.replace(302, Location=weights.url)
        result = hf.with_env(HF_TOKEN=TOKEN)("fetch", "hf://acme/gated")
        assert digests(result.path) == SUMS
        assert far.requests
        assert not any("authorization" in request.headers for request in far.requests)
    assert_kept_secret(models, result)


def test_a_listing_that_goes_on_elsewhere_does_not_get_the_token(hf: Modelstore, models: Hub, store_root: Path) -> None:
    """The next page is named by the server, and so could be anybody's."""
    with HttpServer("127.0.0.2") as far:
        page = far.add("/page", b"[]")

        def elsewhere(request: object, answer: object) -> None:
            if "/tree/" in request.path:  # type: ignore[attr-defined]
                answer.set("Link", f'<{page.url}>; rel="next"')  # type: ignore[attr-defined]

        models.script = elsewhere
        result = hf.with_env(HF_TOKEN=TOKEN)("fetch", "hf://acme/private")
        assert not any("authorization" in request.headers for request in far.requests)
    if result.returncode:
        result.failed(result.returncode)
        assert result.returncode in (3, 5, 7)
        assert visible(store_root) == {}


@pytest.mark.parametrize("place", ["HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HOME", "HUGGING_FACE_HUB_TOKEN"])
def test_where_the_token_is_looked_for(hf: Modelstore, models: Hub, tmp_path: Path, place: str) -> None:
    """As the Hub's own client has it; a newline at the end of the file is no part of it."""
    files = {
        "HF_TOKEN_PATH": tmp_path / "secret",
        "HF_HOME": tmp_path / "token",
        "XDG_CACHE_HOME": tmp_path / "huggingface" / "token",
        "HOME": hf.home / "cache" / "huggingface" / "token",  # where XDG_CACHE_HOME of these tests is
    }
    if place in files:
        files[place].parent.mkdir(parents=True, exist_ok=True)
        files[place].write_text(f"{TOKEN}\n")
        value = files[place] if place == "HF_TOKEN_PATH" else tmp_path
        env = {} if place == "HOME" else {place: str(value)}
    else:
        env = {place: TOKEN}
    assert digests(hf.with_env(**env)("fetch", "hf://acme/private").path) == SUMS


def test_the_environment_goes_before_the_file(hf: Modelstore, models: Hub, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(OTHER)
    command = hf.with_env(HF_TOKEN=TOKEN, HF_TOKEN_PATH=str(tmp_path / "secret"))
    assert digests(command("fetch", "hf://acme/private").path) == SUMS
    assert authorizations(models) == {f"Bearer {TOKEN}"}


def test_without_a_token_nothing_is_sent(hf: Modelstore, models: Hub) -> None:
    hf("fetch", "hf://acme/open").ok()
    assert authorizations(models) == {None}


def test_headers_of_the_config_go_to_the_hub_only(hf: Modelstore, models: Hub, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[hosts."127.0.0.1:{models.port}"]\nheaders = {{ X-Team = "${{WHO}}" }}\n')
    command = Modelstore(hf.home, ("--config", str(config), *hf.options), {**hf.env, "WHO": "c4nary"})
    result = command("fetch", "hf://acme/open")
    assert digests(result.path) == SUMS
    resolved = [request for request in models.log if "/resolve/" in request.path]
    assert {request.headers.get("x-team") for request in resolved} == {"c4nary"}
    assert_kept_secret(models, result, hf.home)


# ---------------------------------------------------------------- refused


def assert_refused(result: Result, models: Hub, root: Path, code: int, *words: str) -> None:
    result.failed(code, *words)
    assert visible(root) == {}
    assert len(models.log) + len(models.cdn.log) <= 4, "what is refused is not asked for again and again"
    assert_kept_secret(models, result, root)


@pytest.mark.parametrize("token", [None, OTHER], ids=["anonymous", "token"])
def test_gated(hf: Modelstore, models: Hub, store_root: Path, token: str | None) -> None:
    command = hf.with_env(HF_TOKEN=token) if token else hf
    assert_refused(command("fetch", "hf://acme/gated"), models, store_root, 4, "acme/gated")


def test_gated_says_what_to_do(hf: Modelstore, models: Hub) -> None:
    hf.with_env(HF_TOKEN=OTHER)("fetch", "hf://acme/gated").failed(4, "access")
    hf("fetch", "hf://acme/gated").failed(4, "access", "HF_TOKEN")


@pytest.mark.parametrize("token", [None, OTHER], ids=["anonymous", "token"])
def test_private_is_as_if_it_were_not_there(hf: Modelstore, models: Hub, store_root: Path, token: str | None) -> None:
    command = hf.with_env(HF_TOKEN=token) if token else hf
    assert_refused(command("fetch", "hf://acme/private"), models, store_root, 3, "acme/private", "HF_TOKEN")


def test_a_token_that_the_hub_does_not_know(hf: Modelstore, models: Hub, store_root: Path) -> None:
    result = hf.with_env(HF_TOKEN="hf_c4naryRevoked")("fetch", "hf://acme/open")
    assert_refused(result, models, store_root, 4, "HF_TOKEN")


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("hf://acme/nothing", "acme/nothing"),
        ("hf://nothing", "nothing"),
        ("hf://acme/open@nope", "nope"),
        (f"hf://acme/open@{'0' * 40}", "0" * 40),
        ("hf://acme/open@refs/pr/9", "refs/pr/9"),
        ("hf://acme/open/nope.json", "nope.json"),
        ("hf://acme/open/config.json/x", "config.json/x"),
        ("hf://acme/open/conf", "conf"),
    ],
)
@pytest.mark.parametrize("token", [None, OTHER], ids=["anonymous", "token"])
def test_not_there(hf: Modelstore, models: Hub, store_root: Path, url: str, word: str, token: str | None) -> None:
    command = hf.with_env(HF_TOKEN=token) if token else hf
    assert_refused(command("fetch", url), models, store_root, 3, word)


def test_a_model_that_was_taken_down(hf: Modelstore, models: Hub, store_root: Path) -> None:
    message = "Access to this resource is disabled."
    models.script = lambda _, answer: answer.replace(403, b"{}", X_Error_Message=message)
    assert_refused(hf("fetch", "hf://acme/open"), models, store_root, 4)


# ---------------------------------------------------------------- offline


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "MODELSTORE_OFFLINE", "--offline"])
@pytest.mark.parametrize("url", ["hf://acme/open", "hf://acme/open/config.json", "hf://acme/nothing"])
def test_offline_and_not_cached(hf: Modelstore, models: Hub, store_root: Path, how: str, url: str) -> None:
    if how.startswith("-"):
        hf("fetch", how, url).failed(11)
    else:
        hf.with_env(**{how: "1"})("fetch", url).failed(11)
    assert models.log == []
    assert visible(store_root) == {}


@pytest.mark.parametrize("refresh", [(), ("--refresh",)])
def test_offline_and_cached(hf: Modelstore, models: Hub, refresh: tuple[str, ...]) -> None:
    first = hf("fetch", "hf://acme/open").path
    asked = len(models.log)
    assert hf.with_env(HF_HUB_OFFLINE="1")("fetch", *refresh, "hf://acme/open").path == first
    assert len(models.log) == asked


@pytest.mark.parametrize("value", ["0", "", "false"])
def test_offline_that_is_off(hf: Modelstore, models: Hub, value: str) -> None:
    assert digests(hf.with_env(HF_HUB_OFFLINE=value)("fetch", "hf://acme/open").path) == SUMS


def test_a_hub_that_is_down(cli: Modelstore, store_root: Path) -> None:
    with Hub() as hub:
        endpoint = hub.endpoint
        hub.repo("acme/open", FILES)
        first = cli.with_env(HF_ENDPOINT=endpoint)("fetch", "hf://acme/open").path
    cli.with_env(HF_ENDPOINT=endpoint)("fetch", "hf://acme/other").failed(5, re.sub("^http://", "", endpoint))
    kept = cli.with_env(HF_ENDPOINT=endpoint)("fetch", "--refresh", "hf://acme/open")
    assert kept.path == first
    assert kept.stderr, "a warning"
