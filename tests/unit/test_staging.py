"""How a blob gets its name: staged, hashed, synced, renamed, and nothing is left when that fails."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from modelstore.config import TierConfig
from modelstore.digest import ChunkSums, Digest
from modelstore.errors import BlobCorrupt, ModelStoreError, NoSpace, TierUnavailable
from modelstore.manifest import Ref
from modelstore.tiers.directory import DirectoryTier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DATA = b"the bytes of a model" * 100
DIGEST = Digest.of(DATA)
SUMS = ChunkSums.of([DATA])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def tier(root: Path) -> DirectoryTier:
    """A tier whose directories are there: what is observed from here on is about one blob."""
    tier = DirectoryTier(TierConfig(str(root), "nvme"))
    with tier.ingest(1, None) as ingest:
        ingest.write_at(0, b"x")
        ingest.commit(ChunkSums.of([b"x"]))
    return tier


def store(tier: DirectoryTier, data: bytes = DATA, expected: Digest | None = None) -> Digest:
    with tier.ingest(len(data), expected) as ingest:
        ingest.write_at(0, data)
        return ingest.commit(ChunkSums.of([data]))


def blob(root: Path, digest: Digest = DIGEST) -> Path:
    return root / "blobs" / digest.filename


def assert_nothing_left(root: Path) -> None:
    assert not blob(root).exists()
    assert not list((root / ".modelstore/ingest").iterdir())
    assert not (root / f".modelstore/sums/{DIGEST.filename}.json").exists()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(call, path) of every call on which durability rests, in order."""
    seen: list[tuple[str, str]] = []

    def watch(name: str, path_of: Callable[..., str]) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, path_of(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "fchmod", "pwrite"):
        watch(name, lambda fd, *_: os.readlink(f"/proc/self/fd/{fd}"))
    watch("rename", lambda source, target, *_: f"{source} -> {target}")
    return seen


def index(events: list[tuple[str, str]], call: str, path: str) -> int:
    return next(number for number, event in enumerate(events) if event[0] == call and path in event[1])


def test_a_blob_is_written_synced_named_and_its_name_synced(
    tier: DirectoryTier, root: Path, events: list[tuple[str, str]]
) -> None:
    store(tier)
    named = index(events, "rename", f"-> {blob(root)}")
    staged = events[named][1].partition(" -> ")[0]
    written = max(number for number, event in enumerate(events) if event == ("pwrite", staged))
    synced = index(events, "fsync", staged)
    assert written < synced < named
    assert events[named + 1] == ("fsync", f"{root}/blobs")
    assert os.path.dirname(staged) == f"{root}/.modelstore/ingest"


def test_the_mode_is_as_durable_as_the_bytes(tier: DirectoryTier, root: Path, events: list[tuple[str, str]]) -> None:
    """Set after the fsync, it may be lost with the power, and the blob be unreadable for other users."""
    store(tier)
    staged = events[index(events, "rename", f"-> {blob(root)}")][1].partition(" -> ")[0]
    assert index(events, "fchmod", staged) < index(events, "fsync", staged)


def test_a_ref_is_written_synced_named_and_its_name_synced(
    tier: DirectoryTier, root: Path, events: list[tuple[str, str]]
) -> None:
    ref = Ref("https://h/m", DIGEST, None, {}, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")
    tier.write_ref(ref.key, ref)
    assert [call for call, _ in events] == ["pwrite", "fchmod", "fsync", "rename", "fsync"]
    assert len({path.partition(" -> ")[0] for _, path in events[:4]}) == 1
    assert events[3][1].endswith(f"-> {root}/.modelstore/refs/{ref.key}.json")
    assert events[4][1] == f"{root}/.modelstore/refs"


def test_new_directories_are_durable_in_their_parents(root: Path, events: list[tuple[str, str]]) -> None:
    store(DirectoryTier(TierConfig(str(root), "nvme")))
    synced = [path for call, path in events[: index(events, "rename", f"-> {blob(root)}")] if call == "fsync"]
    assert {str(root.parent), str(root), f"{root}/.modelstore"} <= set(synced)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store(DirectoryTier(TierConfig(str(root), "nvme")))
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o7777 for path in (root, *root.rglob("*"))}
    assert modes.pop(blob(root)) == 0o444
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o755}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o644}


