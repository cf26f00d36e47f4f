"""Whom `https://` believes, and by which way it goes: certificate authorities, proxies, TLS all the way."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.server import FaultServer, tls_context
from tests.support import Modelstore, digests, sha256_of, unshare, visible
from tests.support.httpserver import TLS_CERT, TLS_DIR, HttpServer, PatternBody
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 16 << 20
BODY = b"weights " * 5000
FILES = {"m.gguf": sha256_of(BODY)}
SECOND = TLS_DIR / "second.pem"  # for 127.0.0.1, 127.0.0.2 and models.example.com, by another authority
SECOND_CA = TLS_DIR / "second-ca.pem"
SECOND_HASH = "db558d97.0"  # what `openssl rehash` calls it
VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
WAYS = (*VARIABLES, "ca_bundle")
PASSWORD = "pr%40xy-c4nary"
ACCOUNT = "walker:pr@xy-c4nary"
BASIC = base64.b64encode(ACCOUNT.encode()).decode()


@pytest.fixture
def second_server() -> Iterator[FaultServer]:
    """A server with a certificate by the second authority."""
    with FaultServer("127.0.0.2", tls=tls_context(SECOND)) as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Wants a password, and knows where models.example.com is: nowhere, until a test says so."""
    with Proxy(ACCOUNT) as running:
        yield running


def trusting(cli: Modelstore, tmp_path: Path, **bundles: Path | str) -> Modelstore:
    """`cli` with a file of authorities by each of the given ways."""
    toml = tmp_path / "config.toml"
    toml.write_text(f"ca_bundle = {json.dumps(str(bundles['ca_bundle']))}\n" if "ca_bundle" in bundles else "")
    env = {name: str(path) for name, path in bundles.items() if name != "ca_bundle"}
    return Modelstore(cli.home, ("--config", str(toml), *cli.options), {**cli.env, **env})


# ---------------------------------------------------------------- authorities


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_name_an_authority(cli: Modelstore, tls_server: HttpServer, tmp_path: Path, way: str) -> None:
    url = tls_server.add("/m.gguf", BODY).url
    cli("fetch", url).failed(5, "certificate")
    assert visible(tmp_path / "store") == {}
    assert digests(trusting(cli, tmp_path, **{way: TLS_CERT})("fetch", url).path) == FILES


@pytest.mark.parametrize("way", WAYS)
def test_an_authority_speaks_for_its_own_certificates_only(
    cli: Modelstore, tls_server: HttpServer, tmp_path: Path, way: str
) -> None:
    url = tls_server.add("/m.gguf", BODY).url
    trusting(cli, tmp_path, **{way: SECOND_CA})("fetch", url).failed(5, "certificate")
    assert tls_server.requests == [], "nothing is said to a stranger"


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_they_are_added_up(
    cli: Modelstore, tls_server: HttpServer, second_server: FaultServer, tmp_path: Path, first: str, second: str
) -> None:
    """One process, two servers, two authorities: elsewhere each of these variables replaces the others."""
    if first == second:
        both = tmp_path / "both.pem"
        both.write_text(TLS_CERT.read_text() + SECOND_CA.read_text())
        bundles = {first: both}
    else:
        bundles = {first: TLS_CERT, second: SECOND_CA}
    target = second_server.add("/x", PatternBody(CHUNK + 5))
    origin = tls_server.add("/m.gguf", redirect=target.url)
    result = trusting(cli, tmp_path, **bundles)("fetch", origin.url)
    assert digests(result.path) == {"m.gguf": target.body.sha256}


@pytest.fixture
def with_second_system(cli: Modelstore, tmp_path: Path) -> Modelstore:
    """The command on a machine whose own authorities are the second one, and nobody else."""
    system = tmp_path / "system"
    system.mkdir()
    (system / SECOND_HASH).write_text(SECOND_CA.read_text())
    place = ssl.get_default_verify_paths().openssl_capath
    return cli.with_prefix(*unshare("--mount", script=f'mount --bind "$0" "{place}" && exec "$@"', root=system))


