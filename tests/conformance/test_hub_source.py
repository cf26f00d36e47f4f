"""hf:// by the suite that any source must pass, and what a range of a file beyond 50 GB is."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest

from modelstore.config import load_config
from modelstore.errors import SourceChanged
from modelstore.source_url import SourceURL
from modelstore.sources.base import Source
from modelstore.sources.huggingface import HuggingFaceSource
from modelstore.testing import SourceCase, SourceTests
from tests.faults.wire import Answer, Request
from tests.support.httpserver import PatternBody
from tests.support.hub import Hub

BODY = random.Random(2).randbytes(2_500_000)
TREE = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "config.json": b"{}",
    "merges.txt": BODY[1:],  # not an LFS file
    "model.safetensors": BODY,
    "sub/deep/empty": b"",
    "sub/\N{LATIN SMALL LETTER U WITH DIAERESIS}mlaut and space": b"x",
}


@pytest.fixture
def source(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """The source in this process, where the Hub's client has read its environment already."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    source = HuggingFaceSource(load_config(environ={}))
    yield source
    source.close()


class TestHub(SourceTests):
    @pytest.fixture
    def case(self, hub: Hub) -> SourceCase:
        self.repo = hub.repo("acme/tiny", TREE)
        hub.page_size = 3
        return SourceCase("hf://acme/tiny", TREE, "hf://acme/nothing")

    def test_a_change_does_not_go_unnoticed(self, source: Source, case: SourceCase) -> None:
        """A commit stays: what was resolved can still be read, and what is resolved now is another."""
        before = source.resolve(SourceURL.parse(case.url))
        self.repo.commit({path: bytes(len(body)) for path, body in TREE.items()})
        for file in before.files:
            assert b"".join(source.open_range(file, 0, file.size)) == TREE[file.path] if file.size else True
        after = source.resolve(SourceURL.parse(case.url))
        assert before.revision != after.revision
        for old, new in zip(before.files, after.files, strict=True):
            known = (old.digest, old.git_sha1) != (new.digest, new.git_sha1)
            assert not old.size or known


class TestOneFile(SourceTests):
    @pytest.fixture
    def case(self, hub: Hub) -> SourceCase:
        self.hub = hub
        hub.repo("acme/tiny", TREE)
        return SourceCase("hf://acme/tiny/model.safetensors", {"model.safetensors": BODY}, "hf://acme/tiny/model.bin")

    def change(self, case: SourceCase) -> None:
        """Other bytes at the same commit, as only a Hub that lies would have it: what it says with a redirect tells."""
        repo = self.hub.repos["acme/tiny"]
        commit = repo.commit({**TREE, "model.safetensors": bytes(len(BODY))})
        self.hub.script = lambda _, answer: answer.set("X-Repo-Commit", commit)


def test_a_file_beyond_50_gb(hub: Hub, source: Source) -> None:
    """The real client refuses it without Xet. Ranges of it are read here and there, over 32 and 64 bits."""
    size = (1 << 36) + 12345
    hub.repo("acme/large", {"model.safetensors": Large(size)})
    (file,) = source.resolve(SourceURL.parse("hf://acme/large")).files
    assert file.size == size > 50_000_000_000
    for start in (0, (1 << 32) - 5, size - 1000):
        found = b"".join(source.open_range(file, start, min(size, start + 1000)))
        assert found == b"".join(PatternBody(size).read(start, min(size, start + 1000)))
    resolved = [request for request in hub.log if "/resolve/" in request.path]
    assert resolved
    assert hub.cdn.bytes_sent() <= 3000


def test_an_answer_that_is_refused_leaves_no_connection_open(hub: Hub, source: Source) -> None:
    hub.repo("acme/tiny", TREE)

    def refused() -> None:
        other = HuggingFaceSource(load_config(environ={}))
        (file,) = other.resolve(SourceURL.parse("hf://acme/tiny/model.safetensors")).files
        list(other.open_range(file, 0, 1000))
        hub.cdn.expire()  # so that the Hub is asked again, over the connection that is there
        hub.script = lambda _, answer: answer.set("X-Repo-Commit", "0" * 40)
        with pytest.raises(SourceChanged):
            list(other.open_range(file, 1000, 2000))
        other.close()

    gc.collect()  # what others left
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refused()
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_ranges_of_two_commits_are_not_put_together(hub: Hub, source: Source) -> None:
    repo = hub.repo("acme/tiny", TREE)
    resolved = source.resolve(SourceURL.parse("hf://acme/tiny"))
    (file,) = [file for file in resolved.files if file.path == "model.safetensors"]
    commit = repo.commit({**TREE, "model.safetensors": bytes(len(BODY))})

    def later(request: Request, answer: Answer) -> None:
        if request.nth > 1:
            answer.set("X-Linked-ETag", f'"{repo.commits[commit].files["model.safetensors"].body.sha256}"')

    hub.cdn.expire()
    hub.script = later
    borders = pairwise([0, 1_000_000, 2_000_000, len(BODY)])
    first = next(borders)
    assert b"".join(source.open_range(file, *first)) == BODY[: first[1]]
    hub.cdn.expire()
    with pytest.raises(SourceChanged):
        for start, stop in borders:
            list(source.open_range(file, start, stop))


@dataclass(frozen=True)
class Large(PatternBody):
    """Nobody would wait for its digest."""

    @property
    def sha256(self) -> str:
        return "ab" * 32