# -- failures ----------------------------------------------------------------------------------------------------------


def fail(
    monkeypatch: pytest.MonkeyPatch, name: str, code: int, when: Callable[..., bool] = lambda *_: True
) -> list[int]:
    """Let `os.name` fail; returns a list that grows with every call that was failed."""
    failed: list[int] = []
    real: Callable[..., Any] = getattr(os, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not when(*args):
            return real(*args, **kwargs)
        failed.append(code)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, call)
    return failed


def is_staged(fd_or_path: int | str, *_: Any) -> bool:
    path = os.readlink(f"/proc/self/fd/{fd_or_path}") if isinstance(fd_or_path, int) else str(fd_or_path)
    return path.endswith(".staged")


KINDS = {errno.ENOSPC: NoSpace, errno.EDQUOT: NoSpace, errno.EIO: TierUnavailable, errno.EROFS: TierUnavailable}


@pytest.mark.parametrize("call", ["open", "pwrite", "pread", "fsync", "fchmod", "rename"])
@pytest.mark.parametrize(("code", "kind"), KINDS.items(), ids=map(errno.errorcode.get, KINDS))
def test_a_failure_is_named_and_leaves_nothing(
    tier: DirectoryTier, root: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, kind: type[ModelStoreError]
) -> None:
    with monkeypatch.context() as patch:
        failed = fail(patch, call, code, is_staged)
        with pytest.raises(kind) as caught:
            store(tier)
    assert type(caught.value) is kind
    assert caught.value.tier == "nvme"
    assert isinstance(caught.value.__cause__, OSError)
    assert len(failed) == 1  # not tried again
    assert_nothing_left(root)
    assert store(tier) == DIGEST  # the next call just works
    assert blob(root).read_bytes() == DATA


