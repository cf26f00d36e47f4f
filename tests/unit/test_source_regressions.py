"""What a review of the sources found, piece by piece: each of these was wrong once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelstore.config import load_config
from modelstore.digest import Digest
from modelstore.errors import Cancelled, SourceUnavailable
from modelstore.formats.selection import gguf_variants, loadable
from modelstore.manifest import Manifest, check_paths
from modelstore.registry.client import Registry
from modelstore.registry.name import Name
from modelstore.transfer import limits
from modelstore.transfer.asking import AT_ONCE, ask, ask_each
from modelstore.transfer.http import HttpClient, HttpFile
from tests.support.registry import basic, config, image, ollama
from tests.unit.wire import WAIT, RawServer, answer, chunked, part

BODY = b"weights " * 1000


@pytest.fixture
def client() -> Iterator[HttpClient]:
    made = HttpClient("test")
    yield made
    made.close()


# -- answers -----------------------------------------------------------------------------------------------------------


def with_trailer(size: int) -> bytes:
    """A whole answer in chunked coding with so many bytes of trailers, which do end."""
    line = b"X-Filler: " + b"y" * 88 + b"\r\n"
    head = answer("200 OK", b"", "Transfer-Encoding: chunked", 'ETag: "x"', length=False)
    return head + chunked(BODY).removesuffix(b"\r\n") + line * (size // len(line)) + b"\r\n"


def test_trailers_have_a_limit(client: HttpClient) -> None:
    """http.client reads them for as long as they come, into nothing."""
    with RawServer(with_trailer(8 << 20)) as server:
        file = HttpFile(f"{server.url}/m", "m", size=len(BODY), immutable=True)
        with pytest.raises(SourceUnavailable):
            list(client.read_all(file))
        client.close()


def test_trailers_of_bearable_size_are_passed_over(client: HttpClient) -> None:
    with RawServer(with_trailer(limits.TRAILER_BYTES // 2), answer("200 OK", BODY)) as server:
        file = HttpFile(f"{server.url}/m", "m", size=len(BODY), immutable=True)
        assert [b"".join(client.read_all(file)) for _ in range(2)] == [BODY, BODY]
        assert server.connections == 1
        client.close()


@pytest.mark.parametrize(("page", "connections"), [(b"", 1), (b"See there.\n" * 100, 1), (b"x" * 100_000, 4)])
def test_a_redirect_s_page_does_not_cost_the_connection(client: HttpClient, page: bytes, connections: int) -> None:
    """Unless reading it would cost more."""
    redirect = answer("302 Found", page, "Location: /there")
    with RawServer(*[redirect, part(BODY, 0, 1)] * 3) as server:
        for number in range(3):
            file = HttpFile(f"{server.url}/{number}", "m")
            client.probe(file)
            assert file.size == len(BODY)
        assert len(server.requests) == 6
        assert server.connections == connections
        client.close()


def test_one_authorization_header(client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration's, however it is spelt, until there is one of `docker login`."""
    model = ollama("model", b"GGUF tiny")
    pushed = image(config(), model)
    refusal = answer("401 Unauthorized", b"", 'WWW-Authenticate: Basic realm="x"')
    with RawServer(refusal, answer("200 OK", pushed.raw), answer("200 OK", model.data)) as server:
        host = f"127.0.0.1:{server.port}"
        settings = tmp_path / "settings.toml"
        settings.write_text(f'[hosts."{host}"]\nheaders = {{ authorization = "Token configured", x-more = "1" }}\n')
        auths = {"auths": {host: {"username": "me", "password": "logged-in"}}}
        (tmp_path / "config.json").write_text(json.dumps(auths))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        registry = Registry(client, Name.parse(f"{host}/library/tiny"), "tiny", load_config(settings), None)
        assert registry.manifest("latest").raw == pushed.raw
        assert b"".join(client.read(registry.blob(Digest(model.hex), len(model.data)), 0, len(model.data), ranges=True))
        sent = [authorizations(request) for request in server.requests]
        login = basic("me:logged-in")
        assert sent == [["Token configured"], [login], [login]]
        assert all(b"x-more: 1" in request for request in server.requests)
        client.close()


def authorizations(request: bytes) -> list[str]:
    lines = [line.partition(":") for line in request.decode().split("\r\n")[1:]]
    return [value.strip() for name, _, value in lines if name.lower() == "authorization"]


# -- manifests ---------------------------------------------------------------------------------------------------------


def sized(*sizes: int) -> bytes:
    """A manifest that lists one blob with these sizes, the last of them for its config."""
    blobs = [{"mediaType": "x/y", "digest": f"sha256:{'a' * 64}", "size": size} for size in sizes]
    return json.dumps({"schemaVersion": 2, "layers": blobs[:-1], "config": blobs[-1]}).encode()


