"""`https://` in the field: who is asked with which credentials (netrc, the config's hosts, the URL), and weak ETags."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from tests.support import Modelstore, digests, sha256_of, visible
from tests.support.httpserver import HttpServer, PatternBody
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK = 16 << 20
BODY = b"weights " * 5000
FILES = {"m.gguf": sha256_of(BODY)}
TWO = PatternBody(CHUNK + 77)  # more than one range
TOKEN = "Bearer t0ken-c4nary"


def basic(account: str) -> str:
    return "Basic " + base64.b64encode(account.encode()).decode()


def sent(server: HttpServer, header: str) -> set[str | None]:
    """What came of a header, over all requests."""
    assert server.requests, "it was not asked"
    return {request.headers.get(header.lower()) for request in server.requests}


@pytest.fixture
def elsewhere() -> Iterator[HttpServer]:
    """Another host."""
    with HttpServer("127.0.0.2") as other:
        yield other


def netrc(cli: Modelstore, text: str, name: str = ".netrc") -> Path:
    file = cli.home / name
    file.write_text(text)
    file.chmod(0o600)
    return file


def configured(cli: Modelstore, tmp_path: Path, toml: str) -> Modelstore:
    file = tmp_path / "config.toml"
    file.write_text(toml)
    return Modelstore(cli.home, ("--config", str(file), *cli.options), cli.env)


def hosts(cli: Modelstore, tmp_path: Path, **headers: dict[str, str]) -> Modelstore:
    """`cli` with headers for hosts, by host."""
    sections = []
    for host, wanted in headers.items():
        pairs = ", ".join(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in wanted.items())
        sections.append(f"[hosts.{json.dumps(host)}]\nheaders = {{ {pairs} }}")
    return configured(cli, tmp_path, "\n".join(sections)).with_env(MODELS_TOKEN=TOKEN.removeprefix("Bearer "))


BEARER = {"Authorization": "Bearer ${MODELS_TOKEN}"}


# ---------------------------------------------------------------- netrc


@pytest.mark.parametrize("where", ["home", "NETRC"])
@pytest.mark.parametrize(
    "text",
    [
        "machine 127.0.0.1 login reader password c4nary\n",
        "machine other.example login x password y\nmachine 127.0.0.1\n  login reader\n  password c4nary\n",
        "# a comment\nmachine 127.0.0.1 account a login reader password c4nary\ndefault login x password y\n",
        'machine 127.0.0.1 login "reader" password "c4nary"\n',
    ],
    ids=["one line", "second of two", "before the default", "quoted"],
)
def test_netrc(cli: Modelstore, http_server: HttpServer, where: str, text: str) -> None:
    if where == "home":
        netrc(cli, text)
    else:
        netrc(cli, "machine 127.0.0.1 login wrong password wrong\n")
        cli = cli.with_env(NETRC=str(netrc(cli, text, "elsewhere.netrc")))
    origin = http_server.add("/m.gguf", TWO, auth="reader:c4nary")
    assert digests(cli("fetch", origin.url).path) == {"m.gguf": TWO.sha256}
    assert sent(http_server, "authorization") == {basic("reader:c4nary")}


def test_netrc_has_no_ports_and_other_hosts_stay_unasked(cli: Modelstore, http_server: HttpServer) -> None:
    netrc(cli, "machine 127.0.0.2 login reader password c4nary\nmachine 127.0.0 login a password b\n")
    cli("fetch", http_server.add("/m.gguf", BODY).url).ok()
    assert sent(http_server, "authorization") == {None}


@pytest.mark.parametrize("userinfo", ["me:mine", "me:", "me"])
def test_userinfo_wins_over_netrc(cli: Modelstore, http_server: HttpServer, userinfo: str) -> None:
    netrc(cli, "machine 127.0.0.1 login reader password c4nary\n")
    url = http_server.add("/m.gguf", BODY).url.replace("://", f"://{userinfo}@")
    cli("fetch", url).ok()
    assert sent(http_server, "authorization") == {basic(userinfo if ":" in userinfo else f"{userinfo}:")}


def test_an_empty_userinfo_does_not_move_netrc_to_another_host(
    cli: Modelstore, http_server: HttpServer, elsewhere: HttpServer
) -> None:
    """What `http://known:@evil/` was to other clients: the wrong one of the two taken for the host."""
    netrc(cli, "machine 127.0.0.1 login reader password c4nary\n")
    url = elsewhere.add("/m.gguf", BODY).url.replace("://", f"://127.0.0.1:{http_server.port}@")
    cli("fetch", url)
    assert basic("reader:c4nary") not in sent(elsewhere, "authorization")


def test_headers_of_the_config_win_over_netrc(cli: Modelstore, http_server: HttpServer, tmp_path: Path) -> None:
    netrc(cli, "machine 127.0.0.1 login reader password c4nary\n")
    loud = {"AUTHORIZATION": "Bearer ${MODELS_TOKEN}"}
    hosts(cli, tmp_path, **{"127.0.0.1": loud})("fetch", http_server.add("/m.gguf", BODY).url).ok()
    assert sent(http_server, "authorization") == {TOKEN}


def test_a_header_that_is_no_credential_leaves_netrc_alone(
    cli: Modelstore, http_server: HttpServer, tmp_path: Path
) -> None:
    netrc(cli, "machine 127.0.0.1 login reader password c4nary\n")
    hosts(cli, tmp_path, **{"127.0.0.1": {"X-Team": "ml"}})("fetch", http_server.add("/m.gguf", BODY).url).ok()
    assert sent(http_server, "authorization") == {basic("reader:c4nary")}
    assert sent(http_server, "x-team") == {"ml"}


def test_netrc_is_not_for_where_a_redirect_leads(
    cli: Modelstore, http_server: HttpServer, elsewhere: HttpServer
) -> None:
    """Neither the entry of the first host nor that of the second: the first chose the second."""
    netrc(cli, "machine 127.0.0.1 login reader password c4nary\nmachine 127.0.0.2 login other password c4nary\n")
    target = elsewhere.add("/x", TWO)
    origin = http_server.add("/m.gguf", redirect=target.url, auth="reader:c4nary")
    assert digests(cli("fetch", origin.url).path) == {"m.gguf": TWO.sha256}
    assert sent(elsewhere, "authorization") == {None}


@pytest.mark.parametrize("url", ["file", "path"])
def test_local_sources_do_not_look_at_netrc(cli: Modelstore, tiny_model_dir: Path, url: str) -> None:
    netrc(cli, "machine nonsense\0\n")
    result = cli("fetch", f"file://{tiny_model_dir}" if url == "file" else tiny_model_dir).ok()
    assert "netrc" not in result.stderr


@pytest.mark.parametrize(
    "content",
    [
        b"machine 127.0.0.1 login reader passwort c4nary\n",
        b"c4nary\n",
        b"machine 127.0.0.1 login reader password c4nary \xff\xfe\n",
        b"machine 127.0.0.1 login reader password 'c4nary\n",
        b"machine\n",
        b"",
    ],
    ids=["misspelt", "one word", "not UTF-8", "quote", "cut off", "empty"],
)
@pytest.mark.parametrize("options", [(), ("-v",), ("-v", "--log-format", "json")], ids=["plain", "text", "json"])
def test_a_malformed_netrc_is_passed_over_or_a_clear_error(
    cli: Modelstore, http_server: HttpServer, content: bytes, options: tuple[str, ...]
) -> None:
    netrc(cli, "").write_bytes(content)
    result = Modelstore(cli.home, (*cli.options, *options))("fetch", http_server.add("/m.gguf", BODY).url)
    assert result.returncode in (0, 2), result
    assert "c4nary" not in result.stderr, "its parser quotes what it does not understand"
    if result.returncode == 2 and not options:
        result.failed(2, "netrc")
    if content.startswith((b"machine 127.0.0.1 login reader passwort", b"c4nary")):
        assert ".netrc" in result.stderr, "that it does not count is said"
    if not options:
        assert "Traceback" not in result.stderr


def test_a_netrc_that_is_a_directory(cli: Modelstore, http_server: HttpServer) -> None:
    (cli.home / ".netrc").mkdir()
    cli("fetch", http_server.add("/m.gguf", BODY).url).ok()


def test_a_netrc_that_is_named_and_missing(cli: Modelstore, http_server: HttpServer) -> None:
    result = cli.with_env(NETRC=str(cli.home / "none"))("fetch", http_server.add("/m.gguf", BODY).url)
    assert result.returncode in (0, 2), result
    assert "Traceback" not in result.stderr


def test_the_wrong_password_in_netrc(cli: Modelstore, http_server: HttpServer) -> None:
    netrc(cli, "machine 127.0.0.1 login reader password c4nary\n")
    result = cli("fetch", http_server.add("/m.gguf", BODY, auth="reader:other").url).failed(4)
    assert "c4nary" not in result.stderr


# ---------------------------------------------------------------- headers of the config


def test_headers_go_with_every_request(cli: Modelstore, http_server: HttpServer, tmp_path: Path) -> None:
    cli = hosts(cli, tmp_path, **{f"127.0.0.1:{http_server.port}": {**BEARER, "X-Team": "ml", "Cookie": "s=${HOME}"}})
    origin = http_server.add("/m.gguf", TWO)
    assert digests(cli("fetch", origin.url).path) == {"m.gguf": TWO.sha256}
    assert len(http_server.requests) >= 2
    assert sent(http_server, "authorization") == {TOKEN}
    assert sent(http_server, "x-team") == {"ml"}
    assert sent(http_server, "cookie") == {f"s={cli.home}"}
    assert sent(http_server, "accept-encoding") == {"identity"}


def test_host_and_port_win_over_host(cli: Modelstore, http_server: HttpServer, tmp_path: Path) -> None:
    with HttpServer() as neighbour:
        wanted = {
            "127.0.0.1": {"X-Team": "host"},
            f"127.0.0.1:{http_server.port}": {"X-Team": "port"},
            "127.0.0.2": {"X-Team": "another host"},
        }
        cli = hosts(cli, tmp_path, **wanted)
        cli("fetch", http_server.add("/m.gguf", BODY).url).ok()
        cli("fetch", neighbour.add("/m.gguf", BODY).url).ok()
        assert sent(http_server, "x-team") == {"port"}
        assert sent(neighbour, "x-team") == {"host"}


@pytest.mark.parametrize(
    ("section", "matches"),
    [
        ("models.example.com", True),
        ("Models.Example.COM", True),
        ("models.example.com:80", True),
        ("example.com", False),
        ("*.example.com", False),
        (".example.com", False),
        ("models.example.com.evil.example", False),
        ("xmodels.example.com", False),
        ("models.example.com:8080", False),
        ("http://models.example.com", False),
    ],
)
@pytest.mark.parametrize("host", ["models.example.com", "MODELS.example.com"])
def test_the_name_of_a_host_is_exact_but_for_its_case(
    cli: Modelstore, http_server: HttpServer, tmp_path: Path, section: str, matches: bool, host: str
) -> None:
    """Through a proxy, which alone knows where that host is; port 80 goes without saying."""
    http_server.add("/m.gguf", BODY)
    with Proxy(names={"models.example.com": f"127.0.0.1:{http_server.port}"}) as proxy:
        cli = hosts(cli, tmp_path, **{section: BEARER}).with_env(HTTP_PROXY=proxy.url)
        result = cli("fetch", f"http://{host}/m.gguf")
        if result.returncode == 2 and "hosts" in result.stderr and not matches:
            return  # it says that this is no host, which is better still
        assert digests(result.path) == FILES
        assert sent(http_server, "authorization") == {TOKEN if matches else None}


@pytest.mark.parametrize("own", [False, True], ids=["of the first", "of the second"])
def test_headers_do_not_follow_a_redirect(
    cli: Modelstore, http_server: HttpServer, elsewhere: HttpServer, tmp_path: Path, own: bool
) -> None:
    """Nor are those of the second host sent to it: only what a source URL names is asked with credentials."""
    target = elsewhere.add("/x", TWO)
    origin = http_server.add("/m.gguf", redirect=target.url)
    wanted = {"127.0.0.1": BEARER, **({"127.0.0.2": {"Authorization": "Bearer second", "X-Team": "ml"}} if own else {})}
    assert digests(hosts(cli, tmp_path, **wanted)("fetch", origin.url).path) == {"m.gguf": TWO.sha256}
    assert sent(http_server, "authorization") == {TOKEN}
    assert sent(elsewhere, "authorization") == {None}
    assert sent(elsewhere, "x-team") == {None}


def test_headers_do_not_go_to_another_port_of_the_host(
    cli: Modelstore, http_server: HttpServer, tmp_path: Path
) -> None:
    """Another port is another server, even where the section names the host alone."""
    with HttpServer() as neighbour:
        target = neighbour.add("/x", BODY)
        origin = http_server.add("/m.gguf", redirect=target.url)
        hosts(cli, tmp_path, **{"127.0.0.1": BEARER})("fetch", origin.url).ok()
        assert sent(neighbour, "authorization") == {None}


def test_headers_come_along_on_a_redirect_to_the_same_server(
    cli: Modelstore, http_server: HttpServer, tmp_path: Path
) -> None:
    http_server.add("/x", BODY)
    origin = http_server.add("/m.gguf", redirect="/x")
    assert digests(hosts(cli, tmp_path, **{"127.0.0.1": BEARER})("fetch", origin.url).path) == FILES
    assert sent(http_server, "authorization") == {TOKEN}


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_a_variable_that_is_not_set_is_named(
    cli: Modelstore, http_server: HttpServer, tmp_path: Path, store_root: Path, value: str | None
) -> None:
    cli = hosts(cli, tmp_path, **{"127.0.0.1": {"Authorization": "Bearer ${OTHER_TOKEN}"}})
    if value is not None:
        cli = cli.with_env(OTHER_TOKEN=value)
    cli("fetch", http_server.add("/m.gguf", BODY).url).failed(2, "OTHER_TOKEN")
    assert http_server.requests == [], "not even without the header"
    assert visible(store_root) == {}


@pytest.mark.parametrize("secret", ["c4nary\n", "c4\r\nX-Evil: 1nary", "c4nary\t\x01", "c4n\u00e4ry\u2100"])
@pytest.mark.parametrize("options", [(), ("-v",)], ids=["plain", "verbose"])
def test_a_value_that_no_header_may_hold(
    cli: Modelstore, http_server: HttpServer, tmp_path: Path, secret: str, options: tuple[str, ...]
) -> None:
    """A token from a file with a line break at its end: said without showing it, as http.client would."""
    loud = hosts(cli, tmp_path, **{"127.0.0.1": {"Authorization": "Bearer ${TOKEN}"}}).with_env(TOKEN=secret)
    result = Modelstore(cli.home, (*loud.options, *options), loud.env)("fetch", http_server.add("/m.gguf", BODY).url)
    assert result.returncode == 2, result
    assert "c4n" not in result.stderr
    assert http_server.requests == []


def test_a_warm_hit_needs_no_variable(cli: Modelstore, http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.add("/m.gguf", BODY).url
    first = hosts(cli, tmp_path, **{"127.0.0.1": BEARER})("fetch", url).path
    without = configured(cli, tmp_path, (tmp_path / "config.toml").read_text())
    assert without("fetch", url).path == first
    assert without("path", url).path == first


# ---------------------------------------------------------------- weak and missing ETags


@pytest.mark.parametrize(
    "behaviour",
    [
        {"etag": 'W/"same"'},
        {"etag": 'W/"same"', "last_modified": None},
        {"etag": None, "last_modified": None},
        {"etag": 'W/"same"', "if_match": False},
    ],
    ids=["weak", "weak alone", "nothing", "weak, conditions ignored"],
)
def test_without_a_strong_validator_there_is_one_stream(
    cli: Modelstore, http_server: HttpServer, behaviour: dict[str, object]
) -> None:
    """Ranges that nothing ties together may be of two versions: no two of them ever make up a file."""
    body = PatternBody(3 * CHUNK + 5)
    origin = http_server.add("/m.gguf", body, **behaviour)
    assert digests(cli("fetch", origin.url).path) == {"m.gguf": body.sha256}
    beyond = [request for request in http_server.requests if request.headers.get("range", "bytes=0-")[:8] != "bytes=0-"]
    assert beyond == [], "a range from the middle"
    assert sum(request.body_bytes > 1 for request in http_server.requests) == 1


@pytest.mark.parametrize("etag", [None, 'W/"same"'])
@pytest.mark.parametrize("cut_at", [1000, CHUNK + 1000])
def test_a_stream_that_breaks_off_is_not_continued_with_another_version(
    cli: Modelstore, http_server: HttpServer, store_root: Path, etag: str | None, cut_at: int
) -> None:
    old, new = PatternBody(2 * CHUNK), PatternBody(2 * CHUNK, seed=1)
    behaviour = {"etag": etag, "last_modified": None, "cut_at": cut_at, "cut_times": 2}
    origin = http_server.add("/m.gguf", old, changed=new, changes_after=2, **behaviour)
    result = cli("fetch", origin.url)
    if result.returncode == 0:
        assert digests(result.path)["m.gguf"] in (old.sha256, new.sha256)
    else:
        assert result.returncode in (5, 6), result
        assert visible(store_root) == {}


def test_a_pin_ties_ranges_together(cli: Modelstore, http_server: HttpServer) -> None:
    """With a digest to judge by, ranges are safe whatever the validator: right bytes, or an error."""
    body = PatternBody(3 * CHUNK)
    origin = http_server.add("/m.gguf", body, etag=None, last_modified=None)
    assert digests(cli("fetch", f"{origin.url}#sha256={body.sha256}").path) == {"m.gguf": body.sha256}
    wrong = http_server.add("/w.gguf", body, etag=None, last_modified=None)
    cli("fetch", f"{wrong.url}#sha256={'0' * 64}").failed(7)