def test_after_a_failed_fsync_no_second_one_is_believed(
    tier: DirectoryTier, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a lost page once; the next fsync of the same file says that all is well."""
    with tier.ingest(len(DATA), DIGEST) as ingest:
        ingest.write_at(0, DATA)
        with monkeypatch.context() as patch:
            fail(patch, "fsync", errno.EIO, is_staged)
            with pytest.raises(TierUnavailable):
                ingest.commit(SUMS)
        with pytest.raises((ModelStoreError, ValueError)):
            ingest.commit(SUMS)
    assert_nothing_left(root)


def test_a_name_that_could_not_be_synced_is_an_error(
    tier: DirectoryTier, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, "fsync", errno.EIO, lambda fd: os.readlink(f"/proc/self/fd/{fd}") == f"{root}/blobs")
    with pytest.raises(TierUnavailable):
        store(tier)


def test_sums_that_cannot_be_written_cost_only_time(
    tier: DirectoryTier, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail(patch, "rename", errno.EIO, lambda _, target: "/sums/" in target)
        assert store(tier) == DIGEST
    assert tier.read_sums(DIGEST) is None
    assert tier.missing([DIGEST]) == set()
    assert tier.read_sums(DIGEST) == SUMS


def test_a_write_that_comes_up_short_goes_on(tier: DirectoryTier, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:7], offset))
    assert store(tier) == DIGEST
    assert blob(root).read_bytes() == DATA


def test_no_space_in_the_middle_of_a_write(tier: DirectoryTier, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if offset >= 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, bytes(data)[: 100 - offset], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(NoSpace):
        store(tier)
    assert_nothing_left(root)


# -- what may not be published -----------------------------------------------------------------------------------------


def test_bytes_of_another_digest_are_not_published(tier: DirectoryTier, root: Path) -> None:
    with pytest.raises(BlobCorrupt):
        store(tier, DATA[:-1] + b"?", DIGEST)
    assert_nothing_left(root)


def test_bytes_that_changed_on_their_way_to_the_file_are_not_published(
    tier: DirectoryTier, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(len(data)), offset))
    with pytest.raises(BlobCorrupt):
        store(tier, DATA, DIGEST)
    assert_nothing_left(root)


@pytest.mark.parametrize("staged", [b"", DATA[:-1], DATA[1:]])
def test_a_part_is_not_published(tier: DirectoryTier, root: Path, staged: bytes) -> None:
    with tier.ingest(len(DATA), None) as ingest:
        ingest.write_at(0, staged)
        with pytest.raises(BlobCorrupt):
            ingest.commit(SUMS)
    assert_nothing_left(root)


def test_sums_of_another_size_are_not_recorded(tier: DirectoryTier, root: Path) -> None:
    with tier.ingest(len(DATA), None) as ingest:
        ingest.write_at(0, DATA)
        with pytest.raises(BlobCorrupt):
            ingest.commit(ChunkSums.of([DATA, b"x"]))
    assert_nothing_left(root)


@pytest.mark.parametrize(("offset", "data"), [(-1, b"x"), (len(DATA), b"x"), (len(DATA) - 1, b"xy"), (2**62, b"x")])
def test_bytes_outside_the_declared_size_are_refused(tier: DirectoryTier, root: Path, offset: int, data: bytes) -> None:
    with tier.ingest(len(DATA), None) as ingest, pytest.raises(ValueError):
        ingest.write_at(offset, data)
    assert_nothing_left(root)


def test_what_is_hashed_is_what_is_published(tier: DirectoryTier, root: Path) -> None:
    """A late writer must not slip bytes under a digest that was computed without them."""
    with tier.ingest(len(DATA), DIGEST) as ingest:
        ingest.write_at(0, DATA)
        ingest.hash_to(len(DATA))
        with pytest.raises((ModelStoreError, ValueError)):
            ingest.write_at(0, b"?")
            ingest.commit(SUMS)
    assert not blob(root).exists()


def test_a_published_blob_cannot_be_written_through_its_ingest(tier: DirectoryTier, root: Path) -> None:
    with tier.ingest(len(DATA), DIGEST) as ingest:
        ingest.write_at(0, DATA)
        ingest.commit(SUMS)
        with pytest.raises((ModelStoreError, ValueError)):
            ingest.write_at(0, b"?")
        assert blob(root).read_bytes() == DATA
    assert blob(root).read_bytes() == DATA


def test_the_digest_is_not_known_before_all_is_hashed(tier: DirectoryTier) -> None:
    with tier.ingest(len(DATA), None) as ingest:
        ingest.write_at(0, DATA)
        with pytest.raises(ValueError):
            _ = ingest.digest
        ingest.hash_to(len(DATA))
        assert ingest.digest == DIGEST
        with pytest.raises(BlobCorrupt):
            ingest.hash_to(len(DATA) + 1)


# -- publishing twice --------------------------------------------------------------------------------------------------


def test_what_is_there_already_is_left_alone(tier: DirectoryTier, root: Path) -> None:
    store(tier)
    before = blob(root).stat()
    store(tier)
    assert blob(root).stat() == before
    assert not list((root / ".modelstore/ingest").iterdir())


@pytest.mark.parametrize("planted", [b"?" * len(DATA), b"short", b""])
def test_a_wrong_file_under_the_name_is_replaced(tier: DirectoryTier, root: Path, planted: bytes) -> None:
    blob(root).write_bytes(planted)
    assert store(tier) == DIGEST
    assert blob(root).read_bytes() == DATA


def test_a_link_under_the_name_is_replaced_and_not_followed(tier: DirectoryTier, root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    blob(root).symlink_to(victim)
    store(tier)
    assert not blob(root).is_symlink()
    assert blob(root).read_bytes() == DATA
    assert victim.read_bytes() == b"precious"


@pytest.fixture
def open_files() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.usefixtures("open_files")
def test_no_descriptor_is_left_open(tier: DirectoryTier, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tier)
    store(tier)
    fail(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(TierUnavailable):
        store(tier, b"other")