@pytest.mark.parametrize("sizes", [(10, 20, 10), (20, 10, 10), (10, 10, 20)])
def test_one_digest_in_two_sizes(sizes: tuple[int, ...]) -> None:
    assert Manifest.parse(sized(10, 10, 10)).config.size == 10
    with pytest.raises(ValueError, match="two sizes"):
        Manifest.parse(sized(*sizes))


@pytest.mark.parametrize("name", ["d", "ü"])
def test_how_deep_a_path_may_be(name: str) -> None:
    check_paths(["/".join([name] * 32)])
    with pytest.raises(ValueError, match="more than 32 parts"):
        check_paths(["/".join([name] * 33)])


# -- asking ------------------------------------------------------------------------------------------------------------


def test_nobody_is_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ASK_SECONDS", 0.1)
    release = threading.Event()
    try:
        with pytest.raises(SourceUnavailable, match=r"^the bucket did not say in 0\.1 seconds"):
            ask(release.wait, "the bucket", None)
    finally:
        release.set()


def test_what_is_asked_can_be_cancelled() -> None:
    asked, release, cancel = threading.Event(), threading.Event(), threading.Event()

    def question() -> None:
        asked.set()
        cancel.set()
        release.wait(WAIT)

    try:
        with pytest.raises(Cancelled):
            ask(question, "the bucket", cancel)
        assert asked.is_set()
    finally:
        release.set()


def test_an_answer_and_an_error_come_through() -> None:
    assert ask(lambda: 7, "x", threading.Event()) == 7
    with pytest.raises(ZeroDivisionError):
        ask(lambda: 1 // 0, "x", None)


def test_answers_are_in_the_order_of_the_questions() -> None:
    """Whichever comes first."""
    last = threading.Event()

    def question(number: int) -> int:
        if number == AT_ONCE - 1:
            last.set()
        assert last.wait(WAIT), "they are asked at once"
        return -number

    assert ask_each(question, range(100)) == [-number for number in range(100)]


def test_the_first_failure_ends_it() -> None:
    """It waits for no other, and those that have not begun do not begin."""
    release, begun = threading.Event(), []

    def question(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise SourceUnavailable("the bucket is gone")
        release.wait(WAIT)

    try:
        with pytest.raises(SourceUnavailable, match="is gone"):
            ask_each(question, range(100))
        assert len(begun) <= AT_ONCE + 1
    finally:
        release.set()


# -- which files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "dropped"),
    [
        (
            {"config.json", "model.safetensors.index.json", "model-00001-of-00051.safetensors"},
            {"consolidated.safetensors.index.json", "consolidated-00001-of-00051.safetensors"},
        ),
        ({"params.json", "consolidated.safetensors.index.json", "consolidated-00001-of-00002.safetensors"}, set()),
        ({"model.pt", "config.json"}, {"training_args.bin"}),
        ({"consolidated.safetensors", "params.json", "eagle/model.safetensors"}, set()),
        ({"eagle/model.safetensors", "x/model.safetensors"}, {"x/consolidated.safetensors"}),
        ({"pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt"}, {"model.pt", "onnx/model.onnx"}),
        ({"model.safetensors"}, {"colbert_linear.pt", "pytorch_model.bin"}),
        ({"m.Q6_K.gguf-split-a", "m.Q6_K.gguf-split-b"}, {"pytorch_model.bin"}),
    ],
    ids=["index", "only consolidated", "training", "folder", "same folder", "bin and pt", "safetensors", "parts"],
)
def test_what_an_engine_loads(kept: set[str], dropped: set[str]) -> None:
    assert loadable(kept | dropped) == kept


@pytest.mark.parametrize(
    ("paths", "variants"),
    [
        (["M-Q4_K_M-imatrix.gguf", "M-Q5_K_M-imatrix.gguf"], [["M-Q4_K_M-imatrix.gguf"], ["M-Q5_K_M-imatrix.gguf"]]),
        (["imatrix.gguf", "M-Q4_K_M.gguf", "M.imatrix.gguf"], [["M-Q4_K_M.gguf"]]),
        (
            ["m.Q4_K_M.gguf", "m.Q6_K.gguf-split-a", "m.Q6_K.gguf-split-b"],
            [["m.Q4_K_M.gguf"], ["m.Q6_K.gguf-split-a", "m.Q6_K.gguf-split-b"]],
        ),
        (["m.Q8_0.gguf.part1of2", "m.Q8_0.gguf.part2of2"], [["m.Q8_0.gguf.part1of2", "m.Q8_0.gguf.part2of2"]]),
    ],
    ids=["imatrix quants", "an imatrix", "split", "parts"],
)
def test_variants(paths: list[str], variants: list[list[str]]) -> None:
    assert gguf_variants(paths) == variants
    assert gguf_variants(loadable(paths)) == variants
