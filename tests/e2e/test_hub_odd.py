"""Corners of hf://: odd names, mirrors and settings, large files that are in git, kills and repairs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.wire import Answer, Request
from tests.support import Modelstore, blob, digests, flip_byte, sha256_of, staged, visible, wait_until
from tests.support.httpserver import PatternBody
from tests.support.hub import Hub, scripted
from tests.support.hub_repo import FileBody

CHUNK = 16 << 20
LARGE = PatternBody(4 * CHUNK + 99, seed=5)
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 100_000}
SUMS = {path: sha256_of(body) for path, body in FILES.items()}


def in_git(path: str) -> bool:
    """Nothing is an LFS file."""
    return False


# ---------------------------------------------------------------- large files that are in git


def test_a_large_file_in_git(hf: Modelstore, hub: Hub) -> None:
    hub.repo("acme/git").commit({"merges.txt": LARGE}, lfs=in_git)
    assert digests(hf("fetch", "hf://acme/git").path) == {"merges.txt": LARGE.sha256}
    assert sum(request.body_bytes for request in hub.log if "/resolve/" in request.path) <= LARGE.size + 4096


@pytest.mark.parametrize("offset", [0, CHUNK - 1, 2 * CHUNK, LARGE.size - 1])
def test_a_flipped_bit_in_a_large_file_in_git(hf: Modelstore, hub: Hub, store_root: Path, offset: int) -> None:
    hub.repo("acme/git").commit({"merges.txt": LARGE}, lfs=in_git)

    def flip(request: Request, answer: Answer) -> None:
        if "/resolve/" in request.path:
            answer.flip = offset

    with scripted(hub, flip):
        hf("fetch", "hf://acme/git").failed(7, "merges.txt")
    assert visible(store_root) == {}
    assert digests(hf("fetch", "hf://acme/git").path) == {"merges.txt": LARGE.sha256}


# ---------------------------------------------------------------- killed


def test_what_a_killed_fetch_had_is_not_asked_for_again(
    hf: Modelstore, hub: Hub, store_root: Path, start: Callable[..., Any]
) -> None:
    hub.repo("acme/large", {"config.json": b"{}", "model.safetensors": LARGE})
    done = 2 * CHUNK

    def stall(request: Request, answer: Answer) -> None:
        if answer.status == 206 and answer.stop > done:
            answer.strike, answer.at = "stall", max(done, answer.start)

    with scripted(hub.cdn, stall):
        process = start(hf, "fetch", "hf://acme/large", "--connections", "2")
        wait_until(lambda: journalled(store_root) == 2, process)
        process.kill()
        process.wait()
    assert not [name for name in visible(store_root) if "/refs/" in name or name.startswith("models")]
    hub.cdn.forget()
    result = hf("fetch", "--json", "hf://acme/large")
    assert digests(Path(result.json["path"]))["model.safetensors"] == LARGE.sha256
    assert hub.cdn.bytes_sent() <= LARGE.size - done + 4096
    assert staged(store_root) == []


def journalled(root: Path) -> int:
    """How many chunks the next fetch can go on with."""
    journals = (root / ".modelstore" / "ingest").glob("*.journal")
    return max((len(re.findall(rb"(?m)^\d+ [0-9a-f]{32}$", path.read_bytes())) for path in journals), default=0)


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"], ids=["git", "lfs"])
def test_repair_brings_it_from_the_hub(hf: Modelstore, hub: Hub, store_root: Path, path: str) -> None:
    hub.repo("acme/tiny", FILES)
    hf("fetch", "hf://acme/tiny").ok()
    flip_byte(blob(store_root, SUMS[path]), 1)
    hf("verify", "--repair", "hf://acme/tiny").ok()
    assert sha256_of(blob(store_root, SUMS[path])) == SUMS[path]


# ---------------------------------------------------------------- mirrors and settings


def test_content_behind_a_plain_web_server(
    cli: Modelstore, nginx_factory: Callable[[Path], str], tmp_path: Path
) -> None:
    """As benchmarks have it: the Hub redirects to where files lie by their digests."""
    root = tmp_path / "www"
    root.mkdir()
    weights = root / SUMS["model.safetensors"]
    weights.write_bytes(FILES["model.safetensors"])
    body = FileBody(weights, SUMS["model.safetensors"])
    with Hub(content_base=nginx_factory(root)) as hub:
        hub.repo("acme/tiny", {**FILES, "model.safetensors": body})
        assert digests(cli.with_env(HF_ENDPOINT=hub.endpoint)("fetch", "hf://acme/tiny").path) == SUMS
        assert hub.cdn.log == []


@pytest.mark.parametrize("tag", ['W/"{}"', "{}"], ids=["weak", "bare"])
def test_the_digest_as_mirrors_write_it(hf: Modelstore, hub: Hub, tag: str) -> None:
    hub.repo("acme/tiny", FILES)

    def write(request: Request, answer: Answer) -> None:
        if answer.get("X-Linked-ETag"):
            answer.set("X-Linked-ETag", tag.format(SUMS["model.safetensors"]))

    with scripted(hub, write):
        assert digests(hf("fetch", "hf://acme/tiny").path) == SUMS


def test_what_is_left_of_the_limit_is_no_reason_to_wait(hf: Modelstore, hub: Hub) -> None:
    """The Hub says it with every answer; only with a 429 is it to be waited out."""
    hub.repo("acme/tiny", FILES)
    with scripted(hub, lambda _, answer: answer.set("RateLimit", '"resolvers";r=0;t=290')):
        assert digests(hf("fetch", "hf://acme/tiny", timeout=30).path) == SUMS


def test_an_endpoint_with_a_slash_at_its_end(cli: Modelstore, hub: Hub) -> None:
    hub.repo("acme/tiny", FILES)
    assert digests(cli.with_env(HF_ENDPOINT=f"{hub.endpoint}/")("fetch", "hf://acme/tiny").path) == SUMS
    assert not any("//" in line for line in hub.lines())


def test_a_listing_that_goes_on_at_a_relative_address(cli: Modelstore) -> None:
    with Hub(page_size=1) as hub:
        hub.repo("acme/tiny", FILES)

        def relative(request: Request, answer: Answer) -> None:
            link = answer.get("Link")
            if link:
                answer.set("Link", link.replace(hub.url, ""))

        with scripted(hub, relative):
            assert digests(cli.with_env(HF_ENDPOINT=hub.endpoint)("fetch", "hf://acme/tiny").path) == SUMS


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:1", "ftp://127.0.0.1", "http://", "http://[::1", "nonsense", "http://127.0.0.1:99999"]
)
def test_an_endpoint_that_is_none(cli: Modelstore, endpoint: str) -> None:
    result = cli.with_env(HF_ENDPOINT=endpoint)("fetch", "hf://acme/tiny")
    result.failed(result.returncode)
    assert result.returncode in (2, 5)


def test_a_password_in_the_endpoint_is_not_shown(cli: Modelstore, hub: Hub, store_root: Path) -> None:
    hub.repo("acme/tiny", FILES)
    endpoint = hub.endpoint.replace("://", "://user:c4nary@")
    for url in ("hf://acme/tiny", "hf://acme/nothing", "hf://acme/tiny@nope"):
        result = Modelstore(cli.home, (*cli.options, "-v"), {"HF_ENDPOINT": endpoint})("fetch", url)
        assert "c4nary" not in result.stdout + result.stderr
    for path in (*store_root.rglob("*"), *cli.home.rglob("*")):
        assert not path.is_file() or b"c4nary" not in path.read_bytes()


@pytest.mark.parametrize("token", ["hf_c4n\N{SNOWMAN}ary", "hf_c4n ary", "hf_c4n\tary", "hf_c4n\x01ary"], ids=ascii)
def test_a_token_that_no_header_can_hold(hf: Modelstore, hub: Hub, token: str) -> None:
    hub.repo("acme/tiny", FILES)
    result = hf.with_env(HF_TOKEN=token)("fetch", "hf://acme/tiny")
    result.failed(result.returncode)
    assert result.returncode in (2, 4)
    assert "c4n" not in result.stderr


@pytest.mark.parametrize("setting", ["HF_HUB_ENABLE_HF_TRANSFER", "HF_DEBUG", "HF_HUB_DISABLE_SYMLINKS_WARNING"])
def test_settings_for_the_real_client_make_no_noise(hf: Modelstore, hub: Hub, setting: str) -> None:
    hub.repo("acme/tiny", FILES)
    command = Modelstore(
        hf.home, ("-q", *hf.options), {**hf.env, setting: "1", "HF_TOKEN": "", "HF_HUB_VERBOSITY": "debug"}
    )
    result = command("fetch", "hf://acme/tiny")
    assert digests(result.path) == SUMS
    assert result.stderr == ""


def test_a_warm_hit_does_not_import_the_hub_s_package(hf: Modelstore, hub: Hub, tmp_path: Path) -> None:
    hub.repo("acme/tiny", FILES)
    first = hf("fetch", "hf://acme/tiny").path
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "huggingface_hub.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path / "broken"), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert hf.with_env(PYTHONPATH=path)("fetch", "hf://acme/tiny").path == first
    assert hf.with_env(PYTHONPATH=path)("fetch", "hf://acme/other").returncode != 0, "so that this test can fail"


# ---------------------------------------------------------------- odd names


def test_names_that_differ_in_case(hf: Modelstore, hub: Hub, store_root: Path) -> None:
    """They cannot be stored together; one of them can."""
    hub.repo("acme/case", {"README.md": b"upper", "readme.md": b"lower", "config.json": b"{}"})
    hf("fetch", "hf://acme/case").failed(7, "readme.md")
    assert visible(store_root) == {}
    assert set(digests(hf("fetch", "hf://acme/case?ignore=readme.md").path)) == {"README.md", "config.json"}
    assert set(digests(hf("fetch", "hf://acme/case/README.md").path)) == {"README.md"}
    assert set(digests(hf("fetch", "hf://acme/case?allow=*.json").path)) == {"config.json"}


@pytest.mark.parametrize("url", ["hf://acme/tiny@..", "hf://acme/tiny@.", "hf://acme/tiny:..", "hf://acme/tiny@%2E%2E"])
def test_a_revision_that_would_be_a_step_in_the_path(hf: Modelstore, hub: Hub, url: str) -> None:
    """`/revision/..` is the address of the model's information, which has a commit as well."""
    hub.repo("acme/tiny", FILES)
    result = hf("fetch", url)
    result.failed(result.returncode)
    assert result.returncode in (2, 3)


ODD = ["m 1-Q4_0.gguf", "m%20-Q5_0.gguf", "m,1-Q6_K.gguf", "m[1]-Q8_0.gguf", "m+1&x=2-F16.gguf", "m#1-BF16.gguf"]


@pytest.mark.parametrize("projector", [False, True], ids=["", "mmproj"])
def test_the_addresses_of_variants_with_odd_names(hf: Modelstore, hub: Hub, projector: bool) -> None:
    """Each one that is listed gives that variant. An address ends before the size in parentheses."""
    names = [*ODD, *(["mmproj-F16.gguf"] if projector else [])]
    hub.repo("acme/odd", {name: name.encode() for name in names})
    result = hf("fetch", "hf://acme/odd")
    result.failed(2)
    urls = re.findall(r"(hf://acme/odd[/?].*?) \(", result.stderr)
    assert len(urls) == len(ODD), result
    found = [set(digests(hf("fetch", url).path)) - {"mmproj-F16.gguf"} for url in urls]
    assert sorted(found, key=sorted) == sorted(({name} for name in ODD), key=sorted)
