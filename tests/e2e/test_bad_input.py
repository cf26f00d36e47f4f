"""Bad input: one clear sentence on stderr, its exit code, nothing left visible (in the store or at --to)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support import Modelstore, Result, digests, tree, unshare, visible, without_privileges, writable
from tests.support.httpserver import TLS_CERT, BytesBody, HttpServer, PatternBody

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 16 << 20
BODY = b"weights " * 5000
ZEROS = "0" * 64
Refused = Callable[..., Result]


@pytest.fixture(params=["default target", "--to"])
def refused(request: pytest.FixtureRequest, cli: Modelstore, store_root: Path, tmp_path: Path) -> Refused:
    """`refused(code, source, *words)`: fetching it ends with `code` and one sentence, and leaves no trace."""
    serve = tmp_path / "serve"
    serve.mkdir()
    target = () if request.param == "default target" else ("--to", str(serve / "model"))

    def check(code: int, source: Path | str, *words: str, options: tuple[str, ...] = ()) -> Result:
        result = cli("fetch", *options, *target, "--", source).failed(code, *words)
        assert visible(store_root) == {}
        assert os.listdir(serve) == [], "not even a hidden one"
        return result

    return check


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that refuses connections: bound, so that nobody else gets it, and never listening."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


# ---------------------------------------------------------------- the URL


@pytest.mark.parametrize(
    "source",
    [
        "",
        "http://",
        "http:///model.gguf",
        "http://127.0.0.1:port/model.gguf",
        "http://127.0.0.1:99999/model.gguf",
        "http://[::1/model.gguf",
        "http://127.0.0.1/mod\x01el.gguf",
        f"http://127.0.0.1/model.gguf\n{'modelstore: error: '}a second line",
        "file://some-other-host/model.gguf",
        "http://127.0.0.1/model.gguf#sha256=abc",
        f"http://127.0.0.1/model.gguf#sha256={'g' * 64}",
    ],
)
def test_malformed_url(refused: Refused, source: str) -> None:
    refused(2, source)


@pytest.mark.parametrize("source", ["foo://host/model.gguf", "htps://host/model.gguf"])
def test_unknown_scheme_lists_the_known_ones(refused: Refused, source: str) -> None:
    refused(2, source, source.partition(":")[0], "file", "http", "https")


@pytest.mark.parametrize(
    "path", ["/..%2f..%2fx", "/a/..%2F..%2Fetc%2Fpasswd", "/a/..", "/a/%2e%2e", "/%2Fetc%2Fpasswd", "/x%00y"]
)
def test_path_that_escapes_the_tree(refused: Refused, http_server: HttpServer, path: str) -> None:
    http_server.add(path, BODY)
    refused(2, http_server.url + path)
    assert http_server.requests == [], "known before anybody is asked"


@pytest.mark.parametrize(
    "args",
    [
        ("fetch", "--layout", "nope", "{model}"),
        ("fetch", "--nope", "{model}"),
        ("fetch", "--verify", "sometimes", "{model}"),
        ("fetch", "--connections", "0", "{model}"),
        ("fetch",),
        ("nope",),
        ("--log-format", "xml", "fetch", "{model}"),
        ("--config", "/nonexistent/config.toml", "fetch", "{model}"),
    ],
    ids=" ".join,
)
def test_usage(cli: Modelstore, store_root: Path, tiny_model_dir: Path, args: tuple[str, ...]) -> None:
    cli(*(arg.format(model=tiny_model_dir) for arg in args)).failed(2)
    assert visible(store_root) == {}


def test_unknown_layout_is_named(refused: Refused, tiny_model_dir: Path) -> None:
    refused(2, tiny_model_dir, "nope", "files", "vllm", options=("--layout", "nope"))


@pytest.mark.parametrize("variable", ["MODELSTORE_TEIRS", "MODELSTORE_OFLINE"])
def test_unknown_variable_names_the_nearest(cli: Modelstore, tiny_model_dir: Path, variable: str) -> None:
    nearest = {"MODELSTORE_TEIRS": "MODELSTORE_TIERS", "MODELSTORE_OFLINE": "MODELSTORE_OFFLINE"}[variable]
    cli.with_env(**{variable: "1"})("fetch", tiny_model_dir).failed(2, variable, nearest)


@pytest.mark.parametrize("how", ["default", "variable", "option"])
def test_unknown_key_in_the_config_file(
    run_modelstore: Modelstore, tiny_model_dir: Path, tmp_path: Path, how: str
) -> None:
    default = run_modelstore.home / "config" / "modelstore" / "config.toml"
    config = default if how == "default" else tmp_path / "my.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text('teirs = ["/nowhere"]\n')
    command = run_modelstore.with_env(MODELSTORE_CONFIG=str(config)) if how == "variable" else run_modelstore
    options = ("--config", str(config)) if how == "option" else ()
    command(*options, "fetch", tiny_model_dir).failed(2, "teirs", "tier")


# ---------------------------------------------------------------- the origin


STATUS = {404: 3, 410: 3, 401: 4, 403: 4, 500: 5, 503: 5}


@pytest.mark.parametrize("status", STATUS)
def test_http_status(refused: Refused, http_server: HttpServer, status: int) -> None:
    origin = http_server.add("/m.gguf", BODY, status=status, headers={"Retry-After": "0"})
    refused(STATUS[status], origin.url, "m.gguf")


def test_not_found_where_head_is_forbidden(refused: Refused, http_server: HttpServer) -> None:
    """As for an address that was signed for GET: what HEAD says proves nothing."""
    refused(3, http_server.add("/m.gguf", BODY, status=404, head=False).url, "m.gguf")


@pytest.mark.parametrize("status", [404, 403])
def test_what_will_not_change_is_not_asked_again(cli: Modelstore, http_server: HttpServer, status: int) -> None:
    origin = http_server.add("/m.gguf", BODY, status=status)
    cli("fetch", origin.url)
    assert 1 <= origin.hits <= 2


def test_redirect_to_nothing(refused: Refused, http_server: HttpServer) -> None:
    refused(3, http_server.add("/m.gguf", redirect=http_server.url + "/gone").url)


def test_endless_redirect(refused: Refused, http_server: HttpServer) -> None:
    loop = http_server.add("/m.gguf", redirect=http_server.url + "/m.gguf")
    refused(5, loop.url)
    assert loop.hits < 100


@pytest.mark.parametrize(
    "location", ["file:///etc/hostname", "ftp://127.0.0.1/m.gguf", "http://[", "http://127.0.0.1:port/m.gguf"]
)
def test_redirect_to_nonsense(refused: Refused, http_server: HttpServer, location: str) -> None:
    refused(5, http_server.add("/m.gguf", redirect=location).url)


def test_connection_refused(refused: Refused, unused_port: int) -> None:
    refused(5, f"http://127.0.0.1:{unused_port}/m.gguf", f"127.0.0.1:{unused_port}")


def test_name_that_does_not_resolve(cli: Modelstore, store_root: Path) -> None:
    """In a network of its own, so that nobody outside is asked."""
    prefix = unshare("--net")
    cli.with_prefix(*prefix)("fetch", "http://no-such-host.invalid/m.gguf").failed(5, "no-such-host.invalid")
    assert visible(store_root) == {}


def test_tls_that_nobody_vouches_for(refused: Refused, tls_server: HttpServer) -> None:
    refused(5, tls_server.add("/m.gguf", BODY).url, f"127.0.0.1:{tls_server.port}")
    assert tls_server.requests == []


def test_tls_for_another_host(cli: Modelstore, store_root: Path) -> None:
    with HttpServer("127.0.0.2", tls=True) as server:
        origin = server.add("/m.gguf", BODY)
        cli.with_env(SSL_CERT_FILE=str(TLS_CERT))("fetch", origin.url).failed(5, "127.0.0.2")
        assert server.requests == []
    assert visible(store_root) == {}


def test_https_to_a_plain_port(refused: Refused, http_server: HttpServer) -> None:
    refused(5, f"https://127.0.0.1:{http_server.port}/m.gguf")


@pytest.mark.parametrize("if_match", [True, False], ids=["412", "another ETag"])
@pytest.mark.parametrize("size", [3 * CHUNK, 3 * CHUNK + 1], ids=["same size", "longer"])
def test_source_changed_meanwhile(refused: Refused, http_server: HttpServer, if_match: bool, size: int) -> None:
    old, new = PatternBody(3 * CHUNK), PatternBody(size, seed=1)
    origin = http_server.add("/m.gguf", old, changes_after=2, changed=new, if_match=if_match)
    refused(6, origin.url, "m.gguf")
    assert origin.hits > 2, "the test really got to the change"


# ---------------------------------------------------------------- the bytes


def test_wrong_pin_of_an_http_file(refused: Refused, http_server: HttpServer) -> None:
    refused(7, http_server.add("/m.gguf", BODY).url + f"#sha256={ZEROS}", "m.gguf")


@pytest.mark.parametrize("ranges", [True, False])
def test_flipped_bit_on_the_way(refused: Refused, http_server: HttpServer, ranges: bool) -> None:
    origin = http_server.add("/m.gguf", PatternBody(CHUNK + 100), flip=CHUNK + 50, ranges=ranges)
    refused(7, f"{origin.url}#sha256={origin.body.sha256}", "m.gguf")


@pytest.mark.parametrize("form", ["file://{}", "{}"])
@pytest.mark.parametrize("name", ["config.json", "."])
def test_wrong_pin_of_a_local_path(
    cli: Modelstore, store_root: Path, tiny_model_dir: Path, form: str, name: str
) -> None:
    source = form.format(os.path.normpath(tiny_model_dir / name)) + f"#sha256={ZEROS}"
    cli("fetch", source).failed(7)
    shown = [path for path in visible(store_root) if not path.startswith("blobs/")]
    assert shown == [], "verified blobs of a directory may stay, nothing else"
    if name != ".":
        assert visible(store_root) == {}


# ---------------------------------------------------------------- a source directory


@pytest.mark.parametrize("form", ["file://{}", "{}", "{}/"])
def test_missing_local_path(refused: Refused, tmp_path: Path, form: str) -> None:
    source = form.format(tmp_path / "missing")
    refused(3, source, "missing")


@pytest.mark.parametrize("inside", [None, "empty/subdirectory"])
def test_empty_directory(refused: Refused, tmp_path: Path, inside: str | None) -> None:
    source = tmp_path / "hollow"
    (source / (inside or ".")).mkdir(parents=True)
    refused(3, source, "hollow")


@pytest.mark.parametrize("target", ["../secret", "{absolute}/secret", "../secrets", "sub/../../secret"])
def test_symlink_that_leaves_the_directory(refused: Refused, tmp_path: Path, tiny_model_dir: Path, target: str) -> None:
    (tmp_path / "secret").write_text("not yours")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "file").write_text("not yours")
    (tiny_model_dir / "sub").mkdir()
    (tiny_model_dir / "way-out").symlink_to(target.format(absolute=tmp_path))
    refused(2, tiny_model_dir, "way-out")


@pytest.mark.parametrize("pair", [("Config.json", "config.json"), ("sub/a.txt", "sub/A.txt")])
def test_names_that_differ_only_in_case(refused: Refused, tiny_model_dir: Path, pair: tuple[str, str]) -> None:
    for name in pair:
        (tiny_model_dir / name).parent.mkdir(exist_ok=True)
        (tiny_model_dir / name).write_text(name)
    refused(2, tiny_model_dir, *pair)


def test_control_character_in_a_name(refused: Refused, tiny_model_dir: Path) -> None:
    (tiny_model_dir / "a\nmodelstore: error: b").write_text("x")
    refused(2, tiny_model_dir)


# ---------------------------------------------------------------- the target


@pytest.mark.parametrize("foreign", ["another file", "same name, other bytes", "a file"])
def test_target_with_foreign_content(
    cli: Modelstore, http_server: HttpServer, store_root: Path, tmp_path: Path, foreign: str
) -> None:
    origin = http_server.add("/m.gguf", BODY)
    target = tmp_path / "serve" / "model"
    target.parent.mkdir()
    if foreign == "a file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / ("notes.txt" if foreign == "another file" else "m.gguf")).write_text("precious")
    before = tree(target.parent)
    cli("fetch", origin.url, "--to", target).failed(13, str(target))
    assert tree(target.parent) == before
    assert visible(store_root) == {}


def test_complete_target_with_more_in_it_is_left_alone(cli: Modelstore, tiny_model_dir: Path, tmp_path: Path) -> None:
    """An engine that writes its own cache beside the weights must not break the next start."""
    target = tmp_path / "model"
    cli("fetch", tiny_model_dir, "--to", target).ok()
    (target / "notes.txt").write_text("precious")
    before = tree(target)
    cli("fetch", tiny_model_dir, "--to", target).ok()
    assert tree(target) == before


# ---------------------------------------------------------------- the store


@pytest.mark.parametrize("below", ["", "/below"])
def test_root_is_a_file(run_modelstore: Modelstore, tiny_model_dir: Path, tmp_path: Path, below: str) -> None:
    root = tmp_path / "root"
    root.write_text("precious")
    run_modelstore.at(f"{root}{below}")("fetch", tiny_model_dir).failed(9, str(root))
    assert root.read_text() == "precious"


def test_root_that_is_not_writable(cli: Modelstore, tiny_model_dir: Path, store_root: Path) -> None:
    store_root.mkdir()
    script = 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"'
    frozen = cli.with_prefix(*unshare("--mount", script=script, root=store_root))
    frozen("fetch", tiny_model_dir).failed(9, str(store_root))


def test_root_without_write_permission(cli: Modelstore, tiny_model_dir: Path, store_root: Path) -> None:
    store_root.mkdir(0o555)
    cli.with_prefix(*without_privileges())("fetch", tiny_model_dir).failed(9, str(store_root))
    assert os.listdir(store_root) == []


@pytest.mark.parametrize("version", [2, 99])
@pytest.mark.parametrize("command", ["fetch", "path", "list", "show", "verify", "remove"])
def test_store_of_a_newer_format(
    cli: Modelstore, tiny_model_dir: Path, store_root: Path, command: str, version: int
) -> None:
    cli("fetch", tiny_model_dir).ok()
    document = store_root / ".modelstore" / "format.json"
    with writable(document.parent), writable(document):
        document.write_text(json.dumps({"version": version}))
    before = tree(store_root)
    cli(command, *([] if command == "list" else [tiny_model_dir])).failed(9, str(version))
    assert tree(store_root) == before


@pytest.mark.parametrize("options", ["size=8m", "nr_inodes=4"])
@pytest.mark.parametrize("kind", ["http", "directory"])
def test_no_space_left(
    cli: Modelstore, http_server: HttpServer, store_root: Path, tmp_path: Path, options: str, kind: str
) -> None:
    """The root is a tiny tmpfs that only the command sees; what it holds in the end is listed from inside."""
    origin = http_server.add("/m.gguf", PatternBody(2 * CHUNK))
    source = tmp_path / "model"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.bin").write_bytes(b"".join(PatternBody(CHUNK // 2, number).read(0, CHUNK // 2)))
    store_root.mkdir()
    listing = tmp_path / "listing"
    script = 'mount -t tmpfs -o "$OPTIONS" tmpfs "$0" || exit 99; "$@"; code=$?; find "$0" >"$LISTING"; exit $code'
    small = cli.with_prefix(*unshare("--mount", script=script, root=store_root))
    small.with_env(OPTIONS=options, LISTING=str(listing))("fetch", origin.url if kind == "http" else source).failed(10)
    shown = [line.removeprefix(f"{store_root}/") for line in listing.read_text().splitlines()]
    hidden_tops = ("models/", "manifests/", ".modelstore/refs/", *(("blobs/",) if kind == "http" else ()))
    assert [path for path in shown if path.startswith(hidden_tops)] == []
    if kind == "http" and "size" in options:
        assert http_server.bytes_sent <= 4096, "space is checked before the first byte"


# ---------------------------------------------------------------- and then


def test_a_store_in_use_is_not_disturbed(
    cli: Modelstore, http_server: HttpServer, tiny_model_dir: Path, store_root: Path
) -> None:
    target = cli("fetch", tiny_model_dir).path
    before = visible(store_root)
    changing = http_server.add("/changing", PatternBody(CHUNK * 2), changes_after=1, changed=BytesBody(BODY))
    bad = ["foo://x/y", http_server.url + "/gone", changing.url, http_server.add("/m", BODY).url + f"#sha256={ZEROS}"]
    assert [cli("fetch", source).returncode for source in bad] == [2, 3, 6, 7]
    assert visible(store_root) == before
    assert digests(target) == digests(tiny_model_dir)


def test_the_next_call_just_works(cli: Modelstore, http_server: HttpServer) -> None:
    origin = http_server.add("/m.gguf", PatternBody(CHUNK + 1), flip=5, flip_times=99)
    pinned = f"{origin.url}#sha256={origin.body.sha256}"
    cli("fetch", pinned).failed(7)
    origin.flip = None
    assert digests(cli("fetch", pinned).path) == {"m.gguf": origin.body.sha256}
