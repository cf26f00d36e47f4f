"""Faults 08, 18 and 20 where it matters what is known beforehand: nothing, a pin, the last fetch, or chunk sums."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from modelstore import Store
from modelstore.digest import CHUNK_SIZE, ChunkSums, Digest
from modelstore.errors import SourceChanged, SourceCorrupt, SourceUnavailable
from modelstore.source_url import SourceURL
from modelstore.sources.web import WebSource
from modelstore.transfer.download import Job, download
from tests.faults import bend
from tests.faults.bend import Blow
from tests.faults.harness import BODY, MIB, check_published
from tests.faults.server import FaultServer, Resource
from tests.faults.wire import Answer, Request
from tests.support import blob, sha256_of, visible
from tests.support.httpserver import PatternBody

OTHER = PatternBody(BODY.size, seed=9)
WRONG_AT = CHUNK_SIZE + 12_345


def fetch(root: Path, url: str, **options: bool) -> str:
    model = Store([root]).fetch(url, connections=3, **options)  # type: ignore[arg-type]
    check_published(root)
    return sha256_of(model.path / "m.gguf")


def flip(resource: Resource, *, times: int | None = None) -> list[Request]:
    """One bit is wrong in every answer that has that byte, or in the first so many; those requests are listed."""
    struck: list[Request] = []

    def script(request: Request, answer: Answer) -> None:
        if answer.start <= WRONG_AT < answer.stop and (times is None or len(struck) < times):
            struck.append(request)
            answer.flip = WRONG_AT

    resource.script = script
    return struck


def flipped() -> bytes:
    data = bytearray(b"".join(BODY.read(0, BODY.size)))
    data[WRONG_AT] ^= 1
    return bytes(data)


def test_a_bit_flip_where_nothing_is_known(server: FaultServer, root: Path) -> None:
    """It cannot be detected: the first fetch of a file without a digest takes what came, and remembers it.

    What is promised is that it is noticed the next time, since the digest first seen is remembered.
    """
    resource = server.add("/m.gguf", BODY)
    flip(resource)
    assert fetch(root, resource.url) == sha256_of(flipped())
    resource.script = None
    resource.etag = '"another"'
    shutil.rmtree(root / "blobs")
    shutil.rmtree(root / "models")
    with pytest.raises((SourceChanged, SourceCorrupt)):
        fetch(root, resource.url)
    assert not (root / "models").exists() or not list((root / "models").iterdir())


@pytest.mark.parametrize("ranges", [True, False])
def test_a_bit_flip_under_a_pin_names_both_digests(server: FaultServer, root: Path, ranges: bool) -> None:
    resource = server.add("/m.gguf", BODY, ranges=ranges)
    struck = flip(resource)
    with pytest.raises(SourceCorrupt) as caught:
        fetch(root, f"{resource.url}#sha256={BODY.sha256}")
    assert BODY.sha256 in str(caught.value)
    assert sha256_of(flipped()) in str(caught.value)
    assert visible(root) == {}
    assert len(struck) <= 4  # a stream's probe may be answered with the whole file, too
    resource.script = None
    assert fetch(root, f"{resource.url}#sha256={BODY.sha256}") == BODY.sha256


# -- chunk sums -----------------------------------------------------------------------------------------------------


def job(resource: Resource, source: WebSource) -> Job:
    """The file with the sums of its chunks, as a trusted tier knows them."""
    (file,) = source.resolve(SourceURL.parse(resource.url)).files
    return Job(file, source, Digest(BODY.sha256), sums=ChunkSums.of(BODY.read(0, BODY.size)))


def test_only_the_bad_chunk_is_fetched_again(server: FaultServer, root: Path) -> None:
    resource = server.add("/m.gguf", BODY)
    struck = flip(resource, times=1)
    store = Store([root])
    with closing(WebSource(store.config)) as source:
        (brought,) = download([job(resource, source)], store.tiers[0], connections=3)
    assert brought.digest == Digest(BODY.sha256)
    check_published(root)
    assert sha256_of(blob(root, BODY.sha256)) == BODY.sha256
    assert len(struck) == 1
    assert server.bytes_sent() <= BODY.size + CHUNK_SIZE + MIB
    again = [request for request in server.log if request.number > struck[0].number and not request.is_probe]
    repeated = [request for request in again if request.start // CHUNK_SIZE == 1]
    assert len(repeated) == 1


def test_a_chunk_that_is_wrong_twice(server: FaultServer, root: Path) -> None:
    resource = server.add("/m.gguf", BODY)
    struck = flip(resource)
    store = Store([root])
    with closing(WebSource(store.config)) as source, pytest.raises(SourceCorrupt) as caught:
        download([job(resource, source)], store.tiers[0], connections=3)
    assert len(struck) == 2
    assert visible(root) == {}
    good = ChunkSums.of(BODY.read(0, BODY.size)).chunks[1]
    bad = ChunkSums.of([flipped()]).chunks[1]
    assert good in str(caught.value)
    assert bad in str(caught.value)


# -- what was known before --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validator", ["etag", "time", "none"])
def test_another_file_under_a_url_that_was_fetched_before(server: FaultServer, root: Path, validator: str) -> None:
    """The digest first seen is remembered; `refresh` is how to accept another."""
    fields = {"etag": {}, "time": {"etag": None}, "none": {"etag": None, "last_modified": None}}[validator]
    resource = server.add("/m.gguf", BODY, **fields)  # type: ignore[arg-type]
    assert fetch(root, resource.url) == BODY.sha256
    shutil.rmtree(root / "blobs")
    shutil.rmtree(root / "models")
    resource.body = OTHER
    if validator == "etag":
        resource.change(OTHER)
    with pytest.raises(SourceChanged):
        fetch(root, resource.url)
    check_published(root)
    assert fetch(root, resource.url, refresh=True) == OTHER.sha256


def test_a_captive_portal_under_a_pin(server: FaultServer, root: Path) -> None:
    """From the first request on, so that size and type are the portal's; the pin tells."""
    resource = server.add("/m.gguf", BODY)
    how = bend.status(200, bend.HTML, Content_Type="text/html")
    resource.script = lambda request, answer: how(Blow(server, resource, request, answer, 0))
    with pytest.raises((SourceCorrupt, SourceUnavailable)):
        fetch(root, f"{resource.url}#sha256={BODY.sha256}")
    assert visible(root) == {}
    resource.script = None
    assert fetch(root, f"{resource.url}#sha256={BODY.sha256}") == BODY.sha256


# -- at the end of the file (fault 24) --------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
def test_an_empty_file(server: FaultServer, root: Path, ranges: bool) -> None:
    """`bytes */0` to its first byte is right."""
    resource = server.add("/m.gguf", b"", ranges=ranges)
    assert fetch(root, resource.url) == sha256_of(b"")


@pytest.mark.parametrize("size", [1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1])
@pytest.mark.parametrize("ranges", [True, False])
def test_sizes_about_a_chunk(server: FaultServer, root: Path, size: int, ranges: bool) -> None:
    body = PatternBody(size, seed=3)
    resource = server.add("/m.gguf", body, ranges=ranges)
    assert fetch(root, resource.url) == body.sha256
    if ranges:
        assert sum(request.body_bytes for request in server.log if not request.is_probe) <= size