def test_the_systems_authorities_count(
    cli: Modelstore, with_second_system: Modelstore, second_server: FaultServer
) -> None:
    url = second_server.add("/m.gguf", BODY).url
    cli("fetch", url).failed(5, "certificate")
    assert digests(with_second_system("fetch", url).path) == FILES


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("folder", [False, True], ids=["", "SSL_CERT_DIR"])
def test_they_are_added_to_the_systems(
    with_second_system: Modelstore, tls_server: HttpServer, second_server: FaultServer, tmp_path: Path,
    way: str, folder: bool,
) -> None:  # fmt: skip
    """Whoever names the first authority still has the system's: even where OpenSSL itself would replace all of them."""
    target = second_server.add("/x", BODY)
    origin = tls_server.add("/m.gguf", redirect=target.url)
    bundles = {way: TLS_CERT}
    if folder:
        bundles["SSL_CERT_DIR"] = tmp_path / "empty"
        bundles["SSL_CERT_DIR"].mkdir()
    command = trusting(with_second_system, tmp_path, **bundles).with_prefix(*with_second_system.prefix)
    assert digests(command("fetch", origin.url).path) == FILES


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("content", [None, "", "no certificate\n"], ids=["missing", "empty", "nonsense"])
def test_a_bundle_that_is_none_is_said(
    cli: Modelstore, tls_server: HttpServer, tmp_path: Path, way: str, content: str | None
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    others = {"SSL_CERT_FILE": TLS_CERT} if way != "SSL_CERT_FILE" else {"ca_bundle": TLS_CERT}
    url = tls_server.add("/m.gguf", BODY).url
    trusting(cli, tmp_path, **others, **{way: bundle})("fetch", url).failed(2, way, str(bundle))
    assert tls_server.requests == []


def test_an_empty_variable_is_unset(cli: Modelstore, tls_server: HttpServer, tmp_path: Path) -> None:
    empty = dict.fromkeys(VARIABLES, "")
    url = tls_server.add("/m.gguf", BODY).url
    assert digests(trusting(cli, tmp_path, **empty, ca_bundle=TLS_CERT)("fetch", url).path) == FILES


def test_a_local_source_needs_no_authority(cli: Modelstore, tiny_model_dir: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.pem"
    result = trusting(cli, tmp_path, SSL_CERT_FILE=missing)("fetch", tiny_model_dir)
    assert digests(result.path) == digests(tiny_model_dir)


def test_no_way_down_to_plain_http(cli: Modelstore, tls_server: HttpServer, http_server: HttpServer) -> None:
    target = http_server.add("/x", BODY)
    origin = tls_server.add("/m.gguf", redirect=target.url)
    cli.with_env(SSL_CERT_FILE=str(TLS_CERT))("fetch", origin.url).failed(5, "http")
    assert http_server.requests == []


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_https_through_a_proxy_with_a_password(
    cli: Modelstore, tls_server: HttpServer, proxy: Proxy, variable: str
) -> None:
    """The tunnel gets the proxy's password, the server gets its own, and neither gets the other's."""
    origin = tls_server.add("/m.gguf", PatternBody(2 * CHUNK), auth="me:mine")
    env = {variable: proxy.url_with(f"walker:{PASSWORD}"), "SSL_CERT_FILE": str(TLS_CERT)}
    result = cli.with_env(**env)("fetch", origin.url.replace("://", "://me:mine@"))
    assert digests(result.path) == {"m.gguf": origin.body.sha256}
    assert set(proxy.asked) == {("CONNECT", f"127.0.0.1:{tls_server.port}")}
    assert all(f"basic {BASIC}".lower() in head.lower() for head in proxy.log)
    own = base64.b64encode(b"me:mine").decode()
    assert not any(own in head for head in proxy.log)
    for request in tls_server.requests:
        assert "proxy-authorization" not in request.headers
        assert BASIC not in str(request.headers)


def test_http_through_a_proxy_with_a_password(cli: Modelstore, http_server: HttpServer, proxy: Proxy) -> None:
    origin = http_server.add("/m.gguf", PatternBody(2 * CHUNK))
    result = cli.with_env(http_proxy=proxy.url_with(f"walker:{PASSWORD}"))("fetch", origin.url)
    assert digests(result.path) == {"m.gguf": origin.body.sha256}
    assert set(proxy.asked) == {("GET", origin.url)}
    assert not any(BASIC in str(request.headers) for request in http_server.requests)


def test_a_name_is_looked_up_by_the_proxy(cli: Modelstore, second_server: FaultServer, tmp_path: Path) -> None:
    second_server.add("/m.gguf", BODY)
    with Proxy(names={"models.example.com": f"127.0.0.2:{second_server.port}"}) as proxy:
        cli = trusting(cli, tmp_path, ca_bundle=SECOND_CA).with_env(HTTPS_PROXY=proxy.url)
        assert digests(cli("fetch", "https://models.example.com/m.gguf").path) == FILES
        assert set(proxy.asked) == {("CONNECT", "models.example.com:443")}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("userinfo", ["walker:wr0ng-c4nary", None], ids=["wrong", "none"])
@pytest.mark.parametrize("options", [(), ("-v", "--log-format", "json")], ids=["plain", "verbose"])
def test_the_wrong_password_for_the_proxy(
    cli: Modelstore,
    http_server: HttpServer,
    tls_server: HttpServer,
    proxy: Proxy,
    scheme: str,
    userinfo: str | None,
    options: tuple[str, ...],
) -> None:
    """The proxy is named, the password is not, and the server has heard nothing."""
    server = http_server if scheme == "http" else tls_server
    url = server.add("/m.gguf", BODY).url
    address = proxy.url if userinfo is None else proxy.url_with(userinfo)
    env = {**cli.env, f"{scheme.upper()}_PROXY": address, "SSL_CERT_FILE": str(TLS_CERT)}
    result = Modelstore(cli.home, (*cli.options, *options), env)("fetch", url)
    assert result.returncode in (4, 5), result
    assert "proxy" in result.stderr.lower(), "whose password it was"
    assert "wr0ng-c4nary" not in result.stderr
    assert base64.b64encode(b"walker:wr0ng-c4nary").decode() not in result.stderr
    assert server.requests == []
    if not options:
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("127.0.0.1", True),
        ("localhost, 127.0.0.1 ,example.com", True),
        ("*", True),
        ("127.0.0.2", False),
        ("", False),
    ],
)
def test_no_proxy(cli: Modelstore, tls_server: HttpServer, proxy: Proxy, no_proxy: str, direct: bool) -> None:
    url = tls_server.add("/m.gguf", BODY).url
    env = {"HTTPS_PROXY": proxy.url_with(f"walker:{PASSWORD}"), "NO_PROXY": no_proxy, "SSL_CERT_FILE": str(TLS_CERT)}
    assert digests(cli.with_env(**env)("fetch", url).path) == FILES
    assert bool(proxy.asked) is not direct


