"""Verify, repair and remove: nothing that somebody still needs is lost, and nothing wrong is called right."""

import errno
import os
from pathlib import Path

import pytest

from modelstore import NotCached, SourceChanged, Store, TierUnavailable
from modelstore.config import TierConfig
from modelstore.digest import Digest
from modelstore.manifest import canonical_json
from modelstore.source_url import SourceURL
from modelstore.tiers.directory import DirectoryTier
from modelstore.transfer import tree
from tests.support.httpserver import HttpServer

BODY = b"weights" * 1000
NEWER = b"newer!!" * 1000


def rot(tier: DirectoryTier, body: bytes) -> None:
    """Change a blob so that nothing but its bytes tells."""
    path = Path(tier.local_path(Digest.of(body)))
    state = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"?" + body[1:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def ollama_manifest(tier: DirectoryTier, body: bytes, folder: str = "registry.ollama.ai/library/m") -> Path:
    described = {"mediaType": "application/x", "digest": str(Digest.of(body)), "size": len(body)}
    path = Path(tier.root, "manifests", folder, "latest")
    path.parent.mkdir(parents=True)
    path.write_bytes(canonical_json({"schemaVersion": 2, "config": described, "layers": [described]}))
    return path


# -- remove ---------------------------------------------------------------------------------------------------------


def test_remove_takes_the_model_and_only_it(fast: DirectoryTier, http_server: HttpServer) -> None:
    store = Store([fast])
    gone, stays = (store.fetch(http_server.add(path, BODY).url) for path in ("/a", "/b"))
    other = store.fetch(http_server.add("/c", NEWER).url)
    store.remove(gone.source)
    assert not gone.path.exists()
    assert stays.files["b"].path.read_bytes() == BODY
    assert fast.missing([Digest.of(BODY)]) == set(), "another model needs it"
    store.remove(other.key.short)
    assert fast.missing([Digest.of(NEWER)]) == {Digest.of(NEWER)}
    with pytest.raises(NotCached):
        store.remove(gone.source)


@pytest.mark.parametrize("how", ["plain", "behind a link", "damaged"])
def test_remove_keeps_what_a_named_manifest_needs(
    fast: DirectoryTier, http_server: HttpServer, tmp_path: Path, how: str
) -> None:
    store = Store([fast])
    url = http_server.add("/m.gguf", BODY).url
    store.fetch(url)
    manifest = ollama_manifest(fast, BODY)
    if how == "behind a link":
        manifest.parent.rename(tmp_path / "elsewhere")
        manifest.parent.symlink_to(tmp_path / "elsewhere")
    elif how == "damaged":
        manifest.write_text("{")
    store.remove(url)
    assert Path(fast.local_path(Digest.of(BODY))).read_bytes() == BODY


@pytest.mark.parametrize("recorded", [True, False])
def test_remove_leaves_files_of_others_in_the_default_directory(
    fast: DirectoryTier, http_server: HttpServer, tmp_path: Path, recorded: bool
) -> None:
    store = Store([fast])
    url = http_server.add("/m.gguf", BODY).url
    store.fetch(url, to=None if recorded else tmp_path / "elsewhere")
    theirs = Path(fast.model_path(SourceURL.parse(url).key), "theirs.gguf")
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_text("precious")
    store.remove(url)
    assert theirs.read_text() == "precious"
    assert store.list() == ()


def test_remove_never_shows_half_a_model(
    fast: DirectoryTier, http_server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b", "c"):
        (source / name).write_text(name)
    model = Store([fast]).fetch(source)
    seen: list[bool] = []
    real = tree._remove
    monkeypatch.setattr(tree, "_remove", lambda folder: (seen.append(model.path.exists()), real(folder)))
    Store([fast]).remove(source)
    assert seen == [False], "its name goes before its files"


def test_remove_says_that_it_cannot(fast: DirectoryTier, http_server: HttpServer) -> None:
    url = http_server.add("/m.gguf", BODY).url
    Store([fast]).fetch(url)
    fixed = Store([DirectoryTier(TierConfig(fast.root, "fixed", "ro"))])
    with pytest.raises(TierUnavailable, match="fixed"):
        fixed.remove(url)
    assert len(fixed.list()) == 1


def test_remove_takes_each_tiers_own_version(fast: DirectoryTier, slow: DirectoryTier, http_server: HttpServer) -> None:
    url = http_server.add("/m.gguf", BODY).url
    Store([slow]).fetch(url)
    http_server.add("/m.gguf", NEWER)
    Store([fast]).fetch(url)
    Store([fast, slow]).remove(url)
    assert [list(tier.walk()) for tier in (fast, slow)] == [[], []]


# -- verify ---------------------------------------------------------------------------------------------------------


def test_verify_knows_each_tiers_own_version(fast: DirectoryTier, slow: DirectoryTier, http_server: HttpServer) -> None:
    url = http_server.add("/m.gguf", BODY).url
    Store([slow]).fetch(url)
    http_server.add("/m.gguf", NEWER)
    Store([fast]).fetch(url)
    assert Store([fast, slow]).verify(url).damaged == []


def test_repair_claims_only_what_it_did(fast: DirectoryTier, slow: DirectoryTier, http_server: HttpServer) -> None:
    url = http_server.add("/m.gguf", BODY).url
    for tier in (fast, slow):
        Store([tier]).fetch(url)
    rot(fast, BODY)
    rot(slow, BODY)
    store = Store([fast, DirectoryTier(TierConfig(slow.root, "fixed", "ro"))])
    report = store.verify(repair=True)
    assert {damage.where for damage in report.repaired} == {"fast"}
    assert {damage.where for damage in report.remaining} == {"fixed"}
    assert Store([fast]).fetch(url).files["m.gguf"].path.read_bytes() == BODY


def test_verify_goes_on_after_a_blob_that_cannot_be_read(
    fast: DirectoryTier, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store([fast])
    for path, body in (("/a", BODY), ("/b", NEWER)):
        store.fetch(http_server.add(path, body).url)
    real = fast._check

    def check(digest: Digest, sums: object) -> None:
        if digest == Digest.of(BODY):
            raise fast._unavailable("verify", OSError(errno.EIO, os.strerror(errno.EIO)))
        real(digest, None)

    monkeypatch.setattr(fast, "_check", check)
    report = store.verify()
    assert [damage.what for damage in report.damaged] == [str(Digest.of(BODY))]
    assert report.checked > 6
    assert Path(fast.local_path(Digest.of(BODY))).exists(), "it may be readable tomorrow"


def test_a_good_blob_is_not_quarantined_for_the_bad_one_before_it(fast: DirectoryTier, http_server: HttpServer) -> None:
    """Two processes find the same damage; one has put it right by the time that the other acts."""
    url = http_server.add("/m.gguf", BODY).url
    Store([fast]).fetch(url)
    rot(fast, BODY)
    other = DirectoryTier(TierConfig(fast.root, "other"))
    with pytest.raises(Exception, match="another digest"):
        fast.verify(Digest.of(BODY))
    Store([other]).verify(repair=True)
    fast.quarantine(Digest.of(BODY))
    assert Path(fast.local_path(Digest.of(BODY))).read_bytes() == BODY
    assert len(list(Path(fast.root, ".modelstore/quarantine").iterdir())) == 1


@pytest.mark.parametrize("loss", ["gone", "damaged"])
def test_a_lost_manifest_does_not_let_the_source_change(
    fast: DirectoryTier, http_server: HttpServer, loss: str
) -> None:
    url = http_server.add("/m.gguf", BODY).url
    store = Store([fast])
    manifest = store.fetch(url).manifest
    path = Path(fast.local_path(manifest.digest))
    path.chmod(0o644)
    path.unlink() if loss == "gone" else path.write_text("{}")
    assert store.fetch(url).manifest.digest == manifest.digest, "the source still has it"
    path.unlink()
    http_server.add("/m.gguf", NEWER)
    with pytest.raises(SourceChanged):
        store.fetch(url)
    assert store.fetch(url, refresh=True).manifest.digest != manifest.digest


def test_full_on_a_read_only_root_gives_no_damaged_copy(fast: DirectoryTier, http_server: HttpServer) -> None:
    url = http_server.add("/m.gguf", BODY).url
    model = Store([fast]).fetch(url)
    file = model.files["m.gguf"].path
    body = file.read_bytes()
    file.unlink()
    file.write_bytes(body)  # a copy, as on another file system
    (record,) = list(fast.layouts())
    state = file.stat()
    old = tree.LayoutRecord.from_json(record)
    assert old is not None
    identity = {"m.gguf": (state.st_ino, state.st_mtime_ns, state.st_size)}
    fast.write_layout(str(model.path), tree.LayoutRecord(old.target, old.layout, old.manifest, identity).to_json())
    file.write_bytes(b"?" + body[1:])
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    fixed = Store([DirectoryTier(TierConfig(fast.root, "fixed", "ro"))])
    with pytest.raises(TierUnavailable):
        fixed.fetch(url, verify="full")
    assert Store([fast]).fetch(url, verify="full").files["m.gguf"].path.read_bytes() == body


def test_an_adopted_blob_is_made_durable(fast: DirectoryTier, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(fast.root, "blobs", Digest.of(BODY).filename)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    assert fast.missing([Digest.of(BODY)]) == set()
    assert {str(path), str(path.parent)} <= set(synced)


def test_remove_during_a_fetch_is_fetched_again(
    fast: DirectoryTier, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last byte and the layout another process removes the model."""
    url = http_server.add("/m.gguf", BODY).url
    real = tree.Tree._build
    raced: list[str] = []

    def build(self: tree.Tree, staged: str) -> None:
        if not raced:
            raced.append(staged)
            Store([DirectoryTier(TierConfig(fast.root, "other"))]).remove(url)
        real(self, staged)

    monkeypatch.setattr(tree.Tree, "_build", build)
    assert Store([fast]).fetch(url).files["m.gguf"].path.read_bytes() == BODY
    assert raced
