"""An fsspec filesystem that does as it is told, and writes down what it was asked.

    with registered() as remote:
        remote.files["bucket/m.gguf"] = b"..."
        ... Store(...).fetch(remote.url("bucket/m.gguf")) ...
        assert all(call.stop - call.start <= MIB for call in remote.reads)

Each `registered()` is a protocol of its own, so that tests in one process do not meet.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem
from fsspec.utils import infer_storage_options

from modelstore import Model, ModelStoreError
from tests.support import digests, key_of, staged, visible
from tests.support.s3 import hashed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Read:
    """One call of `cat_file`."""

    path: str
    start: int | None
    stop: int | None


@dataclass
class Remote:
    """What is behind the protocol. Paths are `bucket/key`.

    ``stamp`` is what it calls the mark of a version. ``sign`` makes the URL of a path, None: signing is not
    implemented. ``bend`` is given what a read should answer and answers something else, or raises; ``listing`` bends
    the entries of a listing and ``describe`` what is said of one file. ``failure`` is raised by whatever asks what
    there is, ``broken`` by listing some folders.
    """

    protocol: str
    files: dict[str, bytes] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)  # of the last change
    stamp: str = "ETag"
    sign: Callable[[str], str] | None = None
    bend: Callable[[Read, bytes], bytes] = lambda read, data: data
    listing: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda entries: entries
    describe: Callable[[dict[str, Any]], Any] = lambda entry: entry
    failure: Exception | None = None
    broken: dict[str, Exception] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    signed: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str) -> str:
        return f"{self.protocol}://{path}"

    def put(self, path: str, body: bytes) -> None:
        self.files[path] = body
        self.times[path] = self.times.get(path, 0) + 1

    def fill(self, files: dict[str, bytes], prefix: str) -> None:
        for path, body in files.items():
            self.put(prefix + path, body)

    def entry(self, path: str) -> Any:
        """As an object store describes it."""
        if self.failure:
            raise self.failure
        if path in self.files:
            tag = f'"{self.times.get(path, 0)}-{len(self.files[path])}"'
            return self.describe({"name": path, "size": len(self.files[path]), "type": "file", self.stamp: tag})
        if any(name.startswith(path + "/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str) -> list[dict[str, Any]]:
        """What is right below a directory; of a file, the file."""
        if path in self.broken:
            raise self.broken[path]
        if path in self.files:
            return [self.entry(path)]
        inside = {name[len(path) + 1 :] for name in self.files if name.startswith(path + "/")}
        if not inside:
            raise FileNotFoundError(path)
        names = sorted({name.partition("/")[0] for name in inside} - {""})
        return self.listing([self.entry(f"{path}/{name}") for name in names])

    def read(self, path: str, start: int | None, stop: int | None) -> bytes:
        call = Read(path, start, stop)
        with self.lock:
            self.reads.append(call)
        return self.bend(call, self.files[path][start:stop])


class _Common:
    """What the filesystems below have in common; `remote` is set on a class made for it."""

    remote: Remote
    cachable = False
    root_marker = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.remote.options.append(options)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return path.removeprefix(f"{cls.remote.protocol}://").rpartition("@")[2].rstrip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        found = infer_storage_options(path)
        return {name: found[name] for name in ("username", "password") if name in found}

    def sign(self, path: str, expiration: int = 100, **_: Any) -> str:
        if self.remote.sign is None:
            raise NotImplementedError("Sign is not implemented for this filesystem")
        path = self._strip_protocol(path)
        self.remote.signed.append(path)
        return self.remote.sign(path)


class PlainFileSystem(_Common, AbstractFileSystem):
    """Blocking, as sftp is."""

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self.remote.entry(self._strip_protocol(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        entries = self.remote.ls(self._strip_protocol(path))
        return entries if detail else [entry["name"] for entry in entries]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self.remote.read(self._strip_protocol(path), start, end)


class AsyncRemoteFileSystem(_Common, AsyncFileSystem):
    """On fsspec's own loop, as gcsfs and adlfs are; it also remembers listings and itself, as they do."""

    cachable = True

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        known = [entry for listed in self.dircache.values() for entry in listed if entry["name"] == path]
        return known[0] if known else self.remote.entry(path)

    async def _ls(self, path: str, detail: bool = True, refresh: bool = False, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if refresh or path not in self.dircache:
            self.dircache[path] = self.remote.ls(path)
        return self.dircache[path] if detail else [entry["name"] for entry in self.dircache[path]]

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self.remote.read(self._strip_protocol(path), start, end)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


@contextmanager
def registered(base: type[Any] = PlainFileSystem) -> Iterator[Remote]:
    """A new protocol, as a package that is installed would bring it."""
    remote = Remote(f"remote{next(_NUMBERS)}")
    made = type("RemoteFileSystem", (base,), {"remote": remote, "protocol": remote.protocol})
    fsspec.register_implementation(remote.protocol, made)
    try:
        yield remote
    finally:
        made.clear_instance_cache()
        _registry.pop(remote.protocol, None)


def assert_model(root: Path, model: Model, url: str, files: dict[str, bytes]) -> None:
    assert model.path == root / "models" / key_of(url)[:16]
    assert digests(model.path) == hashed(files)
    assert staged(root) == []


def fails(code: int, root: Path, fetch: Callable[[], object], *words: str) -> ModelStoreError:
    with pytest.raises(ModelStoreError) as caught:
        fetch()
    assert caught.value.exit_code == code, repr(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert visible(root) == {}
    return caught.value


def outcome(fetch: Callable[[], Model]) -> Model | ModelStoreError:
    """What came of it."""
    try:
        return fetch()
    except ModelStoreError as error:
        return error


def right_or_refused(found: Model | ModelStoreError, root: Path, files: dict[str, bytes], *codes: int) -> None:
    """Either exactly the files, or one of these errors and nothing visible."""
    if isinstance(found, ModelStoreError):
        assert found.exit_code in codes, repr(found)
        assert visible(root) == {}
    else:
        assert digests(found.path) == hashed(files)
