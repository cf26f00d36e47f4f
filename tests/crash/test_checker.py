"""The checker complains of each thing that it is there for, and of nothing in a store that is well."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.checker import Limits, Watch, leaks, violations
from tests.crash.lab import SECRET
from tests.support import Modelstore, digests, flip_byte, writable

Violation = Callable[[Path], object]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one model in it."""
    folder = tmp_path_factory.mktemp("checker")
    (folder / "model" / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json", "model.bin"):
        (folder / "model" / name).write_text(f"the content of {name}")
    (folder / "model" / "empty").touch()
    Modelstore(folder).at(folder / "store")("fetch", folder / "model").ok()
    return folder


@pytest.fixture
def good(fetched: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil. Hard links become files of their own."""
    return shutil.copytree(fetched / "store", tmp_path / "store")


def first(folder: Path, pattern: str = "*") -> Path:
    return min(path for path in folder.rglob(pattern) if path.is_file() and path.stat().st_size)


def manifest(root: Path) -> Path:
    return next(path for path in (root / "blobs").iterdir() if b"modelpack" in path.read_bytes() or _lists(path))


def _lists(path: Path) -> bool:
    return b'"layers":[{' in path.read_bytes()


def edit(path: Path, content: bytes) -> None:
    with writable(path):
        path.write_bytes(content)


def in_tree(root: Path) -> Path:
    (model,) = (root / "models").iterdir()
    return model


def own_copy(path: Path) -> Path:
    """A file that is a hard link of its blob becomes one of its own."""
    copy = path.with_suffix(".copy")
    shutil.copy2(path, copy)
    copy.rename(path)
    return path


VIOLATIONS: dict[str, Violation] = {
    "a blob with a flipped bit": lambda root: flip_byte(first(root / "blobs"), 5),
    "a torn blob": lambda root: os.truncate(first(root / "blobs"), 10),
    "a blob that may be written": lambda root: first(root / "blobs").chmod(0o644),
    "a link under a blob's name": lambda root: (root / "blobs" / f"sha256-{'0' * 64}").symlink_to("x"),
    "a staged name among the blobs": lambda root: (root / "blobs" / "x.staged").touch(),
    "a blob is missing": lambda root: first(root / "blobs").unlink(),
    "the manifest is missing": lambda root: manifest(root).unlink(),
    "a torn ref": lambda root: edit(first(root / ".modelstore" / "refs"), b'{"half'),
    "an empty ref": lambda root: edit(first(root / ".modelstore" / "refs"), b""),
    "a ref of another source": lambda root: first(root / ".modelstore/refs").rename(
        root / ".modelstore" / "refs" / f"{'0' * 64}.json"
    ),
    "a temporary name among the refs": lambda root: (root / ".modelstore/refs/.tmp1").touch(0o644),
    "torn sums": lambda root: edit(first(root / ".modelstore" / "sums"), b"{"),
    "a torn layout record": lambda root: edit(first(root / ".modelstore" / "layouts"), b""),
    "a damaged format.json": lambda root: edit(root / ".modelstore" / "format.json", b""),
    "a file of a model is missing": lambda root: (in_tree(root) / "config.json").unlink(),
    "an empty model": lambda root: (shutil.rmtree(in_tree(root)), (root / "models" / ("0" * 16)).mkdir()),
    "a file too many in a model": lambda root: (in_tree(root) / "more").touch(0o444),
    "a torn file in a model": lambda root: os.truncate(own_copy(in_tree(root) / "tokenizer.json"), 3),
    "two files of a model exchanged": lambda root: _exchange(in_tree(root)),
    "a link in a model": lambda root: (in_tree(root) / "link").symlink_to("config.json"),
    "a model's file that may be written": lambda root: own_copy(in_tree(root) / "config.json").chmod(0o644),
    "a directory for its owner only": lambda root: (in_tree(root) / "1_Pooling").chmod(0o700),
    "a root for its owner only": lambda root: root.chmod(0o700),
    "a half-built model that can be seen": lambda root: (root / "models" / "half.modelstore").mkdir(),
    "a hidden sibling": lambda root: (root / "models" / f".{'0' * 16}.{'1' * 16}.modelstore").mkdir(),
    "a staged file": lambda root: (root / ".modelstore" / "ingest" / f"{'0' * 32}.staged").touch(),
    "a file of no known kind, staged": lambda root: (root / ".modelstore" / "ingest" / "core").touch(),
    "a quarantined file": lambda root: (root / ".modelstore" / "quarantine" / "x").touch(),
    "a file of no known kind": lambda root: (root / ".modelstore" / "tmp").touch(),
    "a file in the root": lambda root: (root / "nohup.out").touch(),
    "a secret": lambda root: _append(first(root / ".modelstore" / "sums"), f' "user:{SECRET}@host"'),
    "a secret in base64": lambda root: _append(
        first(root / ".modelstore" / "sums"), base64.b64encode(f"user:{SECRET}".encode()).decode()
    ),
    "a secret in a name": lambda root: (root / ".modelstore" / "locks" / SECRET).touch(),
}


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _exchange(model: Path) -> None:
    one, two = model / "config.json", model / "tokenizer.json"
    one.rename(model / "x")
    two.rename(one)
    (model / "x").rename(two)


def test_a_good_store_has_no_violations(fetched: Path, good: Path) -> None:
    for root in (fetched / "store", good):
        assert violations(root, secrets=[SECRET]) == []
        assert violations(root, trees=[digests(fetched / "model")]) == []


def test_no_store_has_no_violations(tmp_path: Path) -> None:
    assert violations(tmp_path / "nothing", targets=[tmp_path / "nothing" / "there"]) == []


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation(good: Path, name: str) -> None:
    VIOLATIONS[name](good)
    assert violations(good, secrets=[SECRET]) != []


def test_another_tree_than_allowed(good: Path) -> None:
    assert violations(good, trees=[{"config.json": "0" * 64}]) != []


def test_limits(good: Path) -> None:
    (good / ".modelstore" / "ingest" / f"{'0' * 32}.staged").write_bytes(b"12345")
    assert violations(good, limits=Limits(staged_files=1, staged_bytes=5)) == []
    assert violations(good, limits=Limits(staged_files=1, staged_bytes=4)) != []


def test_target(good: Path, tmp_path: Path) -> None:
    target = tmp_path / "serve" / "model"
    target.parent.mkdir()
    assert violations(good, targets=[target]) == []
    shutil.copytree(in_tree(good), target)
    assert violations(good, targets=[target]) == []
    (target.parent / f".model.{'0' * 16}.modelstore").mkdir()
    assert violations(good, targets=[target]) != []
    assert violations(good, targets=[target], limits=Limits(siblings=1)) == []
    (target / "config.json").unlink()
    assert violations(good, targets=[target], limits=Limits(siblings=1)) != []


def test_torn_records_after_a_power_cut(good: Path) -> None:
    edit(first(good / ".modelstore" / "sums"), b"")
    assert violations(good, power_lost=True) == []
    edit(first(good / ".modelstore" / "refs"), b"")
    assert violations(good, power_lost=True) != []


CHANGES: dict[str, Violation] = {
    "content": lambda outside: (outside / "file").write_text("other"),
    "mode": lambda outside: (outside / "file").chmod(0o600),
    "a new file": lambda outside: (outside / "new").touch(),
    "a file is gone": lambda outside: (outside / "file").unlink(),
    "a time": lambda outside: os.utime(outside / "file", (0, 0)),
    "another inode": lambda outside: own_copy(outside / "file"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_watch_outside(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (outside / "file").chmod(0o644)
    watch = Watch(outside=[outside])
    assert watch.violations() == []
    CHANGES[name](outside)
    assert watch.violations() != []


def test_watch_published(good: Path) -> None:
    """Gone is no change, nor is a new file under the old name; written into is one."""
    watch = Watch(published=[good / "blobs"])
    blob = first(good / "blobs")
    other = own_copy(blob)
    assert watch.violations() == []
    with writable(max((good / "blobs").iterdir())) as _:
        os.utime(max((good / "blobs").iterdir()), (0, 0))
    assert watch.violations() != []
    other.unlink()


def test_leaks() -> None:
    assert leaks(f"http://user:{SECRET}@host", [SECRET])
    assert leaks(base64.b64encode(f"user:{SECRET}".encode()).decode(), [SECRET])
    assert not leaks("http://host", [SECRET])