def test_a_redirect_takes_the_way_of_its_own_host(
    cli: Modelstore, tls_server: HttpServer, second_server: FaultServer, proxy: Proxy, tmp_path: Path
) -> None:
    """The first host is asked through the proxy, the second is in NO_PROXY."""
    target = second_server.add("/x", BODY)
    origin = tls_server.add("/m.gguf", redirect=target.url)
    env = {"HTTPS_PROXY": proxy.url_with(f"walker:{PASSWORD}"), "NO_PROXY": "127.0.0.2"}
    cli = trusting(cli, tmp_path, SSL_CERT_FILE=TLS_CERT, ca_bundle=SECOND_CA).with_env(**env)
    assert digests(cli("fetch", origin.url).path) == FILES
    assert set(proxy.asked) == {("CONNECT", f"127.0.0.1:{tls_server.port}")}
    assert BASIC not in str([request.headers for request in second_server.log])


@pytest.mark.parametrize("address", ["http://walker:c4nary@", "c4nary@:x", "ftp://walker:c4nary@127.0.0.1:1"])
def test_an_address_of_a_proxy_that_is_none(cli: Modelstore, http_server: HttpServer, address: str) -> None:
    for options in ((), ("-v",)):
        loud = Modelstore(cli.home, (*cli.options, *options), {"HTTP_PROXY": address})
        result = loud("fetch", http_server.add("/m.gguf", BODY).url)
        assert result.returncode in (2, 5), result
        assert "c4nary" not in result.stderr


def test_the_command_line_has_no_place_for_headers(cli: Modelstore) -> None:
    """A value on the command line is in every process list."""
    for text in (cli("--help").ok().stdout, cli("fetch", "--help").ok().stdout):
        assert not any(word in text for word in ("--header", "--token", "--password", "--user "))
