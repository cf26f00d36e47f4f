"""The store: which place a model comes from, what is remembered, what happens when a place fails."""

import fcntl
import os
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from modelstore import (
    Cancelled,
    ConfigError,
    LayoutError,
    NotCached,
    SourceChanged,
    SourceCorrupt,
    SourceUnavailable,
    Store,
    TierUnavailable,
    manifest,
)
from modelstore.config import Config, TierConfig
from modelstore.digest import Digest
from modelstore.progress import ProgressUpdate
from modelstore.source_url import SourceURL
from modelstore.tiers.base import Ingest
from modelstore.tiers.directory import DirectoryTier
from modelstore.tiers.memory import MemoryTier
from modelstore.transfer.http import HttpClient, HttpFile
from modelstore.transfer.tree import Tree
from tests.support.httpserver import BytesBody, HttpServer

BODY = b"weights" * 1000
NEWER = b"newer!!" * 1000


def blob_of(tier: DirectoryTier, body: bytes) -> Path:
    return Path(tier.local_path(Digest.of(body)))


def overwrite(path: Path, body: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(body)


# -- several tiers -------------------------------------------------------------------------------------------------


def test_what_a_slower_tier_has_is_copied_up_without_the_origin(
    fast: DirectoryTier, slow: DirectoryTier, http_server: HttpServer
) -> None:
    url = http_server.add("/m.gguf", BODY).url
    Store([slow]).fetch(url)
    asked = len(http_server.requests)
    model = Store([fast, slow]).fetch(url)
    assert len(http_server.requests) == asked
    assert model.bytes == {
        "origin": 0,
        "reused": 0,
        "fast": 0,
        "slow": sum(model.manifest.blobs.values()) + len(model.manifest.raw),
    }
    assert str(model.path).startswith(fast.root)
    assert model.files["m.gguf"].path.read_bytes() == BODY
    assert Store([fast]).fetch(url, offline=True).manifest.digest == model.manifest.digest


def test_a_read_only_tier_is_read_and_not_written(
    fast: DirectoryTier, slow: DirectoryTier, http_server: HttpServer
) -> None:
    url = http_server.add("/m.gguf", BODY).url
    Store([slow]).fetch(url)
    fixed = DirectoryTier(TierConfig(slow.root, "fixed", "ro"))
    before = {path: path.stat().st_mtime_ns for path in Path(slow.root).rglob("*")}
    assert Store([fixed]).fetch(url).path == Path(slow.model_path(SourceURL.parse(url).key))
    assert str(Store([fixed, fast]).fetch(url).path).startswith(fast.root)
    assert {path: path.stat().st_mtime_ns for path in Path(slow.root).rglob("*")} == before
    with pytest.raises(TierUnavailable, match="no tier can be written"):
        Store([fixed]).fetch(http_server.add("/other", BODY).url)


def test_wrong_bytes_in_a_slower_tier_are_passed_over_for_the_origin(
    fast: DirectoryTier, slow: DirectoryTier, http_server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = http_server.add("/m.gguf", BODY).url
    Store([slow]).fetch(url)
    path = blob_of(slow, BODY)
    state = path.stat()
    overwrite(path, b"x" + BODY[1:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # rot: nothing but the bytes tells
    model = Store([fast, slow]).fetch(url)
    assert model.files["m.gguf"].path.read_bytes() == BODY
    assert model.bytes["origin"] == len(BODY)
    assert "tier slow" in caplog.text
    assert "passing it over" in caplog.text


def test_a_tier_that_cannot_be_opened_is_passed_over(
    fast: DirectoryTier, slow: DirectoryTier, http_server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = http_server.add("/m.gguf", BODY).url
    Path(slow.root, ".modelstore").mkdir(parents=True)
    Path(slow.root, ".modelstore", "format.json").write_text('{"version": 99}')
    store = Store([slow, fast])
    assert store.fetch(url).files["m.gguf"].path.read_bytes() == BODY
    store.fetch(url)
    assert caplog.text.count("version 99") == 1, "reported once"
    with pytest.raises(TierUnavailable, match=r"tier slow: .*version 99"):
        Store([slow]).fetch(url)


def test_every_cause_is_named_when_no_tier_can_be_opened(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.touch()
    with pytest.raises(TierUnavailable, match=r"one: .*two: ") as caught:
        Store(files).list()
    assert caught.value.__cause__ is not None


def test_memory_in_front_does_not_keep_a_model_from_being_laid_out(
    fast: DirectoryTier, http_server: HttpServer
) -> None:
    url = http_server.add("/m.gguf", BODY).url
    assert Store([MemoryTier(), fast]).fetch(url).files["m.gguf"].path.read_bytes() == BODY


# -- what is remembered --------------------------------------------------------------------------------------------


def test_a_source_that_changed_is_not_taken_for_what_was_lost(fast: DirectoryTier, http_server: HttpServer) -> None:
    url = http_server.add("/m.gguf", BODY).url
    store = Store([fast])
    first = store.fetch(url).manifest.digest
    http_server.add("/m.gguf", NEWER)
    blob_of(fast, BODY).unlink()
    (store.fetch(url).path / "m.gguf").unlink()
    with pytest.raises(SourceChanged, match="refresh"):
        store.fetch(url)
    assert store.list()[0].ref.manifest == first
    assert store.fetch(url, refresh=True).files["m.gguf"].path.read_bytes() == NEWER


def test_wrong_bytes_under_the_same_etag_are_corrupt_and_not_changed(
    fast: DirectoryTier, http_server: HttpServer
) -> None:
    url = http_server.add("/m.gguf", BODY, etag='"same"').url
    store = Store([fast])
    store.fetch(url)
    http_server.add("/m.gguf", NEWER, etag='"same"')
    blob_of(fast, BODY).unlink()
    (Path(fast.model_path(SourceURL.parse(url).key)) / "m.gguf").unlink()
    with pytest.raises(SourceCorrupt):
        store.fetch(url)


def test_an_old_ref_is_checked_again(fast: DirectoryTier, http_server: HttpServer) -> None:
    url = http_server.add("/m.gguf", BODY).url
    Store([fast]).fetch(url)
    patient = Store([fast], Config((), max_age=3600.0))
    http_server.add("/m.gguf", NEWER)
    assert patient.fetch(url).files["m.gguf"].path.read_bytes() == BODY
    key = SourceURL.parse(url).key
    ref = fast.read_ref(key)
    assert ref is not None
    fast.write_ref(key, replace(ref, checked="2020-01-01T00:00:00Z"))
    assert Store([fast]).fetch(url).files["m.gguf"].path.read_bytes() == BODY
    assert patient.fetch(url, offline=True).files["m.gguf"].path.read_bytes() == BODY
    assert patient.fetch(url).files["m.gguf"].path.read_bytes() == NEWER
    asked = len(http_server.requests)
    patient.fetch(url)
    assert len(http_server.requests) == asked, "checked just now"


def test_the_cached_copy_stands_if_the_origin_is_gone(
    fast: DirectoryTier, http_server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    origin = http_server.add("/m.gguf", BODY)
    Store([fast]).fetch(origin.url)
    http_server.add("/m.gguf", BODY, status=400)
    assert Store([fast]).fetch(origin.url, refresh=True).files["m.gguf"].path.read_bytes() == BODY
    assert "stands" in caplog.text
    with pytest.raises(SourceUnavailable):
        Store([fast]).fetch(http_server.add("/never", BODY, status=400).url, refresh=True)


def test_a_pin_that_the_cached_copy_does_not_meet_asks_the_source(fast: DirectoryTier, http_server: HttpServer) -> None:
    url = http_server.add("/m.gguf", BODY).url
    store = Store([fast])
    store.fetch(url)
    http_server.add("/m.gguf", NEWER)
    pinned = f"{url}#sha256={Digest.of(NEWER).hex}"
    with pytest.raises(NotCached):
        store.fetch(pinned, offline=True)
    assert store.fetch(pinned).files["m.gguf"].path.read_bytes() == NEWER
    older = store.fetch(f"{url}#sha256={Digest.of(BODY).hex}")
    assert older.files["m.gguf"].path.read_bytes() == BODY, "it is here: who has it at the source does not matter"
    newest = store.fetch(url, refresh=True)
    assert newest.files["m.gguf"].path.read_bytes() == NEWER, "the source's ETag was not tied to the older bytes"


# -- proof ---------------------------------------------------------------------------------------------------------


def test_fast_trusts_its_record_and_full_does_not(fast: DirectoryTier, http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.add("/m.gguf", BODY).url
    store = Store([fast])
    store.fetch(url, to=tmp_path / "copy")
    path = blob_of(fast, BODY)
    state = path.stat()
    overwrite(path, b"x" + BODY[1:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (store.fetch(url, to=tmp_path / "copy").path / "m.gguf").read_bytes() != BODY
    assert (store.fetch(url, to=tmp_path / "copy", verify="full").path / "m.gguf").read_bytes() == BODY
    assert len(list(Path(fast.root, ".modelstore/quarantine").iterdir())) == 1


@pytest.mark.parametrize("proof", ["changed since", "no record", "damaged record"])
def test_a_blob_without_proof_is_hashed_before_it_is_used(
    fast: DirectoryTier, http_server: HttpServer, tmp_path: Path, proof: str
) -> None:
    url = http_server.add("/m.gguf", BODY).url
    store = Store([fast])
    store.fetch(url)
    path = blob_of(fast, BODY)
    (record,) = Path(fast.root, ".modelstore/sums").glob(f"{path.name}.json")
    path.unlink()
    path.write_bytes(b"x" + BODY[1:])  # the same size, another inode
    if proof == "no record":
        record.unlink()
    elif proof == "damaged record":
        record.write_bytes(record.read_bytes()[:50])
    assert (store.fetch(url, to=tmp_path / "out").path / "m.gguf").read_bytes() == BODY
    assert fast.missing([Digest.of(BODY)]) == set()


def test_a_restored_backup_is_proved_once(fast: DirectoryTier, http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.add("/m.gguf", BODY).url
    store = Store([fast])
    store.fetch(url)
    path = blob_of(fast, BODY)
    record = Path(fast.root, ".modelstore/sums", f"{path.name}.json")
    before = record.read_bytes()
    body = path.read_bytes()
    path.unlink()
    path.write_bytes(body)
    asked = len(http_server.requests)
    assert store.fetch(url, to=tmp_path / "out").bytes["origin"] == 0
    assert len(http_server.requests) == asked
    assert record.read_bytes() != before, "the new inode is on record"


# -- control -------------------------------------------------------------------------------------------------------


def test_cancel_ends_the_call_and_publishes_nothing(fast: DirectoryTier, http_server: HttpServer) -> None:
    origin = http_server.add("/m.gguf", BytesBody(bytes(40_000_000)))
    cancel = threading.Event()

    cancel.set()
    with pytest.raises(Cancelled):
        Store([fast]).fetch(origin.url, connections=1, cancel=cancel)
    assert list(fast.walk()) == []
    assert list(fast.refs()) == []


def test_progress_goes_up_to_the_total_and_ends_once(fast: DirectoryTier, http_server: HttpServer) -> None:
    origin = http_server.add("/m.gguf", BytesBody(bytes(20_000_000)), cut_at=17_000_000, cut_times=1)
    updates: list[ProgressUpdate] = []
    caller = threading.current_thread()

    def note(update: ProgressUpdate) -> None:
        assert threading.current_thread() is caller
        updates.append(update)

    Store([fast]).fetch(origin.url, progress=note)
    assert updates[-1] == ProgressUpdate(20_000_000, 20_000_000, 1, 1, done=True)
    assert [update.done for update in updates].count(True) == 1
    assert all(0 <= update.bytes_done <= update.bytes_total for update in updates)


def test_nobody_waits_for_a_lock_for_ever(fast: DirectoryTier, http_server: HttpServer) -> None:
    filelock = pytest.importorskip("filelock")
    origin = http_server.add("/m.gguf", BODY)
    with filelock.UnixFileLock(fast.lock_path(SourceURL.parse(origin.url).key)):
        begun = time.monotonic()
        model = Store([fast], Config((), lock_timeout=0.2)).fetch(origin.url)
    assert time.monotonic() - begun >= 0.2
    assert model.files["m.gguf"].path.read_bytes() == BODY


def test_the_ref_is_written_last(fast: DirectoryTier, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash just before the manifest is there must leave no ref to it."""
    origin = http_server.add("/m.gguf", BODY)
    real = fast.ingest
    put: list[Digest] = []  # the config, and then the manifest

    def fail_for_the_manifest(size: int, expected: Digest | None) -> AbstractContextManager[Ingest]:
        if expected is not None:
            put.append(expected)
        if len(put) == 2:
            raise TierUnavailable("the power is gone")
        return real(size, expected)

    monkeypatch.setattr(fast, "ingest", fail_for_the_manifest)
    with pytest.raises(TierUnavailable):
        Store([fast]).fetch(origin.url)
    assert list(fast.refs()) == []
    assert not Path(fast.root, "models").exists()
    monkeypatch.undo()
    assert Store([fast]).fetch(origin.url).files["m.gguf"].path.read_bytes() == BODY


# -- a root that cannot be written ----------------------------------------------------------------------------------


def test_a_read_only_copy_stands_when_it_is_old(
    fast: DirectoryTier, http_server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = http_server.add("/m.gguf", BODY).url
    Store([fast]).fetch(url)
    fixed = Store([DirectoryTier(TierConfig(fast.root, "fixed", "ro"))], Config((), max_age=0.0))
    assert fixed.fetch(url).files["m.gguf"].path.read_bytes() == BODY
    assert "stands" in caplog.text
    assert fixed.fetch(url, refresh=True).bytes["origin"] == 0
    assert fixed.fetch(url, refresh=True, offline=True).bytes["origin"] == 0


def test_a_root_whose_inside_belongs_to_somebody_else_is_not_writable(
    fast: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fast.writable
    Store([fast]).list()
    fast.lock_path(SourceURL.parse("https://h/m").key)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "/blobs" not in str(path) and real(path, mode))
    assert not DirectoryTier(TierConfig(fast.root, "again")).writable


@pytest.mark.parametrize("location", ["file://relative", "/a\0b", "/a\nb"])
def test_a_location_that_is_none_is_refused(location: str) -> None:
    with pytest.raises(ConfigError):
        TierConfig.parse(location)


@pytest.mark.parametrize("target", ["", "a\0b", "a\udcff"])
def test_a_target_that_cannot_be_named_is_refused(fast: DirectoryTier, tmp_path: Path, target: str) -> None:
    with pytest.raises(ConfigError):
        Store([fast]).fetch(tmp_path, to=target)


@pytest.mark.parametrize("target", ["blobs/x", ".modelstore/x", "", "models/a/b"])
def test_a_target_among_the_stores_own_files_is_refused(fast: DirectoryTier, tmp_path: Path, target: str) -> None:
    with pytest.raises(LayoutError, match="own files"):
        Store([fast]).fetch(tmp_path, to=os.path.join(fast.root, target))


# -- path -----------------------------------------------------------------------------------------------------------


def test_path_copies_nothing_and_waits_for_nobody(
    fast: DirectoryTier, slow: DirectoryTier, http_server: HttpServer
) -> None:
    filelock = pytest.importorskip("filelock")
    url = http_server.add("/m.gguf", BODY).url
    Store([slow]).fetch(url)
    with filelock.UnixFileLock(fast.lock_path(SourceURL.parse(url).key)):
        assert str(Store([fast, slow]).path(url)).startswith(slow.root)
    assert list(fast.walk()) == []


# -- what could not be noticed by looking at the happy path -----------------------------------------------------------


def test_cancel_is_heard_while_the_source_asks_for_patience(fast: DirectoryTier, http_server: HttpServer) -> None:
    origin = http_server.add("/m.gguf", BODY, status=503, headers={"Retry-After": "100"})
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        Store([fast]).fetch(origin.url, cancel=cancel)
    assert time.monotonic() - begun < 50


def test_an_answer_that_drops_its_only_validator_is_not_believed(fast: DirectoryTier, http_server: HttpServer) -> None:
    origin = http_server.add("/m.gguf", BytesBody(bytes(40_000_000)), etag=None)
    file = HttpFile(origin.url, origin.url)
    client = HttpClient("test")
    client.probe(file)
    assert file.pinned
    http_server.add("/m.gguf", BytesBody(b"x" * 40_000_000), etag=None, last_modified=None)
    with pytest.raises(SourceChanged):
        list(client.read_range(file, 0, 10))
    client.close()


def test_too_many_files_for_a_manifest_are_refused_before_any_is_fetched(fast: DirectoryTier, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):
        (source / f"{number}").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "MAX_MANIFEST_SIZE", 5000)
        with pytest.raises(SourceCorrupt, match="40 files"):
            Store([fast]).fetch(source)
    assert list(fast.walk()) == []


def test_what_a_killed_process_took_is_given_back_when_it_is_needed(
    fast: DirectoryTier, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = http_server.add("/m.gguf", BODY).url
    fast.lock_path(SourceURL.parse(url).key)
    left = Path(fast.root, ".modelstore/ingest/dead.staged")
    left.write_bytes(bytes(1000))
    os.utime(left, (1, 1))
    alive = Path(fast.root, ".modelstore/ingest/alive.staged")
    with alive.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(fast, "free_bytes", lambda: 0 if left.exists() else 10**12)
        assert Store([fast]).fetch(url).files["m.gguf"].path.read_bytes() == BODY
        assert (left.exists(), alive.exists()) == (False, True)


def test_a_record_is_of_what_was_built_and_not_of_what_is_there_by_then(
    fast: DirectoryTier, http_server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models for one target: the one that is replaced must not remember the other's files as its own."""
    one, two = (http_server.add(f"/{name}/m.gguf", body).url for name, body in (("a", BODY), ("b", NEWER)))
    target = tmp_path / "target"
    real = Tree._remember

    def remember(self: Tree, identities: dict[str, tuple[int, int, int]]) -> None:
        monkeypatch.setattr(Tree, "_remember", real)
        Store([fast]).fetch(two, to=target)
        real(self, identities)

    monkeypatch.setattr(Tree, "_remember", remember)
    Store([fast]).fetch(one, to=target)
    assert (target / "m.gguf").read_bytes() == NEWER
    Store([fast]).fetch(one, to=target)
    assert (target / "m.gguf").read_bytes() == BODY


def test_lost_records_do_not_stop_an_update(fast: DirectoryTier, http_server: HttpServer) -> None:
    url = http_server.add("/m.gguf", BODY).url
    store = Store([fast])
    store.fetch(url)
    for record in Path(fast.root, ".modelstore/layouts").iterdir():
        record.unlink()
    http_server.add("/m.gguf", NEWER)
    assert store.fetch(url, refresh=True).files["m.gguf"].path.read_bytes() == NEWER


def test_what_killed_processes_left_beside_a_target_goes(
    fast: DirectoryTier, http_server: HttpServer, tmp_path: Path
) -> None:
    url = http_server.add("/m.gguf", BODY).url
    store = Store([fast])
    store.fetch(url, to=tmp_path / "out" / "model")
    left = tmp_path / "out" / ".model.0123456789abcdef.modelstore"
    left.mkdir()
    store.verify()
    assert left.exists(), "it may be in use"
    os.utime(left, (0, 0))
    store.verify()
    assert not left.exists()
