"""Bearer tokens: where they come from, how long they last, and who is never asked for one (CVE-2025-51471)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import Modelstore, Result, blob, digests, visible
from tests.support.httpserver import BytesBody, PatternBody
from tests.support.registry import OLLAMA, PASSWORD, USER, Blob, Image, basic, config, image, ollama
from tests.support.tokenregistry import Answer, Request, TokenRegistry, refusal

MIB = 1 << 20
CHUNK = 16 * MIB
NAME = "library/tiny"
USERINFO = f"{USER}:canary-p%40ss"
SECRETS = (PASSWORD, "canary-p%40ss", basic(f"{USER}:{PASSWORD}")[6:], "canary-token")
TINY = image(config(), ollama("model", b"GGUF tiny"), ollama("system", "Say bye!"))
FILES = {"model.gguf": TINY.blobs[1].hex, "system": TINY.blobs[2].hex}


def large(size: int) -> Image:
    return image(config(), Blob(b"".join(PatternBody(size).read(0, size)), f"{OLLAMA}model"))


@pytest.fixture
def bearer(stand_in: TokenRegistry) -> TokenRegistry:
    """A registry as docker.io and ghcr.io are: a token for everybody who asks."""
    stand_in.push(NAME, "latest", TINY)
    stand_in.challenge = "bearer"
    return stand_in


def assert_no_secret(root: Path, result: Result) -> None:
    said = [result.stdout.encode(), result.stderr.encode()]
    said += [path.read_bytes() for path in root.rglob("*") if path.is_file()]
    for secret in SECRETS:
        assert not any(secret.encode() in text for text in said), (secret, result)


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_an_anonymous_token(cli: Modelstore, bearer: TokenRegistry, store_root: Path, field: str) -> None:
    bearer.field = field
    result = cli("-v", "fetch", bearer.source(NAME))
    assert digests(result.path) == FILES
    (request,) = bearer.of("/token")
    assert (request.method, request.query) == (
        "GET",
        {"service": ["stand-in"], "scope": ["repository:library/tiny:pull"]},
    )
    assert "authorization" not in request.headers
    assert sum(request.status == 401 for request in bearer.requests) <= 1, "asked once, then known"
    assert_no_secret(store_root, result)


@pytest.mark.parametrize("connections", ["1", "4"])
def test_a_token_that_runs_out(cli: Modelstore, bearer: TokenRegistry, store_root: Path, connections: str) -> None:
    """401 half way: the token is renewed, and what was there already stays."""
    pushed = bearer.push(NAME, "latest", large(3 * CHUNK))
    bearer.uses = 3
    result = cli("fetch", bearer.source(NAME), "--connections", connections, "--json")
    assert result.json["manifest"] == pushed.digest
    assert blob(store_root, pushed.blobs[1].digest).read_bytes() == pushed.blobs[1].data
    assert len(bearer.of("/token")) >= 2
    sent = sum(request.body_bytes for request in bearer.of("/blobs/") if request.status < 300)
    assert sent < 3 * CHUNK + MIB, "nothing twice"


def test_tokens_that_are_never_good(cli: Modelstore, bearer: TokenRegistry, store_root: Path) -> None:
    bearer.uses = 0
    cli("fetch", bearer.source(NAME)).failed(4)
    assert len(bearer.requests) <= 8, "it comes to an end"
    assert visible(store_root) == {}


def test_blobs_that_are_never_given(cli: Modelstore, bearer: TokenRegistry, store_root: Path) -> None:
    """The manifest may be read and the blobs may not."""
    bearer.script = lambda request: refusal(401, "UNAUTHORIZED") if "/blobs/" in request.path else None
    cli("fetch", bearer.source(NAME)).failed(4)
    assert len(bearer.requests) <= 24
    assert visible(store_root) == {}


def test_denied(cli: Modelstore, bearer: TokenRegistry, store_root: Path) -> None:
    bearer.script = lambda request: refusal(403, "DENIED") if "/manifests/" in request.path else None
    cli("fetch", bearer.source(NAME)).failed(4)
    assert visible(store_root) == {}


def test_no_token_for_strangers(cli: Modelstore, bearer: TokenRegistry) -> None:
    bearer.anonymous = False
    cli("fetch", bearer.source(NAME)).failed(4)


# -- challenges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("challenge", "query"),
    [
        ('Bearer realm="REALM",service="registry",scope="repo:foo:pull"', "service=registry&scope=repo%3Afoo%3Apull"),
        ('Bearer realm="REALM", service="registry", scope="repo:foo:pull"', "service=registry&scope=repo%3Afoo%3Apull"),
        ('bearer realm="REALM",service="a,b",scope="repo:foo:pull,push"',
         "service=a%2Cb&scope=repo%3Afoo%3Apull%2Cpush"),
        ('Bearer realm="REALM",service="ollama",scope="-"', "service=ollama&scope=-"),
        ('Bearer realm="REALM",service="x",scope="a:b:c d:e:f"', "service=x&scope=a%3Ab%3Ac&scope=d%3Ae%3Af"),
        ('Bearer realm="REALM",service="x",scope="a:b:c",error="invalid_token"', "service=x&scope=a%3Ab%3Ac"),
        ('Bearer scope="a:b:c",realm="REALM?account=me",service="x"', "account=me&service=x&scope=a%3Ab%3Ac"),
        ('Basic realm="x", Bearer realm="REALM",service="x",scope="a:b:c"', "service=x&scope=a%3Ab%3Ac"),
        ('Bearer realm="REALM"', None),
    ],
)  # fmt: skip
def test_challenges(cli: Modelstore, bearer: TokenRegistry, challenge: str, query: str | None) -> None:
    """As registries write them; the token service is asked with what the challenge says."""

    def script(request: Request) -> Answer | None:
        refused = request.path.startswith("/v2/") and "authorization" not in request.headers
        text = challenge.replace("REALM", bearer.realm)
        return refusal(401, "UNAUTHORIZED", WWW_Authenticate=text) if refused else None

    bearer.script = script
    assert digests(cli("fetch", bearer.source(NAME)).path) == FILES
    (request,) = bearer.of("/token")
    if query is not None:
        pairs = Request("GET", f"/token?{query}", {}).query
        assert request.query == pairs


@pytest.mark.parametrize(
    "challenge",
    ["", "Bearer", "Bearer realm", 'Bearer realm="', "Negotiate", "Digest realm=x", 'Bearer realm=""', "\x7f,=,"],
)
def test_challenges_that_cannot_be_met(cli: Modelstore, bearer: TokenRegistry, challenge: str) -> None:
    bearer.script = lambda _: refusal(401, "UNAUTHORIZED", WWW_Authenticate=challenge)
    cli("fetch", bearer.source(NAME)).failed(4)
    assert len(bearer.requests) <= 8


BAD_TOKENS = ["", 7, None, ["x"], "a\r\nX-Injected: yes", "a\nb", "\u00e9\u20ac", "x" * (8 * MIB)]
BAD_PAGES = ["", "{", "[]", "null", "{}", "[" * 100_000, *(json.dumps({"token": token}) for token in BAD_TOKENS)]


@pytest.mark.parametrize("page", BAD_PAGES, ids=lambda page: page[:30])
def test_answers_that_are_no_token(cli: Modelstore, bearer: TokenRegistry, store_root: Path, page: str) -> None:
    def script(request: Request) -> Answer | None:
        return Answer(200, {}, BytesBody(page.encode())) if request.path == "/token" else None

    bearer.script = script
    result = cli("fetch", bearer.source(NAME))
    assert result.returncode in (4, 5, 7), result
    result.failed(result.returncode)
    assert not any("x-injected" in request.headers for request in bearer.requests)
    assert visible(store_root) == {}


@pytest.mark.parametrize(("status", "code"), [(403, 4), (404, 4), (500, 5), (503, 5)])
def test_a_token_service_that_fails(cli: Modelstore, bearer: TokenRegistry, status: int, code: int) -> None:
    bearer.script = lambda request: refusal(status) if request.path == "/token" else None
    result = cli("fetch", bearer.source(NAME))
    assert result.returncode in {code, 5}, result
    result.failed(result.returncode)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("nth", [1, 2], ids=["first", "renewal"])
def test_a_token_service_that_stumbles(cli: Modelstore, bearer: TokenRegistry, status: int, nth: int) -> None:
    """It is asked again; what is there of a large blob stays."""
    pushed = bearer.push(NAME, "latest", large(2 * CHUNK))
    bearer.uses = 2

    def script(request: Request) -> Answer | None:
        stumbles = request.path == "/token" and len(bearer.of("/token")) == nth
        return refusal(status, "TOOMANYREQUESTS", Retry_After="1") if stumbles else None

    bearer.script = script
    result = cli("fetch", bearer.source(NAME), "--connections", "2")
    assert digests(result.path) == {"model.gguf": pushed.blobs[1].hex}
    assert sum(request.body_bytes for request in bearer.of("/blobs/") if request.status < 300) < 2 * CHUNK + MIB


# -- who is asked ---------------------------------------------------------------------------------------------------


REALMS = [
    "http://{foreign}/token",
    "http://{own}@{foreign}/token",
    "http://{foreign}/token#{own}",
    "http://{foreign}\\@{own}/token",
    "http://{foreign}?{own}/token",
    "//{foreign}/token",
    "HTTP://{foreign}/token",
    " http://{foreign}/token",
    "http://user:pw@{foreign}/token",
    "http://169.254.169.254/latest/meta-data",
    "file:///etc/hostname",
    "ftp://{own}/token",
    "not an address",
    "http://[::1/token",
    "http://{own}0000/token",
]


@pytest.mark.parametrize("userinfo", ["", USERINFO], ids=["anonymous", "password"])
@pytest.mark.parametrize("realm", REALMS)
def test_a_realm_on_another_host(
    cli: Modelstore, bearer: TokenRegistry, foreign: TokenRegistry, store_root: Path, realm: str, userinfo: str
) -> None:
    """CVE-2025-51471: a registry that sends us elsewhere for a token gets nothing, and nor does elsewhere."""
    bearer.users = foreign.users = {USER: PASSWORD}
    bearer.realm = realm.format(own=bearer.host, foreign=foreign.host)
    result = cli("-v", "fetch", bearer.source(NAME, userinfo=userinfo))
    assert result.returncode == 4, result
    assert foreign.requests == []
    assert visible(store_root) == {}
    assert_no_secret(store_root, result)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("way", ["password", "identity token"])
def test_a_token_service_that_redirects_elsewhere(
    cli: Modelstore, bearer: TokenRegistry, foreign: TokenRegistry, tmp_path: Path, code: int, way: str
) -> None:
    """The allow-list is not walked around: nothing secret goes to where the realm redirects."""
    bearer.anonymous, bearer.refresh_token, bearer.users = False, "canary-identity", {USER: PASSWORD}
    target = f"{foreign.url}/token"
    bearer.script = lambda request: Answer(code, {"Location": target}) if request.path == "/token" else None
    url = bearer.source(NAME, userinfo=USERINFO)
    if way == "identity token":
        url = bearer.source(NAME)
        (tmp_path / "docker").mkdir()
        auths = {"auths": {bearer.host: {"identitytoken": "canary-identity"}}}
        (tmp_path / "docker" / "config.json").write_text(json.dumps(auths))
    result = cli("fetch", url)
    assert result.returncode in (4, 5), result
    for request in foreign.requests:
        assert "authorization" not in request.headers
        assert "canary" not in request.url + request.body


@pytest.mark.parametrize("setting", ["127.0.0.2", "{}"], ids=["host", "host and port"])
def test_a_token_host_that_the_config_allows(
    cli: Modelstore, bearer: TokenRegistry, foreign: TokenRegistry, tmp_path: Path, setting: str
) -> None:
    """Both share their tokens: `foreign` gives them out, `bearer` takes them."""
    bearer.realm = f"{foreign.url}/token"
    foreign.good, foreign.anonymous, foreign.users = bearer.good, False, {USER: PASSWORD}
    settings = tmp_path / "settings.toml"
    settings.write_text(f'[hosts."{bearer.host}"]\ntoken_host = "{setting.format(foreign.host)}"\n')
    result = cli("--config", settings, "fetch", bearer.source(NAME, userinfo=USERINFO))
    assert digests(result.path) == FILES
    assert {request.path for request in foreign.requests} == {"/token"}


def test_a_token_stays_with_its_registry(cli: Modelstore, bearer: TokenRegistry, foreign: TokenRegistry) -> None:
    """Blobs elsewhere: no token goes along, and a challenge from there is not met."""
    bearer.redirect = f"{foreign.url}/blob"
    challenge = f'Bearer realm="{bearer.realm}",service="stand-in",scope="repository:library/tiny:pull"'
    foreign.script = lambda _: refusal(401, "UNAUTHORIZED", WWW_Authenticate=challenge)
    result = cli("fetch", bearer.source(NAME))
    assert result.returncode in (4, 5), result
    assert foreign.requests
    assert not any("authorization" in request.headers for request in foreign.requests)
